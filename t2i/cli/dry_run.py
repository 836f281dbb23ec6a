"""`t2i generate --dry-run`: what would be drawn, with what and into which files; loads and downloads nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import click

from t2i.cli.dry_run_table import SHOWN, model_rows, output_rows
from t2i.cli.tables import aligned
from t2i.errors import UsageError
from t2i.jobs.planning.preflight import (
    Facts,
    Say,
    Share,
    count_tasks,
    model_assets,
    model_facts,
    model_name,
    starting_points,
)
from t2i.jobs.spec.request import GenerateRequest
from t2i.jobs.spec.resolve import ModelKey, model_key


def survey(request: GenerateRequest, say: Say, as_json: bool) -> None:
    """Print what a run would do.  Raises as the run itself would, before it loads."""
    from t2i.jobs.run import places_of

    shares: dict[ModelKey, Share] = {}
    count_tasks(shares, request, request.tasks)
    if wrong := next((share.error for share in shares.values() if share.error), None):
        raise wrong
    names = {overrides: model_name(share) for overrides, share in shares.items()}
    named: dict[str | None, list[tuple[str, int, str]]] = {}
    for task in request.tasks:
        name = names[model_key(request, task.prompt.overrides)]
        named.setdefault(task.prompt.overrides.output, []).append((task.job.prompt, task.job.seed, name))
    files: list[str] = []
    for where, outputs in places_of(request).items():
        outputs.check(named[where], grid=request.grid)
        files += [str(next(outputs.candidates(*image))) for image in named[where][: SHOWN - len(files)]]
    seeds = sorted({task.job.seed for task in request.tasks})
    total = {"images": len(request.tasks), "seeds": seeds[:SHOWN], "files": files, "missing": len(request.tasks)}
    _report(list(shares.values()), request, total, say, as_json, steady=False)


def survey_batch(file: Path, request: GenerateRequest, chosen: bool, say: Say, as_json: bool) -> None:
    """Print what a long batch would do, in one pass over its list.  chosen: the user named its seeds."""
    from t2i.jobs.batch.job_list import make_job_list
    from t2i.jobs.batch.ledger import Ledger

    listing = make_job_list(file, request, chosen)
    began = () if chosen else Ledger(listing.folder).seeds()
    shares: dict[ModelKey, Share] = {}
    count_tasks(shares, request, listing.tasks())
    if not shares:
        raise UsageError(f"--prompts {file}: no prompt", "one per line, or rows with options")
    total: Facts = {"images": sum(share.images for share in shares.values()), "folder": str(listing.folder)}
    if all(share.files is not None and share.has_adapters for share in shares.values()):
        listing.request = replace(request, seeds=began or request.seeds)
        listing.locate = lambda overrides: shares[overrides].files  # type: ignore[assignment, return-value]
        total |= {"files": [], "missing": 0}
        ledger = Ledger(listing.folder, shards=listing.shards)
        for item in listing.items():
            total["missing"] += not (item.path.is_file() or ledger.in_shard(item))
            total["files"] += [str(item.path)] if len(total["files"]) < SHOWN else []
    wrong = sum(share.wrong for share in shares.values())
    total |= {"seeds": list(began or request.seeds if began or chosen else ())} | ({"wrong": wrong} if wrong else {})
    _report(list(shares.values()), request, total, say, as_json, steady=True)


def _report(shares: list[Share], request: GenerateRequest, total: Facts, say: Say, as_json: bool, steady: bool) -> None:
    """Print it all.  Raises ModelUnavailable afterwards, where a model cannot be had."""
    models = [model_facts(share, request, say, steady) for share in shares]
    for share, facts in zip(shares, models, strict=True):
        facts["besides"], missing = model_assets(share, request)
        share.problem = share.problem or missing
        facts["cache"] = share.overrides.cache
        facts["starts"] = starting_points(share)
    if as_json:
        click.echo(json.dumps({"models": models} | total))
    else:
        for facts in models:
            click.echo(aligned(facts["model"], model_rows(facts)))
        click.echo(aligned("output", output_rows(total)))
    for share in shares:
        if share.problem is not None:
            raise share.problem
