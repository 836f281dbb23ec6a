"""LoRAs: loaded by diffusers and peft, with a count of matching tensors, since diffusers skips others silently."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from t2i.errors import ModelError, UsageError, one_line
from t2i.model_files.library_logging import silence_libraries
from t2i.model_files.weight_files import tensor_shapes
from t2i.pipelines.adapters.files import AdapterFile
from t2i.pipelines.adapters.lora_inspect import FAMILIES, family, pipeline_family
from t2i.pipelines.adapters.specs import Attached, Lora

if TYPE_CHECKING:
    import torch

SHOWN = 3  # names in a warning
# (name of a low-rank factor, its dimension that meets the layer, the layer's attributes with that width)
FACTORS = (("lora_A", 1, ("in_features", "in_channels")), ("lora_B", 0, ("out_features", "out_channels")))
LAYER = re.compile(r"(.+?)\.(lora_|lokr_|hada_|alpha$)")


def attach(pipe: Any, model: str, wanted: Sequence[tuple[Lora, AdapterFile]]) -> list[Attached]:
    """Load LoRAs and activate them together, each with its scale.  model: its name, for messages.

    Raises UsageError (the pipeline takes none), ModelError (nothing of a file fits, or it is of another base model).
    """
    if not wanted:
        return []
    if not hasattr(pipe, "load_lora_weights"):
        raise UsageError(f"`lora`: {model} (a {type(pipe).__name__}) takes no LoRA", "leave `lora` out")
    done = []
    for k, (lora, file) in enumerate(wanted):
        name = f"lora{k}"
        total, lost = _match(pipe, model, file)
        with silence_libraries():
            try:
                pipe.load_lora_weights(adapter_name=name, **_where(file))
            except Exception as e:  # peft and diffusers raise nearly anything for a file of another kind
                raise _not_understood(pipe, model, file, e) from e
        if not any(f".{name}." in key for part in _parts(pipe).values() for key in part.state_dict()):
            raise _fits_nothing(pipe, model, file, total)
        done.append(_attached(lora, file, total, lost))
    with silence_libraries():
        pipe.set_adapters([f"lora{k}" for k in range(len(wanted))], [lora.scale for lora, _ in wanted])
    return done


def detach(pipe: Any) -> None:
    """Unload all LoRAs: the weights are those that were loaded, bit for bit."""
    with silence_libraries():
        pipe.unload_lora_weights()


def _attached(lora: Lora, file: AdapterFile, total: int, lost: list[str]) -> Attached:
    record = {"kind": "lora", "name": file.name, "scale": lora.scale, "sha256": file.sha256}
    line = f"lora {file.name}: {total - len(lost)} of {total} tensors, scale {lora.scale:g}"
    if not lost:
        return Attached(record | {"autov3": file.autov3()}, line)
    shown = ", ".join(lost[:SHOWN]) + (", ..." if len(lost) > SHOWN else "")
    warning = f"warning: lora {file.name}: {len(lost)} of {total} tensors fit nothing in the model: {shown}"
    return Attached(record | {"autov3": file.autov3()}, line, warning)


def _match(pipe: Any, model: str, file: AdapterFile) -> tuple[int, list[str]]:
    """Return (number of tensors, names of those that match no layer).  Raises ModelError where none matches."""
    with silence_libraries():
        try:
            state, alphas = _read(pipe, file)
            parts = _by_part(pipe, state, alphas)
        except Exception as e:  # diffusers' conversion raises nearly anything for names that it does not know
            raise _not_understood(pipe, model, file, e) from e
    # The conversion may drop DoRA's magnitudes; they are in the file all the same, and count as lost.
    lost = [key for key in tensor_shapes(file.path) if "dora_scale" in key and not _has_magnitudes(state)]
    total = len(state) + len(alphas) + len(lost)
    fitting = 0
    for part, tensors in parts.items():
        layers = dict(_parts(pipe)[part].named_modules()) if part else {}
        for key, value in tensors.items():
            match = LAYER.match(key)
            layer = layers.get(match[1]) if match else None
            if layer is None:
                lost.append(f"{part}.{key}" if part else key)
                continue
            _check_width(pipe, model, file, f"{part}.{match[1] if match else key}", key, value, layer)
            fitting += 1
    if not fitting:
        raise _fits_nothing(pipe, model, file, total)
    made, here = family(tensor_shapes(file.path)), pipeline_family(pipe)
    if lost and made != here and {made, here} <= FAMILIES:
        message = f"{file.name} does not fit {model}: {len(lost)} of its {total} tensors fit nothing there"
        raise ModelError(message, _made_for(pipe, file))
    return total, lost


def _check_width(pipe: Any, model: str, file: AdapterFile, where: str, key: str, value: Any, layer: Any) -> None:
    """Raise ModelError where a low-rank factor has the width of another model's layer."""
    for factor, dimension, names in FACTORS:
        here = next((getattr(layer, name) for name in names if hasattr(layer, name)), None)
        there = value.shape[dimension] if f"{factor}." in key and getattr(value, "ndim", 0) > 1 else None
        if there is not None and here is not None and there != here:
            message = f"{file.name} does not fit {model}: {where} is {there} wide there, {here} here"
            raise ModelError(message, _made_for(pipe, file))


