"""Judges, pictures and references small enough to compute in a blink."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import yaml
from PIL import Image

from t2i.imaging import images
from t2i.nn.resnet import ResNet

SIZE = 8
CLASSES = ("red", "green", "blue")


def save_classifier(run: Path, seed: int = 0, classes: tuple[str, ...] = CLASSES) -> Path:
    """An untrained classifier as a finished run has it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = ResNet(len(classes), (4, 6), 1).eval()
    net.save_pretrained(run / "export")
    (run / "export" / "classes.json").write_text(json.dumps({"classes": classes}))
    (run / "config.yaml").write_text(yaml.safe_dump({"family": "classifier", "data": {"size": SIZE}}))
    return run


def picture(seed: int, colour: int, size: int = SIZE) -> Image.Image:
    """Noise with more of one colour."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.rand(1, 3, size, size, generator=draw) - 1
    x[:, colour] += 0.8
    return images.from_tensor(x)[0]


def save_pictures(folder: Path, count: int, first: int = 0, size: int = SIZE, suffix: str = "png") -> Path:
    """A folder of pictures, the classes in turn as sub-folders."""
    for k in range(first, first + count):
        colour = k % len(CLASSES)
        images.save(picture(k, colour, size), folder / CLASSES[colour] / f"{k:05d}.{suffix}")
    return folder


def make_place(folder: Path, run: str) -> Path:
    """All that a comparison needs: a judge, a reference, a run of a diffusion model, and a folder of pictures."""
    from ddpm_kit import make
    from report_kit import make_run, some_log

    from t2i.cli.main import main

    save_classifier(folder / "judge-run")
    save_pictures(folder / "real", 120)
    save_pictures(folder / "alike", 60, first=1000)
    make("linear", "eps", CLASSES).save_pretrained(make_run(folder / run, log=some_log()) / "export")
    features, out = ["--features", str(folder / "judge-run")], ["-o", str(folder / "ref.safetensors")]
    assert main(["eval", "reference", "--data", str(folder / "real"), *features, *out, "--quiet"]) == 0
    return folder
