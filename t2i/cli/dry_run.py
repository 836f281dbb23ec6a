"""`t2i generate --dry-run`: what would be drawn, with what and into which files; loads and downloads nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from t2i.cli.dry_run_table import SHOWN, model_rows, output_rows
from t2i.cli.tables import aligned
from t2i.errors import ModelError, ModelUnavailable, UsageError
from t2i.jobs.planning.assets import find_adapters, look
from t2i.jobs.planning.device_plan import machine_plan, say_safety
from t2i.jobs.planning.prompt_checks import warn_of_prompts
from t2i.jobs.spec.request import Request
from t2i.jobs.spec.resolve import ModelWish, complete, model_wish
from t2i.jobs.spec.tasks import Task
from t2i.model_files.registry import resolve
from t2i.pipelines.settings.edit import WORDS_ALONE

if TYPE_CHECKING:
    from t2i.model_files.hub_api import Remote
    from t2i.pipelines.loading.load import ModelFiles
    from t2i.pipelines.loading.skeleton import Outline

Say = Callable[[str], None]
Facts = dict[str, Any]
FIRST = 1000  # prompts whose words are looked at, as a batch does


@dataclass
class Share:
    """What one model would draw.  Of a long list it holds its kinds and numbers, never the list.

    sizes: {what decides the size: settings}; steps: {value: images} as asked for, None is the model's own.
    dressed: its adapters are here.  wrong: rows that it cannot draw.
    """

    wish: ModelWish
    files: ModelFiles | None = None
    remote: Remote | None = None
    problem: ModelUnavailable | None = None
    images: int = 0
    sizes: dict[tuple[Any, ...], dict[str, Any]] = field(default_factory=dict)
    steps: dict[int | None, int] = field(default_factory=dict)
    first: list[tuple[Task, dict[str, Any]]] = field(default_factory=list)
    wrong: int = 0
    dressed: bool = True
    error: UsageError | None = None
    outline: Outline | None = None

    def count(self, task: Task, settings: dict[str, Any]) -> None:
        """One image more.  settings: as `TextToImage.settings` takes them."""
        self.images += 1
        edit = settings.get("edit", WORDS_ALONE)
        size = settings["width"], settings["height"], edit.image and edit.image.size, edit.upscale
        self.sizes.setdefault(size, {name: settings[name] for name in ("width", "height", "edit") if name in settings})
        self.steps[settings["steps"]] = self.steps.get(settings["steps"], 0) + 1
        if len(self.first) < FIRST:
            self.first.append((task, settings))
        if self.outline is not None:
            try:
                self.outline.settings(**settings)
            except UsageError as e:
                where = task.prompt.where
                self.error = self.error or (UsageError(f"{where}: {e.message}", e.hint) if where else e)
                self.wrong += 1


def survey(request: Request, say: Say, as_json: bool) -> None:
    """Print what a run would do.  Raises as the run itself would, before it loads."""
    from t2i.jobs.run import places_of

    shares: dict[ModelWish, Share] = {}
    _count(shares, request, request.tasks)
    if wrong := next((share.error for share in shares.values() if share.error), None):
        raise wrong
    names = {wish: _name(share) for wish, share in shares.items()}
    named: dict[str | None, list[tuple[str, int, str]]] = {}
    for task in request.tasks:
        name = names[model_wish(request, task.prompt.wish)]
        named.setdefault(task.prompt.wish.output, []).append((task.job.prompt, task.job.seed, name))
    files: list[str] = []
    for where, outputs in places_of(request).items():
        outputs.check(named[where], grid=request.grid)
        files += [str(next(outputs.candidates(*image))) for image in named[where][: SHOWN - len(files)]]
    seeds = sorted({task.job.seed for task in request.tasks})
    total = {"images": len(request.tasks), "seeds": seeds[:SHOWN], "files": files, "missing": len(request.tasks)}
    _report(list(shares.values()), request, total, say, as_json, steady=False)


def survey_batch(file: Path, request: Request, chosen: bool, say: Say, as_json: bool) -> None:
    """Print what a long batch would do, in one pass over its list.  chosen: the user named its seeds."""
    from t2i.jobs.batch.job_list import make_listing
    from t2i.jobs.batch.ledger import Ledger

    listing = make_listing(file, request, chosen)
    began = () if chosen else Ledger(listing.folder).seeds()
    shares: dict[ModelWish, Share] = {}
    _count(shares, request, listing.tasks())
    if not shares:
        raise UsageError(f"--prompts {file}: no prompt", "one per line, or rows with options")
    total: Facts = {"images": sum(share.images for share in shares.values()), "folder": str(listing.folder)}
    if all(share.files is not None and share.dressed for share in shares.values()):
        listing.request = replace(request, seeds=began or request.seeds)
        listing.locate = lambda wish: shares[wish].files  # type: ignore[assignment, return-value]
        total |= {"files": [], "missing": 0}
        ledger = Ledger(listing.folder, shards=listing.shards)
        for item in listing.items():
            total["missing"] += not (item.path.is_file() or ledger.in_shard(item))
            total["files"] += [str(item.path)] if len(total["files"]) < SHOWN else []
    wrong = sum(share.wrong for share in shares.values())
    total |= {"seeds": list(began or request.seeds if began or chosen else ())} | ({"wrong": wrong} if wrong else {})
    _report(list(shares.values()), request, total, say, as_json, steady=True)


def _count(shares: dict[ModelWish, Share], request: Request, tasks: Iterable[Task]) -> None:
    for task in tasks:
        wish = model_wish(request, task.prompt.wish)
        if wish not in shares:
            shares[wish] = _find(wish, request)
            try:
                find_adapters(wish.adapters, task, offline=True)
            except ModelUnavailable:
                shares[wish].dressed = False
        share = shares[wish]
        share.count(task, complete(request, task.prompt.wish))


def _find(wish: ModelWish, request: Request) -> Share:
    """Where a model is, without fetching it.  Raises as `locate` does for what is not on the Hub."""
    from t2i.model_files.hub_api import ask
    from t2i.pipelines.loading.load import locate
    from t2i.pipelines.loading.skeleton import Outline
    from t2i.pipelines.text_to_image.step_cache import check_network, parse_cache

    model = resolve(wish.model)
    share = Share(wish)
    try:
        hub = model.kind == "hub"
        share.files = locate(wish.model, revision=wish.revision, offline=hub or request.offline, config=request.config)
        share.outline = Outline(share.files)
        if wish.cache:
            configs = share.outline.networks.configs
            network = configs.get("unet") or configs.get("transformer") or {}
            check_network(parse_cache(wish.cache), str(network.get("_class_name", "")))
    except (ModelUnavailable, ModelError):
        if model.kind != "hub":
            raise
        try:
            share.remote = ask(model, wish.revision or model.revision, request.offline)
        except ModelUnavailable as e:
            share.problem = e
    return share


def _report(shares: list[Share], request: Request, total: Facts, say: Say, as_json: bool, steady: bool) -> None:
    """Print it all.  Raises ModelUnavailable afterwards, where a model cannot be had."""
    models = [_facts(share, request, say, steady) for share in shares]
    for share, facts in zip(shares, models, strict=True):
        facts["besides"], missing = _besides(share, request)
        share.problem = share.problem or missing
        facts["cache"] = share.wish.cache
        facts["starts"] = _starts(share)
    if as_json:
        click.echo(json.dumps({"models": models} | total))
    else:
        for facts in models:
            click.echo(aligned(facts["model"], model_rows(facts)))
        click.echo(aligned("output", output_rows(total)))
    for share in shares:
        if share.problem is not None:
            raise share.problem


def _facts(share: Share, request: Request, say: Say, steady: bool) -> Facts:
    """What is known of one model's share, as plain JSON data; None: not known."""
    model = resolve(share.wish.model)
    facts: Facts = {"model": _name(share), "class": None, "path": None, "download": 0, "images": share.images}
    gated = model.gated or (None if model.kind == "hub" else False)
    facts |= {"license": model.defaults.license, "gated": gated, "revision": share.wish.revision}
    if share.remote is not None:
        remote = share.remote
        facts |= {"class": remote.kind, "download": remote.bytes, "license": remote.license, "gated": remote.gated}
        facts["revision"] = remote.commit
    elif share.files is None:
        facts["download"] = None
    if share.files is None or share.outline is None:
        return facts
    files, outline = share.files, share.outline
    facts |= {"class": files.kind, "path": str(files.path), "license": files.defaults.license}
    facts["revision"] = files.revision
    said: list[str] = []
    say_safety(files, share.wish, said.append)
    _read_prompts(share, said.append)
    for line in said:
        say(line)
    facts |= {"notes": said, "safety": files.safety if not share.wish.no_safety else "off"}
    return facts | _machine(share, request, files, outline, steady)


