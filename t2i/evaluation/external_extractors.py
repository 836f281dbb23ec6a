"""Extractors from other projects: EfficientNet-Lite0, CLIP, DINOv2, and the original Inception.

CLIP and DINOv2 come in transformers' format: safetensors only, and none of their code. The weights of EfficientNet and
Inception exist only as pickles: such a file's sha256 is checked before it is opened, and it is opened for tensors only
(`weights_only`).
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
from t2i.imaging import images
from t2i.model_files.imagenet import SHA256, load_efficientnet
from t2i.model_files.library_logging import prepare_libraries, silence_libraries
from t2i.model_files.registry import read_json
from t2i.model_files.weight_files import check_safetensors
from t2i.nn.efficientnet import EfficientNetLite0

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_HASH = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
TOKENIZER = ("tokenizer.json", "vocab.json")  # one of them, where a CLIP model has a text encoder
PROMPTS = 100  # encoded at once
# It was trained at 224 pixels, and looks at pictures of 32 to 128 here. Of the photographs of dogs, elephants and
# guitars in PACS's validation file, 128 x 128 pixels, it names 41 of 51 at 128 pixels, and 45 at 160, 192 and 224
# (2026-11-28): 160 sees as much as 224, for half of the work.
EFFICIENTNET_SIZE = 160
AT_ONCE = 25
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@dataclass(frozen=True)
class Network:
    """A loaded network.  name: "clip:owner/name".  hash: sha256 of the weights.

    size, encode, text: as in `Extractor`.
    """

    name: str
    hash: str
    size: int
    preprocessing: str
    encode: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    text: Callable[[list[str]], Tensor] | None = None


def efficientnet(_: str, device: str, offline: bool) -> Network:
    """EfficientNet-Lite0 trained on ImageNet (Tan and Le 2019); features are its 1280 averages before the classifier.

    Raises ModelUnavailable: its weights are not installed.
    """
    net = load_efficientnet().to(device, memory_format=torch.channels_last)
    how = "(pixel - 127) / 128"
    return Network("efficientnet-lite0", SHA256, EFFICIENTNET_SIZE, how, partial(_see_efficientnet, net))


def _see_efficientnet(net: EfficientNetLite0, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
    parts = images.from_uint8(pixels).split(AT_ONCE)  # its first blocks take 8 MB for a picture
    return torch.cat([net.features(x.contiguous(memory_format=torch.channels_last)) for x in parts]), None


def clip(model: str, device: str, offline: bool) -> Network:
    """Load CLIP's image encoder (Radford et al. 2021); features are the projected embedding, as CLIPScore uses it."""
    folder = _folder(model, offline)
    prepare_libraries()
    from transformers import CLIPVisionModelWithProjection

    net = _transformer("clip", model, folder, CLIPVisionModelWithProjection, "image_embeds", CLIP, device)
    has_text = any((folder / name).is_file() for name in TOKENIZER)
    return replace(net, text=partial(_encode_prompts, folder, device)) if has_text else net


@torch.inference_mode()
def _encode_prompts(folder: Path, device: str, prompts: list[str]) -> Tensor:
    """Return CLIP's features of prompts, (B, D) on the CPU, truncating prompts that are too long.

    Raises ModelError.
    """
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
    """Load DINOv2 (Oquab et al. 2023); features are the class token after the last norm."""
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
    with silence_libraries() as messages:
        try:
            net = load.from_pretrained(folder, use_safetensors=True, local_files_only=True, dtype=torch.float32)
        except Exception as e:  # transformers raises nearly anything on a damaged folder
            reason = one_line(e)
            raise ModelError(f"cannot load {folder.name}: {type(e).__name__}: {reason}", "get the model again") from e
    # transformers fills missing weights with random ones and only logs it
    if any("newly initialized" in line or "MISSING" in line for line in messages):
        raise ModelError(f"cannot load {folder.name}: weights are missing", "get the model again")
    config = getattr(net.config, "vision_config", net.config)
    mean, std, size = _normalisation(folder, usual, int(config.image_size))
    encode = partial(_encode, net.to(device).eval(), output, torch.tensor(mean), torch.tensor(std))
    how = f"less {_numbers(mean)}, over {_numbers(std)}"
    name = f"{kind}:{Path(model).resolve().name if Path(model).is_dir() else model}"
    return Network(name, _hash(weights), size, how, encode)


def _encode(net: Any, output: str, mean: Tensor, std: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
    shape = (1, 3, 1, 1)
    x = (pixels.float() / 255 - mean.view(shape).to(pixels.device)) / std.view(shape).to(pixels.device)
    return getattr(net(pixel_values=x), output), None


def _normalisation(folder: Path, usual: tuple[Any, Any], size: int) -> tuple[list[float], list[float], int]:
    """Return mean and standard deviation of the channels, and the side, by the model's preprocessing or the usual one.

    Raises ModelError: a preprocessor_config.json without usable numbers.
    """
    path = folder / "preprocessor_config.json"
    own: Mapping[str, Any] = read_json(path) if path.is_file() else {}
    mean, std = own.get("image_mean", usual[0]), own.get("image_std", usual[1])
    crop = own.get("crop_size", size)
    crop = crop.get("height", size) if isinstance(crop, dict) else crop
    try:
        numbers = [float(v) for v in mean], [float(v) for v in std], int(crop)
    except (TypeError, ValueError):
        raise ModelError(f"{folder.name}/preprocessor_config.json: no numbers where they should be") from None
    if len(numbers[0]) != 3 or len(numbers[1]) != 3 or 0 in numbers[1]:
        raise ModelError(f"{folder.name}/preprocessor_config.json: image_mean and image_std are three numbers each")
    return numbers


def _numbers(values: list[float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"


def _folder(model: str, offline: bool) -> Path:
    """Return a local folder, or the snapshot of a Hub model, downloading it if needed and allowed.

    Raises ModelUnavailable.
    """
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
    """Return the sha256 of these files' contents in order; for one file, that file's own."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def inception(path: str, device: str, offline: bool) -> Network:
    """Load Inception as FID was defined with it (Heusel et al.

    2017), by torch-fidelity; features are its 2048 averages.
    path: of the weights; none: torch's folder of downloads.
    Raises ModelUnavailable: torch-fidelity or the weights are missing; ModelError: other weights.
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
            f"get {INCEPTION_FILE} from torch-fidelity's releases, and give --features inception:FILE",
        )
    check_inception(file)
    net = FeatureExtractorInceptionV3("inception-v3", ["2048"], feature_extractor_weights_path=str(file))
    how = "resampled to 299 x 299 pixels as TensorFlow 1 did, by torch-fidelity"
    return Network("inception", INCEPTION_HASH, 0, how, partial(_encode_inception, net.to(device).eval()))


def check_inception(file: Path) -> None:
    """Check that these are the original weights, before anything opens them.  Raises ModelError."""
    if (found := _hash([file])) != INCEPTION_HASH:
        raise ModelError(
            f"{file.name} is not the original Inception: sha256 {found[:12]}, expected {INCEPTION_HASH[:12]}",
            "it was not opened; get the file again",
        )


def _encode_inception(net: Any, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
    return net(pixels)[0], None
