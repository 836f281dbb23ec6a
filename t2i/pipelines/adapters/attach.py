"""Attach adapters to a loaded pipeline and detach them again, so that one base model serves many of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from t2i.pipelines.adapters import ip_adapter, lora, textual_inversion
from t2i.pipelines.adapters.files import Found
from t2i.pipelines.adapters.specs import NO_ADAPTERS, Adapters
from t2i.threads import LOADING


@dataclass(frozen=True)
class AttachedAdapters:
    """The adapters of a pipeline.  records: for recipes.  options: arguments of every call of the pipeline.

    words, parts: the tokenizers, embedding tables and components from before, for `detach`.
    """

    adapters: Adapters = NO_ADAPTERS
    records: tuple[dict[str, Any], ...] = ()
    lines: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    words: textual_inversion.Before | None = None
    parts: Mapping[str, Any] | None = None


def attach(pipe: Any, model: str, adapters: Adapters, found: Found) -> AttachedAdapters:
    """Attach adapters to a pipeline that has none.  model: its name, for messages.

    found: their files.  After an error the pipeline is as it was.  Raises UsageError, ModelError, ImageError.
    """
    with LOADING:
        words = textual_inversion.remember(pipe) if adapters.embeddings else None
        parts = ip_adapter.parts_before(pipe) if adapters.ip_adapters else None
        try:
            # IP-Adapters replace attention processors, so they come before the LoRA layers inside of these.
            ip_adapters, options = ip_adapter.attach(pipe, model, _pairs(adapters.ip_adapters, found.ip_adapters))
            attached = [
                *lora.attach(pipe, model, _pairs(adapters.loras, found.loras)),
                *textual_inversion.attach(pipe, model, _pairs(adapters.embeddings, found.embeddings)),
                *ip_adapters,
            ]
        except BaseException:
            detach(pipe, AttachedAdapters(adapters, words=words, parts=parts))
            raise
    return AttachedAdapters(
        adapters,
        tuple(dict(one.record) for one in attached),
        tuple(one.line for one in attached),
        tuple(one.warning for one in attached if one.warning),
        options,
        words,
        parts,
    )


def detach(pipe: Any, attached: AttachedAdapters) -> None:
    """Detach all adapters: the pipeline draws as before, bit for bit."""
    with LOADING:
        if attached.adapters.loras and hasattr(pipe, "unload_lora_weights"):
            lora.detach(pipe)
        if attached.words is not None:
            textual_inversion.restore(pipe, attached.words)
        if attached.parts and hasattr(pipe, "unload_ip_adapter"):
            ip_adapter.detach(pipe, dict(attached.parts))


def _pairs(wanted: tuple[Any, ...], files: tuple[Any, ...]) -> list[Any]:
    return list(zip(wanted, files, strict=True))
