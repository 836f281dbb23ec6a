"""Benchmark `t2i generate`: `python scripts/bench.py generate`.

Sides run in turns, each second round in reverse, and a ratio is taken within a round. CPU seconds are given beside wall
seconds: on a shared machine they are the more stable measure.
"""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench_cache import measure_cache

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = ("a horse in Van Gogh style", "a dog", "a cat, sketch", "a ship, photo")
Row = tuple[str, list[float], str, float | None]  # what, one value per round, unit, limit
Side = Callable[[], tuple[float, float]]  # wall and CPU seconds


def measure(options: Namespace) -> list[Row]:
    """Return the rows of all parts, or of those that `--parts` names."""
    chosen = options.parts.split(",") if options.parts else list(PARTS)
    unknown = sorted(set(chosen) - set(PARTS))
    if unknown:
        sys.exit(f"--parts: no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    rows: list[Row] = []
    for name in chosen:
        print(f"measuring: {name}", file=sys.stderr)
        rows += PARTS[name](options)
    return rows


def overhead(options: Namespace) -> list[Row]:
    """Compare one image, generated and saved, without start-up: one pipeline object called directly and by t2i."""
    import torch

    from t2i.imaging.images import save
    from t2i.pipelines.text_to_image.pipeline import TextToImage

    model = TextToImage.load(str(options.model))
    with tempfile.TemporaryDirectory() as out:

        def plain() -> None:
            model.pipe(
                PROMPTS[0],
                num_inference_steps=options.steps,
                guidance_scale=options.guidance,
                generator=torch.Generator().manual_seed(0),
            ).images[0].save(f"{out}/plain.png")

        def ours() -> None:
            for result in model(PROMPTS[0], seeds=[0], steps=options.steps, guidance=options.guidance):
                save(result.image, Path(out, "ours.png"), recipe=result.recipe, overwrite=True)

        found = in_turns({"plain": in_process(plain), "ours": in_process(ours)}, options.rounds or 15)
    return [
        ("plain diffusers, 1 image beyond start-up", wall(found["plain"]), "s", None),
        ("t2i / plain diffusers, beyond start-up, wall", ratios(found, "ours", "plain", 0), "x", 1.02),
        ("t2i / plain diffusers, beyond start-up, CPU", ratios(found, "ours", "plain", 1), "x", 1.02),
    ]


def first(options: Namespace) -> list[Row]:
    """Compare the first image, as whole processes: `t2i generate` and `diffusers-cli run`, and eight images of t2i."""
    with tempfile.TemporaryDirectory() as out:
        ours = generate(options, "--overwrite", "-o", f"{out}/ours.png")
        sides = {
            "t2i": process(ours),
            "cli": process(diffusers_cli(options, f"{out}/theirs/")),
            "t2i 8": process(generate(options, "-b", "8", "-o", f"{out}/eight/")),
        }
        found = in_turns(sides, options.rounds or 5)
    return [
        ("t2i generate, first picture", wall(found["t2i"]), "s", None),
        ("diffusers-cli run, first picture", wall(found["cli"]), "s", None),
        ("t2i generate / diffusers-cli run, wall", ratios(found, "t2i", "cli", 0), "x", 1.0),
        ("t2i generate / diffusers-cli run, CPU", ratios(found, "t2i", "cli", 1), "x", 1.0),
        ("8 pictures / 1 picture, t2i", ratios(found, "t2i 8", "t2i", 0), "x", 2.0),
    ]


def many(options: Namespace) -> list[Row]:
    """Compare four prompts in one process, from a file, with four processes one after another."""
    with tempfile.TemporaryDirectory() as out:
        file = Path(out, "prompts.txt")
        file.write_text("\n".join(PROMPTS), encoding="utf-8")
        one = [sys.executable, "-m", "t2i", "generate", "--prompts", str(file), *settings(options), "--quiet"]

        def alone() -> None:
            shutil.rmtree(f"{out}/one", ignore_errors=True)  # else the batch is already complete

        def each() -> tuple[float, float]:
            runs = [process(generate(options, "--overwrite", "-o", f"{out}/each.png", prompt=p))() for p in PROMPTS]
            return sum(run[0] for run in runs), sum(run[1] for run in runs)

        sides: dict[str, Side] = {"one": process([*one, "-o", f"{out}/one/"], alone), "each": each}
        found = in_turns(sides, options.rounds or 3)
    return [
        (f"{len(PROMPTS)} prompts, one process", wall(found["one"]), "s", None),
        (f"{len(PROMPTS)} processes / one process, wall", ratios(found, "each", "one", 0), "x", None),
        (f"{len(PROMPTS)} processes / one process, CPU", ratios(found, "each", "one", 1), "x", None),
    ]


def bf16(options: Namespace) -> list[Row]:
    """Measure one denoising step of Stable Diffusion 1.5's U-Net, 512x512, with guidance and random weights."""
    import torch

    nets = {dtype: sd15_unet(dtype) for dtype in (torch.float32, torch.bfloat16)}

    def step(dtype: Any) -> Callable[[], None]:
        x, text = (torch.randn(2, *shape).to(dtype) for shape in ((4, 64, 64), (77, 768)))

        def run() -> None:
            with torch.no_grad():
                nets[dtype](x, 500, encoder_hidden_states=text, return_dict=False)

        return run

    found = in_turns({str(dtype): in_process(step(dtype)) for dtype in nets}, options.rounds or 3)
    full, half = found
    return [
        ("U-Net of SD 1.5, one step, float32", wall(found[full]), "s", None),
        ("U-Net of SD 1.5, one step, bfloat16", wall(found[half]), "s", None),
        ("bfloat16 is faster than float32 by, at least 1.7, wall", ratios(found, full, half, 0), "x", None),
        ("bfloat16 is faster than float32 by, at least 1.7, CPU", ratios(found, full, half, 1), "x", None),
    ]


def sd15_unet(dtype: Any) -> Any:
    """Build the 860M parameters without the slow initialisation of each layer."""
    import torch

    from t2i.model_files.library_logging import prepare_libraries, silence_libraries

    prepare_libraries()  # before diffusers is imported
    from diffusers import UNet2DConditionModel

    generator = torch.Generator().manual_seed(0)
    with silence_libraries(), torch.device("meta"):
        net = UNet2DConditionModel(sample_size=64, cross_attention_dim=768).to(dtype)
    net = net.to_empty(device="cpu").eval()
    with torch.no_grad():
        for weight in net.parameters():
            weight.normal_(0, 0.02, generator=generator)
    return net


def startup(options: Namespace) -> list[Row]:
    """Split the CPU seconds of a first image into laps, in a fresh process."""
    laps: dict[str, list[float]] = {}
    for _ in range(options.rounds or 3):
        words = [sys.executable, "-c", LAPS, str(options.model), str(options.steps), str(options.guidance)]
        done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=True)
        for line in done.stdout.splitlines():
            name, seconds = line.rsplit(" ", 1)
            laps.setdefault(name, []).append(float(seconds))
    return [(f"CPU of the first picture: {name}", values, "s", None) for name, values in laps.items()]


