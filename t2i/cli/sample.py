"""`t2i sample RUN`: draw images with a trained run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from t2i.cli.options import SectionedCommand, options_of
from t2i.config.sample_options import SAMPLE_OPTIONS, SampleOptions

SETTINGS = tuple(name for name, one in SAMPLE_OPTIONS.items() if one.option.target == "settings")

EXAMPLES = """\b
Examples:
  t2i sample runs/ddpm-cifar10-10m
  t2i sample runs/ddpm-cifar10-10m --label horse --label ship -b 20 --guidance 2 --grid
  t2i sample runs/ddpm-cifar10-10m --trajectory
  t2i sample runs/dcgan-cifar10 --label horse --interpolate 1:9
  accelerate launch t2i sample runs/ddpm-cifar10-10m -b 50000 --batch-size 500 -o samples/50k
"""


@click.command(cls=SectionedCommand, epilog=EXAMPLES)
@click.argument("run", metavar="RUN")
@options_of(SampleOptions)
def sample(run: str, **given: Any) -> None:
    """Draw images with RUN: a run of `ddpm`, `dcgan` or `vae`, a folder in diffusers' format, or a Hub id.

    Image k has seed SEED + k, and the classes in turn. Running the same command again draws only missing images; under
    `accelerate launch` all processes share the work, and the images are the same. Sampler, spacing, steps and guidance
    apply to diffusion models: the others draw in one step.
    """
    options = SampleOptions.read({name: value for name, value in given.items() if value not in (None, ())})
    for path in _sample(run, options):
        click.echo(path)


def _sample(run: str, options: SampleOptions) -> Iterator[Path]:
    from tqdm import tqdm

    from t2i.distributed import is_main, processes
    from t2i.errors import UsageError
    from t2i.model_files.library_logging import prepare_libraries
    from t2i.pipelines.class_conditional.sample_folder import SampleRequest, load_model, sample_folder

    prepare_libraries()
    if options.trajectory and options.interpolate:
        raise UsageError("give either `trajectory` or `interpolate`")
    settings = {name: getattr(options, name) for name in SETTINGS if getattr(options, name) is not None}
    wanted = SampleRequest(options.num_images or 16, options.label, options.seed, options.batch_size)
    ends = None if options.interpolate is None else _ends(options.interpolate)
    model = load_model(run, device=options.device, revision=options.revision, offline=options.offline)
    kind = "-trajectory" if options.trajectory else "-interpolation" if ends else ""
    folder = options.output or Path("samples") / f"{model.name}{kind}"
    if options.trajectory:
        yield from _trajectory(model, run, wanted, folder, options.photo, options.animation, settings)
        return
    if ends:
        from t2i.pipelines.class_conditional.interpolation import save_interpolation

        label = options.label[0] if options.label else None
        count = options.num_images or 10
        yield from save_interpolation(model, ends, count, label, folder, options.animation, **settings)
        return
    hidden = None if is_main() and not options.quiet else True
    with tqdm(total=wanted.count, unit="img", desc="drawing", leave=False, file=sys.stderr, disable=hidden) as bar:
        for group in sample_folder(model, wanted, folder, **settings):
            bar.update(len(group))
            yield from group
    if options.grid:
        processes().wait_for_everyone()  # the sheet shows what all of them drew
        if is_main():
            yield _grid([folder / f"{k:06d}.png" for k in range(wanted.count)], folder / "grid.png")


def _ends(text: str) -> tuple[int, int]:
    """Return two seeds written as A:B.  Raises UsageError."""
    from t2i.errors import UsageError
    from t2i.pipelines.settings.limits import check_ends

    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal()):
        raise UsageError(f"--interpolate: got {text[:40]!r}, expected two seeds, for example 1:9")
    return check_ends(int(first), int(last))


def _trajectory(
    model: Any, run: str, wanted: Any, folder: Path, photo: Path | None, animation: str, settings: dict[str, Any]
) -> list[Path]:
    from t2i.errors import UsageError
    from t2i.imaging.images import decode
    from t2i.pipelines.class_conditional.ddpm import DDPM
    from t2i.pipelines.class_conditional.trajectory import save_trajectory, trajectory

    if not isinstance(model, DDPM):
        raise UsageError(
            f"--trajectory: a {type(model).__name__} draws in one step", "--interpolate 1:9 shows its noise"
        )
    if other := set(settings) - {"steps"}:
        raise UsageError(f"--trajectory shows the ddpm sampler in even steps, without {', '.join(sorted(other))}")
    label = wanted.labels[0] if wanted.labels else (0 if model.classes else None)
    numbers = model.label_numbers(1, label)
    class_name = None if numbers is None else model.classes[int(numbers[0])]
    image = decode(photo) if photo else _training_image(Path(run), class_name)
    if image is None:
        click.echo("the training images are not here: the sample itself dissolves; or give a --photo", err=True)
    made = trajectory(model, wanted.seed, label, image, settings.get("steps", 100))
    return save_trajectory(*made, folder, animation)


def _training_image(run: Path, class_name: str | None) -> Any:
    """Return the first training image of a ddpm run of this class; None where run or data are not here."""
    from contextlib import suppress

    from t2i.config import DDPMConfig, load_config
    from t2i.data.sample_image import example
    from t2i.errors import T2IError

    with suppress(T2IError):
        config = load_config(run.expanduser() / "config.yaml", "ddpm")
        if isinstance(config, DDPMConfig):
            return example(config.data, config.label, class_name or "")
    return None


def _grid(paths: list[Path], path: Path) -> Path:
    from t2i.imaging import images
    from t2i.metadata.recipe import Mark

    return images.save(images.grid([images.decode(p) for p in paths]), path, recipe=Mark(), overwrite=True)
