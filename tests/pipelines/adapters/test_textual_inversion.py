"""`t2i generate --embedding`: new words from diffusers' and A1111's files, counted in prompts, recorded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from adapter_kit import OPTIONS, draw, load, pixels, random, save
from generate_kit import Run

from t2i.metadata import recipe

Family = Callable[[str], Path]


@pytest.mark.parametrize("vectors", [1, 3])
@pytest.mark.parametrize("key", ["emb_params", "<cat-toy>"])
def test_a_word_draws_what_plain_diffusers_draws(
    key: str, vectors: int, family: Family, t2i: Run, tmp_path: Path
) -> None:
    file = save({key: random(vectors, 16)}, tmp_path / "OddStyle.safetensors")
    word = "OddStyle" if key == "emb_params" else key
    prompt = f"a horse, {word}, and more"
    ran = t2i(prompt, "-m", str(family("sd15")), *OPTIONS, "--embedding", str(file), "-o", "odd.png")
    assert ran.code == 0, ran.err
    count = "1 vector" if vectors == 1 else "3 vectors"
    assert f"embedding OddStyle.safetensors: say {word} ({count})" in ran.err
    pipe = load(family("sd15"))
    without = draw(pipe, prompt)
    pipe.load_textual_inversion({word: random(vectors, 16)}, token=word)
    assert np.abs(pixels("odd.png") - draw(pipe, prompt)).max() <= 1.5
    assert np.abs(pixels("odd.png") - without).max() > 2
    made = recipe.read(Path("odd.png"))
    assert made.recipe is not None
    assert [(one["kind"], one["name"], one["token"]) for one in made.recipe.adapters] == [
        ("embedding", "OddStyle.safetensors", word)
    ]
    assert made.parameters is not None
    assert f'TI hashes: "{word}: {made.recipe.adapters[0]["sha256"][:12]}"' in made.parameters


def test_both_encoders_of_xl_learn_the_word(family: Family, t2i: Run, tmp_path: Path) -> None:
    both = {"clip_l": random(2, 16, seed=1), "clip_g": random(2, 24, seed=2)}
    file = save(both, tmp_path / "both.safetensors")
    wanted = ("-m", str(family("sdxl")), *OPTIONS, "--embedding", f"{file}:odd")
    assert t2i("a horse odd", *wanted, "-n", "a cat", "-o", "xl.png").code == 0
    pipe = load(family("sdxl"))
    pipe.load_textual_inversion({"odd": both["clip_l"]}, token="odd")
    pipe.load_textual_inversion(
        {"odd": both["clip_g"]}, token="odd", tokenizer=pipe.tokenizer_2, text_encoder=pipe.text_encoder_2
    )
    assert np.abs(pixels("xl.png") - draw(pipe, "a horse odd", negative_prompt="a cat")).max() <= 1.5


def test_two_words_and_a_lora_at_once(family: Family, t2i: Run, tmp_path: Path) -> None:
    from adapter_kit import save_lora

    save({"emb_params": random(2, 16, seed=1)}, tmp_path / "one.safetensors")
    save({"emb_params": random(1, 16, seed=2)}, tmp_path / "two.safetensors")
    style = save_lora(family("sd15"), tmp_path / "style.safetensors")
    wanted = [f"{tmp_path}/one.safetensors:odd", f"{tmp_path}/two.safetensors"]
    options = [*(word for path in wanted for word in ("--embedding", path)), "--lora", str(style)]
    assert t2i("odd horse two", "-m", str(family("sd15")), *OPTIONS, *options, "-o", "all.png").code == 0
    pipe = load(family("sd15"))
    pipe.load_lora_weights(tmp_path, weight_name="style.safetensors")
    pipe.load_textual_inversion({"odd": random(2, 16, seed=1)}, token="odd")
    pipe.load_textual_inversion({"two": random(1, 16, seed=2)}, token="two")
    assert np.abs(pixels("all.png") - draw(pipe, "odd horse two")).max() <= 1.5


def test_the_vectors_of_a_word_are_counted(family: Family, t2i: Run, tmp_path: Path) -> None:
    file = save({"emb_params": random(70, 16)}, tmp_path / "long.safetensors")
    prompt = "long " + "horse " * 10
    wanted = ("-m", str(family("sd15")), *OPTIONS, "--embedding", str(file))
    assert "2 chunks of 75 tokens" in t2i(prompt, *wanted, "-o", "chunks.png").err
    ran = t2i(prompt, *wanted, "--no-chunks", "-o", "cut.png")
    assert ran.code == 0, ran.err
    assert "cut off: 'horse horse horse horse horse'" in ran.err  # 70 and 10 into 75
    assert "cut off" not in t2i(prompt, "-m", str(family("sd15")), *OPTIONS, "-o", "whole.png").err


def test_a_word_that_no_prompt_says(family: Family, t2i: Run, tmp_path: Path) -> None:
    file = save({"emb_params": random(1, 16)}, tmp_path / "odd.safetensors")
    wanted = ("-m", str(family("sd15")), *OPTIONS, "--embedding", str(file))
    assert "hint: no prompt contains odd," in t2i("a horse", *wanted, "-o", "a.png").err
    assert "hint" not in t2i("a horse", "-n", "ODD", *wanted, "-o", "b.png").err


@pytest.mark.parametrize(
    ("tensors", "kind", "token", "code", "message"),
    [
        ({"emb_params": (2, 24)}, "sd15", "", 1, "has vectors 24 wide, the text encoder of tiny-sd15 reads 16"),
        (
            {"emb_params": (2, 32)},
            "sdxl",
            "",
            1,
            "has vectors 32 wide, the text encoder of tiny-sdxl reads 16 and 24",
        ),
        ({"clip_l": (2, 16), "clip_g": (2, 24)}, "sd15", "", 1, "has vectors 24 wide"),
        ({"a": (2, 16), "b": (2, 16)}, "sd15", "", 1, "holds no textual inversion (its tensors: a, b)"),
        ({"emb_params": (2, 3, 16)}, "sd15", "", 1, "holds no textual inversion"),
        ({"emb_params": (0, 16)}, "sd15", "", 1, "holds no textual inversion"),
        ({"emb_params": (1, 16)}, "sd15", "cat</w>", 2, "its token 'cat</w>' is a word of the model already"),
        ({"two words": (1, 16)}, "sd15", "", 2, "its token 'two words' is not one word"),
        ({"emb_params": (1, 16)}, "sd3", "", 2, "--embedding: tiny-sd3 (a StableDiffusion3Pipeline) takes none"),
    ],
)
def test_files_that_do_not_fit(
    tensors: dict[str, tuple[int, ...]],
    kind: str,
    token: str,
    code: int,
    message: str,
    family: Family,
    t2i: Run,
    tmp_path: Path,
) -> None:
    file = save({name: random(*shape) for name, shape in tensors.items()}, tmp_path / "odd.safetensors")
    spec = f"{file}:{token}" if token else str(file)
    ran = t2i("a horse odd", "-m", str(family(kind)), *OPTIONS, "--embedding", spec, "-o", "never.png")
    assert ran.code == code
    assert message in ran.err
    assert "Traceback" not in ran.err
    assert not Path("never.png").exists()


def test_a_pickled_embedding_is_refused(t2i: Run, tmp_path: Path) -> None:
    (tmp_path / "odd.pt").write_bytes(b"PK\x03\x04 and more")
    ran = t2i("a horse", "--embedding", str(tmp_path / "odd.pt"))
    assert ran.code == 1
    assert "odd.pt is a pickle, whatever its name: loading it can run any code" in ran.err
