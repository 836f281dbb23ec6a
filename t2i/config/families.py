"""The config of every family."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from t2i.config.base import Data, Run, Strict


class AutoencoderModel(Strict):
    """Constructor arguments of diffusers' AutoencoderKL that we vary."""

    latent_channels: int = Field(4, ge=1)
    channels: tuple[int, ...] = (32, 64, 128)
    layers: int = Field(1, ge=1)
    groups: int = Field(32, ge=1)  # of the group norms; divides every entry of channels
    attention: bool = False  # in the middle block


class AutoencoderLoss(Strict):
    """Weights of the loss terms, each a mean over pixel values."""

    l1: float = Field(1.0, ge=0)
    gradient: float = Field(0.0, ge=0)
    ssim: float = Field(0.0, ge=0)
    kl: float = Field(1e-3, ge=0)


class AutoencoderConfig(Run):
    """`t2i train autoencoder`"""

    family: Literal["autoencoder"] = "autoencoder"
    data: Data
    model: AutoencoderModel = AutoencoderModel()
    loss: AutoencoderLoss = AutoencoderLoss()


class Captions(Strict):
    """How a row of the table becomes a caption.

    Either `column` names a column of ready captions, or `by` names a column whose value picks the list of templates.
    """

    column: str | None = None
    by: str | None = None
    templates: dict[str, tuple[str, ...]] = {}
    drop: float = Field(0.1, ge=0, le=1)  # how often the caption is empty, which is what guidance needs

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.column is None) == (self.by is None):
            raise ValueError("give either `column` (ready captions) or `by` with `templates`, not both")
        if self.by is not None and not self.templates:
            raise ValueError("`by` needs `templates`")
        return self


class TextEncoder(Strict):
    """A CLIP-format text encoder and its byte-pair tokenizer, both trained here."""

    vocabulary: int = Field(2_000, ge=600)  # 512 byte symbols, the merges, two markers
    tokens: int = Field(32, ge=8, le=512)  # longest caption
    width: int = Field(192, ge=8)
    layers: int = Field(4, ge=1)
    heads: int = Field(4, ge=1)
    rate: float = Field(1.0, gt=0)  # factor of the learning rate


class UNet(Strict):
    """Constructor arguments of diffusers' UNet2DConditionModel that we vary."""

    channels: tuple[int, ...] = (64, 128, 256)
    attention: tuple[bool, ...] = (False, True, True)
    layers: int = Field(1, ge=1)
    head_size: int = Field(32, ge=8)
    groups: int = Field(32, ge=1)  # of the group norms; divides every entry of channels

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        if len(self.channels) != len(self.attention):
            raise ValueError(f"channels has {len(self.channels)} levels, attention {len(self.attention)}")
        return self


class FlowObjective(Strict):
    """Flow matching, and the noise levels at which the network learns it."""

    schedule: Literal["flow"] = "flow"
    predict: Literal["flow"] = "flow"
    time: Literal["uniform", "logit-normal"] = "logit-normal"
    shift: float = Field(1.0, gt=0)  # above 1: noisier times more often, where shapes are decided


class Objective(Strict):
    """How images are noised, what the network learns to predict, and which noise levels count how much."""

    schedule: Literal["linear", "cosine", "flow"] = "linear"
    predict: Literal["eps", "x0", "v", "flow"] = "eps"
    time: Literal["integers", "uniform", "logit-normal"] = "integers"
    weight: Literal["plain", "min-snr"] = "plain"

    @model_validator(mode="after")
    def _flow_goes_with_flow(self) -> Self:
        if (self.schedule == "flow") != (self.predict == "flow"):
            raise ValueError("schedule flow goes with predict flow, and neither with another: diffusers could not draw")
        return self


class Samples(Strict):
    """The grid of pictures drawn along training: fixed prompts, fixed seeds."""

    prompts: tuple[str, ...] = Field(min_length=1)
    negative: str = ""
    columns: int = Field(7, ge=1)
    steps: int = Field(20, ge=1)
    guidance: float = 3.0


class Text2ImageConfig(Run):
    """`t2i train text2image`"""

    family: Literal["text2image"] = "text2image"
    data: Data
    captions: Captions
    autoencoder: str  # a run of `t2i train autoencoder`, or a folder with a diffusers autoencoder
    latents: str | None = None  # where the latents are cached; default: in the run folder
    text_encoder: TextEncoder = TextEncoder()
    unet: UNet = UNet()
    objective: FlowObjective = FlowObjective()
    samples: Samples


class PixelUNet(Strict):
    """Arguments of t2i.nn.unet.UNet2DModel that we vary; the defaults are the CIFAR-10 model of the DDPM paper."""

    channels: tuple[int, ...] = (128, 256, 256, 256)
    attention: tuple[bool, ...] = (False, True, False, False)
    layers: int = Field(2, ge=1)
    head_size: int | None = Field(None, ge=8)  # channels per attention head; none: one head
    groups: int = Field(32, ge=1)  # of the group norms; divides every entry of channels
    dropout: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.channels) != len(self.attention):
            raise ValueError(f"channels has {len(self.channels)} levels, attention {len(self.attention)}")
        for c in self.channels:
            for divisor in (self.groups, self.head_size or c):
                if c % divisor:
                    raise ValueError(f"channels {c} is no multiple of {divisor} (groups, head_size)")
        return self


class ClassSamples(Strict):
    """The grid of pictures drawn along training: fixed seeds, the classes in turn."""

    count: int = Field(40, ge=1)
    columns: int = Field(10, ge=1)
    sampler: str | None = None  # a key of t2i.diffusion.samplers.SAMPLERS; none: the pipeline's own choice
    steps: int = Field(20, ge=1)
    guidance: float = 1.0


class DDPMConfig(Run):
    """`t2i train ddpm`"""

    family: Literal["ddpm"] = "ddpm"
    data: Data
    label: str | None = None  # the column that holds the class; none: unconditional
    label_drop: float = Field(0.1, ge=0, le=1)  # how often the class is left out, which is what guidance needs
    model: PixelUNet = PixelUNet()
    objective: Objective = Objective()
    samples: ClassSamples = ClassSamples()

    @model_validator(mode="after")
    def _halves(self) -> Self:
        multiple = 2 ** (len(self.model.channels) - 1)
        if self.data.size % multiple:
            raise ValueError(f"data.size {self.data.size} is no multiple of {multiple}, the halvings of model.channels")
        return self


FAMILIES: dict[str, type[Run]] = {"autoencoder": AutoencoderConfig, "text2image": Text2ImageConfig, "ddpm": DDPMConfig}