def _machine(share: Share, request: Request, files: ModelFiles, outline: Outline, steady: bool) -> Facts:
    from t2i.pipelines.loading.plan import weights

    sizes = list(share.sizes.values())
    plan = machine_plan(files, share.wish, request, sizes, share.images, steady)
    largest = outline.largest(sizes, request.batch_size, share.images)
    steps = {(outline.settings(steps=asked).steps): images for asked, images in share.steps.items()}
    rung, needed = plan.rung, plan.need[plan.at]
    held = weights(rung, outline.networks)
    memory = {"weights": held, "computing": needed - held, "needed": needed, "free": plan.free, "fits": plan.fits}
    return {
        "steps": sum(each * images for each, images in steps.items()),
        "steps_each": sorted(steps),
        "size": f"{largest.width}x{largest.height}",
        "at_once": largest.batch,
        "memory": memory,
        "device": plan.device,
        "dtype": rung.dtype,
        "offload": rung.offload,
        "tiling": rung.tiling,
        "quantize": rung.bits or None,
        "reasons": ({rung.dtype: plan.why_dtype} if plan.why_dtype else {}) | plan.reasons(),
    }


def _read_prompts(share: Share, say: Say) -> None:
    from t2i.pipelines.prompts.chunking import Reader
    from t2i.pipelines.prompts.tokenizers import load_tokenizers

    assert share.files is not None
    reader = Reader.of(share.files.kind, list(load_tokenizers(share.files).values()))
    warn_of_prompts(share.files.model.name, reader, share.first, say)


def _besides(share: Share, request: Request) -> tuple[list[Facts], ModelUnavailable | None]:
    from huggingface_hub.constants import is_offline_mode

    edits = [(task, settings.get("edit", WORDS_ALONE)) for task, settings in share.first]
    return look(share.files, share.wish, edits, request.offline or is_offline_mode())


def _starts(share: Share) -> list[str]:
    """What the first images are drawn from beside words, each way once."""
    defaults = resolve(share.wish.model).defaults if share.files is None else share.files.defaults
    edits = [(settings["edit"], settings["steps"]) for _, settings in share.first if "edit" in settings]
    return list(dict.fromkeys(edit.words(steps or defaults.steps) for edit, steps in edits))


def _name(share: Share) -> str:
    return share.files.model.name if share.files else resolve(share.wish.model).name
