"""`t2i models`: list, describe, download and delete models."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from t2i.cli.completion_values import model_names
from t2i.cli.tables import aligned
from t2i.errors import ModelUnavailable, T2IError, UsageError
from t2i.model_files.registry import MINI, NAMES, ZOO, ResolvedModel, hub_model, resolve

if TYPE_CHECKING:
    from t2i.model_files.hub_cache import CachedModel

_json = click.option("--json", "as_json", is_flag=True, help="One JSON object per model.")
_name = click.argument("name", shell_complete=model_names)


@click.group()
def models() -> None:
    """List, describe, download and delete models.

    Models from the Hugging Face Hub lie in its own cache (HF_HUB_CACHE, HF_HOME), which other programs share.
    """


@models.command("list")
@_json
def list_models(as_json: bool) -> None:
    """List the models known by name, and others in the Hub's cache.

    Uses no network. A licence that is not shown is not known here: `t2i models info NAME --online` asks the Hub.
    """
    from t2i.model_files.hub_cache import cache_folder, cached_models, unfinished_bytes

    cached = cached_models()
    known = {entry.id for entry in ZOO.values()}
    facts = [_facts(resolve(name), cached) for name in NAMES if name != "mini" or MINI.is_dir()]
    facts += [_facts(hub_model(id), cached) for id in cached if id not in known]
    if as_json:
        for fact in facts:
            click.echo(json.dumps({key: value for key, value in fact.items() if key != "revisions"}))
        return
    unfinished = unfinished_bytes()
    size = in_units(sum(model.bytes for model in cached.values()))
    head = f"{size} in {cache_folder()}" + (f", and {in_units(unfinished)} of unfinished downloads" * bool(unfinished))
    click.echo(aligned(head, [(fact["name"], _summary(fact)) for fact in facts]))


@models.command()
@_name
@click.option("--online", is_flag=True, help="Also ask the Hub for licence, gating and newest commit.")
@_json
def info(name: str, online: bool, as_json: bool) -> None:
    """Show what is known about a model: id, licence, defaults, and its files on this machine.

    NAME is a name of `t2i models list`, a Hub id owner/name, or a pipeline folder.
    """
    from t2i.model_files.hub_api import describe, not_cached
    from t2i.model_files.hub_cache import cached_models

    cached = cached_models()
    model = _find(name, cached)
    facts = _facts(model, cached)
    if online and model.kind == "hub":
        facts |= describe(model)
    elif facts["state"] == "absent" and model.name not in ZOO:
        raise not_cached(model, None, "nothing else is known about it without a network (--online asks the Hub)")
    click.echo(json.dumps(facts) if as_json else aligned(name, _rows(facts)))


@models.command()
@_name
@click.option("--revision", metavar="REV", help="Branch, tag or commit.")
@click.option("--quiet", is_flag=True, help="No progress bars.")
@_json
def pull(name: str, revision: str | None, quiet: bool, as_json: bool) -> None:
    """Download a model from the Hub, and print where it is.

    Downloads only safetensors weights, configs and tokenizers, as `t2i generate` would. An interrupted download is
    resumed.
    """
    from t2i.model_files.locate import locate

    model = resolve(name)
    if model.kind != "hub" and name != "mini":
        raise UsageError(f"{name} is on this machine already", "give a Hub id: owner/name")
    if quiet:
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
    files = locate(name, revision=revision)
    found = {"name": name, "id": _id(model), "revision": files.revision, "path": str(files.path), "bytes": files.bytes}
    click.echo(json.dumps(found) if as_json else found["path"])


@models.command()
@_name
@click.option("--revision", metavar="REV", help="This commit, branch or tag alone. Default: all of the model.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_json
def rm(name: str, revision: str | None, yes: bool, as_json: bool) -> None:
    """Delete a model from the Hub's cache.

    Other programs that use the same cache would download it again.
    """
    from t2i.model_files.hub_cache import cached_models, freed_bytes, remove

    models = cached_models()
    model = _find(name, models)
    if model.kind != "hub":
        where = "is part of t2i" if name == "mini" else "is not in the Hub's cache: it is a file or folder of yours"
        raise UsageError(f"{name} {where}; nothing was deleted")
    cached = models.get(model.location)
    commits = [
        found.commit
        for found in (cached.revisions if cached else ())
        if revision is None or revision == found.commit or revision in found.refs
    ]
    if cached is None or not commits:
        at = f" at revision {revision}" if cached and revision else ""
        raise ModelUnavailable(f"{name}{at} is not in the cache: nothing to delete", "`t2i models list` shows what is")
    freed = freed_bytes(cached, commits)
    if not (yes or _confirm(f"Delete {cached.id} ({in_units(freed)}) from the cache?")):
        raise T2IError("nothing was deleted")
    remove(cached, commits)
    found = {"name": name, "id": cached.id, "revisions": commits, "freed": freed}
    click.echo(json.dumps(found) if as_json else f"deleted {cached.id}: {in_units(freed)} freed")


def in_units(size: int) -> str:
    """Return a number of bytes for a human: 512 B, 1.5 kB, 5.2 GB (powers of 1000, as disks are sold)."""
    value, unit = float(size), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.5 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def _find(name: str, cached: dict[str, CachedModel]) -> ResolvedModel:
    """Return the model of a name.  A cached one wins over a folder of that name, and need not be a pipeline."""
    return hub_model(name) if name in cached else resolve(name)


def _confirm(question: str) -> bool:
    try:
        return click.confirm(question, err=True)
    except click.Abort:
        if sys.stdin.isatty():  # Ctrl-C
            raise
        raise UsageError("deleting needs an answer, and stdin has none", "--yes deletes without being asked") from None


def _id(model: ResolvedModel) -> str | None:
    return model.location if model.kind == "hub" else None


def _facts(model: ResolvedModel, cached: dict[str, CachedModel]) -> dict[str, Any]:
    """Return what is known about a model without a network, as plain JSON data; None: not known."""
    found = cached.get(model.location) if model.kind == "hub" else None
    facts: dict[str, Any] = {
        "name": model.name,
        "id": _id(model),
        "state": "absent",
        "bytes": 0,
        "license": model.defaults.license,
        "gated": model.gated or None,
        "pinned": model.revision,
        "defaults": {k: v for k, v in asdict(model.defaults).items() if k not in ("name", "license")},
        "revisions": [],
    }
    if found is not None:
        revisions = [
            {**asdict(revision), "folder": str(revision.folder), "files": dict(revision.files)}
            for revision in found.revisions
        ]
        facts |= {"state": found.state, "bytes": found.bytes, "revisions": revisions}
        facts["license"] = facts["license"] or found.license
    elif model.kind != "hub":
        place = Path(model.location)
        files = _files(place)
        size = sum(files.values())
        state = "built in" if model.name == "mini" else "here"
        facts |= {"state": state, "bytes": size, "revisions": [{"folder": str(place), "bytes": size, "files": files}]}
    return facts


def _files(place: Path) -> dict[str, int]:
    """Return {path below it: bytes} of a folder, or of one file."""
    if place.is_file():
        return {place.name: place.stat().st_size}
    paths = sorted(path for path in place.rglob("*") if path.is_file())
    return {path.relative_to(place).as_posix(): path.stat().st_size for path in paths}


def _summary(facts: dict[str, Any]) -> str:
    """Return a model's state, size and licence on one line."""
    size = f" {in_units(facts['bytes'])}" if facts["bytes"] else ""
    words = [facts["state"] + size, facts["license"], "gated" if facts["gated"] else None]
    return " · ".join(filter(None, words))


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    defaults = {key: value for key, value in facts["defaults"].items() if value not in (None, "guidance_scale")}
    if size := defaults.get("size"):
        defaults["size"] = "x".join(map(str, size))
    gated = {True: "yes: its licence must be accepted on the Hub's page", False: "no", None: "not known here"}
    rows = [
        ("id", facts["id"] or "(no Hub id)"),
        ("on disk", f"{facts['state']}, {in_units(facts['bytes'])}" if facts["bytes"] else "no"),
        ("licence", facts["license"] or "not known here"),
        ("gated", gated[facts["gated"]] if facts["id"] else "no"),
        ("pinned", facts["pinned"] or "no: the newest commit is used"),
        ("defaults", ", ".join(f"{key} {value}" for key, value in defaults.items()) or "the pipeline's own"),
    ]
    rows += [("newest", facts["newest"])] if facts.get("newest") else []
    for revision in facts["revisions"]:
        refs = f" ({', '.join(revision['refs'])})" if revision.get("refs") else ""
        rows.append((f"revision {revision['commit']}{refs}" if "commit" in revision else "folder", revision["folder"]))
        rows += [(f"  {in_units(size):>8}", name) for name, size in revision["files"].items()]
    return rows
