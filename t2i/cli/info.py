"""`t2i info`: how an image was made, or what a run or model folder holds. Imports neither torch nor diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from t2i.cli.tables import aligned, printable
from t2i.diagnostics.inspect import describe
from t2i.errors import ImageError, PartialFailure, T2IError
from t2i.jobs.replay.find_adapters import adapter_rows
from t2i.jobs.replay.find_images import edit_rows
from t2i.jobs.replay.verify import machine_words
from t2i.metadata.a1111 import NEGATIVE
from t2i.metadata.diff import difference, difference_table


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="IMAGE|RUN|MODEL...", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON object per argument, one per line; one for two images.")
def info(paths: tuple[Path, ...], as_json: bool) -> None:
    """Show how an image was made, or what a run or model folder holds.

    Reads what t2i and A1111-like tools write into PNG, JPEG and WebP files; run folders, finished or still training;
    and pipeline folders (mini: the embedded one). For two images it shows how their records differ.
    Exit code 1 means that there is no such record.
    """
    if (pair := _two_images(paths)) is not None:
        click.echo(json.dumps(_compare(*pair)) if as_json else _comparison(*pair))
        return
    failures: list[T2IError] = []
    for path in paths:
        try:
            facts = describe(path)
        except T2IError as e:
            failures.append(e)
            if as_json:
                click.echo(json.dumps({"path": str(path), "error": e.message}))
            continue
        click.echo(json.dumps(facts) if as_json else table(facts))
    if len(failures) == len(paths) == 1:
        raise failures[0]
    if failures:
        message = f"{len(failures)} of {len(paths)} could not be described:"
        kind = PartialFailure if len(failures) < len(paths) else ImageError
        raise kind("\n  ".join([message, *(e.message for e in failures)]))


def _two_images(paths: tuple[Path, ...]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return the facts of two images that both have a record; None for anything else, which is described one by one."""
    if len(paths) != 2:
        return None
    try:
        first, second = (describe(path) for path in paths)
    except T2IError:
        return None
    known = [facts["kind"] == "image" and (facts["recipe"] or facts["settings"]) for facts in (first, second)]
    return (first, second) if all(known) else None


def _compare(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    found = difference(a, b)
    return {"paths": [a["path"], b["path"]], "same": not found, "differences": {n: list(v) for n, v in found.items()}}


def _comparison(a: dict[str, Any], b: dict[str, Any]) -> str:
    head = f"{a['path']}\n{b['path']}"
    rows = difference_table(a, b)
    return aligned(head, rows) if rows else f"{printable(head)}\n  the two records are equal"


def table(facts: dict[str, Any]) -> str:
    """Return the facts as lines for a human, safe to print on a terminal."""
    rows = {"image": _image_rows, "model": _model_rows, "run": _run_rows}
    return aligned(facts["path"], rows[facts["kind"]](facts))


def _image_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    if facts["recipe"]:
        rows += _recipe_rows(facts["recipe"])
    elif facts["settings"]:
        settings = dict(facts["settings"])
        rows += [("prompt", settings.pop("Prompt")), (NEGATIVE[:-1].lower(), settings.pop("Negative prompt"))]
        rows += list(settings.items())
    else:
        rows += [("made by", "a trained model, says its XMP; there is no recipe")]
    rows += [("pixels", facts["pixels"])] if facts["pixels"] else []
    return rows + [("problem", problem) for problem in facts["problems"]]


def _recipe_rows(made: dict[str, Any]) -> list[tuple[str, str]]:
    schedule = f" {made['schedule_type']}" if made["schedule_type"] else ""
    weights = f", weights {made['weights_hash'][:10]}" if made["weights_hash"] else ""
    revision = f", revision {made['revision']}" if made["revision"] else ""
    template = [("template", made["template"])] if made["template"] != made["prompt"] else []
    negative = [("negative prompt", made["negative_prompt"])] if made["negative_prompt"] else []
    if made["negative_template"] != made["negative_prompt"]:
        negative.append(("negative template", made["negative_template"]))
    if made["reading"]:
        negative.append(("prompts read", ", ".join(f"{name}: {value}" for name, value in made["reading"].items())))
    threads = f"{made['threads']} thread{'s' if made['threads'] > 1 else ''}" if made["threads"] else ""
    machine = ", ".join(filter(None, (made["hardware"], threads)))
    how = machine_words(made["machine"])
    extra = [("machine", how)] if how else []
    extra += [("safety checker", made["safety"])] if made["safety"] in ("checked", "off") else []
    return [
        ("prompt", made["prompt"]),
        *template,
        *negative,
        ("model", made["model"] + revision + weights),
        *adapter_rows(made["adapters"]),
        ("sampler", f"{made['sampler']}{schedule} ({made['scheduler']})"),
        ("steps", str(made["steps"])),
        ("guidance", f"{made['guidance']:g}"),
        *((name.replace("_", " "), str(value)) for name, value in made["options"].items()),
        ("seed", str(made["seed"])),
        ("size", f"{made['width']} x {made['height']}"),
        *edit_rows(made["edit"]),
        ("computed", f"in {made['dtype']} on {made['device']}" + (f" ({machine})" if machine else "")),
        *extra,
        ("versions", ", ".join(f"{name} {version}" for name, version in made["versions"].items())),
    ]


def _run_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    return [*facts["summary"].items(), *(_model_rows(facts["model"]) if facts["model"] else ())]


def _model_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    version = f" (diffusers {facts['diffusers']})" if facts["diffusers"] else ""
    components = [(name, f"{one['class']}, {_megabytes(one['bytes'])}") for name, one in facts["components"].items()]
    return [("pipeline", facts["pipeline"] + version), *components, ("in all", _megabytes(facts["bytes"]))]


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
