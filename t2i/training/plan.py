"""What a run would be, before it is one: `--dry-run`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from t2i.config import (
    AutoencoderConfig,
    ClassifierConfig,
    DCGANConfig,
    DDPMConfig,
    Run,
    Text2ImageConfig,
    VAEConfig,
    config_hash,
)
from t2i.data.sources import is_hub, open_source
from t2i.processes import processes
from t2i.training.optimizer import learning_rate
from t2i.training.run import Launch, RunFolder

if TYPE_CHECKING:
    from torch import nn

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 40  # characters of the learning-rate curve
WARM_UP = 3  # steps before the measured ones: the first are slower
MEASURED = 5


def describe(config: Run, run: Path, measure: bool = True) -> str:
    """The plan of a run as text: data, model, steps, rate, disk, time, and where it would begin.  Keeps nothing.

    measure: train a few steps in a temporary folder, to tell the time.
    Raises T2IError where the run itself would: missing data, no autoencoder.
    """
    data: Any = cast(Any, config).data
    here = [source for source in data.sources if not is_hub(source)]
    counts = [open_source(source).count for source in here]
    visits = sum(count * source.repeat for count, source in zip(counts, here, strict=True))
    parts = _parts(config)
    parameters = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    total = sum(parameters.values())
    checkpoint = 4 * total * 4  # float32: weights, their average, two moments
    saved = RunFolder(run).saved()
    n, steps = processes().num_processes, -(-config.images // config.batch)
    size = f"{data.size} x {data.size} pixels"
    from_hub = [source.path for source in data.sources if is_hub(source)]
    lines = {
        "run": f"{run}  (config {config_hash(config)})",
        "data": f"{sum(counts):,} images in {len(data.sources)} sources, {size}"
        + (f"; not counted, on the Hub: {', '.join(from_hub)}" if from_hub else ""),
        "epoch": f"{visits:,} visits; the run is {config.images / visits:.1f} epochs" if visits else "not known",
        "model": f"{total / 1e6:.1f}M parameters: " + ", ".join(f"{k} {v / 1e6:.1f}M" for k, v in parameters.items()),
        "work": f"{flops(config) / 1e9:.1f} GFLOP per image, forward and backward",
        "batch": f"{config.batch} images = {n} processes x {config.accumulate} parts x "
        f"{config.batch // (n * config.accumulate)}",
        "steps": f"{steps:,} of {config.batch} images, {config.images:,} images in all",
        "rate": f"{rate_curve(config)}  up to {config.optimizer.lr:g}",
        "disk": f"{checkpoint * (config.keep + 1) / 1e6:,.0f} MB for {config.keep} checkpoints and one being written",
        "time": _time(config, saved, not from_hub and measure),
        "begins": f"at {int(saved[0].name):,} images, from {saved[0]}" if saved else "anew",
    }
    return "\n".join(f"{name:<8}{text}" for name, text in lines.items())


def rate_curve(config: Run) -> str:
    """The learning rate over the run, as a line of blocks from nothing to its highest."""
    points = [learning_rate(config.optimizer, round(config.images * k / WIDTH), config.images) for k in range(WIDTH)]
    return "".join(BARS[min(len(BARS) - 1, int(len(BARS) * point / config.optimizer.lr))] for point in points)


def flops(config: Run) -> int:
    """Floating-point operations of one training image, a multiplication and an addition being two.

    Forward, and twice that for backward. Counted by torch over the network on its meta device: nothing is computed.
    """
    if isinstance(config, DCGANConfig):
        return _flops_of_players(config)
    return 3 * _count(lambda: _forward(config))


def _count(compute: Callable[[], object]) -> int:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        compute()
    return int(counter.get_total_flops())


def _flops_of_players(config: DCGANConfig) -> int:
    """A real and a generated image for the discriminator, and the generator's part of a turn; penalties not counted."""
    import torch

    players = _players(config).to("meta").eval()
    labels = torch.zeros(1, dtype=torch.long, device="meta") if config.label else None
    z = torch.zeros(1, config.model.latent, device="meta")
    image = torch.zeros(1, 3, config.data.size, config.data.size, device="meta")
    g = _count(lambda: players.generator(z, labels))
    d = _count(lambda: players.discriminator(image, labels))
    turn = 3 * g + 2 * d  # of the generator: the discriminator's weights need no gradients
    return 6 * d + g + turn // config.d_steps


def images_per_second(config: Run) -> float:
    """Measured: a few steps of the run itself, in a folder that is removed again."""
    import t2i.training as training
    from t2i.training.run import RunFolder

    loop = getattr(training, training.TRAINERS[config.model_dump()["family"]])
    row = config.batch * getattr(config, "d_steps", 1)
    end = (WARM_UP + MEASURED) * row
    never = {"save_every": 2**62, "sample_every": 2**62, "log_every": row, "images": max(end, config.images)}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        loop(config.model_copy(update=never), run, Launch(progress=False, until=end))
        rates = [float(row["images_per_second"]) for row in RunFolder(run).read_log()][WARM_UP:]
    return len(rates) / sum(1 / rate for rate in rates)


