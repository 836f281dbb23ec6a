"""Feature extractors: networks in whose features two sets of images are compared.

    extractor = load_extractor("judge")
    features, logits = extractor.extract(pixels)    # (B, 3, S, S) uint8 -> (B, D), and logits where it has classes

Every extractor gets the same pixels: the centred square, resampled (Lanczos) to its own size, 8 bits; what it does with
them afterwards stands in `preprocessing`. A batch is padded to BATCH, so that the features of an image do not depend on
the number of others: every batch runs the same kernels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t2i import config
from t2i.errors import ConfigError, ModelError, UsageError, one_line
from t2i.evaluation.external_extractors import clip, dinov2, efficientnet, inception
from t2i.imaging import images
from t2i.model_files.library_logging import silence_libraries
from t2i.model_files.registry import read_json
from t2i.model_files.weight_files import check_safetensors, weights_hash
from t2i.nn.resnet import ResNet
from t2i.pipelines.loading.load import choose_device

BATCH = 100
JUDGES = {name: Path(__file__).parents[1] / name for name in ("judge", "judge64")}
JUDGE_FILE = "judge.json"  # of an embedded judge, in place of a run's config
PIXELS = 16  # side of the image that is the features of `pixels`

Questions = dict[str, tuple[str, ...]]  # question -> its classes; a network answers each of every image
Encode = Callable[[Tensor], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class Extractor:
    """A network and everything that determines its features.

    name: as given by the user, without folders.  hash: sha256 of its weights.
    size: pixels per side of its input; 0: it takes images as they are, and resamples them in its own way.
    preprocessing: from an image of any size to the network's input.
    questions: those that it answers, "" where there is only one; with no classes, where it is no classifier.
    encode: (BATCH, 3, S, S) uint8 on the device -> features (BATCH, D), and logits (BATCH, classes of all) or None.
    text: of CLIP, prompts -> features (B, D), where its tokenizer is there.
    """

    name: str
    hash: str
    size: int
    preprocessing: str
    questions: Questions
    encode: Encode
    device: str = "cpu"
    text: Callable[[list[str]], Tensor] | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the classes of the first question."""
        return next(iter(self.questions.values()))

    @property
    def tag(self) -> str:
        """Return name@hash, which identifies the extractor beside a number."""
        return f"{self.name}@{self.hash[:8]}"

    @property
    def frechet(self) -> str:
        """Return the right name of a Frechet distance over these features: FID is Inception's alone."""
        return "FID" if self.name == "inception" else f"fcd[{self.tag}]"

    @torch.inference_mode()
    def extract(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return features (B, D), and logits (B, classes) or None, float32 on the CPU.  pixels: (B, 3, S, S) uint8."""
        found = [self._extract_batch(some) for some in pixels.split(BATCH)]
        logits = [some for _, some in found if some is not None]
        return torch.cat([features for features, _ in found]), torch.cat(logits) if logits else None

    def _extract_batch(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        full = pixels.new_zeros(BATCH, *pixels.shape[1:])
        full[: len(pixels)] = pixels
        features, logits = self.encode(full.to(self.device))
        here = slice(len(pixels))
        return features[here].float().cpu(), None if logits is None else logits[here].float().cpu()


def load_extractor(spec: str, device: str | None = None, offline: bool = False) -> Extractor:
    """Load an extractor: a key of KINDS, with its argument after a colon, or the folder of a classifier's run.

    Raises UsageError: no such extractor; ModelError, ModelUnavailable: its files.
    """
    kind, _, argument = spec.partition(":")
    device = choose_device(device)
    if kind in KINDS and (kind == "inception" or bool(argument) == (kind in ("clip", "dinov2"))):
        return KINDS[kind](argument, device, offline)
    if Path(spec).is_dir():
        return classifier(Path(spec), device)
    known = "judge, judge64, pixels, efficientnet-lite0, clip:MODEL, dinov2:MODEL, inception"
    raise UsageError(f"features: got {spec[:60]!r}, allowed are {known}, or the folder of a classifier's run")


def judge(name: str, _: str, device: str, offline: bool) -> Extractor:
    """Load a classifier from inside the package, frozen, so that numbers of different users and years compare.

    Raises ModelError: this installation has none.
    """
    folder = JUDGES[name]
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"this installation of t2i carries no {name} (t2i/{name})", "--features runs/CLASSIFIER takes one of yours"
        )
    return load_resnet(name, folder, int(read_json(folder / JUDGE_FILE)["size"]), device)


def classifier(run: Path, device: str) -> Extractor:
    """Load the classifier of a finished run of `t2i train classifier`.  Raises ModelError."""
    export = run / "export"
    if not (export / "config.json").is_file():
        raise ModelError(f"{run} is no finished run of a classifier: it has no export", "t2i train classifier")
    try:
        settings = config.parse_yaml((run / "config.yaml").read_text(encoding="utf-8"), f"{run.name}/config.yaml")
        family, size = settings["family"], int(settings["data"]["size"])
    except (OSError, UnicodeDecodeError, ConfigError, KeyError, TypeError, ValueError):
        raise ModelError(f"{run}/config.yaml cannot be read as a run's config") from None
    if family != "classifier":
        raise ModelError(f"{run} is a run of family {family!r}, not of a classifier", "a classifier judges the others")
    return load_resnet(run.resolve().name, export, size, device)


def load_resnet(name: str, folder: Path, size: int, device: str) -> Extractor:
    """Load a classifier's exported folder as an extractor.  Raises ModelError."""
    weights = sorted(folder.glob("*.safetensors"))
    for file in weights:
        check_safetensors(file)
    try:
        with silence_libraries():
            net = ResNet.from_pretrained(folder, use_safetensors=True, torch_dtype=torch.float32).to(device).eval()
        found = read_json(folder / "classes.json")
        questions = {str(k): tuple(map(str, v)) for k, v in found.get("questions", {"": found["classes"]}).items()}
    except ModelError:
        raise
    except Exception as e:  # diffusers raises nearly anything on a damaged folder
        reason = one_line(e)
        raise ModelError(f"cannot load the classifier {name}: {type(e).__name__}: {reason}") from e
    hash = weights_hash(weights, folder)
    assert hash is not None, "a classifier is small enough to be hashed"
    return Extractor(name, hash, size, f"{_square(size)}, [-1, 1]", questions, partial(_encode_resnet, net), device)


def _encode_resnet(net: ResNet, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
    features = net.features(images.from_uint8(pixels))
    return features, net.head(features)


def pixels(_: str, device: str, offline: bool) -> Extractor:
    """Return the extractor without a network: the image itself, downsampled."""
    what = f"{_square(PIXELS)}, [-1, 1]"
    return Extractor(
        "pixels", hashlib.sha256(what.encode()).hexdigest(), PIXELS, what, {"": ()}, _encode_pixels, device
    )


def _encode_pixels(pixels: Tensor) -> tuple[Tensor, Tensor | None]:
    return images.from_uint8(pixels).flatten(1), None


def _square(size: int) -> str:
    return f"centred square, Lanczos to {size} x {size} pixels, 8 bits"


def _network(load: Callable[[str, str, bool], Any], argument: str, device: str, offline: bool) -> Extractor:
    """Wrap a network of another project as an extractor."""
    net = load(argument, device, offline)
    what = f"{_square(net.size) if net.size else 'centred square'}, {net.preprocessing}"
    return Extractor(net.name, net.hash, net.size, what, {"": ()}, net.encode, device, net.text)


KINDS: dict[str, Callable[[str, str, bool], Extractor]] = {
    **{name: partial(judge, name) for name in JUDGES},
    "pixels": pixels,
    "efficientnet-lite0": partial(_network, efficientnet),
    "clip": partial(_network, clip),
    "dinov2": partial(_network, dinov2),
    "inception": partial(_network, inception),
}
