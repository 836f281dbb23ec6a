"""The autoencoder's loop: it learns, it exports plain diffusers with standard latents, and NaN stops it in time."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from training_kit import (
    AUTOENCODER,
    SHAPES,
    SIZE,
    autoencoder_config,
    fingerprint,
    make_images,
    read_log,
    train,
)

from t2i.config import AutoencoderConfig, AutoencoderModel
from t2i.data.batches import flips, visit_order
from t2i.data.memory_table import load_memory
from t2i.data.tables import load_table
from t2i.errors import ConfigError, ModelUnavailable, NonFinite
from t2i.imaging import images
from t2i.model_files.imagenet import load_efficientnet
from t2i.nn.efficientnet import EfficientNetLite0
from t2i.training.batch import pictures
from t2i.training.dry_run import describe
from t2i.training.engine import Step
from t2i.training.families import autoencoder as module
from t2i.training.families.autoencoder import (
    Codec,
    Features,
    build_autoencoder,
    crop,
    fold_latent_scale,
    latent_size,
    measure,
    measure_latents,
)
from t2i.training.losses import feature_distance
from t2i.training.runs.checkpoint import load_checkpoint, tensors_hash
from t2i.training.runs.run_folder import RunFolder

HELD_OUT = {"sources": [{"path": str(SHAPES)}], "size": SIZE}


@pytest.fixture(scope="module")
def imagenet() -> EfficientNetLite0:
    return load_efficientnet()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[AutoencoderConfig, Path]:
    """One batch, seen 160 times."""
    small = make_images(data.parent / "four", 4)
    config = autoencoder_config(
        small,
        images=640,
        ema=4,
        sample_every=320,
        save_every=1000,
        data__flip=False,
        optimizer={"lr": 5e-3, "warmup": 32},
    )
    run = tmp_path_factory.mktemp("trained") / "run"
    train(config, run)
    return config, run


def make_vae(seed: int = 0) -> AutoencoderKL:
    return build_autoencoder(AutoencoderModel(**AUTOENCODER["model"]), SIZE, seed).eval()


def some_pictures(count: int = 6) -> torch.Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_one_batch_is_learned(trained: tuple[AutoencoderConfig, Path]) -> None:
    """Every term of the loss falls, and the reconstruction is better than any one colour could be."""
    config, run = trained
    rows = read_log(run)
    first, last = rows[0], rows[-1]
    assert last["images"] == 640
    assert last["loss"] < 0.25 * first["loss"]
    assert last["l1"] < 0.25 * first["l1"]
    assert last["gradient"] < 0.3 * first["gradient"]
    assert last["ssim"] > first["ssim"] + 0.5
    assert last["psnr"] > first["psnr"] + 5
    x = images.from_uint8(load_memory(config.data, False).pixels)
    flat = x.mean((2, 3), keepdim=True)
    vae = AutoencoderKL.from_pretrained(run / "export")
    with torch.no_grad():
        x_hat = vae.decode(vae.encode(x).latent_dist.mode()).sample
    assert (x_hat - x).square().mean() < 0.5 * (flat - x).square().mean()


def test_loss_is_the_weighted_sum_of_its_terms(data: Path, tmp_path: Path) -> None:
    weights = {"l1": 0.7, "gradient": 0.5, "ssim": 0.2, "kl": 0.01}
    train(autoencoder_config(data, images=8, loss=weights), tmp_path / "run")
    for row in read_log(tmp_path / "run"):
        terms = row["l1"], row["gradient"], 1 - row["ssim"], row["kl"]
        assert row["loss"] == pytest.approx(sum(w * t for w, t in zip(weights.values(), terms, strict=True)), rel=1e-4)


def test_perceptual_distance_is_one_of_the_terms(
    data: Path, tmp_path: Path, imagenet: EfficientNetLite0, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ImageNet features of what went in and came out; resumed, equal bit for bit."""
    monkeypatch.setattr(module, "load_efficientnet", lambda: imagenet)
    seen: list[float] = []
    forward = Codec.forward

    def look(codec: Codec, x: torch.Tensor, eps: torch.Tensor) -> Any:
        answer = forward(codec, x, eps)
        with torch.no_grad():
            seen.append(float(feature_distance(imagenet.scales(x), imagenet.scales(answer[0])).mean()))
        return answer

    monkeypatch.setattr(Codec, "forward", look)
    config = autoencoder_config(data, loss={"l1": 0.7, "gradient": 0.0, "ssim": 0.0, "kl": 0.01, "perceptual": 0.6})
    train(config, tmp_path / "straight")
    rows = read_log(tmp_path / "straight")
    assert [row["perceptual"] for row in rows] == pytest.approx(seen, rel=1e-3)
    for row in rows:
        assert row["loss"] == pytest.approx(0.7 * row["l1"] + 0.01 * row["kl"] + 0.6 * row["perceptual"], rel=1e-4)
    monkeypatch.undo()
    train(config, tmp_path / "run", until=16)
    train(config, tmp_path / "run")
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "straight")


