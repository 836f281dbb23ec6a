"""The config of every family."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from t2i.config.base import Data, Judged, Run, Strict


class AutoencoderModel(Strict):
    """Constructor arguments of diffusers' AutoencoderKL that we vary."""

    latent_channels: int = Field(4, ge=1)  # of the latent image
    channels: tuple[int, ...] = (32, 64, 128)  # of each level; every level but the first halves the side
    layers: int = Field(1, ge=1)  # residual blocks per level
    groups: int = Field(32, ge=1)  # groups of the group norms; must divide every entry of channels
    attention: bool = False  # self-attention in the middle block


class AutoencoderLoss(Strict):
    """Weights of the loss terms, each a mean over pixel values.

    perceptual: of the distance between ImageNet features of image and reconstruction; needs the extra `imagenet`.
    adversarial: length of a patch discriminator's gradient at the last layer, relative to that of all other terms.
    adversarial_from: images seen before the discriminator joins.
    """

    l1: float = Field(1.0, ge=0)  # weight of the absolute error
    gradient: float = Field(0.0, ge=0)  # weight of the absolute error of differences between neighbouring pixels
    ssim: float = Field(0.0, ge=0)  # weight of 1 - SSIM
    kl: float = Field(1e-3, ge=0)  # weight of the KL divergence from a standard normal
    perceptual: float = Field(0.0, ge=0)
    adversarial: float = Field(0.0, ge=0)
    adversarial_from: int = Field(0, ge=0)


class PatchGAN(Strict):
    """Arguments of t2i.nn.patchgan.PatchDiscriminator that we vary, and how fast it learns."""

    channels: tuple[int, ...] = Field((64, 128, 256), min_length=1)  # of each level
    rate: float = Field(1.0, gt=0)  # its learning rate, relative to optimizer.lr


class AutoencoderConfig(Run):
    """`t2i train autoencoder`"""

    family: Literal["autoencoder"] = "autoencoder"
    data: Data
    held_out: Data | None = None  # images that are not trained on, to measure reconstruction
    measured: int = Field(256, ge=1)  # most held-out images that are measured during training; at the end all
    crop: int | None = Field(None, ge=8)  # side of the random crops to train on, in pixels; null: whole images
    model: AutoencoderModel = AutoencoderModel()
    loss: AutoencoderLoss = AutoencoderLoss()
    discriminator: PatchGAN = PatchGAN()  # the patch discriminator, used if loss.adversarial is above 0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        multiple = 2 ** (len(self.model.channels) - 1)
        for name, side in (("data.size", self.data.size), ("crop", self.crop or self.data.size)):
            if side % multiple:
                raise ValueError(f"{name} {side} is no multiple of {multiple}, the halvings of model.channels")
        if self.crop is not None and self.crop > self.data.size:
            raise ValueError(f"crop {self.crop} is larger than data.size {self.data.size}")
        if self.held_out is not None and self.held_out.size != self.data.size:
            raise ValueError(f"held_out.size {self.held_out.size} is not data.size {self.data.size}")
        if self.loss.adversarial:
            self._can_be_played()
        return self

    def _can_be_played(self) -> None:
        if self.accumulate > 1:
            raise ValueError("accumulate: two networks take turns with the batch in one part; lower `batch` instead")
        levels, side = len(self.discriminator.channels), self.crop or self.data.size
        if side < 2**levels:
            raise ValueError(f"discriminator.channels: {levels} levels are for {2**levels} pixels and more, not {side}")
        if not (self.loss.l1 or self.loss.gradient or self.loss.ssim or self.loss.perceptual):
            raise ValueError(
                "loss.adversarial needs another term on the reconstruction: its weight is relative to theirs"
            )


