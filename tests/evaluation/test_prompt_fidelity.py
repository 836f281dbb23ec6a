"""What pictures of prompts are asked: by a judge of several questions, and by CLIP; of models, folders and data."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import datasets
import pytest
import torch
from evaluation_kit import picture, save_classifier
from PIL import Image

from t2i.cli.main import main
from t2i.config import Source
from t2i.errors import DataError
from t2i.evaluation.external_extractors import CLIP
from t2i.evaluation.extraction import Seen
from t2i.evaluation.features import Extractor, load_extractor
from t2i.evaluation.image_sets import ImageSet, class_indices
from t2i.evaluation.image_sources import open_pictures
from t2i.evaluation.metrics import Moments
from t2i.evaluation.prompt_fidelity import ALL, clip_score, prompt_accuracy
from t2i.evaluation.reference import load_reference, make_reference, save_reference
from t2i.imaging import images
from t2i.model_files.registry import MINI

QUESTIONS = {"object": ("horse", "dog"), "style": ("photo", "sketch", "Van Gogh")}


def test_a_prompt_is_asked_what_it_names_alone() -> None:
    texts = ["a horse in Van Gogh style", "Dogs, sketch", "a horse and a dog", "a seahorse", ""]
    texts += ["van gogh", "photograph"]
    assert class_indices(texts, QUESTIONS["object"]).tolist() == [0, 1, -1, -1, -1, -1, -1]
    assert class_indices(texts, QUESTIONS["style"]).tolist() == [2, 1, -1, -1, -1, 2, -1]
    assert class_indices(["horse"], ("horse", "a horse")).tolist() == [0]  # a class's own name goes before words in it


def seen(logits: list[list[float]], answers: list[list[int]]) -> Seen:
    n = len(logits)
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
    return Seen(
        Moments.of(x), torch.arange(n), x, torch.tensor(logits), torch.tensor(answers), torch.arange(n), QUESTIONS
    )


def test_prompt_accuracy_counts_what_was_asked() -> None:
    """Right: object 1 of 2, style 2 of 3, both 1 of 2."""
    found = seen(
        [[1, 0, 0, 5, 0], [1, 0, 0, 0, 2], [0, 1, 3, 0, 0], [0, 1, 0, 0, 0]], [[0, 1], [1, 2], [-1, 1], [-1, -1]]
    )
    real = seen([[1, 0, 1, 0, 0], [0, 1, 0, 0, 1]], [[0, 0], [1, -1]])
    assert prompt_accuracy(found, real) == {
        "object": {"n": 2, "value": 0.5, "floor": 1.0},
        "style": {"n": 3, "value": pytest.approx(2 / 3), "floor": 1.0},
        ALL: {"n": 2, "value": 0.5, "floor": 1.0},
    }
    assert prompt_accuracy(replace(found, logits=None), real) == {}
    assert prompt_accuracy(replace(found, questions={"": ("a",)}), real) == {}


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Extractor:
    """An untrained judge of both questions."""
    path = save_classifier(tmp_path_factory.mktemp("judge") / "run", classes=tuple("abcde"))
    told = {"classes": QUESTIONS["object"], "questions": QUESTIONS}
    (path / "export" / "classes.json").write_text(json.dumps(told))
    return load_extractor(str(path))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pictures with an object, or none, and a style."""
    names = {name: datasets.ClassLabel(names=list(classes)) for name, classes in QUESTIONS.items()}
    rows = [{"image": picture(k, k % 3), "object": None if k % 10 == 9 else k % 2, "style": k % 3} for k in range(40)]
    path = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    datasets.Dataset.from_list(rows, datasets.Features({"image": datasets.Image()} | names)).to_parquet(path)
    return path


def test_a_judge_of_several_questions(judge: Extractor) -> None:
    assert judge.questions == QUESTIONS
    assert judge.classes == ("horse", "dog")
    _, logits = judge.look(torch.zeros(3, 3, judge.size, judge.size, dtype=torch.uint8))
    assert logits is not None
    assert logits.shape == (3, 5)


def test_a_reference_keeps_the_answers_to_every_question(judge: Extractor, pairs: Path, tmp_path: Path) -> None:
    made = make_reference(judge, Source(path=str(pairs)), "")
    again = load_reference(save_reference(made, tmp_path / "ref.safetensors"))
    assert again.facts.questions == QUESTIONS
    assert list(again.seen.questions) == ["object", "style"]
    order = again.seen.rows.argsort()
    assert again.seen.answers[order, 0].tolist() == [-1 if k % 10 == 9 else k % 2 for k in range(40)]
    assert again.seen.answers[order, 1].tolist() == [k % 3 for k in range(40)]


@dataclass
class Asked:
    """Pictures with prompts."""

    prompts: list[str]
    prompted: bool = True

    def labels(self, which: Sequence[int], question: str = "") -> list[str]:
        return [self.prompts[k] for k in which]


