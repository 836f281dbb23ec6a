"""The Hub, as a small server on this machine plays it, and its library's cache."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
# Answers that are no model: status, and the header by which the Hub's library tells them apart.
REFUSED = {"owner/gated": (403, "GatedRepo"), "owner/absent": (401, "RepoNotFound"), "owner/broken": (500, "")}
PROGRAM = """
import json, sys, urllib.request
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from t2i.cli.main import main
ran = []
for network, *words in json.loads(sys.argv[2]):
    urllib.request.urlopen(f"{sys.argv[1]}/network/{network}").close()
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        code = main(words)
    ran.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(ran))
"""


class Hub(BaseHTTPRequestHandler):
    """What the Hub's library asks for: the listing of a model, and its files, whole or from a byte on.

    /network/cut: from now on the weights break off half way.  /network/back, /network/gone: as they say.
    """

    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_: Any) -> None:
        """Quietly."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].strip("/")
        if path.startswith("network/"):
            self.server.network = path.removeprefix("network/")
            self.answer(b"")
        elif self.server.network == "gone":
            self.close_connection = True
        elif path.startswith("api/models/"):
            self.listing(*path.removeprefix("api/models/").split("/"))
        else:
            owner, name, _, revision, *parts = path.split("/")
            self.file(f"{owner}/{name}", revision, "/".join(parts))

    def listing(self, owner: str, name: str, kind: str = "", revision: str = "", *_: str) -> None:
        """`model_info`, or the tree of files."""
        model = f"{owner}/{name}"
        if model in REFUSED or revision not in ("", "main", COMMIT):
            status, code = REFUSED.get(model, (404, "RevisionNotFound"))
            self.answer(b"{}", status, {"X-Error-Code": code} if code else {})
            return
        files = self.server.files(model)
        if kind == "tree":
            entries = [{"type": "file", "path": name, "size": len(data), "oid": "0"} for name, data in files.items()]
            self.answer(json.dumps(entries).encode())
            return
        found: dict[str, Any] = {"_id": "0", "id": model, "modelId": model, "sha": COMMIT, "private": False}
        siblings = [{"rfilename": name, "size": len(data)} for name, data in files.items()]
        if "blobs=" not in self.path:  # sizes are told to who asks for them
            siblings = [{"rfilename": str(one["rfilename"])} for one in siblings]
        self.answer(json.dumps(found | {"siblings": siblings}).encode())

    def file(self, model: str, revision: str, name: str) -> None:
        data = self.server.files(model).get(name)
        if data is None:
            self.answer(b"", 404, {"X-Error-Code": "EntryNotFound"})
            return
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if self.command == "GET":
            self.server.asked.append(name)
        head = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if start:
            head["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        cut = self.server.network == "cut" and name == WEIGHTS
        self.answer(data[start:], 206 if start else 200, head, len(data) // 2 if cut else None)

    def answer(
        self, data: bytes, status: int = 200, head: dict[str, str] | None = None, most: int | None = None
    ) -> None:
        """most: after so many bytes the connection breaks."""
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | (head or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[:most])
            self.close_connection = most is not None


class HubServer(ThreadingHTTPServer):
    """The models: a whole one, one with code of its own, and one that is a single file."""

    def __init__(self, pipeline: Path) -> None:
        super().__init__(("127.0.0.1", 0), Hub)
        whole = {p.relative_to(pipeline).as_posix(): p.read_bytes() for p in pipeline.rglob("*") if p.is_file()}
        self.models = {
            "owner/tiny": whole,
            "owner/code": whole | {"pipeline.py": b"raise SystemExit"},
            "owner/single": {"weights.safetensors": b""},
        }
        self.network = "back"
        self.asked: list[str] = []  # the files that were downloaded, or begun

    def files(self, model: str) -> dict[str, bytes]:
        return self.models[model]


@pytest.fixture
def hub(tiny_pipeline: Path) -> Iterator[HubServer]:
    """A server in a thread of its own."""
    with HubServer(tiny_pipeline) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()


def run_models(hub: HubServer, folder: Path, *calls: list[str]) -> list[tuple[int, str, str]]:
    """`t2i models`, likewise."""
    return run_all(hub, folder, *([network, "models", *words] for network, *words in calls))


def run_all(hub: HubServer, folder: Path, *calls: list[str]) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of each call (the network's state, then what stands after `t2i`), in one process."""
    url = f"http://127.0.0.1:{hub.server_port}"
    env = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    env |= {"HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(folder / "hf"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM, url, json.dumps(calls)]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [tuple(ran) for ran in json.loads(done.stdout.splitlines()[-1])]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the Hub library."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "hub").mkdir()
    return tmp_path / "hub"


def put_into_cache(cache: Path, id: str, pipeline: Path) -> Path:
    """A pipeline in the layout of the Hub's cache: snapshots of links into blobs that are named by their sha256."""
    repository = cache / f"models--{id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "blobs").mkdir()
    for file in pipeline.rglob("*"):
        if file.is_file():
            blob = repository / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
            shutil.copyfile(file, blob)
            link = repository / "snapshots" / COMMIT / file.relative_to(pipeline)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
    return repository
