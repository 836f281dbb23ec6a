"""What the tests of editing share: pictures, a ControlNet in each family's format, and what plain diffusers draws."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from t2i.imaging import images

IMAGE_TO_IMAGE = {
    "sd15": "StableDiffusionImg2ImgPipeline",
    "sdxl": "StableDiffusionXLImg2ImgPipeline",
    "sd3": "StableDiffusion3Img2ImgPipeline",
    "flux": "FluxImg2ImgPipeline",
}
INPAINTING = {
    "sd15": "StableDiffusionInpaintPipeline",
    "sdxl": "StableDiffusionXLInpaintPipeline",
    "sd3": "StableDiffusion3InpaintPipeline",
    "flux": "FluxInpaintPipeline",
}
GUIDED = {
    "sd15": "StableDiffusionControlNetPipeline",
    "sdxl": "StableDiffusionXLControlNetPipeline",
    "sd3": "StableDiffusion3ControlNetPipeline",
    "flux": "FluxControlNetPipeline",
}
GUIDED_IMAGE_TO_IMAGE = {
    "sd15": "StableDiffusionControlNetImg2ImgPipeline",
    "sdxl": "StableDiffusionXLControlNetImg2ImgPipeline",
    "flux": "FluxControlNetImg2ImgPipeline",
}


def picture(size: tuple[int, int] = (32, 32), shift: int = 0) -> Image.Image:
    """Colours that run from edge to edge, so that every pixel has its own."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    channels = [x, y, (x + y + shift / 7) / 2 % 1]
    return Image.fromarray((np.stack(channels, -1) * 255).round().astype(np.uint8))


def half_mask(size: tuple[int, int] = (32, 32)) -> Image.Image:
    """White on the right, where the picture is to be painted anew."""
    mask = Image.new("L", size, 0)
    mask.paste(255, (size[0] // 2, 0, *size))
    return mask


def plain(
    pipeline: str, folder: Path, seeds: list[int], prompt: str = "a horse", control: Path | None = None, **options: Any
) -> list[Any]:
    """float32 (H, W, 3) in [0, 1] for each seed: what diffusers' own pipeline of this name draws."""
    import diffusers
    import torch

    networks = {} if control is None else {"controlnet": load_network(control)}
    pipe = getattr(diffusers, pipeline).from_pretrained(folder, **networks)
    pipe.set_progress_bar_config(disable=True)
    known = inspect.signature(type(pipe).__call__).parameters
    options |= {name: 32 for name in ("width", "height") if name in known and name not in options}
    drawn = pipe(
        [prompt] * len(seeds),
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="np",
        **options,
    )
    return list(drawn.images)


def gap(path: Path | str, theirs: Any) -> float:
    """The largest difference of a saved picture from (H, W, 3) in [0, 1], in 255ths."""
    return float(np.abs(np.asarray(images.decode(Path(path)), np.float32) - theirs * 255).max())


def pixels(path: Path | str) -> Any:
    return np.asarray(images.decode(Path(path)), np.int16)


def load_network(folder: Path) -> Any:
    import json

    import diffusers

    kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["_class_name"]
    return getattr(diffusers, kind).from_pretrained(folder)


def save_control(model: Path, folder: Path, seed: int = 0) -> Path:
    """A ControlNet of random weights for a family's small pipeline, in its real format."""
    import diffusers
    import torch

    pipe = diffusers.DiffusionPipeline.from_pretrained(model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if hasattr(pipe, "unet"):
            network = diffusers.ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4, 8, 8))
        elif "Flux" in type(pipe).__name__:
            network = diffusers.FluxControlNetModel.from_transformer(
                pipe.transformer, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2
            )
        else:
            sizes = dict(pipe.transformer.config) | {"num_layers": 1, "extra_conditioning_channels": 0}
            network = diffusers.SD3ControlNetModel.from_config(sizes)
        for name, weight in network.named_parameters():
            if "controlnet" in name or "controlnet_x_embedder" in name or "pos_embed_input" in name:
                weight.data.normal_(std=0.3)  # they begin at nothing, so that training begins with the base model
    network.save_pretrained(folder)
    return folder
