"""`from t2i import load`: pictures that are Pillow images, know how they were made, and show themselves."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from t2i import load
from t2i.api import Model
from t2i.errors import UsageError
from t2i.imaging import images
from t2i.metadata import recipe
from t2i.pipelines.prompts.dynamic_prompts import resolve
from t2i.pipelines.text_to_image.pictures import Picture, Pictures
from t2i.pipelines.text_to_image.pipeline import TextToImage


@pytest.fixture(scope="module")
def draw(tiny_pipeline: Path) -> Model:
    return load(tiny_pipeline)


@pytest.fixture(scope="module")
def four(draw: Model) -> Pictures:
    return draw("a horse", seed=7, num_images=4, steps=2, guidance=3, negative_prompt="a cat")


def test_picture_k_has_seed_plus_k_and_its_recipe(draw: Model, four: Pictures, tiny_pipeline: Path) -> None:
    assert isinstance(four, list)
    assert [picture.recipe.seed for picture in four] == [7, 8, 9, 10]
    for picture in four:
        assert isinstance(picture, Image.Image)
        assert (picture.size, picture.mode, picture.blanked) == ((32, 32), "RGB", False)
        assert (picture.recipe.prompt, picture.recipe.negative_prompt) == ("a horse", "a cat")
        assert picture.recipe.image_hash == images.pixel_hash(picture)
    plain = TextToImage.load(tiny_pipeline)(
        "a horse", seeds=[7, 8, 9, 10], steps=2, guidance=3, negative_prompt="a cat"
    )
    assert [result.recipe for result in plain] == [picture.recipe for picture in four]


def test_each_of_several_prompts_begins_with_the_seed(draw: Model) -> None:
    pictures = draw(["a horse", "a cat"], seed=3, num_images=2, steps=1)
    told = [(picture.recipe.prompt, picture.recipe.seed) for picture in pictures]
    assert told == [("a horse", 3), ("a horse", 4), ("a cat", 3), ("a cat", 4)]


def test_without_a_seed_it_is_random_and_recorded(draw: Model) -> None:
    seeds = [draw("a horse", steps=1)[0].recipe.seed for _ in range(2)]
    assert seeds[0] != seeds[1]


def test_what_a_prompt_leaves_open_is_chosen_by_the_seed_as_on_the_command_line(draw: Model) -> None:
    template = "a {red|blue} horse"
    pictures = draw(template, seed=1, num_images=3, steps=1)
    assert [picture.recipe.prompt for picture in pictures] == [resolve(template, seed) for seed in (1, 2, 3)]
    assert {picture.recipe.template for picture in pictures} == {template}
    assert draw(template, seed=1, steps=1, raw=True)[0].recipe.prompt == template


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_a_saved_picture_carries_its_recipe(four: Pictures, tmp_path: Path, suffix: str) -> None:
    four[1].save(tmp_path / f"a.{suffix}")
    assert recipe.read(tmp_path / f"a.{suffix}").recipe == four[1].recipe
    buffer = io.BytesIO()
    four[1].save(buffer, {"jpg": "JPEG"}.get(suffix, suffix.upper()))
    assert recipe.read(buffer.getvalue()).recipe == four[1].recipe
    if suffix == "png":
        assert images.pixel_hash(images.decode(tmp_path / "a.png")) == four[1].recipe.image_hash


def test_other_formats_are_saved_as_pillow_saves_them(four: Pictures, tmp_path: Path) -> None:
    four[0].save(tmp_path / "a.bmp")
    with Image.open(tmp_path / "a.bmp") as image:
        assert image.tobytes() == four[0].tobytes()


def test_what_is_made_of_a_picture_has_no_recipe(four: Pictures) -> None:
    for other in (four[0].resize((8, 8)), four[0].crop((0, 0, 8, 8)), four[0].convert("L")):
        assert not isinstance(other, Picture)
    for same in (copy.deepcopy(four[0]), pickle.loads(pickle.dumps(four[0]))):
        assert same.recipe == four[0].recipe
        assert same.tobytes() == four[0].tobytes()


def test_a_notebook_sees_one_sheet(four: Pictures) -> None:
    shown = four._repr_png_()
    assert shown is not None
    sheet = Image.open(io.BytesIO(shown))
    assert sheet.size == four.grid().size == (66, 66)
    assert four.grid(columns=4).size == (134, 32)
    assert Pictures()._repr_png_() is None
    assert repr(four[0]) == "<Picture 32x32, seed 7: 'a horse'>"


def test_it_stays_a_list_of_pictures(four: Pictures) -> None:
    assert isinstance(four[1:3], Pictures)
    assert [picture.recipe.seed for picture in four[1:3] + four[:1]] == [8, 9, 7]


def test_all_are_saved_under_numbers_and_seeds_and_nothing_is_overwritten(four: Pictures, tmp_path: Path) -> None:
    paths = four.save(tmp_path / "out")
    assert [path.name for path in paths] == ["00001-7.png", "00002-8.png", "00003-9.png", "00004-10.png"]
    assert recipe.read(paths[2]).recipe == four[2].recipe
    with pytest.raises(UsageError) as caught:
        four.save(tmp_path / "out")
    assert "exists already" in caught.value.message
    assert four.save(tmp_path / "out", overwrite=True) == paths


def test_wrong_values_are_refused(draw: Model) -> None:
    for wrong in ({"num_images": 0}, {"seed": -2}, {"steps": 0}, {"width": 33}, {"scheduler": "fast"}):
        with pytest.raises(UsageError):
            draw("a horse", **wrong)  # type: ignore[arg-type]


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, t2i\nfrom t2i import errors\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'PIL', 'numpy'} & set(sys.modules)\nassert not heavy, heavy"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
