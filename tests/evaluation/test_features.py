"""What looks at pictures: the right numbers, the same on any split, and only files that are safe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_kit import CLASSES, SIZE, save_classifier, save_pictures

from t2i import config
from t2i.cli.main import main
from t2i.errors import DataError, ModelError, ModelUnavailable, UsageError
from t2i.evaluation import external_extractors, extraction, features
from t2i.evaluation.extraction import look
from t2i.evaluation.features import load_extractor
from t2i.evaluation.image_sources import open_stored
from t2i.evaluation.reference import check_extractor, extractor_spec, load_reference, make_reference, save_reference
from t2i.imaging import images
from t2i.model_files.imagenet import load_efficientnet
from t2i.nn.resnet import ResNet


def pixels(count: int, size: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=draw)


def test_a_classifier_sees_what_its_network_computes(tmp_path: Path) -> None:
    run = save_classifier(tmp_path / "judge-run")
    judge = load_extractor(str(run))
    x = pixels(7, SIZE)
    seen, logits = judge.look(x)
    net = ResNet.from_pretrained(run / "export").eval()
    with torch.inference_mode():
        torch.testing.assert_close(seen, net.features(images.from_uint8(x)), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(logits, net(images.from_uint8(x)), rtol=1e-5, atol=1e-6)
    assert judge.classes == CLASSES
    assert judge.size == SIZE
    assert judge.frechet == f"fcd[judge-run@{judge.hash[:8]}]"


@pytest.mark.parametrize("cut", [1, 3, 100, 230])
def test_features_of_a_picture_do_not_depend_on_the_others(cut: int, tmp_path: Path) -> None:
    """Bit for bit: however the pictures are cut into calls that begin at whole groups, and whatever stands beside."""
    judge = load_extractor(str(save_classifier(tmp_path / "run")))
    x = pixels(230, SIZE)
    whole, _ = judge.look(x)
    assert torch.equal(judge.look(x[:cut])[0], whole[:cut])


def test_pixels_are_features_too() -> None:
    extractor = load_extractor("pixels")
    x = pixels(2, extractor.size)
    seen, logits = extractor.look(x)
    assert logits is None
    torch.testing.assert_close(seen, images.from_uint8(x).flatten(1))


@pytest.fixture(scope="module")
def efficientnet() -> features.Extractor:
    return load_extractor("efficientnet-lite0", "cpu")


def test_efficientnet_sees_what_its_network_computes(efficientnet: features.Extractor) -> None:
    """The 1280 averages before the classifier, which is left out: it knows no classes here."""
    assert efficientnet.tag == "efficientnet-lite0@57934424"
    assert efficientnet.frechet == "fcd[efficientnet-lite0@57934424]"
    assert efficientnet.questions == {"": ()}
    assert (efficientnet.size, efficientnet.text) == (160, None)
    assert efficientnet.preprocessing == ("centred square, Lanczos to 160 x 160 pixels, 8 bits, (pixel - 127) / 128")
    x = pixels(3, 160)
    seen, logits = efficientnet.look(x)
    assert logits is None
    assert seen.shape == (3, 1280)
    with torch.inference_mode():
        theirs = load_efficientnet(folded=False).features(images.from_uint8(x))
    torch.testing.assert_close(seen, theirs, rtol=1e-3, atol=1e-4)
    alone, _ = efficientnet.look(x[:1])
    assert torch.equal(alone[0], seen[0])


def test_a_reference_by_efficientnet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, efficientnet: features.Extractor
) -> None:
    """Small pictures are enlarged; the reference names its extractor, and is refused to another."""
    monkeypatch.setattr(features, "BATCH", 10)
    monkeypatch.setattr(extraction, "BATCH", 10)
    source = config.Source(path=str(save_pictures(tmp_path / "real", 20)))
    made = make_reference(efficientnet, source, "efficientnet-lite0")
    save_reference(made, tmp_path / "ref.safetensors", False)
    reference = load_reference(tmp_path / "ref.safetensors")
    assert extractor_spec(reference) == "efficientnet-lite0"
    assert (reference.facts.size, reference.facts.count) == (160, 20)
    check_extractor(reference, efficientnet)
    with pytest.raises(DataError, match="made with efficientnet-lite0@57934424, the extractor here is pixels@"):
        check_extractor(reference, load_extractor("pixels"))


def test_without_the_package_efficientnet_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("t2i.model_files.imagenet.PACKAGE", "no_such_package")
    save_pictures(tmp_path / "real", 20)
    call = ["--data", str(tmp_path / "real"), "-o", str(tmp_path / "ref.safetensors"), "--quiet"]
    assert main(["eval", "reference", "--features", "efficientnet-lite0", *call]) == 4
    assert capfd.readouterr().err.splitlines()[-2:] == [
        "error: EfficientNet-Lite0's ImageNet weights are not installed",
        "hint: pip install 't2i[imagenet]'",
    ]


def save_clip(folder: Path, whole: bool) -> Any:
    """A tiny CLIP in transformers' format: the whole model as it is published, or its image encoder."""
    from transformers import CLIPConfig, CLIPModel, CLIPVisionModelWithProjection

    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 8}
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"vocab_size": 50, "max_position_embeddings": 8}
    settings = CLIPConfig(text_config=text, vision_config=vision | {"projection_dim": 12}, projection_dim=12)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(settings) if whole else CLIPVisionModelWithProjection(settings.vision_config)
    model.eval().save_pretrained(folder)
    said = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3], "crop_size": {"height": 16, "width": 16}}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    return model


