"""The configs of every family: frozen, strict, typed; YAML in, `--set` overrides, YAML out.

Durations and intervals are in images seen, never in steps. Numbers are coerced, since YAML reads `1e-4` as a string.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from t2i.errors import ConfigError

MAX_CONFIG_BYTES = 1_000_000
C = TypeVar("C", bound="Strict")


class Strict(BaseModel):
    """A config section: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Source(Strict):
    """One place images come from.

    path: a parquet file or glob, an image folder, a Hub data set (`hub:owner/name`), or a file of t2i (`t2i:NAME`).
    """

    path: str
    split: str = "train"  # Hub data sets only
    image: str | None = None  # the column that holds the images; none: the only one that does
    repeat: int = Field(1, ge=1)  # how often each image is visited per epoch


class Data(Strict):
    """The table of images a run learns from.

    `path: PATH` stands for a single source, in place of `sources`.
    """

    sources: tuple[Source, ...] = Field(min_length=1)
    size: int = Field(64, ge=8, le=2048)  # pixels per side, after a centre crop to a square
    flip: bool = True  # mirror left-right at random
    bad_images: Literal["stop", "skip"] = "stop"
    # memory: decoded once; mapped: Arrow files on disk, exactly shuffled; stream: parquet files where they lie, roughly
    # shuffled; auto: memory where the pixels take at most 4 GiB, else mapped
    storage: Literal["auto", "memory", "mapped", "stream"] = "auto"
    shuffle_buffer: int = Field(10_000, ge=1)  # stream only: images shuffled at a time, after the order of shards

    @model_validator(mode="before")
    @classmethod
    def _one_path(cls, given: Any) -> Any:
        if not isinstance(given, dict) or "path" not in given:
            return given
        return {key: value for key, value in given.items() if key != "path"} | {"sources": [{"path": given["path"]}]}


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


class Optimizer(Strict):
    """AdamW and its learning rate: linear warm-up, then constant, or falling to zero over the run or at its end."""

    lr: float = Field(gt=0)
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = Field(0.0, ge=0)
    warmup: int = Field(0, ge=0)  # images
    decay: Literal["none", "cosine"] = "none"  # over the whole run
    cooldown: int = Field(0, ge=0)  # images at the end over which the rate falls to zero; with decay none
    clip: float = Field(1.0, gt=0)  # global gradient norm

    @model_validator(mode="after")
    def _one_decay(self) -> Self:
        if self.cooldown and self.decay != "none":
            raise ValueError("give either `decay` or `cooldown`")
        return self


class Run(Strict):
    """What every training run has, whatever it trains."""

    seed: int = Field(0, ge=0, lt=2**63)
    images: int = Field(gt=0)  # duration, in images seen
    batch: int = Field(gt=0)  # global batch, over all processes
    accumulate: int = Field(1, ge=1)  # parts that a process takes its share of the batch in, to save memory
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"  # auto: bf16 where the hardware has it
    optimizer: Optimizer
    ema: int = Field(50_000, ge=0)  # half-life in images; 0 keeps no average
    log_every: int = Field(1_000, gt=0)
    sample_every: int = Field(20_000, gt=0)
    save_every: int = Field(20_000, gt=0)
    keep: int = Field(2, ge=1)  # checkpoints kept
    compile: bool = False  # torch.compile the network
    deterministic: bool = False  # only algorithms that are: bit-exact on a GPU too, and slower
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()  # beside the CSV log


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


def shipped_config(name: str) -> Path:
    """The path of a config that comes with t2i: inside an installed package, beside it in a checkout.

    Raises ConfigError.
    """
    package = Path(__file__).parent
    for folder in (package / "configs", package.parent / "configs"):
        if (path := folder / f"{name}.yaml").is_file():
            return path
    raise ConfigError(f"no config {name!r} comes with t2i")


