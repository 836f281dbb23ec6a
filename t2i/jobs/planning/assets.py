"""What a drawing needs beside its model: adapters and ControlNets, looked for before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i.errors import ModelError, ModelUnavailable, UsageError
from t2i.jobs.spec.resolve import ModelKey
from t2i.jobs.spec.tasks import Task
from t2i.pipelines.adapters.files import Found, find, find_all
from t2i.pipelines.adapters.specs import Adapters
from t2i.pipelines.settings.edit import ImageInputs

if TYPE_CHECKING:
    from t2i.model_files.locate import ModelFiles

Facts = dict[str, Any]
ELSEWHERE = "put its folder here, or say where it is: --control FOLDER:IMAGE"


def find_controls(files: ModelFiles, edits: Iterable[tuple[Task, ImageInputs]], offline: bool) -> dict[str, Path]:
    """{as it was written: its folder} for all ControlNets; downloaded where that is needed and allowed.

    Raises as `locate_control` does, naming the row.
    """
    from t2i.pipelines.text_to_image.controlnet import locate_control
    from t2i.pipelines.text_to_image.passes import family_named

    found: dict[str, Path] = {}
    for task, edit in edits:
        for net in (one.net for one in edit.controls if one.net not in found):
            try:
                found[net] = locate_control(net, family_named(files.kind), offline)[0]
            except (UsageError, ModelUnavailable, ModelError) as e:
                prompt = task.prompt
                lost = prompt.original is not None and isinstance(e, UsageError)
                where = f"{prompt.where}: " if prompt.where else ""
                raise type(e)(f"{where}{e.message}", ELSEWHERE if lost else e.hint) from None
    return found


def find_adapters(adapters: Adapters, task: Task, offline: bool) -> Found:
    """The files of the adapters that this image asks for.  Raises as `find_all` does, naming the row that has them."""
    try:
        return find_all(adapters, offline)
    except (UsageError, ModelUnavailable, ModelError) as e:
        overrides = task.prompt.overrides
        own = any(kind in overrides for kind in ("lora", "embedding", "ip_adapter"))
        raise type(e)(f"{task.prompt.where}: {e.message}" if own and task.prompt.where else e.message, e.hint) from None


def look(
    files: ModelFiles | None, key: ModelKey, edits: Iterable[tuple[Task, ImageInputs]], offline: bool
) -> tuple[list[Facts], ModelUnavailable | None]:
    """What the adapters and ControlNets of a drawing are, and the first that cannot be had; nothing is fetched.

    files: the model's, where they are here: what a ControlNet's name means depends on the model.
    Raises UsageError and ModelError as the run itself would.
    """
    wanted = [("lora", one.path, f" x {one.scale:g}") for one in key.adapters.loras]
    wanted += [("embedding", one.path, f" as {one.token}" if one.token else "") for one in key.adapters.embeddings]
    wanted += [("ip-adapter", one.path, f" x {one.scale:g}") for one in key.adapters.ip_adapters]
    found, problems = [], []

    def see(kind: str, name: str, words: str, measure: Callable[[], int]) -> None:
        facts: Facts = {"kind": kind, "name": name, "words": f"{name}{words}", "bytes": None}
        try:
            facts["bytes"] = measure()
        except ModelUnavailable as e:
            problems.append(e)
        found.append(facts)

    for kind, path, words in wanted:
        see(kind, path, words, lambda kind=kind, path=path: _size(find(path, f"--{kind}", True).path))  # type: ignore[misc]
    known: set[str] = set()
    for task, edit in edits:
        for one in edit.controls:
            if one.net not in known:
                known.add(one.net)
                this = task, ImageInputs(controls=(one,))
                see("control", one.net, "", lambda this=this: _network(files, this))  # type: ignore[misc]
    return found, problems[0] if problems and offline else None


def _network(files: ModelFiles | None, one: tuple[Task, ImageInputs]) -> int:
    if files is None:
        raise ModelUnavailable("not known before its model is here")
    folders = find_controls(files, [one], offline=True).values()
    return sum(_size(path) for folder in folders for path in folder.glob("*.safetensors"))


def _size(path: Path) -> int:
    return path.stat().st_size