def test_perceptual_distance_moves_the_reconstruction_alone(imagenet: EfficientNetLite0) -> None:
    features = Features(imagenet, torch.device("cpu"))
    x, x_hat = some_pictures(3).requires_grad_(), some_pictures(4)[1:].requires_grad_()
    assert features.distance(x, x).abs().max() < 1e-9
    features.distance(x, x_hat).sum().backward()
    assert x.grad is None
    assert x_hat.grad is not None
    assert (x_hat.grad.flatten(1).norm(dim=1) > 0).all()
    assert all(p.grad is None for p in imagenet.parameters())


def not_installed() -> EfficientNetLite0:
    raise ModelUnavailable("not installed", "pip install 't2i[imagenet]'")


def test_without_imagenet_weights_the_loss_is_refused_at_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is written or decoded; in the plan too."""
    monkeypatch.setattr("t2i.model_files.imagenet.PACKAGE", "no_such_package")
    config = autoencoder_config(data, loss__perceptual=1.0)
    with pytest.raises(ModelUnavailable, match="not installed"):
        train(config, tmp_path / "run")
    with pytest.raises(ModelUnavailable, match="not installed"):
        describe(config, tmp_path / "run", measure=False)
    assert not [*tmp_path.iterdir()]


# Held-out images


def evaluation(run: Path) -> list[dict[str, float]]:
    with (run / "evaluation.csv").open(newline="") as f:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(f)]


@pytest.fixture(scope="module")
def measured(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[AutoencoderConfig, Path]:
    config = autoencoder_config(data, held_out=HELD_OUT, measured=20, crop=8)
    run = tmp_path_factory.mktemp("measured") / "run"
    train(config, run)
    return config, run


def test_held_out_images_are_measured_by_the_averaged_weights(
    measured: tuple[AutoencoderConfig, Path], imagenet: EfficientNetLite0
) -> None:
    """By hand from the export, whole images though it trained on crops; at the end over all of them."""
    config, run = measured
    assert config.held_out is not None
    table = load_table(config.held_out, False)
    vae = AutoencoderKL.from_pretrained(run / "export").eval()

    def by_hand(rows: torch.Tensor) -> dict[str, float]:
        x = images.from_uint8(table.images(rows))
        with torch.no_grad():
            x_hat = vae.decode(vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1)
            distance = feature_distance(imagenet.scales(x), imagenet.scales(x_hat)).mean()
        error = (x_hat - x).double().square().mean()
        return {"psnr": float(20 * math.log10(2) - 10 * error.log10()), "perceptual": float(distance)}

    first, last = evaluation(run)
    assert (first["images"], last["images"]) == (16, 32)
    some = by_hand(table.spread(20))
    assert {f"held_out_{name}": value for name, value in some.items()} | {"images": 32} == pytest.approx(last, rel=1e-4)
    facts = json.loads((run / "export" / "facts.json").read_text())
    assert facts["images_seen"] == 32
    assert facts["held_out"] == pytest.approx(by_hand(torch.arange(table.count)), rel=1e-4)
    assert facts["held_out"]["psnr"] != pytest.approx(some["psnr"], rel=1e-4)


def test_held_out_images_are_never_learned_from(
    data: Path, measured: tuple[AutoencoderConfig, Path], tmp_path: Path
) -> None:
    """The run without them is the same, bit for bit, and writes no evaluation."""
    config, run = measured
    train(config.model_copy(update={"held_out": None}), tmp_path / "plain")
    assert fingerprint(tmp_path / "plain") == fingerprint(run)
    assert not (tmp_path / "plain" / "evaluation.csv").exists()
    assert not (tmp_path / "plain" / "export" / "facts.json").exists()


def test_evaluation_of_a_resumed_run_is_that_of_the_uninterrupted_one(
    measured: tuple[AutoencoderConfig, Path], tmp_path: Path
) -> None:
    config, run = measured
    for until in (12, 20, None):
        train(config, tmp_path / "run", until=until)
    assert evaluation(tmp_path / "run") == evaluation(run)


def test_without_imagenet_weights_held_out_images_have_their_psnr(
    data: Path, measured: tuple[AutoencoderConfig, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "load_efficientnet", not_installed)
    config, run = measured
    train(config, tmp_path / "run")
    expected = [{k: v for k, v in row.items() if k != "held_out_perceptual"} for row in evaluation(run)]
    assert evaluation(tmp_path / "run") == expected


def test_held_out_images_are_drawn_below_the_others(measured: tuple[AutoencoderConfig, Path]) -> None:
    """Four rows with words beside, enlarged; the third shows held-out images as they are."""
    config, run = measured
    assert config.held_out is not None
    with Image.open(run / "samples" / "000000000032.png") as sheet:
        assert sheet.height == 4 * (64 + 2) - 2
        row = sheet.crop((sheet.width - 64, 2 * 66, sheet.width, 2 * 66 + 64)).resize(
            (SIZE, SIZE), Image.Resampling.BOX
        )
    table = load_table(config.held_out, False)
    last = table.images(table.spread(10))[-1]
    assert torch.equal(images.pixels(row), last)


def test_measure_does_not_depend_on_how_many_at_once(
    measured: tuple[AutoencoderConfig, Path], imagenet: EfficientNetLite0, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, features = load_table(measured[0].data, False), Features(imagenet, torch.device("cpu"))
    together = measure(make_vae(), features, table)
    monkeypatch.setattr(module, "AT_ONCE", 3)
    assert measure(make_vae(), features, table) == pytest.approx(together, rel=1e-5)
    assert measure(make_vae(), None, table, 4).keys() == {"psnr"}


def test_export_is_the_average_in_plain_diffusers_format(trained: tuple[AutoencoderConfig, Path]) -> None:
    config, run = trained
    vae = AutoencoderKL.from_pretrained(run / "export")
    assert type(vae) is AutoencoderKL
    assert vae.config.scaling_factor == 1.0
    assert vae.config.sample_size == SIZE
    codec = Codec(make_vae())
    codec.load_state_dict(load_checkpoint(RunFolder(run).saved()[0]).tensors["ema"])
    folded = {"quant_conv.weight", "quant_conv.bias", "post_quant_conv.weight", "post_quant_conv.bias"}
    for name, value in codec.vae.state_dict().items():
        assert torch.equal(value, vae.state_dict()[name]) == (name not in folded), name
    x = images.from_uint8(load_memory(config.data, False).pixels)
    with torch.no_grad():
        ours = codec.vae.decode(codec.vae.encode(x).latent_dist.mode()).sample
        theirs = vae.decode(vae.encode(x).latent_dist.mode()).sample
    assert (ours - theirs).abs().max() < 1e-4


def test_exported_latents_are_standard(trained: tuple[AutoencoderConfig, Path]) -> None:
    config, run = trained
    mean, deviation = measure_latents(AutoencoderKL.from_pretrained(run / "export"), load_memory(config.data, False))
    assert mean.abs().max() < 1e-4
    assert (deviation - 1).abs().max() < 1e-4
    facts = json.loads((run / "export" / "latent_scale.json").read_text())
    assert facts["images_seen"] == 640
    assert len(facts["latent_mean_folded"]) == len(facts["latent_deviation_folded"]) == 4


def test_samples_are_pictures_above_reconstructions(trained: tuple[AutoencoderConfig, Path]) -> None:
    _, run = trained
    assert sorted(p.name for p in (run / "samples").iterdir()) == ["000000000320.png", "000000000640.png"]
    with Image.open(run / "samples" / "000000000640.png") as sheet:
        assert sheet.width == 4 * (SIZE + 2) - 2  # the four there are
        assert 2 * SIZE <= sheet.height < 3 * SIZE


@pytest.mark.parametrize("seed", [0, 1])
def test_folding_changes_latents_but_no_reconstruction(seed: int) -> None:
    """z' = (z - mean) / deviation, log variance less 2 log deviation, and the decoder undoes it."""
    vae, x = make_vae(seed), some_pictures()
    draw = torch.Generator().manual_seed(seed)
    mean, deviation = torch.randn(4, generator=draw).double(), torch.rand(4, generator=draw).double() * 3 + 0.2
    with torch.no_grad():
        before = vae.encode(x).latent_dist
        reconstructed = vae.decode(before.mode()).sample
        fold_latent_scale(vae, mean, deviation)
        after = vae.encode(x).latent_dist
        again = vae.decode(after.mode()).sample
    m, d = mean.float()[:, None, None], deviation.float()[:, None, None]
    assert (after.mean - (before.mean - m) / d).abs().max() < 1e-5
    assert (after.logvar - (before.logvar - 2 * d.log())).abs().max() < 1e-5
    assert (after.std * d - before.std).abs().max() < 1e-5
    assert (again - reconstructed).abs().max() < 1e-5


