"""Single .safetensors files: the picture is that of the folder they were made from, and no network is needed."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from single_file_kit import original_names, save_single_file, tiny

from t2i.cli.main import main
from t2i.model_files import single_file

KINDS = ("sd15", "sdxl")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """{kind: pipeline folder}, each with its weights as one file beside it, and CLIP's own tokenizers."""
    made = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp("single") / kind
        tokenizers = single_file.tokenizers(single_file.CARRIED / kind)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipe = tiny(kind, 49408)
            pipe.register_modules(**tokenizers)
            pipe.save_pretrained(folder)
            save_single_file(pipe, folder.with_suffix(".safetensors"))
        made[kind] = folder
    return made


def test_the_merges_and_their_licence_are_openais_own() -> None:
    """Compared once, on 2026-11-25, with openai-clip 1.0.1 and clip-anytorch 2.6.0; here: nothing has changed since."""
    for name, digest in (
        ("LICENSE-CLIP", "987e63b32f6c89ff5160e429458a872ff048e6860b590a3912e938f9da8f14db"),
        ("merges.txt", "9fd691f7c8039210e0fced15865466c65820d09b63988b0174bfe25de299051a"),
    ):
        assert hashlib.sha256((single_file.CARRIED / name).read_bytes()).hexdigest() == digest, name


def without_weights(folder: Path, copy: Path) -> Path:
    """A copy of a pipeline folder that holds its configs and tokenizers alone."""
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.safetensors"))
    return copy


