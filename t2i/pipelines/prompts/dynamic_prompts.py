"""Dynamic prompts in the syntax of sd-dynamic-prompts: a template, resolved by an image's seed.

| written | becomes |
| --- | --- |
| `{red|blue} horse` | one of them, each as likely as the others |
| `{3::red|blue}` | red three times as often |
| `{2$$red|blue|green}`, `{1-2$$...}` | two different ones, or one to two, joined by `,` in the order drawn |
| `{2$$ and $$red|blue|green}` | joined by ` and ` |
| `__animals__`, `__big/cat*__` | a line of `animals.txt`, or of one of the files, in the folder of wildcards |

Options may be nested. `\\{`, `\\}` and `\\|` are literal characters. Choice k of a prompt is a function of (the image's
seed, k), so that an image is the same alone and in a batch; a negative prompt has choices of its own. Weights,
`(word:1.2)`, are no choice: they stay in the prompt for the encoder (see `attention_weights.py`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from t2i.errors import UsageError
from t2i.pipelines.settings.limits import check_prompt
from t2i.randomness import derive_seed

MAX_DEPTH = 20  # of nested options, and of wildcards that name wildcards
MAX_CHOICES = 1_000  # in one prompt
MAX_WILDCARD_BYTES = 10_000_000
RAW = "`raw` takes the prompt as it is"
_SPECIAL = re.compile(r"\\[{}|]|[{}]|__")
_COUNT = re.compile(r"\s*(\d*)(-?)(\d*)\$\$(?:([^${}|]*)\$\$)?")
_WEIGHT = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)::")
_WILDCARD = re.compile(r"__([\w./* -]*?[\w*])__")


def is_template(prompt: str) -> bool:
    """Return whether a prompt has choices or escapes."""
    return _SPECIAL.search(prompt) is not None


class Wildcards:
    """A folder of `.txt` files, one option per line, each file read once."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._read: dict[str, tuple[str, ...]] = {}

    def lines(self, name: str) -> tuple[str, ...]:
        """Return the lines of a wildcard's files, without blank ones and `#` comments.  Raises UsageError."""
        if name not in self._read:
            self._read[name] = tuple(line for file in self._files(name) for line in _lines(file))
        if not self._read[name]:
            raise UsageError(f"wildcard __{name[:60]}__ has no lines")
        return self._read[name]

    def _files(self, name: str) -> list[Path]:
        wrong = Path(name).is_absolute() or ".." in Path(name).parts
        folder = self.folder if self.folder and self.folder.is_dir() else None
        if folder and not wrong and (files := sorted(folder.glob(f"{name}.txt"))):
            return files
        found = sorted(folder.rglob("*.txt")) if folder else []
        known = [file.relative_to(folder or "").with_suffix("").as_posix() for file in found]
        where = f"there are: {', '.join(known[:20])}" if known else f"no .txt files in {self.folder or 'wildcards'}"
        raise UsageError(f"prompt: no wildcard __{name[:60]}__ ({where})", f"`wildcards=FOLDER`; {RAW}")


def resolve(prompt: str, seed: int, wildcards: Wildcards | None = None, purpose: str = "prompt") -> str:
    """Resolve a template to the prompt of the image with this seed.

    wildcards: for `__name__`.  purpose: of the prompt; each has choices of its own.
    Raises UsageError: an unbalanced brace, an unknown wildcard, a prompt without end or beyond 1 MB.
    """
    if not is_template(prompt):
        return prompt
    return check_prompt(_Chooser(seed, wildcards or Wildcards(), purpose).text(prompt, 0), purpose)


def resolve_negative(prompt: str, seed: int, wildcards: Wildcards | None = None) -> str:
    """Resolve the negative prompt of the image with this seed; see `resolve`."""
    return resolve(prompt, seed, wildcards, "negative prompt")


