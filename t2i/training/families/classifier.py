"""`t2i train classifier`: the discriminative model, P(Y given X), whose answer and features judge the generative ones.

The export is the averaged ResNet, and beside it facts.json: how well it tells held-out images apart, class by class,
and how far its certainty can be trusted.

One network may be asked several questions of a picture, what it shows and in which style: its logits are those of the
questions, one after the other. A picture without an answer to a question teaches nothing about that one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from t2i import atomic
from t2i.atomic import file_hash
from t2i.config import ClassifierConfig
from t2i.data.tables import Table, load_table
from t2i.distributed import is_main
from t2i.errors import DataError
from t2i.imaging import images
from t2i.nn.resnet import ResNet
from t2i.randomness import derive_seed, generator
from t2i.training.augment import erase, translate
from t2i.training.batch import class_numbers, classes_of, pictures
from t2i.training.cost_estimate import FORWARD_AND_BACKWARD, CostEstimate, blank_batch, class_count, size, work
from t2i.training.engine import Engine, Step
from t2i.training.runs.run_folder import Launch, RunFolder

Questions = dict[str, tuple[str, ...]]  # label columns, and the classes of each

FACTS, CLASSES, WEIGHTS = "facts.json", "classes.json", "diffusion_pytorch_model.safetensors"
BINS = 15  # of certainty, for the calibration error


def estimate_cost(config: ClassifierConfig) -> CostEstimate:
    """What this config trains."""
    net = build_resnet(config, class_count(config))
    parameters = {"ResNet": size(net)}
    x, _ = blank_batch(config)
    net = net.to("meta").eval()
    return CostEstimate(parameters, FORWARD_AND_BACKWARD * work(lambda: net(x)))


def train_classifier(config: ClassifierConfig, run: Path, launch: Launch = Launch()) -> Path:
    """Train, or go on training, a classifier.  Returns the exported folder.

    Raises T2IError: data, config, checkpoint and non-finite faults.
    """
    progress = launch.progress and is_main()
    folder = RunFolder(run)
    folder.begin(config, launch)
    table, held_out = load_table(config.data, progress), load_table(config.held_out, progress)
    questions = {column: classes_of(table, column) for column in config.questions}
    for column, classes in questions.items():
        if classes_of(held_out, column) != classes:
            raise DataError(f"held_out has other classes of {column!r} than data has")
    count = sum(map(len, questions.values()))
    engine = Engine(config, folder, build_resnet(config, count), table.hash, launch)
    table = table.to(engine.device)
    for step in engine.steps():
        x, rows = pictures(table, config, step)
        labels = truths(table, config, rows).to(engine.device)
        logits = engine.module(augmented(x, config, step))
        loss, accuracy = learn(logits, labels, questions, config.smoothing)
        engine.update(step, loss, accuracy=accuracy)
        if engine.crossed(config.sample_every):
            average = engine.average()
            if is_main():
                logits, labels = answers(network(engine, average, config, count), config, held_out)
                facts = judge_all(logits, labels, questions)
                folder.write_evaluation(engine.images_seen, {k: v for k, v in facts.items() if isinstance(v, float)})
    average = engine.average()
    if is_main():
        net = network(engine, average, config, count)
        logits, labels = answers(net, config, held_out)
        export(net, questions, judge_all(logits, labels, questions), engine.images_seen, folder.export)
    return folder.export


def build_resnet(config: ClassifierConfig, classes: int) -> ResNet:
    """A freshly initialised network; the weights depend on the seed alone."""
    torch.manual_seed(derive_seed(config.seed, "classifier weights"))
    net = config.model
    return ResNet(classes, net.channels, net.blocks, net.stem_stride)


def truths(table: Table, config: ClassifierConfig, rows: Tensor) -> Tensor:
    """Classes of rows, a column for each question: (b, Q) int64, -1 where there is none.

    Raises DataError: a row without a class, where there is no other question.
    """
    columns = config.questions
    if len(columns) == 1:
        return class_numbers(table, columns[0], rows)[:, None]
    return torch.stack([table.labels(rows, column) for column in columns], 1)


def learn(logits: Tensor, labels: Tensor, questions: Questions, smoothing: float) -> tuple[Tensor, Tensor]:
    """The loss, a sum over the questions, and the share of right answers.  logits: (b, K).  labels: (b, Q), or -1.

    A question's loss is its sum over the pictures with an answer, over all pictures: so that parts of a batch, shared
    by processes or taken one after the other, have the mean of the whole.
    """
    losses, right = [], []
    for part, label in zip(logits.split([*map(len, questions.values())], 1), labels.unbind(1), strict=True):
        losses.append(F.cross_entropy(part, label, ignore_index=-1, reduction="sum", label_smoothing=smoothing))
        right.append((part.argmax(1) == label)[label >= 0])
    return torch.stack(losses).sum() / len(labels), torch.cat(right).float().mean()


def augmented(x: Tensor, config: ClassifierConfig, step: Step) -> Tensor:
    """This process's images of a step, moved and partly hidden as the draw for the global batch says."""
    most, side = config.augment.shift, config.augment.erase
    draw = generator(config.seed, "augment", step.index)
    shift = torch.randint(-most, most + 1, (step.batch, 2), generator=draw)[step.share]
    centre = torch.randint(config.data.size, (step.batch, 2), generator=draw)[step.share]
    if most:
        x = translate(x, shift.to(x.device))
    return erase(x, centre.to(x.device), side) if side else x


