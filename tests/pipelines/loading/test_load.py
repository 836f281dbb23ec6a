"""Loading models: only whole safetensors, never code, and the Hub's cache without a network."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hub_kit import COMMIT, cache, put_into_cache
from hypothesis import given, settings
from hypothesis import strategies as st

from t2i.errors import ModelError, ModelUnavailable, UsageError
from t2i.model_files.locate import locate
from t2i.model_files.weight_files import MAX_HEADER_BYTES, check_safetensors
from t2i.pipelines.loading.device import measure
from t2i.pipelines.loading.load import choose_device, choose_dtype, load_pipeline, pipeline_class
from t2i.pipelines.prompts.tokenizers import cut_words, load_tokenizers

__all__ = ["cache"]  # a fixture


class Payload:
    """A pickle that leaves a mark where it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.canary),))


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- pickles, whatever they are called ---


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("name", ["model.ckpt", "model.bin", "x.SafeTensors", "x.safetensors", "model"])
def test_a_pickle_file_is_refused_and_never_loaded(tmp_path: Path, name: str, protocol: int) -> None:
    canary = tmp_path / "canary"
    (tmp_path / name).write_bytes(pickle.dumps(Payload(canary), protocol=protocol))
    with pytest.raises(ModelError, match="pickle"):
        locate(str(tmp_path / name))
    assert not canary.exists()


def test_a_file_here_is_called_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"^x\.safetensors is empty"):
        locate("x.safetensors")


def test_the_folder_one_stands_in_is_called_by_its_name(pipeline_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pipeline_copy)
    assert locate(".").model.name == pipeline_copy.name
    (pipeline_copy / "pipeline.py").write_text("raise SystemExit")
    with pytest.raises(ModelError, match=f"^{pipeline_copy.name} carries its own code"):
        locate(".")


def test_a_torch_archive_under_another_name_is_refused(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    with zipfile.ZipFile(tmp_path / "x.safetensors", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Payload(canary)))
    with pytest.raises(ModelError, match="pickle"):
        locate(str(tmp_path / "x.safetensors"))
    assert not canary.exists()


def test_a_pickle_inside_a_pipeline_folder_is_refused(pipeline_copy: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    weights = pipeline_copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(pickle.dumps(Payload(canary)))
    with pytest.raises(ModelError, match="pickle"):
        locate(str(pipeline_copy))
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ModelError, match="only pickled weights"):
        locate(str(pipeline_copy))
    assert not canary.exists()


def test_pickles_next_to_safetensors_are_left_alone(pipeline_copy: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (pipeline_copy / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Payload(canary)))
    load_pipeline(locate(str(pipeline_copy)), "cpu", "float32")
    assert not canary.exists()


def test_a_shard_index_that_leaves_its_folder_is_refused(pipeline_copy: Path) -> None:
    index = pipeline_copy / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    for shard in ("../../evil.safetensors", "/tmp/x.safetensors", "shard.bin", 7):
        index.write_text(json.dumps({"metadata": {}, "weight_map": {"conv_in.weight": shard}}))
        with pytest.raises(ModelError, match="no shard of it"):
            locate(str(pipeline_copy))


# --- code that comes with a model ---


def plant_code(folder: Path, canary: Path, name: str) -> None:
    (folder / name).write_text(
        f"import os\nos.mkdir({str(canary)!r})\n"
        "from diffusers import StableDiffusionPipeline, UNet2DConditionModel\n"
        "class Custom(StableDiffusionPipeline): pass\nclass Net(UNet2DConditionModel): pass\n"
    )


@pytest.mark.parametrize("trick", ["pipeline.py", "class", "key", "component", "library", "auto_map", "nested", "peft"])
def test_a_model_with_code_is_refused_and_its_code_not_run(pipeline_copy: Path, tmp_path: Path, trick: str) -> None:
    canary, index = tmp_path / "canary", pipeline_copy / "model_index.json"
    match trick:
        case "pipeline.py":
            plant_code(pipeline_copy, canary, "pipeline.py")
        case "class":
            plant_code(pipeline_copy, canary, "mine.py")
            edit_json(index, _class_name=["mine", "Custom"])
        case "key":
            edit_json(index, custom_pipeline="someone/code")
        case "component":
            plant_code(pipeline_copy / "unet", canary, "net.py")
            edit_json(index, unet=["net", "Net"])
        case "library":
            edit_json(index, unet=["os", "system"])
        case "auto_map":
            plant_code(pipeline_copy / "unet", canary, "net.py")
            edit_json(pipeline_copy / "text_encoder" / "config.json", auto_map={"AutoModel": "net.Net"})
        case "nested":
            edit_json(index, unet=["diffusers", "StableDiffusionPipeline"])
        case "peft":
            (pipeline_copy / "text_encoder" / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="never runs code"):
        locate(str(pipeline_copy))
    assert not canary.exists()


