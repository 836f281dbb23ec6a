"""A reference: what an extractor saw of real pictures, in one safetensors file, with how it came about.

    mean (D,), covariance (D, D)     of all pictures, float64
    features (K, D)                  of a random sample in random order, float32; K as stated
    logits (K, classes)              where the extractor knows classes
    rows (K,), answers (K, Q)        which picture of the data each is, and the numbers of its classes (-1: none)
    digests (N,)                     of every picture's pixels, to know them again

The metadata `t2i` is JSON: what is in `Facts`, and floors that were measured in advance.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from t2i import atomic, config
from t2i.errors import DataError, UsageError
from t2i.evaluation.extraction import KEPT, Seen, look
from t2i.evaluation.features import Extractor, Questions
from t2i.evaluation.image_sets import Stored
from t2i.evaluation.image_sources import open_stored
from t2i.evaluation.metric_table import FEWEST, Floor, floor, floor_size
from t2i.evaluation.metrics import Moments
from t2i.model_files.weight_files import check_safetensors
from t2i.version import __version__

VERSION = 2  # of the format, and of how what is in it is computed: changing either changes it
FLOOR_AT = 10_000  # pictures at which the floor is measured in advance, where there are enough


@dataclass(frozen=True)
class Facts:
    """How a reference came about.

    spec: what names the extractor again, where that is no folder of one machine's.  size: pixels per side.
    formats, sides: of the files, and the short sides of the first of them.  seed: of the sample that is kept.
    questions: what the pictures' classes are known of: the extractor's, or the data's column of classes without a name.
    """

    extractor: str
    hash: str
    spec: str
    size: int
    preprocessing: str
    data: str
    data_hash: str
    count: int
    kept: int
    seed: int
    formats: tuple[str, ...]
    sides: tuple[int, ...]
    questions: Questions
    t2i: str = __version__
    version: int = VERSION

    @property
    def classes(self) -> tuple[str, ...]:
        """Of the first question."""
        return next(iter(self.questions.values()))

    @property
    def tag(self) -> str:
        return f"{self.extractor}@{self.hash[:8]}"


@dataclass(frozen=True)
class Reference:
    """facts: how it came about.  seen: what the extractor saw.  floors: measured in advance.  later: measured since."""

    facts: Facts
    seen: Seen
    floors: tuple[Floor, ...] = ()
    later: dict[tuple[int, bool], Floor] = field(default_factory=dict, compare=False)

    def floor(self, n: int, balanced: bool = False) -> Floor:
        """The floor at n pictures, as measured in advance, else now, once.  balanced: see `measures.floor`."""
        size = floor_size(self.seen, n)
        known = {(one.n, one.balanced): one for one in self.floors} | self.later
        if (size, balanced) not in known:
            known[size, balanced] = self.later[size, balanced] = floor(self.seen, n, balanced)
        return known[size, balanced]


def make_reference(
    extractor: Extractor,
    source: config.Source,
    spec: str,
    *,
    label: str | None = None,
    keep: int = KEPT,
    seed: int = 0,
    progress: bool = False,
    seen: Callable[[int, int], object] = lambda n, total: None,
) -> Reference:
    """Look at all pictures of a data set.  Raises DataError: too few of them, or what is wrong with them."""
    data = open_stored(source, extractor.size, label, progress)
    if min(data.count, keep) < 2 * FEWEST:
        raise DataError(f"a reference needs at least {2 * FEWEST} pictures, got {min(data.count, keep)}")
    questions = extractor.questions if extractor.classes else {"": class_names(data)}
    found = look(extractor, data, range(data.count), seed, keep, questions, lambda n: seen(n, data.count))
    facts = Facts(
        extractor=extractor.name,
        hash=extractor.hash,
        spec="" if Path(spec.partition(":")[2] or spec).is_absolute() else spec,
        size=data.table.size,
        preprocessing=extractor.preprocessing,
        data=data.name,
        data_hash=data.table.hash,
        count=found.count,
        kept=len(found.rows),
        seed=seed,
        formats=data.formats,
        sides=data.sides,
        questions=questions,
    )
    return Reference(facts, found)


def with_floor(reference: Reference, n: int = FLOOR_AT) -> Reference:
    """The same, with the floor at n pictures measured: of random ones, and of all classes alike where there are any."""
    labelled = bool(reference.facts.classes) and not (reference.seen.labels < 0).any()
    measured = (floor(reference.seen, n, balanced) for balanced in ([False, True] if labelled else [False]))
    return Reference(reference.facts, reference.seen, (*reference.floors, *measured))


def class_names(data: Stored) -> tuple[str, ...]:
    """The classes of a data set's column, in the order of their numbers."""
    return () if data.label is None else tuple(data.table.classes[data.label])