def test_clip_score_is_the_cosine_that_transformers_computes(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, CLIPConfig, CLIPModel

    tokenizer = AutoTokenizer.from_pretrained(MINI / "tokenizer", local_files_only=True)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = small | {"vocab_size": len(tokenizer), "max_position_embeddings": 16, "eos_token_id": tokenizer.eos_token_id}
    settings = CLIPConfig(text_config=text, vision_config=small | {"image_size": 16, "patch_size": 8})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(settings).eval()
    model.save_pretrained(tmp_path / "tiny")
    assert load_extractor(f"clip:{tmp_path / 'tiny'}").text is None  # it cannot read
    tokenizer.save_pretrained(tmp_path / "tiny")
    extractor = load_extractor(f"clip:{tmp_path / 'tiny'}")

    prompts = ["a horse", "a dog in Van Gogh style " * 20, "a horse", ""]
    x = torch.randint(256, (4, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    features, _ = extractor.look(x)
    order = torch.tensor([2, 0, 3, 1])
    found = Seen(Moments.of(features), order, features[order], None, torch.full((4, 1), -1), torch.arange(4))
    ours = clip_score(found, cast(ImageSet, Asked(prompts)), extractor)

    tokens = tokenizer(prompts, padding=True, truncation=True, max_length=16, return_tensors="pt")
    mean, deviation = (torch.tensor(numbers).view(3, 1, 1) for numbers in CLIP)
    with torch.inference_mode():
        output = model(tokens["input_ids"], (x / 255 - mean) / deviation, tokens["attention_mask"])
        cosines = output.logits_per_image.diag() / model.logit_scale.exp()
    expected = 100 * cosines.clamp(min=0)
    assert (expected > 0).any()
    assert ours == {
        "n": 4,
        "value": pytest.approx(float(expected.mean()), rel=1e-4),
        "spread": pytest.approx(float(expected.std()), rel=1e-4),
    }
    assert clip_score(found, cast(ImageSet, Asked(prompts, prompted=False)), extractor) is None


# From the terminal, with the embedded model


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """A command's exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


@pytest.fixture(scope="module")
def reference(judge: Extractor, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reference") / "ref.safetensors"
    return save_reference(make_reference(judge, Source(path=str(pairs)), "judge64"), path)


@pytest.fixture
def embedded(judge: Extractor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The untrained judge stands in for judge64, so that what the embedded one says does not matter."""
    monkeypatch.setattr("t2i.evaluation.features.load_extractor", lambda *given: judge)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("a horse in Van Gogh style\na photo of a dog\na house\n")
    return path


@pytest.mark.usefixtures("embedded")
def test_a_text_to_image_model_is_scored_by_its_prompts(reference: Path, prompts: Path, run: Run) -> None:
    given = ("--ref", reference, "--prompts", prompts, "--n", 12, "--steps", 1)
    code, out, err = run("eval", "score", "mini", *given, "--json")
    assert code == 0, err
    score = json.loads(out)
    assert score["subject"]["prompts"]["count"] == 3
    assert score["subject"]["settings"]["steps"] == 1
    assert {name: one["n"] for name, one in score["prompts"].items()} == {"object": 8, "style": 8, ALL: 8}
    assert 0 < score["prompts"]["style"]["floor"] < 1
    assert score["clip_score"] is None


@pytest.mark.usefixtures("embedded")
def test_pictures_of_generate_know_their_prompts(reference: Path, prompts: Path, tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "out"
    code, _, err = run("generate", "--prompts", prompts, "-b", 4, "-s", 0, "--steps", 1, "--grid", "-o", f"{folder}/")
    assert code == 0, err
    code, out, err = run("eval", "score", folder, "--ref", reference, "--json")
    assert code == 0, err
    score = json.loads(out)
    assert (score["n"], score["subject"]["kind"]) == (12, "samples")  # the sheet is no picture of a prompt
    assert {name: one["n"] for name, one in score["prompts"].items()} == {"object": 8, "style": 8, ALL: 8}
    _, out, _ = run("eval", "score", folder, "--ref", reference)
    assert "asked for, and shown: style (N = 8)" in out


@pytest.mark.usefixtures("embedded")
def test_text_to_image_models_are_compared(reference: Path, prompts: Path, tmp_path: Path, run: Run) -> None:
    given = ("--ref", reference, "--prompts", prompts, "--n", 12, "-o", tmp_path / "compared")
    code, out, err = run("eval", "compare", "mini", *given)
    assert code == 0, err
    (row,) = [line for line in out.splitlines() if "asked for, and shown: style" in line]
    score = json.loads((tmp_path / "compared" / "compare.json").read_text())["subjects"][0]["score"]
    assert score["images_per_second"] > 0
    assert f"{score['prompts']['style']['value']:.4g}" in row


@pytest.mark.usefixtures("embedded")
def test_a_text_to_image_model_needs_prompts_and_others_take_none(
    reference: Path, prompts: Path, tmp_path: Path, run: Run
) -> None:
    code, _, err = run("eval", "score", "mini", "--ref", reference)
    assert (code, "it needs prompts" in err) == (2, True)
    images.save(Image.new("RGB", (8, 8)), tmp_path / "folder" / "a.png")
    code, _, err = run("eval", "score", tmp_path / "folder", "--ref", reference, "--prompts", prompts)
    assert (code, "prompts: folder holds pictures" in err) == (2, True)
    with pytest.raises(DataError, match="no such data"):
        open_pictures(str(tmp_path / "nothing"), 8)