class _Chooser:
    """Makes and counts the choices of one image."""

    def __init__(self, seed: int, wildcards: Wildcards, purpose: str) -> None:
        self.seed = seed
        self.purpose = purpose
        self.wildcards = wildcards
        self.made = 0

    def text(self, template: str, depth: int) -> str:
        """Return the template with all choices made."""
        if depth > MAX_DEPTH:
            raise UsageError(f"prompt: more than {MAX_DEPTH} levels of nested options", RAW)
        parts, at = [], 0
        while match := _SPECIAL.search(template, at):
            parts.append(template[at : match.start()])
            at = match.end()
            if match[0] == "{":
                end = _closing(template, match.start())
                parts.append(self.options(template[at:end], depth))
                at = end + 1
            elif match[0] == "}":
                raise UsageError(f"prompt: '}}' without '{{' in {_around(template, match.start())}", RAW)
            elif match[0] == "__":
                name = _WILDCARD.match(template, match.start())
                parts.append(self.wildcard(name[1], depth) if name else "__")
                at = name.end() if name else at
            else:
                parts.append(match[0][1:])
        return "".join([*parts, template[at:]])

    def options(self, inside: str, depth: int) -> str:
        """Make the choice between two braces."""
        if inside[:1] in ("!", "@"):
            what = {"!": "all combinations", "@": "one after the other"}[inside[0]]
            raise UsageError(f"prompt: {{{inside[0]}...}} ({what}) is not drawn here", "a prompt file lists them")
        count, separator = _COUNT.match(inside), ","
        if count:
            inside = inside[count.end() :]
            separator = separator if count[4] is None else count[4]
        options = _split(inside)
        weights = []
        for k, option in enumerate(options):
            weight = _WEIGHT.match(option)
            weights.append(float(weight[1]) if weight else 1.0)
            options[k] = option[weight.end() :] if weight else option
        picked = self.pick(weights, self.number(count, len(options)) if count else 1)
        return separator.join(self.text(options[k], depth + 1) for k in picked)

    def number(self, count: re.Match[str], most: int) -> int:
        """Return how many options `2$$`, `1-3$$`, `-3$$` or `2-$$` asks for, at most all."""
        if not (count[1] or count[3]):
            raise UsageError(f"prompt: {{{count[0]}...}} names no number", "for example {2$$red|green|blue}")
        low = int(count[1] or 0)
        high = int(count[3] or most) if count[2] else low
        low, high = min(low, most), min(high, most)
        if high < low:
            raise UsageError(f"prompt: {{{count[0]}...}} counts backwards", "write the smaller number first")
        return low + min(int(self.fraction() * (high - low + 1)), high - low)

    def pick(self, weights: Sequence[float], number: int) -> list[int]:
        """Return the indices of `number` different options, each as likely as its weight among the remaining ones."""
        left = list(range(len(weights)))
        picked = []
        for _ in range(number):
            total = sum(weights[k] for k in left)
            mark = self.fraction() * total
            chosen = left[-1]
            for k in left:
                mark -= weights[k]
                if mark < 0:
                    chosen = k
                    break
            left.remove(chosen)
            picked.append(chosen)
        return picked

    def wildcard(self, name: str, depth: int) -> str:
        """Choose a line of a wildcard's file."""
        lines = self.wildcards.lines(name.strip())
        return self.text(lines[self.pick([1.0] * len(lines), 1)[0]], depth + 1)

    def fraction(self) -> float:
        """Return a number in [0, 1), another one each time."""
        self.made += 1
        if self.made > MAX_CHOICES:
            raise UsageError(f"prompt: more than {MAX_CHOICES} choices in one prompt", RAW)
        return derive_seed(self.seed, self.purpose, self.made) / 2**63


def _closing(template: str, start: int) -> int:
    """Return the position at which the brace that opens at `start` is closed."""
    depth = 0
    for match in _SPECIAL.finditer(template, start):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return match.start()
    raise UsageError(f"prompt: '{{' without '}}' in {_around(template, start)}", RAW)


def _split(inside: str) -> list[str]:
    """Split options at `|`, except inside of inner braces."""
    options, depth, at = [], 0, 0
    for match in re.finditer(r"\\[{}|]|[{}|]", inside):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if match[0] == "|" and depth == 0:
            options.append(inside[at : match.start()])
            at = match.end()
    return [*options, inside[at:]]


def _around(template: str, at: int) -> str:
    return repr(template[max(0, at - 15) : at + 25])


def _lines(file: Path) -> list[str]:
    try:
        with file.open("rb") as opened:
            raw = opened.read(MAX_WILDCARD_BYTES + 1)
        text = raw.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"cannot read wildcard {file}: {e}") from None
    if len(raw) > MAX_WILDCARD_BYTES:
        raise UsageError(f"{file}: more than {MAX_WILDCARD_BYTES} bytes of wildcards")
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]
