"""Every image knows how it was made: our JSON is exact, A1111's text is A1111's, and hostile records are survived."""

import contextlib
import io
import json
import math
import os
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from t2i.errors import ImageError
from t2i.imaging import images
from t2i.metadata import a1111, embedding, recipe
from t2i.metadata.jsonable import public_name
from t2i.metadata.recipe import Mark, Recipe

SUFFIXES = (".png", ".jpg", ".webp")
PICTURE = Image.linear_gradient("L").resize((16, 16)).convert("RGB")
MINE = Recipe(
    prompt="a horse in Van Gogh style",
    negative_prompt="blurry",
    template="a {horse|dog} in Van Gogh style",
    steps=20,
    sampler="DPM++ 2M",
    schedule_type="Karras",
    scheduler="dpm++2m-karras",
    scheduler_config={"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -math.inf, "betas": (0.1, 1)},
    guidance=7.0,
    seed=1,
    width=512,
    height=768,
    model="mini",
    weights_hash="0123456789abcdef" * 4,
    versions={"t2i": "0.1.0", "torch": "2.13.0"},
    image_hash=images.pixel_hash(PICTURE),
)
TRAP = "a horse\nSteps: 1, Seed: 9, Sampler: x"
any_text = st.text(st.characters(codec="utf-8"))


def saved(tmp_path: Path, suffix: str, made: images.Metadata) -> Path:
    return images.save(PICTURE, tmp_path / f"a{suffix}", recipe=made, overwrite=True)


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 8
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    return found


def png_with(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG with these chunks before its pixels."""
    buffer = io.BytesIO()
    PICTURE.save(buffer, "PNG")
    plain = buffer.getvalue()
    extra = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return plain[:33] + extra + plain[33:]


def itxt(key: bytes, text: bytes) -> tuple[bytes, bytes]:
    return b"iTXt", key + b"\0\0\0\0\0" + text


def test_the_text_form_is_a1111s_to_the_letter() -> None:
    assert MINE.parameters() == (
        "a horse in Van Gogh style\n"
        "Negative prompt: blurry\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x768, "
        "Model hash: 0123456789, Model: mini, RNG: CPU, Version: t2i 0.1.0"
    )
    bare = replace(MINE, negative_prompt="", schedule_type=None, weights_hash=None, guidance=3.5, versions={})
    assert bare.parameters() == (
        "a horse in Van Gogh style\n"
        "Steps: 20, Sampler: DPM++ 2M, CFG scale: 3.5, Seed: 1, Size: 512x768, Model: mini, RNG: CPU, Version: t2i"
    )


def test_parsing_the_text_form() -> None:
    text = (
        "one\n  two  \n\nNegative prompt: three\nfour\n"
        'Steps: 4, Sampler: Euler a, Size: 8x9, Lora hashes: "a: 1, b: \\"2\\"", TI: "", Hires/fix-x: 2'
    )
    assert recipe.parse_parameters(text) == {
        "Prompt": "one\ntwo\n",
        "Negative prompt": "three\nfour",
        "Steps": "4",
        "Sampler": "Euler a",
        "Size-1": "8",
        "Size-2": "9",
        "Lora hashes": 'a: 1, b: "2"',
        "TI": "",
        "Hires/fix-x": "2",
    }
    # Fewer than three pairs are prompt; so is a text without any.
    assert recipe.parse_parameters("a\nbb: 1, cc: 2") == {"Prompt": "a\nbb: 1, cc: 2", "Negative prompt": ""}
    assert recipe.parse_parameters("") == {"Prompt": "", "Negative prompt": ""}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_prompt_that_looks_like_the_last_line(suffix: str, tmp_path: Path) -> None:
    made = replace(MINE, prompt=TRAP, negative_prompt=TRAP, template="")
    record = recipe.read(saved(tmp_path, suffix, made))
    assert record.recipe == made
    parsed = recipe.parse_parameters(record.parameters or "")
    assert (parsed["Steps"], parsed["Seed"], parsed["Sampler"]) == ("20", "1", "DPM++ 2M")
    assert (parsed["Prompt"], parsed["Negative prompt"]) == (TRAP, TRAP)


@settings(max_examples=300, deadline=None)
@given(any_text, any_text, any_text)
def test_the_last_line_is_found_whatever_the_prompt_holds(prompt: str, negative: str, model: str) -> None:
    made = replace(MINE, prompt=prompt, negative_prompt=negative, model=model)
    parsed = recipe.parse_parameters(made.parameters())
    assert (parsed["Steps"], parsed["Seed"], parsed["Size-1"], parsed["Size-2"]) == ("20", "1", "512", "768")
    # Values survive, but for NUL, and for a value of the form 1x2, which A1111 takes for a size.
    if "Model" in parsed:
        assert parsed["Model"] == made.model.replace("\0", "\ufffd")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0\n")).map(str.strip)).map("\n".join))
def test_a_tidy_prompt_survives_the_text_form(prompt: str) -> None:
    prompt = prompt.strip()
    if any(line.startswith("Negative prompt:") for line in prompt.split("\n")):
        return
    made = replace(MINE, prompt=prompt, negative_prompt="")
    assert recipe.parse_parameters(made.parameters())["Prompt"] == prompt


@settings(max_examples=300, deadline=None)
@given(any_text)
def test_a_value_survives_quoting(value: str) -> None:
    text = a1111.render("", "", {"One": 1, "Value": value, "Two": 2, "Three": 3})
    parsed = recipe.parse_parameters(text)
    size = a1111._SIZE.fullmatch(value)
    if size:
        assert (parsed["Value-1"], parsed["Value-2"]) == size.groups()
    else:
        assert parsed["Value"] == value.replace("\0", "\ufffd")


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=3000))
def test_parsing_never_fails(text: str) -> None:
    assert {"Prompt", "Negative prompt"} <= recipe.parse_parameters(text).keys()


@pytest.mark.parametrize("unit", ["a", " ", "a:", 'a:"', 'a:"\\', "a: 1,", "\n", ",", 'a:"b,', "-/ a"])
def test_parsing_a_megabyte_is_not_quadratic(unit: str) -> None:
    """Quadratic work on 10**6 characters would not end within a test run."""
    recipe.parse_parameters((unit * 10**6)[: 10**6])


@settings(max_examples=200, deadline=None)
@given(
    st.builds(
        Recipe,
        prompt=st.text(),  # lone surrogates and NUL among them
        negative_prompt=st.text(),
        template=st.text(),
        steps=st.integers(0, 10**6),
        sampler=st.text(),
        schedule_type=st.none() | st.text(),
        scheduler=st.text(),
        scheduler_config=st.dictionaries(
            st.text(), st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.lists(st.integers())
        ),
        guidance=st.floats(allow_nan=False, allow_infinity=False),
        seed=st.integers(0, 2**64),
        width=st.integers(1, 10**5),
        height=st.integers(1, 10**5),
        model=st.text(),
        revision=st.none() | st.text(),
        weights_hash=st.none() | st.text(),
        versions=st.dictionaries(st.text(), st.text()),
        image_hash=st.none() | st.text(),
    )
)
def test_any_recipe_round_trips_through_json_and_every_file(made: Recipe) -> None:
    assert made.to_json().isascii()
    assert Recipe.from_json(made.to_json()) == made
    for kind in ("PNG", "JPEG", "WEBP"):
        buffer = io.BytesIO()
        PICTURE.save(buffer, kind, **made.save_options(kind))
        record = recipe.read(buffer.getvalue())
        assert record.recipe == made
        assert record.parameters == made.parameters()
        assert record.generated
        assert not record.problems


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_nul_and_surrogates(suffix: str, tmp_path: Path) -> None:
    made = replace(MINE, prompt="a\0b\udcffc")
    record = recipe.read(saved(tmp_path, suffix, made))
    assert record.recipe == made
    assert (record.parameters or "").startswith("a\ufffdb\ufffdc\n")


@pytest.mark.parametrize(("prompt", "kind"), [("café", b"tEXt"), ("馬", b"iTXt"), ("🐎", b"iTXt")])
def test_png_chunks_are_what_other_tools_expect(prompt: str, kind: bytes, tmp_path: Path) -> None:
    made = replace(MINE, prompt=prompt, template="")
    chunks = png_chunks(saved(tmp_path, ".png", made).read_bytes())
    texts = {data.split(b"\0")[0]: (name, data) for name, data in chunks if name in (b"tEXt", b"iTXt", b"zTXt")}
    assert set(texts) == {b"parameters", b"t2i", b"XML:com.adobe.xmp"}
    name, data = texts[b"parameters"]
    assert name == kind
    encoded = prompt.encode("latin-1" if kind == b"tEXt" else "utf-8")
    assert data.startswith(b"parameters\0" + (b"" if kind == b"tEXt" else b"\0\0\0\0") + encoded + b"\n")
    assert texts[b"t2i"][0] == b"iTXt"
    assert json.loads(texts[b"t2i"][1].split(b"\0", 5)[-1])["prompt"] == prompt
    names = [name for name, _ in chunks]
    assert names.index(b"IDAT") > max(k for k, n in enumerate(names) if n in (b"tEXt", b"iTXt"))


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_exif_comment_is_utf16_as_a1111_writes_it(suffix: str, tmp_path: Path) -> None:
    data = saved(tmp_path, suffix, MINE).read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        comment = image.getexif().get_ifd(0x8769)[0x9286]
    assert comment == b"UNICODE\0" + MINE.parameters().encode("utf-16-be")
    assert struct.pack(">HHI", 0x9286, 7, len(comment)) in data  # type 7; A1111 does not read it as type 1


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("made", [MINE, Mark()])
def test_the_file_says_that_a_model_made_it(suffix: str, made: images.Metadata, tmp_path: Path) -> None:
    path = saved(tmp_path, suffix, made)
    assert embedding.MADE_BY_A_MODEL.encode() in path.read_bytes()
    assert recipe.read(path).generated
    assert (recipe.read(path).recipe is None) == isinstance(made, Mark)
    plain = images.save(PICTURE, tmp_path / f"plain{suffix}")
    assert recipe.read(plain) == recipe.Record(None, None, False, ())


def test_a_packet_rewritten_by_another_tool_is_still_read() -> None:
    """XMP may say the same with elements, other prefixes and a processing instruction in front."""
    packet = (
        '<?xml version="1.0"?><r:RDF xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#" '
        f'xmlns:i="{embedding.IPTC_NAMESPACE}" xmlns:q="{embedding.RECIPE_NAMESPACE}"><r:Description>'
        f"<i:DigitalSourceType>\n {embedding.MADE_BY_A_MODEL} </i:DigitalSourceType>"
        f"<q:recipe><![CDATA[{MINE.to_json()}]]></q:recipe></r:Description></r:RDF>"
    )
    record = recipe.read(png_with(itxt(b"XML:com.adobe.xmp", packet.encode())))
    assert record.generated
    assert record.recipe == MINE


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_same_recipe_same_bytes(suffix: str, tmp_path: Path) -> None:
    first = saved(tmp_path, suffix, MINE).read_bytes()
    assert saved(tmp_path, suffix, Recipe.from_json(MINE.to_json())).read_bytes() == first


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_nothing_private_and_nothing_of_comfyui_is_written(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = "hf_" + "secretsecret"
    monkeypatch.setenv("HF_TOKEN", token)
    for name in ("USER", "LOGNAME", "USERNAME"):
        monkeypatch.setenv(name, "user-of-this-machine")
    home = str(tmp_path / "someone" / "models" / "mini")
    made = replace(
        MINE,
        model=home,
        device="cuda:0",
        scheduler_config={"_name_or_path": home, "solver": home, "nested": [{"_name_or_path": home, "file": home}]},
    )
    path = saved(tmp_path, suffix, made)
    data = path.read_bytes()
    wide = data.decode("latin-1") + data.decode("utf-16-be", "ignore") + data[1:].decode("utf-16-be", "ignore")
    for private in (token, str(tmp_path), "someone", "user-of-this-machine", str(Path.home()) + "/"):
        assert private not in wide
    record = recipe.read(path)
    assert record.recipe is not None
    assert record.recipe.model == "mini"
    assert record.recipe.device == "cuda"
    assert record.recipe.scheduler_config == {"solver": "mini", "nested": [{"file": "mini"}]}
    with Image.open(path) as image:
        assert not {"prompt", "workflow"} & image.info.keys()


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("mini", "mini"),
        ("owner/name", "owner/name"),
        ("/home/me/sd", "sd"),
        ("/home/me/sd/", "sd"),
        ("~/sd", "sd"),
        ("../me/sd.safetensors", "sd.safetensors"),
        ("runs/me/sd", "sd"),
        ("C:\\Users\\me\\sd", "sd"),
        ("C:sd", "C:sd"),
    ],
)
def test_a_models_name_is_no_path_of_this_machine(model: str, name: str) -> None:
    assert public_name(model) == name
    assert public_name(name) == name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "format 2"),
        ({"steps": "20"}, "'steps' must be int"),
        ({"seed": True}, "'seed' must be int"),
        ({"prompt": None}, "'prompt' must be str"),
        ({"versions": {"t2i": 1}}, "'versions' must be"),
        ({"guidance": math.inf}, "'guidance' must be float"),
        ({"guidance": math.nan}, "'guidance' must be float"),
        ({"scheduler_config": []}, "'scheduler_config' must be"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, object], words: str) -> None:
    with pytest.raises(ImageError, match=words):
        Recipe.from_json(json.dumps(json.loads(MINE.to_json()) | change))


def test_broken_records_are_image_errors() -> None:
    data = json.loads(MINE.to_json())
    del data["seed"]
    nested = MINE.to_json().replace('"betas": [0.1, 1]', '"betas": ' + "[" * 900 + "]" * 900)
    assert nested != MINE.to_json()
    for text in ("", "{", "[]", "null", "[" * 10**5, '{"seed": ' + "9" * 10**4 + "}", json.dumps(data)):
        with pytest.raises(ImageError, match="t2i record"):
            Recipe.from_json(text)
    with contextlib.suppress(ImageError):  # read or refused, as deep as this Python goes; never a RecursionError
        Recipe.from_json(nested)
    assert Recipe.from_json(json.dumps(json.loads(MINE.to_json()) | {"of tomorrow": 1})) == MINE


BILLION = "<!DOCTYPE x [<!ENTITY a 'aaaaaaaaaa'>" + "".join(
    f"<!ENTITY a{k} '{f'&a{k - 1 or chr(0)};'.replace(chr(0), '') * 10}'>" for k in range(1, 10)
)


@pytest.mark.parametrize(
    "chunks",
    [
        [itxt(b"t2i", b"{broken")],
        [itxt(b"t2i", b"[" * 10**5)],
        [itxt(b"t2i", b"\xff\xfe")],
        [itxt(b"t2i", b'{"version": 1}')],
        [itxt(b"t2i", b"x" * 2_000_000), (b"tEXt", b"parameters\0" + b"x" * 2_000_000)],
        [(b"zTXt", b"parameters\0\0" + b"no zlib at all")],
        [itxt(b"XML:com.adobe.xmp", (BILLION + "]><x>&a9;</x>").encode())],
        [itxt(b"XML:com.adobe.xmp", b"<a>" * 10**5)],
        [itxt(b"XML:com.adobe.xmp", b"<unclosed")],
        [itxt(b"XML:com.adobe.xmp", b"\xff\xff\0\0<x/>")],
        [itxt(b"XML:com.adobe.xmp", b'<?xml version="1.0" encoding="nonsense"?><x/>')],
        [(b"eXIf", b"MM\0*\xff\xff\xff\xff")],
        [(b"eXIf", b"MM\0*\0\0\0\x08\0\x01\x87\x69\0\x04\0\0\0\x01\xff\xff\xff\xf0" + b"\0" * 4)],
        [(b"eXIf", b"II*\0" + b"\xff" * 200)],
        [(b"tEXt", b"t2i")],
        [(b"iTXt", b"t2i\0")],
    ],
)
def test_a_hostile_record_is_a_problem_and_no_more(chunks: list[tuple[bytes, bytes]]) -> None:
    with contextlib.suppress(ImageError):  # where the file is no image any more
        record = recipe.read(png_with(*chunks), "evil.png")
        assert record.recipe is None
        assert record.parameters is None
        assert all(len(problem) < 500 for problem in record.problems)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["JPEG", "WEBP", "PNG"]), st.data())
def test_flipped_bytes_never_crash_the_reader(kind: str, data: st.DataObject) -> None:
    buffer = io.BytesIO()
    PICTURE.save(buffer, kind, **MINE.save_options(kind))
    raw = bytearray(buffer.getvalue())
    for position in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=6)):
        raw[position] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ImageError):
        recipe.read(bytes(raw), "x")


def test_records_of_other_tools() -> None:
    foreign = "a cat\nSteps: 9, Sampler: Euler, Seed: 3, Size: 8x8"
    assert recipe.read(png_with((b"tEXt", b"parameters\0" + foreign.encode()))).parameters == foreign
    late = png_with()
    extra = b"tEXtparameters\0" + foreign.encode()
    end = struct.pack(">I", len(extra) - 4) + extra + struct.pack(">I", zlib.crc32(extra))
    assert recipe.read(late[:-12] + end + late[-12:]).parameters == foreign
    for comment in (
        b"UNICODE\0" + foreign.encode("utf-16-le"),
        b"UNICODE\0" + foreign.encode("utf-16-be"),
        b"ASCII\0\0\0" + foreign.encode(),
    ):
        assert recipe.read(jpeg_with_comment(comment)).parameters == foreign
    for camera in (b"ASCII\0\0\0" + b" " * 40, b"\0" * 64, b"holiday, 2019", b"UNICODE\0x"):
        assert recipe.read(jpeg_with_comment(camera)) == recipe.Record(None, None, False, ())
    # ComfyUI's keys are not ours to understand.
    assert recipe.read(png_with((b"tEXt", b'prompt\0{"3": {}}'))) == recipe.Record(None, None, False, ())


def jpeg_with_comment(comment: bytes) -> bytes:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = comment
    buffer = io.BytesIO()
    PICTURE.save(buffer, "JPEG", exif=exif.tobytes())
    return buffer.getvalue()


def test_a_record_too_long_for_jpeg_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    made = replace(MINE, prompt="x" * 70_000)
    with pytest.raises(ImageError) as caught:
        images.save(PICTURE, tmp_path / "a.jpg", recipe=made)
    assert ".png" in str(caught.value.hint)
    assert os.listdir(tmp_path) == []
    for suffix in (".png", ".webp"):
        assert recipe.read(saved(tmp_path, suffix, made)).recipe == made