# --- damaged files ---


def header(length: int, text: bytes = b"{") -> bytes:
    return length.to_bytes(8, "little") + text


def safetensors(tensors: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(tensors).encode()
    return header(len(text), text) + data


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>not found</html>", "not a safetensors file"),
        (header(1000), "cut short"),
        (safetensors({"a": ONE}, b"\0" * 7), "damaged or cut short"),
        (safetensors({"a": ONE, "b": ONE}, b"\0" * 8), "damaged"),
        (safetensors({"a": ONE, "b": ONE | {"data_offsets": [4, 12]}}, b"\0" * 12), "damaged"),
        (safetensors({"a": ONE | {"shape": [3]}}, b"\0" * 8), "damaged"),
        (safetensors({"a": ONE | {"shape": [2**62, 8]}}, b"\0" * 8), "damaged"),
        (safetensors({}), "no tensors"),
        (header(20, b"{" + b"x" * 19), "damaged"),
    ],
)
def test_damaged_weights_are_told_apart(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=said):
        check_safetensors(file)


def test_a_huge_header_is_refused_without_being_read(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    with file.open("wb") as out:
        out.write(header(2**31))
        out.truncate(2**31 + 100)  # sparse
    before = time.process_time()
    with pytest.raises(ModelError, match=f"header claims {2**31} bytes, allowed are {MAX_HEADER_BYTES}"):
        check_safetensors(file)
    assert time.process_time() - before < 5


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_judged(tmp_path_factory: pytest.TempPathFactory, data: bytes, framed: bool) -> None:
    file = tmp_path_factory.getbasetemp() / "any.safetensors"
    file.write_bytes(header(len(data) + 1, b"{" + data) if framed else data)
    with pytest.raises(ModelError):
        check_safetensors(file)


def test_wrong_shapes_and_missing_tensors_are_errors(pipeline_copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    for part, file in (("text_encoder", "model"), ("unet", "diffusion_pytorch_model")):
        path = pipeline_copy / part / f"{file}.safetensors"
        whole = load_file(path)
        name = max(whole, key=lambda key: whole[key].numel())
        save_file({key: value for key, value in whole.items() if key != name}, path, {"format": "pt"})
        with pytest.raises(ModelError, match=r"cannot load .*(missing|Missing)"):
            load_pipeline(locate(str(pipeline_copy)), "cpu", "float32")
        save_file(whole | {name: whole[name][:1].clone()}, path, {"format": "pt"})
        with pytest.raises(ModelError, match="cannot load"):
            load_pipeline(locate(str(pipeline_copy)), "cpu", "float32")
        save_file(whole, path, {"format": "pt"})


def test_an_incomplete_folder_names_what_is_missing(pipeline_copy: Path) -> None:
    (pipeline_copy / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"vae: no \.safetensors weights"):
        locate(str(pipeline_copy))
    shutil.rmtree(pipeline_copy / "vae")
    with pytest.raises(ModelError, match="vae: the folder"):
        locate(str(pipeline_copy))


# --- what is loaded ---


def test_a_pipeline_folder_loads_in_silence(tiny_pipeline: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = locate(str(tiny_pipeline))
    pipe = load_pipeline(files, "cpu", "float32")
    assert type(pipe).__name__ == "StableDiffusionPipeline"
    assert capfd.readouterr() == ("", "")
    digests = [(p.relative_to(tiny_pipeline).as_posix(), hashlib.sha256(p.read_bytes())) for p in files.weights]
    lines = sorted(f"{name} {digest.hexdigest()}\n" for name, digest in digests)
    assert files.hash() == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_only_text_to_image_pipelines_are_taken(pipeline_copy: Path) -> None:
    assert pipeline_class("StableDiffusionPipeline").__name__ == "StableDiffusionPipeline"
    assert pipeline_class("StableDiffusionImg2ImgPipeline").__name__ == "StableDiffusionPipeline"
    for name in ("DDPMPipeline", "TextToVideoSDPipeline", "AudioLDM2Pipeline"):
        with pytest.raises(ModelError, match="does not make images from text"):
            pipeline_class(name)
    for name in ("NoSuchPipeline", "UNet2DModel", "logging", "__version__"):
        with pytest.raises(ModelError, match="has no pipeline"):
            pipeline_class(name)


def test_devices_and_dtypes_are_checked(tiny_pipeline: Path) -> None:
    files = locate(str(tiny_pipeline))
    assert choose_device("CPU") == "cpu"
    with pytest.raises(UsageError, match="this machine has cpu"):
        choose_device("tpu")
    here = measure("cpu")
    assert choose_dtype(None, here, files) == "float32"
    assert choose_dtype(None, replace(here, device="cuda"), files) == "float32"  # small: as on the CPU
    assert choose_dtype("bf16", here, files) == "bfloat16"
    with pytest.raises(UsageError, match="allowed float32"):
        choose_dtype("int8", here, files)


def test_a_single_file_is_known_by_its_tensors(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    def saved(name: str) -> str:
        save_file({name: torch.zeros(2)}, tmp_path / "one.safetensors")
        return str(tmp_path / "one.safetensors")

    assert locate(saved("model.diffusion_model.input_blocks.0.0.weight")).kind == "StableDiffusionPipeline"
    assert locate(saved("conditioner.embedders.1.model.ln_final.bias")).kind == "StableDiffusionXLPipeline"
    with pytest.raises(ModelError, match=r"one\.safetensors is an adapter \(LoRA\)"):
        locate(saved("lora_unet_down_blocks_0.lora_down.weight"))
    with pytest.raises(ModelError, match="no known kind"):
        locate(saved("layer.weight"))
    (tmp_path / "one.safetensors").rename(tmp_path / "one.SafeTensors")
    with pytest.raises(ModelError, match=r"rename|safetensors"):
        locate(str(tmp_path / "one.SafeTensors"))


# --- the Hub ---


@pytest.mark.parametrize("how", ["flag", "environment", "refused"])
def test_without_a_network_a_cached_model_loads_and_another_is_named(
    cache: Path, tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", how == "environment")
    offline = how == "flag"
    before = time.monotonic()
    for model in ("owner/absent", "sd15"):
        with pytest.raises(ModelUnavailable) as caught:
            locate(model, offline=offline)
        assert caught.value.exit_code == 4
        assert model in caught.value.message
        assert f"`t2i models pull {model}` gets it" in str(caught.value.hint)
    put_into_cache(cache, "owner/tiny", tiny_pipeline)
    files = locate("owner/tiny", offline=offline)
    assert (files.revision, files.model.name) == (COMMIT, "owner/tiny")
    assert files.hash() == locate(str(tiny_pipeline)).hash()
    assert time.monotonic() - before < 60  # the Hub library alone retries a refused connection for half a minute each
    if how == "flag":
        load_pipeline(files, "cpu", "float32")


def test_a_cached_model_is_checked_as_any_other(cache: Path, tiny_pipeline: Path) -> None:
    repository = put_into_cache(cache, "owner/tiny", tiny_pipeline)
    (repository / "snapshots" / COMMIT / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelError, match="owner/tiny/unet"):
        locate("owner/tiny")
    (repository / "snapshots" / COMMIT / "pipeline.py").write_text("raise SystemExit")
    with pytest.raises(ModelError, match="never runs code"):
        locate("owner/tiny")


def test_a_revision_belongs_to_the_hub(cache: Path, tiny_pipeline: Path) -> None:
    with pytest.raises(UsageError, match="revision"):
        locate(str(tiny_pipeline), revision="main")
    put_into_cache(cache, "owner/tiny", tiny_pipeline)
    assert locate("owner/tiny", revision=COMMIT).revision == COMMIT
    with pytest.raises(ModelUnavailable, match="at revision v2"):
        locate("owner/tiny", revision="v2")


# --- prompts that are too long ---


def test_words_beyond_the_encoder_are_named(tiny_pipeline: Path) -> None:
    tokenizers = list(load_tokenizers(locate(str(tiny_pipeline))).values())
    assert len(tokenizers) == 1
    assert cut_words("horse horse", tokenizers) == ""
    assert cut_words(" ".join(["horse"] * 14), tokenizers) == ""  # 16 tokens with both ends
    assert cut_words(" ".join(["horse"] * 14 + ["van", "cat"]), tokenizers) == "van cat"
