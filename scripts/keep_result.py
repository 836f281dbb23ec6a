"""Keep the records of a finished run, without its weights, so that it can be reported later.

    python scripts/keep_result.py runs/vae-cifar10 ...      # writes docs/results/vae-cifar10
    t2i report docs/results/* -o results.html

Of the config only the last two parts of a data path are kept: the rest belongs to one machine.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import click
import yaml

RESULTS = Path(__file__).parents[1] / "docs" / "results"
KEPT = (
    *("log.csv", "evaluation.csv", "scores.csv", "judges.json", "environment.json"),
    *("best/best.json", "score.json", "scores/*/score.json"),
    *("export/facts.json", "export/classes.json", "samples/*.png"),
)


@click.command(help=__doc__.splitlines()[0])
@click.argument("runs", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(runs: tuple[Path, ...]) -> None:
    for run in runs:
        kept = RESULTS / run.resolve().name
        made = kept / "made.yaml"
        before = made.read_bytes() if made.is_file() else None
        shutil.rmtree(kept, ignore_errors=True)
        for file in sorted(file for pattern in KEPT for file in run.glob(pattern)):
            (kept / file.relative_to(run)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, kept / file.relative_to(run))
        config = shortened(yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")))
        (kept / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
        if before is not None:  # written by hand, for RESULTS.md
            made.write_bytes(before)
        click.echo(kept)


def shortened(value: Any, key: str = "") -> Any:
    """Shorten every absolute path under a key `path` to its last two parts."""
    if isinstance(value, dict):
        return {name: shortened(part, name) for name, part in value.items()}
    if isinstance(value, list):
        return [shortened(part, key) for part in value]
    if key == "path" and Path(str(value)).is_absolute():
        return "/".join(Path(value).parts[-2:])
    return value


if __name__ == "__main__":
    main()
