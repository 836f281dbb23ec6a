"""The Hub, as a small server on this machine plays it: downloads, what breaks off, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
# Answers that are no model: status, and the header by which the Hub's library tells them apart.
REFUSED = {"owner/gated": (403, "GatedRepo"), "owner/absent": (401, "RepoNotFound"), "owner/broken": (500, "")}


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


def run(hub: HubServer, folder: Path, *calls: list[str]) -> list[tuple[int, str, str]]:
    """`t2i generate`: (exit code, stdout, stderr) of each call (the network's state, then options)."""
    drawing = ["generate", "a horse", "-s", "1", "--steps", "1"]
    return run_all(hub, folder, *([network, *drawing, *options] for network, *options in calls))


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


@pytest.mark.slow  # the Hub's library tries five times
def test_a_model_comes_from_the_hub_and_what_broke_off_goes_on(hub: HubServer, tmp_path: Path) -> None:
    tiny = ["-m", "owner/tiny"]
    broken, drawn, again, other = run(
        hub, tmp_path, ["cut", *tiny], ["back", *tiny], ["gone", *tiny], ["gone", "-m", "owner/other"]
    )
    assert (broken[0], broken[1]) == (4, "")
    assert "model 'owner/tiny' is not in the cache, and the download broke off" in broken[2]
    assert "files that arrived whole are kept" in broken[2]
    assert "`t2i models pull owner/tiny` gets it" in broken[2]
    assert (drawn[0], drawn[1].count("\n")) == (0, 1), drawn[2]
    others = [name for name in hub.asked if name != WEIGHTS]
    assert sorted(others) == sorted(set(others))  # what had arrived whole was not asked for again
    assert len(others) > 5
    assert again[0] == 0, again[2]  # without a network it is drawn with from the cache
    assert (other[0], "the Hub cannot be reached" in other[2]) == (4, True)
    assert "Traceback" not in "".join(ran[2] for ran in (broken, drawn, again, other))


def test_what_the_hub_refuses_is_said_with_the_way_out(hub: HubServer, tmp_path: Path) -> None:
    expected = {
        "owner/gated": (4, "is gated", "accept its licence"),
        "owner/absent": (4, "no model 'owner/absent' on the Hub", "names: mini"),
        "owner/broken": (4, "the Hub answered 500", "--model mini"),
        "owner/code": (1, "never runs code", "use a model that needs none"),
        "owner/single": (1, "it has no model_index.json", "download 'weights.safetensors' and give its path"),
    }
    calls = [["back", "-m", model] for model in expected]
    *ran, revision = run(hub, tmp_path, *calls, ["back", "-m", "owner/tiny", "--revision", "v9"])
    for (code, cause, hint), (exit_code, out, err) in zip(expected.values(), ran, strict=True):
        assert (exit_code, out) == (code, "")
        assert err.startswith("error: ")
        assert cause in err
        assert hint in err
    assert (revision[0], "has no revision 'v9'" in revision[2]) == (4, True)
    assert hub.asked == []  # nothing was downloaded


def test_a_dry_run_asks_for_sizes_and_downloads_nothing(hub: HubServer, tmp_path: Path) -> None:
    dry = ["-m", "owner/tiny", "--dry-run", "--json"]
    ran = run(hub, tmp_path, ["back", *dry], ["back", "-m", "owner/gated", "--dry-run"], ["gone", *dry])
    assert hub.asked == []
    assert [code for code, _, _ in ran] == [0, 4, 4]
    whole = hub.models["owner/tiny"]
    sent = sum(len(data) for name, data in whole.items() if name.endswith((".json", ".txt", ".model", ".safetensors")))
    found, none = (json.loads(out) for _, out, _ in (ran[0], ran[2]))
    assert (found["models"][0]["download"], found["models"][0]["path"]) == (sent, None)
    assert found["models"][0]["revision"] == COMMIT
    assert none["models"][0]["download"] is None
    assert "not here; to be downloaded: not known offline" in ran[1][1]
    assert "model 'owner/gated' is gated" in ran[1][2]
    assert "the Hub cannot be reached" in ran[2][2]
    here = run(hub, tmp_path, ["back", "-m", "owner/tiny", "-o", "a.png"], ["gone", *dry])
    assert here[1][0] == 0
    assert json.loads(here[1][1])["models"][0]["memory"]["fits"] is True
