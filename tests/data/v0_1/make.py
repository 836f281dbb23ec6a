"""Make the fixtures of t2i 0.1 that stand beside this file. Runs with t2i 0.1 (commit 8d33106) alone.

    git worktree add ../t2i-0.1 8d33106     # with this folder copied into its tests/data
    cd ../t2i-0.1 && OMP_NUM_THREADS=1 PYTHONPATH=. python tests/data/v0_1/make.py

A later version must replay, continue and resume what is here, so what it would write itself proves nothing: change this
file only to add to the fixtures, in a checkout of 0.1. It uses 0.1's own test kits, and stops 0.1 in the middle of its
work by replacing functions inside it.

models/     shapes of small models in the real formats, which `models.py` fills with weights
work/       what the commands find where they run: pictures, prompt files, wildcards, training images
records/    pictures with their records, and `commands.json`: the words after `t2i generate` that drew each
batches/    folders of long batches as SIGKILL left them; NAME.json, NAME.npz: manifest and pixels when they are whole
samples/    folders of `t2i sample` of which half is missing; samples.npz: the pixels of all
runs/       per family an archive: NAME/, a run as SIGKILL left it; expected.json, the numbers of what it exported when
            it went on; and for those that `t2i sample` draws with finished/, that export itself. Weights and optimiser
            state of the half-done run were rounded to a few bits before 0.1 went on with it, and the export after: only
            so do six runs fit into the repository.
configs/    training configs as a user writes them; dumped.json: what 0.1 read them as
user/       a user's own defaults
made_on.json    the machine and the libraries
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TESTS = HERE.parents[1]
ROOT = TESTS.parent
sys.path[:0] = [str(HERE), str(TESTS)]

import models  # noqa: E402

LONG = "a horse and a cat in a field of " + ", ".join(
    f"{colour} flowers" for colour in ("red", "blue", "white", "pink")
)
LONG += ", and a (van:1.4) behind them, " * 3 + "drawn by gogh"
SMALL = ("-m", "tiny", "--steps", "4")

# name of the picture: what is said after `t2i generate`; -o NAME comes last
RECORDS: dict[str, tuple[str, ...]] = {
    "words.png": ("a horse", "-s", "7", *SMALL),
    "words.jpg": ("a horse", "-s", "7", *SMALL),
    "words.webp": ("a horse", "-s", "7", *SMALL),
    "size.png": ("a horse", "-s", "8", "--size", "24x16", *SMALL),
    "image.png": ("a cat", "-i", "start.png", "--strength", "0.6", "-s", "3", *SMALL),
    "mask.png": ("a cat", "-i", "start.png", "--mask", "mask.png", "-s", "3", *SMALL),
    "upscale.png": ("a horse", "--upscale", "2:0.5", "-s", "4", *SMALL),
    "control.png": ("a horse", "--control", "edges:map.png:0.7", "-s", "4", *SMALL),
    "lora.png": ("a horse", "--lora", "style.safetensors:0.8", "-s", "5", *SMALL),
    "tag.png": ("a horse <lora:style:0.5>", "-s", "5", "--lora-folder", ".", *SMALL),
    "embedding.png": ("a horse, odd", "--embedding", "odd.safetensors", "-s", "5", *SMALL),
    "ip-adapter.png": ("a horse", "--ip-adapter", "ip/adapter.safetensors:seen.png:0.7", "-s", "5", *SMALL),
    "weights.png": ("a (horse:1.3) in ((gogh)), [[cat]]", "-n", "a (van:1.2)", "-s", "6", *SMALL),
    "long.png": (LONG, "-s", "6", *SMALL),
    "cut.png": (LONG, "--no-chunks", "-s", "6", *SMALL),
    "negative.png": ("a horse", "-n", "a {red|blue} cat", "--guidance", "5", "-s", "9", *SMALL),
    "karras.png": ("a horse", "--scheduler", "dpm++2m-karras", "-s", "2", *SMALL),
    "ancestral.png": ("a horse", "--scheduler", "euler-a", "-s", "2", *SMALL),
    "flow.png": ("a horse", "-m", "other", "-s", "2", "--steps", "3", "--guidance", "1"),
    "choice.png": ("a {red|blue} __animals__, {2$$ and $$house|van|gogh}", "-s", "11", *SMALL),
    "raw.png": ("a {red|blue} (horse:1.3) __animals__", "--raw", "-s", "11", *SMALL),
    "cache.png": ("a horse", "--cache", "reuse:2", "-s", "12", "-m", "tiny", "--steps", "8"),
    "exact.png": ("a horse", "--deterministic", "--tiling", "-s", "12", *SMALL),
    "together.png": ("a horse", "-b", "3", "--batch-size", "3", "-s", "20", *SMALL),  # the last of three drawn at once
    "mini.png": ("a horse in Van Gogh style", "-s", "1", "--steps", "2"),
}
A1111 = """a (horse:1.3), [cat]
Negative prompt: a van
Steps: 4, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 5, Seed: 77, Size: 16x24, Model: tiny, RNG: CPU"""
FROM_A1111 = ("--from", "a1111.png", "-m", "tiny", "-o")

ROWS: list[Any] = [
    {"prompt": "a horse"},
    {"prompt": "a {red|blue} cat", "seed": 40, "num_images": 2},
    "a van",
    {"prompt": "a horse", "steps": 3, "cfg_scale": 4.5, "negative_prompt": "a (cat:1.2)", "sampler": "Euler a"},
    {"prompt": "a cat", "size": "24x16", "output": "named/{seed}-{job}"},
    {"prompt": "a cat", "width": 16, "height": 24, "chunks": False},
    # what follows was added after a first run had ended
    {"prompt": "a horse, gogh", "lora": "style.safetensors:0.6"},
    {"prompt": "a horse, odd", "embedding": ["odd.safetensors"], "lora": ["style.safetensors"]},
    {"prompt": "a cat", "image": "start.png", "strength": 0.5, "guidance_scale": 2, "batch_count": 2},
    {"prompt": "a cat", "image": "start.png", "mask": "mask.png"},
    {"prompt": "a (horse:1.3) {red|blue}", "raw": True, "scheduler": "ddim"},
    {"prompt": "a horse", "model": "other", "num_inference_steps": 3, "cache": "reuse:2"},
    {"prompt": "a horse", "control": "edges:map.png:0.5", "upscale": "1.5:0.5", "tiling": True},
    {"prompt": "a cat", "ip_adapter": "ip/adapter.safetensors:seen.png:0.5"},
]
ENDED = 6  # rows of the first run
TABLE = """Prompt,Negative Prompt,seed,steps,cfg scale,size,scheduler,raw,lora
a horse,,,,,,,,
"a cat, a van",a {red|blue} house,,3,,,,,
a {red|blue} horse,,,,2.5,16x24,,,
a (cat:1.3),,90,,,,,true,
a house,,,,,,ddim,,style.safetensors:0.5
a van,,,,,,,,
__animals__,,,,,,,,
a horse (gogh:1.2),,,,,,,,
a cat,,,,,,dpm++2m-karras,,
a house {2$$ and $$red|blue|white},,,,,,,,
"""
LINES = "".join(f"a {{red|blue}} {thing} of __animals__\n" for thing in ("house", "van", "field", "picture", "dream"))
LINES += "\n  a (horse:1.3)  \na cat, gogh\na horse\n"
BATCH = ("-m", "tiny", "--steps", "2", "-s", "5", "--batch-size", "3")
# name: (its file, further words, how many pictures are saved before it dies; or at which shard's name)
BATCHES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "files": ("rows.jsonl", (), "save 3"),
    "parquet": ("rows.csv", ("--shards", "parquet", "--shard-size", "4"), "save 6"),
    "webdataset": ("prompts.txt", ("--shards", "webdataset", "--shard-size", "3", "--format", "jpg"), "name 2"),
}
SAMPLES: dict[str, tuple[str, ...]] = {
    "ddpm": ("-b", "6", "--batch-size", "4", "--steps", "3", "--guidance", "1.5", "--sampler", "ddim", "-s", "3"),
    "dcgan": ("-b", "3", "--label", "sketch", "-s", "4"),
    "vae": ("-b", "3", "-s", "5"),
}

COMMON: dict[str, Any] = {"seed": 7, "images": 32, "batch": 4, "precision": "no", "ema": 8, "log_every": 4}
COMMON |= {"sample_every": 16, "save_every": 12, "keep": 9}
CONFIGS: dict[str, str] = {
    "autoencoder": """\
