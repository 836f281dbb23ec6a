"""Choices by device: precision, memory format, attention kernel."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from t2i.errors import T2IError


def choose_precision(wanted: str) -> str:
    """Return Accelerate's mixed_precision for a config's `precision`: "auto" is bf16 where the hardware supports it.

    Raises T2IError: fp16 without a GPU.
    """
    # with this variable Accelerate computes on the CPU, GPU or not
    cuda = torch.cuda.is_available() and not os.environ.get("ACCELERATE_USE_CPU")
    if wanted == "fp16" and not cuda:
        raise T2IError("precision fp16 needs a GPU", "--set precision=auto chooses the best one for this machine")
    if wanted != "auto":
        return wanted
    if cuda:
        return "bf16" if torch.cuda.is_bf16_supported() else "no"
    return "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "no"


def memory_format(device: torch.device, module: nn.Module) -> torch.memory_format:
    """Return the memory format of images and kernels: channels last where that is faster.

    On a CPU it saves the convolutions a copy of inputs and outputs: `t2i train classifier --dry-run` measured 363
    images/s with it and 297 without (one core of an Intel Xeon with AMX, 2026-11-25). But torch's group norm takes 8
    times as long (profiled: 302 instead of 36 ms of a step), and the U-Net ran at 40 instead of 48 images/s.
    """
    grouped = any(isinstance(part, nn.GroupNorm) for part in module.modules())
    return torch.channels_last if device.type == "cpu" and not grouped else torch.preserve_format


def attention(device: torch.device) -> AbstractContextManager[None]:
    """Return a context with the attention kernel for training.

    On a CPU torch's fused kernel has a slow backward: 174 of the 725 ms that a step of configs/mini-text2image.yaml
    took (2 cores, 2026-11-23); as plain matrix products the whole step took 510 ms.
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
