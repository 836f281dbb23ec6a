"""What looks at pictures: networks from whose features two sets of pictures are compared.

    extractor = load_extractor("judge")
    seen = extractor.look(pixels)           # (B, 3, S, S) uint8 -> features, and logits where it knows classes

Every extractor gets the same pixels: the centred square, resampled (Lanczos) to its own size, 8 bits; what it does to
them afterwards stands in `preprocessing`. A batch is filled up to BATCH, so that what a picture's features are does not
depend on how many others there are: the same kernels compute it every time.
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
from t2i.evaluation.external_extractors import clip, dinov2, inception
from t2i.imaging import images
from t2i.model_files.library_logging import silence_libraries
from t2i.model_files.registry import read_json
from t2i.model_files.weight_files import check_safetensors, weights_hash
from t2i.nn.resnet import ResNet
from t2i.pipelines.loading.load import choose_device

BATCH = 100
JUDGES = {name: Path(__file__).parents[1] / name for name in ("judge", "judge64")}
JUDGE_FILE = "judge.json"  # of an embedded judge: what a run says in its config
PIXELS = 16  # of a side, whose numbers are the features of `pixels`

Questions = dict[str, tuple[str, ...]]  # what a network is asked of a picture, and the classes of each question
See = Callable[[Tensor], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class Extractor:
    """A network that looks at pictures, and everything that decides what it sees.

    name: as asked for, without folders.  hash: sha256 of its weights.
    size: pixels per side that it takes; 0: it takes pictures as they are, and resamples them in its own way.
    preprocessing: from a picture of any size to what the network takes.
    questions: what it is asked, "" where there is one alone; with no classes, where it knows none.
    see: (BATCH, 3, S, S) uint8 on the device -> features (BATCH, D), and logits (BATCH, classes of all) or None.
    text: of CLIP, prompts -> features (B, D), where its tokenizer is there.
    """

    name: str
    hash: str
    size: int
    preprocessing: str
    questions: Questions
    see: See
    device: str = "cpu"
    text: Callable[[list[str]], Tensor] | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Of the first question."""
        return next(iter(self.questions.values()))

    @property
    def tag(self) -> str:
        """What a number must be named after: name@hash."""
        return f"{self.name}@{self.hash[:8]}"

    @property
    def frechet(self) -> str:
        """The right name of a Frechet distance over these features: FID is Inception's alone."""
        return "FID" if self.name == "inception" else f"fcd[{self.tag}]"

    @torch.inference_mode()
    def look(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features (B, D), and logits (B, classes) or None, float32 on the CPU.  pixels: (B, 3, S, S) uint8."""
        found = [self._look(some) for some in pixels.split(BATCH)]
        logits = [some for _, some in found if some is not None]
        return torch.cat([features for features, _ in found]), torch.cat(logits) if logits else None

    def _look(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        full = pixels.new_zeros(BATCH, *pixels.shape[1:])
        full[: len(pixels)] = pixels
        features, logits = self.see(full.to(self.device))
        here = slice(len(pixels))
        return features[here].float().cpu(), None if logits is None else logits[here].float().cpu()


def load_extractor(spec: str, device: str | None = None, offline: bool = False) -> Extractor:
    """The extractor that a user asks for: a key of KINDS, with its argument after a colon, or a classifier's run.

    Raises UsageError: no such thing; ModelError, ModelUnavailable: its files.
    """
    kind, _, argument = spec.partition(":")
    device = choose_device(device)
    if kind in KINDS and (kind == "inception" or bool(argument) == (kind in ("clip", "dinov2"))):
        return KINDS[kind](argument, device, offline)
    if Path(spec).is_dir():
        return classifier(Path(spec), device)
    known = "judge, judge64, pixels, clip:MODEL, dinov2:MODEL, inception"
    raise UsageError(f"features: got {spec[:60]!r}, allowed are {known}, or the folder of a classifier's run")


def judge(name: str, _: str, device: str, offline: bool) -> Extractor:
    """A classifier inside the package, frozen, so that numbers of different users and years compare."""
    folder = JUDGES[name]
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"this installation of t2i carries no {name} (t2i/{name})", "--features runs/CLASSIFIER takes one of yours"
        )
    return load_resnet(name, folder, int(read_json(folder / JUDGE_FILE)["size"]), device)


def classifier(run: Path, device: str) -> Extractor:
    """A finished run of `t2i train classifier`.  Raises ModelError."""
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
    """A classifier's exported folder as an extractor.  Raises ModelError."""
    weights = sorted(folder.glob("*.safetensors"))
    for file in weights:
        check_safetensors(file)
    try:
        with silence_libraries():
            net = ResNet.from_pretrained(folder, use_safetensors=True, torch_dtype=torch.float32).to(device).eval()
        told = read_json(folder / "classes.json")
        questions = {str(k): tuple(map(str, v)) for k, v in told.get("questions", {"": told["classes"]}).items()}
    except ModelError:
        raise
    except Exception as e:  # diffusers raises nearly anything on a damaged folder
        reason = one_line(e)
        raise ModelError(f"cannot load the classifier {name}: {type(e).__name__}: {reason}") from e
    hash = weights_hash(weights, folder)
    assert hash is not None, "a classifier is small enough to be hashed"
    return Extractor(name, hash, size, f"{_square(size)}, [-1, 1]", questions, partial(_see_resnet, net), device)


def _see_resnet(net: ResNet, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
    features = net.features(images.from_uint8(pixels))
    return features, net.head(features)


def pixels(_: str, device: str, offline: bool) -> Extractor:
    """No network: the picture itself, small."""
    what = f"{_square(PIXELS)}, [-1, 1]"
    return Extractor("pixels", hashlib.sha256(what.encode()).hexdigest(), PIXELS, what, {"": ()}, _see_pixels, device)


def _see_pixels(pixels: Tensor) -> tuple[Tensor, Tensor | None]:
    return images.from_uint8(pixels).flatten(1), None


def _square(size: int) -> str:
    return f"centred square, Lanczos to {size} x {size} pixels, 8 bits"


def _network(load: Callable[[str, str, bool], Any], argument: str, device: str, offline: bool) -> Extractor:
    """An extractor of a network from elsewhere."""
    net = load(argument, device, offline)
    what = f"{_square(net.size) if net.size else 'centred square'}, {net.preprocessing}"
    return Extractor(net.name, net.hash, net.size, what, {"": ()}, net.see, device, net.text)


KINDS: dict[str, Callable[[str, str, bool], Extractor]] = {
    **{name: partial(judge, name) for name in JUDGES},
    "pixels": pixels,
    "clip": partial(_network, clip),
    "dinov2": partial(_network, dinov2),
    "inception": partial(_network, inception),
}
