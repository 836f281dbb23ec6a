"""The score of a set of pictures: every number beside what real pictures get, and what must be known to believe it.

A score is plain JSON: what was judged, against what, by which extractor, how many, the numbers with their floor and
ratio, those of each class, the pictures nearest to real ones, and warnings. It compares with another score of the same
reference, number of pictures and version, and with no other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from t2i.distributed import is_main
from t2i.errors import DataError
from t2i.evaluation.extraction import Seen, look, sample
from t2i.evaluation.features import Extractor
from t2i.evaluation.image_sets import ImageSet
from t2i.evaluation.metric_table import FEWEST, MEASURES, PAIRS, Floor, Side, by_class, is_balanced, measure
from t2i.evaluation.metrics import nearest
from t2i.evaluation.prompt_fidelity import clip_score, prompt_accuracy
from t2i.evaluation.reference import VERSION, Reference, check_extractor
from t2i.version import __version__

CLOSEST = 8  # pairs of a picture and its nearest real one that are named
LOSSY = {"JPEG", "WEBP"}


def score(
    pictures: ImageSet,
    reference: Reference,
    extractor: Extractor,
    n: int | None = None,
    seed: int = 0,
    seen: Callable[[int, int], object] = lambda n, total: None,
) -> dict[str, Any] | None:
    """Judge pictures against a reference; every process must ask, and the main one gets the answer.

    n: how many, at random where there are more; none: all.  seen: called with how many more were looked at, and of how
    many.  Raises DataError: too few pictures, or a reference that another extractor made; NonFinite.
    """
    check_extractor(reference, extractor)
    which = choose(pictures, n, seed)
    questions = reference.facts.questions
    found = look(extractor, pictures, which, seed, PAIRS, questions, lambda more: seen(more, len(which)))
    return judge(found, pictures, reference, extractor, seed) if is_main() else None


def choose(pictures: ImageSet, n: int | None, seed: int) -> list[int]:
    """Which pictures are judged, in order.  Raises DataError: fewer than are asked for, or than can be judged."""
    n = pictures.count if n is None else n
    if n > pictures.count:
        raise DataError(f"{pictures.name} holds {pictures.count:,} pictures, {n:,} were asked for", "a smaller --n")
    if n < FEWEST:
        raise DataError(f"{pictures.name}: a score needs at least {FEWEST} pictures, got {n}")
    return sorted(sample(pictures.count, n, seed).tolist())


def judge(found: Seen, pictures: ImageSet, reference: Reference, extractor: Extractor, seed: int) -> dict[str, Any]:
    """The score of what an extractor saw."""
    floor = reference.floor(found.count, is_balanced(found, reference.seen))
    fake, real = Side.of(found), Side.of(reference.seen)
    values = measure(fake, real, floor.pairs, seed)
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
        "metrics": {name: _beside(name, values, floor) for name in MEASURES if name in values},
        "classes": _classes(fake, real, reference, floor),
        "prompts": prompt_accuracy(found, reference.seen),
        "clip_score": clip_score(found, pictures, extractor),
        "closest": closest(found, reference.seen),
        "copies": copies(found, reference.seen),
        "warnings": warnings(found, pictures, reference, floor),
    }


def _beside(name: str, values: dict[str, float], floor: Floor) -> dict[str, float | None]:
    """A number, its own spread, the floor with its spread over the draws, and the ratio.

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


def _classes(fake: Side, real: Side, reference: Reference, floor: Floor) -> dict[str, Any]:
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


def closest(found: Seen, reference: Seen) -> list[dict[str, float | int]]:
    """The pictures nearest to a real one: their number, the row of the data, and how far, by features."""
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


def copies(found: Seen, reference: Seen) -> dict[str, int]:
    """Pictures that are, pixel by pixel, another one of the set, or one of the reference."""
    return {
        "in_set": found.count - len(found.digests.unique()),
        "of_reference": int(torch.isin(found.digests, reference.digests).sum()),
    }


