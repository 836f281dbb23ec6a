"""Guarded calls of a diffusers pipeline: known arguments alone, a callback for each step, errors as ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from t2i.errors import ModelError, NonFinite, T2IError, one_line
from t2i.model_files.library_logging import silence_libraries
from t2i.pipelines.settings.settings import call_parameters

if TYPE_CHECKING:
    import torch


def call(pipe: Any, name: str, options: Mapping[str, Any]) -> tuple[torch.Tensor, list[bool]]:
    """Draw one batch: (B, 3, H, W) in [-1, 1], and which images the safety checker has blanked.

    name: the model's, for errors.  options: keyword arguments; those that the pipeline does not have are left out.
    Raises ModelError: refused by the pipeline; errors of a callback pass through.
    """
    import torch

    known = call_parameters(pipe)
    try:
        with silence_libraries():
            output = pipe(**{key: value for key, value in options.items() if key in known}, output_type="pt")
    except (T2IError, MemoryError, torch.OutOfMemoryError):
        raise
    except (ValueError, TypeError, AttributeError, NotImplementedError) as e:
        reason = one_line(e, 300)
        raise ModelError(f"{name} cannot draw this: {reason}", "`debug` shows where") from e
    x = output.images.float().mul(2).sub(1)  # pipelines return [0, 1]; NaN stays NaN
    blanked = getattr(output, "nsfw_content_detected", None) or [False] * len(x)
    return x, [bool(black) for black in blanked]


def watch_steps(report: Callable[[float], None], suggestion: str) -> Callable[..., dict[str, Any]]:
    """Make a callback for a pipeline's steps: it reports the part done, and stops when all images are non-finite.

    It raises NonFinite with this suggestion.
    """

    def after_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        latents = tensors.get("latents")
        if latents is not None and not latents.flatten(1).sum(1).isfinite().any():
            raise NonFinite(f"non-finite image: NaN or infinity after step {step + 1}", suggestion)
        report((step + 1) / max(1, getattr(pipe, "num_timesteps", step + 1)))
        return {}

    return after_step
