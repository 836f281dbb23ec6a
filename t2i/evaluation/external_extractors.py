"""Networks from elsewhere as extractors: CLIP, DINOv2, and the original Inception.

CLIP and DINOv2 come in transformers' format: safetensors only, no code of theirs. Inception's weights exist as a pickle
alone: the file's sha256 is checked before it is opened, and torch-fidelity opens it for tensors only (`weights_only`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t2i.errors import ModelError, ModelUnavailable, one_line
from t2i.model_files.library_logging import prepare_libraries, silence_libraries
from t2i.model_files.registry import read_json
from t2i.model_files.weight_files import check_safetensors

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_HASH = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
TOKENIZER = ("tokenizer.json", "vocab.json")  # one of them, where a CLIP model reads text
PROMPTS = 100  # read at once
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@dataclass(frozen=True)
class Network:
    """name: "clip:owner/name".  hash: sha256 of the weights.  size, see, text: as an `Extractor` has them."""

    name: str
    hash: str
    size: int
    preprocessing: str
    see: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    text: Callable[[list[str]], Tensor] | None = None


def clip(model: str, device: str, offline: bool) -> Network:
    """CLIP's image encoder (Radford et al. 2021); features are the projected embedding, as CLIPScore uses it."""
    folder = _folder(model, offline)
    prepare_libraries()
    from transformers import CLIPVisionModelWithProjection

    net = _transformer("clip", model, folder, CLIPVisionModelWithProjection, "image_embeds", CLIP, device)
    readable = any((folder / name).is_file() for name in TOKENIZER)
    return replace(net, text=partial(_read, folder, device)) if readable else net


@torch.inference_mode()
def _read(folder: Path, device: str, prompts: list[str]) -> Tensor:
    """CLIP's features of prompts, (B, D) on the CPU; what is longer than it takes is cut.  Raises ModelError."""
    from transformers import AutoTokenizer, CLIPTextModelWithProjection

    with silence_libraries():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            load: Any = CLIPTextModelWithProjection
            net = load.from_pretrained(folder, use_safetensors=True, local_files_only=True, dtype=torch.float32)
        except Exception as e:  # transformers raises nearly anything on a damaged folder
            reason = one_line(e)
            raise ModelError(f"cannot load {folder.name}: {type(e).__name__}: {reason}", "get the model again") from e
    net = net.to(device).eval()
    most = int(net.config.max_position_embeddings)
    found = []
    for first in range(0, len(prompts), PROMPTS):
        some = prompts[first : first + PROMPTS]
        tokens = tokenizer(some, padding=True, truncation=True, max_length=most, return_tensors="pt").to(device)
        found.append(net(tokens["input_ids"], tokens["attention_mask"]).text_embeds.float().cpu())
    return torch.cat(found)


def dinov2(model: str, device: str, offline: bool) -> Network:
    """DINOv2 (Oquab et al. 2023); features are the class token after the last norm."""
    folder = _folder(model, offline)
    prepare_libraries()
    from transformers import Dinov2Model

    return _transformer("dinov2", model, folder, Dinov2Model, "pooler_output", IMAGENET, device)


def _transformer(
    kind: str, model: str, folder: Path, load: Any, output: str, usual: tuple[Any, Any], device: str
) -> Network:
    found = read_json(folder / "config.json")
    if "auto_map" in found:
        raise ModelError(f"{folder.name} carries its own code; t2i never runs code that comes with a model")
    types = {found.get("model_type"), (found.get("vision_config") or {}).get("model_type")}
    if not {kind, f"{kind}_vision_model"} & types:
        raise ModelError(f"{folder.name} is a {found.get('model_type')!r}, not a {kind} model")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ModelError(f"{folder.name}: no .safetensors weights", "use a model whose weights are .safetensors files")
    for file in weights:
        check_safetensors(file)
    with silence_libraries() as said:
        try:
            net = load.from_pretrained(folder, use_safetensors=True, local_files_only=True, dtype=torch.float32)
        except Exception as e:  # transformers raises nearly anything on a damaged folder
            reason = one_line(e)
            raise ModelError(f"cannot load {folder.name}: {type(e).__name__}: {reason}", "get the model again") from e
    if any("newly initialized" in line or "MISSING" in line for line in said):
        raise ModelError(f"cannot load {folder.name}: weights are missing", "get the model again")
    config = getattr(net.config, "vision_config", net.config)
    mean, deviation, size = _normalisation(folder, usual, int(config.image_size))
    see = partial(_see, net.to(device).eval(), output, torch.tensor(mean), torch.tensor(deviation))
    how = f"less {_numbers(mean)}, over {_numbers(deviation)}"
    name = f"{kind}:{Path(model).resolve().name if Path(model).is_dir() else model}"
    return Network(name, _hash(weights), size, how, see)


