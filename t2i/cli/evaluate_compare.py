"""`t2i eval compare`: score several models with the same settings, side by side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from t2i.cli.progress_bar import progress, read_prompt_texts


@click.command()
@click.argument("what", metavar="RUN|FOLDER|PARQUET...", nargs=-1, required=True)
@click.option("--ref", "ref", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The reference.")
@click.option("-o", "--output", required=True, type=click.Path(file_okay=False, path_type=Path), help="The folder.")
@click.option("--features", metavar="SPEC", help="The reference's extractor, where that is a folder of this machine.")
@click.option("--n", type=click.IntRange(1), default=10_000, help="Number of images of each.  [10000]")
@click.option("-s", "--seed", type=click.IntRange(0), default=0, help="Seed of drawn or chosen images.  [0]")
@click.option("--data", metavar="DATA", help="The reference's data: also show the nearest neighbours.")
@click.option("--prompts", "prompt_file", metavar="FILE", help="Of text-to-image models: one per line, drawn in turn.")
@click.option("--curves", is_flag=True, help="Also plot quality against steps and guidance, for diffusion models.")
@click.option("--steps", metavar="LIST", help="Points of that curve.  [2,4,8,16,32,64,250,1000]")
@click.option("--guidance", metavar="LIST", help="Points of that curve.  [1,1.5,2,3,5]")
@click.option("--curve-n", type=click.IntRange(1), default=1_000, help="Images per point.  [1000]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps. Default: the fastest there is.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def compare(as_json: bool, output: Path, **options: Any) -> None:
    """Score several runs or folders with the same settings, and show them side by side.

    Writes a table (compare.md, compare.json) and a page (index.html) with images, metrics, parameters, images seen,
    training time, sampling steps and images per second. Running the same command again reuses finished measurements.
    """
    result = _compare(output=output, **options)
    if result is None:
        return
    from t2i.report.compare import save
    from t2i.report.compare_table import terminal, warnings

    paths = save(result, output)
    for line in warnings(result):
        click.echo(f"warning: {line}", err=True)
    if as_json:
        import json

        click.echo(json.dumps(result))
    else:
        click.echo(terminal(result))
        for path in paths:
            click.echo(path)


def _compare(
    what: tuple[str, ...],
    ref: Path,
    output: Path,
    features: str | None,
    n: int,
    seed: int,
    data: str | None,
    prompt_file: str | None,
    curves: bool,
    steps: str | None,
    guidance: str | None,
    curve_n: int,
    device: str | None,
    quiet: bool,
) -> dict[str, Any] | None:
    from t2i.evaluation.comparison import GUIDANCE, STEPS, ComparisonPlan, compare
    from t2i.evaluation.features import load_extractor
    from t2i.evaluation.reference import extractor_spec, load_reference
    from t2i.model_files.library_logging import prepare_libraries

    prepare_libraries()
    found = load_reference(ref)
    extractor = load_extractor(features or extractor_spec(found), device)
    plan = ComparisonPlan(
        n,
        seed,
        _numbers("steps", steps, int) or (STEPS if curves else ()),
        _numbers("guidance", guidance, float) or (GUIDANCE if curves else ()),
        curve_n,
        read_prompt_texts(prompt_file),
    )
    with progress("evaluating", quiet) as seen:
        return compare(what, found, extractor, plan, output, data=data, seen=seen)


def _numbers(name: str, text: str | None, kind: Callable[[str], Any]) -> tuple[Any, ...]:
    """Return the numbers of a comma-separated list, sorted and distinct.  Raises UsageError."""
    from t2i.errors import UsageError

    try:
        return tuple(sorted({kind(number) for number in text.split(",")})) if text else ()
    except ValueError:
        raise UsageError(f"--{name}: got {str(text)[:40]!r}, expected numbers, for example 2,4,8") from None
