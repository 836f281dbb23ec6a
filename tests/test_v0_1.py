"""What t2i 0.1 wrote still replays, continues and resumes. `data/v0_1/make.py` says how it was made.

Everything here goes through the command line and public names alone. On a machine of the same kind as the one that made
the fixtures, results must be equal bit for bit; on others pictures may differ by 1 of 255, trained weights by rounding.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from generate_kit import Ran, Run
from PIL import Image

DATA = Path(__file__).parent / "data" / "v0_1"
FAMILIES = ("autoencoder", "classifier", "dcgan", "ddpm", "text2image", "vae")
SAMPLED = ("dcgan", "ddpm", "vae")
BATCHES = ("files", "parquet", "webdataset")
RECORDS = sorted(path.name for path in (DATA / "records").iterdir() if path.suffix != ".json")
# What a record says that a later version must say again of the same picture.
ASKED = "prompt negative_prompt template negative_template reading steps sampler schedule_type scheduler guidance seed"
ASKED += " width height model weights_hash adapters dtype batch_size batch_index machine edit"
LINE = ("index", "job", "file", "key", "prompt", "seed", "status", "error")  # of a manifest, on any machine
LOSSY = 24  # of 255: what a difference of 1 may become in a JPEG or WebP file


@functools.cache
def _models() -> Any:
    spec = importlib.util.spec_from_file_location("v0_1_models", DATA / "models.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def is_same_machine() -> bool:
    """Whether this is a machine, with libraries, on which 0.1 would compute the same bits as where it was run."""
    made = read_json(DATA / "made_on.json")
    return all(made[name] == value for name, value in _models().machine().items())


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands find where they run: read it, never write to it."""
    return Path(_models().workspace(tmp_path_factory.mktemp("v0_1") / "workspace"))