class Captions(Strict):
    """How a row of the table becomes a caption.

    Either `column` names a column of ready captions, or `by` names a column whose value picks the list of templates.
    """

    column: str | None = None  # the column of ready captions
    by: str | None = None  # the column whose value picks the templates
    templates: dict[str, tuple[str, ...]] = {}  # of each value of that column
    drop: float = Field(0.1, ge=0, le=1)  # probability of an empty caption, for classifier-free guidance

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.column is None) == (self.by is None):
            raise ValueError("give either `column` (ready captions) or `by` with `templates`, not both")
        if self.by is not None and not self.templates:
            raise ValueError("`by` needs `templates`")
        return self


class TextEncoder(Strict):
    """A CLIP-format text encoder and its byte-pair tokenizer, both trained here."""

    vocabulary: int = Field(2_000, ge=600)  # size: 512 byte symbols, the merges, two markers
    tokens: int = Field(32, ge=8, le=512)  # length of the longest caption, in tokens
    width: int = Field(192, ge=8)  # of the embeddings
    layers: int = Field(4, ge=1)  # transformer layers
    heads: int = Field(4, ge=1)  # attention heads per layer
    rate: float = Field(1.0, gt=0)  # its learning rate, relative to optimizer.lr


class UNet(Strict):
    """Constructor arguments of diffusers' UNet2DConditionModel that we vary."""

    channels: tuple[int, ...] = (64, 128, 256)  # of each level
    attention: tuple[bool, ...] = (False, True, True)  # whether a level attends to the caption
    layers: int = Field(1, ge=1)  # residual blocks per level
    head_size: int = Field(32, ge=8)  # channels per attention head
    groups: int = Field(32, ge=1)  # groups of the group norms; must divide every entry of channels

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        if len(self.channels) != len(self.attention):
            raise ValueError(f"channels has {len(self.channels)} levels, attention {len(self.attention)}")
        return self


class FlowObjective(Strict):
    """Flow matching, and the noise levels at which the network learns it."""

    schedule: Literal["flow"] = "flow"  # the straight line from image to noise
    predict: Literal["flow"] = "flow"  # the velocity along it
    time: Literal["uniform", "logit-normal"] = "logit-normal"  # distribution of the training times
    shift: float = Field(1.0, gt=0)  # above 1: noisier times more often, where shapes are decided


class Objective(Strict):
    """How images are noised, what the network learns to predict, and which noise levels count how much."""

    schedule: Literal["linear", "cosine", "flow"] = "linear"  # noise schedule
    predict: Literal["eps", "x0", "v", "flow"] = "eps"  # what the network predicts: noise, image, v or velocity
    time: Literal["integers", "uniform", "logit-normal"] = "integers"  # distribution of the training times
    weight: Literal["plain", "min-snr"] = "plain"  # weight of the loss at each time

    @model_validator(mode="after")
    def _flow_goes_with_flow(self) -> Self:
        if (self.schedule == "flow") != (self.predict == "flow"):
            raise ValueError("schedule flow goes with predict flow, and neither with another: diffusers could not draw")
        return self


class Samples(Strict):
    """The grid of pictures drawn along training: fixed prompts, fixed seeds."""

    prompts: tuple[str, ...] = Field(min_length=1)  # one image each
    negative: str = ""  # negative prompt
    columns: int = Field(7, ge=1)  # of the grid
    steps: int = Field(20, ge=1)  # sampling steps
    guidance: float = 3.0  # classifier-free guidance scale


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

    channels: tuple[int, ...] = (128, 256, 256, 256)  # of each level; every level but the first halves the side
    attention: tuple[bool, ...] = (False, True, False, False)  # whether a level has self-attention
    layers: int = Field(2, ge=1)  # residual blocks per level
    head_size: int | None = Field(None, ge=8)  # channels per attention head; null: one head
    groups: int = Field(32, ge=1)  # groups of the group norms; must divide every entry of channels
    dropout: float = Field(0.0, ge=0, lt=1)  # probability, in the residual blocks

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

    count: int = Field(40, ge=1)  # images
    columns: int = Field(10, ge=1)  # of the grid
    sampler: str | None = None  # as of `t2i sample --sampler`; null: the pipeline's default
    steps: int = Field(20, ge=1)  # sampling steps
    guidance: float = 1.0  # classifier-free guidance scale; 1: off


