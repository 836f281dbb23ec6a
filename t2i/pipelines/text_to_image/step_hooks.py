"""Observe every denoising step of a pipeline, with the network's prediction.

By way of the scheduler, whose `step` every pipeline calls once per step: not all of them know `callback_on_step_end`,
and it does not pass the prediction.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from t2i.pipelines.settings.schedulers import is_flow

if TYPE_CHECKING:
    import torch

Seen = Callable[["torch.Tensor", Any, "torch.Tensor"], None]  # (prediction, timestep, x_t), guidance applied


def observe(scheduler: Any, seen: Seen) -> None:
    """Call `seen` before each step of this scheduler, which must be a fresh one.  The step is not changed."""
    step = scheduler.step

    @functools.wraps(step)  # keeps the signature, by which pipelines decide whether to pass their generators
    def observed(model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        seen(model_output, timestep, sample)
        return step(model_output, timestep, sample, *args, **kwargs)

    scheduler.step = observed


def predict_x0(scheduler: Any, output: torch.Tensor, timestep: Any, x_t: torch.Tensor) -> torch.Tensor:
    """Return the clean latent that a prediction implies, before the scheduler takes this step.

    output: the network's eps, v, x0 or flow velocity, guidance applied.  Both tensors (B, ...), returned in float32.
    x_t = alpha x0 + sigma eps; for an unknown prediction type x_t itself is returned.
    """
    config = scheduler.config
    output, x_t = output.float(), x_t.float()
    alpha, sigma = _levels(scheduler, timestep)
    kind = str(config.get("prediction_type", "epsilon"))
    if _is_flow(scheduler):
        return x_t - sigma * output
    if kind == "epsilon":
        return (x_t - sigma * output) / alpha
    if kind == "v_prediction":  # of x_t at unit variance, which is what the network sees
        scale = (alpha**2 + sigma**2) ** 0.5
        return (alpha * x_t / scale - sigma * output) / scale
    return output if kind == "sample" else x_t


def _is_flow(scheduler: Any) -> bool:
    return "FlowMatch" in type(scheduler).__name__ or is_flow(scheduler.config)


def _levels(scheduler: Any, timestep: Any) -> tuple[float, float]:
    """Return (alpha, sigma) of x_t before this step."""
    if not hasattr(scheduler, "sigmas"):  # DDIM, PNDM, LCM: a table over all timesteps
        abar = float(scheduler.alphas_cumprod[int(timestep)])
        return abar**0.5, (1 - abar) ** 0.5
    index = scheduler.step_index
    if index is None:  # the scheduler finds it in its first step
        index = scheduler.begin_index or 0
    sigma = float(scheduler.sigmas[index])
    if _is_flow(scheduler):
        return 1 - sigma, sigma
    if hasattr(scheduler, "_sigma_to_alpha_sigma_t"):  # DPM-Solver, UniPC: x_t of unit variance
        alpha = (1 + sigma**2) ** -0.5
        return alpha, sigma * alpha
    return 1.0, sigma  # Euler, Heun: x_t = x0 + sigma eps
