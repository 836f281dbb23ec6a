"""The root command: its help, its errors and exit codes, and every door a user comes in by."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from command_kit import ENV, ROOT, run

from t2i import __version__
from t2i.cli.main import COMMANDS, main
from t2i.errors import ModelUnavailable, NonFinite, PartialFailure, Terminated, UsageError


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Put a command `try` beside the real ones, which does what the test says."""

    def install(body: Callable[[], object]) -> None:
        module = types.ModuleType("commands_of_this_test")
        module.command = click.command(help="Try.")(body)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(COMMANDS, "try", ("commands_of_this_test:command", "Try."))

    return install


def raising(error: BaseException) -> Callable[[], None]:
    def body() -> None:
        raise error

    return body


# Help


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, json; from t2i.cli.main import main\n"
        "rc = main(['--help'])\n"
        "print(json.dumps([rc, sorted(m.partition('.')[0] for m in sys.modules)]))"
    )
    *page, last = run("-c", code).stdout.splitlines()
    rc, modules = json.loads(last)
    assert rc == 0
    for name, (_, line) in COMMANDS.items():
        assert any(words.split() == f"{name} {line}".split() for words in page)
    heavy = {"torch", "diffusers", "transformers", "accelerate", "datasets", "numpy", "PIL", "pydantic", "yaml"}
    assert heavy.isdisjoint(modules)
    assert "click" in modules  # the list above would catch them


def test_alone_it_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    alone = capsys.readouterr().out
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == alone
    assert alone.startswith("Usage: t2i ")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"t2i {__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_takes_debug(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    page = capsys.readouterr().out
    assert page.startswith(f"Usage: t2i {name} ")
    assert "--debug" in page


def test_shells_complete_commands_and_options() -> None:
    """Click's own completion, by the variable that its script sets."""
    asked = {"_T2I_COMPLETE": "bash_complete", "COMP_CWORD": "1", "COMP_WORDS": "t2i tr"}
    assert run("-m", "t2i", env={**ENV, **asked}).stdout == "plain,train\n"
    asked |= {"COMP_CWORD": "2", "COMP_WORDS": "t2i train"}
    assert "plain,text2image" in run("-m", "t2i", env={**ENV, **asked}).stdout.splitlines()
    script = run("-m", "t2i", env={**ENV, "_T2I_COMPLETE": "zsh_source"})
    assert "compdef" in script.stdout


def test_a_group_alone_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train"]) == 0
    assert capsys.readouterr().out.startswith("Usage: t2i train ")


