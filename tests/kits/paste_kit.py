"""Commands of a Markdown page, pasted in order into an empty folder, with the network refused.

A block is left out if the page says what it needs, in a comment that programs read and in words that people read:

    With a network:

    <!-- needs: network -->
    ```bash
    t2i models pull sdxl
    ```
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
# what a page may say that a block needs -> words of which one must be visible near the block
NEEDS = {
    "network": ("network", "download", "Hub"),
    "gpu": ("GPU",),
    "hours": ("hour", "days"),
    "files": ("your own", "file of yours"),
    "clone": ("clone",),
}
BLOCK = re.compile(
    r"(?P<before>(?:(?!^```)[^\n]*\n)*?)(?P<marks>(?:<!-- (?:ci|needs): [^\n]*-->\n)*)"
    r"^```(?P<kind>\w*)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
TRAIN = ("ddpm", "dcgan", "vae", "classifier")
# Tests train for seconds: these are user defaults (`t2i config`), so the commands themselves are as the page has them.
SHORT = "\n".join(["train:", *(f"  {family}: {{set: [images=640, sample_every=640]}}" for family in TRAIN)]) + "\n"
REFUSE = """\
import socket

def guarded(connect):
    def call(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"this test has no network: {address[0]}")
        return connect(self, address)
    return call

socket.socket.connect = guarded(socket.socket.connect)
socket.socket.connect_ex = guarded(socket.socket.connect_ex)
"""


class Block(NamedTuple):
    """A fenced block.  needs: what the page says it needs; before: the text between the last block and this one."""

    kind: str
    text: str
    needs: tuple[str, ...]
    before: str


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page."""
    found = []
    for match in BLOCK.finditer(page):
        marks = re.findall(r"<!-- (ci|needs): ([\w, ]+?) -->", match["marks"])
        needs = tuple(
            need for mark, text in marks for need in (["clone", "network"] if mark == "ci" else text.split(", "))
        )
        found.append(Block(match["kind"], match["text"], needs, match["before"]))
    return found


def lines(page: str) -> list[str]:
    """The commands of the bash blocks of a page, one by one, without comments; continued lines are joined."""
    text = "\n".join(block.text for block in blocks(page) if block.kind == "bash").replace("\\\n", " ")
    return [line for line in (re.sub(r"(^|\s+)#( .*)?$", "", line).strip() for line in text.splitlines()) if line]


def script(found: Sequence[Block]) -> str:
    """The blocks that need nothing, as one bash script."""
    parts = []
    for block in found:
        if block.needs:
            continue
        if block.kind == "bash":
            parts.append(block.text)
        elif block.kind == "python":
            parts.append(f"python - <<'END_OF_BLOCK'\n{block.text}END_OF_BLOCK\n")
    return "\n".join(parts)


def paste(page: str, folder: Path, timeout: float = 900) -> subprocess.CompletedProcess[str]:
    """Run all blocks of a page that need nothing, in order, in the empty folder `folder/here`."""
    tools, here, config = folder / "tools", folder / "here", folder / "config" / "t2i"
    for path in (tools, here, config):
        path.mkdir(parents=True)
    for name, module in (
        ("t2i", "t2i"),
        ("python", ""),
        ("accelerate", "accelerate.commands.accelerate_cli"),
        ("torchrun", "torch.distributed.run"),
    ):
        tool = tools / name
        tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" {f"-m {module} " if module else ""}"$@"\n')
        tool.chmod(0o755)
    (tools / "sitecustomize.py").write_text(REFUSE)
    (config / "config.yaml").write_text(SHORT)
    gone = ("T2I_MODEL", "T2I_DEBUG", "HF_HUB_OFFLINE", "HF_TOKEN")
    env = {name: value for name, value in os.environ.items() if name not in gone} | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHONPATH": f"{tools}:{ROOT}",
        "HOME": str(folder),
        "HF_HOME": str(folder / "hf"),
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "XDG_CONFIG_HOME": str(folder / "config"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "1",
    }
    (folder / "pasted.sh").write_text(script(blocks(page)))
    command = ["bash", "-e", "-o", "pipefail", "-x", str(folder / "pasted.sh")]
    return subprocess.run(command, cwd=here, env=env, capture_output=True, text=True, timeout=timeout)