def draw(capsys: pytest.CaptureFixture[str], output: Path, *words: str) -> str:
    """The hash of the pixels that `t2i generate` draws."""
    command = ["generate", "a horse, galloping", "--steps", "3", "--json", "-o", str(output), *words]
    assert main(command) == 0, capsys.readouterr().err
    return str(json.loads(capsys.readouterr().out)["image_hash"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_draws_what_its_folder_draws(
    kind: str, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = models[kind]
    file = str(folder.with_suffix(".safetensors"))
    configs = str(without_weights(folder, tmp_path / "configs"))
    expected = draw(capsys, tmp_path / "1.png", "-m", str(folder), "-s", "7")
    assert draw(capsys, tmp_path / "2.png", "-m", file, "--config", configs, "-s", "7") == expected
    assert draw(capsys, tmp_path / "3.png", "-m", str(folder), "-s", "8") != expected


@pytest.mark.parametrize("kind", KINDS)
def test_with_the_configs_and_the_tokenizer_of_the_package_nothing_else_is_needed(
    kind: str,
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The small model's sizes stand in for the real ones; everything else is the package's."""
    carried = tmp_path / "carried"
    without_weights(models[kind], carried / kind)
    for name in ("tokenizer", "tokenizer_2"):
        shutil.rmtree(carried / kind / name, ignore_errors=True)
    shutil.copyfile(single_file.CARRIED / "merges.txt", carried / "merges.txt")
    expected = draw(capsys, tmp_path / "1.png", "-m", str(models[kind]), "-s", "7")
    monkeypatch.setattr(single_file, "CARRIED", carried)
    file = str(models[kind].with_suffix(".safetensors"))
    assert draw(capsys, tmp_path / "2.png", "-m", file, "-s", "7") == expected
    long = "horse " * 75 + "goat sheep"
    assert main(["generate", long, "-m", file, "--no-chunks", "--steps", "1", "-o", str(tmp_path / "3.png")]) == 0
    assert "cut off: 'goat sheep'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        ("sd15", {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}),
        (
            "sdxl",
            {
                "unet": 2_567_463_684,
                "vae": 83_653_863,
                "text_encoder": 123_060_480,
                "text_encoder_2": 694_659_840,
            },
        ),
    ],
)
def test_the_carried_configs_are_those_of_the_published_models(kind: str, numbers: dict[str, int]) -> None:
    """By the numbers of parameters, which are published, and by the names and shapes of the original files."""
    import diffusers
    import torch
    import transformers
    from accelerate import init_empty_weights

    folder = single_file.CARRIED / kind
    index = json.loads((folder / "model_index.json").read_text())
    parts: dict[str, Any] = {}
    for name in numbers:
        library, class_name = index[name]
        kind_of_part = getattr({"diffusers": diffusers, "transformers": transformers}[library], class_name)
        with init_empty_weights():
            if library == "diffusers":
                parts[name] = kind_of_part.from_config(kind_of_part.load_config(folder / name))
            else:
                parts[name] = kind_of_part(kind_of_part.config_class.from_pretrained(folder / name))
    assert {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()} == numbers
    names = {name: tuple(value.shape) for name, value in original_names(type("Pipe", (), parts)).items()}
    # A few tensors by which other tools, and diffusers, know these files
    assert names["model.diffusion_model.input_blocks.0.0.weight"] == (320, 4, 3, 3)
    if kind == "sd15":
        assert names["model.diffusion_model.output_blocks.11.0.skip_connection.weight"] == (320, 640, 1, 1)
        assert names["model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"] == (320, 768)
        assert names["cond_stage_model.transformer.text_model.embeddings.position_embedding.weight"] == (77, 768)
    else:
        assert names["conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias"] == (1280,)
        assert names["model.diffusion_model.label_emb.0.0.weight"] == (1280, 2816)
        assert names["model.diffusion_model.middle_block.1.transformer_blocks.9.attn2.to_k.weight"] == (1280, 2048)
    from diffusers.loaders import single_file_utils as diffusers_own

    shapes = {name: torch.empty(shape, device="meta") for name, shape in names.items()}
    base = {"sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5", "sdxl": "stabilityai/stable-diffusion-xl-base-1.0"}
    assert diffusers_own.fetch_diffusers_config(shapes)["pretrained_model_name_or_path"] == base[kind]
    # What diffusers makes of a file of the real sizes: name for name and shape for shape the networks of the configs
    for part in ("unet", "vae"):
        converted = getattr(diffusers_own, f"convert_ldm_{part}_checkpoint")(dict(shapes), dict(parts[part].config))
        expected = {name: value.shape for name, value in parts[part].state_dict().items()}
        assert {name: value.shape for name, value in converted.items()} == expected


def test_the_tokenizer_is_clip_s() -> None:
    """Against numbers that OpenAI's own tokenizer gives."""
    tokenizers = single_file.tokenizers(single_file.CARRIED / "sdxl")
    first, second = tokenizers["tokenizer"], tokenizers["tokenizer_2"]
    assert len(first) == len(second) == 49408
    assert first("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert first("A  Diagram").input_ids == [49406, 320, 22697, 49407]
    assert first("hi", padding="max_length").input_ids[2:] == [49407] * 75
    assert second("hi", padding="max_length").input_ids[2:] == [49407] + [0] * 74
    assert list(single_file.tokenizers(single_file.CARRIED / "sd15")) == ["tokenizer"]


# --- what cannot be drawn with, and what is said then ---


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = main(["generate", "a horse", "--steps", "1", *words])
    return code, capsys.readouterr().err


def save(path: Path, **shapes: tuple[int, ...]) -> str:
    import torch
    from safetensors.torch import save_file

    save_file({name.replace("__", "."): torch.zeros(shape) for name, shape in shapes.items()}, path)
    return str(path)


def test_a_kind_whose_configs_are_not_here_says_where_they_come_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    names = {
        "stable-diffusion-3": {
            "model__diffusion_model__joint_blocks__0__context_block__adaLN_modulation__1__bias": (9216,),
            "model__diffusion_model__pos_embed": (1, 36864, 1),
        },
        "FLUX.1-schnell": {"double_blocks__0__img_attn__norm__key_norm__scale": (2,)},
        "stable-diffusion-2": {
            "cond_stage_model__model__token_embedding__weight": (2, 2),
            "model__diffusion_model__input_blocks__2__1__transformer_blocks__0__attn2__to_k__weight": (320, 1024),
        },
        "inpainting": {"model__diffusion_model__input_blocks__0__0__weight": (320, 9, 3, 3)},
    }
    for base, shapes in names.items():
        for offline in ([], ["--offline"]):
            code, said = fails(capsys, "-m", save(tmp_path / "x.safetensors", **shapes), *offline)
            assert (code, base in said) == (4, True), said
            assert "hf download" in said
            assert "--config FOLDER" in said


def test_a_file_of_other_sizes_or_with_parts_missing_is_refused(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file, save_file

    file = models["sd15"].with_suffix(".safetensors")
    code, said = fails(capsys, "-m", str(file))  # the real sizes are not those of the small model
    assert (code, "cannot load sd15.safetensors" in said, "--config FOLDER" in said) == (1, True, True), said
    whole = load_file(file)
    for name in (
        "model.diffusion_model.middle_block.0.in_layers.0.weight",
        "first_stage_model.decoder.conv_out.weight",
        "cond_stage_model.transformer.text_model.encoder.layers.1.mlp.fc1.weight",
    ):
        save_file({key: value for key, value in whole.items() if key != name}, tmp_path / "x.safetensors")
        code, said = fails(capsys, "-m", str(tmp_path / "x.safetensors"), "--config", str(models["sd15"]))
        assert (code, "cannot load x.safetensors: " in said, "missing" in said) == (1, True, True), said
    assert "Traceback" not in said


def test_velocity_is_not_drawn_as_noise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = save(tmp_path / "v.safetensors", v_pred=(1,), conditioner__embedders__1__model__ln_final__bias=(2,))
    code, said = fails(capsys, "-m", file)
    assert (code, "predicts velocity" in said, "--config FOLDER" in said) == (1, True, True)


def test_a_folder_of_configs_is_checked_as_a_model_is(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No code, no pickles, and an answer for what is no such folder."""
    file = ["-m", str(models["sd15"].with_suffix(".safetensors"))]
    canary = tmp_path / "canary"

    class Payload:
        def __reduce__(self) -> Any:
            return Path.mkdir, (canary,)

    configs = without_weights(models["sd15"], tmp_path / "configs")
    weights = configs / "unet" / "diffusion_pytorch_model.bin"
    weights.write_bytes(pickle.dumps(Payload()))
    code, said = fails(capsys, *file, "--config", str(configs))
    assert (code, "only pickled weights" in said) == (1, True), said
    weights.unlink()
    config = configs / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"auto_map": {"AutoModel": "net.Net"}}))
    code, said = fails(capsys, *file, "--config", str(configs))
    assert (code, "never runs code" in said) == (1, True), said
    assert not canary.exists()
    (tmp_path / "empty").mkdir()
    code, said = fails(capsys, *file, "--config", str(tmp_path / "empty"))
    assert (code, "no model_index.json" in said) == (1, True)
    code, said = fails(capsys, "--config", str(configs))
    assert (code, "only a single file needs them" in said) == (2, True)
