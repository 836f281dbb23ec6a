"""The U-Net that predicts noise, parameter for parameter diffusers' UNet2DModel (Ho et al. 2020, appendix B).

Down through the levels, each half as high and wide as the one before, then up again; on the way up every residual block
also sees the output of the way down at its level (skips; Ronneberger et al. 2015). Each is conditioned on the time and,
where there are labels, on the class. Weights and configs exchange with diffusers both ways, so the class has the name
that such a folder's config.json gives.

Shapes: B images, C channels, H x W pixels; emb is (B, E), the embedding of time and class.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from t2i.errors import ModelError, UsageError

# The values that a config may have here. diffusers knows more; the papers' pixel models do not use those.
ALLOWED: dict[str, tuple[object, ...]] = {
    "time_embedding_type": ("positional",),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "mid_block_type": ("UNetMidBlock2D",),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
    "downsample_padding": (0, 1),
    "downsample_type": ("conv",),
    "upsample_type": ("conv",),
    "act_fn": ("silu", "swish"),  # two names of x * sigmoid(x)
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "class_embed_type": (None,),
}


@dataclass(frozen=True)
class Shared:
    """Hyperparameters that all blocks share: E, the norms, and how time and attention work.

    scale_shift: the time scales and shifts, or else is added.  head_size: channels of an attention head; None: all.
    """

    emb: int
    groups: int
    eps: float
    dropout: float
    scale_shift: bool
    head_size: int | None


class ResidualBlock(nn.Module):
    """x + f(x, time): two convolutions, each after group norm and SiLU (He et al. 2016; Wu and He 2018).

    Between them the time is added, or it scales and shifts (Dhariwal and Nichol 2021, section 3).
    """

    def __init__(self, c_in: int, c_out: int, shared: Shared, divisor: float = 1) -> None:
        super().__init__()
        self.scale_shift, self.divisor = shared.scale_shift, divisor
        self.norm1 = nn.GroupNorm(shared.groups, c_in, shared.eps)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time_emb_proj = nn.Linear(shared.emb, 2 * c_out if shared.scale_shift else c_out)
        self.norm2 = nn.GroupNorm(shared.groups, c_out, shared.eps)
        self.dropout = nn.Dropout(shared.dropout)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.conv_shortcut = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Apply the block.  x: (B, c_in, H, W).  Returns (B, c_out, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        time = self.time_emb_proj(emb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = time.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        else:
            h = self.norm2(h.add_(time))  # in place, here and below: no gradient needs a convolution's output
        h = self.conv2(self.dropout(F.silu(h))).add_(self.conv_shortcut(x))
        return h if self.divisor == 1 else h / self.divisor


class SelfAttention(nn.Module):
    """Self-attention over pixels, x + attention(x) (Vaswani et al. 2017, section 3.2)."""

    # In modules with this mark, ModelMixin renames query, key, value and proj_attn, the names in old folders.
    _from_deprecated_attn_block = True

    def __init__(self, channels: int, groups: int | None, shared: Shared, divisor: float = 1) -> None:
        """Build the projections.  groups: of the norm in front; None leaves it out."""
        super().__init__()
        size = shared.head_size or channels
        self.heads, self.divisor = channels // size, divisor
        self.group_norm = nn.GroupNorm(groups, channels, shared.eps) if groups else nn.Identity()
        self.to_q = nn.Linear(channels, self.heads * size)
        self.to_k = nn.Linear(channels, self.heads * size)
        self.to_v = nn.Linear(channels, self.heads * size)
        self.to_out = nn.Sequential(nn.Linear(self.heads * size, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block.  x: (B, C, H, W).  Returns (B, C, H, W)."""
        pixels = self.group_norm(x).flatten(2).transpose(1, 2).contiguous()  # (B, H W, C), copied once for all three
        q, k, v = (
            to(pixels).unflatten(2, (self.heads, -1)).transpose(1, 2) for to in (self.to_q, self.to_k, self.to_v)
        )
        h = self.to_out(attend(q, k, v).transpose(1, 2).flatten(2))
        h = x + h.transpose(1, 2).unflatten(2, x.shape[2:])
        return h if self.divisor == 1 else h / self.divisor


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(d)) v.  q, k, v: (B, heads, N, d).  Returns the same shape.

    On a CPU in bfloat16 as plain products: with N from 16 to 1024 and d from 8 to 256, forward and backward, torch's
    default kernel took 1.3 to 5.8 times as long, its MATH one 1.0 to 3.3 times (one core, 2026-11-23). In float32 it is
    even, and at N = 1024 the default is ahead.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        return (q * q.shape[-1] ** -0.5 @ k.mT).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


