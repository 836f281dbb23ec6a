"""Classification Accuracy Score (Ravuri and Vinyals 2019): train on generated pictures, test on real ones.

What a classifier learns from a model's pictures tells what is missing from them, which distances between features may
not see. Beside it stands the ceiling: the same network, trained as long on as many real pictures. The recipe is fixed:
a small residual network, AdamW with a rate that warms up and falls to zero, pictures mirrored at random.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from t2i import config
from t2i.data.batches import flips, visit_order
from t2i.data.tables import Table
from t2i.errors import DataError
from t2i.evaluation.extraction import sample
from t2i.evaluation.image_sets import ImageSet, class_indices
from t2i.evaluation.image_sources import open_stored
from t2i.imaging import images
from t2i.nn.resnet import ResNet
from t2i.randomness import derive_seed

CHANNELS, BLOCKS = (32, 64, 128), 1
BATCH, LR, DECAY = 128, 3e-3, 0.05
EPOCHS = 15
FEWEST = 2 * BATCH
CHUNK = 500  # pictures decoded, drawn or answered at once


def classification_accuracy_score(
    pictures: ImageSet,
    which: list[int],
    real: str,
    test: str,
    size: int,
    *,
    seed: int = 0,
    epochs: int = EPOCHS,
    device: str = "cpu",
    label: str | None = None,
    seen: Callable[[int, int], object] = lambda n, total: None,
) -> dict[str, Any]:
    """The accuracy on test of what learned from these pictures, and of what learned from as many real ones.

    real, test: data sets, as paths.  seen: called with how many more pictures were learned from, and of how many.
    Raises DataError: no classes, other classes in the two sets, fewer than FEWEST pictures that have one.
    """
    train, held_out = (open_stored(config.Source(path=path), size, label) for path in (real, test))
    if train.label is None or held_out.label is None:
        raise DataError("a classification accuracy score needs classes in both data sets", "name them with --label")
    classes = tuple(train.table.classes[train.label])
    if tuple(held_out.table.classes[held_out.label]) != classes:
        raise DataError(f"{held_out.name} has other classes of {held_out.label!r} than {train.name}")
    x, y = _labelled(pictures, which, classes)
    rows = sample(train.count, len(x), seed)
    most = train.table.images(rows), train.table.labels(rows, train.label)
    total = epochs * (len(x) + len(rows))
    found = {}
    for name, (pixels, labels) in {"value": (x, y), "ceiling": most}.items():
        net = learn(pixels, labels, len(classes), seed, epochs, device, lambda more: seen(more, total))
        found[name] = _accuracy(net, held_out.table, held_out.label)
    return {
        **found,
        "ratio": found["value"] / found["ceiling"] if found["ceiling"] else None,
        "learned_from": {"pictures": len(x), "real": len(rows), "data": train.name, "data_hash": train.table.hash},
        "tested_on": {"data": held_out.name, "data_hash": held_out.table.hash, "count": held_out.count},
        "epochs": epochs,
    }


def _labelled(pictures: ImageSet, which: list[int], classes: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """uint8 (N, 3, S, S) and classes (N,), of the pictures that have one."""
    parts = [which[k : k + CHUNK] for k in range(0, len(which), CHUNK)]
    labels = torch.cat([class_indices(pictures.labels(part), classes) for part in parts])
    if (known := int((labels >= 0).sum())) < FEWEST:
        raise DataError(
            f"a classification accuracy score needs at least {FEWEST} pictures with a class of the data, got {known}"
        )
    pixels = torch.cat([pictures.pixels(part) for part in parts])
    return pixels[labels >= 0], labels[labels >= 0]


def learn(
    pixels: Tensor,
    labels: Tensor,
    classes: int,
    seed: int = 0,
    epochs: int = EPOCHS,
    device: str = "cpu",
    seen: Callable[[int], object] = lambda n: None,
) -> ResNet:
    """A classifier of these pictures; a function of them and the seed.

    pixels: (N, 3, S, S) uint8.  labels: (N,) int64 below `classes`.
    """
    with torch.random.fork_rng(devices=[]):  # a run that is being trained may be asking
        torch.manual_seed(derive_seed(seed, "score's classifier"))
        net = ResNet(classes, CHANNELS, BLOCKS)
    net = net.to(device, memory_format=torch.channels_last).train()
    decayed = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    steps = max(1, epochs * len(pixels) // BATCH)
    optimizer = torch.optim.AdamW(groups, LR)
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LR, total_steps=steps + 1, pct_start=0.2, cycle_momentum=False
    )
    for step in range(steps):
        rows = visit_order(seed, len(pixels), step * BATCH, BATCH)
        x = images.from_uint8(pixels[rows])
        x = torch.where(flips(seed, step * BATCH, BATCH)[:, None, None, None], x.flip(3), x)
        loss = F.cross_entropy(net(x.to(device)), labels[rows].to(device), label_smoothing=0.1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        rate.step()
        seen(BATCH)
    return net.eval()


@torch.inference_mode()
def _accuracy(net: ResNet, table: Table, label: str) -> float:
    right = []
    for rows in torch.arange(table.count).split(CHUNK):
        answers = net(images.from_uint8(table.images(rows)).to(net.device)).argmax(1).cpu()
        right.append(answers == table.labels(rows, label))
    return float(torch.cat(right).double().mean())
