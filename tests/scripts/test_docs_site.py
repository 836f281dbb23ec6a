"""The site of the documentation: it builds without a warning, loads nothing from elsewhere, shows the public names."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("material", reason="the extra docs is not installed")
pytest.importorskip("mkdocstrings_handlers.python")

ROOT = Path(__file__).parents[2]
# links that a reader may follow; pages load nothing from them
FOLLOWED = ("https://semver.org",)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_site", ROOT / "scripts" / "docs_site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        for url in re.findall(r'(?:src|href)="(https?://[^"]*)"', page.read_text("utf-8")):
            assert url in FOLLOWED, f"{page.name}: {url}"


def test_links_between_pages_lead_somewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        if page.name == "404.html":  # its links are absolute, since it is served for any address
            continue
        for url in re.findall(r'(?:src|href)="(?![a-z]+:)([^"#?]+)', page.read_text("utf-8")):
            assert (page.parent / url).exists(), f"{page.relative_to(site)}: {url}"


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("generation", ["load", "__call__"]),
        ("pipelines", ["t2i.pipelines.DDPM", "t2i.pipelines.DCGAN", "t2i.pipelines.VAE", "t2i.pipelines.TextToImage"]),
        ("training", ["train_ddpm", "train_text2image"]),
        ("diffusion", ["t2i.diffusion.objective.add_noise", "t2i.diffusion.samplers.ddim"]),
        ("nn", ["UNet2DModel"]),
        ("errors", ["UsageError", "OutOfMemory"]),
    ],
)
def test_the_public_names_are_there_with_what_their_docstrings_say(site: Path, page: str, names: list[str]) -> None:
    text = (site / "reference" / "api" / f"{page}.html").read_text("utf-8")
    for name in names:
        assert re.search(rf'id="[\w.]*{re.escape(name)}"', text), name


def test_names_of_a_docstring_become_a_list(hooks: ModuleType) -> None:
    text = "Noise images.\n\nx0, eps: (B, ...).  t: (B,) in\n[0, T].\nRaises UsageError.\nNote: no parameter."
    assert hooks.as_lists(text, {"x0", "eps", "t", "schedule"}) == (
        "Noise images.\n\n- `x0`, `eps`: (B, ...).\n- `t`: (B,) in\n  [0, T].\n- Raises UsageError.\n"
        "  Note: no parameter."
    )
    assert hooks.as_lists("t: what?", set()) == "t: what?"
    assert hooks.as_lists("Do it:\n\n    t: 1", {"t"}) == "Do it:\n\n    t: 1"


def test_links_out_of_docs_lead_to_where_the_site_has_the_file(hooks: ModuleType) -> None:
    def turned(text: str, source: str, target: str) -> str:
        return str(hooks._relink(text, Path(source), target))

    assert turned("[a](../RESULTS.md#mini)", "docs/train.md", "train.md") == "[a](results.md#mini)"
    assert turned("[a](docs/speed.md)", "CHANGELOG.md", "changelog.md") == "[a](speed.md)"
    assert turned("![a](grid.png)", "t2i/mini/README.md", "mini.md") == "![a](pictures/mini-grid.png)"
    assert turned("[a](../../speed.md)", "docs/reference/api/x.md", "reference/api/x.md") == "[a](../../speed.md)"
    assert turned("[a](https://x.org)", "docs/a.md", "a.md") == "[a](https://x.org)"