model: {channels: [4, 4], groups: 4}
loss: {gradient: 0.5, ssim: 0.1}
""",
    "text2image": """\
autoencoder: vae
captions:
  by: style
  templates:
    photo: ["a photo of {a object}", a photo]
    sketch: ["a sketch of {a object}"]
  drop: 0.2
text_encoder: {vocabulary: 600, tokens: 8, width: 8, layers: 1, heads: 1}
unet: {channels: [8], attention: [true], head_size: 8, groups: 4}
samples: {prompts: [a photo of a horse, a sketch], steps: 1, guidance: 2, columns: 2}
""",
    "ddpm": """\
label: label
model: {channels: [4], attention: [false], layers: 1, groups: 4}
objective: {schedule: cosine, predict: v, time: uniform, weight: min-snr}
samples: {count: 4, columns: 2, steps: 2}
""",
    "dcgan": """\
label: label
model: {generator: [4, 4, 4], discriminator: [4, 4, 4], latent: 4}
loss: {augment: [color, translation, cutout]}
samples: {count: 4, columns: 2}
""",
    "vae": """\
label: label
model: {channels: [4, 4], latent: 2, groups: 4}
samples: {columns: 3}
""",
    "classifier": """\
held_out: {path: classes, size: 16}
label: label
model: {channels: [4, 8], blocks: 1}
augment: {shift: 2, erase: 4}
""",
}
USER = """\
# my own defaults
generate:
  model: tiny   # the small one
  steps: 3
  cfg-scale: 2.5
  negative_prompt: a cat
  lora: ["style.safetensors:0.5"]