@pytest.mark.parametrize("whole", [True, False])
def test_clip_embeds_as_transformers_does(whole: bool, tmp_path: Path) -> None:
    model = save_clip(tmp_path / "tiny", whole)
    extractor = load_extractor(f"clip:{tmp_path / 'tiny'}")
    assert (extractor.name, extractor.size) == ("clip:tiny", 16)
    x = pixels(3, 16)
    mean, deviation = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1), torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)
    with torch.inference_mode():
        prepared = (x / 255 - mean) / deviation
        if whole:
            theirs = model.visual_projection(model.vision_model(pixel_values=prepared).pooler_output)
        else:
            theirs = model(pixel_values=prepared).image_embeds
    torch.testing.assert_close(extractor.look(x)[0], theirs, rtol=1e-4, atol=1e-5)
    assert "0.4, 0.5, 0.6" in extractor.preprocessing


def test_dinov2_gives_its_class_token(tmp_path: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model

    with torch.random.fork_rng():
        torch.manual_seed(0)
        settings = Dinov2Config(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
        )
        model = Dinov2Model(settings).eval()
    model.save_pretrained(tmp_path / "tiny")
    extractor = load_extractor(f"dinov2:{tmp_path / 'tiny'}")
    x = pixels(2, 28)
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in external_extractors.IMAGENET)
    with torch.inference_mode():
        theirs = model(pixel_values=(x / 255 - mean) / deviation).last_hidden_state[:, 0]
    torch.testing.assert_close(extractor.look(x)[0], theirs, rtol=1e-4, atol=1e-5)


def test_weights_that_are_missing_or_of_another_kind_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_clip(tmp_path / "tiny", False)
    with pytest.raises(ModelError, match="not a dinov2 model"):
        load_extractor(f"dinov2:{tmp_path / 'tiny'}")
    file = tmp_path / "tiny" / "model.safetensors"
    tensors = load_file(file)
    save_file({k: v for k, v in tensors.items() if "projection" not in k}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="weights are missing"):
        load_extractor(f"clip:{tmp_path / 'tiny'}")
    file.unlink()
    (tmp_path / "tiny" / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(ModelError, match=r"no \.safetensors weights"):
        load_extractor(f"clip:{tmp_path / 'tiny'}")
    settings = tmp_path / "tiny" / "config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"auto_map": {"AutoModel": "x.Y"}}))
    with pytest.raises(ModelError, match="carries its own code"):
        load_extractor(f"clip:{tmp_path / 'tiny'}")


def test_inception_is_refused_kindly(tmp_path: Path) -> None:
    """Without the extra, the way to it; another file than the original is not opened."""
    with pytest.raises(ModelUnavailable, match=r"pip install 't2i\[fid\]'|weights of Inception are not"):
        load_extractor("inception")
    file = tmp_path / external_extractors.INCEPTION_FILE
    file.write_bytes(b"\x80\x04 a pickle of somebody else's")
    with pytest.raises(ModelError, match="not the original Inception"):
        external_extractors.check_inception(file)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("magic", "got 'magic', allowed are judge"),
        ("clip", "got 'clip'"),
        ("efficientnet-lite0:b", "got 'efficientnet-lite0:b', allowed are judge"),
        ("pixels:3", "got 'pixels:3'"),
    ],
)
def test_no_such_extractor(spec: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load_extractor(spec)


def test_runs_that_are_no_judges(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no finished run of a classifier"):
        load_extractor(str(tmp_path))
    run = save_classifier(tmp_path / "run")
    (run / "config.yaml").write_text("family: ddpm\ndata: {size: 8}\n")
    with pytest.raises(ModelError, match="a run of family 'ddpm'"):
        load_extractor(str(run))
    run = save_classifier(tmp_path / "damaged")
    (run / "export" / "diffusion_pytorch_model.safetensors").write_bytes(b"\x80\x04 pickle")
    with pytest.raises(ModelError, match="is a pickle"):
        load_extractor(str(run))


def test_without_the_embedded_judge_the_way_out_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(features.JUDGES, "judge", tmp_path)
    with pytest.raises(ModelError, match="carries no judge"):
        load_extractor("judge")


def test_what_is_seen_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moments of all, features of a random part in random order with their own labels, digests in order."""
    judge = load_extractor(str(save_classifier(tmp_path / "run")))
    pictures = open_stored(config.Source(path=str(save_pictures(tmp_path / "pictures", 30))), SIZE)
    seen = look(judge, pictures, range(30), keep=12)
    table = pictures.table.images(torch.arange(30))
    theirs, logits = judge.look(table)
    assert logits is not None
    assert seen.logits is not None
    torch.testing.assert_close(seen.moments.mean(), theirs.double().mean(0))
    torch.testing.assert_close(seen.features, theirs[seen.rows])
    torch.testing.assert_close(seen.logits, logits[seen.rows])
    assert seen.labels.tolist() == [CLASSES.index(name) for name in pictures.labels(seen.rows.tolist())]
    assert len(set(seen.rows.tolist())) == 12
    assert seen.rows.tolist() != sorted(seen.rows.tolist())
    assert len(set(seen.digests.tolist())) == 30
    part = look(judge, pictures, [3, 4, 5])
    assert part.digests.tolist() == seen.digests[3:6].tolist()
