"""Schedulers by name: ours, A1111's display names, and which of them work with a model.

Each of diffusers' scheduler classes has one update rule; a model's own config names its prediction type. A flow model
in Stable Diffusion's format (`use_flow_sigmas`) needs a class that knows the noise levels of flow matching. There the
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
    """A scheduler: diffusers' class, changes of the model's config, and A1111's names for it.

    flow: the class and changes with the same effect on a flow model; None: there are none.
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
    """Normalise a name: "DPM++ 2M Karras", "dpm++2m-karras" and "dpm++_2m_karras" become "dpm++2mkarras"."""
    return "".join(character for character in name.lower() if character not in " -_")


def _spellings() -> dict[str, str]:
    spellings = {}
    for name, choice in SCHEDULERS.items():
        suffix = f" {choice.schedule_type}" if choice.schedule_type == "Karras" else ""
        for spelling in (name, choice.sampler + suffix, *choice.aliases):
            spellings[_squeeze(spelling)] = name
    return spellings


def scheduler_name(spelling: str) -> str:
    """Return our name of a scheduler, from ours or A1111's.  Raises UsageError, naming all of them."""
    name = _spellings().get(_squeeze(spelling))
    if name is None:
        raise UsageError(f"unknown scheduler {spelling[:80]!r}", f"schedulers: {', '.join(SCHEDULERS)}")
    return name


def is_flow(config: Mapping[str, Any]) -> bool:
    """Return whether a scheduler's config belongs to a flow model in Stable Diffusion's format."""
    return config.get("prediction_type") == "flow_prediction" or bool(config.get("use_flow_sigmas"))


def usable(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return our names of the schedulers that work with a model whose own scheduler has this config."""
    if "FlowMatch" in str(config.get("_class_name")):
        return ()  # such pipelines pass noise levels to the scheduler, which others do not take
    return tuple(name for name, choice in SCHEDULERS.items() if choice.flow or not is_flow(config))


def check_scheduler(spelling: str, own: Any) -> str:
    """Return our name of a scheduler that works with the model whose own scheduler is `own`.

    Raises UsageError when the name is unknown, or does not work with this model (naming those that do).
    """
    name = scheduler_name(spelling)
    names = usable(own.config)
    if name not in names:
        kind = own.config.get("_class_name", type(own).__name__)
        hint = f"schedulers that work with it: {', '.join(names)}" if names else "leave `scheduler` out"
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
    """Return (our name, A1111's sampler, A1111's schedule type) of a diffusers scheduler.

    One that is not in the table is named after its class.
    """
    config, kind = dict(scheduler.config), type(scheduler).__name__
    flow = is_flow(config)
    for name, choice in SCHEDULERS.items():
        wanted, changes = (choice.flow or (None, {})) if flow else (choice.kind, choice.changes)
        significant = {key: value for key, value in changes.items() if key in _SIGNIFICANT}
        if kind == wanted and all(config.get(key) == value for key, value in significant.items()):
            if flow and name == "ddim":
                continue  # the same update as euler's, the better-known name for flow models
            return name, choice.sampler, None if flow else choice.schedule_type
    return kind, kind.removesuffix("Scheduler"), None


_SIGNIFICANT = ("solver_order", "algorithm_type", *_PLAIN)