class Downsample(nn.Module):
    """Halve height and width by a 3x3 convolution of stride 2.

    padding: 1 pads every side; 0 pads right and bottom alone, as the code of Ho et al. 2020 does.
    """

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__()
        self.padded = padding == 1
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the convolution.  x: (B, C, H, W), H and W even.  Returns (B, C, H/2, W/2)."""
        return self.conv(x if self.padded else F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double height and width: every pixel repeated 2x2, then a 3x3 convolution.

    Both at once: a transposed convolution of stride 2, whose 4x4 kernel sums the weights that meet the same pixel. It
    takes 16 products per pixel and channel where the two took 36.
    """

    sums: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        # In one dimension: which of the 3 weights each of the 4 places of the kernel sums; in two, the product.
        meet = torch.tensor([[0.0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]])
        self.register_buffer("sums", torch.kron(meet, meet).T.contiguous(), persistent=False)  # (9, 16)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the transposed convolution.  x: (B, C, H, W).  Returns (B, C, 2H, 2W)."""
        kernel = (self.conv.weight.flatten(2) @ self.sums).unflatten(2, (4, 4)).transpose(0, 1)
        return F.conv_transpose2d(x, kernel, self.conv.bias, stride=2, padding=1)


def level(c_ins: list[int], c_out: int, attends: bool, shared: Shared) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Build one level: after each residual block attention or nothing, and the residual blocks."""
    after, blocks = nn.ModuleList(), nn.ModuleList()
    for c_in in c_ins:
        blocks.append(ResidualBlock(c_in, c_out, shared))
        after.append(SelfAttention(c_out, shared.groups, shared) if attends else nn.Identity())
    return after, blocks


class DownBlock(nn.Module):
    """One level on the way down.  padding: of the convolution that halves the size; None at the lowest level."""

    def __init__(self, c_ins: list[int], c_out: int, attends: bool, padding: int | None, shared: Shared) -> None:
        super().__init__()
        self.attentions, self.resnets = level(c_ins, c_out, attends, shared)
        self.downsamplers = nn.ModuleList([] if padding is None else [Downsample(c_out, padding)])

    def forward(self, x: Tensor, emb: Tensor, skips: list[Tensor]) -> Tensor:
        """Apply the level, appending each step's output to skips; return the last, (B, c_out, H/2, W/2).

        x: (B, C, H, W).
        """
        for block, attention in zip(self.resnets, self.attentions, strict=True):
            x = attention(block(x, emb))
            skips.append(x)
        for downsample in self.downsamplers:
            x = downsample(x)
            skips.append(x)
        return x


class MiddleBlock(nn.Module):
    """The bottom of the U.  groups: of the norm before the attention.  divisor: of what each part gives."""

    def __init__(self, channels: int, attends: bool, groups: int | None, divisor: float, shared: Shared) -> None:
        super().__init__()
        first = ResidualBlock(channels, channels, shared, divisor)
        attention = SelfAttention(channels, groups, shared, divisor) if attends else nn.Identity()
        last = ResidualBlock(channels, channels, shared, divisor)
        self.attentions, self.resnets = nn.ModuleList([attention]), nn.ModuleList([first, last])

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Apply the blocks.  x: (B, C, H, W).  Returns (B, C, H, W)."""
        return self.resnets[1](self.attentions[0](self.resnets[0](x, emb)), emb)


class UpBlock(nn.Module):
    """One level on the way up.  grows: it ends with twice the size; the highest does not."""

    def __init__(self, c_ins: list[int], c_out: int, attends: bool, grows: bool, shared: Shared) -> None:
        super().__init__()
        self.attentions, self.resnets = level(c_ins, c_out, attends, shared)
        self.upsamplers = nn.ModuleList([Upsample(c_out)] if grows else [])

    def forward(self, x: Tensor, emb: Tensor, skips: list[Tensor]) -> Tensor:
        """Apply the level, taking the latest of skips for each residual block.  x: (B, C, H, W).

        Returns (B, c_out, 2H, 2W).
        """
        for block, attention in zip(self.resnets, self.attentions, strict=True):
            x = attention(block(torch.cat([x, skips.pop()], dim=1), emb))
        for upsample in self.upsamplers:
            x = upsample(x)
        return x