def warnings(found: Seen, pictures: ImageSet, reference: Reference, floor: Floor) -> list[str]:
    """What must be known to believe the numbers, each a sentence."""
    facts, n = reference.facts, found.count
    same = copies(found, reference.seen)
    said = []
    if n <= found.dimensions:
        said.append(
            f"{n:,} pictures for {found.dimensions:,} features: their covariance is singular, and the Frechet distance"
            " far too large; compare it with its floor alone, or take more"
        )
    if floor.n < n:
        said.append(
            f"the floor is that of {floor.n:,} pictures, not of {n:,}: the reference keeps {facts.kept:,}; the true"
            " floor lies lower"
        )
    if same["of_reference"] == n:
        said.append("all of the pictures are pictures of the reference, pixel by pixel: the two sets are the same")
    elif same["of_reference"]:
        said.append(f"{same['of_reference']:,} of the pictures are pictures of the reference, pixel by pixel")
    if same["in_set"]:
        said.append(f"{same['in_set']:,} of the pictures are copies of others: fewer differ than the number says")
    said += [*_formats(pictures, reference), *_sizes(pictures, reference), *_labels(found, reference)]
    return said


def _formats(pictures: ImageSet, reference: Reference) -> list[str]:
    ours, theirs = set(pictures.formats or ("PNG",)), set(reference.facts.formats)  # what is drawn here loses nothing
    if bool(ours & LOSSY) == bool(theirs & LOSSY) and (ours == theirs or not ours & LOSSY):
        return []
    names = [" and ".join(sorted(formats)) for formats in (ours, theirs)]
    who = names[0] if pictures.formats else "drawn here, without loss"
    return [f"the pictures are {who}, the reference was {names[1]}: coding alone moves the numbers"]


def _sizes(pictures: ImageSet, reference: Reference) -> list[str]:
    ours, theirs, size = set(pictures.sides), set(reference.facts.sides), reference.facts.size
    if ours == theirs or (ours and theirs and min(ours | theirs) > 2 * size):
        return []
    names = [_range(sides) for sides in (ours, theirs)]
    return [
        f"the pictures are {names[0]} pixels, those of the reference {names[1]}: both were resampled to {size}, and"
        " that alone moves the numbers"
    ]


def _range(sides: set[int]) -> str:
    return f"{min(sides)}" if len(sides) == 1 else f"{min(sides)} to {max(sides)}"


def _labels(found: Seen, reference: Reference) -> list[str]:
    if not reference.facts.classes or (found.labels >= 0).all():
        return []
    known = int((found.labels >= 0).sum())
    if known:
        return [f"{len(found.labels) - known:,} of {len(found.labels):,} pictures have no class that the judge knows"]
    return ["the pictures have no classes that the judge knows: there is no class accuracy"]


def lines(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """The numbers as rows of text: what, value, floor, ratio."""
    rows: list[tuple[str, ...]] = [("", "value", f"real, N = {result['floor']['n']:,}", "ratio")]
    for name, numbers in result["metrics"].items():
        title = result["frechet_is"] if name == "frechet" else MEASURES[name][0]
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
        rows.append((f"asked for, and shown: {name} (N = {numbers['n']:,})", _number(value), _number(base), ratio))
    if cas := result.get("cas"):
        ratio = "" if cas["ratio"] is None else f"{cas['ratio']:.2f}"
        rows.append(("learned from the pictures, accuracy", _number(cas["value"]), _number(cas["ceiling"]), ratio))
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
    """So many of them, and never an exponent for a large number."""
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def aligned(rows: list[tuple[str, ...]]) -> str:
    """Rows of text in columns, the first to the left, the others to the right."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    sides = [str.ljust] + [str.rjust] * (len(widths) - 1)
    return "\n".join(
        "  ".join(side(cell, width) for side, cell, width in zip(sides, row, widths, strict=True)) for row in rows
    )