def network(engine: Engine, weights: dict[str, Tensor], config: ClassifierConfig, classes: int) -> ResNet:
    """Averaged weights as a network on the engine's device."""
    net = build_resnet(config, classes)
    net.load_state_dict(weights)
    return net.to(engine.device).eval()


@torch.inference_mode()
def answers(net: ResNet, config: ClassifierConfig, table: Table) -> tuple[Tensor, Tensor]:
    """Logits (N, classes) in float64 and labels (N, questions) of all images of a table, on the CPU."""
    rows = torch.arange(table.count)
    logits = [net(images.from_uint8(table.images(some)).to(net.device)).double().cpu() for some in rows.split(500)]
    return torch.cat(logits), truths(table, config, rows)


def judge_all(logits: Tensor, labels: Tensor, questions: Questions) -> dict[str, Any]:
    """How well answers fit.  logits: (N, K) float64.  labels: (N, Q) int64, -1 where there is none.

    Of one question what `judge` says of it. Of several its numbers over all answers, and `questions`, what it says of
    each. Raises DataError: a question that no picture answers.
    """
    found = {}
    parts = logits.split([*map(len, questions.values())], 1)
    for name, part, label in zip(questions, parts, labels.unbind(1), strict=True):
        known = label >= 0
        if not known.any():
            raise DataError(f"held_out has no picture with a class of {name!r}")
        found[name] = judge(part[known], label[known])
    if len(found) == 1:
        return next(iter(found.values()))
    weights = dict(zip(found, (labels >= 0).double().mean(0).tolist(), strict=True))
    means = {
        key: sum(weights[name] * facts[key] for name, facts in found.items()) / sum(weights.values())
        for key in ("accuracy", "cross_entropy", "calibration_error")
    }
    return means | {"questions": found}


def judge(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """How well answers fit.  logits: (N, K) float64.  labels: (N,) int64.

    accuracy, and of each class (None where there is no image); cross_entropy in nats; calibration_error, the mean
    distance of certainty and accuracy over BINS equal bins of certainty (Guo et al. 2017, eq. 3); confusion, the number
    of images by true class (rows) and answer (columns).
    """
    n, k = logits.shape
    certainty, answer = logits.softmax(1).max(1)
    right = (answer == labels).double()
    confusion = torch.zeros(k, k, dtype=torch.int64).index_put_(
        (labels, answer), torch.ones(n, dtype=torch.int64), accumulate=True
    )
    which = (certainty * BINS).long().clamp(max=BINS - 1)
    gaps = torch.zeros(BINS, dtype=torch.float64).index_add_(0, which, right - certainty)
    per_class = [row[c] / row.sum() if row.sum() else None for c, row in enumerate(confusion)]
    return {
        "accuracy": float(right.mean()),
        "cross_entropy": float(F.cross_entropy(logits, labels)),
        "calibration_error": float(gaps.abs().sum() / n),
        "accuracy_of_class": [None if value is None else float(value) for value in per_class],
        "confusion": confusion.tolist(),
    }


def export(net: ResNet, questions: Questions, facts: dict[str, Any], images_seen: int, folder: Path) -> None:
    """Write the network in diffusers' format, its classes, and what was measured.

    facts.json names the weights it is about by the sha256 of their file: by that an evaluation says who judged.
    """
    net.save_pretrained(folder)
    facts = {"images_seen": images_seen, "weights_sha256": file_hash(folder / WEIGHTS), **facts}
    classes: dict[str, Any] = {"classes": next(iter(questions.values()))}
    if len(questions) > 1:
        classes["questions"] = questions
    for name, content in ((CLASSES, classes), (FACTS, facts)):
        atomic.write(json.dumps(content, ensure_ascii=False, indent=1).encode(), folder / name, overwrite=True)
