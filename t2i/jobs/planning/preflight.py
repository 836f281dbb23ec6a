"""What a run would draw, with what and on what, as plain data; loads and downloads nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from t2i.errors import ModelError, ModelUnavailable, UsageError
from t2i.jobs.planning.assets import find_adapters, look
from t2i.jobs.planning.device_plan import machine_plan, say_safety
from t2i.jobs.planning.prompt_checks import warn_of_prompts
from t2i.jobs.spec.request import GenerateRequest
from t2i.jobs.spec.resolve import ModelKey, complete, model_key
from t2i.jobs.spec.tasks import Task
from t2i.model_files.registry import resolve
from t2i.pipelines.settings.edit import NO_IMAGE_INPUTS

if TYPE_CHECKING:
    from t2i.model_files.hub_api import Remote
    from t2i.model_files.locate import ModelFiles
    from t2i.pipelines.loading.skeleton import PipelineSkeleton

Say = Callable[[str], None]
Facts = dict[str, Any]
FIRST = 1000  # prompts whose words are looked at, as a batch does


@dataclass
class Share:
    """What one model would draw.  Of a long list it holds its kinds and numbers, never the list.

    sizes: {what decides the size: settings}; steps: {value: images} as asked for, None is the model's own.
    dressed: its adapters are here.  wrong: rows that it cannot draw.
    """

    overrides: ModelKey
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
        """One image more.  settings: as `TextToImage.settings` takes them."""
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


def count_tasks(shares: dict[ModelKey, Share], request: GenerateRequest, tasks: Iterable[Task]) -> None:
    for task in tasks:
        overrides = model_key(request, task.prompt.overrides)
        if overrides not in shares:
            shares[overrides] = _find(overrides, request)
            try:
                find_adapters(overrides.adapters, task, offline=True)
            except ModelUnavailable:
                shares[overrides].has_adapters = False
        share = shares[overrides]
        share.count(task, complete(request, task.prompt.overrides))


def _find(overrides: ModelKey, request: GenerateRequest) -> Share:
    """Where a model is, without fetching it.  Raises as `locate` does for what is not on the Hub."""
    from t2i.model_files.hub_api import ask
    from t2i.model_files.locate import locate
    from t2i.pipelines.loading.skeleton import PipelineSkeleton
    from t2i.pipelines.text_to_image.step_cache import check_network, parse_cache

    model = resolve(overrides.model)
    share = Share(overrides)
    try:
        hub = model.kind == "hub"
        share.files = locate(
            overrides.model, revision=overrides.revision, offline=hub or request.offline, config=request.config
        )
        share.skeleton = PipelineSkeleton(share.files)
        if overrides.cache:
            configs = share.skeleton.networks.configs
            network = configs.get("unet") or configs.get("transformer") or {}
            check_network(parse_cache(overrides.cache), str(network.get("_class_name", "")))
    except (ModelUnavailable, ModelError):
        if model.kind != "hub":
            raise
        try:
            share.remote = ask(model, overrides.revision or model.revision, request.offline)
        except ModelUnavailable as e:
            share.problem = e
    return share


def model_facts(share: Share, request: GenerateRequest, say: Say, steady: bool) -> Facts:
    """What is known of one model's share, as plain JSON data; None: not known."""
    model = resolve(share.overrides.model)
    facts: Facts = {"model": model_name(share), "class": None, "path": None, "download": 0, "images": share.images}
    gated = model.gated or (None if model.kind == "hub" else False)
    facts |= {"license": model.defaults.license, "gated": gated, "revision": share.overrides.revision}
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
    say_safety(files, share.overrides, said.append)
    _read_prompts(share, said.append)
    for line in said:
        say(line)
    facts |= {"notes": said, "safety": files.safety if not share.overrides.no_safety else "off"}
    return facts | _machine(share, request, files, skeleton, steady)


def _machine(
    share: Share, request: GenerateRequest, files: ModelFiles, skeleton: PipelineSkeleton, steady: bool
) -> Facts:
    from t2i.pipelines.loading.plan import weights

    sizes = list(share.sizes.values())
    plan = machine_plan(files, share.overrides, request, sizes, share.images, steady)
    largest = skeleton.largest(sizes, request.batch_size, share.images)
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


def _read_prompts(share: Share, say: Say) -> None:
    from t2i.pipelines.prompts.chunking import PromptChunker
    from t2i.pipelines.prompts.tokenizers import load_tokenizers

    assert share.files is not None
    reader = PromptChunker.of(share.files.kind, list(load_tokenizers(share.files).values()))
    warn_of_prompts(share.files.model.name, reader, share.first, say)


def model_assets(share: Share, request: GenerateRequest) -> tuple[list[Facts], ModelUnavailable | None]:
    from huggingface_hub.constants import is_offline_mode

    edits = [(task, settings.get("edit", NO_IMAGE_INPUTS)) for task, settings in share.first]
    return look(share.files, share.overrides, edits, request.offline or is_offline_mode())


def starting_points(share: Share) -> list[str]:
    """What the first images are drawn from beside words, each way once."""
    defaults = resolve(share.overrides.model).defaults if share.files is None else share.files.defaults
    edits = [(settings["edit"], settings["steps"]) for _, settings in share.first if "edit" in settings]
    return list(dict.fromkeys(edit.words(steps or defaults.steps) for edit, steps in edits))


def model_name(share: Share) -> str:
    return share.files.model.name if share.files else resolve(share.overrides.model).name