def find_config(given: str) -> Path:
    """A config's path from what a user wrote: a file, or the name of one that comes with t2i.  Raises ConfigError."""
    if Path(given).suffix in (".yaml", ".yml") or Path(given).exists():
        return Path(given)  # reading it tells what is wrong with it
    try:
        return shipped_config(given)
    except ConfigError:
        known = [path.stem for path in shipped_config("ddpm-smoke").parent.glob("*.yaml")]
        near = difflib.get_close_matches(given, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "give the path of a .yaml file"
        raise ConfigError(f"no config {given!r}: no such file, and none of that name comes with t2i", hint) from None


def shipped_data(path: str) -> str:
    """A source's path; `t2i:NAME` is the data file of that name that stands beside the configs that come with t2i."""
    if not path.startswith("t2i:"):
        return path
    return str(shipped_config("ddpm-smoke").with_name(path.removeprefix("t2i:")))


class _Loader(yaml.SafeLoader):
    """Safe YAML without aliases (alias bombs) and without duplicate keys (the last one would win in silence)."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise ConfigError(f"line {mark.line + 1}: YAML aliases (*name) are not allowed in a config")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool) or key in seen:
                raise ConfigError(f"line {key_node.start_mark.line + 1}: key {key!r} given twice, or not a plain name")
            seen.add(key)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, where: str = "config") -> Any:
    """Plain data from YAML text; tags, aliases and duplicate keys are refused with their line.

    Raises ConfigError.
    """
    if len(text) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{where}: {len(text)} characters; a config has at most {MAX_CONFIG_BYTES}")
    try:
        return yaml.load(text, Loader=_Loader)
    except ConfigError as e:
        raise ConfigError(f"{where}: {e.message}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as e:
        raise ConfigError(f"{where}: not valid YAML: {' '.join(str(e).split())[:300]}") from None


def load_config(path: Path, family: str, overrides: tuple[str, ...] = ()) -> Run:
    """Read a family's config file and apply `key.path=value` overrides (values are YAML).

    Raises ConfigError: missing file, bad YAML, unknown key (with its path and nearest neighbour), bad value.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"cannot read config {path}: {e}", "see configs/ for examples") from None
    data = parse_yaml(text, str(path))
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a config is a mapping of keys to values, got {type(data).__name__}")
    for override in overrides:
        _override(data, override)
    declared = data.get("family", family)
    if declared != family:
        raise ConfigError(f"{path} is a config of family {declared!r}, not {family!r}", f"t2i train {declared} {path}")
    return build_config(FAMILIES[family], data, str(path))


def build_config(kind: type[C], data: dict[str, Any], where: str = "config") -> C:
    """Validate plain data into a config.  Raises ConfigError with every wrong key's path."""
    try:
        return kind.model_validate(data)
    except ValidationError as e:
        lines = [_explain(kind, error) for error in e.errors()]
        raise ConfigError(f"{where}: " + "; ".join(lines)) from None


def dump_config(config: Strict) -> str:
    """The whole config as YAML, defaults included; `load_config` reads it back to an equal config."""
    plain = config.model_dump(mode="json")
    # PyYAML folds U+0085 into spaces, unless everything beyond ASCII is escaped
    readable = "\x85" not in json.dumps(plain, ensure_ascii=False)
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=readable, width=120)


def config_hash(config: Strict) -> str:
    """16 hex digits that change when any value of the config does."""
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def config_difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """{dotted key: (old, new)} of every leaf in which two dumped configs differ."""
    changes: dict[str, tuple[Any, Any]] = {}
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            changes |= config_difference(a, b, f"{prefix}{key}.")
        elif a != b:
            changes[prefix + key] = (a, b)
    return changes


def _override(data: dict[str, Any], override: str) -> None:
    path, equals, value = override.partition("=")
    if not equals or not path:
        raise ConfigError(f"--set {override!r}: expected key=value", "for example --set optimizer.lr=1e-4")
    *parents, last = path.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise ConfigError(f"--set {path}: {parent!r} is a value, not a section")
    data[last] = parse_yaml(value, f"--set {path}")


def _explain(kind: type[Strict], error: Any) -> str:
    """One validation error as `key.path: what is wrong`, with the nearest known key for an unknown one."""
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        section: Any = kind
        for part in error["loc"][:-1]:
            field = section.model_fields.get(part) if hasattr(section, "model_fields") else None
            section = field.annotation if field else None
        known = list(section.model_fields) if hasattr(section, "model_fields") else []
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1, cutoff=0.5)
        return f"unknown key {path!r}" + (
            f", did you mean {near[0]!r}?" if near else f"; known here: {', '.join(known)}"
        )
    message = error["msg"].removeprefix("Value error, ")
    got = "" if error["type"] in ("missing", "value_error") else f", got {error['input']!r:.80}"
    return (f"{path}: " if path else "") + message + got