def sinusoids(t: Tensor, width: int, shift: float, cosine_first: bool) -> Tensor:
    """Embed times as sin(w_k t) and cos(w_k t), w_k = 10000^(-k / (width // 2 - shift)) for k = 0 .. width // 2 - 1.

    t: (B,), real.  Returns (B, width), float32.  Vaswani et al. 2017, section 3.5; in Ho et al. 2020 shift is 1.
    """
    k = torch.arange(width // 2, dtype=torch.float32, device=t.device)
    angles = t[:, None] * torch.exp(-math.log(10000) * k / (width // 2 - shift))
    waves = [angles.cos(), angles.sin()] if cosine_first else [angles.sin(), angles.cos()]
    return F.pad(torch.cat(waves, dim=1), (0, width % 2))


class UNet2DModel(ModelMixin, ConfigMixin):
    """The U-Net.  Its arguments are diffusers' own; a value outside ALLOWED, or an impossible one, raises ModelError.

    One entry per level, the highest first (the lowest first for up_block_types): block_out_channels, down_block_types,
    up_block_types. "Attn..." has attention after every residual block.
    layers_per_block: residual blocks per level on the way down; one more on the way up.
    attention_head_dim: channels of one attention head; None: one head.
    num_class_embeds: rows of the class table, one more than there are classes: the last is the null class, which
    stands for "no label" (Ho and Salimans 2022).
    sample_size, num_train_timesteps: those of training. Kept for other programs that read the config; unused here.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 3,
        out_channels: int = 3,
        center_input_sample: bool = False,
        time_embedding_type: str = "positional",
        time_embedding_dim: int | None = None,
        freq_shift: int = 0,
        flip_sin_to_cos: bool = True,
        down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        mid_block_type: str | None = "UNetMidBlock2D",
        up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        block_out_channels: tuple[int, ...] = (224, 448, 672, 896),
        layers_per_block: int = 2,
        mid_block_scale_factor: float = 1,
        downsample_padding: int = 1,
        downsample_type: str = "conv",
        upsample_type: str = "conv",
        dropout: float = 0.0,
        act_fn: str = "silu",
        attention_head_dim: int | None = 8,
        norm_num_groups: int = 32,
        attn_norm_num_groups: int | None = None,
        norm_eps: float = 1e-5,
        resnet_time_scale_shift: str = "default",
        add_attention: bool = True,
        class_embed_type: str | None = None,
        num_class_embeds: int | None = None,
        num_train_timesteps: int | None = None,
    ) -> None:
        super().__init__()
        for fault in faults(self.config):
            raise ModelError(f"the U-Net cannot have {fault}")
        scale_shift = resnet_time_scale_shift == "scale_shift"
        c, levels = block_out_channels[0], len(block_out_channels)
        emb = time_embedding_dim or 4 * c
        shared = Shared(emb, norm_num_groups, norm_eps, dropout, scale_shift, attention_head_dim)
        self.center, self.waves = center_input_sample, (c, freq_shift, flip_sin_to_cos)
        self.multiple = 2 ** (levels - 1)

        # Made and registered in diffusers' order: one seed gives both the same weights.
        self.conv_in = nn.Conv2d(in_channels, c, 3, padding=1)
        perceptron = {"linear_1": nn.Linear(c, emb), "act": nn.SiLU(), "linear_2": nn.Linear(emb, emb)}
        self.time_embedding = nn.Sequential(OrderedDict(perceptron))
        self.class_embedding = None if num_class_embeds is None else nn.Embedding(num_class_embeds, emb)
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        skips = [c]  # channels of the outputs that the way down keeps for the way up
        for i, (kind, c_out) in enumerate(zip(down_block_types, block_out_channels, strict=True)):
            padding = downsample_padding if i < levels - 1 else None
            c_ins = [c] + [c_out] * (layers_per_block - 1)
            self.down_blocks.append(DownBlock(c_ins, c_out, kind.startswith("Attn"), padding, shared))
            skips += [c_out] * (layers_per_block + (padding is not None))
            c = c_out
        # diffusers' rule: without a group count of its own, this norm exists only where the time is added.
        groups = attn_norm_num_groups or (None if scale_shift else norm_num_groups)
        self.mid_block = MiddleBlock(c, add_attention, groups, mid_block_scale_factor, shared)
        for i, (kind, c_out) in enumerate(zip(up_block_types, reversed(block_out_channels), strict=True)):
            c_ins = [c_x + skips.pop() for c_x in [c] + [c_out] * layers_per_block]
            self.up_blocks.append(UpBlock(c_ins, c_out, kind.startswith("Attn"), i < levels - 1, shared))
            c = c_out
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, c, norm_eps)
        self.conv_out = nn.Conv2d(c, out_channels, 3, padding=1)

    def forward(self, x_t: Tensor, timestep: Tensor | float, class_labels: Tensor | None = None) -> Tensor:
        """Predict the noise in noised images, or the other quantity that the network was trained to predict.

        x_t: (B, in_channels, H, W), H and W multiples of 2^(levels - 1).
        timestep: one number or (B,), real, in diffusers' count: 0 is the least noise.
        class_labels: (B,) int64; for a network with classes, and for no other.
        Returns (B, out_channels, H, W).  Raises UsageError: shapes or labels that do not fit the network.
        """
        t = torch.as_tensor(timestep, dtype=torch.float32, device=x_t.device)
        self._check(x_t, t, class_labels)
        emb = self.time_embedding(sinusoids(t.expand(len(x_t)), *self.waves).to(self.conv_in.weight.dtype))
        if self.class_embedding is not None:
            emb = emb + self.class_embedding(class_labels)
        emb = F.silu(emb)  # once for all blocks
        x = self.conv_in(2 * x_t - 1 if self.center else x_t)
        skips = [x]
        for block in self.down_blocks:
            x = block(x, emb, skips)
        x = self.mid_block(x, emb)
        for block in self.up_blocks:
            x = block(x, emb, skips)
        return self.conv_out(F.silu(self.conv_norm_out(x)))

    def _check(self, x_t: Tensor, t: Tensor, class_labels: Tensor | None) -> None:
        """Raise UsageError for inputs that do not fit this network."""
        c, n = self.conv_in.in_channels, self.multiple
        if x_t.dim() != 4 or x_t.shape[1] != c or x_t.shape[2] % n or x_t.shape[3] % n:
            allowed = f"(B, {c}, H, W), H and W multiples of {n}"
            raise UsageError(f"x_t has the shape {tuple(x_t.shape)}; allowed: {allowed}")
        if t.shape not in ((), (1,), (len(x_t),)):
            raise UsageError(f"timestep has the shape {tuple(t.shape)}; allowed: one number, or ({len(x_t)},)")
        if class_labels is None and self.class_embedding is not None:
            null = self.class_embedding.num_embeddings - 1
            raise UsageError("class_labels is missing, and this U-Net has classes", f"no class is label {null}")
        if class_labels is not None and self.class_embedding is None:
            raise UsageError("class_labels were given, and this U-Net has no classes", "leave them out")


def faults(config: dict[str, Any]) -> Iterator[str]:
    """Yield every value of a config that cannot be built here, with the values allowed instead."""
    for name, allowed in ALLOWED.items():
        got = config[name]
        for value in got if isinstance(got, tuple | list) else [got]:
            if value not in allowed:
                yield f"{name} {value!r}; allowed: {', '.join(map(repr, allowed))}"
    if config["layers_per_block"] not in range(1, 100):
        yield f"layers_per_block {config['layers_per_block']!r}; allowed: 1 and more"
    channels, down, up = (config[name] for name in ("block_out_channels", "down_block_types", "up_block_types"))
    if not len(channels) == len(down) == len(up) > 0:
        got = f"{len(channels)} block_out_channels for {len(down)} down_block_types and {len(up)} up_block_types"
        yield f"{got}; allowed: as many of each"
    groups, head_size = config["norm_num_groups"], config["attention_head_dim"]
    for c, g in [*((c, groups) for c in channels), (channels[-1], config["attn_norm_num_groups"] or groups)]:
        if not g or c % g:
            yield f"{c} channels in {g} norm groups; allowed: a divisor of the channels"
    attending = [c for c, *kinds in zip(channels, down, reversed(up), strict=True) if "Attn" in "".join(kinds)]
    fewest = min(attending + [channels[-1]] * config["add_attention"], default=math.inf)
    if head_size is not None and not 1 <= head_size <= fewest:
        yield f"attention_head_dim {head_size} at {fewest} channels; allowed: None, or 1 to {fewest}"
