"""`t2i train ddpm`: diffusion in pixels from scratch, with or without classes (Ho et al. 2020, algorithm 1).

Our U-Net, our objective. The export is a DDPMPipeline folder of averaged weights, which plain diffusers draws with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t2i.config import DDPMConfig
from t2i.data.tables import Table, load_table
from t2i.diffusion.objective import TIMES, WEIGHTS, add_noise, target
from t2i.diffusion.schedule import SCHEDULES, timestep
from t2i.distributed import is_main
from t2i.imaging import images
from t2i.nn.unet import UNet2DModel
from t2i.pipelines.class_conditional.ddpm import DDPM
from t2i.pipelines.class_conditional.diffusers_scheduler import make_scheduler
from t2i.randomness import derive_seed, generator
from t2i.training.batch import class_names, pictures
from t2i.training.cost_estimate import FORWARD_AND_BACKWARD, CostEstimate, blank, blank_batch, class_count, size, work
from t2i.training.engine import Engine, Step
from t2i.training.losses import by_noise_level
from t2i.training.periodic_evaluation import Judging
from t2i.training.runs.run_folder import Launch, RunFolder


def estimate_cost(config: DDPMConfig) -> CostEstimate:
    """What this config trains."""
    unet = build_unet(config, class_count(config))
    parameters = {"U-Net": size(unet)}
    x_t, _ = blank_batch(config)
    label = blank(1, dtype=torch.long) if unet.class_embedding is not None else None
    unet = unet.to("meta")
    return CostEstimate(parameters, FORWARD_AND_BACKWARD * work(lambda: unet(x_t, blank(1), label)))


def train_ddpm(config: DDPMConfig, run: Path, launch: Launch = Launch()) -> Path:
    """Train, or go on training, a diffusion model of images.  Returns the exported pipeline folder.

    Raises T2IError: data, config, checkpoint and non-finite faults.
    """
    folder = RunFolder(run)
    folder.begin(config, launch)
    table = load_table(config.data, launch.progress and is_main())
    classes = class_names(config, table)
    engine = Engine(config, folder, build_unet(config, len(classes)), table.hash, launch)
    judging = Judging.of(engine, config, lambda weights: pipeline(engine, weights, config, classes), **drawing(config))
    table = table.to(engine.device)
    objective = config.objective
    schedule = SCHEDULES[objective.schedule]()
    for step in engine.steps():
        x0, labels = batch(table, config, step, len(classes))
        # Drawn for the global batch, then sliced: the same numbers on any number of processes.
        draw = generator(config.seed, "noise", step.index)
        eps = torch.randn(step.batch, *x0.shape[1:], generator=draw)[step.share].to(engine.device)
        t = TIMES[objective.time](step.batch, schedule, draw)[step.share]
        x_t = add_noise(x0, eps, t, schedule)
        engine.seed_dropout(step)
        out = engine.module(x_t, timestep(t, schedule).to(engine.device, torch.float32), labels)
        errors = (out - target(x0, eps, t, schedule, objective.predict)).square().mean((1, 2, 3))
        weights = WEIGHTS[objective.weight](t, schedule, objective.predict).to(errors)
        engine.tally(by_noise_level(errors, t, schedule.T))
        engine.update(step, (weights * errors).mean(), mse=errors.mean())
        if engine.crossed(config.sample_every):
            average = engine.average()
            if is_main():
                draw_samples(pipeline(engine, average, config, classes), config, folder, engine.images_seen)
        if judging:
            judging.after(engine)
    average = engine.average()
    if is_main():
        pipeline(engine, average, config, classes).save_pretrained(folder.export)
    return folder.export


def build_unet(config: DDPMConfig, classes: int) -> UNet2DModel:
    """A freshly initialised U-Net; the weights depend on the seed alone.  classes: 0 for unconditional."""
    torch.manual_seed(derive_seed(config.seed, "ddpm weights"))
    net = config.model
    return UNet2DModel(
        sample_size=config.data.size,
        block_out_channels=net.channels,
        layers_per_block=net.layers,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in net.attention),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(net.attention)),
        add_attention=True,
        attention_head_dim=net.head_size,
        norm_num_groups=net.groups,
        dropout=net.dropout,
        num_class_embeds=classes + 1 if classes else None,  # the last entry is the null class
        # as the published CIFAR-10 model has it
        norm_eps=1e-6,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
    )


def batch(table: Table, config: DDPMConfig, step: Step, classes: int) -> tuple[Tensor, Tensor | None]:
    """This process's share of a step: images (b, 3, S, S) in [-1, 1], and classes (b,) int64 or None.

    A class that is dropped, or that a row does not have, is the null class, number `classes`.
    """
    x0, rows = pictures(table, config, step)
    if config.label is None:
        return x0, None
    labels = table.labels(rows, config.label)
    chance = torch.rand(step.batch, generator=generator(config.seed, "label-drop", step.index))[step.share]
    labels = labels.where((chance >= config.label_drop) & (labels >= 0), classes)
    return x0, labels.to(x0.device)


def pipeline(engine: Engine, weights: dict[str, Tensor], config: DDPMConfig, classes: tuple[str, ...]) -> DDPM:
    """Weights of the U-Net as a pipeline on the engine's device."""
    unet = build_unet(config, len(classes))
    unet.load_state_dict(weights)
    scheduler = make_scheduler(config.objective.schedule, config.objective.predict)
    return DDPM(unet.to(engine.device).eval(), scheduler, classes)


def draw_samples(model: DDPM, config: DDPMConfig, folder: RunFolder, images_seen: int) -> None:
    """Save the grid of fixed seeds, and classes in turn, drawn by the averaged weights."""
    wanted = config.samples
    drawn = model(wanted.count, None, config.seed, wanted.sampler, wanted.steps, wanted.guidance)
    images.save(images.grid(drawn, columns=wanted.columns), folder.samples / f"{images_seen:012d}.png", overwrite=True)


def drawing(config: DDPMConfig) -> dict[str, Any]:
    """How pictures are drawn along training, as the grid is."""
    wanted = config.samples
    return {"sampler": wanted.sampler, "steps": wanted.steps, "guidance": wanted.guidance if config.label else None}
