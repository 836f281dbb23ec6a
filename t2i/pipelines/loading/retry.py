"""Loading with retries: where memory runs out, the model is loaded again on the next level of its memory plan.

In a long batch the level on which a group is drawn is a function of the group's size and of the machine's memory: each
begins on the level on which its own batch fits by the estimate, or, where the estimate was wrong, on which such a batch
has fitted before. Other groups do not count, so a batch that was killed and is run again draws each group as an
uninterrupted one would.
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
SHARE = 0.9  # of all memory, where the choice must not depend on what is free at the moment


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
    """Plan how to draw with this model on this machine.

    asked: settings of the images, as `TextToImage.settings` takes them.  images: how many at most.
    steady: choose by the memory that the machine has instead of what is free now: a batch that is run again must choose
    the same.
    Raises UsageError, ModelError, T2IError (a library for quantised weights is missing).
    """
    if files.path.is_file():  # diffusers quantises what it reads from a folder
        if options.bits:
            raise UsageError(
                f"`quantize={options.bits}`: {files.model.name} is a single file", "use the model's folder"
            )
        options = replace(options, bits=0)
    machine = measure(choose_device(device))
    if steady:
        machine = replace(machine, free=int(SHARE * machine.total))
    skeleton = PipelineSkeleton(files)
    batch = skeleton.largest(asked, batch_size, images)
    dtype = choose_dtype(options.dtype, machine, files)
    why = "" if options.dtype else dtype_reason(dtype, machine, files)
    options = replace(options, dtype=dtype if options.dtype else None)
    plan = choose_plan(machine, dtype, skeleton.networks, batch, options, why)
    return replace(plan, steady=steady)


class RetryingLoader:
    """Loads a pipeline on a level of its plan, and again on the next one where memory runs out.

    say: takes a line for the user when a level is taken.
    Raises OutOfMemory: it names the next level, or there is none; else as `load_pipeline` does.
    """

    def __init__(self, files: ModelFiles, plan: MemoryPlan, components: dict[str, Any] | None, say: Say) -> None:
        self.files = files
        self.plan = plan
        self.say = say
        self.pipe: Any = None
        self._components = components or {}
        self._base: MemoryPlan | None = None
        self._fitting: dict[ImageBatch, MemoryPlan] = {}  # plans of batches that needed another level than estimated
        self._announced_batches: set[ImageBatch] = set()
        if plan.options.deterministic:
            make_deterministic()
        while not self._load():
            pass
        self._base = self.plan

    def draw(self, batch: ImageBatch, adopt: Callable[[Any], None], once: Callable[[], T]) -> T:
        """Call `once`, again on the next level where memory runs out and that is wanted; never with a smaller batch.

        adopt: takes the pipeline to draw with from now on; None: release the old one.
        """
        if self._begin(batch, adopt):
            adopt(self.pipe)
        doing = f"drawing {batch.batch} of {batch.width}x{batch.height} at once"
        while True:
            try:
                with advice(doing, self.plan), explained(self.plan):
                    return once()
            except OutOfMemory as e:
                if not self.can_retreat:
                    raise
                said = e.message
            adopt(None)  # outside of the handler, whose traceback refers to all that was computed
            self._move(self._announced(said))
            self._fitting[batch] = self.plan
            adopt(self.pipe)

    def reload(self) -> Any:
        """Load the pipeline again where memory ran out between two levels and left none; returns it."""
        if self.pipe is None:
            self._move(self.plan)
        return self.pipe

    @property
    def can_retreat(self) -> bool:
        """Return whether there is a next level, and it is to be taken."""
        return self.plan.options.auto_retry and self.plan.next() is not None

    def _begin(self, batch: ImageBatch, adopt: Callable[[Any], None]) -> bool:
        """Load on the level of this batch where it is another one; returns whether the pipeline is new."""
        base = self._base or self.plan
        wanted = self._fitting.get(batch) or (base.fit_to(batch) if base.steady else base)
        if wanted.level == self.plan.level:
            self.plan = wanted
            return False
        adopt(None)
        self._move(wanted)
        if batch not in self._announced_batches:
            self._announced_batches.add(batch)
            self.say(f"{batch.batch} of {batch.width}x{batch.height} at once: {wanted.summary() or 'plain'}")
        return True

    def _move(self, plan: MemoryPlan) -> None:
        self.plan = plan
        while not self._load():
            pass

    def _load(self) -> bool:
        """Load as planned; False where memory ran out and the next level was chosen."""
        self.pipe = None  # before the next one needs its memory
        # Collecting garbage takes a fifth of a second, and before a first small model there is none.
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
        self.plan = self._announced(said)  # outside of the handler, whose traceback refers to what is to be freed
        return False

    def _announced(self, said: str) -> MemoryPlan:
        """Tell the user that the next level is taken, and return it."""
        following = self.plan.next()
        assert following is not None, "can_retreat comes first"
        here = self.plan.level.words()
        new = [f"{what} ({option})" for what, option in following.level.words().items() if what not in here]
        self.say(f"note: {said}; going on with {', '.join(new)}")
        return following
