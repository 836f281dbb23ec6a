"""Write RESULTS.md: what has been trained here, from what the runs themselves left in docs/results.

    python scripts/results.py

Of every run its made.yaml says the command, machine, date and commit; images, time and numbers come from its log, its
evaluation and the comparison beside it (docs/results/compare, by `t2i eval compare`). No number is typed in.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import yaml

from t2i.report.runs import RunRecord, read_run
from t2i.report.summary_rows import duration, number

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
HEAD = """# Results

What has been trained with this repository so far: small runs on small machines, every number measured. Written by
`scripts/results.py` from `docs/results`, which keeps logs, configs and sample sheets of each run;
`t2i report docs/results/*` plots their curves. CIFAR-10 is JPEG-compressed here, which affects every number below.
"""
BESIDE = """
## Side by side

All against one reference, with the same protocol (`t2i eval compare`). The distance is not FID: its features are those
of the classifier inside the package, and it stands beside the distance of real images. `test` are the real test images,
which neither models nor judge have seen.

"""
READING = "read.md"  # beside the comparison: what its numbers mean, by whoever looked into them


@click.command(help=__doc__.splitlines()[0])
def main() -> None:
    (ROOT / "RESULTS.md").write_text(text(RESULTS), encoding="utf-8")


def text(results: Path) -> str:
    """The whole page."""
    found = [
        (folder.parent, yaml.safe_load(folder.read_text("utf-8"))) for folder in sorted(results.glob("*/made.yaml"))
    ]
    scores = _scores(results)
    rows = "".join(_row(folder, made) for folder, made in found)
    compare = results / "compare" / "compare.md"
    beside = BESIDE + compare.read_text("utf-8") if compare.is_file() else ""
    if beside and (read := compare.with_name(READING)).is_file():
        beside += "\n" + read.read_text("utf-8")
    table = (
        f"\n| run | images seen | steps took | machine | date | commit |\n| --- | --- | --- | --- | --- | --- |\n{rows}"
    )
    return HEAD + table + beside + "".join(_section(folder, made, scores.get(folder.name)) for folder, made in found)


def _row(folder: Path, made: dict[str, Any]) -> str:
    run = _run(folder)
    images = run.images_seen if run else made["images"]
    took = duration(run.seconds) if run else made["took"]
    cells = [
        f"[{folder.name}](#{folder.name})",
        f"{images:,}",
        took,
        made["machine"],
        made["date"],
        f"`{made['commit']}`",
    ]
    return f"| {' | '.join(map(str, cells))} |\n"


def _section(folder: Path, made: dict[str, Any], score: dict[str, Any] | None) -> str:
    run = _run(folder)
    said = [f"- {line}" for line in [*made.get("measured", []), *(_measured(run) if run else []), *_judged(score)]]
    picture = made.get("picture") or next(
        (str(p.relative_to(ROOT)) for _, p in reversed(run.samples if run else [])), None
    )
    shown = f"\n![{made['shows']}]({picture})\n" if picture else ""
    lines = "\n".join(said)
    return f"\n## {folder.name}\n\n{made['says']}\n\n```bash\n{made['command'].strip()}\n```\n\n{lines}\n{shown}"


def _measured(run: RunRecord) -> list[str]:
    """Numbers of the export, as the run wrote them."""
    return [
        f"{name.replace('_', ' ').replace('.', ', ')}: {number(value)}"
        for name, value in run.facts.items()
        if name != "images_seen"
    ]


def _judged(score: dict[str, Any] | None) -> list[str]:
    """The distance with its floor and ratio, and what was asked for and shown."""
    if score is None:
        return []
    found = score["metrics"]["frechet"]
    judge = score["extractor"]
    floor, spread, ratio = (number(found[key]) for key in ("floor", "floor_spread", "ratio"))
    lines = [
        f"{score['frechet_is']} over {score['n']:,} pictures: {number(found['value'])}; real pictures"
        f" {floor} ± {spread}; ratio {ratio} (judge {judge['name']}, sha256 {judge['hash'][:12]},"
        f" reference {score['reference']['data']})"
    ]
    for name, one in score.get("prompts", {}).items():
        lines.append(f"prompt accuracy: {name}: {one['value']:.1%} of {one['n']:,}; real pictures {one['floor']:.1%}")
    return lines


def _scores(results: Path) -> dict[str, dict[str, Any]]:
    """Scores by run: of the comparison, or kept beside the run."""
    compare = results / "compare" / "compare.json"
    subjects = json.loads(compare.read_text("utf-8"))["subjects"] if compare.is_file() else []
    found = {subject["name"]: subject["score"] for subject in subjects}
    return found | {path.parent.name: json.loads(path.read_text("utf-8")) for path in results.glob("*/score.json")}


def _run(folder: Path) -> RunRecord | None:
    return read_run(folder) if (folder / "log.csv").is_file() else None


if __name__ == "__main__":
    main()
