"""References: what is written comes back, what does not fit is refused; the floor is of real pictures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest
import torch
from evaluation_kit import CLASSES, SIZE, save_classifier, save_pictures
from safetensors.torch import load_file, save_file

from t2i import config
from t2i.errors import DataError, ModelError, UsageError
from t2i.evaluation.extraction import ExtractedFeatures
from t2i.evaluation.features import Extractor, load_extractor
from t2i.evaluation.metric_table import (
    FeatureSet,
    by_class,
    compute_metrics,
    floor,
    interleave_classes,
    is_balanced,
    split,
)
from t2i.evaluation.metrics import Moments, frechet_distance, kernel_distance, manifolds, nearest
from t2i.evaluation.reference import (
    Reference,
    check_extractor,
    load_reference,
    make_reference,
    save_reference,
    with_floor,
)
from t2i.randomness import generator


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Extractor:
    return load_extractor(str(save_classifier(tmp_path_factory.mktemp("judge") / "run")))


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pictures(tmp_path_factory.mktemp("real") / "pictures", 150)


@pytest.fixture(scope="module")
def reference(judge: Extractor, real: Path) -> Reference:
    return make_reference(judge, config.Source(path=str(real)), "runs/judge")


def seen(n: int = 90, d: int = 4) -> ExtractedFeatures:
    x = torch.randn(n, d, generator=generator(0, "seen"))
    labels = (torch.arange(n) % 3)[torch.randperm(n, generator=generator(0, "order"))]
    return ExtractedFeatures(
        Moments.of(x), torch.arange(n), x, x[:, :3], labels[:, None], torch.arange(n), {"": CLASSES}
    )


def test_a_reference_is_read_as_it_was_written(reference: Reference, tmp_path: Path) -> None:
    path = save_reference(with_floor(reference, 40), tmp_path / "ref.safetensors")
    found = load_reference(path)
    assert found.facts == reference.facts
    assert frechet_distance(found.extracted.moments, reference.extracted.moments) < 1e-9
    for name in ("rows", "features", "logits", "answers", "digests"):
        assert torch.equal(getattr(found.extracted, name), getattr(reference.extracted, name)), name
    assert [one.balanced for one in found.floors] == [False, True]
    assert found.floors[0].draws == floor(reference.extracted, 40).draws
    assert found.floor(40, True) is found.floors[1]
    assert found.floor(30) is found.floor(30), "measured once"
    assert load_file(path)["covariance"].dtype == torch.float64
    with pytest.raises(UsageError, match="exists already"):
        save_reference(reference, path)


def test_it_says_how_it_came_about(reference: Reference, judge: Extractor) -> None:
    facts = reference.facts
    assert (facts.count, facts.kept, facts.size, facts.classes) == (150, 150, SIZE, CLASSES)
    assert (facts.formats, facts.sides) == (("PNG",), (SIZE,))
    assert (facts.extractor, facts.hash, facts.spec) == ("run", judge.hash, "runs/judge")
    assert not facts.data.startswith("/")
    assert len(facts.data_hash) == 64


def test_the_floor_is_real_against_the_others() -> None:
    """Each number by its own metric, over the drawn pictures and those that are left."""
    data = seen()
    found = floor(data, 30)
    assert (found.n, found.pairs, found.disjoint) == (30, 60, True)
    for k, draw in enumerate(found.draws):
        mine = torch.arange(90) // 30 == k
        x, y = data.features[mine], data.features[~mine]
        assert draw["frechet"] == pytest.approx(frechet_distance(Moments.of(x), Moments.of(y)), rel=1e-6)
        kernel = 1000 * kernel_distance(x, y, generator(k, "kernel subsets"), size=15)
        assert draw["kernel"] == pytest.approx(float(kernel.mean()))
        assert draw["recall"] == manifolds(y, x).recall
        assert draw["nearest"] == pytest.approx(float(nearest(x, y)[0].median()))
    assert found.mean("recall") == pytest.approx(sum(draw["recall"] for draw in found.draws) / 3)
    assert found.spread("frechet") == pytest.approx(stdev([d["frechet"] for d in found.draws]))


def test_balanced_draws_have_every_class_alike() -> None:
    """Any stretch of the order; and a floor of classes that lie far apart is lower than that of random draws."""
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)[torch.randperm(100, generator=generator(0, "labels"))]
    order = interleave_classes(torch.arange(100), labels)
    assert sorted(order.tolist()) == list(range(100))
    for k in range(5):
        counts = torch.bincount(labels[order[20 * k : 20 * k + 20]], minlength=3)
        assert ((counts - torch.tensor([10, 6, 4])).abs() <= 1).all()
    data = seen()
    apart = data.features + 10 * data.labels[:, None]
    far = replace(data, features=apart, moments=Moments.of(apart))
    even, random = (floor(far, 24, balanced).mean("frechet") for balanced in (True, False))
    assert even is not None
    assert random is not None
    assert even < random / 2


def test_what_is_balanced() -> None:
    data = seen()
    assert is_balanced(replace(data, answers=torch.arange(31)[:, None] % 3), data)
    assert not is_balanced(replace(data, answers=data.answers.clamp(max=1)), data)
    assert not is_balanced(replace(data, answers=torch.full((9, 1), -1)), data)


def test_a_floor_of_too_many_is_of_half_the_reference() -> None:
    found = floor(seen(), 80)
    assert (found.n, found.disjoint) == (45, False)
    assert len({draw["frechet"] for draw in found.draws}) == 3


def test_numbers_of_each_class() -> None:
    data = seen()
    out, left = split(data, torch.arange(70))
    found = by_class(out, FeatureSet.of(data), CLASSES)
    for number, name in enumerate(CLASSES):
        mine = data.labels[:70] == number
        x, y = data.features[:70][mine], data.features[data.labels == number]
        assert found[name]["frechet"] == pytest.approx(frechet_distance(Moments.of(x), Moments.of(y)), rel=1e-6)
        right = (data.logits[:70][mine].argmax(1) == number) if data.logits is not None else torch.zeros(1)
        assert found[name]["accuracy"] == pytest.approx(float(right.double().mean()))
        assert found[name]["n"] == mine.sum()
    assert not by_class(out, left, CLASSES), "too few of each class are left"
    total = sum(numbers["accuracy"] * numbers["n"] for numbers in found.values()) / 70
    assert compute_metrics(out, FeatureSet.of(data), 90)["class_accuracy"] == pytest.approx(total)


def test_too_few_pictures_are_refused(judge: Extractor, real: Path, tmp_path: Path) -> None:
    """FAULTS 30."""
    with pytest.raises(DataError, match="at least 20 pictures, got 9"):
        make_reference(judge, config.Source(path=str(save_pictures(tmp_path / "few", 9))), "x")
    out, left = split(seen(), torch.arange(5))
    with pytest.raises(DataError, match="at least 10 pictures on each side, got 5"):
        compute_metrics(out, left, 100)


def test_another_extractor_is_refused(reference: Reference, judge: Extractor, tmp_path: Path) -> None:
    """FAULTS 30: other weights, another kind, another preprocessing."""
    check_extractor(reference, judge)
    other = load_extractor(str(save_classifier(tmp_path / "run", seed=1)))
    with pytest.raises(DataError, match=f"made with run@{judge.hash[:8]}, the extractor here is run@{other.hash[:8]}"):
        check_extractor(reference, other)
    with pytest.raises(DataError, match="the extractor here is pixels@"):
        check_extractor(reference, load_extractor("pixels"))
    with pytest.raises(DataError, match="preprocessing was"):
        check_extractor(reference, replace(judge, preprocessing="another"))


@pytest.mark.parametrize(
    ("change", "said"),
    [({"version": 0}, "a stale reference: of version 0"), (None, "no reference of t2i's"), ({"floors": 3}, "no ref")],
    ids=str,
)
def test_what_is_no_reference_is_refused(
    change: dict[str, Any] | None, said: str, reference: Reference, tmp_path: Path
) -> None:
    """FAULTS 30: stale ones among them."""
    path = save_reference(reference, tmp_path / "ref.safetensors")
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        record = json.loads(file.metadata()["t2i"])
    save_file(load_file(path), path, None if change is None else {"t2i": json.dumps(record | change)})
    with pytest.raises(DataError, match=said):
        load_reference(path)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no reference at"):
        load_reference(tmp_path / "ref.safetensors")
    (tmp_path / "ref.safetensors").write_bytes(b"\x80\x04 a pickle")
    with pytest.raises(ModelError, match="is a pickle"):
        load_reference(tmp_path / "ref.safetensors")
