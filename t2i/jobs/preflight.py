"""Facts about a request before it runs: models, memory, device, files. Loads and downloads nothing.

For example:

    found = preflight(request)
    found.models[0]["memory"]["needed"], found.output["files"]

Models and output are plain data, ready for JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from t2i.errors import ModelError, ModelUnavailable, UsageError
from t2i.jobs.planning.assets import describe_assets, find_adapters
from t2i.jobs.planning.device_plan import machine_plan, say_safety
from t2i.jobs.planning.plan import places_of
from t2i.jobs.planning.prompt_checks import warn_of_prompts
from t2i.jobs.spec.request import GenerateRequest
from t2i.jobs.spec.resolve import ModelKey, model_key, settings_of
from t2i.jobs.spec.tasks import Task
from t2i.model_files.registry import resolve
from t2i.pipelines.settings.edit import NO_IMAGE_INPUTS

if TYPE_CHECKING:
    from t2i.model_files.hub_api import Remote
    from t2i.model_files.locate import ModelFiles
    from t2i.pipelines.loading.skeleton import PipelineSkeleton

Facts = dict[str, Any]
FIRST = 1000  # prompts that are tokenized to warn about truncation, as many as a batch does
SHOWN = 5  # files and seeds that are named


@dataclass(frozen=True)
class Preflight:
    """The consequences of a request, as data.

    models: of each model what is known of it and of the device that it would draw on, as plain JSON data.
    output: how many images, into which files, how many of them are missing.
    messages: what the run itself would say before it loads: "note: ..." and "warning: ...".
    problem: why a model or adapter is not available; the run would raise it.
    """

    models: tuple[Facts, ...]
    output: Facts
    messages: tuple[str, ...] = ()
    problem: ModelUnavailable | None = None


@dataclass
class Share:
    """The images that one model would draw, as counts and distinct settings: memory does not grow with the list.

    sizes: {what decides the size: settings}; steps: {value: images} as asked for, None is the model's own.
    has_adapters: their files are here.  wrong: rows that it cannot draw.
    """

    key: ModelKey
    files: ModelFiles | None = None
    remote: Remote | None = None
    problem: ModelUnavailable | None = None
    images: int = 0
    sizes: dict[tuple[Any, ...], dict[str, Any]] = field(default_factory=dict)
    steps: dict[int | None, int] = field(default_factory=dict)
    first: list[tuple[Task, dict[str, Any]]] = field(default_factory=list)
    wrong: int = 0
    has_adapters: bool = True
    error: UsageError | None = None
    skeleton: PipelineSkeleton | None = None

    def count(self, task: Task, settings: dict[str, Any]) -> None:
        """Count one more image.  settings: as `TextToImage.settings` takes them."""
        self.images += 1
        edit = settings.get("edit", NO_IMAGE_INPUTS)
        size = settings["width"], settings["height"], edit.image and edit.image.size, edit.upscale
        self.sizes.setdefault(size, {name: settings[name] for name in ("width", "height", "edit") if name in settings})
        self.steps[settings["steps"]] = self.steps.get(settings["steps"], 0) + 1
        if len(self.first) < FIRST:
            self.first.append((task, settings))
        if self.skeleton is not None:
            try:
                self.skeleton.settings(**settings)
            except UsageError as e:
                where = task.prompt.where
                self.error = self.error or (UsageError(f"{where}: {e.message}", e.hint) if where else e)
                self.wrong += 1


def preflight(request: GenerateRequest) -> Preflight:
    """Return what a request would do.  Raises as the run itself would, before it loads."""
    return _preflight_batch(request) if request.batch is not None else _preflight(request)


def _preflight(request: GenerateRequest) -> Preflight:
    shares: dict[ModelKey, Share] = {}
    _count(shares, request, request.tasks)
    if wrong := next((share.error for share in shares.values() if share.error), None):
        raise wrong
    names = {key: _name(share) for key, share in shares.items()}
    named: dict[str | None, list[tuple[str, int, str]]] = {}
    for task in request.tasks:
        name = names[model_key(request.options_of(task.prompt))]
        named.setdefault(task.prompt.overrides.get("output"), []).append((task.job.prompt, task.job.seed, name))
    files: list[str] = []
    for where, outputs in places_of(request).items():
        outputs.check(named[where], grid=request.options.grid)
        files += [str(next(outputs.candidates(*image))) for image in named[where][: SHOWN - len(files)]]
    seeds = sorted({task.job.seed for task in request.tasks})
    total = {"images": len(request.tasks), "seeds": seeds[:SHOWN], "files": files, "missing": len(request.tasks)}
    return _report(list(shares.values()), request, total, steady=False)


def _preflight_batch(request: GenerateRequest) -> Preflight:
    """Read the list of a long batch, never holding it: once for its models, once for the files that are missing."""
    from t2i.jobs.batch.job_list import make_job_list
    from t2i.jobs.batch.ledger import Ledger

    jobs, chosen = make_job_list(request), request.seeds_given
    began = () if chosen else Ledger(jobs.folder).seeds()
    shares: dict[ModelKey, Share] = {}
    _count(shares, request, jobs.tasks())
    if not shares:
        raise UsageError(f"`prompt_file={request.batch}`: no prompt", "one per line, or rows with options")
    total: Facts = {"images": sum(share.images for share in shares.values()), "folder": str(jobs.folder)}
    if all(share.files is not None and share.has_adapters for share in shares.values()):
        jobs.request = replace(request, seeds=began or request.seeds)
        jobs.locate = lambda key: shares[key].files  # type: ignore[assignment, return-value]
        total |= {"files": [], "missing": 0}
        ledger = Ledger(jobs.folder, shards=jobs.shards)
        for item in jobs.items():
            total["missing"] += not (item.path.is_file() or ledger.in_shard(item))
            total["files"] += [str(item.path)] if len(total["files"]) < SHOWN else []
    wrong = sum(share.wrong for share in shares.values())
    total |= {"seeds": list(began or request.seeds if began or chosen else ())} | ({"wrong": wrong} if wrong else {})
    return _report(list(shares.values()), request, total, steady=True)


def _count(shares: dict[ModelKey, Share], request: GenerateRequest, tasks: Iterable[Task]) -> None:
    for task in tasks:
        options = request.options_of(task.prompt)
        key = model_key(options)
        if key not in shares:
            shares[key] = _find(key, request)
            try:
                find_adapters(key.adapters, task, offline=True)
            except ModelUnavailable:
                shares[key].has_adapters = False
        shares[key].count(task, settings_of(options))


def _find(key: ModelKey, request: GenerateRequest) -> Share:
    """Find out where a model is, without fetching it.  Raises as `locate` does for what is not on the Hub."""
    from t2i.model_files.hub_api import ask
    from t2i.model_files.locate import locate
    from t2i.pipelines.loading.skeleton import PipelineSkeleton
    from t2i.pipelines.text_to_image.step_cache import check_network, parse_cache

    model, options = resolve(key.model), request.options
    share = Share(key)
    try:
        hub, config = model.kind == "hub", options.config
        share.files = locate(key.model, revision=key.revision, offline=hub or options.offline, config=config)
        share.skeleton = PipelineSkeleton(share.files)
        if key.cache:
            configs = share.skeleton.networks.configs
            network = configs.get("unet") or configs.get("transformer") or {}
            check_network(parse_cache(key.cache), str(network.get("_class_name", "")))
    except (ModelUnavailable, ModelError):
        if model.kind != "hub":
            raise
        try:
            share.remote = ask(model, key.revision or model.revision, options.offline)
        except ModelUnavailable as e:
            share.problem = e
    return share


def _report(shares: list[Share], request: GenerateRequest, total: Facts, steady: bool) -> Preflight:
    said: list[str] = []
    models = [_facts(share, request, said.append, steady) for share in shares]
    for share, facts in zip(shares, models, strict=True):
        facts["besides"], missing = _assets(share, request)
        share.problem = share.problem or missing
        facts["cache"] = share.key.cache
        facts["starts"] = _starts(share)
    problem = next((share.problem for share in shares if share.problem is not None), None)
    return Preflight(tuple(models), total, tuple(said), problem)


def _facts(share: Share, request: GenerateRequest, say: Callable[[str], None], steady: bool) -> Facts:
    """Return what is known of one model's share, as plain JSON data; None: not known."""
    model = resolve(share.key.model)
    facts: Facts = {"model": _name(share), "class": None, "path": None, "download": 0, "images": share.images}
    gated = model.gated or (None if model.kind == "hub" else False)
    facts |= {"license": model.defaults.license, "gated": gated, "revision": share.key.revision}
    if share.remote is not None:
        remote = share.remote
        facts |= {"class": remote.kind, "download": remote.bytes, "license": remote.license, "gated": remote.gated}
        facts["revision"] = remote.commit
    elif share.files is None:
        facts["download"] = None
    if share.files is None or share.skeleton is None:
        return facts
    files, skeleton = share.files, share.skeleton
    facts |= {"class": files.kind, "path": str(files.path), "license": files.defaults.license}
    facts["revision"] = files.revision
    said: list[str] = []
    say_safety(files, share.key, said.append)
    _read_prompts(share, said.append)
    for line in said:
        say(line)
    facts |= {"notes": said, "safety": files.safety if not share.key.no_safety else "off"}
    return facts | _machine(share, request, files, skeleton, steady)


