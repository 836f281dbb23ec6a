"""The architecture: who may import whom, read from the sources. Each rule is shown to fail on a bad example."""

from __future__ import annotations

import ast
import builtins
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "t2i"

# A file imports only from lines above its own; modules on one line do not know each other.
# "folder.*" is a folder whose files may import each other, without a circle. `t2i` is its lazy names.
LAYOUT = """
    t2i.version
    t2i
    t2i.errors
    t2i.threads
    t2i.randomness
    t2i.atomic
    t2i.distributed
    t2i.config.*
    t2i.imaging.*
    t2i.metadata.*
    t2i.diffusion.*  t2i.nn.*
    t2i.model_files.*
    t2i.pipelines.environment.*
    t2i.pipelines.settings.*
    t2i.pipelines.noise.*  t2i.pipelines.prompts.*  t2i.pipelines.adapters.*  t2i.pipelines.loading.*
    t2i.pipelines.text_to_image.*  t2i.pipelines.class_conditional.*
    t2i.pipelines.*
    t2i.data.*
    t2i.jobs.events.*
    t2i.jobs.spec.*
    t2i.jobs.replay.*
    t2i.jobs.planning.*
    t2i.jobs.batch.*
    t2i.jobs.*
    t2i.api
    t2i.evaluation.*
    t2i.training.*
    t2i.report.*
    t2i.diagnostics.*
    t2i.cli.*
    t2i.__main__
"""

# Who alone may import a library (as prefixes of module names).
DOORS = {
    "accelerate": ("t2i.training", "t2i.distributed"),
    "click": ("t2i.cli",),
    "pickle": (),  # nothing is ever unpickled
    "dill": (),
    "cloudpickle": (),
    "random": (),  # randomness is an argument: t2i/randomness.py
}

# Everything a folder may import besides itself and the standard library.
ALLOWED = {
    "t2i.diffusion": {"torch"},
    "t2i.nn": {"torch", "diffusers", "t2i.errors"},
}

# What holds beyond the order of lines.
FORBIDDEN = {
    "t2i.pipelines": ("t2i.data", "t2i.evaluation", "t2i.training"),
    "t2i.report": ("t2i.training",),
    "t2i.jobs": ("click", "tqdm", "starlette", "http", "socket", "t2i.cli"),  # it tells by events, and prints nothing
    "t2i": ("scripts", "tests", "torchvision"),
}

# Calls that unpickle, or draw from or seed the global generator.
CALLS = {
    "torch.load": ("t2i.model_files.imagenet",),  # of one file, whose sha256 is known: tensors alone
    "torch.seed": (),
    "numpy.random.seed": (),
    "np.random.seed": (),
    "torch.manual_seed": ("t2i.training", "t2i.evaluation.cas"),  # weight initialisation under a seed
}


@dataclass(frozen=True)
class Source:
    """One module: its dotted name, its tree, and whether it is a package's __init__."""

    name: str
    tree: ast.Module
    package: bool = False


@cache
def sources() -> list[Source]:
    """Every module of t2i, parsed once."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if package else parts)
        found.append(Source(name, ast.parse(path.read_text(encoding="utf-8"), str(path)), package))
    return found


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def imports(source: Source) -> Iterator[str]:
    """Every module that `source` imports, wherever it does so: at the top, in a function, under TYPE_CHECKING.

    `from a import b` counts as `a.b`: a is imported too, but b may be the module that is meant.
    """
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = source.name.split(".") if source.package else source.name.split(".")[:-1]
                base = ".".join(package[: len(package) - node.level + 1] + ([base] if base else []))
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and dotted(node.func) in (
            "importlib.import_module",
            "import_module",
            "__import__",
        ):
            argument = node.args[0] if node.args else None
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield argument.value


def dotted(node: ast.expr) -> str:
    """`a.b.c` of a chain of attributes, or nothing."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return ""


def place(name: str) -> tuple[int, str] | None:
    """The line of the layout on which a module stands, and its entry there; None for one that has no line."""
    best: tuple[int, str] | None = None
    for number, line in enumerate(LAYOUT.split("\n")):
        for entry in line.split():
            prefix = entry.removesuffix(".*")
            fits = name == entry or (entry.endswith(".*") and within(name, prefix))
            if fits and (best is None or len(prefix) > len(best[1])):
                best = number, prefix
    return best


def module_of(name: str) -> str:
    """The module behind an imported name: `t2i.errors.T2IError` -> `t2i.errors`; `t2i.load` -> `t2i`."""
    while place(name) is None and "." in name:
        name = name.rpartition(".")[0]
    return name


# The rules: each yields what is wrong with one source