@pytest.fixture
def place(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with all of that, in which torch computes with one thread, as it did."""
    import torch

    folder = shutil.copytree(workspace, tmp_path / "work")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("T2I_MODEL", "tiny")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield folder
    torch.set_num_threads(threads)


@pytest.fixture
def t2i(place: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs `t2i` with these words."""
    from t2i.cli.main import main

    def run(*words: str) -> Ran:
        capfd.readouterr()
        code = main(words)
        return Ran(code, *capfd.readouterr())

    return run


def pixels(picture: Any) -> Any:
    return np.asarray(Image.open(picture).convert("RGB"), np.int16)


def assert_same_picture(found: Any, wanted: Any, name: str, lossy: bool = False) -> None:
    """Two arrays (H, W, 3): equal on the same kind of machine, else all but equal."""
    assert found.shape == wanted.shape, name
    gap = np.abs(found.astype(np.int16) - wanted.astype(np.int16)).max()
    assert gap <= (0 if is_same_machine() else LOSSY if lossy else 1), name


def recipe(t2i: Run, *paths: str) -> list[dict[str, Any]]:
    """What `t2i info` says of each picture, one by one."""
    found = []
    for path in paths:
        ran = t2i("info", path, "--json")
        assert ran.code == 0, ran.err
        found.append(json.loads(ran.out)["recipe"])
    return found


def test_the_models_are_those_of_the_records(workspace: Path) -> None:
    assert _models().hashes(workspace) == read_json(DATA / "models.json")


# --- records ---


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_replays(name: str, t2i: Run, place: Path) -> None:
    shutil.copytree(DATA / "records", place / "records")
    ran = t2i("generate", "--from", f"records/{name}", "-o", f"again{Path(name).suffix}")
    assert (ran.code, ran.lines) == (0, [f"again{Path(name).suffix}"]), ran.err
    then, now = recipe(t2i, f"records/{name}", ran.lines[0])
    if then["model"] == "mini" and now["weights_hash"] != then["weights_hash"]:
        pytest.skip("the embedded model is another one by now")
    for key in ASKED.split():
        assert now[key] == then[key], key
    assert_same_picture(pixels(ran.lines[0]), pixels(f"records/{name}"), name, lossy=not name.endswith(".png"))
    if is_same_machine():
        assert now["image_hash"] == then["image_hash"]
        assert now["scheduler_config"] == then["scheduler_config"]


def test_what_is_said_beside_a_record_holds(t2i: Run, place: Path) -> None:
    shutil.copytree(DATA / "records", place / "records")
    assert t2i("generate", "--from", "records/size.png", "-s", "7", "--size", "16", "-o", "other.png").code == 0
    assert_same_picture(pixels("other.png"), pixels("records/words.png"), "other.png")


def test_several_records_replay_at_once(t2i: Run, place: Path) -> None:
    shutil.copytree(DATA / "records", place / "records")
    names = ["lora.png", "flow.png", "masked.png", "together.png", "words.png"]
    ran = t2i("generate", *(word for name in names for word in ("--from", f"records/{name}")), "-o", "again/")
    assert (ran.code, len(ran.lines)) == (0, len(names)), ran.err
    hashes = {made["seed"]: path for made, path in zip(recipe(t2i, *ran.lines), ran.lines, strict=True)}
    for name, (then,) in ((name, recipe(t2i, f"records/{name}")) for name in names):
        assert_same_picture(pixels(hashes[then["seed"]]), pixels(f"records/{name}"), name)


def test_the_settings_of_another_tool_mean_the_same(t2i: Run, place: Path) -> None:
    ran = t2i("generate", "--from", "a1111.png", "-o", "again.png")
    assert ran.code == 0, ran.err
    assert_same_picture(pixels("again.png"), pixels(DATA / "records" / "from-a1111.png"), "a1111")
    then, now = recipe(t2i, str(DATA / "records" / "from-a1111.png"), "again.png")
    assert {key: now[key] for key in ASKED.split()} == {key: then[key] for key in ASKED.split()}


def test_from_python_the_same_is_drawn(place: Path) -> None:
    import t2i

    draw = t2i.load("tiny")

    def compare(picture: Any, name: str) -> None:
        assert_same_picture(np.asarray(picture), pixels(DATA / "records" / name), name)

    compare(draw("a horse", seed=7, steps=4)[0], "words.png")
    compare(draw("a cat", image="start.png", mask="mask.png", seed=3, steps=4)[0], "masked.png")
    compare(draw("a horse", upscale="2:0.5", seed=4, steps=4)[0], "upscale.png")
    compare(draw("a horse", scheduler="euler-a", seed=2, steps=4)[0], "ancestral.png")
    compare(draw("a horse", seed=20, num_images=3, batch_size=3, steps=4)[2], "together.png")
    compare(t2i.load("tiny", lora="style.safetensors:0.8")("a horse", seed=5, steps=4)[0], "lora.png")


# --- long batches ---


@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_that_was_killed_goes_on(name: str, t2i: Run, place: Path) -> None:
    """What was there stays, byte for byte; what is made, and nothing else, is what was missing."""
    shutil.copytree(DATA / "batches" / name, place / name)
    told = read_json(DATA / "batches" / f"{name}.json")
    before = {path: path.read_bytes() for path in (place / name).rglob("*") if is_picture(path)}
    spooled = {path: data for path, data in before.items() if ".t2i-batch" in path.parts}
    ran = t2i(*told["words"])
    assert (ran.code, sorted(ran.lines)) == (0, sorted(told["made"])), ran.err
    assert {path: path.read_bytes() for path in before if path not in spooled} == {
        path: data for path, data in before.items() if path not in spooled
    }
    whole = compare_batch(place / name, told["manifest"], name)
    for path, data in spooled.items():
        assert whole[path.stem] == data
    again = t2i(*told["words"])
    assert (again.code, again.lines) == (0, []), again.err


@pytest.mark.parametrize("name", BATCHES)
def test_the_rows_of_a_file_mean_the_same(name: str, t2i: Run, place: Path) -> None:
    """A new folder: the same jobs, and so the same prompts, seeds, settings, models and adapters."""
    told = read_json(DATA / "batches" / f"{name}.json")
    words = [f"fresh-{name}/" if word == f"{name}/" else word for word in told["words"]]
    ran = t2i(*words, "--dry-run", "--json")
    assert ran.code == 0, ran.err
    facts = json.loads(ran.out)
    assert (facts["images"], facts["missing"]) == (len(told["manifest"]), len(told["manifest"]))
    ran = t2i(*words)
    assert ran.code == 0, ran.err
    compare_batch(place / f"fresh-{name}", told["manifest"], name)


def is_picture(path: Path) -> bool:
    return path.suffix in (".png", ".jpg", ".parquet", ".tar")


def compare_batch(folder: Path, wanted: list[dict[str, Any]], name: str) -> dict[str, bytes]:
    """The whole batch is as 0.1 ended it; returns its pictures as they are encoded, by their names."""
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    known = (*LINE, "hash") if is_same_machine() else LINE
    assert [{key: line.get(key) for key in known} for line in lines] == [
        {key: line.get(key) for key in known} for line in wanted
    ]
    encoded = {}
    with np.load(DATA / "batches" / f"{name}.npz") as expected:
        for line in lines:
            key = line.get("key", Path(line["file"]).stem)
            encoded[key] = encoded_picture(folder / line["file"], key)
            lossy = name == "webdataset"
            assert_same_picture(pixels(io.BytesIO(encoded[key])), expected[line["job"]], key, lossy)
    return encoded


def encoded_picture(path: Path, key: str) -> bytes:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        rows = pq.read_table(path).to_pylist()
        return bytes(next(row["image"]["bytes"] for row in rows if row["key"] == key))
    if path.suffix == ".tar":
        with tarfile.open(path) as tar:
            entry = tar.extractfile(f"{key}.jpg")
            assert entry is not None
            return entry.read()
    return path.read_bytes()


# --- sampling ---


@pytest.mark.parametrize("family", SAMPLED)
def test_a_folder_of_samples_goes_on(family: str, t2i: Run, place: Path) -> None:
    unpack(family, place)
    folder = shutil.copytree(DATA / "samples" / family, place / "samples" / family)
    before = {path: path.read_bytes() for path in folder.glob("*.png")}
    words = {"ddpm": "-b 6 --batch-size 4 --steps 3 --guidance 1.5 --sampler ddim -s 3"}
    words |= {"dcgan": "-b 3 --label sketch -s 4", "vae": "-b 3 -s 5"}
    ran = t2i("sample", f"finished/{family}", *words[family].split(), "-o", f"samples/{family}")
    assert ran.code == 0, ran.err
    assert {path: path.read_bytes() for path in before} == before
    with np.load(DATA / "samples.npz") as expected:
        wanted = {name: expected[name] for name in expected.files if name.startswith(f"{family}/")}
    assert ran.lines == [f"samples/{name}" for name in wanted]
    for name, picture in wanted.items():
        assert_same_picture(pixels(f"samples/{name}"), picture, name)
    made = recipe(t2i, *(f"samples/{name}" for name in wanted))
    assert [one["seed"] for one in made] == [made[0]["seed"] + k for k in range(len(made))]
    then, now = ({key: one[key] for key in ASKED.split()} for one in made[:2])  # one of 0.1, one of now
    assert now | {key: then[key] for key in ("prompt", "template", "seed")} == then


def test_from_python_the_same_is_sampled(place: Path) -> None:
    from t2i.pipelines import DCGAN, DDPM, VAE

    for family in SAMPLED:
        unpack(family, place)
    settings: dict[str, Any] = {"sampler": "ddim", "steps": 3, "guidance": 1.5, "batch_size": 4}
    drawn = {
        "ddpm": DDPM.from_pretrained("finished/ddpm")(8, seed=3, **settings),
        "dcgan": DCGAN.from_pretrained("finished/dcgan")(64, "sketch", seed=4),
        "vae": VAE.from_pretrained("finished/vae")(64, seed=5),
    }
    with np.load(DATA / "samples.npz") as expected:
        for name in expected.files:
            family, _, file = name.partition("/")
            assert_same_picture(np.asarray(drawn[family][int(Path(file).stem)]), expected[name], name)


def unpack(family: str, place: Path) -> Any:
    """A run as it was left, in `runs/`, and what came of it, in `finished/`; returns the numbers of that."""
    with tarfile.open(DATA / "runs" / f"{family}.tar.xz") as tar:
        tar.extractall(place / "archive", filter="data")
    (place / "runs").mkdir(exist_ok=True)
    shutil.move(place / "archive" / family, place / "runs" / family)
    if (place / "archive" / "finished").exists():
        shutil.move(place / "archive" / "finished", place / "finished" / family)
    return read_json(place / "archive" / "expected.json")


# --- training ---


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_that_was_killed_resumes(family: str, t2i: Run, place: Path) -> None:
    """The same command ends with the weights and the log of 0.1 going on from that checkpoint."""
    from safetensors.numpy import load_file

    wanted = unpack(family, place)
    shutil.copyfile(DATA / "configs" / f"{family}.yaml", place / f"{family}.yaml")
    ran = t2i("train", family, f"{family}.yaml", "--quiet")
    assert (ran.code, ran.out) == (0, f"runs/{family}/export\n"), ran.err
    export = place / "runs" / family / "export"
    files = sorted(export.rglob("*.safetensors"))
    found = {f"{file.relative_to(export).as_posix()}/{k}": v for file in files for k, v in load_file(file).items()}
    assert {name: list(value.shape) for name, value in found.items()} == {
        name: shape for name, (shape, _, _) in wanted["tensors"].items()
    }
    compare_weights(found, wanted["tensors"])
    compare_log(place / "runs" / family / "log.csv", wanted["log"])


def compare_weights(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Equal by their hashes on the same kind of machine. Elsewhere a weight that only rounding moves may go either way
    by as much as the learning rate, and nearly all are equal."""
    from hashlib import sha256

    if is_same_machine():
        hashes = {name: sha256(value.tobytes()).hexdigest()[:16] for name, value in found.items()}
        assert hashes == {name: digest for name, (_, digest, _) in wanted.items()}
    few = [value.ravel()[:: max(1, value.size // 3)] for value in (found[name] for name in wanted)]
    gaps = np.abs(np.concatenate(few).astype(float) - np.concatenate([values for _, _, values in wanted.values()]))
    assert gaps.max() < 0.02
    assert np.quantile(gaps, 0.9) < 2e-4


def compare_log(path: Path, wanted: str) -> None:
    """Every number but the speed."""
    import csv

    then, now = (list(csv.DictReader(io.StringIO(text))) for text in (wanted, path.read_text()))
    assert [row["images"] for row in now] == [row["images"] for row in then]
    for before, after in zip(then, now, strict=True):
        for name in before.keys() - {"images_per_second"}:
            exact = after[name] == before[name]
            assert exact or (not is_same_machine() and float(after[name]) == pytest.approx(float(before[name]), 1e-2))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_means_the_same(family: str) -> None:
    """Every key that 0.1 knew has the value that 0.1 gave it; a dump is read back to the same."""
    from t2i.config import build_config, config_hash, dump_config, load_config, parse_yaml

    told = read_json(DATA / "configs" / "dumped.json")[family]
    config = load_config(DATA / "configs" / f"{family}.yaml", family)
    values = config.model_dump(mode="json")
    assert known_part(values, told["values"]) == told["values"]
    assert build_config(type(config), parse_yaml(dump_config(config))) == config
    assert build_config(type(config), told["values"]) == config
    if values == told["values"]:  # no key is new
        assert config_hash(config) == told["hash"]


def known_part(values: Any, known: Any) -> Any:
    """Of nested values those whose keys are known."""
    if isinstance(values, dict) and isinstance(known, dict):
        return {key: known_part(values.get(key), known[key]) for key in known}
    return values


# --- the user's own defaults ---


def test_a_users_defaults_still_hold(t2i: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(DATA / "user", place / "settings")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(place / "settings"))
    monkeypatch.delenv("T2I_MODEL")
    shown = t2i("config", "show", "--json")
    assert json.loads(shown.out)["values"] == {
        "generate.model": "tiny",
        "generate.steps": 3,
        "generate.cfg-scale": 2.5,
        "generate.negative_prompt": "a cat",
        "generate.lora": ["style.safetensors:0.5"],
        "sample.batch-count": 4,
        "eval.score.n": 10000,
    }
    assert t2i("generate", "a horse", "-s", "7", "-o", "mine.png").code == 0
    (made,) = recipe(t2i, "mine.png")
    assert (made["model"], made["steps"], made["guidance"], made["negative_prompt"]) == ("tiny", 3, 2.5, "a cat")
    assert [(one["name"], one["scale"]) for one in made["adapters"]] == [("style.safetensors", 0.5)]
    file = place / "settings" / "t2i" / "config.yaml"
    before = file.read_text()
    assert t2i("config", "set", "generate.steps", "5").code == 0
    assert file.read_text() == before.replace("steps: 3", "steps: 5")
