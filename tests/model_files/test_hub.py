"""The Hub, as a small server on this machine plays it: downloads, what breaks off, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hub_kit import COMMIT, WEIGHTS, HubServer, hub, run_all


def run(hub: HubServer, folder: Path, *calls: list[str]) -> list[tuple[int, str, str]]:
    """`t2i generate`: (exit code, stdout, stderr) of each call (the network's state, then options)."""
    drawing = ["generate", "a horse", "-s", "1", "--steps", "1"]
    return run_all(hub, folder, *([network, *drawing, *options] for network, *options in calls))


__all__ = ["hub"]  # a fixture


@pytest.mark.slow  # the Hub's library tries five times
def test_a_model_comes_from_the_hub_and_what_broke_off_goes_on(hub: HubServer, tmp_path: Path) -> None:
    tiny = ["-m", "owner/tiny"]
    broken, drawn, again, other = run(
        hub, tmp_path, ["cut", *tiny], ["back", *tiny], ["gone", *tiny], ["gone", "-m", "owner/other"]
    )
    assert (broken[0], broken[1]) == (4, "")
    assert "model 'owner/tiny' is not in the cache, and the download was interrupted" in broken[2]
    assert "complete files are kept" in broken[2]
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