class DDPMConfig(Judged):
    """`t2i train ddpm`"""

    family: Literal["ddpm"] = "ddpm"
    data: Data
    label: str | None = None  # the column that holds the class; null: unconditional
    label_drop: float = Field(0.1, ge=0, le=1)  # probability of leaving the class out, for classifier-free guidance
    model: PixelUNet = PixelUNet()
    objective: Objective = Objective()
    samples: ClassSamples = ClassSamples()

    @model_validator(mode="after")
    def _halves(self) -> Self:
        multiple = 2 ** (len(self.model.channels) - 1)
        if self.data.size % multiple:
            raise ValueError(f"data.size {self.data.size} is no multiple of {multiple}, the halvings of model.channels")
        return self


class GANModel(Strict):
    """Generator and discriminator of t2i.nn.dcgan; the image's side follows from the number of levels."""

    kind: Literal["conditional", "classic"] = "conditional"  # classic: the paper's DCGAN, which knows no classes
    generator: tuple[int, ...] = Field((512, 256, 128, 64), min_length=2)  # channels from 4 x 4 pixels up
    discriminator: tuple[int, ...] = Field((64, 128, 256, 512), min_length=2)  # channels from the images down
    norm: Literal["spectral", "batch", "none"] = "spectral"  # normalisation in the discriminator
    latent: int = Field(128, ge=1)  # numbers of noise


class GANLoss(Strict):
    """The game of the two networks, and what keeps the discriminator from winning it."""

    game: Literal["hinge", "bce", "wgan-gp"] = "hinge"  # the adversarial loss
    gradient_penalty: float = Field(10.0, ge=0)  # weight of the gradient penalty, with wgan-gp
    r1: float = Field(0.0, ge=0)  # weight of R1: half the squared gradient norm at real images
    augment: tuple[Literal["color", "translation", "cutout"], ...] = ()  # DiffAugment, of real and generated images


class NoiseSamples(Strict):
    """The grid of pictures drawn along training: fixed seeds, the classes in turn."""

    count: int = Field(40, ge=1)  # images
    columns: int = Field(10, ge=1)  # of the grid


class DCGANConfig(Judged):
    """`t2i train dcgan`; images are counted as the discriminator sees real ones."""

    family: Literal["dcgan"] = "dcgan"
    data: Data
    label: str | None = None  # the column that holds the class; null: unconditional
    model: GANModel = GANModel()
    loss: GANLoss = GANLoss()
    d_steps: int = Field(1, ge=1)  # steps of the discriminator for one of the generator
    d_rate: float = Field(1.0, gt=0)  # the discriminator's learning rate, relative to optimizer.lr
    samples: NoiseSamples = NoiseSamples()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        model = self.model
        classic = model.kind == "classic"
        for name, levels in (("generator", len(model.generator)), ("discriminator", len(model.discriminator))):
            side = 4 * 2 ** (levels - (not classic))
            if side != self.data.size:
                raise ValueError(f"model.{name}: {levels} levels are for {side} pixels, data.size is {self.data.size}")
        if classic and self.label is not None:
            raise ValueError("model.kind classic knows no classes: leave `label` out, or take kind conditional")
        if self.loss.game == "wgan-gp" and model.norm == "batch":
            raise ValueError("wgan-gp judges every image alone: model.norm batch mixes them, take none or spectral")
        if self.accumulate > 1:
            raise ValueError("accumulate: batch norm needs the batch in one part; lower `batch` instead")
        if self.d_steps > 1 and self.log_every < self.d_steps * self.batch:
            raise ValueError(
                f"log_every: a row has a step of both networks, at least {self.d_steps * self.batch} images"
            )
        return self


