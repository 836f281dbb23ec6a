"""The options of `t2i generate`: one typed record from which every interface is derived.

Each field defines one option completely: its type, default and range, its flags and help, whether a row of a prompt
file may set it, what it is passed to, whether it is part of a batch's identity, and its name in A1111's text.
Click's options, rows of prompt files, `t2i.load(...)` and its call, job ids, records and replay all read it here.
To add an option, add a field, and use it where it acts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from t2i.config.option import Known, Option, Options

MAX_SEED = 2**64 - 1  # what torch.Generator takes
MAX_STEPS = 1000
MAX_GUIDANCE = 100.0
MAX_SIDE = 8192
MAX_IMAGES = 1_000_000
MAX_AT_ONCE = 1024
MAX_CLIP_SKIP = 32  # layers of SD XL's second text encoder; a smaller encoder checks its own limit

SCHEDULER_NAMES = "ddim, dpm++2m, dpm++2m-karras, euler, euler-a, unipc, heun, pndm, lcm, ..."

WHAT, HOW, START = "What to draw", "How to draw", "Start from an image"
MODEL, ADAPTERS, MACHINE = "Model", "Adapters", "Machine"
SPEED, OUTPUT = "Speed and preview", "Output"


# Shared with `t2i sample`.
Revision = Annotated[
    str | None,
    Option(
        ("--revision",),
        "Branch, tag or commit of a model on the Hub.",
        MODEL,
        "row",
        "model",
        metavar="REV",
        identity="always",
    ),
]
Offline = Annotated[bool, Option(("--offline",), "Do not use the network.", MODEL)]


class GenerateOptions(Options):
    """All options of `t2i generate`, as given: None stands for the model's own default."""

    prompt: Annotated[
        tuple[str, ...],
        Option(("-p", "--prompt"), "A prompt; may be repeated.", WHAT, "source", metavar="TEXT", many=True),
    ] = ()
    negative_prompt: Annotated[
        str,
        Option(
            ("-n", "--negative-prompt"),
            "What not to draw; {a|b} and (word:1.2) as in prompts.",
            WHAT,
            "row",
            "settings",
            metavar="TEXT",
            aliases=("negative",),
            identity="always",
        ),
    ] = ""
    prompt_file: Annotated[
        str | None,
        Option(
            ("--prompts",),
            "A file of prompts: one per line (.txt, or - for stdin), or rows that set options (.jsonl, .csv).",
            WHAT,
            "source",
            metavar="FILE",
        ),
    ] = None
    raw: Annotated[
        bool,
        Option(
            ("--raw",),
            "Take prompts literally. Otherwise they may hold choices {a|b}, {0.5::a|b}, {2$$ and $$a|b|c},"
            " __wildcard__; weights (word:1.2), ((word)), [[word]], with \\( for a literal bracket; LoRAs"
            " <lora:NAME:0.8>.",
            WHAT,
            "row",
            "settings",
            identity="always",
        ),
    ] = False
    chunks: Annotated[
        bool | None,
        Option(
            ("--chunks/--no-chunks",),
            "Encode a prompt that is too long for a CLIP encoder in chunks, or truncate it.  [SD 1, 2 and XL: chunks]",
            WHAT,
            "row",
            "settings",
            identity="set",
        ),
    ] = None
    wildcards: Annotated[
        Path,
        Option(("--wildcards",), "Folder with NAME.txt for __NAME__.  [wildcards]", WHAT, metavar="FOLDER"),
    ] = Path("wildcards")
    replay: Annotated[
        tuple[Path, ...],
        Option(
            ("--from",),
            "Reproduce an image exactly from its metadata; given options override it. May be repeated.",
            WHAT,
            "source",
            metavar="IMAGE",
            many=True,
        ),
    ] = ()

    steps: Annotated[
        int | None,
        Field(ge=1, le=MAX_STEPS),
        Option(
            ("--steps", "--num-inference-steps"),
            f"Denoising steps, 1 to {MAX_STEPS}. Default: the model's.",
            HOW,
            "row",
            "settings",
            aliases=("num_inference_steps",),
            identity="always",
            a1111="Steps",
        ),
    ] = None
    guidance: Annotated[
        float | None,
        Field(ge=0, le=MAX_GUIDANCE),
        Option(
            ("--guidance", "--cfg-scale", "--guidance-scale"),
            "How closely to follow the prompt, 0 to 100; 1 or less turns guidance off. Default: the model's.",
            HOW,
            "row",
            "settings",
            aliases=("cfg_scale", "guidance_scale"),
            identity="always",
            a1111="CFG scale",
        ),
    ] = None
    clip_skip: Annotated[
        int | None,
        Field(ge=1, le=MAX_CLIP_SKIP),
        Option(
            ("--clip-skip",),
            "Read the text encoder's Nth layer from the end, as A1111 counts: 1 is the last. Models that read the one"
            " before the last (XL, 3) do so up to 2. For models with CLIP text encoders.",
            HOW,
            "row",
            "settings",
            metavar="N",
            identity="set",
            recorded=True,
            a1111="Clip skip",
            a1111_unset="1",
        ),
    ] = None
    seed: Annotated[
        tuple[int, ...],
        Option(
            ("-s", "--seed"),
            "Seed of a prompt's first image, 0 to 2^64-1; the next images count up. May be repeated."
            " Default: -1, a random one, which is shown and recorded.",
            HOW,
            "row",
            many=True,
            a1111="Seed",
        ),
    ] = ()
    num_images: Annotated[
        int,
        Field(ge=1, le=MAX_IMAGES),
        Option(
            ("-b", "--batch-count", "--num-images"),
            "Images per prompt.  [1]",
            HOW,
            "row",
            row="batch_count",
            aliases=("num_images",),
            identity="always",
        ),
    ] = 1
    width: Annotated[
        int | None,
        Field(ge=1, le=MAX_SIDE),
        Option(
            ("-W", "--width"),
            "Pixels. Default: the model's.",
            HOW,
            "row",
            "settings",
            identity="always",
            a1111="Size-1",
        ),
    ] = None
    height: Annotated[
        int | None,
        Field(ge=1, le=MAX_SIDE),
        Option(
            ("-H", "--height"),
            "Pixels. Default: the model's.",
            HOW,
            "row",
            "settings",
            identity="always",
            a1111="Size-2",
        ),
    ] = None
    size: Annotated[
        str | None,
        Option(("--size",), "Both at once, as 512x512.", HOW, "row", metavar="WxH"),
    ] = None
    scheduler: Annotated[
        str | None,
        Option(
            ("--scheduler", "--sampler"),
            f"{SCHEDULER_NAMES} or A1111's names. Default: the model's own.",
            HOW,
            "row",
            "settings",
            metavar="NAME",
            aliases=("sampler",),
            identity="always",
        ),
    ] = None

    image: Annotated[
        Any,
        Option(
            ("-i", "--image", "--init-image"),
            "Draw from this image, at its own size if the model can; with -W and -H it is scaled and cropped to that.",
            START,
            "row",
            "inputs",
            metavar="IMAGE",
            aliases=("init_image",),
        ),
    ] = None
    mask: Annotated[
        Any,
        Option(
            ("--mask",),
            "Inpaint --image: white is repainted, black stays exactly as it is.",
            START,
            "row",
            "inputs",
            metavar="IMAGE",
        ),
    ] = None
    strength: Annotated[
        float | None,
        Option(
            ("--strength",),
            "Amount of noise, above 0 and up to 1, which ignores the image. With --steps 20, 0.6 runs the last 12."
            " Default: 0.6; 1 with --mask.",
            START,
            "row",
            "inputs",
        ),
    ] = None
    control: Annotated[
        tuple[Any, ...],
        Option(
            ("--control",),
            "Guide the image with a ControlNet. TYPE is canny, depth, pose, scribble, tile, ... as available for the"
            " model, or a folder or Hub id. IMAGE is the control map itself: edges for canny, not a photo. May be"
            " repeated.",
            START,
            "row",
            "inputs",
            metavar="TYPE:IMAGE[:SCALE]",
            many=True,
        ),
    ] = ()
    upscale: Annotated[
        Any,
        Option(
            ("--upscale",),
            "Then refine the image at FACTOR times its size, starting from the enlarged image.  [strength: 0.4]",
            START,
            "row",
            "inputs",
            metavar="FACTOR[:STRENGTH]",
        ),
    ] = None

    model: Annotated[
        str,
        Option(
            ("-m", "--model"),
            "A name (mini, sd15, sdxl, ...), a pipeline or run folder, a Hub id owner/name, or one .safetensors file."
            " Default: mini, which is built in and needs no network.",
            MODEL,
            "row",
            "model",
            metavar="MODEL",
            environment="T2I_MODEL",
        ),
    ] = "mini"
    revision: Revision = None
    config: Annotated[
        str | None,
        Option(
            ("--config",),
            "Configs and tokenizers for a single .safetensors file. Not needed for Stable Diffusion 1 and XL.",
            MODEL,
            metavar="FOLDER",
        ),
    ] = None
    offline: Offline = False

    lora: Annotated[
        tuple[str, ...],
        Option(
            ("--lora",),
            "A LoRA: a .safetensors file, a folder, or a Hub id owner/name[/file]. SCALE is its strength, 1 by default;"
            " it may be negative. May be repeated; several are combined.",
            ADAPTERS,
            "row",
            "model",
            metavar="PATH[:SCALE]",
            many=True,
            identity="set",
        ),
    ] = ()
    lora_folder: Annotated[
        Path,
        Option(
            ("--lora-folder",),
            "Folder in which <lora:NAME:0.8> in a prompt finds NAME.safetensors, before the working folder.  [loras]",
            ADAPTERS,
            metavar="FOLDER",
        ),
    ] = Path("loras")
    embedding: Annotated[
        tuple[str, ...],
        Option(
            ("--embedding",),
            "A textual inversion: a new word for prompts, TOKEN, or else as the file names it. May be repeated.",
            ADAPTERS,
            "row",
            "model",
            metavar="PATH[:TOKEN]",
            many=True,
            identity="set",
        ),
    ] = ()
    ip_adapter: Annotated[
        tuple[str, ...],
        Option(
            ("--ip-adapter",),
            "An IP-Adapter, with its image_encoder/ next to it, and an image prompt. May be"
            " repeated. For Stable Diffusion 1, XL and FLUX.1.",
            ADAPTERS,
            "row",
            "model",
            metavar="PATH:IMAGE[:SCALE]",
            many=True,
            identity="set",
        ),
    ] = ()

    device: Annotated[
        str | None,
        Option(
            ("--device",),
            "cpu, cuda, cuda:1, xpu, mps. Default: the fastest available.",
            MACHINE,
            "machine",
            metavar="NAME",
        ),
    ] = None
    dtype: Annotated[
        str | None,
        Option(
            ("--dtype",),
            "float32, float16 or bfloat16. Default: float32 for small models; for others bfloat16 where the hardware"
            " supports it.",
            MACHINE,
            "row",
            "model",
            metavar="NAME",
            identity="always",
        ),
    ] = None
    batch_size: Annotated[
        int | None,
        Field(ge=1, le=MAX_AT_ONCE),
        Option(
            ("--batch-size",),
            "Images drawn at once; changes speed and memory, not the images.",
            MACHINE,
            "machine",
            identity="always",
        ),
    ] = None
    offload: Annotated[
        Literal["auto", "none", "model", "group"],
        Option(
            ("--offload",),
            "Keep in main memory what a GPU does not need at the moment: whole networks (model), or layers (group:"
            " least memory, slow). Default: what fits the free memory.",
            MACHINE,
            "machine",
        ),
    ] = "auto"
    quantize: Annotated[
        Literal["none", "8", "4"] | None,
        Option(
            ("--quantize",),
            "Weights in 8 or 4 bits: less memory, slightly different images; 4 needs a GPU. Default: only"
            " where nothing else fits.",
            MACHINE,
            "row",
            "model",
            identity="set",
        ),
    ] = None
    tiling: Annotated[
        bool | None,
        Option(
            ("--tiling/--no-tiling",),
            "Decode in tiles. Default: where the whole image does not fit.",
            MACHINE,
            "row",
            "model",
            identity="set",
        ),
    ] = None
    compile: Annotated[
        bool,
        Option(
            ("--compile",),
            "Compile the network: the first image takes minutes, the next ones are faster. Not with --cache.",
            MACHINE,
            "machine",
        ),
    ] = False
    auto_retry: Annotated[
        bool,
        Option(
            ("--auto-retry",),
            "When memory runs out, retry with settings that need less, and report them.",
            MACHINE,
            "machine",
        ),
    ] = False
    deterministic: Annotated[
        bool,
        Option(
            ("--deterministic",),
            "Bit-identical images in every run on this machine; slower on a GPU.",
            MACHINE,
            "row",
            "model",
            identity="set",
        ),
    ] = False
    no_safety: Annotated[
        bool,
        Option(
            ("--no-safety",),
            "Skip the safety checker of models that have one. Recorded.",
            MACHINE,
            "row",
            "model",
            identity="set",
        ),
    ] = False
    dry_run: Annotated[
        bool,
        Option(
            ("--dry-run",),
            "Show models, files and memory that a run would need; loads and downloads nothing.",
            MACHINE,
            "output",
        ),
    ] = False

    cache: Annotated[
        str | None,
        Option(
            ("--cache",),
            "Step caching: reuse part of earlier steps; faster, with a slightly different image. reuse[:N] and"
            " taylor[:N] compute every Nth step in full, default 2 (reuse on mini, 20 steps: a quarter less time, mean"
            " error 2 of 255; taylor is closer on most images, further off on its worst); first-block[:CHANGE]"
            " skips steps that change less than that, default 0.1, on Flux, PixArt and Qwen-Image, one image at a"
            " time.",
            SPEED,
            "row",
            "model",
            metavar="NAME[:VALUE]",
            identity="always",
        ),
    ] = None
    preview: Annotated[
        int | None,
        Field(ge=1, le=MAX_STEPS),
        Option(
            ("--preview",),
            "Every N steps write a preview to a file next to the output, which is removed at the end. Not for"
            " --prompts FILE -o FOLDER/, which saves finished images.",
            SPEED,
            "run",
            metavar="N",
        ),
    ] = None

    output: Annotated[
        str | None,
        Option(
            ("-o", "--output"),
            "A file, a folder/, or a pattern with {date} {index} {seed} {model} {prompt} {job}. Default:"
            " outputs/{date}/{index}-{seed}.png, with --prompts a folder with {index}-{job}.png. No file is"
            " overwritten.",
            OUTPUT,
            "row",
            metavar="PATH",
        ),
    ] = None
    overwrite: Annotated[bool, Option(("--overwrite",), "Allow --output to replace files.", OUTPUT)] = False
    grid: Annotated[bool, Option(("--grid",), "Also save all images on one sheet.", OUTPUT)] = False
    columns: Annotated[
        int | None,
        Field(ge=1, le=1000),
        Option(("--columns",), "Images per row of --grid. Default: a row per prompt.", OUTPUT),
    ] = None
    format: Annotated[
        Literal["png", "jpg", "webp"] | None,
        Option(("--format",), "Default: by the suffix of --output, or png.", OUTPUT, identity="always"),
    ] = None
    shards: Annotated[
        Literal["parquet", "webdataset"] | None,
        Option(
            ("--shards",),
            "With --prompts FILE -o FOLDER/: pack the images, with captions and records, into files for training.",
            OUTPUT,
            identity="always",
        ),
    ] = None
    shard_size: Annotated[
        int | None,
        Field(ge=1, le=100_000),
        Option(("--shard-size",), "Images per file of --shards. Default: 1000.", OUTPUT, identity="always"),
    ] = None
    json_lines: Annotated[
        bool,
        Option(("--json",), "Print one JSON object per image (or shard) instead of its path.", OUTPUT, "output"),
    ] = False
    quiet: Annotated[
        bool,
        Option(("--quiet",), "Print only errors on stderr: no messages, no progress bar.", OUTPUT, "output"),
    ] = False


OPTIONS: dict[str, Known] = GenerateOptions.table()
ROW: tuple[str, ...] = tuple(name for name, one in OPTIONS.items() if one.option.scope == "row")
SETTINGS: tuple[str, ...] = tuple(name for name, one in OPTIONS.items() if one.option.target == "settings")
INPUTS: tuple[str, ...] = tuple(name for name, one in OPTIONS.items() if one.option.target == "inputs")
