"""Shared fixtures: a Stable Diffusion folder of random weights, small enough to draw in a blink, and no network."""

from __future__ import annotations

import os
import tempfile

from tiny_kit import make_pipeline

# Before anything imports huggingface_hub, which reads them once: no test may reach the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
# What someone has made the default on this machine is no part of a test.
os.environ["XDG_CONFIG_HOME"] = os.path.join(tempfile.gettempdir(), "t2i-tests-config")
os.environ.pop("T2I_MODEL", None)
os.environ.pop("T2I_DEBUG", None)

import io
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from generate_kit import Ran, Run


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion folder with a flow scheduler, as `mini` has: read it, never write to it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make_pipeline(tmp_path_factory.mktemp("models") / "tiny", "flow")


@pytest.fixture(scope="session")
def epsilon_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same networks with Stable Diffusion 1's scheduler (PNDM, noise prediction): read it, never write to it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make_pipeline(tmp_path_factory.mktemp("models") / "tiny-epsilon", "epsilon")


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A pipeline folder of one of `family_kit.FAMILIES`, made when first asked for: read it, never write to it."""
    from family_kit import save_family

    folder = tmp_path_factory.mktemp("families")

    @cache
    def saved(kind: str) -> Path:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return save_family(kind, folder / f"tiny-{kind}")

    return saved


@pytest.fixture(autouse=True)
def own_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give each test the settings of a fresh process, as far as t2i changes them: a model may have asked for them."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")  # so that what a test sets is taken back
    yield
    torch = sys.modules.get("torch")
    if torch is not None and torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = False


@pytest.fixture
def pipeline_copy(tiny_pipeline: Path, tmp_path: Path) -> Path:
    """A copy of the tiny pipeline that a test may damage."""
    return Path(shutil.copytree(tiny_pipeline, tmp_path / "model"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def t2i(here: Path, tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs `t2i generate` with the tiny pipeline and two steps, unless told otherwise."""
    monkeypatch.setenv("T2I_MODEL", str(tiny_pipeline))

    from t2i.cli.main import main

    def run(*arguments: str, stdin: bytes = b"", steps: str = "2") -> Ran:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capfd.readouterr()
        code = main(["generate", *arguments, *(["--steps", steps] if steps else [])])
        return Ran(code, *capfd.readouterr())

    return run