# Errors and exit codes


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UsageError("size 513", "the nearest is 512"), 2, "error: size 513\nhint: the nearest is 512\n"),
        (PartialFailure("2 of 9 failed"), 3, "error: 2 of 9 failed\n"),
        (ModelUnavailable("no such model", "t2i models"), 4, "error: no such model\nhint: t2i models\n"),
        (
            NonFinite("non-finite image", "try --dtype float32"),
            1,
            "error: non-finite image\nhint: try --dtype float32\n",
        ),
        (Terminated("terminated"), 143, "error: terminated\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted\n"),
        (KeyError("x"), 1, "error: unexpected KeyError: 'x'\nhint: --debug shows where\n"),
        (click.BadParameter("no"), 2, "error: invalid value: no\nhint: see t2i try --help\n"),
    ],
)
def test_errors_become_one_line_a_hint_and_a_code(
    error: BaseException, code: int, words: str, command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(raising(error))
    assert main(["try"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == words


@pytest.mark.parametrize("make", [MemoryError, lambda: torch_error("OutOfMemoryError"), lambda: torch_error(None)])
def test_out_of_memory_is_5_with_the_next_thing_to_try(
    make: Callable[[], Exception], command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(raising(make()))
    assert main(["try"]) == 5
    error = capsys.readouterr().err
    assert error.startswith("error: out of memory")
    assert "--batch-size 1" in error


def torch_error(name: str | None) -> Exception:
    import torch

    if name is None:
        return RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    error: Exception = getattr(torch, name)("CUDA out of memory")
    return error


@pytest.mark.parametrize("args", [["--debug", "try"], ["try", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(
    args: list[str], command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(raising(UsageError("bad")))
    assert main(args) == 2
    error = capsys.readouterr().err
    assert "Traceback (most recent call last)" in error
    assert error.endswith("error: bad\n")


def test_debug_by_the_environment(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command(raising(ZeroDivisionError()))
    monkeypatch.setenv("T2I_DEBUG", "1")
    assert main(["try"]) == 1
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("T2I_DEBUG", "0")
    assert main(["try"]) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_the_token_is_never_printed(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret_of_the_user")
    command(raising(RuntimeError("401 for Authorization: Bearer hf_secret_of_the_user")))
    main(["--debug", "try"])
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert "secret" not in error


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["genrate"], "did you mean 'generate'?"),
        (["a horse"], 't2i generate "..."'),
        (["a", "horse"], 't2i generate "..."'),
        (["train", "diffusion"], "there are: autoencoder, classifier"),
        (["xyz"], "there are: generate"),
        (["--verison"], "--verison"),
        (["generate", "--stepps", "3", "a horse"], "--steps"),
    ],
)
def test_unknown_words_name_their_neighbours(args: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 2
    error = capsys.readouterr().err
    assert words.lower() in error.lower()
    assert "hint: see t2i" in error
    assert "Traceback" not in error


def test_a_command_may_return_nothing_or_its_code(command: Callable[..., None]) -> None:
    command(lambda: None)
    assert main(["try"]) == 0
    command(lambda: 3)
    assert main(["try"]) == 3


# Signals and pipes, in real processes

IN_A_PROCESS = """
import sys, types, click, time
from t2i.cli.main import COMMANDS, main
module = types.ModuleType("m")
@click.command()
def command():
    {body}
module.command = command
sys.modules["m"] = module
COMMANDS["try"] = ("m:command", "Try.")
sys.exit(main(["try"]))
"""


def start(body: str) -> subprocess.Popen[str]:
    # A shell starts its background jobs with SIGINT ignored, and a child would inherit that.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)" + IN_A_PROCESS.format(body=body)
    return subprocess.Popen(
        [sys.executable, "-c", code], env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_unwind_the_stack(number: signal.Signals, code: int) -> None:
    body = "\n    ".join(
        [
            "try:",
            "    click.echo('ready'); sys.stdout.flush(); time.sleep(60)",
            "finally:",
            "    click.echo('cleaned up')",
        ]
    )
    with start(body) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        out, error = process.communicate(timeout=30)
        assert process.returncode == code
        assert out == "cleaned up\n"
        assert "Traceback" not in error


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_closed_pipe_is_quiet(lines: int) -> None:
    """`t2i ... | head` ends without words, whether the pipe breaks in the middle or at the last flush."""
    body = f"sys.stdin.readline(); [print('x' * 80) for _ in range({lines})]"
    code = IN_A_PROCESS.format(body=body)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], env=ENV, text=True, **pipes) as process:  # type: ignore[call-overload]
        process.stdout.close()
        process.stdin.write("go\n")
        process.stdin.close()
        assert process.stderr.read() == ""
        assert process.wait(30) == 1


# The doors


def test_python_dash_m_from_anywhere(tmp_path: Path) -> None:
    assert run("-m", "t2i", "--version", cwd=tmp_path).stdout == f"t2i {__version__}\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "launch",
    [
        ["accelerate.commands.launch", "--cpu", "--num_processes", "1", "-m", "t2i"],
        ["torch.distributed.run", "--nproc-per-node", "2", "-m", "t2i"],
    ],
)
def test_launchers_by_module_from_anywhere(launch: list[str], tmp_path: Path) -> None:
    done = run("-m", *launch, "--version", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.splitlines()) == {f"t2i {__version__}"}


@pytest.mark.slow
def test_accelerate_launch_of_the_folder_hides_no_other_package(tmp_path: Path) -> None:
    """`accelerate launch t2i` runs the folder as a script: what stands in it must not shadow what others import."""
    shutil.copytree(ROOT / "t2i", tmp_path / "t2i", ignore=shutil.ignore_patterns("__pycache__", "mini"))
    for shadow in ("click", "difflib", "signal"):
        (tmp_path / "t2i" / f"{shadow}.py").write_text("raise RuntimeError('this hides the real one')\n")
    env = {name: value for name, value in ENV.items() if name != "PYTHONPATH"}
    door = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "t2i"]
    done = run(*door, "--version", cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"t2i {__version__}\n"
    done = run(*door, "genrate", cwd=tmp_path, env=env)
    assert done.returncode == 1  # the launcher's own code; the message still says it
    assert "did you mean 'generate'?" in done.stderr
    done = run("t2i", "--help", cwd=tmp_path, env=env)
    assert done.stdout.startswith("Usage: t2i ")


def test_python_door_is_lazy_and_complete() -> None:
    code = (
        "import sys, t2i\n"
        "assert not {'torch', 'diffusers', 'click', 'pydantic'} & set(sys.modules), 'heavy'\n"
        "assert dir(t2i) == sorted(t2i.__all__)\n"
        "assert t2i.errors.UsageError.exit_code == 2\n"
        "try: t2i.nothing\n"
        "except AttributeError as e: print(e)\n"
    )
    done = run("-c", code)
    assert done.stderr == ""
    assert done.stdout == "module 't2i' has no attribute 'nothing'\n"


def test_pipelines_are_named_at_their_door_and_loaded_when_asked_for() -> None:
    code = (
        "import sys, t2i.pipelines as door\n"
        "assert not {'torch', 'diffusers'} & set(sys.modules), 'heavy'\n"
        "for name in door.__all__: assert callable(getattr(door, name)), name\n"
        "from t2i.pipelines import DDPM\n"
        "from t2i.pipelines.class_conditional.ddpm import DDPM as its_own\n"
        "assert DDPM is its_own\n"
        "try: door.nothing\n"
        "except AttributeError as e: print(e)\n"
    )
    done = run("-c", code)
    assert done.stderr == ""
    assert done.stdout == "module 't2i.pipelines' has no attribute 'nothing'\n"


def test_load_is_the_pipelines_own() -> None:
    import t2i
    from t2i import api

    assert t2i.load is api.load


def test_no_command_lets_a_library_speak_first_or_run_code_of_others(tmp_path: Path) -> None:
    """A ControlNet is looked for before any model is loaded, which needs diffusers' tables."""
    from PIL import Image

    edges = tmp_path / "edges.png"
    Image.new("L", (64, 64), 255).save(edges)
    code = (
        "import os, sys\n"
        "from t2i.cli.main import main\n"
        f"code = main(['generate', 'a house', '--control', 'canny:{edges}', '-o', '{tmp_path}/'])\n"
        "assert 'diffusers' in sys.modules and os.environ['DIFFUSERS_DISABLE_REMOTE_CODE'] == '1'\n"
        "sys.exit(code)"
    )
    done = run("-c", code)
    assert (done.returncode, done.stdout) == (4, "")
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["error", "hint"]
