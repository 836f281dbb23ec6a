"""The jobs of a long batch, streamed: from the lines of a file to named images, in groups that are drawn at once.

An image's group depends on its place in the list alone, neither on the number of processes nor on what is drawn
already. So an image that is drawn again shares its batch with the same others, and is identical bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cache, lru_cache, partial
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any

from t2i.config.options import OPTIONS
from t2i.errors import UsageError
from t2i.jobs.batch.shard_index import Shards
from t2i.jobs.spec.output_paths import Outputs, safe_name
from t2i.jobs.spec.prompt_files import stream_prompts
from t2i.jobs.spec.request import GenerateRequest
from t2i.jobs.spec.resolve import ModelKey, effective, image_inputs, model_key, settings_of
from t2i.jobs.spec.tasks import Task, each_task
from t2i.metadata.jsonable import public_name
from t2i.model_files.locate import ModelFiles, locate
from t2i.pipelines.adapters.files import find_all
from t2i.pipelines.adapters.specs import Adapters, IPAdapter
from t2i.pipelines.prompts.attention_weights import has_weights
from t2i.pipelines.settings.image_input import ImageInput

# The options in batch folders of 0.1, in its order and by its names: ALWAYS written, and written WHERE_SET.
ALWAYS: tuple[str, ...] = ("revision", "dtype", "num_images", "negative_prompt", "steps", "guidance", "width", "height")
ALWAYS += ("scheduler", "batch_size", "format", "raw", "cache", "shards", "shard_size")
MACHINE = ("quantize", "tiling", "deterministic", "no_safety")  # False means not set
WHERE_SET = ("lora", "embedding", "ip_adapter", *MACHINE, "chunks")
LEGACY = {"num_images": "count", "negative_prompt": "negative"}
LEGACY |= {"lora": "loras", "embedding": "embeddings", "ip_adapter": "ip_adapters"}
SHARD_SIZE = 1000
Locate = Callable[[ModelKey], ModelFiles]


@dataclass(frozen=True)
class Item:
    """One image of the list.  index: its place, from 0.  job: its id, 16 hex digits.  path: its file."""

    index: int
    task: Task
    job: str
    path: Path
    model: ModelKey
    settings: tuple[tuple[str, Any], ...]  # arguments of `TextToImage.settings`


@dataclass(frozen=True)
class JobGroup:
    """Images that follow one another and are drawn at once."""

    items: tuple[Item, ...]

    @property
    def name(self) -> str:
        """Return its place in the list, as a piece of a file name."""
        return f"{self.items[0].index:09d}"


class JobList:
    """The images of a prompt file.  Each pass reads the file anew and holds one group of it.

    request: with fixed seeds and without prompts.  output: a pattern with {job}.  shards: that images are packed into.
    """

    def __init__(
        self, file: Path, request: GenerateRequest, output: str, locate: Locate, shards: Shards | None = None
    ) -> None:
        self.file = file
        self.request = request
        self.output = output
        self.shards = shards
        self.folder = shards.folder if shards else Outputs(output, format=request.options.format).root
        self.locate = locate
        self._facts = lru_cache(maxsize=64)(self._find)
        self._outputs = lru_cache(maxsize=64)(self._make_outputs)

    def tasks(self) -> Iterator[Task]:
        """Yield all images, without names.  Raises UsageError for an invalid row."""
        request, options = self.request, self.request.options
        prompts = map(request.prepare, stream_prompts(self.file))
        return each_task(prompts, request.seeds, options.num_images, options.wildcards, request.negative_template)

    def items(self) -> Iterator[Item]:
        """Yield all images with their names, which are a function of the list and the request alone."""
        last, number = None, 0
        for index, task in enumerate(self.tasks()):
            last, number = task.prompt, number + 1 if task.prompt is last else 1
            overrides = task.prompt.overrides
            options = effective(self.request.options, overrides)
            model, settings = model_key(options), settings_of(options)
            facts = self._facts(model)
            job = job_id(task, settings, facts)
            one, own_seed = options.num_images, "seed" in overrides
            outputs = self._outputs(overrides.get("output"), one if own_seed else one * len(self.request.seeds))
            path = outputs.place(
                prompt=task.job.prompt,
                seed=str(task.job.seed),
                model=facts["model"],
                index=f"{index + 1:06d}",
                number=str(number),
                job=job,
            )
            yield Item(index, task, job, path, model, tuple(settings.items()))

    def groups(self, size: Callable[[Item], int]) -> Iterator[JobGroup]:
        """Yield all images in groups of one model, one setting and one shard.

        size: how many such images are drawn at once.
        """
        for _, items in groupby(self.items(), lambda item: (item.model, item.settings, self._shard(item))):
            run = iter(items)
            first = next(run)
            rest, at_once = chain([first], run), size(first)
            while group := tuple(islice(rest, at_once)):
                yield JobGroup(group)

    def shares(self, size: Callable[[Item], int]) -> Iterator[list[JobGroup]]:
        """Yield the groups that are finished together: those of one shard; without shards each by itself."""
        groups = self.groups(size)
        if self.shards is None:
            yield from ([group] for group in groups)
            return
        for _, share in groupby(groups, lambda group: self._shard(group.items[0])):
            yield list(share)

    def _shard(self, item: Item) -> int:
        return self.shards.number(item.index) if self.shards else 0

    def _find(self, model: ModelKey) -> dict[str, Any]:
        """Return the facts about a model that enter job ids: other facts, other images."""
        files = self.locate(model)
        said = {name: getattr(model, name) for name in MACHINE if getattr(model, name)}
        return said | {
            "model": files.model.name,
            "revision": files.revision,
            "weights": files.hash(),
            "dtype": model.dtype,
            **({"adapters": self._adapters(model.adapters)} if model.adapters else {}),
            **({"cache": model.cache} if model.cache else {}),
        }

    def _adapters(self, adapters: Adapters) -> list[Any]:
        """Return the facts about adapters that enter job ids; the places of their files do not."""
        found = find_all(adapters, self.request.options.offline)
        files = {field.name: getattr(found, field.name) for field in fields(found)}
        return [
            [kind, file.sha256, getattr(one, "scale", None), getattr(one, "token", None), _picture(one)]
            for kind, several in files.items()
            for one, file in zip(getattr(adapters, kind), several, strict=True)
        ]

    def _make_outputs(self, name: str | None, count: int) -> Outputs:
        """Return the names of images.  name: the file name that a row gives, below the folder of the batch; None."""
        target = self.output if name is None else str(self.folder / name)
        return Outputs(target, format=self.request.options.format, count=count)


def _picture(adapter: object) -> str | None:
    """Return the hash of the image prompt of an IP-Adapter; None for other adapters."""
    return ImageInput.of(adapter.image).hash if isinstance(adapter, IPAdapter) else None


def job_id(task: Task, settings: dict[str, Any], facts: dict[str, Any]) -> str:
    """Return the id of a job: a hash of all that decides the image, equal on every machine.  facts: of the model."""
    usual = {LEGACY.get(name, name): value for name, value in settings.items() if name != "weights"}
    content = {"prompt": task.job.prompt, "seed": task.job.seed, **usual, **facts}
    if task.job.negative_prompt is not None:
        content["negative"] = task.job.negative_prompt
    # Images have kept their names since before there were weights in prompts: those count where there are any.
    if settings.get("weights", True) and any(map(has_weights, (content["prompt"], content["negative"]))):
        content["weighted"] = True
    if "edit" in content:
        content["edit"] = content["edit"].identity()
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def make_job_list(request: GenerateRequest) -> JobList:
    """Return the list of a batch, and where its images go.  Raises UsageError."""
    options, file = request.options, request.batch
    assert file is not None
    found = cache(partial(locate, offline=options.offline, config=options.config))

    def find(key: ModelKey) -> ModelFiles:
        return found(key.model, revision=key.revision)

    if options.shards is not None:
        folder = Path(os.path.expanduser(options.output or ""))
        shards = Shards(folder, options.shards, options.shard_size or SHARD_SIZE)
        request = replace(request, options=options.override({"shard_size": shards.size}))
        return JobList(file, request, str(shards.spool / "{index}-{job}"), find, shards)
    target, name = options.output, "{index}-{job}"
    if target is None:
        identity = identity_of(request) | ({"seeds": request.seeds} if request.seeds_given else {})
        one = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:6]  # other options: another folder
        target = os.path.join("outputs", f"{safe_name(file.stem)}-{one}", name)
    elif "{job}" not in target:
        target = os.path.join(target, name)
    elif "{date}" in target:
        raise UsageError("`output`: {date} would start the batch over every day", "leave it out")
    return JobList(file, request, target, find)


def identity_of(request: GenerateRequest) -> dict[str, Any]:
    """Return what identifies a batch, except for its seeds.

    Names and order are those that 0.1 wrote into batch folders and hashed for their names; newer options follow in
    the order of the record, where they are set.
    """
    assert request.batch is not None
    options = request.options
    said = {LEGACY.get(name, name): getattr(options, name) for name in ALWAYS}
    newer = [name for name, one in OPTIONS.items() if one.option.identity == "set" and name not in WHERE_SET]
    for name in (*WHERE_SET, *newer):
        value = getattr(options, name)
        if options.changed(name) and not (name in MACHINE and value is False):
            said[LEGACY.get(name, name)] = value
    inputs = image_inputs(options)
    edit = {"edit": inputs.identity()} if inputs else {}
    return {"prompts": request.batch.name, "model": public_name(options.model)} | said | edit
