"""A model in memory, and the way back to its files: where memory runs out, it is loaded anew on the next rung.

In a long batch the rung on which a group is drawn is a function of what is drawn at once, and of the machine's memory:
each begins where its own size and number of pictures fit by the estimate, or, where that did not hold, where such a
group has fitted before. What was drawn before, or is drawn elsewhere, does not count. So a batch that was killed and is
run again draws each group as an uninterrupted one would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from t2i.errors import OutOfMemory, UsageError
from t2i.model_files.locate import ModelFiles
from t2i.pipelines.loading.apply import advice, explained, give_memory_back, make_deterministic
from t2i.pipelines.loading.device import measure
from t2i.pipelines.loading.load import SMALL_BYTES, choose_device, choose_dtype, dtype_reason, load_pipeline
from t2i.pipelines.loading.plan import UNASKED, DeviceOptions, ImageBatch, MemoryPlan, choose_plan
from t2i.pipelines.loading.skeleton import PipelineSkeleton

Say = Callable[[str], None]
T = TypeVar("T")
SHARE = 0.9  # of all memory, where the choice must not depend on what happens to be free


def make_plan(
    files: ModelFiles,
    *,
    device: str | None = None,
    options: DeviceOptions = UNASKED,
    asked: Iterable[Mapping[str, Any]] = ({},),
    batch_size: int | None = None,
    images: int | None = None,
    steady: bool = False,
) -> MemoryPlan:
    """What this model is drawn with on this machine.

    asked: for what pictures, as `TextToImage.settings` takes it.  images: how many at most.
    steady: choose by the memory that the machine has instead of what is free now: a batch that is run again must choose
    the same.
    Raises UsageError, ModelError, T2IError (a library for quantised weights is missing).
    """
    if files.path.is_file():  # diffusers quantises what it reads from a folder
        if options.bits:
            raise UsageError(
                f"--quantize {options.bits}: {files.model.name} is a single file", "use the model's folder"
            )
        options = replace(options, bits=0)
    machine = measure(choose_device(device))
    if steady:
        machine = replace(machine, free=int(SHARE * machine.total))
    skeleton = PipelineSkeleton(files)
    pictures = skeleton.largest(asked, batch_size, images)
    dtype = choose_dtype(options.dtype, machine, files)
    why = "" if options.dtype else dtype_reason(dtype, machine, files)
    options = replace(options, dtype=dtype if options.dtype else None)
    plan = choose_plan(machine, dtype, skeleton.networks, pictures, options, why)
    return replace(plan, steady=steady)


class RetryingLoader:
    """A pipeline on a rung of its plan.

    say: takes a line for the user, when a rung is taken.
    Raises OutOfMemory that names the next rung, or after the last one where rungs are taken by themselves; else as
    `load_pipeline` does.
    """

    def __init__(self, files: ModelFiles, plan: MemoryPlan, components: dict[str, Any] | None, say: Say) -> None:
        self.files = files
        self.plan = plan
        self.say = say
        self.pipe: Any = None
        self._components = components or {}
        self._base: MemoryPlan | None = None
        self._fitting: dict[ImageBatch, MemoryPlan] = {}  # where batches that did not fit have fitted
        self._told: set[ImageBatch] = set()
        if plan.options.deterministic:
            make_deterministic()
        while not self._load():
            pass
        self._base = self.plan

    def draw(self, pictures: ImageBatch, adopt: Callable[[Any], None], once: Callable[[], T]) -> T:
        """What `once` draws, on a higher rung where memory runs out and that is wanted; never fewer pictures at once.

        adopt: takes a new pipeline that is to be drawn with, or None: let the old one go.
        """
        if self._begin(pictures, adopt):
            adopt(self.pipe)
        doing = f"drawing {pictures.batch} of {pictures.width}x{pictures.height} at once"
        while True:
            try:
                with advice(doing, self.plan), explained(self.plan):
                    return once()
            except OutOfMemory as e:
                if not self.can_retreat:
                    raise
                said = e.message
            adopt(None)  # outside of the handler, which holds on to all that was computed
            self._move(self._announced(said))
            self._fitting[pictures] = self.plan
            adopt(self.pipe)

    def reload(self) -> Any:
        """Load the pipeline again where memory ran out between two levels and left none; returns it."""
        if self.pipe is None:
            self._move(self.plan)
        return self.pipe

    @property
    def can_retreat(self) -> bool:
        """Whether there is a next rung, and it is to be taken."""
        return self.plan.options.auto_retry and self.plan.higher() is not None

    def _begin(self, pictures: ImageBatch, adopt: Callable[[Any], None]) -> bool:
        """Stand where a batch like this is to be drawn; returns whether the pipeline is another one now."""
        base = self._base or self.plan
        wanted = self._fitting.get(pictures) or (base.fit_to(pictures) if base.steady else base)
        if wanted.level == self.plan.level:
            self.plan = wanted
            return False
        adopt(None)
        self._move(wanted)
        if pictures not in self._told:
            self._told.add(pictures)
            self.say(f"{pictures.batch} of {pictures.width}x{pictures.height} at once: {wanted.summary() or 'plain'}")
        return True

    def _move(self, plan: MemoryPlan) -> None:
        self.plan = plan
        while not self._load():
            pass

    def _load(self) -> bool:
        """Load as planned; False where memory ran out and the next rung was taken."""
        self.pipe = None  # before the next one needs its memory
        # Looking for what nothing refers to takes a fifth of a second: not before a first small model.
        if self._base is not None or self.plan.retries or self.files.bytes >= SMALL_BYTES:
            give_memory_back()
        try:
            with advice(f"loading {self.files.model.name}", self.plan):
                level, device = self.plan.level, self.plan.device
                self.pipe = load_pipeline(self.files, device, level.dtype, self._components, self.plan)
            return True
        except OutOfMemory as e:
            if not self.can_retreat:
                raise
            said = e.message
        self.plan = self._announced(said)  # outside of the handler, which holds on to what is to be given back
        return False

    def _announced(self, said: str) -> MemoryPlan:
        """The next rung, which is said to be taken."""
        higher = self.plan.higher()
        assert higher is not None, "can_retreat comes first"
        here = self.plan.level.words()
        new = [f"{what} ({option})" for what, option in higher.level.words().items() if what not in here]
        self.say(f"note: {said}; going on with {', '.join(new)}")
        return higher
