"""Model names: what `-m` may say, and what is said where it cannot be."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t2i.errors import ModelError, ModelUnavailable, T2IError
from t2i.model_files import registry


def test_names_of_the_zoo_are_hub_ids_with_defaults_in_range() -> None:
    for name, entry in registry.ZOO.items():
        resolved = registry.resolve(name)
        assert (resolved.kind, resolved.location, resolved.name) == ("hub", entry.id, name)
        assert registry.HUB_ID.fullmatch(entry.id)
        assert 1 <= (entry.defaults.steps or 1) <= 100
        assert 0 <= (entry.defaults.guidance or 0) <= 10


def test_a_hub_id_that_is_in_the_zoo_keeps_its_defaults() -> None:
    assert registry.resolve("stabilityai/sdxl-turbo").defaults.steps == 1
    assert registry.resolve("someone/else").defaults == registry.Defaults()


def test_mini_is_the_embedded_folder_or_says_that_it_is_missing(
    monkeypatch: pytest.MonkeyPatch, tiny_pipeline: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(registry, "MINI", tiny_pipeline)
    assert (registry.resolve("mini").kind, registry.resolve("mini").name) == ("folder", "mini")
    monkeypatch.setattr(registry, "MINI", tmp_path / "nothing")
    with pytest.raises(ModelUnavailable, match="no embedded model"):
        registry.resolve("mini")


def test_a_folder_is_known_by_its_name_and_never_by_its_path(tiny_pipeline: Path) -> None:
    resolved = registry.resolve(str(tiny_pipeline))
    assert (resolved.kind, resolved.name) == ("folder", tiny_pipeline.name)


def test_a_training_run_is_drawn_with_by_its_pipeline(tiny_pipeline: Path, tmp_path: Path) -> None:
    run = tmp_path / "my-run"
    run.mkdir()
    (run / "export").symlink_to(tiny_pipeline)
    resolved = registry.resolve(str(run))
    assert (resolved.name, Path(resolved.location).name) == ("my-run", "export")


def test_a_training_run_that_cannot_draw_says_why(tmp_path: Path) -> None:
    """It is still training, or it is a classifier."""
    run = tmp_path / "my-run"
    run.mkdir()
    (run / "config.yaml").write_text("family: dcgan")
    with pytest.raises(ModelError, match="my-run is a training run that has exported nothing yet"):
        registry.resolve(str(run))
    (run / "export").mkdir()
    (run / "export" / "config.json").write_text('{"_class_name": "ResNet"}')
    with pytest.raises(ModelError, match="my-run is a training run whose export, a ResNet, draws no images"):
        registry.resolve(str(run))


@pytest.mark.parametrize(("wrong", "right"), [("sd51", "sd15"), ("flux-schnel", "flux-schnell"), ("minni", "mini")])
def test_near_misses_are_suggested(wrong: str, right: str) -> None:
    with pytest.raises(ModelUnavailable) as caught:
        registry.resolve(wrong)
    assert caught.value.exit_code == 4
    assert wrong in caught.value.message
    assert right in str(caught.value.hint)


@pytest.mark.parametrize(
    "path", ["./nothing", "/nowhere/model", "models/x.safetensors", "~/nothing/here", "model.ckpt"]
)
def test_what_looks_like_a_path_is_called_a_missing_file(path: str) -> None:
    with pytest.raises(ModelUnavailable, match="no such file"):
        registry.resolve(path)


@pytest.mark.parametrize("suffix", [".ckpt", ".bin", ".pt", ".PTH", ".pkl"])
def test_pickles_are_refused_by_suffix_before_they_are_opened(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"model{suffix}").write_bytes(b"anything")
    with pytest.raises(ModelError, match="pickle"):
        registry.resolve(str(tmp_path / f"model{suffix}"))


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model_index\.json"):
        registry.resolve(str(tmp_path))


def test_a_folder_s_own_defaults_win(pipeline_copy: Path) -> None:
    own = {"steps": 12, "guidance": 3, "size": 64, "scheduler": "euler", "license": "Apache-2.0", "later": 1}
    (pipeline_copy / "t2i.json").write_text(json.dumps(own))
    defaults = registry.resolve(str(pipeline_copy)).defaults
    assert (defaults.steps, defaults.guidance, defaults.size) == (12, 3.0, (64, 64))
    assert (defaults.scheduler, defaults.license, defaults.dtype) == ("euler", "Apache-2.0", None)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"steps": "many"}', '{"size": [1, 2, 3]}', "[" * 100_000, "\xff"])
def test_a_damaged_defaults_file_is_an_error(pipeline_copy: Path, text: str) -> None:
    (pipeline_copy / "t2i.json").write_text(text, encoding="latin-1")
    with pytest.raises(ModelError, match=r"t2i\.json"):
        registry.resolve(str(pipeline_copy))


@settings(deadline=None)  # a loaded machine is no fault of ours
@given(st.text())
def test_any_text_resolves_or_is_explained(text: str) -> None:
    with contextlib.suppress(T2IError):  # and no other exception
        registry.resolve(text)
