import io
import os
import re
import sys
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from scripts_kit import OBJECTS, STYLES, noisy, write

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))  # scripts are run as files, so they are no package

import prepare_mini
import stylise
import typical

from t2i.config import Data, Source
from t2i.data.memory_table import load_memory


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the layout of the real one, a few drawn pictures in each file."""
    root = tmp_path_factory.mktemp("shared")
    text = datasets.Value("string")
    pairs = [(o, s) for o in range(7) for s in range(4)]
    write(
        root / "pacs128/train.parquet",
        {"object": datasets.ClassLabel(names=OBJECTS), "style": datasets.ClassLabel(names=STYLES), "source": text},
        image=[noisy(k, 128, 128) for k in range(28)],
        object=[o for o, _ in pairs],
        style=[s for _, s in pairs],
        source=[f"{s}/{o}.jpg" for o, s in pairs],
    )
    for k in range(2):
        nouns = [f"noun {k}", *prepare_mini.HELD_OUT]
        write(
            root / f"tinyimagenet64/train-{k}.parquet",
            {"name": text, "source": text},
            image=[noisy(100 + k, 64, 64) for _ in nouns],
            name=nouns,
            source=[f"{name.removeprefix('noun ')}.JPEG" for name in nouns],
        )
    write(root / "horses128/train.parquet", {"source": text}, image=[noisy(200, 128, 96)], source=["h.jpg"])
    titles = ["The Starry Night", "Portrait of X", "A Drawing", "Grey Reproduction"]
    grey = io.BytesIO()
    Image.new("L", (96, 128), 90).save(grey, "PNG")
    write(
        root / "vangogh/train.parquet",
        {"title": text, "kind": text, "date": text, "source": text},
        image=[*(noisy(300 + k, 200, 160) for k in range(3)), grey.getvalue()],
        title=titles,
        kind=["landscape", "portrait", "drawing", "landscape"],
        date=["1889"] * 4,
        source=titles,
    )
    write(
        root / "vangogh256/train.parquet",
        {"source": text},
        image=[noisy(400 + k, 100, 100) for k in range(3)],
        source=[f"arles {k}.jpg" for k in range(3)],
    )
    for folder in ("pacs128", "horses128", "vangogh", "vangogh256"):  # reading one of these would end the run
        (root / folder / "validation.parquet").write_bytes(b"never read")
    (root / "tinyimagenet64/validation.parquet").write_bytes(b"never read")
    return root


def run(shared: Path, out: Path, *more: str) -> str:
    options = ["--data", str(shared), "--out", str(out), "--crops", "16", "--arles-crops", "8", "--copies", "6"]
    options += ["--best", "1", "--processes", "1", "--size", "64", *more]
    result = CliRunner().invoke(prepare_mini.main, options, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def made(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mini")
    said = run(shared, out)
    assert "pacs: 28 images" in said
    assert "vangogh-stylised: 42 images" in said
    return out


def rows(made: Path, name: str) -> list[dict]:
    return pq.read_table(made / f"{name}.parquet").to_pylist()


def test_every_file_has_the_same_columns_and_loads_as_a_table(made):
    names = ["pacs", "nouns", "horses", "vangogh", "arles", "vangogh-stylised", "typical"]
    assert {path.stem for path in made.glob("*.parquet")} == set(names)
    for name in names:
        features = datasets.Features.from_arrow_schema(pq.read_schema(made / f"{name}.parquet"))
        assert list(features) == ["image", "object", "style", "source"]
        assert isinstance(features["image"], datasets.Image)
        assert (made / f"{name}.png").exists()
        assert not list(made.glob("*.part"))
    table = load_memory(Data(sources=(Source(path=str(made / "*.parquet")),), size=64), progress=False)
    assert len(table) == 28 + 2 + 1 + 2 * 16 + 3 * 8 + 7 * 6 + 28 + 7
    assert set(table.columns["style"]) == {"photo", "painting", "cartoon", "sketch", "vangogh"}


def test_pictures_have_the_size_and_keep_their_bytes_where_they_had_it(shared, made):
    for name in ("pacs", "horses", "vangogh", "arles", "vangogh-stylised"):
        assert {Image.open(io.BytesIO(row["image"]["bytes"])).size for row in rows(made, name)} == {(64, 64)}
    before = [rows(shared, f"tinyimagenet64/train-{k}")[0]["image"]["bytes"] for k in range(2)]
    assert [row["image"]["bytes"] for row in rows(made, "nouns")] == before


def test_objects_and_styles_are_named(made):
    pacs = rows(made, "pacs")
    assert (pacs[2]["object"], pacs[2]["style"], pacs[0]["style"]) == ("dog", "photo", "painting")
    assert [row["object"] for row in rows(made, "nouns")] == ["noun 0", "noun 1"]
    assert [(row["object"], row["style"]) for row in rows(made, "horses")] == [("horse", "photo")]


def test_crops_are_of_colourful_paintings_and_small_ones_claim_nothing(made):
    crops = rows(made, "vangogh")
    assert {row["source"].split("#")[0] for row in crops} == {"vangogh/The Starry Night", "vangogh/Portrait of X"}
    for row in crops:
        left, top, side = (int(n) for n in row["source"].split("#")[1].split(","))
        assert 0 <= left <= 200 - side
        assert 0 <= top <= 160 - side
        assert side >= 40
        allowed = {"starry night", "landscape"} if "Starry" in row["source"] else {"person", "portrait"}
        assert row["object"] in allowed | {""}
        assert side >= 80 or row["object"] == ""
        assert side < 160 or row["object"] != ""


def test_squares_of_the_later_paintings_say_nothing_of_what_they_show(made):
    """The whole one first, then from half of the side up; each painting as often."""
    crops = rows(made, "arles")
    assert {(row["object"], row["style"]) for row in crops} == {("", "vangogh")}
    places = [row["source"].split("#") for row in crops]
    assert [source for source, _ in places] == [f"vangogh256/arles {k}.jpg" for k in range(3) for _ in range(8)]
    boxes = [tuple(int(n) for n in place.split(",")) for _, place in places]
    assert boxes[::8] == [(0, 0, 100)] * 3
    for left, top, side in boxes:
        assert 0 <= left <= 100 - side
        assert 0 <= top <= 100 - side
        assert 50 <= side <= 100
    assert len(set(boxes)) > 18


def test_held_out_nouns_are_in_no_file(made, tmp_path, monkeypatch):
    """Not by name and not by source, even where one was chosen by eye."""
    for path in made.glob("*.parquet"):
        for row in rows(made, path.stem):
            assert row["object"] not in prepare_mini.HELD_OUT
            assert not any(name in row["source"] for name in prepare_mini.HELD_OUT)
    (tmp_path / "chosen.txt").write_text("tinyimagenet/teapot.JPEG\ntinyimagenet/0.JPEG\n")
    monkeypatch.setattr(prepare_mini, "CHOSEN", tmp_path / "chosen.txt")
    shown = [picture.source for picture in prepare_mini.most_typical(made, 5)]
    assert "tinyimagenet/0.JPEG" in shown
    assert "tinyimagenet/teapot.JPEG" not in shown


@pytest.mark.skipif("T2I_SHARED_DATA" not in os.environ, reason="needs the real images of T2I_SHARED_DATA")
def test_held_out_nouns_are_nouns_of_the_real_data_and_none_was_chosen():
    chosen, held_out = set(prepare_mini.CHOSEN.read_text().split()), {}
    for path in Path(os.environ["T2I_SHARED_DATA"]).glob("tinyimagenet64/train-*.parquet"):
        for row in pq.read_table(path, columns=["name", "source"]).to_pylist():
            if row["name"] in prepare_mini.HELD_OUT:
                held_out.setdefault(row["name"], set()).add(f"tinyimagenet/{row['source']}")
    assert set(held_out) == set(prepare_mini.HELD_OUT)
    assert all(len(sources) > 400 and not sources & chosen for sources in held_out.values())


def test_pictures_have_128_pixels_where_nothing_else_is_asked(shared, tmp_path):
    options = ["--data", str(shared), "--out", str(tmp_path), "--only", "horses"]
    assert CliRunner().invoke(prepare_mini.main, options).exit_code == 0
    (row,) = rows(tmp_path, "horses")
    assert Image.open(io.BytesIO(row["image"]["bytes"])).size == (128, 128)


def test_stylised_pictures_are_balanced_and_say_what_they_are(made):
    painted = rows(made, "vangogh-stylised")
    assert {o: sum(row["object"] == o for row in painted) for o in OBJECTS} == dict.fromkeys(OBJECTS, 6)
    assert all(row["style"] == "vangogh" and ", stylised after " in row["source"] for row in painted)
    assert not any("Grey" in row["source"] for row in painted)


def test_typical_pictures_are_some_of_the_others(made):
    """The best of each object and style, and copies of the best photographs in Van Gogh's manner."""
    best = rows(made, "typical")
    assert sorted((row["object"], row["style"]) for row in best) == sorted(
        (o, s) for o in OBJECTS for s in ("photo", "painting", "cartoon", "sketch", "vangogh")
    )
    others = {row["source"]: row for name in ("pacs", "horses", "vangogh-stylised") for row in rows(made, name)}
    assert all(row["source"] in others for row in best)
    photos = {row["source"] for row in best if row["style"] == "photo"}
    assert {row["source"].split(", stylised")[0] for row in best if row["style"] == "vangogh"} <= photos


