"""The score of an image set: every metric beside the floor, and the warnings needed to interpret them.

A score is plain JSON: the subject, the reference, the extractor, the number of images, the metrics with their floor and
ratio, those of each class, the images nearest to real ones, and warnings. Two scores compare only if reference, number
of images and version are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from t2i.distributed import is_main
from t2i.errors import DataError
from t2i.evaluation.extraction import ExtractedFeatures, extract_features, sample
from t2i.evaluation.features import Extractor
from t2i.evaluation.image_sets import ImageSet
from t2i.evaluation.metric_table import (
    FEWEST,
    METRICS,
    PAIRS,
    FeatureSet,
    Floor,
    by_class,
    compute_metrics,
    is_balanced,
)
from t2i.evaluation.metrics import nearest
from t2i.evaluation.prompt_fidelity import clip_score, prompt_accuracy
from t2i.evaluation.reference import VERSION, Reference, check_extractor
from t2i.version import __version__

CLOSEST = 8  # pairs of an image and its nearest real one that are listed
LOSSY = {"JPEG", "WEBP"}


def score(
    pictures: ImageSet,
    reference: Reference,
    extractor: Extractor,
    n: int | None = None,
    seed: int = 0,
    seen: Callable[[int, int], object] = lambda n, total: None,
) -> dict[str, Any] | None:
    """Score images against a reference; the main process gets the result, the others None.

    Every process must call this.
    n: images, chosen at random where there are more; none: all.  seen: called with each batch's number of images, and
    the total.  Raises DataError: too few images, or a reference by another extractor; NonFinite.
    """
    check_extractor(reference, extractor)
    which = choose(pictures, n, seed)
    questions = reference.facts.questions
    found = extract_features(extractor, pictures, which, seed, PAIRS, questions, lambda more: seen(more, len(which)))
    return compute_score(found, pictures, reference, extractor, seed) if is_main() else None


def choose(pictures: ImageSet, n: int | None, seed: int) -> list[int]:
    """Choose the images that are scored, in order.  Raises DataError: fewer than requested, or than a score needs."""
    n = pictures.count if n is None else n
    if n > pictures.count:
        raise DataError(f"{pictures.name} holds {pictures.count:,} pictures, {n:,} were asked for", "a smaller --n")
    if n < FEWEST:
        raise DataError(f"{pictures.name}: a score needs at least {FEWEST} pictures, got {n}")
    return sorted(sample(pictures.count, n, seed).tolist())


def compute_score(
    found: ExtractedFeatures, pictures: ImageSet, reference: Reference, extractor: Extractor, seed: int
) -> dict[str, Any]:
    """Compute the score from extracted features."""
    floor = reference.floor(found.count, is_balanced(found, reference.extracted))
    fake, real = FeatureSet.of(found), FeatureSet.of(reference.extracted)
    values = compute_metrics(fake, real, floor.pairs, seed)
    facts = reference.facts
    return {
        "version": VERSION,
        "t2i": __version__,
        "subject": pictures.facts,
        "n": found.count,
        "seed": seed,
        "pairs": {"pictures": min(found.count, PAIRS), "real": floor.pairs},
        "frechet_is": extractor.frechet,
        "extractor": {"name": extractor.name, "hash": extractor.hash, "preprocessing": extractor.preprocessing},
        "reference": {
            "data": facts.data,
            "data_hash": facts.data_hash,
            "count": facts.count,
            "formats": list(facts.formats),
        },
        "floor": {"n": floor.n, "draws": len(floor.draws), "disjoint": floor.disjoint, "balanced": floor.balanced},
        "metrics": {name: _with_floor(name, values, floor) for name in METRICS if name in values},
        "classes": _classes(fake, real, reference, floor),
        "prompts": prompt_accuracy(found, reference.extracted),
        "clip_score": clip_score(found, pictures, extractor),
        "closest": closest(found, reference.extracted),
        "copies": copies(found, reference.extracted),
        "warnings": warnings(found, pictures, reference, floor),
    }


def _with_floor(name: str, values: dict[str, float], floor: Floor) -> dict[str, float | None]:
    """Return a metric, its own spread, the floor with its spread over the draws, and the ratio.

    An unbiased kernel distance may be a little below zero, and its floor is about zero: it has no ratio.
    """
    value, base = values[name], floor.mean(name)
    ratio = value / base if name != "kernel" and base else None
    return {
        "value": value,
        "spread": values.get(f"{name}_spread"),
        "floor": base,
        "floor_spread": floor.spread(name),
        "ratio": ratio,
    }


def _classes(fake: FeatureSet, real: FeatureSet, reference: Reference, floor: Floor) -> dict[str, Any]:
    found = by_class(fake, real, reference.facts.classes)
    return {
        name: {"n": int(numbers["n"])}
        | {
            key: {"value": numbers[key], "floor": floor.of_class(name, key)}
            for key in ("accuracy", "frechet")
            if key in numbers
        }
        for name, numbers in found.items()
    }


def closest(found: ExtractedFeatures, reference: ExtractedFeatures) -> list[dict[str, float | int]]:
    """Return the images nearest to a real one: their number, the row of the data, and the distance between features."""
    distances, places = nearest(found.features, reference.features)
    best = distances.argsort(stable=True)[:CLOSEST].tolist()
    return [
        {
            "picture": int(found.rows[k]),
            "row": int(reference.rows[places[k]]),
            "distance": float(distances[k]),
        }
        for k in best
    ]


def copies(found: ExtractedFeatures, reference: ExtractedFeatures) -> dict[str, int]:
    """Count images that equal, pixel by pixel, another one of the set, or one of the reference."""
    return {
        "in_set": found.count - len(found.digests.unique()),
        "of_reference": int(torch.isin(found.digests, reference.digests).sum()),
    }


def warnings(found: ExtractedFeatures, pictures: ImageSet, reference: Reference, floor: Floor) -> list[str]:
    """Return warnings about the metrics, one sentence each."""
    facts, n = reference.facts, found.count
    same = copies(found, reference.extracted)
    messages = []
    if n <= found.dimensions:
        messages.append(
            f"{n:,} pictures for {found.dimensions:,} features: their covariance is singular, and the Frechet distance"
            " far too large; compare it with its floor alone, or take more"
        )
    if floor.n < n:
        messages.append(
            f"the floor is that of {floor.n:,} pictures, not of {n:,}: the reference keeps {facts.kept:,}; the true"
            " floor lies lower"
        )
    if same["of_reference"] == n:
        messages.append("all of the pictures are pictures of the reference, pixel by pixel: the two sets are the same")
    elif same["of_reference"]:
        messages.append(f"{same['of_reference']:,} of the pictures are pictures of the reference, pixel by pixel")
    if same["in_set"]:
        messages.append(f"{same['in_set']:,} of the pictures are copies of others: fewer differ than the number says")
    messages += [*_formats(pictures, reference), *_sizes(pictures, reference), *_labels(found, reference)]
    return messages


def _formats(pictures: ImageSet, reference: Reference) -> list[str]:
    ours, theirs = set(pictures.formats or ("PNG",)), set(reference.facts.formats)  # generated images are lossless
    # Lossless formats give the same pixels; lossy ones must be the same on both sides.
    if bool(ours & LOSSY) == bool(theirs & LOSSY) and (ours == theirs or not ours & LOSSY):
        return []
    names = [" and ".join(sorted(formats)) for formats in (ours, theirs)]
    who = names[0] if pictures.formats else "generated here, without loss"
    return [f"the pictures are {who}, the reference was {names[1]}: compression alone changes the metrics"]


def _sizes(pictures: ImageSet, reference: Reference) -> list[str]:
    ours, theirs, size = set(pictures.sides), set(reference.facts.sides), reference.facts.size
    # reduced by more than half, images of different sizes look alike
    if ours == theirs or (ours and theirs and min(ours | theirs) > 2 * size):
        return []
    names = [_range(sides) for sides in (ours, theirs)]
    return [
        f"the pictures are {names[0]} pixels, those of the reference {names[1]}: both were resampled to {size}, which"
        " alone changes the metrics"
    ]


def _range(sides: set[int]) -> str:
    return f"{min(sides)}" if len(sides) == 1 else f"{min(sides)} to {max(sides)}"


def _labels(found: ExtractedFeatures, reference: Reference) -> list[str]:
    if not reference.facts.classes or (found.labels >= 0).all():
        return []
    known = int((found.labels >= 0).sum())
    if known:
        return [f"{len(found.labels) - known:,} of {len(found.labels):,} pictures have no class that the judge knows"]
    return ["the pictures have no classes that the judge knows: there is no class accuracy"]


def lines(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Format the metrics as rows of text: name, value, floor, ratio."""
    rows: list[tuple[str, ...]] = [("", "value", f"real, N = {result['floor']['n']:,}", "ratio")]
    for name, numbers in result["metrics"].items():
        title = result["frechet_is"] if name == "frechet" else METRICS[name][0]
        rows.append(
            (
                title,
                _number(numbers["value"], numbers["spread"]),
                _number(numbers["floor"], numbers["floor_spread"]),
                "" if numbers["ratio"] is None else f"{numbers['ratio']:.2f}",
            )
        )
    if clip := result.get("clip_score"):
        rows.append(("CLIPScore", _number(clip["value"], clip["spread"]), "-", ""))
    for name, numbers in result.get("prompts", {}).items():
        value, base = numbers["value"], numbers["floor"]
        ratio = f"{value / base:.2f}" if base else ""
        rows.append((f"prompt accuracy: {name} (N = {numbers['n']:,})", _number(value), _number(base), ratio))
    if cas := result.get("cas"):
        ratio = "" if cas["ratio"] is None else f"{cas['ratio']:.2f}"
        rows.append(("classification accuracy score", _number(cas["value"]), _number(cas["ceiling"]), ratio))
    for name, numbers in result["classes"].items():
        for key in ("accuracy", "frechet"):
            if key in numbers:
                value, base = numbers[key]["value"], numbers[key]["floor"]
                ratio = f"{value / base:.2f}" if base else ""
                rows.append((f"{name} (N = {numbers['n']:,}), {key}", _number(value), _number(base), ratio))
    return rows


def _number(value: float | None, spread: float | None = None) -> str:
    if value is None:
        return "-"
    return _digits(value, 4) + ("" if spread is None else f" ± {_digits(spread, 2)}")


def _digits(value: float, digits: int) -> str:
    """Format with this many significant digits, and never an exponent for a large number."""
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def aligned(rows: list[tuple[str, ...]]) -> str:
    """Align rows of text in columns, the first to the left, the others to the right."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    sides = [str.ljust] + [str.rjust] * (len(widths) - 1)
    return "\n".join(
        "  ".join(side(cell, width) for side, cell, width in zip(sides, row, widths, strict=True)) for row in rows
    )