def order(source: Source) -> Iterator[str]:
    """A file imports only from lines above it."""
    own = place(source.name)
    if own is None:
        yield f"{source.name} has no line in LAYOUT: give it one (and in DESIGN)"
        return
    if source.name in ("t2i", "t2i.__main__"):
        return  # the lazy names, which load nothing by themselves; the door
    for name in imports(source):
        if not within(name, "t2i"):
            continue
        module = module_of(name)
        other = place(module)
        assert other is not None
        if module == "t2i":
            yield f"{source.name} imports {name}: name the module it stands in"
        elif other[0] > own[0] or (other[0] == own[0] and other != own):
            yield f"{source.name} imports {name}, which is not above it"


def doors(source: Source) -> Iterator[str]:
    """Accelerate only in training/ and distributed.py, Click only in cli/, pickle nowhere."""
    for name in imports(source):
        for library, places in DOORS.items():
            if within(name, library) and not any(within(source.name, p) for p in places):
                yield f"{source.name} imports {name}; allowed in {places or 'no file'}"


def allowed(source: Source) -> Iterator[str]:
    """diffusion/ imports torch and the standard library alone; nn/ also diffusers."""
    for folder, libraries in ALLOWED.items():
        if not within(source.name, folder):
            continue
        for name in imports(source):
            standard = name.partition(".")[0] in sys.stdlib_module_names
            if not standard and not any(within(name, ok) for ok in {*libraries, folder}):
                yield f"{source.name} imports {name}; {folder} may import {sorted(libraries)}"


def forbidden(source: Source) -> Iterator[str]:
    """What a folder must never know."""
    for folder, strangers in FORBIDDEN.items():
        if within(source.name, folder):
            for name in imports(source):
                if any(within(name, stranger) for stranger in strangers):
                    yield f"{source.name} imports {name}"


def calls(source: Source) -> Iterator[str]:
    """Nothing unpickles, nothing touches the global generators outside of weight initialisation."""
    for node in ast.walk(source.tree):
        name = dotted(node.func) if isinstance(node, ast.Call) else ""
        if name in CALLS and not any(within(source.name, p) for p in CALLS[name]):
            yield f"{source.name}:{getattr(node, 'lineno', 0)} calls {name}"
        if re.fullmatch(
            r"(np|numpy)\.random\.(rand|randn|randint|random|choice|shuffle|permutation|normal|uniform)", name
        ):
            yield f"{source.name}:{getattr(node, 'lineno', 0)} calls {name}: use a generator"