def test_pictures_chosen_by_eye_come_first(made, tmp_path, monkeypatch):
    """A chosen noun counts as what it shows; where none is chosen the most typical are taken."""
    (tmp_path / "chosen.txt").write_text("tinyimagenet/0.JPEG\npacs/2/1.jpg\n")
    monkeypatch.setattr(prepare_mini, "CHOSEN", tmp_path / "chosen.txt")
    monkeypatch.setattr(prepare_mini, "OBJECTS", {"noun 0": "dog"})
    best = {(p.object, p.style): p.source for p in prepare_mini.most_typical(made, 5)}
    assert best["dog", "photo"] == "tinyimagenet/0.JPEG"
    assert best["elephant", "photo"] == "pacs/2/1.jpg"
    assert best["giraffe", "photo"] == "pacs/2/2.jpg"


def test_what_was_chosen_by_eye_is_there():
    """Each line is a training picture's source, of PACS or Tiny ImageNet, and stands there once."""
    lines = prepare_mini.CHOSEN.read_text().split()
    assert len(lines) == len(set(lines)) > 400
    pattern = r"pacs/(art_painting|photo|cartoon|sketch)/(dog|elephant|giraffe|guitar|horse|house|person)/[^/]+"
    assert all(re.fullmatch(pattern + r"|tinyimagenet/n\d+_\d+\.JPEG", line) for line in lines)