def save_reference(reference: Reference, path: Path, overwrite: bool = False) -> Path:
    """Write the file, whole or not at all.  Raises UsageError: it is there."""
    from safetensors.torch import save

    seen = reference.seen
    tensors = {
        "mean": seen.moments.mean(),
        "covariance": seen.moments.covariance(),
        "features": seen.features,
        "rows": seen.rows,
        "answers": seen.answers,
        "digests": seen.digests,
    }
    if seen.logits is not None:
        tensors["logits"] = seen.logits
    record = asdict(reference.facts) | {"floors": [asdict(one) for one in reference.floors]}
    data = save({name: t.contiguous() for name, t in tensors.items()}, {"t2i": json.dumps(record)})
    atomic.write(data, path, overwrite=overwrite)
    return path


def load_reference(path: Path) -> Reference:
    """Read a file.  Raises UsageError: no such file; ModelError: damaged; DataError: no reference, or a stale one."""
    from safetensors import safe_open

    if not path.is_file():
        raise UsageError(f"no reference at {path}", "t2i eval reference --data DATA -o ref.safetensors makes one")
    check_safetensors(path)
    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get("t2i", "")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict
    again = "make it again: t2i eval reference"
    try:
        record: dict[str, Any] = json.loads(text)
        version = int(record["version"])
        if version == VERSION:
            return _read(record, tensors)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{path.name} is no reference of t2i's", again) from None
    raise DataError(f"{path.name} is a stale reference: of version {version}, this t2i has {VERSION}", again)


def _read(record: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Reference:
    floors = tuple(Floor(**one) for one in record.pop("floors"))
    questions = {name: tuple(classes) for name, classes in record["questions"].items()}
    facts = Facts(**record | {name: tuple(record[name]) for name in ("formats", "sides")} | {"questions": questions})
    moments = Moments.given(facts.count, tensors["mean"], tensors["covariance"])
    kept = {name: tensors[name] for name in ("rows", "features", "answers", "digests")}
    seen = Seen(moments, **kept, logits=tensors.get("logits"), questions=questions)
    return Reference(facts, seen, floors)


def extractor_spec(reference: Reference) -> str:
    """What names the extractor of a reference.  Raises UsageError: it was a folder of some machine's."""
    if not reference.facts.spec:
        raise UsageError(
            f"the reference was made with {reference.facts.tag}, a folder of its own machine",
            "say where it is here: --features SPEC",
        )
    return reference.facts.spec


def check_extractor(reference: Reference, extractor: Extractor) -> None:
    """Raises DataError unless this extractor made the reference: numbers of two extractors do not compare."""
    facts = reference.facts
    if (facts.extractor, facts.hash) != (extractor.name, extractor.hash):
        raise DataError(
            f"the reference was made with {facts.tag}, the extractor here is {extractor.tag}",
            "make the reference again: t2i eval reference, or name its extractor with --features",
        )
    if facts.preprocessing != extractor.preprocessing or extractor.size not in (0, facts.size):
        raise DataError(
            f"the reference saw pictures as {facts.preprocessing!r}, here they are {extractor.preprocessing!r}",
            "make the reference again: t2i eval reference",
        )