def side_effects(source: Source) -> Iterator[str]:
    """Importing a module defines its own names and does nothing to others': no call, loop or setting for its effect."""
    if source.name == "t2i.__main__":
        return  # it is run, not imported; it mends the path first
    own = {node.name for node in source.tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {
        t.id
        for node in source.tree.body
        if isinstance(node, ast.Assign)
        for t in node.targets
        if isinstance(t, ast.Name)
    }
    for node in source.tree.body:
        touched: list[ast.expr] = []
        if isinstance(node, ast.Expr | ast.For | ast.While | ast.With | ast.Delete):
            touched = [call.func for call in ast.walk(node) if isinstance(call, ast.Call)]
        elif isinstance(node, ast.Assign):
            touched = [target.value for target in node.targets if isinstance(target, ast.Subscript | ast.Attribute)]
        for target in touched:
            root = dotted(target).partition(".")[0]
            if root not in own and root not in dir(builtins):
                yield f"{source.name}:{node.lineno} acts on import: {ast.unparse(node)[:60]}"


RULES = [order, doors, allowed, forbidden, calls, side_effects]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps(rule) -> None:  # type: ignore[no-untyped-def]
    wrong = [line for source in sources() for line in rule(source)]
    assert not wrong, "\n".join(wrong)


def test_every_source_is_seen() -> None:
    names = {source.name for source in sources()}
    assert {"t2i", "t2i.__main__", "t2i.errors", "t2i.cli", "t2i.cli.main", "t2i.diffusion"} <= names


def circle(modules: list[Source]) -> list[str]:
    """The modules of one circle of imports, or nothing. The lazy names of `t2i` load nothing by themselves."""
    names = {source.name for source in modules}
    graph: dict[str, set[str]] = {}
    for source in modules:
        graph[source.name] = set()
        for name in imports(source):
            while name not in names and "." in name:
                name = name.rpartition(".")[0]
            if name in names and name != source.name and source.name != "t2i":
                graph[source.name].add(name)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as e:
        found: list[str] = e.args[1]
        return found
    return []


def test_no_circles() -> None:
    assert not circle(sources())
    a, b = ast.parse("from .b import x"), ast.parse("def f():\n    from t2i.data.a import y")
    assert set(circle([Source("t2i.data.a", a), Source("t2i.data.b", b)])) == {"t2i.data.a", "t2i.data.b"}
    assert not circle([Source("t2i.data.a", a), Source("t2i.data.b", ast.parse("import math"))])


BAD = [
    (order, "t2i.errors", "from t2i.config import load_config"),
    (order, "t2i.errors", "def f():\n    import t2i.imaging.images"),
    (order, "t2i.metadata.recipe", "from ..model_files import registry"),
    (order, "t2i.model_files.registry", "from ..pipelines import text_to_image"),
    (order, "t2i.imaging.images", "if TYPE_CHECKING:\n    from t2i.metadata.recipe import Recipe"),
    (order, "t2i.data.sources", "import importlib\nimportlib.import_module('t2i.training.runs.run_folder')"),
    (order, "t2i.diffusion.schedule", "from t2i.nn.unet import UNet"),
    (order, "t2i.nn.unet", "from t2i.diffusion import schedule"),
    (order, "t2i.errors", "from t2i import load"),
    (order, "t2i.metadata.recipe", "from t2i import __version__"),
    (order, "t2i.evaluation.score", "from t2i.cli.main import main"),
    (order, "t2i.somewhere", "x = 1"),
    (doors, "t2i.pipelines.class_conditional.ddpm", "from accelerate import Accelerator"),
    (doors, "t2i.training.runs.run_folder", "import click"),
    (doors, "t2i.data.sources", "import pickle"),
    (doors, "t2i.data.batches", "from random import shuffle"),
    (allowed, "t2i.diffusion.schedule", "import numpy as np"),
    (allowed, "t2i.diffusion.samplers", "from t2i.errors import UsageError"),
    (allowed, "t2i.nn.unet", "def f():\n    import transformers"),
    (forbidden, "t2i.pipelines.text_to_image.pipeline", "from t2i.training import run"),
    (forbidden, "t2i.pipelines.text_to_image.pipeline", "import t2i.data.sources"),
    (forbidden, "t2i.report.page", "from ..training.runs.run_folder import load"),
    (forbidden, "t2i.imaging.images", "import torchvision.transforms"),
    (forbidden, "t2i.model_files.registry", "from scripts import bench"),
    (calls, "t2i.training.runs.run_folder", "import torch\ntorch.load('x')"),
    (calls, "t2i.pipelines.class_conditional.ddpm", "import torch\ntorch.manual_seed(0)"),
    (calls, "t2i.data.batches", "import numpy as np\nx = np.random.permutation(9)"),
    (side_effects, "t2i.imaging.images", "import warnings\nwarnings.simplefilter('ignore')"),
    (side_effects, "t2i.imaging.images", "import os\nos.environ['X'] = '1'"),
    (side_effects, "t2i.imaging.images", "from PIL import Image\nImage.MAX_IMAGE_PIXELS = 1"),
    (side_effects, "t2i.nn.unet", "from t2i.errors import REGISTRY\nREGISTRY['unet'] = 1"),
    (side_effects, "t2i.nn.unet", "from t2i.model_files import register\nfor name in 'ab':\n    register(name)"),
]
GOOD = [
    (order, "t2i.training.engine", "from .ema import EMA\nfrom t2i.errors import NonFinite\nimport t2i.nn.unet"),
    (order, "t2i.metadata.recipe", "from t2i.version import __version__\nfrom t2i.errors import ImageError"),
    (order, "t2i.diffusion.samplers", "from .schedule import Schedule"),
    (doors, "t2i.training.engine", "from accelerate import Accelerator"),
    (doors, "t2i.cli.train", "import click"),
    (allowed, "t2i.diffusion.schedule", "import math, torch\nfrom torch import nn\nfrom .objective import add_noise"),
    (allowed, "t2i.nn.unet", "from diffusers import ModelMixin"),
    (forbidden, "t2i.report.page", "from t2i.evaluation import score"),
    (calls, "t2i.training.families.text2image", "import torch\ntorch.manual_seed(0)"),
    (side_effects, "t2i.imaging.images", '"""Doc."""\nX: int = 1\nY = {"a": 1}\n\ndef f() -> None:\n    print()'),
    (side_effects, "t2i.cli.train", "def train(): ...\nfor name in 'ab':\n    train.add_command(name)"),
]


@pytest.mark.parametrize(("rule", "name", "code"), BAD)
def test_each_rule_catches(rule, name: str, code: str) -> None:  # type: ignore[no-untyped-def]
    assert list(rule(Source(name, ast.parse(code))))


@pytest.mark.parametrize(("rule", "name", "code"), GOOD)
def test_each_rule_lets_pass(rule, name: str, code: str) -> None:  # type: ignore[no-untyped-def]
    assert not list(rule(Source(name, ast.parse(code))))


def test_a_relative_import_in_an_init_counts_from_its_own_package() -> None:
    source = Source("t2i.training", ast.parse("from .runs.run_folder import x\nfrom ..cli import main"), package=True)
    assert list(imports(source)) == ["t2i.training.runs.run_folder.x", "t2i.cli.main"]
    assert list(order(source)) == ["t2i.training imports t2i.cli.main, which is not above it"]