sample:
  batch-count: 4
eval:
  score:
    n: 10000
"""


def main() -> None:
    """Make everything anew."""
    import t2i

    assert t2i.__version__ == "0.1.0", "these fixtures are made by t2i 0.1 alone"
    assert (ROOT / "t2i/cli/drawing.py").is_file(), "these fixtures are made by the commit 8d33106"
    for name in ("models", "work", "records", "batches", "samples", "runs", "configs", "user"):
        shutil.rmtree(HERE / name, ignore_errors=True)
        (HERE / name).mkdir()
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        make_models(place)
        make_work()
        make_records(models.workspace(place / "records"))
        make_batches(models.workspace(place / "batches"))
        make_runs(models.workspace(place / "runs"))
        make_configs(models.workspace(place / "configs"))
    write_json(models.machine() | {"threads": 1, "commit": "8d33106"}, HERE / "made_on.json")


# --- running 0.1 ---


def t2i(folder: Path, *words: str, dies: str = "") -> list[str]:
    """Run `t2i` in a folder; returns the lines of its stdout.  dies: where it is to be killed."""
    command = [sys.executable, __file__, dies, *words] if dies else [sys.executable, "-m", "t2i", *words]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": str(folder / "nowhere")}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == (-signal.SIGKILL if dies else 0), (words, done.returncode, done.stderr)
    return done.stdout.splitlines()


def die(where: str, words: list[str]) -> None:
    """Run `t2i` in this process until it kills itself.

    where: "save N": a picture has been saved N times; "name N": a shard is to get its name for the Nth time;
    "seen N": a training run has seen N images; "partial N": a checkpoint of N images is half written.
    """
    from t2i.cli.main import main as run

    what, number = where.split()
    if what == "save":
        from t2i import images

        replace(images, "save", int(number), after=True)
    elif what == "name":
        from t2i.cli import shards

        replace(shards, "_give_name", int(number), after=False)
    elif what == "seen":
        from t2i.training.engine import Engine

        replace(Engine, "_log", int(number) // COMMON["batch"], after=True)
    else:
        import safetensors.torch as torch_files

        write = torch_files.save_file

        def half_write(tensors: Any, path: Path, metadata: Any = None) -> None:
            write(tensors, path, metadata)
            if path.name == "optimizer.safetensors" and number in path.parent.name:
                os.truncate(path, 1000)
                kill()

        torch_files.save_file = half_write
    raise SystemExit(run(words))


def replace(owner: Any, name: str, count: int, *, after: bool) -> None:
    """Let a function kill this process at its call number `count`, after its work or before it."""
    function: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count and not after:
            kill()
        result = function(*arguments, **options)
        if calls == count and after:
            kill()
        return result

    setattr(owner, name, counted)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# --- models and inputs ---


def make_models(place: Path) -> None:
    """Save small models with the kits of 0.1's tests, and keep their configs and the shapes of their weights."""
    from adapter_kit import random, save, save_ip_adapter, save_lora
    from diffusers import AutoencoderKL, DPMSolverMultistepScheduler
    from editing_kit import save_control

    from t2i.config import AutoencoderModel
    from t2i.training.autoencoder import build_autoencoder

    tiny = save_tiny(place / "tiny")
    save_lora(tiny, place / "style.safetensors")
    save({"odd": random(2, 16)}, place / "odd.safetensors")
    save_ip_adapter(tiny, place / "ip" / "adapter.safetensors")
    save_control(tiny, place / "edges")
    vae: AutoencoderKL = build_autoencoder(AutoencoderModel(channels=(4, 4), groups=4, latent_channels=2), 16, 0)
    vae.save_pretrained(place / "vae")
    for path in sorted(place.rglob("*")):
        if path.suffix == ".safetensors":
            keep_shapes(path, place, HERE / "models" / path.relative_to(place).with_suffix(models.SHAPES))
        elif path.is_file():
            keep(path, HERE / "models" / path.relative_to(place))
    other = HERE / "models" / "other"
    write_json({"model": "tiny", "seed": 1}, other / "like.json")
    index = json.loads((tiny / "model_index.json").read_text(encoding="utf-8"))
    write_json(index | {"scheduler": ["diffusers", "DPMSolverMultistepScheduler"]}, other / "model_index.json")
    flow = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    flow.save_pretrained(place / "flow")
    keep(place / "flow" / "scheduler_config.json", other / "scheduler" / "scheduler_config.json")
    write_json(models.hashes(models.build(place / "built")), HERE / "models.json")