LAPS = """
import sys, time, gc
gc.disable()
def lap(name, last=[0.0]):
    now = time.process_time()
    print(name, round(now - last[0], 3))
    last[0] = now
folder, steps, guidance = sys.argv[1:]
import t2i.cli.main, t2i.cli.generate, t2i.jobs.run
lap("Python and t2i's own modules")
import torch
lap("import torch")
import diffusers
lap("import diffusers (torch's compiler with it)")
import transformers, transformers.modeling_utils
lap("import transformers")
from t2i.model_files.locate import locate
from t2i.pipelines.loading.load import load_pipeline
from t2i.pipelines.text_to_image.pipeline import TextToImage
files = locate(folder)
files.hash()
lap("find, check and hash the weights")
model = TextToImage.wrap(load_pipeline(files, "cpu", "float32"))
lap("import and load the pipeline")
gc.enable()
list(model("a horse", seeds=[0], steps=int(steps), guidance=float(guidance)))
lap("draw")
"""


def generate(options: Namespace, *more: str, prompt: str = PROMPTS[0]) -> list[str]:
    return [sys.executable, "-m", "t2i", "generate", prompt, *settings(options), "--quiet", *more]


def settings(options: Namespace) -> list[str]:
    numbers = ["--steps", str(options.steps), "--guidance", str(options.guidance), "--seed", "0"]
    return ["-m", str(options.model), "--device", "cpu", "--dtype", "float32", *numbers]


def diffusers_cli(options: Namespace, out: str) -> list[str]:
    """Return the command for the same image by diffusers' own command line."""
    call = f'{{"prompt": "{PROMPTS[0]}", "num_inference_steps": {options.steps}, "guidance_scale": {options.guidance}}}'
    where = ["-m", str(options.model), "--device-map", "cpu", "--dtype", "float32", "--seed", "0", "--output", out]
    main = "from diffusers.commands.diffusers_cli import main; main()"  # the content of the script `diffusers-cli`
    return [sys.executable, "-c", main, "run", *where, "--pipeline-kwargs", call]


def process(command: list[str], before: Callable[[], None] = lambda: None) -> Side:
    """Return a side that runs a fresh process.  before: called first and not measured."""

    def run() -> tuple[float, float]:
        before()
        start = time.perf_counter()
        child = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            sys.exit(f"failed ({child.returncode}): {' '.join(command)}")
        return time.perf_counter() - start, usage.ru_utime + usage.ru_stime

    return run


def in_process(call: Callable[[], Any]) -> Side:
    def run() -> tuple[float, float]:
        gc.collect()  # else this side would pay for the other side's garbage
        start, cpu = time.perf_counter(), time.process_time()
        call()
        return time.perf_counter() - start, time.process_time() - cpu

    return run


def environment() -> dict[str, str]:
    """Return an environment in which t2i can be imported, and nothing uses the network."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def in_turns(sides: dict[str, Side], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Return (wall, CPU) seconds of every side in every round, after one that is discarded."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name in list(sides) if number % 2 else reversed(list(sides)):
            seconds = sides[name]()
            if number:
                found[name].append(seconds)
        print(f"round {number}/{rounds}", file=sys.stderr)
    return found


def wall(seconds: list[tuple[float, float]]) -> list[float]:
    return [pair[0] for pair in seconds]


def ratios(found: dict[str, list[tuple[float, float]]], a: str, b: str, which: int) -> list[float]:
    """Return a / b within each round.  which: 0 wall, 1 CPU."""
    return [x[which] / y[which] for x, y in zip(found[a], found[b], strict=True)]


PARTS: dict[str, Callable[[Namespace], list[Row]]] = {
    "overhead": overhead,
    "first": first,
    "many": many,
    "bf16": bf16,
    "startup": startup,
    "cache": measure_cache,
}
