"""The data of "is this by Van Gogh?": what is in it, and that nothing held out was learned from."""

import io
import sys
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image
from scripts_kit import OBJECTS, STYLES, noisy, write

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))  # scripts are run as files, so they are no package

import prepare_vangogh


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the layout of the real one; the name of a source tells which of its files it is from."""
    root = tmp_path_factory.mktemp("shared")
    text = datasets.Value("string")
    for part, nouns in (("train", "train-0"), ("validation", "validation")):
        seed = 1000 * (part == "train")
        write(
            root / f"pacs128/{part}.parquet",
            {"object": datasets.ClassLabel(names=OBJECTS), "style": datasets.ClassLabel(names=STYLES), "source": text},
            image=[noisy(seed + k, 128, 128) for k in range(4)],
            object=[0, 1, 2, 3],
            style=[0, 1, 2, 3],
            source=[f"{part}/{style}" for style in STYLES],
        )
        write(
            root / f"tinyimagenet64/{nouns}.parquet",
            {"name": text, "source": text},
            image=[noisy(seed + 10, 64, 64)],
            name=["noun"],
            source=[f"{part}/noun"],
        )
        write(
            root / f"vangogh/{part}.parquet",
            {"title": text, "kind": text, "date": text, "source": text},
            image=[noisy(seed + 20 + k, 200, 160) for k in range(2)],
            title=["A", "B"],
            kind=["landscape", "drawing"],
            date=["1889"] * 2,
            source=[f"{part}/landscape", f"{part}/drawing"],
        )
    return root


def make(shared: Path, out: Path) -> dict[str, list[dict]]:
    options = ["--data", str(shared), "--out", str(out), "--crops", "8"]
    result = CliRunner().invoke(prepare_vangogh.main, options, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "8 crops of his paintings, 8 of others" in result.output
    return {name: pq.read_table(out / f"{name}.parquet").to_pylist() for name in ("train", "held-out")}


def test_half_are_his_and_no_picture_is_in_both_files(shared: Path, tmp_path: Path) -> None:
    made = make(shared, tmp_path)
    for name, part in (("train", "train"), ("held-out", "validation")):
        rows = made[name]
        assert sorted((row["by"], row["kind"]) for row in rows) == sorted(
            [(1, "van gogh")] * 8 + [(0, "painting")] * 4 + [(0, "photo")] * 4
        )
        assert {row["source"].split("/", 1)[1] for row in rows} == {
            f"{part}/{what}" for what in ("landscape", "art_painting", "photo", "noun")
        }
        assert {Image.open(io.BytesIO(row["image"]["bytes"])).size for row in rows} == {(64, 64)}
        features = datasets.Features.from_arrow_schema(pq.read_schema(tmp_path / f"{name}.parquet"))
        assert features["by"].names == ["other", "Van Gogh"]
    assert make(shared, tmp_path / "again") == made
