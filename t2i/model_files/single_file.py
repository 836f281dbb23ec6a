"""A whole model in one .safetensors file: identify its kind, and add the configs and tokenizers that it lacks.

Configs of Stable Diffusion 1 and XL are in the package (`t2i/single_file`); other kinds take theirs from the folder
that the user gives, or from the Hub.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from t2i.errors import ModelError
from t2i.model_files import hub
from t2i.model_files.registry import read_json
from t2i.model_files.weight_files import check_config_folder, check_safetensors, tensor_shapes

CARRIED = Path(__file__).parents[1] / "single_file"
CLIP_TOKENS = 77  # what CLIP reads, both ends included
FIRST_LAYER = "model.diffusion_model.input_blocks.0.0.weight"

# (pattern of a tensor that only this kind of file has, its pipeline class, its configs in the package)
KINDS: tuple[tuple[str, str, str | None], ...] = (
    (r"edm_mean$", "StableDiffusionXLPipeline", None),  # Playground 2.5: as XL, with a schedule of its own
    (r"conditioner\.embedders\.1\.", "StableDiffusionXLPipeline", "sdxl"),
    (r"cond_stage_model\.model\.", "StableDiffusionPipeline", None),  # Stable Diffusion 2
    (r"model\.diffusion_model\.input_blocks\.", "StableDiffusionPipeline", "sd15"),
    (r"(model\.diffusion_model\.)?joint_blocks\.", "StableDiffusion3Pipeline", None),
    (r"(model\.diffusion_model\.)?double_blocks\.", "FluxPipeline", None),
)


def identify(path: Path, config: Path | None = None) -> tuple[str, Path | None]:
    """Return (pipeline class, folder of configs or None) of a single file, which is verified and not loaded.

    config: the folder that the user gives; it decides what the file is.
    Raises ModelError: damaged, a pickle, an adapter, of no known kind, or code in the folder.
    """
    check_safetensors(path)
    if path.suffix != ".safetensors":
        raise ModelError(f"{path.name}: by its content a safetensors file", "rename it to end in .safetensors")
    if config is not None:
        return check_config_folder(config), config
    shapes = tensor_shapes(path)
    for pattern, kind, carried in KINDS:
        if any(re.match(pattern, name) for name in shapes):
            if "v_pred" in shapes:
                message = f"{path.name} predicts velocity, which the scheduler of {kind} does not expect"
                raise ModelError(message, "give a folder with the model's configs: `config=FOLDER`")
            channels = shapes.get(FIRST_LAYER, (0, 4))[1:2]
            return kind, CARRIED / carried if carried and channels == (4,) else None  # 9: made for inpainting
    adapter = any("lora" in name.lower() for name in shapes)
    what = "an adapter (LoRA), not a model" if adapter else f"of no known kind (its tensors: {next(iter(shapes))[:60]})"
    hint = "give a whole model: Stable Diffusion 1, 2, XL, 3, FLUX.1; or a folder; or its configs with `config=FOLDER`"
    raise ModelError(f"{path.name} is {what}", hint)


def load(
    kind: Any, path: Path, config: Path | None, components: dict[str, Any], options: dict[str, Any], offline: bool
) -> Any:
    """Load a pipeline of class `kind` with the file's weights.

    Raises ModelUnavailable where its configs are not here and cannot be fetched, and whatever diffusers raises.
    """
    folder = config or _configs_of_its_kind(path, offline)
    if folder.parent == CARRIED:
        components = tokenizers(folder) | components
    return kind.from_single_file(str(path), config=str(folder), **options | {"local_files_only": True}, **components)


def tokenizers(folder: Path) -> dict[str, Any]:
    """Build the tokenizers of a folder of configs in the package, by component name."""
    from transformers import CLIPTokenizer

    vocabulary, merges = _clip_vocabulary()
    padding = {"tokenizer": "<|endoftext|>", "tokenizer_2": "!"}  # XL's second encoder was trained with zeros
    return {
        name: CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CLIP_TOKENS, pad_token=pad)
        for name, pad in padding.items()
        if name in read_json(folder / "model_index.json")
    }


def _clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Derive CLIP's tokens and their numbers from its list of merges: bytes, bytes at a word's end, merges."""
    lines = (CARRIED / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [(first, second) for first, second in (line.split() for line in lines[1:])]
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(code) for code in visible] + [chr(256 + k) for k in range(256 - len(visible))]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(first + second for first, second in merges)]
    return {token: k for k, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}, merges


def _configs_of_its_kind(path: Path, offline: bool) -> Path:
    """Fetch the configs of the model from which diffusers takes this file to be made.  Raises as `load` does."""
    import torch
    from diffusers.loaders.single_file_utils import fetch_diffusers_config

    shapes = {name: torch.empty(shape, device="meta") for name, shape in tensor_shapes(path).items()}
    base = str(fetch_diffusers_config(shapes)["pretrained_model_name_or_path"])
    folder = hub.fetch_configs(base, path.name, offline)
    check_config_folder(folder)
    return folder
