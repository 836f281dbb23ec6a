"""Pack a finished run of `t2i train classifier` as an embedded judge: a plain folder of weights with a card.

    python scripts/package_judge.py --run runs/classifier-cifar10 --test cifar10/test.parquet --data-says "..." ...
    python scripts/package_judge.py judge64 --run runs/classifier-pairs --test data/pairs/held-out.parquet ...

Weights in float16 safetensors. The card README.md names the judge's training data and its accuracy on test images,
measured here with the rounded weights, as `t2i eval` loads them.
"""

from __future__ import annotations

import csv
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F

from t2i import config
from t2i.evaluation.extraction import extract_features
from t2i.evaluation.features import JUDGE_FILE, JUDGES, Extractor, load_resnet
from t2i.evaluation.image_sources import open_stored
from t2i.nn.resnet import ResNet

LIMIT = 8_000_000  # bytes of the folder
COPIED = ("config.json", "classes.json")


@click.command()
@click.argument("name", type=click.Choice(list(JUDGES)), default="judge")
@click.option("--run", type=click.Path(exists=True, file_okay=False, path_type=Path), default="runs/classifier-cifar10")
@click.option("--test", required=True, help="The test images: a parquet file that the run was not trained on.")
@click.option("--data-says", required=True, help="Name and owner of the training images, for the card.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="[t2i/NAME]")
@click.option("--machine", required=True, help="Where it was trained, for the card.")
@click.option("--date", required=True, help="When it was trained, for the card.")
def main(name: str, run: Path, test: str, data_says: str, out: Path | None, machine: str, date: str) -> None:
    """Pack a finished run of a classifier as the embedded judge of this NAME."""
    out = out or Path("t2i") / name
    settings = config.load_config(run / "config.yaml", "classifier")
    assert isinstance(settings, config.ClassifierConfig)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / name
        parameters = write_weights(run / "export", folder)
        (folder / JUDGE_FILE).write_text(json.dumps({"size": settings.data.size}) + "\n")
        judge = load_resnet(name, folder, settings.data.size, "cpu")
        facts = measure(judge, test, settings.questions)
        facts |= {"parameters": parameters / 1e6, "machine": machine, "date": date, "data": data_says}
        facts |= {"size": settings.data.size, "hash": judge.hash, "config": run.name}
        classes = "; ".join(", ".join(names) for names in judge.questions.values())
        facts |= {"classes": classes, "features": settings.model.channels[-1]}
        facts |= spent(run)
        card = Path(__file__).with_name(f"{name}_card.md")
        (folder / "README.md").write_text(card.read_text(encoding="utf-8").format(**facts))
        size = sum(file.stat().st_size for file in folder.iterdir())
        if size > LIMIT:
            raise click.ClickException(f"{size / 1e6:.1f} MB; an embedded judge has at most {LIMIT / 1e6:.0f} MB")
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(folder, out)
        for file in out.iterdir():
            file.chmod(0o644)  # safetensors writes files that only their owner can read
    click.echo(f"{out}  {size / 1e6:.1f} MB  {judge.tag}  {facts['accuracy']}")


def write_weights(export: Path, folder: Path) -> int:
    """Write the run's network in float16.  Returns the number of its parameters."""
    net = ResNet.from_pretrained(export, use_safetensors=True)
    net.half().save_pretrained(folder)
    for name in COPIED:
        shutil.copy(export / name, folder / name)
    return sum(p.numel() for p in net.parameters())


def measure(judge: Extractor, test: str, columns: tuple[str, ...]) -> dict[str, Any]:
    """Measure accuracy and cross-entropy on the test images: each question in all, and class by class, as a table."""
    data = open_stored(config.Source(path=test), judge.size, columns[0], True)
    found = extract_features(judge, data, range(data.count), keep=data.count)
    assert found.logits is not None
    parts = found.logits.double().split([len(classes) for classes in judge.questions.values()], 1)
    accuracies, losses, rows = [], [], []
    for (question, classes), part, labels in zip(judge.questions.items(), parts, found.answers.unbind(1), strict=True):
        logits, known = part[labels >= 0], labels[labels >= 0]
        assert len(judge.questions) > 1 or len(known) == data.count, "every test image has a class that the judge knows"
        right = (logits.argmax(1) == known).double()
        accuracies.append(f"{question} {right.mean():.2%} of {len(known):,} test images".strip())
        losses.append(f"{F.cross_entropy(logits, known):.3f}")
        rows += [f"| {name} | {right[known == number].mean():.1%} |" for number, name in enumerate(classes)]
    return {"accuracy": "; ".join(accuracies), "cross_entropy": " and ".join(losses), "per_class": "\n".join(rows)}


def spent(run: Path) -> dict[str, Any]:
    """Return images seen, and hours of training, of a run."""
    with (run / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    seen = torch.tensor([float(row["images"]) for row in rows], dtype=torch.float64)
    rate = torch.tensor([float(row["images_per_second"]) for row in rows], dtype=torch.float64)
    return {"images": int(seen[-1]), "hours": float((seen.diff(prepend=seen.new_zeros(1)) / rate).sum()) / 3600}


if __name__ == "__main__":
    main()