def test_the_same_seed_gives_the_same_files_and_another_seed_others(shared, made, tmp_path):
    run(shared, tmp_path / "again")
    for path in made.glob("*.parquet"):
        assert pq.read_table(path).equals(pq.read_table(tmp_path / "again" / path.name)), path.name
    run(shared, tmp_path / "other", "--seed", "1", "--only", "vangogh")
    assert [p.name for p in (tmp_path / "other").glob("*.parquet")] == ["vangogh.parquet"]
    assert rows(tmp_path / "other", "vangogh") != rows(made, "vangogh")


def test_missing_data_and_unknown_names_are_errors(shared, tmp_path):
    result = CliRunner().invoke(prepare_mini.main, ["--data", str(tmp_path), "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "no such data" in result.output
    assert "pacs128" in result.output
    result = CliRunner().invoke(prepare_mini.main, ["--out", str(tmp_path / "none")])
    assert result.exit_code == 2
    assert "Missing option '--data'" in result.output
    assert not (tmp_path / "none").exists()
    result = CliRunner().invoke(prepare_mini.main, ["--data", str(shared), "--only", "cats"])
    assert result.exit_code == 2
    assert "choose from" in result.output


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_oklab_is_known_at_the_corners_and_turns_back_exactly():
    white_red = torch.tensor([[255, 255, 255], [255, 0, 0]], dtype=torch.uint8).view(2, 3, 1, 1)
    expected = torch.tensor([[1.0, 0.0, 0.0], [0.62796, 0.22486, 0.12585]])  # Ottosson 2020
    assert (stylise.to_oklab(white_red).flatten(1) - expected).abs().max() < 1e-3
    levels = torch.randint(0, 256, (1, 3, 64, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert torch.equal(stylise.from_oklab(stylise.to_oklab(levels)), levels)


def test_transport_gives_colours_the_spread_of_the_palette():
    colours = noise(0, 1, 3, 64, 64) * 0.05
    mixed = torch.tensor([[1.0, 0, 0], [0.8, 0.5, 0], [-0.3, 0.2, 0.4]]) @ noise(1, 1, 3, 4096)
    palette = (mixed + torch.tensor([1.0, -2.0, 3.0]).view(1, 3, 1)).view(1, 3, 64, 64)
    moved = stylise.transport(colours, palette, torch.Generator().manual_seed(2), rounds=30).flatten(2)[0]
    goal = palette.flatten(2)[0]
    assert (moved.mean(1) - goal.mean(1)).abs().max() < 0.1
    assert (torch.cov(moved) - torch.cov(goal)).abs().max() < 0.15


def test_piecewise_is_the_line_through_its_knots():
    knots, values = torch.tensor([[[0.0, 1.0, 3.0]]]), torch.tensor([[[10.0, 20.0, 0.0]]])
    x = torch.tensor([[[-5.0, 0.0, 0.5, 1.0, 2.0, 3.0, 9.0]]])
    assert stylise.piecewise(x, knots, values).flatten().tolist() == [10, 10, 15, 20, 10, 0, 0]


@pytest.mark.parametrize("along", ["x", "y"])
def test_smearing_follows_the_field_and_leaves_what_lies_across(along):
    field = torch.zeros(1, 2, 16, 16)
    field[:, 0 if along == "x" else 1] = 1
    lines = stylise.trace(field, reach=5)
    line = noise(0, 1, 1, 1, 16)
    varies_x, varies_y = line.expand(1, 1, 16, 16), line.transpose(2, 3).expand(1, 1, 16, 16)
    across, with_it = (varies_y, varies_x) if along == "x" else (varies_x, varies_y)
    assert (stylise.smear(across, lines, 5) - across).abs().max() < 1e-5
    assert stylise.smear(with_it, lines, 5).std() < 0.6 * with_it.std()


@pytest.mark.parametrize(("angle", "direction"), [(0, (0.0, 1.0)), (90, (1.0, 0.0)), (45, (-(0.5**0.5), 0.5**0.5))])
def test_strokes_run_along_edges(angle, direction):
    turn = torch.deg2rad(torch.tensor(float(angle)))
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    waves = torch.sin((x * turn.cos() + y * turn.sin()) / 3).view(1, 1, 64, 64)
    found = stylise.orientation(waves, torch.Generator().manual_seed(0))[0, :, 8:-8, 8:-8].flatten(1)
    assert (found.norm(dim=0) - 1).abs().max() < 1e-5
    assert (torch.tensor(direction) @ found).abs().mean() > 0.95  # a direction has no sign


def test_blur_keeps_the_mean_and_narrows_the_spread():
    x = noise(0, 2, 3, 32, 32)
    blurred = stylise.blur(x, 2.0)
    assert (stylise.blur(torch.ones(1, 1, 32, 32), 5.0) - 1).abs().max() < 1e-5
    assert abs(blurred.std() - 1 / (2 * 2.0 * torch.pi**0.5)) < 0.03  # of white noise, in the continuum


def test_a_stylised_picture_keeps_its_drawing_and_takes_the_palette():
    y, x = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    disc = ((x - 64) ** 2 + (y - 64) ** 2 < 40**2).float()
    photo = (60 + 140 * disc).to(torch.uint8).expand(1, 3, 128, 128)
    blue_and_yellow = torch.where(noise(3, 1, 1, 128, 128) > 0, 1.0, 0.0)
    painting = torch.cat([40 + 190 * blue_and_yellow, 60 + 130 * blue_and_yellow, 150 - 110 * blue_and_yellow], 1)
    painted = stylise.stylise(photo, painting.to(torch.uint8), torch.Generator().manual_seed(0))
    assert painted.shape == photo.shape
    assert painted.dtype == torch.uint8
    lab = stylise.to_oklab(painted)
    light = torch.corrcoef(torch.stack([lab[0, 0].flatten(), disc.flatten()]))[0, 1]
    assert light > 0.7
    assert lab[0, 2][disc > 0].mean() > 0.03 > -0.03 > lab[0, 2][disc == 0].mean()  # yellow disc on blue
    again = stylise.stylise(photo, painting.to(torch.uint8), torch.Generator().manual_seed(0))
    assert torch.equal(painted, again)


def drawn(shift: int, mirrored: bool = False, clutter: float = 0.0) -> torch.Tensor:
    """An L on grey, moved sideways; clutter: strength of noise around it."""
    x = torch.full((3, 64, 64), 128.0)
    x[:, 14:50, 24 + shift : 30 + shift] = 20.0
    x[:, 44:50, 24 + shift : 46 + shift] = 20.0
    x += clutter * noise(shift, 3, 64, 64)
    return x.flip(2) if mirrored else x


def test_typical_pictures_have_the_common_outline_before_a_plain_background():
    usual = [drawn(shift, mirrored=shift % 8 == 0) for shift in range(-12, 13, 4)]
    cluttered = [drawn(shift, clutter=60.0) for shift in range(3)]
    other = [x.transpose(1, 2).roll(20, 2) for x in usual[:1]]
    chosen = typical.typical(torch.stack([*cluttered, *other, *usual]).clamp(0, 255), 5)
    assert {i for i, _ in chosen} <= set(range(4, 11))
    assert len(chosen) == 5
    assert not chosen[0][1]  # the others are turned to face as it does


def test_copies_and_mirror_images_of_a_picture_are_chosen_once():
    pictures = [drawn(-8), drawn(-8), drawn(-8, mirrored=True), drawn(8)]
    assert {i for i, _ in typical.typical(torch.stack(pictures), 4)} == {0, 3}


def test_outlines_do_not_depend_on_brightness():
    x = torch.stack([drawn(0), 0.5 * drawn(0) + 60]).mean(1)
    one, two = typical.histograms(*typical.gradients(x))
    assert (one - two).abs().max() < 1e-6