def _machine(
    share: Share, request: GenerateRequest, files: ModelFiles, skeleton: PipelineSkeleton, steady: bool
) -> Facts:
    from t2i.pipelines.loading.plan import weights

    sizes = list(share.sizes.values())
    plan = machine_plan(files, share.key, request, sizes, share.images, steady)
    largest = skeleton.largest(sizes, request.options.batch_size, share.images)
    steps = {(skeleton.settings(steps=asked).steps): images for asked, images in share.steps.items()}
    level, needed = plan.level, plan.need[plan.at]
    held = weights(level, skeleton.networks)
    memory = {"weights": held, "computing": needed - held, "needed": needed, "free": plan.free, "fits": plan.fits}
    return {
        "steps": sum(each * images for each, images in steps.items()),
        "steps_each": sorted(steps),
        "size": f"{largest.width}x{largest.height}",
        "at_once": largest.batch,
        "memory": memory,
        "device": plan.device,
        "dtype": level.dtype,
        "offload": level.offload,
        "tiling": level.tiling,
        "quantize": level.bits or None,
        "reasons": ({level.dtype: plan.why_dtype} if plan.why_dtype else {}) | plan.reasons(),
    }


def _read_prompts(share: Share, say: Callable[[str], None]) -> None:
    from t2i.pipelines.prompts.chunking import PromptChunker
    from t2i.pipelines.prompts.tokenizers import load_tokenizers

    assert share.files is not None
    chunker = PromptChunker.of(share.files.kind, list(load_tokenizers(share.files).values()))
    warn_of_prompts(share.files.model.name, chunker, share.first, say)


def _assets(share: Share, request: GenerateRequest) -> tuple[list[Facts], ModelUnavailable | None]:
    from huggingface_hub.constants import is_offline_mode

    edits = [(task, settings.get("edit", NO_IMAGE_INPUTS)) for task, settings in share.first]
    return describe_assets(share.files, share.key, edits, request.options.offline or is_offline_mode())


def _starts(share: Share) -> list[str]:
    """Return the image inputs of the first images in words, each kind once."""
    defaults = resolve(share.key.model).defaults if share.files is None else share.files.defaults
    edits = [(settings["edit"], settings["steps"]) for _, settings in share.first if "edit" in settings]
    return list(dict.fromkeys(edit.words(steps or defaults.steps) for edit, steps in edits))


def _name(share: Share) -> str:
    return share.files.model.name if share.files else resolve(share.key.model).name
