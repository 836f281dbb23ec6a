"""The memory plan: with which dtype, offloading, tiling and quantisation a model draws on this machine, and why.

Levels of a fallback chain are tried until the memory that is needed fits the memory that is free:

    GPU    plain, tiled decoding, networks offloaded to main memory (model), 8 bits, 4 bits, layers offloaded (group)
    else   plain, bfloat16, tiled decoding, 8 bits (on MPS also 4)

A device without memory of its own gains nothing by offloading: the weights would wait in the same memory, and from disk
each step would read all of them. The batch size is no level: it would change how images round, and with it every other
image of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from t2i.errors import UsageError
from t2i.pipelines.loading import quantize
from t2i.pipelines.loading.device import Machine
from t2i.pipelines.loading.memory_estimate import Networks

OFFLOADS = ("none", "model", "group")
MARGIN = 1.1  # the error of the estimate, and memory that other programs may take meanwhile
SMALLER = "`batch_size=1` or a smaller `size`"


@dataclass(frozen=True)
class DeviceOptions:
    """Options of the device; None: what fits.  bits: 0 is not quantised, else 8 or 4."""

    dtype: str | None = None
    offload: str | None = None
    bits: int | None = None
    tiling: bool | None = None
    compile: bool = False
    deterministic: bool = False
    safety: bool = True
    auto_retry: bool = False


UNASKED = DeviceOptions()


class ImageBatch(NamedTuple):
    """A batch of images by size: width and height in pixels, and how many are drawn at once."""

    width: int = 512
    height: int = 512
    batch: int = 1


class MemoryLevel(NamedTuple):
    """The settings that decide how much memory is needed."""

    dtype: str
    tiling: bool = False
    offload: str = "none"
    bits: int = 0

    def words(self) -> dict[str, str]:
        """Return {what differs from plain drawing: the option that asks for it}."""
        said = {self.dtype: f"`dtype={self.dtype}`"} if self.dtype == "bfloat16" else {}
        said |= {"tiled decoding": "`tiling=True`"} if self.tiling else {}
        said |= {f"offload {self.offload}": f"`offload={self.offload}`"} if self.offload != "none" else {}
        return said | ({f"{self.bits}-bit weights": f"`quantize={self.bits}`"} if self.bits else {})


@dataclass(frozen=True)
class MemoryPlan:
    """A choice of how a model is loaded and drawn with.

    fallback_chain: the levels available to it; at: the index of the present one.
    retries: how many levels were taken since memory ran out.
    need: estimated bytes on the device for weights and activations, on each level.  free: bytes that were free.
    why_dtype: the reason; empty where the user chose the dtype.  settled: the level chosen before anything was drawn.
    steady: chosen for each batch by itself, by all memory that the machine has: the same at every run.
    """

    device: str
    fallback_chain: tuple[MemoryLevel, ...]
    at: int = 0
    options: DeviceOptions = UNASKED
    retries: int = 0
    need: tuple[int, ...] = ()
    free: int = 0
    why_dtype: str = ""
    settled: int = 0
    steady: bool = False
    networks: Networks | None = field(default=None, compare=False, repr=False)

    @property
    def level(self) -> MemoryLevel:
        """Return the present level."""
        return self.fallback_chain[self.at]

    @property
    def fits(self) -> bool:
        """Return whether the estimate and its margin are within the memory that was free."""
        return self.need[self.at] * MARGIN <= self.free

    def fit_to(self, batch: ImageBatch) -> MemoryPlan:
        """Return the plan on the first level on which this batch fits; on the last one where it fits on none."""
        assert self.networks is not None
        needs = tuple(need(level, self.networks, batch) for level in self.fallback_chain)
        at = next((k for k, bytes in enumerate(needs) if bytes * MARGIN <= self.free), len(self.fallback_chain) - 1)
        return replace(self, at=at, settled=at, need=needs)

    def next(self) -> MemoryPlan | None:
        """Return the plan on the next level; None on the last one."""
        if self.at + 1 >= len(self.fallback_chain):
            return None
        return replace(self, at=self.at + 1, retries=self.retries + 1)

    def suggestion(self) -> str:
        """Return what to try where memory ran out: the options of the next level, else a smaller batch."""
        following = self.next()
        if following is None:
            return f"nothing is left but less at once: {SMALLER}"
        here = self.level.words()
        new = [option for what, option in following.level.words().items() if what not in here]
        return f"try {' '.join(new)}; `auto_retry` does so by itself"

    def record(self) -> dict[str, Any]:
        """Return what is not default, for a recipe."""
        level, options = self.level, self.options
        said = {
            "offload": level.offload if level.offload != "none" else None,
            "quantize": level.bits or None,
            "tiling": level.tiling or None,
            "compiled": options.compile or None,
            "deterministic": options.deterministic or None,
            "retries": self.retries or None,
        }
        return {name: value for name, value in said.items() if value is not None}

    def reasons(self) -> dict[str, str]:
        """Return {what is not default: why}."""
        asked = set(MemoryLevel(self.options.dtype or "", *self._asked()).words())
        before = self.fallback_chain[self.settled].words()
        said = {}
        for what in self.level.words():
            short = f"{self.need[0] / 1e9:.1f} GB would be needed, {self.free / 1e9:.1f} GB are free"
            why = "memory ran out without" if what not in before else "asked for" if what in asked else short
            said[what] = self.why_dtype if what == self.fallback_chain[0].dtype and self.why_dtype else why
        said |= {"compiled": "asked for"} if self.options.compile else {}
        return said | ({"deterministic": "asked for"} if self.options.deterministic else {})

    def summary(self) -> str:
        """Return what is not default, with its reasons, on one line; empty where all is."""
        words = [f"{what} ({why})" for what, why in self.reasons().items() if what != self.options.dtype]
        if not self.fits:
            words.append(
                f"about {self.need[self.at] / 1e9:.1f} GB needed, {self.free / 1e9:.1f} GB free: it may not fit"
            )
        return "; ".join(words)

    def _asked(self) -> tuple[bool, str, int]:
        return bool(self.options.tiling), self.options.offload or "none", self.options.bits or 0


def choose_plan(
    machine: Machine,
    dtype: str,
    networks: Networks,
    batch: ImageBatch,
    options: DeviceOptions = UNASKED,
    why: str = "",
) -> MemoryPlan:
    """Choose the first level on which the model fits the memory that is free; the last one where it fits on none.

    dtype: as `choose_dtype` returns it; why: its reason.  batch: the largest that will be drawn.
    Raises UsageError: not possible on this device; T2IError: a library is missing.
    """
    _check(options, machine)
    fallback_chain = make_fallback_chain(machine, dtype, options)
    if fallback_chain[0].dtype != dtype:
        why = f"{fallback_chain[0].bits}-bit weights compute in it"
    plan = MemoryPlan(
        machine.device, fallback_chain, options=options, free=machine.free, why_dtype=why, networks=networks
    )
    return plan.fit_to(batch)


def make_fallback_chain(machine: Machine, dtype: str, options: DeviceOptions) -> tuple[MemoryLevel, ...]:
    """Return the levels from plain drawing on, with the user's options on every one of them."""
    levels = [MemoryLevel(dtype)]
    if machine.own_memory:
        levels += [MemoryLevel(dtype, True), *(MemoryLevel(dtype, True, "model", bits) for bits in (0, 8, 4))]
        levels.append(MemoryLevel(dtype, True, "group"))  # last, as the slowest: every step copies every layer
    else:
        half = dtype if options.dtype else "bfloat16"
        levels += [MemoryLevel(half), *(MemoryLevel(half, True, "none", bits) for bits in (0, 8, 4))]
    fixed: dict[str, Any] = {"offload": options.offload, "bits": options.bits, "tiling": options.tiling}
    fixed = {name: value for name, value in fixed.items() if value is not None}
    levels = [level._replace(**fixed) for level in levels]
    if machine.kind == "cpu" and options.dtype is None:  # torchao's kernels are fast in it alone
        levels = [level._replace(dtype="bfloat16") if level.bits else level for level in levels]
    open_ = [level for level in levels if not level.bits or _can_quantize(level, machine)]
    return tuple(dict.fromkeys(open_))


