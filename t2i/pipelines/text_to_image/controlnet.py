"""ControlNets: names, files, and loading.

A ControlNet reads an image that is already a map: edges, depths, the skeleton of a pose. It is made for one base model.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from t2i.errors import ModelError, T2IError, UsageError, one_line
from t2i.model_files import hub
from t2i.model_files.library_logging import silence_libraries
from t2i.model_files.registry import read_json
from t2i.model_files.weight_files import check_component, check_component_folder, tensor_shapes
from t2i.pipelines.loading.load import refuse_missing_weights
from t2i.threads import LOADING

# The base model's family, by diffusers' own name for it -> short name -> Hub id.
CONTROLNETS: dict[str, dict[str, str]] = {
    "stable-diffusion": {
        "canny": "lllyasviel/control_v11p_sd15_canny",
        "depth": "lllyasviel/control_v11f1p_sd15_depth",
        "pose": "lllyasviel/control_v11p_sd15_openpose",
        "scribble": "lllyasviel/control_v11p_sd15_scribble",
        "tile": "lllyasviel/control_v11f1e_sd15_tile",
        "lineart": "lllyasviel/control_v11p_sd15_lineart",
        "softedge": "lllyasviel/control_v11p_sd15_softedge",
        "normal": "lllyasviel/control_v11p_sd15_normalbae",
        "seg": "lllyasviel/control_v11p_sd15_seg",
        "mlsd": "lllyasviel/control_v11p_sd15_mlsd",
    },
    "stable-diffusion-xl": {
        "canny": "diffusers/controlnet-canny-sdxl-1.0",
        "depth": "diffusers/controlnet-depth-sdxl-1.0",
        "pose": "xinsir/controlnet-openpose-sdxl-1.0",
        "scribble": "xinsir/controlnet-scribble-sdxl-1.0",
        "tile": "xinsir/controlnet-tile-sdxl-1.0",
    },
    "stable-diffusion-3": {  # of the medium model
        "canny": "InstantX/SD3-Controlnet-Canny",
        "pose": "InstantX/SD3-Controlnet-Pose",
        "tile": "InstantX/SD3-Controlnet-Tile",
    },
    "flux": {  # of FLUX.1 dev
        "canny": "InstantX/FLUX.1-dev-Controlnet-Canny",
        "depth": "Shakker-Labs/FLUX.1-dev-ControlNet-Depth",
    },
}
KINDS = {
    "stable-diffusion": "ControlNetModel",
    "stable-diffusion-xl": "ControlNetModel",
    "stable-diffusion-3": "SD3ControlNetModel",
    "flux": "FluxControlNetModel",
}
# Sizes that a ControlNet shares with the network that it guides.
SHARED = ("cross_attention_dim", "joint_attention_dim", "pooled_projection_dim", "in_channels", "attention_head_dim")


def locate_control(net: str, family: str, offline: bool = False) -> tuple[Path, str]:
    """Find the folder of a ControlNet and its class.  net: a name in CONTROLNETS, a folder, or a Hub id.

    Raises UsageError (no such name, made for another family), ModelUnavailable, ModelError.
    """
    known = CONTROLNETS.get(family, {})
    path = Path(net).expanduser()
    if net in known or (re.fullmatch(r"[\w.-]+/[\w.-]+", net) and not path.exists()):
        folder = hub.fetch_network(known.get(net, net), offline)
    elif path.is_dir():
        folder = Path(os.path.abspath(path))
    else:
        what = "a file; a folder is needed" if path.exists() else "no folder, and no type known for this model"
        raise UsageError(f"control {net[:60]!r}: {what}", f"types: {', '.join(known) or 'none'}; a folder or a Hub id")
    try:
        kind, _ = check_component_folder(folder)
    except ModelError as e:
        raise ModelError(f"control {net[:60]!r}: {e.message}", e.hint) from None
    if kind != KINDS.get(family):
        message = f"control {net[:60]!r} is a {kind[:40]}, this model is guided by a {KINDS.get(family)}"
        raise UsageError(message, "take one that was made for this base model")
    return folder, kind


def check_control(net: str, folder: Path, kind: str, base: Mapping[str, Any]) -> None:
    """Check a located ControlNet by its config and the headers of its weights, without loading them.

    base: the config of the network that it is to guide.
    Raises UsageError where it was made for a base of other sizes, ModelError where weights are missing.
    """
    import diffusers
    import torch

    with LOADING, silence_libraries():
        try:
            with torch.device("meta"):  # the layers and their names, without a number in them
                outline = getattr(diffusers, kind).from_config(dict(read_json(folder / "config.json")))
        except Exception as e:
            raise _not_loaded(net, e) from e
    for name in SHARED:
        own, its = getattr(outline.config, name, None), base.get(name)
        if own is not None and its is not None and own != its:
            message = f"control {net[:60]!r} was made for another base model ({name} {own}, this model has {its})"
            raise UsageError(message, "take one that was made for this base model")
    held = {name for file in check_component(folder, kind) for name in tensor_shapes(file)}
    missing = next((name for name in outline.state_dict() if name not in held), None)
    if missing is not None:
        part = missing.partition(".")[0]
        raise ModelError(f"cannot load control {net[:60]!r}: weights are missing from its {part}", "get it again")


def load_control(net: str, folder: Path, kind: str, pipe: Any) -> Any:
    """Load a located ControlNet on the device and in the dtype of the pipeline that it is to guide.

    Raises ModelError.
    """
    import diffusers
    import torch

    with LOADING, silence_libraries() as said:
        try:
            network = getattr(diffusers, kind).from_pretrained(
                folder, torch_dtype=pipe.dtype, use_safetensors=True, local_files_only=True
            )
        except (T2IError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as e:
            raise _not_loaded(net, e) from e
    refuse_missing_weights(f"control {net[:60]!r}", said)
    return network.to(pipe._execution_device)


def _not_loaded(net: str, e: Exception) -> ModelError:
    return ModelError(f"cannot load control {net[:60]!r}: {type(e).__name__}: {one_line(e)}", "get it again")


class MeanEncoder:
    """A VAE that encodes to the mean of its distribution, and otherwise equals the one it wraps.

    The ControlNet pipeline of Stable Diffusion 3 samples the latents of the map from the global generator, so that an
    image would differ from run to run; the variance around the mean is far below what is visible.
    """

    def __init__(self, vae: Any) -> None:
        self._vae = vae

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vae, name)

    def encode(self, x: Any) -> Any:
        """Encode x, (B, 3, H, W) in [-1, 1], to the mean."""
        found = self._vae.encode(x).latent_dist
        return SimpleNamespace(latent_dist=SimpleNamespace(sample=found.mode, mode=found.mode))