def test_folding_what_was_measured_makes_latents_standard(data: Path) -> None:
    table = load_memory(autoencoder_config(data).data, False)
    vae = make_vae()
    mean, deviation = measure_latents(vae, table)
    with torch.no_grad():
        z = vae.encode(images.from_uint8(table.pixels)).latent_dist.mean.double()
    assert (mean - z.mean((0, 2, 3))).abs().max() < 1e-6
    assert (deviation - z.std((0, 2, 3), correction=0)).abs().max() < 1e-6
    fold_latent_scale(vae, mean, deviation)
    mean, deviation = measure_latents(vae, table)
    assert mean.abs().max() < 1e-5
    assert (deviation - 1).abs().max() < 1e-5


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(99)
    a = tensors_hash(make_vae(3).state_dict().items())
    torch.rand(5)
    assert a == tensors_hash(make_vae(3).state_dict().items())
    assert a != tensors_hash(make_vae(4).state_dict().items())


def test_codec_samples_the_latent(data: Path) -> None:
    codec, x = Codec(make_vae()), some_pictures(2)
    eps = torch.randn(2, *latent_size(autoencoder_config(data)), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        x_hat, mean, log_variance = codec(x, eps)
        expected = codec.vae.decode(mean + (log_variance / 2).exp() * eps).sample
    assert mean.shape == eps.shape
    assert (x_hat - expected).abs().max() < 1e-5


def test_pictures_are_the_visits_of_the_global_images(data: Path) -> None:
    """A batch of 8 is two of 4, whatever process takes which part; mirrored where the draw says so."""
    config = autoencoder_config(data)
    table = load_memory(config.data, False)
    whole, _ = pictures(table, config, Step(1, 8, 8, slice(0, 8)))
    halves = [pictures(table, config, Step(first // 4, first, 4, slice(0, 4)))[0] for first in (8, 12)]
    shares = [pictures(table, config, Step(1, 8, 8, share))[0] for share in (slice(0, 4), slice(4, 8))]
    assert torch.equal(whole, torch.cat(halves))
    assert torch.equal(whole, torch.cat(shares))
    order, mirrored = visit_order(config.seed, len(table), 8, 8), flips(config.seed, 8, 8)
    assert mirrored.any()
    assert not mirrored.all()
    for k in range(8):
        x = images.from_uint8(table.pixels[order[k]][None])[0]
        assert torch.equal(whole[k], x.flip(2) if mirrored[k] else x)
    plain, _ = pictures(table, autoencoder_config(data, data__flip=False), Step(1, 8, 8, slice(0, 8)))
    assert torch.equal(plain, images.from_uint8(table.pixels[order]))


def test_crops_are_those_of_the_global_images() -> None:
    """A batch of 8 is two of 4, whatever process takes which part; each crop is a square of its own image."""
    x = torch.arange(8 * 3 * SIZE * SIZE, dtype=torch.float32).view(8, 3, SIZE, SIZE)
    whole = crop(x, 10, 7, Step(1, 8, 8, slice(0, 8)))
    halves = [crop(some, 10, 7, Step(2 + k, 8 + 4 * k, 4, slice(0, 4))) for k, some in enumerate(x.split(4))]
    shares = [crop(x[share], 10, 7, Step(1, 8, 8, share)) for share in (slice(0, 4), slice(4, 8))]
    assert whole.shape == (8, 3, 10, 10)
    assert torch.equal(whole, torch.cat(halves))
    assert torch.equal(whole, torch.cat(shares))
    places = []
    for image, cut in zip(x, whole, strict=True):
        top, left = divmod(int(cut[0, 0, 0] - image[0, 0, 0]), SIZE)
        assert 0 <= top <= SIZE - 10
        assert 0 <= left <= SIZE - 10
        assert torch.equal(cut, image[:, top : top + 10, left : left + 10])
        places.append((top, left))
    assert len(set(places)) > 4
    assert torch.equal(crop(x, SIZE, 7, Step(1, 8, 8, slice(0, 8))), x)


def test_training_on_crops_sees_no_more_than_them(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And samples, latents' measure and export are of whole images."""
    sides: list[tuple[int, ...]] = []
    forward = Codec.forward
    monkeypatch.setattr(
        Codec, "forward", lambda self, x, eps: sides.append((*x.shape, *eps.shape)) or forward(self, x, eps)
    )
    train(autoencoder_config(data, crop=8), tmp_path / "run")
    assert sides == [(4, 3, 8, 8, 4, 4, 4, 4)] * 8
    with Image.open(tmp_path / "run" / "samples" / "000000000032.png") as sheet:
        assert sheet.height == 2 * (SIZE + 2) - 2
    assert AutoencoderKL.from_pretrained(tmp_path / "run" / "export").config.sample_size == SIZE


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data__size": 18, "model__channels": [8, 8, 8]}, "data.size 18 is no multiple of 4, the halvings of model"),
        ({"crop": 9}, "crop 9 is no multiple of 2"),
        ({"crop": 32}, "crop 32 is larger than data.size 16"),
        ({"loss__adversarial": 0.5, "accumulate": 2}, "accumulate: two networks take turns"),
        (
            {"loss__adversarial": 0.5, "crop": 8, "discriminator__channels": [4] * 4},
            "4 levels are for 16 pixels and more",
        ),
        ({"loss": {"l1": 0, "gradient": 0, "ssim": 0, "adversarial": 1}}, "its weight is relative to theirs"),
        ({"held_out": HELD_OUT | {"size": 32}}, "held_out.size 32 is not data.size 16"),
        ({"loss__perceptual": -1}, "greater than or equal to 0"),
    ],
    ids=str,
)
def test_configs_that_do_not_fit_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        autoencoder_config(Path("nowhere"), **changes)


def test_non_finite_loss_stops_before_the_update(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAULTS 11, in the loop itself: step and images named, the last checkpoint is the one before."""
    calls = 0
    real = module.ssim

    def sometimes_nan(*pair: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return real(*pair) * (math.nan if calls == 5 else 1)

    monkeypatch.setattr(module, "ssim", sometimes_nan)
    with pytest.raises(NonFinite, match=r"step 4.*images 16\.\.19"):
        train(autoencoder_config(data), tmp_path / "run")
    assert [int(p.name) for p in RunFolder(tmp_path / "run").saved()] == [12]
    assert [row["images"] for row in read_log(tmp_path / "run")] == [4, 8, 12, 16]
    assert not (tmp_path / "run" / "export").exists()
