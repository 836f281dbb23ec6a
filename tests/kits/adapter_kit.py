"""Small adapters of random weights in the real formats, for the pipelines of `family_kit`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

UNET_LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj"]
TRANSFORMER_LAYERS = ["attn.to_q", "attn.to_k", "attn.to_v", "attn.add_q_proj", "ff.net.2", "proj_mlp"]
TEXT_LAYERS = ["q_proj", "k_proj", "v_proj", "out_proj"]
STRENGTH = 0.6  # of the random factors: what they change is seen, and the pictures stay in range


def load(folder: Path) -> Any:
    """The plain diffusers pipeline."""
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save_lora(model: Path, path: Path, *, seed: int = 1, rank: int = 2, alpha: int = 4, text: bool = True) -> Path:
    """A LoRA of random weights for every attention of a pipeline, made by peft and saved by diffusers."""
    import torch
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipe = load(model)
    network = "unet" if hasattr(pipe, "unet") else "transformer"
    layers = {network: UNET_LAYERS if network == "unet" else TRANSFORMER_LAYERS}
    if text:
        layers |= {"text_encoder": TEXT_LAYERS}
        layers |= {"text_encoder_2": TEXT_LAYERS} if "text_encoder_2" in pipe._lora_loadable_modules else {}
    weights: dict[str, Any] = {}
    generator = torch.Generator().manual_seed(seed)
    for name, targets in layers.items():
        part = getattr(pipe, name)
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, init_lora_weights="gaussian")
        part.add_adapter(config, adapter_name="default")
        state = get_peft_model_state_dict(part, adapter_name="default")
        weights[f"{name}_lora_layers"] = {
            key: torch.randn(value.shape, generator=generator) * STRENGTH / value.shape[-1] ** 0.5
            for key, value in state.items()
        }
        weights[f"{name}_lora_adapter_metadata"] = config.to_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    type(pipe).save_lora_weights(path.parent, weight_name=path.name, **weights)
    return path


def kohya_names(path: Path) -> dict[str, Any]:
    """The tensors of a Stable Diffusion LoRA file under kohya's names, with an alpha for each layer."""
    import torch
    from safetensors.torch import load_file

    tensors: dict[str, Any] = {}
    for key, value in load_file(path).items():
        part, _, rest = key.partition(".")
        layer, _, factor = rest.partition(".lora_")
        prefix = {"unet": "lora_unet", "text_encoder": "lora_te"}[part]
        if part == "text_encoder" and not layer.startswith("text_model"):
            layer = f"text_model.{layer}"
        name = f"{prefix}_{layer.replace('.', '_')}"
        tensors[f"{name}.{'lora_down' if factor.startswith('A') else 'lora_up'}.weight"] = value
        tensors[f"{name}.alpha"] = torch.tensor(4.0)
    return tensors


def save(tensors: Mapping[str, Any], path: Path, metadata: dict[str, str] | None = None) -> Path:
    """Tensors as a .safetensors file."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.clone().contiguous() for name, value in tensors.items()}, path, metadata)
    return path


def random(*shape: int, seed: int = 0) -> Any:
    """Numbers as wide as those of a text encoder's words."""
    import torch

    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def save_ip_adapter(model: Path, path: Path, *, code: int = 12, seed: int = 3) -> Path:
    """An IP-Adapter of random weights in the format of its family, with a tiny image encoder beside it."""
    import torch
    from transformers import CLIPVisionModelWithProjection

    pipe = load(model)
    tensors: dict[str, Any] = {}
    if hasattr(pipe, "unet"):
        wide = pipe.unet.config.cross_attention_dim
        for k, name in enumerate(pipe.unet.attn_processors):
            if name.endswith("attn2.processor"):
                inner = pipe.unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
                tensors[f"ip_adapter.{k}.to_k_ip.weight"] = random(inner, wide, seed=seed + k)
                tensors[f"ip_adapter.{k}.to_v_ip.weight"] = random(inner, wide, seed=seed + k + 100)
        head = "image_proj"
    else:
        wide, inner = pipe.transformer.config.joint_attention_dim, pipe.transformer.inner_dim
        for k in range(pipe.transformer.config.num_layers):
            block = f"double_blocks.{k}.processor.ip_adapter_double_stream"
            for which, shift in (("k", 0), ("v", 100)):
                tensors[f"{block}_{which}_proj.weight"] = random(inner, wide, seed=seed + k + shift)
                tensors[f"{block}_{which}_proj.bias"] = random(inner, seed=seed + k + shift + 50)
        head = "ip_adapter_proj_model"
    tensors |= {f"{head}.proj.weight": random(4 * wide, code, seed=seed), f"{head}.proj.bias": random(4 * wide)}
    tensors |= {f"{head}.norm.weight": random(wide, seed=seed), f"{head}.norm.bias": random(wide, seed=seed + 1)}
    save(tensors, path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPVisionModelWithProjection(_vision(code)).save_pretrained(path.parent / "image_encoder")
    return path


def _vision(code: int) -> Any:
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        projection_dim=code,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        dtype="float32",
    )


def draw(pipe: Any, prompt: str = "a horse", seed: int = 5, **options: Any) -> Any:
    """What plain diffusers draws: (H, W, 3) in [0, 255]."""
    import torch

    generator = [torch.Generator().manual_seed(seed)]
    settings = {"width": 32, "height": 32, "num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "np"}
    return pipe(prompt, generator=generator, **settings | options).images[0] * 255


def pixels(path: Path | str) -> Any:
    """The same of a file of ours."""
    import numpy as np

    from t2i.imaging import images

    return np.asarray(images.decode(Path(path)), np.float32)


OPTIONS = ("--guidance", "3", "--size", "32", "-s", "5")  # what `draw` does, on the command line