def need(level: MemoryLevel, networks: Networks, batch: ImageBatch) -> int:
    """Estimate the bytes on the device: weights that are there at once, and activations."""
    return weights(level, networks) + networks.activations(*batch, level.dtype, tiling=level.tiling)


def weights(level: MemoryLevel, networks: Networks) -> int:
    """Return the bytes of weights that are on the device at once."""
    if level.offload == "group":
        return networks.largest_tensors(level.dtype)
    if level.offload == "model":
        return networks.largest_component(level.dtype, level.bits)
    return networks.weights(level.dtype, level.bits)


def _can_quantize(level: MemoryLevel, machine: Machine) -> bool:
    """Return whether quantised weights are available on this level: they cannot be offloaded layer by layer."""
    return level.offload != "group" and quantize.is_available(level.bits, machine.device)


def _check(options: DeviceOptions, machine: Machine) -> None:
    if options.offload not in (None, *OFFLOADS):
        raise UsageError(f"offload: got {options.offload!r}, allowed auto, {', '.join(OFFLOADS)}")
    if options.offload not in (None, "none") and not machine.own_memory:
        message = f"`offload={options.offload}`: {machine.device} has no memory of its own, so nothing would be saved"
        raise UsageError(message, "`quantize=8` and `tiling=True` save memory here")
    if options.bits not in (None, 0, *quantize.BITS):
        raise UsageError(f"quantize: got {options.bits!r}, allowed none, 8, 4")
    if options.bits:
        quantize.check_bits(options.bits, machine.device)
        if options.offload == "group":
            raise UsageError("`offload=group` moves single layers, which quantised ones cannot", "`offload=model`")
