"""Conversion of our schedules to diffusers' schedulers, as exported with a U-Net, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from t2i.diffusion.schedule import Flow, Schedule, VariancePreserving, cosine, linear
from t2i.errors import ModelError

PREDICTION_TYPES = {"eps": "epsilon", "x0": "sample", "v": "v_prediction", "flow": "flow_prediction"}
BETA_SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}


def make_scheduler(schedule: str, predict: str) -> Any:
    """Make the scheduler to export with a U-Net that learned to `predict` under one of our schedules, by name."""
    import diffusers

    if schedule == "flow":
        # FlowMatchEulerDiscreteScheduler has no place for the pipeline's generator
        return diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    return diffusers.DDPMScheduler(
        beta_schedule=BETA_SCHEDULES[schedule],
        beta_start=1e-4,
        beta_end=0.02,
        prediction_type=PREDICTION_TYPES[predict],
    )


def read_scheduler(config: Mapping[str, Any]) -> tuple[Schedule, str]:
    """Return the schedule, and the prediction target of the network, from a scheduler's config.

    Raises ModelError: a config for which this toolkit has no schedule.
    """
    names = {value: name for name, value in PREDICTION_TYPES.items()}
    predict = names.get(str(config.get("prediction_type", "epsilon")))
    if "FlowMatch" in str(config.get("_class_name")) or predict == "flow":
        return Flow(), "flow"
    kind, steps = config.get("beta_schedule"), int(config.get("num_train_timesteps", 1000))
    ends = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
    if predict is None or config.get("rescale_betas_zero_snr"):
        raise ModelError(f"the scheduler has prediction_type {config.get('prediction_type')!r}, or rescaled betas")
    if config.get("trained_betas") is not None:
        return VariancePreserving(torch.tensor(config["trained_betas"], dtype=torch.float64)), predict
    if kind == "linear":
        return linear(steps, *ends), predict
    if kind == "scaled_linear":
        roots = torch.linspace(ends[0] ** 0.5, ends[1] ** 0.5, steps, dtype=torch.float64)
        return VariancePreserving(roots.square()), predict
    if kind == "squaredcos_cap_v2":
        return cosine(steps), predict
    raise ModelError(f"the scheduler has beta_schedule {kind!r}; known are linear, scaled_linear, squaredcos_cap_v2")
