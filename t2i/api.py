"""The Python API: `t2i.load`.

    from t2i import load

    model = load("mini")
    images = model("a horse in Van Gogh style", seed=7, num_images=4)  # seeds 7, 8, 9, 10
    images[0].save("horse.png")  # the file says how it was made, as does images[0].recipe
    images  # in a notebook: one sheet of all

Options are those of `t2i generate`, by the names of `t2i.config.options`: `help(model)` lists them. For what happens on
the way, and for files and batches, see `t2i.jobs`.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from t2i.config.option import Known, unknown_option
from t2i.config.options import OPTIONS, GenerateOptions
from t2i.errors import UsageError
from t2i.jobs.events import Blanked, Drawn, Event, Message, StepDone
from t2i.jobs.from_options import make_request
from t2i.jobs.planning.device_plan import device_options
from t2i.jobs.planning.model_slot import ModelSlot
from t2i.jobs.run import execute
from t2i.jobs.spec.resolve import model_key
from t2i.model_files.locate import locate
from t2i.pipelines.text_to_image.pictures import Picture, Pictures
from t2i.pipelines.text_to_image.pipeline import TextToImage


def _loads(known: Known) -> bool:
    """Return whether an option belongs to a loaded model rather than to one call."""
    option = known.option
    return option.target == "model" or option.scope == "machine" or known.name in ("config", "offline", "scheduler")


def _draws(known: Known) -> bool:
    """Return whether an option belongs to a call: how images are drawn, not where files go."""
    option = known.option
    adapters = ("lora", "embedding", "ip_adapter", "lora_folder")
    if known.name in adapters or known.name in ("seed", "size", "batch_size", "wildcards"):
        return True
    return option.scope == "row" and option.target != "model" and known.name != "output"


LOAD = tuple(name for name, known in OPTIONS.items() if _loads(known))
DRAW = tuple(name for name, known in OPTIONS.items() if _draws(known))


def load(model: str | Path | None = None, **options: Any) -> Model:
    """Load a text-to-image model: a name of the registry, a pipeline or run folder, a Hub id, a .safetensors file.

    options: those of the model, its adapters and the device: see `help(t2i.load)` for their names.
    safety=False is no_safety=True.  Adapters that match nothing in the model cause a warning.

    Raises UsageError, ModelUnavailable, ModelError, OutOfMemory (all of them `t2i.errors.T2IError`).
    """
    model = OPTIONS["model"].default if model is None else model
    given = _named(options, LOAD, "load", {"safety": lambda safe: {"no_safety": not safe}})
    request = make_request({**given, "model": str(model)}, prompts=("",))
    chosen = request.options
    key = model_key(chosen)
    config = chosen.config
    files = locate(chosen.model, revision=chosen.revision, offline=chosen.offline, config=config)
    loaded = TextToImage.load(
        files,
        device=chosen.device,
        dtype=chosen.dtype,
        offline=chosen.offline,
        scheduler=chosen.scheduler,
        adapters=key.adapters,
        cache=key.cache,
        options=device_options(key, chosen),
    )
    for warning in loaded.attached.warnings:
        warnings.warn(warning.removeprefix("warning: "), stacklevel=2)
    slot = ModelSlot(key, loaded)
    slot.files[chosen.model, chosen.revision] = files
    return Model(slot, {**given, "model": str(model)})


class Model:
    """A loaded model, to be called with a prompt.  Calls are independent of each other.

    Calls from several threads are taken one at a time, in order.
    model: the `TextToImage` underneath; `model.pipe` is the diffusers pipeline.
    """

    def __init__(self, slot: ModelSlot, options: Mapping[str, Any]) -> None:
        """Wrap a loaded model; use `load` instead."""
        self._slot = slot
        self._options = dict(options)

    @property
    def model(self) -> TextToImage:
        """Return the underlying `TextToImage`, which yields images as they are drawn."""
        assert self._slot.model is not None, "a call that failed to load has emptied the slot"
        return self._slot.model

    def __call__(
        self, prompt: str | Sequence[str], *, progress: bool | Callable[[Event], None] = False, **options: Any
    ) -> Pictures:
        """Draw images of the prompt, or of each of several; image k of a prompt has seed + k.

        seed: default: a random one, which the records hold.  num_images: of each prompt.
        Options that are None, or not given, take the model's defaults.
        image, mask: a path, or an image in memory.  raw: take prompts literally.
        progress: a bar on stderr; or a function that takes each event.

        Raises UsageError for what is out of range, NonFinite instead of a black image.
        """
        given = _named(options, DRAW, "a call", {})
        values = {**self._options, **given}
        if not isinstance(prompt, str) and isinstance(prompt, Sequence) and not prompt:
            return Pictures([])
        request = make_request(values, prompt)
        drawn: list[Picture] = []
        said: list[str] = []
        with _shown(progress) as show:

            def emit(event: Event) -> None:
                if isinstance(event, Drawn | Blanked):
                    drawn.append(Picture.of(event.image, event.recipe, isinstance(event, Blanked)))
                elif isinstance(event, Message) and event.level == "warning":
                    said.append(event.text)
                show(event)

            execute(request, emit, self._slot, save=False)
        for text in said:  # here, so that Python shows the caller's line beside them
            warnings.warn(text, stacklevel=2)
        return Pictures(drawn)

    def __repr__(self) -> str:
        return f"<t2i Model {self.model.name} on {self.model.device} in {self.model.dtype}>"


def _named(
    options: Mapping[str, Any], allowed: Sequence[str], where: str, also: Mapping[str, Callable[[Any], dict[str, Any]]]
) -> dict[str, Any]:
    """Return options under their own names, without those that are None.  Raises UsageError for others than allowed."""
    found: dict[str, Any] = {}
    for given, value in options.items():
        if given in also:
            found |= also[given](value)
            continue
        known = GenerateOptions.find(given)
        if known is None:
            raise unknown_option(given, tuple(allowed))
        if known.name not in allowed:
            raise UsageError(f"{given} is no option of {where}", f"options: {', '.join(allowed)}")
        if value is None:
            continue
        if known.name in found:
            raise UsageError(f"{known.name} is given twice ({given!r})")
        found[known.name] = "none" if known.name == "quantize" and value == 0 else value
    return found


@contextmanager
def _shown(progress: bool | Callable[[Event], None]) -> Iterator[Callable[[Event], None]]:
    """Show steps on a bar on stderr, hand events to a function, or neither."""
    if callable(progress):
        yield progress
        return
    from tqdm import tqdm

    with tqdm(desc="drawing", unit="step", leave=False, file=sys.stderr, disable=not progress) as bar:

        def show(event: Event) -> None:
            if isinstance(event, StepDone):
                bar.total = event.total
                bar.update(event.done - bar.n)

        yield show


def _signature(first: str, names: Sequence[str], more: Sequence[inspect.Parameter]) -> inspect.Signature:
    """Return what `help` and editors show of a function that takes options of the record."""
    keyword, positional = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    options = [inspect.Parameter(name, keyword, default=OPTIONS[name].default) for name in names]
    default = "mini" if first == "model" else inspect.Parameter.empty
    opening = [inspect.Parameter("self", positional)] if first == "prompt" else []
    own = inspect.Parameter(first, positional, default=default)
    return inspect.Signature([*opening, own, *[one for one in options if one.name != first], *more])


def _list_options(names: Sequence[str]) -> str:
    """Return a line of documentation for each option."""
    return "\n".join(f"    {name}: {OPTIONS[name].option.help}" for name in names)


_PROGRESS = inspect.Parameter("progress", inspect.Parameter.KEYWORD_ONLY, default=False)
load.__signature__ = _signature("model", LOAD, [])  # type: ignore[attr-defined]
load.__doc__ = f"{load.__doc__}\n    Options:\n\n{_list_options(LOAD)}\n"
Model.__call__.__signature__ = _signature("prompt", DRAW, [_PROGRESS])  # type: ignore[attr-defined]
Model.__call__.__doc__ = f"{Model.__call__.__doc__}\n    Options:\n\n{_list_options(DRAW)}\n"
