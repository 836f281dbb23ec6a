"""Completion in the shells, asked as the shells ask."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_kit import ENV, run

from t2i.cli.main import main
from t2i.model_files import registry


def complete(*words: str, env: dict[str, str] | None = None) -> list[str]:
    """What is offered for the last of the words."""
    asked = {"_T2I_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(["t2i", *words]), "COMP_CWORD": str(len(words))}
    done = run("-m", "t2i", env={**ENV, **(env or {}), **asked})
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_models_schedulers_and_devices_are_completed(tmp_path: Path) -> None:
    (tmp_path / "hub" / "models--owner--tiny").mkdir(parents=True)
    env = {"HF_HOME": str(tmp_path)}
    names = [f"plain,{name}" for name in (*registry.NAMES, "owner/tiny")]
    assert complete("models", "info", "", env=env) == names
    assert complete("generate", "-m", "flux", env=env) == [name for name in names if name.startswith("plain,flux")]
    assert complete("generate", "-m", "./x", env=env) == ["file,"]
    assert complete("generate", "--scheduler", "eu") == ["plain,euler", "plain,euler-a"]
    assert complete("generate", "--device", "cu") == ["plain,cuda"]
    assert complete("generate", "--dtype", "b") == ["plain,bfloat16"]


def test_completing_loads_nothing_heavy() -> None:
    code = (
        "import os, sys, atexit\n"
        "atexit.register(lambda: print([m for m in ('torch', 'diffusers', 'huggingface_hub') if m in sys.modules]))\n"
        "os.environ.update(_T2I_COMPLETE='bash_complete', COMP_WORDS='t2i generate -m s', COMP_CWORD='3')\n"
        "from t2i.cli.main import main; main([])"
    )
    assert run("-c", code).stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_clicks_and_the_shell_takes_it(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert f"_T2I_COMPLETE={shell}_complete" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)
    assert main(["completion", "tcsh"]) == 2
    assert "'bash', 'zsh', 'fish'" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes_what_is_typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The script, in a bash, with a `t2i` on the path."""
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    program = tmp_path / "t2i"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m t2i "$@"\n')
    program.chmod(0o755)
    asked = "COMP_WORDS=(t2i generate --scheduler dd); COMP_CWORD=3; _t2i_completion t2i; echo ${COMPREPLY[@]}"
    env = {**ENV, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    bash = ["bash", "--norc", "-c", f"{script}\n{asked}"]
    done = subprocess.run(bash, env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout == "ddim\n", done.stderr