def _see(net: Any, output: str, mean: Tensor, deviation: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
    shape = (1, 3, 1, 1)
    x = (pixels.float() / 255 - mean.view(shape).to(pixels.device)) / deviation.view(shape).to(pixels.device)
    return getattr(net(pixel_values=x), output), None


def _normalisation(folder: Path, usual: tuple[Any, Any], size: int) -> tuple[list[float], list[float], int]:
    """Mean and deviation of the channels, and the side: what the model's own preprocessing says, else what is usual."""
    path = folder / "preprocessor_config.json"
    said: Mapping[str, Any] = read_json(path) if path.is_file() else {}
    mean, deviation = said.get("image_mean", usual[0]), said.get("image_std", usual[1])
    crop = said.get("crop_size", size)
    crop = crop.get("height", size) if isinstance(crop, dict) else crop
    try:
        numbers = [float(v) for v in mean], [float(v) for v in deviation], int(crop)
    except (TypeError, ValueError):
        raise ModelError(f"{folder.name}/preprocessor_config.json: no numbers where they should be") from None
    if len(numbers[0]) != 3 or len(numbers[1]) != 3 or 0 in numbers[1]:
        raise ModelError(f"{folder.name}/preprocessor_config.json: image_mean and image_std are three numbers each")
    return numbers


def _numbers(values: list[float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"


def _folder(model: str, offline: bool) -> Path:
    """A local folder, or the snapshot of a Hub model, downloaded where that is needed and allowed."""
    if Path(model).is_dir():
        return Path(model)
    prepare_libraries()
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import is_offline_mode

    wanted = ["config.json", "preprocessor_config.json", "model*.safetensors", "model.safetensors.index.json"]
    wanted += ["tokenizer*.json", "vocab.json", "merges.txt", "special_tokens_map.json"]
    local = offline or is_offline_mode()
    try:
        return Path(snapshot_download(model, allow_patterns=wanted, local_files_only=local))
    except Exception as e:  # the Hub library's own errors, the network's, the disk's
        reason = one_line(e, 160)
        raise ModelUnavailable(
            f"{model[:80]!r} is no folder, and not available from the Hub: {type(e).__name__}: {reason}",
            f"with a network: hf download {model[:80]}",
        ) from None


def _hash(files: list[Path]) -> str:
    """sha256 over the contents of these files in order; of one file its own."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def inception(path: str, device: str, offline: bool) -> Network:
    """Inception as FID was defined with it (Heusel et al. 2017), by torch-fidelity; features are its 2048 averages.

    path: of the weights; none: where torch keeps what it downloads.  Raises ModelUnavailable: no extra, no weights.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError:
        raise ModelUnavailable(
            "inception needs torch-fidelity, which is not installed", "pip install 't2i[fid]'"
        ) from None
    file = Path(path) if path else Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if not file.is_file():
        raise ModelUnavailable(
            f"the weights of Inception are not at {file}",
            f"get {INCEPTION_FILE} from torch-fidelity's releases, and say --features inception:FILE",
        )
    check_inception(file)
    net = FeatureExtractorInceptionV3("inception-v3", ["2048"], feature_extractor_weights_path=str(file))
    how = "resampled to 299 x 299 pixels as TensorFlow 1 did, by torch-fidelity"
    return Network("inception", INCEPTION_HASH, 0, how, partial(_see_inception, net.to(device).eval()))


def check_inception(file: Path) -> None:
    """Raises ModelError unless these are the original weights, before anything opens them."""
    if (found := _hash([file])) != INCEPTION_HASH:
        raise ModelError(
            f"{file.name} is not the original Inception: sha256 {found[:12]}, expected {INCEPTION_HASH[:12]}",
            "it was not opened; get the file again",
        )


def _see_inception(net: Any, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
    return net(pixels)[0], None
