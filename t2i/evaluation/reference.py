"""References: the features that an extractor computed for real images, in one safetensors file, with their origin.

    mean (D,), covariance (D, D)     of all images, float64
    features (K, D)                  of a random sample in random order, float32; K as stated
    logits (K, classes)              where the extractor has classes
    rows (K,), answers (K, Q)        the row of the data of each, and the numbers of its classes (-1: none)
    digests (N,)                     of every image's pixels, to recognise them

The metadata `t2i` is JSON: the fields of `Facts`, and precomputed floors.
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
from t2i.evaluation.extraction import KEPT, ExtractedFeatures, extract_features
from t2i.evaluation.features import Extractor, Questions
from t2i.evaluation.image_sets import StoredSet
from t2i.evaluation.image_sources import open_stored
from t2i.evaluation.metric_table import FEWEST, Floor, floor, floor_size
from t2i.evaluation.metrics import Moments
from t2i.model_files.weight_files import check_safetensors
from t2i.version import __version__

VERSION = 2  # of the format and of the computations: a change of either needs a new number
FLOOR_AT = 10_000  # number of images at which the floor is precomputed, where there are enough


@dataclass(frozen=True)
class Facts:
    """The origin of a reference.

    spec: what loads the extractor again, except where it was a local folder.  size: pixels per side.
    formats, sides: of the files, and the short sides of the first of them.  seed: of the sample that is kept.
    questions: those that the images' classes answer: the extractor's, or the data's column of classes without a name.
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
        """Return the classes of the first question."""
        return next(iter(self.questions.values()))

    @property
    def tag(self) -> str:
        return f"{self.extractor}@{self.hash[:8]}"


@dataclass(frozen=True)
class Reference:
    """A loaded reference.

    facts: its origin.  extracted: the features.  floors: precomputed.  computed: floors computed since it was loaded.
    """

    facts: Facts
    extracted: ExtractedFeatures
    floors: tuple[Floor, ...] = ()
    computed: dict[tuple[int, bool], Floor] = field(default_factory=dict, compare=False)

    def floor(self, n: int, balanced: bool = False) -> Floor:
        """Return the floor at n images, computing it once if it is not there.  balanced: see `metric_table.floor`."""
        size = floor_size(self.extracted, n)
        known = {(one.n, one.balanced): one for one in self.floors} | self.computed
        if (size, balanced) not in known:
            known[size, balanced] = self.computed[size, balanced] = floor(self.extracted, n, balanced)
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
    """Extract the features of all images of a data set.

    keep: images whose features are kept.  seen: called with each batch's number of images, and the total.
    Raises DataError: too few images, and what `open_stored` raises.
    """
    data = open_stored(source, extractor.size, label, progress)
    if min(data.count, keep) < 2 * FEWEST:
        raise DataError(f"a reference needs at least {2 * FEWEST} pictures, got {min(data.count, keep)}")
    questions = extractor.questions if extractor.classes else {"": class_names(data)}
    found = extract_features(extractor, data, range(data.count), seed, keep, questions, lambda n: seen(n, data.count))
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
    """Add the floor at n images: of random ones, and of balanced ones where all have a class."""
    labelled = bool(reference.facts.classes) and not (reference.extracted.labels < 0).any()
    measured = (floor(reference.extracted, n, balanced) for balanced in ([False, True] if labelled else [False]))
    return Reference(reference.facts, reference.extracted, (*reference.floors, *measured))


def class_names(data: StoredSet) -> tuple[str, ...]:
    """Return the classes of a data set's column, in the order of their numbers."""
    return () if data.label is None else tuple(data.table.classes[data.label])


def save_reference(reference: Reference, path: Path, overwrite: bool = False) -> Path:
    """Write the file atomically.  Raises UsageError: it exists."""
    from safetensors.torch import save

    extracted = reference.extracted
    tensors = {
        "mean": extracted.moments.mean(),
        "covariance": extracted.moments.covariance(),
        "features": extracted.features,
        "rows": extracted.rows,
        "answers": extracted.answers,
        "digests": extracted.digests,
    }
    if extracted.logits is not None:
        tensors["logits"] = extracted.logits
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
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    again = "rebuild it: t2i eval reference"
    try:
        record: dict[str, Any] = json.loads(text)
        version = int(record["version"])
        if version == VERSION:  # first of all: a reference of another version may have other fields
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
    extracted = ExtractedFeatures(moments, **kept, logits=tensors.get("logits"), questions=questions)
    return Reference(facts, extracted, floors)


def extractor_spec(reference: Reference) -> str:
    """Return the spec that loads a reference's extractor.

    Raises UsageError: it was a local folder, and is not known here.
    """
    if not reference.facts.spec:
        raise UsageError(
            f"the reference was made with {reference.facts.tag}, a local folder of another machine",
            "give its place on this one: --features SPEC",
        )
    return reference.facts.spec


def check_extractor(reference: Reference, extractor: Extractor) -> None:
    """Check that this extractor made the reference, since features of two extractors do not compare.

    Raises DataError.
    """
    facts = reference.facts
    if (facts.extractor, facts.hash) != (extractor.name, extractor.hash):
        raise DataError(
            f"the reference was made with {facts.tag}, the extractor here is {extractor.tag}",
            "rebuild the reference: t2i eval reference, or name its extractor with --features",
        )
    if facts.preprocessing != extractor.preprocessing or extractor.size not in (0, facts.size):
        raise DataError(
            f"the reference's preprocessing was {facts.preprocessing!r}, here it is {extractor.preprocessing!r}",
            "rebuild the reference: t2i eval reference",
        )