def _read(pipe: Any, file: AdapterFile) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors under diffusers' names, and their alphas, as diffusers converts the file."""
    options: dict[str, Any] = {"unet_config": pipe.unet.config} if hasattr(pipe, "unet") else {}
    read = type(pipe).lora_state_dict
    if "return_alphas" in inspect.signature(read).parameters:
        options["return_alphas"] = True
    answer = read(**_where(file), **options)
    state, *rest = answer if isinstance(answer, tuple) else (answer,)
    alphas = next((more for more in rest if isinstance(more, dict)), {})
    return dict(state), dict(alphas)


def _by_part(pipe: Any, state: Mapping[str, Any], alphas: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return {component of the pipeline: its tensors under peft's names}; "": tensors that name no component."""
    from diffusers.utils.state_dict_utils import (
        convert_state_dict_to_diffusers,
        convert_state_dict_to_peft,
        convert_unet_state_dict_to_peft,
    )

    sorted_out: dict[str, dict[str, Any]] = {}
    for key, value in (*state.items(), *alphas.items()):
        part, _, rest = key.partition(".")
        known = part in _parts(pipe)
        sorted_out.setdefault(part if known else "", {})[rest if known else key] = value
    for part, tensors in sorted_out.items():
        text = part.startswith("text_encoder")

        def rename(some: dict[str, Any], part: str = part, text: bool = text) -> dict[str, Any]:
            if text and some:
                return convert_state_dict_to_peft(convert_state_dict_to_diffusers(some))
            done = not some or "lora_A" in next(iter(some)) or any("lokr_" in key for key in some)
            return convert_unet_state_dict_to_peft(some) if part and not done else some

        # An alpha has the name of the factor that it scales.
        beside = {key.removesuffix(".alpha"): value for key, value in tensors.items() if key.endswith(".alpha")}
        factors = rename({key: value for key, value in tensors.items() if not key.endswith(".alpha")})
        both = factors | {f"{key}.alpha": value for key, value in rename(beside).items()}
        if text and not hasattr(_parts(pipe)[part], "text_model"):
            both = {key.removeprefix("text_model."): value for key, value in both.items()}
        sorted_out[part] = both
    return sorted_out


def _parts(pipe: Any) -> dict[str, Any]:
    """Return the networks of a pipeline that a LoRA may change."""
    names = pipe._lora_loadable_modules
    return {name: getattr(pipe, name) for name in names if getattr(pipe, name, None) is not None}


def _where(file: AdapterFile) -> dict[str, Any]:
    """Return arguments for diffusers by which it reads this file, nothing else, and uses no network."""
    return {
        "pretrained_model_name_or_path_or_dict": str(file.path.parent),
        "weight_name": file.path.name,
        "use_safetensors": True,
        "local_files_only": True,
    }


def _has_magnitudes(state: Mapping[str, Any]) -> bool:
    return any("lora_magnitude_vector" in key for key in state)


def _made_for(pipe: Any, file: AdapterFile) -> str:
    """Say for which models the file seems to be made, and what this model is."""
    return f"it seems to be for {family(tensor_shapes(file.path))}; this model is {pipeline_family(pipe)}"


def _fits_nothing(pipe: Any, model: str, file: AdapterFile, total: int) -> ModelError:
    return ModelError(f"{file.name}: none of its {total} tensors fits {model}", _made_for(pipe, file))


def _not_understood(pipe: Any, model: str, file: AdapterFile, e: Exception) -> ModelError:
    reason = one_line(e, 160)
    return ModelError(f"{file.name} is no LoRA for {model}: {reason}", _made_for(pipe, file))
