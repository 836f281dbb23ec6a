"""What a model is drawn with on this machine: dtype, offloading, tiling, quantised weights; each with its reason.

A ladder is climbed until the memory that is needed fits the memory that is free:

    GPU    plain, tiled decoding, networks wait in main memory (model), 8 bits, 4 bits, layers wait there (group)
    else   plain, bfloat16, tiled decoding, 8 bits (on MPS also 4)

A device without memory of its own gains nothing by offloading: the weights would wait in the same memory; and from disk
each step would read all of them. How many images are drawn at once is no rung: it would change how pictures round, and
with it every other image of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from t2i.errors import UsageError
from t2i.pipelines.loading import quantize
from t2i.pipelines.loading.device import Machine
from t2i.pipelines.loading.memory_estimate import Networks

OFFLOADS = ("none", "model", "group")
MARGIN = 1.1  # what the estimate may be wrong by, and what other programs may take meanwhile
SMALLER = "--batch-size 1 or a smaller --size"


@dataclass(frozen=True)
class Wishes:
    """What the user asks of the machine; None: what fits.  bits: 0 is not quantised, else 8 or 4."""

    dtype: str | None = None
    offload: str | None = None
    bits: int | None = None
    tiling: bool | None = None
    compile: bool = False
    deterministic: bool = False
    safety: bool = True
    auto_retry: bool = False


UNASKED = Wishes()


class Pictures(NamedTuple):
    """The largest pictures that will be drawn, and how many at once."""

    width: int = 512
    height: int = 512
    batch: int = 1


class Rung(NamedTuple):
    """What decides how much memory is needed."""

    dtype: str
    tiling: bool = False
    offload: str = "none"
    bits: int = 0

    def words(self) -> dict[str, str]:
        """What is not plain on this rung: {what: the options of `t2i generate` that ask for it}."""
        said = {self.dtype: f"--dtype {self.dtype}"} if self.dtype == "bfloat16" else {}
        said |= {"tiled decoding": "--tiling"} if self.tiling else {}
        said |= {f"offload {self.offload}": f"--offload {self.offload}"} if self.offload != "none" else {}
        return said | ({f"{self.bits}-bit weights": f"--quantize {self.bits}"} if self.bits else {})


@dataclass(frozen=True)
class Plan:
    """How a model is loaded and drawn with.

    ladder: the rungs that are open to it; at: on which it stands.  retries: those taken since memory ran out.
    need: bytes that weights and computing take on the device, as estimated on each rung.  free: those that were free.
    why_dtype: in words, empty where the user named the dtype.  settled: the rung chosen before anything was drawn.
    steady: chosen for each size of pictures by itself, by all memory that the machine has: the same at every run.
    """

    device: str
    ladder: tuple[Rung, ...]
    at: int = 0
    wishes: Wishes = UNASKED
    retries: int = 0
    need: tuple[int, ...] = ()
    free: int = 0
    why_dtype: str = ""
    settled: int = 0
    steady: bool = False
    networks: Networks | None = field(default=None, compare=False, repr=False)

    @property
    def rung(self) -> Rung:
        """On which it stands."""
        return self.ladder[self.at]

    @property
    def fits(self) -> bool:
        """Whether the estimate and its margin are within the memory that was free."""
        return self.need[self.at] * MARGIN <= self.free

    def fitted(self, pictures: Pictures) -> Plan:
        """The plan on the first rung on which these pictures fit; the last one where they fit on none."""
        assert self.networks is not None
        needs = tuple(need(rung, self.networks, pictures) for rung in self.ladder)
        at = next((k for k, bytes in enumerate(needs) if bytes * MARGIN <= self.free), len(self.ladder) - 1)
        return replace(self, at=at, settled=at, need=needs)

    def higher(self) -> Plan | None:
        """The plan on the next rung; None on the last one."""
        if self.at + 1 >= len(self.ladder):
            return None
        return replace(self, at=self.at + 1, retries=self.retries + 1)

    def way_out(self) -> str:
        """What to type where memory ran out: the options of the next rung, else less at once."""
        higher = self.higher()
        if higher is None:
            return f"nothing is left but less at once: {SMALLER}"
        here = self.rung.words()
        new = [option for what, option in higher.rung.words().items() if what not in here]
        return f"try {' '.join(new)}; --auto-retry does so by itself"

    def record(self) -> dict[str, Any]:
        """What is not default, as a recipe holds it."""
        rung, wishes = self.rung, self.wishes
        said = {
            "offload": rung.offload if rung.offload != "none" else None,
            "quantize": rung.bits or None,
            "tiling": rung.tiling or None,
            "compiled": wishes.compile or None,
            "deterministic": wishes.deterministic or None,
            "retries": self.retries or None,
        }
        return {name: value for name, value in said.items() if value is not None}

    def reasons(self) -> dict[str, str]:
        """What is not default, and why, in words."""
        asked = set(Rung(self.wishes.dtype or "", *self._asked()).words())
        before = self.ladder[self.settled].words()
        said = {}
        for what in self.rung.words():
            short = f"{self.need[0] / 1e9:.1f} GB would be needed, {self.free / 1e9:.1f} GB are free"
            why = "memory ran out without" if what not in before else "asked for" if what in asked else short
            said[what] = self.why_dtype if what == self.ladder[0].dtype and self.why_dtype else why
        said |= {"compiled": "asked for"} if self.wishes.compile else {}
        return said | ({"deterministic": "asked for"} if self.wishes.deterministic else {})

    def summary(self) -> str:
        """What was chosen and is not the default, with its reasons, on one line; empty where that is nothing."""
        words = [f"{what} ({why})" for what, why in self.reasons().items() if what != self.wishes.dtype]
        if not self.fits:
            words.append(
                f"about {self.need[self.at] / 1e9:.1f} GB needed, {self.free / 1e9:.1f} GB free: it may not fit"
            )
        return "; ".join(words)

    def _asked(self) -> tuple[bool, str, int]:
        return bool(self.wishes.tiling), self.wishes.offload or "none", self.wishes.bits or 0


def choose_plan(
    machine: Machine, dtype: str, networks: Networks, pictures: Pictures, wishes: Wishes = UNASKED, why: str = ""
) -> Plan:
    """The first rung on which the model fits the memory that is free; the last one where it fits on none.

    dtype: as `loading.choose_dtype` has it; why: its reason.
    Raises UsageError for what this device does not do, T2IError for a missing library.
    """
    _check(wishes, machine)
    ladder = make_ladder(machine, dtype, wishes)
    if ladder[0].dtype != dtype:
        why = f"{ladder[0].bits}-bit weights compute in it"
    plan = Plan(machine.device, ladder, wishes=wishes, free=machine.free, why_dtype=why, networks=networks)
    return plan.fitted(pictures)


def make_ladder(machine: Machine, dtype: str, wishes: Wishes) -> tuple[Rung, ...]:
    """The rungs from the foot on, with what the user has fixed on every one of them."""
    rungs = [Rung(dtype)]
    if machine.own_memory:
        rungs += [Rung(dtype, True), *(Rung(dtype, True, "model", bits) for bits in (0, 8, 4))]
        rungs.append(Rung(dtype, True, "group"))  # last: each layer travels at each step
    else:
        half = dtype if wishes.dtype else "bfloat16"
        rungs += [Rung(half), *(Rung(half, True, "none", bits) for bits in (0, 8, 4))]
    fixed: dict[str, Any] = {"offload": wishes.offload, "bits": wishes.bits, "tiling": wishes.tiling}
    fixed = {name: value for name, value in fixed.items() if value is not None}
    rungs = [rung._replace(**fixed) for rung in rungs]
    if machine.kind == "cpu" and wishes.dtype is None:  # torchao's weights are made for it
        rungs = [rung._replace(dtype="bfloat16") if rung.bits else rung for rung in rungs]
    open_ = [rung for rung in rungs if not rung.bits or _can_quantize(rung, machine)]
    return tuple(dict.fromkeys(open_))


def need(rung: Rung, networks: Networks, pictures: Pictures) -> int:
    """Bytes on the device, estimated: weights that lie there at once, and what computing takes."""
    return weights(rung, networks) + networks.activations(*pictures, rung.dtype, tiling=rung.tiling)


def weights(rung: Rung, networks: Networks) -> int:
    """Bytes of weights that lie on the device at once."""
    if rung.offload == "group":
        return networks.largest_tensors(rung.dtype)
    if rung.offload == "model":
        return networks.largest_component(rung.dtype, rung.bits)
    return networks.weights(rung.dtype, rung.bits)


def _can_quantize(rung: Rung, machine: Machine) -> bool:
    """Whether the weights can be had, and can be where they are to be: quantised ones do not move layer by layer."""
    return rung.offload != "group" and quantize.is_available(rung.bits, machine.device)


def _check(wishes: Wishes, machine: Machine) -> None:
    if wishes.offload not in (None, *OFFLOADS):
        raise UsageError(f"offload: got {wishes.offload!r}, allowed auto, {', '.join(OFFLOADS)}")
    if wishes.offload not in (None, "none") and not machine.own_memory:
        message = f"--offload {wishes.offload}: {machine.device} has no memory of its own, so nothing would be saved"
        raise UsageError(message, "--quantize 8 and --tiling save memory here")
    if wishes.bits not in (None, 0, *quantize.BITS):
        raise UsageError(f"quantize: got {wishes.bits!r}, allowed none, 8, 4")
    if wishes.bits:
        quantize.check_bits(wishes.bits, machine.device)
        if wishes.offload == "group":
            raise UsageError("--offload group moves single layers, which quantised ones cannot", "--offload model")
