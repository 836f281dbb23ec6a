"""Run folders made by hand for the tests of reports, and a page read back as a browser would."""

from __future__ import annotations

import csv
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

COLOURS = ["#c00000", "#00a000", "#0000d0", "#808000"]


def make_run(
    folder: Path,
    log: dict[str, list[Any]] | None = None,
    evaluation: dict[str, list[Any]] | None = None,
    samples: dict[int, str] | None = None,
    **config: Any,
) -> Path:
    """A run folder.  log, evaluation: columns.  samples: {images seen: colour of the sheet}."""
    folder.mkdir(parents=True)
    values = {"seed": 0, "images": 1000, "batch": 4, "family": "ddpm"} | config
    (folder / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")
    for name, columns in (("log.csv", log), ("evaluation.csv", evaluation)):
        if columns:
            write_columns(folder / name, columns)
    for seen, colour in (samples or {}).items():
        (folder / "samples").mkdir(exist_ok=True)
        Image.new("RGB", (64, 32), colour).save(folder / "samples" / f"{seen:012d}.png")
    return folder


def write_columns(path: Path, columns: dict[str, list[Any]]) -> None:
    """A CSV file as a run writes it."""
    with path.open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


FLOORS = {"frechet": 1.8, "precision": 0.85, "recall": 0.84, "class_accuracy": 0.92}


def add_scores(run: Path, start: float = 60, points: int = 10, n: int = 1000, best: int = 360) -> Path:
    """Add scores to a run, every 40 images: metrics that improve, and their floors."""
    far = [2 ** (-k / 2) for k in range(points)]
    numbers = {
        "frechet": [2.1 + start * some for some in far],
        "precision": [0.82 - 0.5 * some for some in far],
        "recall": [0.7 - 0.6 * some for some in far],
        "class_accuracy": [0.8 - 0.6 * some for some in far],
    }
    table = {"images": [40 * (k + 1) for k in range(points)]}
    table |= {name: [f"{value:.6g}" for value in values] for name, values in numbers.items()}
    write_columns(run / "scores.csv", table | {f"{name}_floor": [value] * points for name, value in FLOORS.items()})
    judge = {
        "since": 40,
        "version": 1,
        "n": n,
        "seed": 0,
        "frechet_is": "fcd[judge@1a2b3c4d]",
        "extractor": {"name": "judge", "hash": "1a2b3c4d" * 8},
        "reference": {
            "data": "train.parquet",
            "data_hash": "0123456789abcdef" * 4,
            "count": 50_000,
            "formats": ["PNG"],
        },
        "settings": {"sampler": "ddim", "steps": 50},
    }
    (run / "judges.json").write_text(json.dumps([judge]))
    (run / "best").mkdir()
    (run / "best" / "best.json").write_text(json.dumps({"images_seen": best, "metric": "frechet", "value": 3}))
    return run


def some_log(rows: int = 40, start: float = 1.0) -> dict[str, list[Any]]:
    """The log of a diffusion run: numbers that fall, each another."""
    images = [10 * (k + 1) for k in range(rows)]
    falling = {
        "loss": 1.0,
        "mse": 1.1,
        "mse_quarter1": 0.2,
        "mse_quarter2": 0.5,
        "mse_quarter3": 0.9,
        "mse_quarter4": 1.3,
    }
    return {
        "images": images,
        **{name: [f"{start * size / (1 + 0.1 * k):.6g}" for k in range(rows)] for name, size in falling.items()},
        "gradient_norm": [f"{1 + (k % 3) / 10:.6g}" for k in range(rows)],
        "lr": [f"{min(1, (k + 1) / 10) * 1e-3:.6g}" for k in range(rows)],
        "images_per_second": ["50"] * rows,
    }


class Page(HTMLParser):
    """A page's elements, its text, and the data it carries.

    tags: (name, attributes) in order.  text: of all but scripts and styles.  scripts: those that run.  data: by id.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self.data: dict[str, Any] = {}
        self._in: tuple[str, dict[str, str | None]] = ("", {})
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in = (tag, dict(attrs))
        self.tags.append(self._in)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._in = ("", {})

    def handle_data(self, data: str) -> None:
        tag, attributes = self._in
        if tag == "script" and attributes.get("type") == "application/json":
            self.data[str(attributes["id"])] = json.loads(data)
        elif tag == "script":
            self.scripts.append(data)
        elif tag != "style":
            self.text += data

    def plots(self) -> dict[str, dict[str, Any]]:
        """{title: {label of a line: its numbers}}."""
        return {plot["title"]: {line["label"]: line for line in plot["lines"]} for plot in self.data["curves"].values()}
