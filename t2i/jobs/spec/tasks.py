"""Prompts with their own options, and the tasks, one per image, that they make."""

from __future__ import annotations

import secrets
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i.pipelines.prompts.dynamic_prompts import Wildcards, is_template, resolve, resolve_negative
from t2i.pipelines.settings.limits import check_seeds
from t2i.pipelines.settings.settings import Job

if TYPE_CHECKING:
    from t2i.metadata.recipe import Recipe


class PromptOverrides(Mapping[str, Any]):
    """Options that one prompt sets for itself, by the names of `GenerateOptions`.

    Immutable and hashable: a million rows with equal options share what is derived from them.
    """

    __slots__ = ("_hash", "_values")

    def __init__(self, values: Mapping[str, Any] | None = None, **named: Any) -> None:
        self._values: dict[str, Any] = {**(values or {}), **named}
        self._hash: int | None = None

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(frozenset(self._values.items()))
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PromptOverrides) and self._values == other._values

    def __repr__(self) -> str:
        return f"PromptOverrides({', '.join(f'{name}={value!r}' for name, value in self.items())})"

    def with_(self, **values: Any) -> PromptOverrides:
        """Return these and other options; the others win where both set one."""
        return PromptOverrides(self._values, **values)

    def without(self, names: Container[str]) -> PromptOverrides:
        """Return these options without the named ones."""
        return PromptOverrides({name: value for name, value in self.items() if name not in names})


NO_OVERRIDES = PromptOverrides()


@dataclass(frozen=True)
class Original:
    """An image to reproduce, and its record (None: it carries another tool's)."""

    path: Path
    recipe: Recipe | None


@dataclass(frozen=True)
class Prompt:
    """A prompt, and what belongs to it alone.

    row: in the file it came from (0 on the command line), which shifts its seeds.  where: that place, for messages.
    literal: it holds no choices or wildcards; template: the text that it was resolved from.
    copies: (n, k): to be drawn as image k of n at once, since another number may round differently.
    """

    text: str
    row: int = 0
    overrides: PromptOverrides = NO_OVERRIDES
    template: str = ""
    literal: bool = False
    original: Original | None = None
    copies: tuple[int, int] = (1, 0)
    where: str = ""


@dataclass(frozen=True)
class Task:
    """One image to draw, and the prompt it belongs to."""

    job: Job
    prompt: Prompt


def choose_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    """Return the seeds of a run: -1, or none at all, becomes a random one.  Raises UsageError: out of range."""
    return check_seeds([secrets.randbelow(2**32) if seed == -1 else seed for seed in seeds or (-1,)])


def make_tasks(
    prompts: Sequence[Prompt], seeds: Sequence[int], count: int, folder: Path | None = None, negative: str = ""
) -> list[Task]:
    """Return all tasks of these prompts: see `each_task`."""
    return list(each_task(prompts, seeds, count, folder, negative))


def each_task(
    prompts: Iterable[Prompt], seeds: Sequence[int], count: int, folder: Path | None = None, negative: str = ""
) -> Iterator[Task]:
    """Yield one task per image: image k of a prompt has seed + k; row r of a file starts at seed + r x count.

    A prompt with a seed of its own starts there.  Choices and wildcards are resolved by the image's seed.
    folder: of wildcards.  negative: the template where a prompt has no negative prompt of its own.
    Raises UsageError where a seed would leave its range, or choices in a prompt are malformed.
    """
    wildcards = Wildcards(folder)
    for prompt in prompts:
        own = prompt.overrides.get("seed")
        for seed in [seed + prompt.row * count for seed in seeds] if own is None else [own]:
            for k in range(prompt.overrides.get("num_images", count)):
                text, template = prompt.text, prompt.template
                if not prompt.literal:
                    text, template = resolve(prompt.text, seed + k, wildcards), prompt.template or prompt.text
                check_seeds([seed + k])
                yield Task(Job(text, seed + k, template, *_negative(prompt, seed + k, wildcards, negative)), prompt)


def _negative(prompt: Prompt, seed: int, wildcards: Wildcards, common: str) -> tuple[str | None, str]:
    """Return the negative prompt of one image, and its template; (None, ""): that of the settings holds."""
    own, record = prompt.overrides.get("negative_prompt"), prompt.original and prompt.original.recipe
    if own is not None and (prompt.literal or prompt.original):  # a record's: it has been chosen
        return (own, record.negative_template) if record and record.negative_prompt == own else (None, "")
    template = common if own is None else own
    return (resolve_negative(template, seed, wildcards), template) if is_template(template) else (None, "")