def _time(config: Run, saved: list[Path], measure: bool) -> str:
    if not measure:
        return "not measured"
    if isinstance(config, Text2ImageConfig) and not (config.latents and Path(config.latents).exists()):
        return "not measured: the latents of all images would have to be encoded first"
    rate = images_per_second(config)
    left = config.images - (int(saved[0].name) if saved else 0)
    return f"{_duration(left / rate)} at {rate:.3g} images/s, measured over {MEASURED} steps here; samples not counted"


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def _parts(config: Run) -> dict[str, nn.Module]:
    """The trained networks by name."""
    if isinstance(config, AutoencoderConfig):
        from t2i.training.autoencoder import build_autoencoder

        vae = build_autoencoder(config.model, config.data.size, config.seed)
        return {"encoder": vae.encoder, "decoder": vae.decoder}
    if isinstance(config, DDPMConfig):
        return {"U-Net": _unet(config)}
    if isinstance(config, DCGANConfig):
        players = _players(config)
        return {"generator": players.generator, "discriminator": players.discriminator}
    if isinstance(config, VAEConfig):
        return {"encoder and decoder": _vae(config)}
    if isinstance(config, ClassifierConfig):
        return {"ResNet": _resnet(config)}
    assert isinstance(config, Text2ImageConfig)
    from t2i.training.text2image import Denoiser, load_autoencoder

    # The tokenizer is not trained yet: its vocabulary is at most this large.
    net = Denoiser(config, config.text_encoder.vocabulary, load_autoencoder(config.autoencoder))
    return {"text encoder": net.text_encoder, "U-Net": net.unet}


def _unet(config: DDPMConfig) -> nn.Module:
    from t2i.training.ddpm import build_unet

    return build_unet(config, _class_count(config))


def _players(config: DCGANConfig) -> Any:
    from t2i.training.dcgan import Players

    return Players(config, _class_count(config))


def _vae(config: VAEConfig) -> nn.Module:
    from t2i.training.vae import build_vae

    return build_vae(config, _class_count(config))


def _resnet(config: ClassifierConfig) -> nn.Module:
    from t2i.training.classifier import build_resnet

    return build_resnet(config, _class_count(config))


def _class_count(config: DDPMConfig | DCGANConfig | VAEConfig | ClassifierConfig) -> int:
    """How many classes the sources here have, before their images are read."""
    classes: dict[str, None] = {}
    for source in config.data.sources if config.label else ():
        if not is_hub(source):
            classes |= dict.fromkeys(open_source(source).classes.get(str(config.label), ()))
    return len(classes)


def _forward(config: Run) -> Any:
    """One image through the network, on the meta device."""
    import torch

    meta = torch.device("meta")
    if isinstance(config, AutoencoderConfig):
        from t2i.training.autoencoder import Codec, build_autoencoder, latent_size

        codec = Codec(build_autoencoder(config.model, config.data.size, config.seed)).to(meta)
        image = torch.zeros(1, 3, config.data.size, config.data.size, device=meta)
        return codec(image, torch.zeros(1, *latent_size(config), device=meta))
    if isinstance(config, DDPMConfig):
        unet = _unet(config).to(meta)
        labels = torch.zeros(1, dtype=torch.long, device=meta) if unet.class_embedding is not None else None
        image = torch.zeros(1, 3, config.data.size, config.data.size, device=meta)
        return unet(image, torch.zeros(1, device=meta), labels)
    if isinstance(config, VAEConfig):
        labels = torch.zeros(1, dtype=torch.long, device=meta) if config.label else None
        image = torch.zeros(1, 3, config.data.size, config.data.size, device=meta)
        return _vae(config).to(meta)(image, torch.zeros(1, config.model.latent, device=meta), labels)
    if isinstance(config, ClassifierConfig):
        image = torch.zeros(1, 3, config.data.size, config.data.size, device=meta)
        return _resnet(config).to(meta).eval()(image)
    assert isinstance(config, Text2ImageConfig)
    from t2i.training.text2image import Denoiser, load_autoencoder

    net = Denoiser(config, config.text_encoder.vocabulary, load_autoencoder(config.autoencoder)).to(meta)
    shape = (1, net.unet.config.in_channels, net.unet.config.sample_size, net.unet.config.sample_size)
    ids = torch.zeros(1, config.text_encoder.tokens, dtype=torch.long, device=meta)
    return net(torch.zeros(shape, device=meta), torch.zeros(1, device=meta), ids)