def save_tiny(folder: Path) -> Path:
    """The kits' Stable Diffusion 1 of one layer per block, with an encoder of 77 tokens, whose longer prompts come in
    chunks."""
    from conftest import save_tokenizer, tiny_modules
    from diffusers import PNDMScheduler, StableDiffusionPipeline
    from transformers import CLIPTokenizer

    noise = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    parts = tiny_modules(save_tokenizer(folder / "tokenizer", 77), 77)
    parts["unet"].register_to_config(sample_size=4)  # 16 pixels per side, for small files
    StableDiffusionPipeline(
        **parts,
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        scheduler=PNDMScheduler(**noise, skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


# Factors of the weights' bounds, by file or folder: what an adapter changes is seen, and rounding stays rounding.
GAINS = {"odd": 4.0, "style": 1.0, "adapter": 4.0, "edges": 2.0}


def keep_shapes(path: Path, folder: Path, target: Path) -> None:
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        shapes = {name: list(file.get_slice(name).get_shape()) for name in sorted(file.keys())}
        metadata = {key: text.replace(f"{folder}/", "") for key, text in (file.metadata() or {}).items()} or None
    gain = GAINS.get(path.stem, GAINS.get(path.parent.name, 1.5))
    write_json({"seed": 0, "gain": gain, "metadata": metadata, "shapes": shapes}, target, indent=None)


def make_work() -> None:
    """Pictures to start from, prompt files, a wildcard, training images: made once, kept as they are."""
    from editing_kit import half_mask, picture
    from PIL import Image, PngImagePlugin
    from training_kit import make_images

    work = HERE / "work"
    picture((16, 16)).save(work / "start.png")
    half_mask((16, 16)).save(work / "mask.png")
    picture((16, 16), shift=3).save(work / "map.png")
    picture((24, 16), shift=5).transpose(Image.Transpose.ROTATE_90).save(work / "seen.png")
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", A1111)
    picture((8, 8), shift=1).save(work / "a1111.png", pnginfo=info)
    (work / "wildcards").mkdir()
    (work / "wildcards" / "animals.txt").write_text("# what is drawn\nhorse\ncat\n\na {red|blue} cat\n")
    (work / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    (work / "rows.csv").write_text(TABLE)
    (work / "prompts.txt").write_text(LINES)
    for k, path in enumerate(sorted(make_images(work / "images", 6).glob("*.png"))):
        keep(path, work / "classes" / ("oil", "photo", "sketch")[k % 3] / path.name)


# --- pictures ---


def make_records(place: Path) -> None:
    for name, words in RECORDS.items():
        if name == "together.png":
            t2i(place, "generate", *words, "-o", "together-{seed}.png")
            shutil.copyfile(place / "together-22.png", HERE / "records" / name)
            continue
        t2i(place, "generate", *words, "-o", name if name.partition(".")[0] != "mask" else "masked.png")
        keep(place / (name if name != "mask.png" else "masked.png"), HERE / "records" / name.replace("mask", "masked"))
    t2i(place, "generate", *FROM_A1111, "from-a1111.png")
    keep(place / "from-a1111.png", HERE / "records" / "from-a1111.png")
    write_json(dict(RECORDS), HERE / "records" / "commands.json")


def make_batches(place: Path) -> None:
    import numpy as np

    for name, (file, more, dies) in BATCHES.items():
        words = ("generate", "--prompts", file, *BATCH, *more, "-o", f"{name}/")
        if name == "files":  # a first run comes to its end, then its file grows
            whole = (place / file).read_text()
            (place / file).write_text("".join(whole.splitlines(keepends=True)[:ENDED]))
            t2i(place, *words)
            (place / file).write_text(whole)
        t2i(place, *words, dies=dies)
        shutil.copytree(place / name, HERE / "batches" / name)
        made = t2i(place, *words)
        lines = [json.loads(line) for line in (place / name / "manifest.jsonl").read_text().splitlines()]
        write_json({"words": words, "made": made, "manifest": lines}, HERE / "batches" / f"{name}.json")
        np.savez_compressed(HERE / "batches" / f"{name}.npz", **pictures_of(place / name, lines))


def pictures_of(folder: Path, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The pixels of a whole batch, by job: (H, W, 3) uint8."""
    import numpy as np
    import pyarrow.parquet as pq
    from PIL import Image

    def pixels(data: bytes) -> Any:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    found = {}
    for line in lines:
        path = folder / line["file"]
        if path.suffix == ".parquet":
            rows = pq.read_table(path).to_pylist()
            data = next(row["image"]["bytes"] for row in rows if row["key"] == line["key"])
        elif path.suffix == ".tar":
            with tarfile.open(path) as tar:
                data = tar.extractfile(f"{line['key']}.jpg").read()  # type: ignore[union-attr]
        else:
            data = path.read_bytes()
        found[line["job"]] = pixels(data)
    return found


# --- training ---


def make_runs(place: Path) -> None:
    for family, config in CONFIGS.items():
        plain = "".join(f"{key}: {json.dumps(value)}\n" for key, value in COMMON.items())
        text = f"# {family} in small\n#   t2i train {family} {family}.yaml\nfamily: {family}\n{plain}"
        data = "classes" if "label: label" in config else "images"
        text += f"data: {{path: {data}, size: 16}}\noptimizer: {{lr: 1e-3, warmup: 8}}\n{config}"
        (HERE / "configs" / f"{family}.yaml").write_text(text)
        keep(HERE / "configs" / f"{family}.yaml", place / f"{family}.yaml")
        words, run = ("train", family, f"{family}.yaml", "--quiet"), place / "runs" / family
        t2i(place, *words, dies="partial 24" if family == "classifier" else "seen 20")
        for checkpoint in (run / "checkpoints").glob("*[0-9]"):
            round_off(checkpoint)
        shutil.copytree(run, place / "kept" / family)
        t2i(place, *words)
        if family in ("ddpm", "dcgan", "vae"):  # what `t2i sample` draws with
            finished = Path(shutil.copytree(run / "export", place / "kept" / "finished"))
            for path in finished.glob("*/*.safetensors"):
                round_file(path)
            shutil.copytree(finished, place / "finished" / family)
        write_json(expected(run), place / "kept" / "expected.json")
        pack(place / "kept", HERE / "runs" / f"{family}.tar.xz")
        shutil.rmtree(place / "kept")
    make_samples(place)


def make_samples(place: Path) -> None:
    import numpy as np
    from PIL import Image

    pixels = {}
    for family, words in SAMPLES.items():
        t2i(place, "sample", f"finished/{family}", *words, "-o", f"samples/{family}")
        drawn = sorted((place / "samples" / family).glob("*.png"))
        pixels |= {f"{family}/{path.name}": np.asarray(Image.open(path)) for path in drawn}
        for path in (*drawn[::2], place / "samples" / family / "sampling.json"):
            keep(path, HERE / "samples" / family / path.name)
    np.savez_compressed(HERE / "samples.npz", **pixels)


def round_off(folder: Path) -> None:
    """Keep two bits behind the point of every float32 of a checkpoint."""
    from t2i.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

    whole = load_checkpoint(folder)
    save_checkpoint(folder, Checkpoint({part: rounded(values) for part, values in whole.tensors.items()}, whole.state))


def round_file(path: Path) -> None:
    """The same of a file of weights, whose metadata stay."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(rounded(load_file(path)), path, metadata)


def rounded(tensors: Mapping[str, Any]) -> dict[str, Any]:
    import torch

    def one(tensor: Any) -> Any:
        if tensor.dtype != torch.float32:
            return tensor
        return ((tensor.view(torch.int32) + 2**20) & -(2**21)).view(torch.float32)

    return {name: one(tensor) for name, tensor in tensors.items()}


def expected(run: Path) -> dict[str, Any]:
    """The numbers of a finished run: its log, and of every exported tensor a hash and a few values."""
    from safetensors.numpy import load_file

    found: dict[str, Any] = {"log": (run / "log.csv").read_text(), "tensors": {}}
    for path in sorted((run / "export").rglob("*.safetensors")):
        where = path.relative_to(run / "export").as_posix()
        for name, value in sorted(load_file(path).items()):
            few = [float(f"{x:.6g}") for x in value.ravel()[:: max(1, value.size // 3)]]
            digest = sha256(value.tobytes()).hexdigest()[:16]
            found["tensors"][f"{where}/{name}"] = [list(value.shape), digest, few]
    return found


def pack(folder: Path, archive: Path) -> None:
    """All files below a folder as a tar without times and owners."""

    def nobody(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.mtime = entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        return entry

    with tarfile.open(archive, "w:xz", preset=9) as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name, filter=nobody)


def make_configs(place: Path) -> None:
    from t2i.config import config_hash, load_config

    configs = {family: load_config(HERE / "configs" / f"{family}.yaml", family) for family in CONFIGS}
    write_json(
        {name: {"hash": config_hash(one), "values": one.model_dump(mode="json")} for name, one in configs.items()},
        HERE / "configs" / "dumped.json",
    )
    (HERE / "user" / "t2i").mkdir()
    (HERE / "user" / "t2i" / "config.yaml").write_text(USER)


# --- files ---


def keep(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)


def write_json(value: Mapping[str, Any], path: Path, indent: int | None = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    separators = (",", ": ") if indent else (",", ":")
    path.write_text(json.dumps(value, indent=indent, separators=separators) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        die(sys.argv[1], sys.argv[2:])
    main()
