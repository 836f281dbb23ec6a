"""Schedulers by name: ours, A1111's display names, and which of them a model can be drawn with.

diffusers' scheduler classes hold one rule of stepping each; a model's own config says what it predicts. A flow model
in Stable Diffusion's format (`use_flow_sigmas`) can be drawn only by classes that know flow noise levels. There the
first-order DPM-Solver++ step is exactly Euler's step along the flow, and its SDE form is the ancestral one:
with x0 = x - s v, eps = x + (1 - s) v, the step (1 - t) x0 + t eps equals x + (t - s) v.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from t2i.errors import UsageError

_MULTISTEP = "DPMSolverMultistepScheduler"
_PLAIN = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}


@dataclass(frozen=True)
class Choice:
    """A scheduler: diffusers class, what it changes in the model's config, and A1111's names for it.

    flow: the class and changes that do the same on a flow model; None where nothing does.
    """

    kind: str
    changes: Mapping[str, Any]
    sampler: str
    schedule_type: str | None = None
    flow: tuple[str, Mapping[str, Any]] | None = None
    aliases: tuple[str, ...] = field(default=())


SCHEDULERS: dict[str, Choice] = {
    "ddim": Choice(
        "DDIMScheduler",
        {"clip_sample": False, "set_alpha_to_one": False},
        "DDIM",
        flow=(_MULTISTEP, {"solver_order": 1, "algorithm_type": "dpmsolver++"}),
    ),
    "dpm++2m": Choice(
        _MULTISTEP,
        {"solver_order": 2, "algorithm_type": "dpmsolver++", **_PLAIN},
        "DPM++ 2M",
        "Uniform",
        flow=(_MULTISTEP, {"solver_order": 2, "algorithm_type": "dpmsolver++"}),
    ),
    "dpm++2m-karras": Choice(
        _MULTISTEP,
        {"solver_order": 2, "algorithm_type": "dpmsolver++", **_PLAIN, "use_karras_sigmas": True},
        "DPM++ 2M",
        "Karras",
    ),
    "dpm++2m-sde": Choice(
        _MULTISTEP,
        {"solver_order": 2, "algorithm_type": "sde-dpmsolver++", **_PLAIN},
        "DPM++ 2M SDE",
        "Uniform",
        flow=(_MULTISTEP, {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"}),
    ),
    "dpm++2m-sde-karras": Choice(
        _MULTISTEP,
        {"solver_order": 2, "algorithm_type": "sde-dpmsolver++", **_PLAIN, "use_karras_sigmas": True},
        "DPM++ 2M SDE",
        "Karras",
    ),
    "euler": Choice(
        "EulerDiscreteScheduler",
        _PLAIN,
        "Euler",
        "Uniform",
        flow=(_MULTISTEP, {"solver_order": 1, "algorithm_type": "dpmsolver++"}),
    ),
    "euler-a": Choice(
        "EulerAncestralDiscreteScheduler",
        {},
        "Euler a",
        "Uniform",
        flow=(_MULTISTEP, {"solver_order": 1, "algorithm_type": "sde-dpmsolver++"}),
        aliases=("euler ancestral",),
    ),
    "heun": Choice("HeunDiscreteScheduler", _PLAIN, "Heun", "Uniform"),
    "unipc": Choice("UniPCMultistepScheduler", _PLAIN, "UniPC", flow=("UniPCMultistepScheduler", {})),
    "pndm": Choice("PNDMScheduler", {"skip_prk_steps": True}, "PLMS", aliases=("plms",)),
    "lcm": Choice("LCMScheduler", {"clip_sample": False}, "LCM"),
}


def _squeeze(name: str) -> str:
    """A1111's "DPM++ 2M Karras", ours "dpm++2m-karras" and "dpm++_2m_karras" all become "dpm++2mkarras"."""
    return "".join(character for character in name.lower() if character not in " -_")


def _spellings() -> dict[str, str]:
    spellings = {}
    for name, choice in SCHEDULERS.items():
        suffix = f" {choice.schedule_type}" if choice.schedule_type == "Karras" else ""
        for spelling in (name, choice.sampler + suffix, *choice.aliases):
            spellings[_squeeze(spelling)] = name
    return spellings


def scheduler_name(spelling: str) -> str:
    """Our name of a scheduler, from ours or A1111's.  Raises UsageError, naming all of them."""
    name = _spellings().get(_squeeze(spelling))
    if name is None:
        raise UsageError(f"unknown scheduler {spelling[:80]!r}", f"schedulers: {', '.join(SCHEDULERS)}")
    return name


def is_flow(config: Mapping[str, Any]) -> bool:
    """Whether a scheduler's config belongs to a flow model in Stable Diffusion's format."""
    return config.get("prediction_type") == "flow_prediction" or bool(config.get("use_flow_sigmas"))


def usable(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Our names of the schedulers that draw with a model whose own scheduler has this config."""
    if "FlowMatch" in str(config.get("_class_name")):
        return ()  # such pipelines hand their own noise levels to their own scheduler
    return tuple(name for name, choice in SCHEDULERS.items() if choice.flow or not is_flow(config))


def check_scheduler(spelling: str, own: Any) -> str:
    """Return our name of a scheduler that draws with the model whose own scheduler is `own`.

    Raises UsageError when the name is unknown, or does not work with this model (naming those that do).
    """
    name = scheduler_name(spelling)
    names = usable(own.config)
    if name not in names:
        kind = own.config.get("_class_name", type(own).__name__)
        hint = f"schedulers that work with it: {', '.join(names)}" if names else "leave --scheduler out"
        raise UsageError(f"scheduler {name!r} does not work with this model (its own is {kind}, a flow model's)", hint)
    return name


def make_scheduler(spelling: str, own: Any) -> Any:
    """Make the scheduler of that name for the model whose own scheduler is `own`.  Raises as `check_scheduler` does."""
    import diffusers

    choice = SCHEDULERS[check_scheduler(spelling, own)]
    kind, changes = choice.kind, choice.changes
    if is_flow(own.config) and choice.flow:
        kind, changes = choice.flow
    return getattr(diffusers, kind).from_config(own.config, **changes)


def describe(scheduler: Any) -> tuple[str, str, str | None]:
    """(our name, A1111's sampler, A1111's schedule type) of a diffusers scheduler.

    One that is not in the table is called by its class.
    """
    config, kind = dict(scheduler.config), type(scheduler).__name__
    flow = is_flow(config)
    for name, choice in SCHEDULERS.items():
        wanted, changes = (choice.flow or (None, {})) if flow else (choice.kind, choice.changes)
        significant = {key: value for key, value in changes.items() if key in _SIGNIFICANT}
        if kind == wanted and all(config.get(key) == value for key, value in significant.items()):
            if flow and name == "ddim":
                continue  # the same step as euler's, which is its better-known name there
            return name, choice.sampler, None if flow else choice.schedule_type
    return kind, kind.removesuffix("Scheduler"), None


_SIGNIFICANT = ("solver_order", "algorithm_type", *_PLAIN)
