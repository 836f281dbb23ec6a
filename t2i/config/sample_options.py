"""The options of `t2i sample`, one typed record from which its command line is derived."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from t2i.config.option import Known, Option, Options
from t2i.config.options import (
    HOW,
    MACHINE,
    MAX_AT_ONCE,
    MAX_GUIDANCE,
    MAX_IMAGES,
    MAX_STEPS,
    OUTPUT,
    WHAT,
    Offline,
    Revision,
)

FIGURE = "Figures"


class SampleOptions(Options):
    """All options of `t2i sample`, as given: None stands for the pipeline's own default."""

    label: Annotated[
        tuple[str, ...],
        Option(("--label",), "A class, by name or number; may be repeated.", WHAT, metavar="CLASS", many=True),
    ] = ()
    num_images: Annotated[
        int | None,
        Field(ge=1, le=MAX_IMAGES),
        Option(("-b", "--batch-count", "--num-images"), "How many images.  [16]", WHAT),
    ] = None
    seed: Annotated[int, Option(("-s", "--seed"), "Seed of the first image; image k has SEED + k.  [0]", WHAT)] = 0
    sampler: Annotated[
        str | None,
        Option(
            ("--sampler",),
            "ddpm, ddpm-large, ddim, dpm++2m, heun, euler.  [dpm++2m]",
            HOW,
            target="settings",
            metavar="NAME",
        ),
    ] = None
    spacing: Annotated[
        str | None,
        Option(
            ("--spacing",),
            "Which timesteps: leading, trailing, linspace, karras.  [trailing]",
            HOW,
            target="settings",
            metavar="NAME",
        ),
    ] = None
    steps: Annotated[
        int | None,
        Field(ge=1, le=MAX_STEPS),
        Option(("--steps",), f"Sampling steps, 1 to {MAX_STEPS}.  [20]", HOW, target="settings"),
    ] = None
    guidance: Annotated[
        float | None,
        Field(ge=0, le=MAX_GUIDANCE),
        Option(("--guidance",), "How closely to follow the class; 1 or less is off.  [1]", HOW, target="settings"),
    ] = None
    trajectory: Annotated[
        bool,
        Option(
            ("--trajectory",), "Instead, show the forward and the reverse process: noise added, noise removed.", FIGURE
        ),
    ] = False
    photo: Annotated[
        Path | None,
        Option(
            ("--photo",),
            "The image that --trajectory adds noise to.  [a training image, if available]",
            FIGURE,
            metavar="IMAGE",
        ),
    ] = None
    interpolate: Annotated[
        str | None,
        Option(
            ("--interpolate",),
            "Instead, interpolate from seed A to seed B, as a strip and as an animation.",
            FIGURE,
            metavar="A:B",
        ),
    ] = None
    animation: Annotated[
        Literal["webp", "gif"], Option(("--animation",), "Format of the animation.  [webp]", FIGURE)
    ] = "webp"
    output: Annotated[
        Path | None, Option(("-o", "--output"), "Folder.  [samples/RUN NAME]", OUTPUT, metavar="FOLDER")
    ] = None
    grid: Annotated[bool, Option(("--grid",), "Also save all images on one sheet, grid.png.", OUTPUT)] = False
    batch_size: Annotated[
        int,
        Field(ge=1, le=MAX_AT_ONCE),
        Option(("--batch-size",), "Images drawn at once.  [64]", MACHINE, "machine"),
    ] = 64
    device: Annotated[
        str | None,
        Option(
            ("--device",), "cpu, cuda, cuda:1, mps. Default: the fastest available.", MACHINE, "machine", metavar="NAME"
        ),
    ] = None
    revision: Revision = None
    offline: Offline = False
    quiet: Annotated[bool, Option(("--quiet",), "No progress bar.", OUTPUT, "output")] = False


SAMPLE_OPTIONS: dict[str, Known] = SampleOptions.table()
