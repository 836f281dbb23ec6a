"""Files that a request needs in addition to its model, adapters and ControlNets, found before anything is loaded."""

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
ELSEWHERE = "put its folder here, or give its place: `control=FOLDER:IMAGE`"


def find_controls(files: ModelFiles, edits: Iterable[tuple[Task, ImageInputs]], offline: bool) -> dict[str, Path]:
    """Return {name as given: folder} of all ControlNets, downloading them where that is needed and allowed.

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
    """Return the files of the adapters of an image.  Raises as `find_all` does, naming the row that has them."""
    try:
        return find_all(adapters, offline)
    except (UsageError, ModelUnavailable, ModelError) as e:
        overrides = task.prompt.overrides
        own = any(kind in overrides for kind in ("lora", "embedding", "ip_adapter"))
        raise type(e)(f"{task.prompt.where}: {e.message}" if own and task.prompt.where else e.message, e.hint) from None


def describe_assets(
    files: ModelFiles | None, key: ModelKey, edits: Iterable[tuple[Task, ImageInputs]], offline: bool
) -> tuple[list[Facts], ModelUnavailable | None]:
    """Describe adapters and ControlNets without downloading; return them, and the error of the first missing one.

    files: the model's, None where they are not here: what a ControlNet's name means depends on the model.
    The error is returned only offline: online, the run itself would download what is missing.
    Raises UsageError and ModelError as the run itself would.
    """
    wanted = [("lora", one.path, f" x {one.scale:g}") for one in key.adapters.loras]
    wanted += [("embedding", one.path, f" as {one.token}" if one.token else "") for one in key.adapters.embeddings]
    wanted += [("ip-adapter", one.path, f" x {one.scale:g}") for one in key.adapters.ip_adapters]
    found, problems = [], []

    def add(kind: str, name: str, words: str, measure: Callable[[], int]) -> None:
        facts: Facts = {"kind": kind, "name": name, "words": f"{name}{words}", "bytes": None}
        try:
            facts["bytes"] = measure()
        except ModelUnavailable as e:
            problems.append(e)
        found.append(facts)

    for kind, path, words in wanted:
        option = kind.replace("-", "_")
        add(kind, path, words, lambda option=option, path=path: _size(find(path, option, True).path))  # type: ignore[misc]
    known: set[str] = set()
    for task, edit in edits:
        for one in edit.controls:
            if one.net not in known:
                known.add(one.net)
                this = task, ImageInputs(controls=(one,))
                add("control", one.net, "", lambda this=this: _control_bytes(files, this))  # type: ignore[misc]
    return found, problems[0] if problems and offline else None


def _control_bytes(files: ModelFiles | None, one: tuple[Task, ImageInputs]) -> int:
    if files is None:
        raise ModelUnavailable("not known before its model is here")
    folders = find_controls(files, [one], offline=True).values()
    return sum(_size(path) for folder in folders for path in folder.glob("*.safetensors"))


def _size(path: Path) -> int:
    return path.stat().st_size