class VAEModel(Strict):
    """Arguments of t2i.nn.vae.VAENetwork that we vary."""

    channels: tuple[int, ...] = Field((64, 128, 256), min_length=1)  # of each level; every one halves the side
    latent: int = Field(128, ge=1)  # latent dimensions
    groups: int = Field(8, ge=1)  # groups of the group norms; must divide every entry of channels


class VAELoss(Strict):
    """The variational lower bound, and what one may do to it.

    What is a mean over the batch, calibrated sigma and free bits, is one over a part of it where `accumulate` cuts it.
    """

    sigma: float | None = Field(None, gt=0)  # the decoder's standard deviation, for pixels in [-1, 1]; null: calibrated
    beta: float = Field(1.0, ge=0)  # weight of the KL term; 1 is the bound itself
    free_bits: float = Field(0.0, ge=0)  # bits of each latent dimension, as a mean over the batch, that cost nothing


class VAESamples(Strict):
    """The sheet drawn along training: samples, training images and what comes back of them, ways between seeds."""

    columns: int = Field(10, ge=2)  # of the sheet


class VAEConfig(Judged):
    """`t2i train vae`"""

    family: Literal["vae"] = "vae"
    data: Data
    held_out: Data | None = None  # images that are not trained on, to measure the bound
    measured: int = Field(10_000, ge=1)  # most images that a bound during training is measured on; at the end all
    label: str | None = None  # the column that holds the class; null: unconditional
    model: VAEModel = VAEModel()
    loss: VAELoss = VAELoss()
    samples: VAESamples = VAESamples()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        multiple = 2 ** len(self.model.channels)
        if self.data.size % multiple:
            raise ValueError(f"data.size {self.data.size} is no multiple of {multiple}, the halvings of model.channels")
        if self.held_out is not None and self.held_out.size != self.data.size:
            raise ValueError(f"held_out.size {self.held_out.size} is not data.size {self.data.size}")
        for c in self.model.channels:
            if c % self.model.groups:
                raise ValueError(f"model.channels: {c} is no multiple of {self.model.groups} groups")
        return self


class ClassifierModel(Strict):
    """Arguments of t2i.nn.resnet.ResNet that we vary; the defaults are ResNet-18 for images of 32 pixels."""

    channels: tuple[int, ...] = Field((64, 128, 256, 512), min_length=1)  # of each level
    blocks: int = Field(2, ge=1)  # residual blocks per level
    stem_stride: Literal[1, 2, 4] = 1  # by how much the first convolution shrinks the image


class Augment(Strict):
    """How training images are changed, beside mirroring (data.flip)."""

    shift: int = Field(4, ge=0)  # largest random translation, in pixels
    erase: int = Field(0, ge=0)  # side of a square that is hidden (cutout), in pixels; 0: none


class ClassifierConfig(Run):
    """`t2i train classifier`"""

    family: Literal["classifier"] = "classifier"
    data: Data
    held_out: Data  # images that are not trained on, to measure accuracy
    label: str | tuple[str, ...]  # the column that holds the class; or several, each classified by itself
    model: ClassifierModel = ClassifierModel()
    augment: Augment = Augment()
    smoothing: float = Field(0.1, ge=0, lt=1)  # label smoothing: the probability spread over all classes

    @property
    def questions(self) -> tuple[str, ...]:
        """The columns that hold a class."""
        return (self.label,) if isinstance(self.label, str) else self.label

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.questions or len(set(self.questions)) < len(self.questions):
            raise ValueError("label: a column, or several that differ")
        if self.held_out.size != self.data.size:
            raise ValueError(f"held_out.size {self.held_out.size} is not data.size {self.data.size}")
        if max(self.augment.shift, self.augment.erase) > self.data.size // 2:
            raise ValueError(f"augment: at most half of data.size {self.data.size}")
        return self


FAMILIES: dict[str, type[Run]] = {
    "autoencoder": AutoencoderConfig,
    "text2image": Text2ImageConfig,
    "ddpm": DDPMConfig,
    "dcgan": DCGANConfig,
    "vae": VAEConfig,
    "classifier": ClassifierConfig,
}
