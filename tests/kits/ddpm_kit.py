"""Small DDPM pipelines with random weights."""

from __future__ import annotations

import torch

from t2i.nn.unet import UNet2DModel
from t2i.pipelines.class_conditional.ddpm import DDPM
from t2i.pipelines.class_conditional.diffusers_scheduler import make_scheduler

SIZE = 8
NAMES = ("horse", "dog", "boat")


def make_unet(classes: int = 0, seed: int = 0) -> UNet2DModel:
    torch.manual_seed(seed)
    unet = UNet2DModel(
        sample_size=SIZE,
        block_out_channels=(16, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=None,
        num_class_embeds=classes + 1 if classes else None,
    )
    for p in unet.parameters():  # so that answers are far from zero and classes matter
        p.data += 0.05 * torch.randn(p.shape)
    return unet.eval()


def make(schedule: str = "linear", predict: str = "eps", classes: tuple[str, ...] = ()) -> DDPM:
    return DDPM(make_unet(len(classes)), make_scheduler(schedule, predict), classes)
