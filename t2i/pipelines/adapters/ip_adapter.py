"""IP-Adapters: an image as a prompt, encoded by a CLIP image encoder whose folder is near the adapter's file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from t2i.errors import ModelError, UsageError, one_line
from t2i.model_files.library_logging import silence_libraries
from t2i.model_files.registry import read_json
from t2i.model_files.weight_files import check_component, tensor_shapes
from t2i.pipelines.adapters.files import AdapterFile
from t2i.pipelines.adapters.specs import Attached, IPAdapter
from t2i.pipelines.settings.image_input import ImageInput

ENCODER = "CLIPVisionModelWithProjection"
# The projection of a Stable Diffusion adapter, and of FLUX.1's: its columns are as many as the image embedding has.
PROJECTIONS = ("image_proj.proj.weight", "ip_adapter_proj_model.proj.weight")
OURS = re.compile(r"(image_proj|ip_adapter|ip_adapter_proj_model|double_blocks)\.")
FACE = re.compile(r"image_proj\.proj\.0\.|ip_adapter\.\d+\.to_\w+_lora")
KEYS = re.compile(r"(to_k_ip|ip_adapter_double_stream_k_proj)\.weight$")


def attach(
    pipe: Any, model: str, wanted: Sequence[tuple[IPAdapter, AdapterFile]]
) -> tuple[list[Attached], dict[str, Any]]:
    """Load IP-Adapters; returns them, and the arguments of every call of the pipeline: one image for each.

    model: its name, for messages.
    Raises UsageError (the pipeline takes none), ModelError (another base model's), ImageError (an unreadable image).
    """
    if not wanted:
        return [], {}
    _check_pipeline(pipe, model)
    if hasattr(pipe, "unet") and getattr(pipe.unet, "hf_quantizer", None) is not None:
        message = f"`ip_adapter` with quantised weights: the U-Net of {model} cannot take one"
        raise UsageError(message, "`quantize=none`; `offload` and `tiling` save memory too")
    inputs = [ImageInput.of(adapter.image) for adapter, _ in wanted]
    for _, file in wanted:
        _check_file(pipe, model, file)
    folders = {_encoder_folder(file) for _, file in wanted}
    if len(folders) > 1:
        names = ", ".join(sorted(str(folder.parent.name) for folder in folders))
        raise UsageError(
            f"`ip_adapter`: several image encoders ({names}); a pipeline has one", "use adapters of one encoder"
        )
    _load_encoder(pipe, model, folders.pop(), wanted[0][1])
    files = [file.path for _, file in wanted]
    options: dict[str, Any] = {
        "pretrained_model_name_or_path_or_dict": [str(path.parent) for path in files],
        "subfolder": "",
        "weight_name": [path.name for path in files],
        "local_files_only": True,
    }
    with silence_libraries():
        try:
            pipe.load_ip_adapter(**options)
        except Exception as e:  # diffusers raises nearly anything for a file of another kind
            reason = one_line(e)
            message = f"{', '.join(path.name for path in files)} does not fit {model}: {reason}"
            raise ModelError(message, "an IP-Adapter belongs to one family of models") from e
        pipe.set_ip_adapter_scale([adapter.scale for adapter, _ in wanted])
    done = [_attached(adapter, file, image_input) for (adapter, file), image_input in zip(wanted, inputs, strict=True)]
    images = [image_input.open() for image_input in inputs]
    return done, {"ip_adapter_image": images if len(images) > 1 else images[0]}


def detach(pipe: Any, before: dict[str, Any]) -> None:
    """Unload all IP-Adapters.  before: the image encoder and the feature extractor from before."""
    with silence_libraries():
        pipe.unload_ip_adapter()
        pipe.register_modules(**before)


def parts_before(pipe: Any) -> dict[str, Any]:
    """Return the components that `detach` puts back."""
    return {name: pipe.components[name] for name in ("image_encoder", "feature_extractor") if name in pipe.components}


def _attached(adapter: IPAdapter, file: AdapterFile, image_input: ImageInput) -> Attached:
    record = {"kind": "ip-adapter", "name": file.name, "scale": adapter.scale, "sha256": file.sha256}
    line = f"ip-adapter {file.name}: sees {image_input.name}, scale {adapter.scale:g}"
    return Attached(record | {"image": image_input.name, "image_hash": image_input.hash}, line)


def _check_pipeline(pipe: Any, model: str) -> None:
    kind = type(pipe).__name__
    if not hasattr(pipe, "load_ip_adapter") or "image_encoder" not in pipe.components:
        raise UsageError(f"`ip_adapter`: {model} (a {kind}) takes none", "Stable Diffusion 1, XL and FLUX.1 do")
    if kind.startswith("StableDiffusion3"):
        raise UsageError("`ip_adapter`: not for Stable Diffusion 3 yet", "Stable Diffusion 1, XL and FLUX.1 take one")


def _check_file(pipe: Any, model: str, file: AdapterFile) -> None:
    """Raise ModelError: not an IP-Adapter, one for faces alone, or one for other widths than the model's."""
    shapes = tensor_shapes(file.path)
    if not any(KEYS.search(name) for name in shapes) or not all(OURS.match(name) for name in shapes):
        strange = next((name for name in shapes if not OURS.match(name)), "")
        raise ModelError(
            f"{file.name} is no IP-Adapter (it holds {strange[:60] or 'no keys'})", "a LoRA belongs to `lora`"
        )
    if any(FACE.match(name) for name in shapes):
        message = f"{file.name} is made for faces (FaceID): it needs a face recogniser, which is not part of t2i"
        raise ModelError(message, "use an IP-Adapter for whole images")
    network = getattr(pipe, "unet", None) or pipe.transformer
    config = network.config
    wide = config.get("cross_attention_dim") or config.get("joint_attention_dim")
    theirs = next(shape[1] for name, shape in shapes.items() if KEYS.search(name))
    flux = any(name.startswith("double_blocks.") for name in shapes)
    if theirs != wide or flux == hasattr(pipe, "unet"):
        message = f"{file.name} does not fit {model}: it reads text {theirs} wide, the model {wide}"
        hint = {768: "Stable Diffusion 1", 2048: "Stable Diffusion XL", 4096: "FLUX.1"}.get(theirs, "another model")
        raise ModelError(message, f"it was made for {hint}")


def _encoder_folder(file: AdapterFile) -> Path:
    """Return the folder of an adapter's image encoder: next to its file, or where the Hub's collections keep it."""
    near = file.path.parent
    wide = next((shape[1] for name, shape in tensor_shapes(file.path).items() if name in PROJECTIONS), None)
    candidates = [near / "image_encoder", near.parent / "image_encoder", near.parent / "models" / "image_encoder"]
    there = [folder for folder in candidates if (folder / "config.json").is_file()]
    for folder in there:
        config = read_json(folder / "config.json")
        if wide is None or config.get("projection_dim", 512) == wide:
            return folder
    if there:
        widths = ", ".join(str(read_json(folder / "config.json").get("projection_dim", 512)) for folder in there)
        message = f"{file.name} reads image embeddings {wide} wide, the image encoder next to it gives {widths}"
        raise ModelError(message, "put the image encoder that it was trained with into image_encoder/ next to it")
    hint = "put its folder image_encoder (config.json, model.safetensors) next to it"
    raise ModelError(f"{file.name}: no image encoder in {near.name or '.'}", hint)


def _load_encoder(pipe: Any, model: str, folder: Path, file: AdapterFile) -> None:
    """Load the image encoder and its preprocessor into the pipeline."""
    import transformers
    from diffusers.loaders.ip_adapter import CLIPImageProcessor

    check_component(folder, ENCODER)
    with silence_libraries() as said:
        try:
            encoder = transformers.CLIPVisionModelWithProjection.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, dtype=pipe.dtype
            )
        except Exception as e:  # transformers' own
            reason = one_line(e)
            raise ModelError(f"cannot load the image encoder of {file.name}: {reason}", "get it again") from e
        if any("newly initialized" in line for line in said):
            raise ModelError(f"the image encoder of {file.name} lacks weights", "get it again")
        size = encoder.config.image_size
        pipe.register_modules(
            image_encoder=encoder.to(pipe.device).eval(),
            feature_extractor=pipe.components.get("feature_extractor") or CLIPImageProcessor(size=size, crop_size=size),
        )
