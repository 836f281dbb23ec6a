"""`t2i doctor`: what it finds on a whole installation, and on broken ones that the tests make."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from t2i import __version__
from t2i.cli.main import main
from t2i.diagnostics import doctor

ROOT = Path(doctor.__file__).parents[2]


def examine(capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any], dict[str, dict[str, str]], str]:
    """(exit code, facts, problems by name, stderr)."""
    code = main(["doctor", "--json"])
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    return code, report["facts"], {found["name"]: found for found in report["problems"]}, captured.err


def test_a_whole_installation_is_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "not" / "yet"))
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    code, facts, problems, said = examine(capsys)
    assert (code, problems, said) == (0, {}, "")
    assert facts["t2i"] == __version__
    assert facts["torch"] == torch.__version__
    assert set(doctor.LIBRARIES) <= set(facts)
    assert facts["precision"][0] == "float32"
    flags = Path("/proc/cpuinfo").read_text() if os.path.exists("/proc/cpuinfo") else ""
    if facts["device"]["kind"] == "cpu" and flags:
        assert ("bfloat16" in facts["precision"]) == bool(re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", flags))
    assert 0 < facts["memory"]["free"] <= facts["memory"]["all"]
    assert (facts["cache"], facts["disk"]["free"] > 0) == (str(tmp_path / "not" / "yet"), True)
    assert facts["network"] == {"allowed": False, "token": True}
    assert facts["mini"] == facts["judge"] == "intact"  # their cards say the sha256 of their weights
    assert main(["doctor"]) == 0
    captured = capsys.readouterr()
    assert "hf_secret" not in captured.out
    assert "nothing is broken" in captured.err
    card = (ROOT / "t2i" / "mini" / "README.md").read_text(encoding="utf-8")
    (said_there,) = re.findall(r"`([0-9a-f]{64})`", card)
    assert f"intact, as published ({said_there})" in captured.out


def test_what_is_broken_is_named_with_the_way_out_and_the_code_is_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants

    (tmp_path / "cache").write_text("a file")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "config" / "t2i").mkdir(parents=True)
    (tmp_path / "config" / "t2i" / "config.yaml").write_text("generate:\n  stepz: 1\n")
    monkeypatch.setattr(doctor, "LIBRARIES", ("torch", "nosuchlibrary"))
    monkeypatch.setattr(doctor, "_floors", lambda: {"torch": "torch>=99"})
    code, facts, problems, said = examine(capsys)
    assert code == 1
    assert list(problems) == ["torch", "nosuchlibrary", "disk", "config"]
    assert problems["torch"]["hint"] == "pip install -U 'torch>=99'"
    assert facts["nosuchlibrary"] is None
    assert "HF_HOME" in problems["disk"]["hint"]
    assert "did you mean 'steps'?" in problems["config"]["problem"]
    assert said.startswith("error: broken: 4\n")
    assert "pip install -U 'torch>=99'" in said


def damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the embedded models that a test may damage."""
    for name in ("mini", "judge"):
        shutil.copytree(ROOT / "t2i" / name, tmp_path / name)
    monkeypatch.setattr(doctor, "PACKAGE", tmp_path)
    return tmp_path


def test_a_damaged_model_in_the_package_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = damaged(tmp_path, monkeypatch)
    weights = folder / "judge" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1  # one bit, deep in a tensor: nothing but the hash can tell
    weights.write_bytes(data)
    found = doctor.embedded("judge")
    assert (found.value, "judge/diffusion_pytorch_model.safetensors" in str(found.problem)) == ("changed", True)
    assert "pip install" in str(found.hint)
    unet = folder / "mini" / "unet" / "diffusion_pytorch_model.safetensors"
    unet.write_bytes(unet.read_bytes()[:1000])
    assert (doctor.embedded("mini").value, "cut short" in str(doctor.embedded("mini").problem)) == ("broken", True)
    shutil.rmtree(folder / "mini")
    assert doctor.embedded("mini").problem


@pytest.mark.parametrize("part", ["text_encoder/model", "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model"])
def test_one_flipped_bit_of_mini_is_found(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = damaged(tmp_path, monkeypatch) / "mini" / f"{part}.safetensors"
    assert doctor.embedded("mini").problem is None
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    monkeypatch.setattr(doctor, "examine", lambda: iter([doctor.embedded("mini")]))
    code, facts, problems, said = examine(capsys)
    assert (code, facts["mini"]) == (1, "changed")
    assert f"mini/{part}.safetensors" in problems["mini"]["problem"]
    assert "not as published: sha256 " in problems["mini"]["problem"]
    assert "pip install --force-reinstall" in said


def test_an_installed_package_is_compared_with_what_was_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder as pip leaves it: the package, and beside it the record of every file's hash."""
    site = tmp_path / "site"
    package = site / "t2i"
    package.mkdir(parents=True)
    damaged(package, monkeypatch)
    lines = []
    for path in sorted(path for path in package.rglob("*") if path.is_file()):
        digest = base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest()).decode().rstrip("=")
        lines.append(f"{path.relative_to(site).as_posix()},sha256={digest},{path.stat().st_size}")
    record = site / f"t2i-{__version__}.dist-info"
    record.mkdir()
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: t2i\nVersion: {__version__}\n")
    (record / "RECORD").write_text("\n".join(lines))
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    assert doctor.embedded("mini").value == "intact"
    (package / "mini" / "tokenizer" / "tokenizer.json").write_text("{}")
    found = doctor.embedded("mini")
    assert (found.value, "mini/tokenizer/tokenizer.json" in str(found.problem)) == ("changed", True)


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
@pytest.mark.parametrize("command", [["models", "list"], ["--help"], ["generate", "a horse", "--steps", "0"]])
def test_no_color_is_honoured_on_a_terminal(command: list[str]) -> None:
    """t2i colours nothing; what the libraries underneath might colour, NO_COLOR keeps plain."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "NO_COLOR": "1", "TERM": "xterm-256color", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "t2i", *command], stdout=theirs, stderr=theirs, env=env, timeout=120)
    os.close(theirs)
    text = b""
    while True:
        try:
            more = os.read(ours, 65536)
        except OSError:  # on Linux the end of a terminal
            break
        if not more:
            break
        text += more
    os.close(ours)
    assert text
    assert not re.search(rb"\x1b\[[0-9;]*m", text)
