"""Config sections that all families share: data, optimizer, durations."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Strict(BaseModel):
    """A config section: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Source(Strict):
    """One place images come from.

    path: a parquet file or glob, an image folder, a Hub data set (`hub:owner/name`), or a file that comes with t2i
    (`t2i:NAME`).
    """

    path: str
    split: str = "train"  # for a Hub data set
    image: str | None = None  # the column that holds the images; null: the only one that does
    repeat: int = Field(1, ge=1)  # how often each image is visited per epoch


class Data(Strict):
    """The table of images a run learns from.

    `path: PATH` stands for a single source, in place of `sources`.
    """

    sources: tuple[Source, ...] = Field(min_length=1)
    size: int = Field(64, ge=8, le=2048)  # pixels per side, after a centre crop to a square
    flip: bool = True  # mirror left-right at random
    bad_images: Literal["stop", "skip"] = "stop"  # when an image cannot be decoded
    # memory: decoded once; mapped: Arrow files on disk, shuffled exactly; stream: parquet files where they are,
    # shuffled approximately; auto: memory up to 4 GiB of pixels, else mapped
    storage: Literal["auto", "memory", "mapped", "stream"] = "auto"
    shuffle_buffer: int = Field(10_000, ge=1)  # stream only: images shuffled at a time, after the shards

    @model_validator(mode="before")
    @classmethod
    def _one_path(cls, given: Any) -> Any:
        if not isinstance(given, dict) or "path" not in given:
            return given
        return {key: value for key, value in given.items() if key != "path"} | {"sources": [{"path": given["path"]}]}


class Optimizer(Strict):
    """AdamW and its learning rate: linear warm-up, then constant, or falling to zero over the run or at its end."""

    lr: float = Field(gt=0)  # peak learning rate
    betas: tuple[float, float] = (0.9, 0.99)  # of AdamW
    weight_decay: float = Field(0.0, ge=0)  # of AdamW
    warmup: int = Field(0, ge=0)  # images over which the learning rate rises from zero
    decay: Literal["none", "cosine"] = "none"  # cosine: the learning rate falls to zero over the whole run
    cooldown: int = Field(0, ge=0)  # images at the end over which the learning rate falls to zero; needs decay none
    clip: float | None = Field(1.0, gt=0)  # largest global gradient norm; null: no clipping

    @model_validator(mode="after")
    def _one_decay(self) -> Self:
        if self.cooldown and self.decay != "none":
            raise ValueError("give either `decay` or `cooldown`")
        return self


class Evaluate(Strict):
    """Evaluation during training, of images drawn by the EMA weights with random numbers of their own."""

    reference: str  # the file that `t2i eval reference` wrote
    features: str | None = None  # its extractor, if that is a folder on this machine
    every: int = Field(100_000, gt=0)  # images between evaluations
    n: int = Field(1_000, ge=10)  # images drawn for an evaluation
    seed: int = Field(0, ge=0, lt=2**63)  # of the first image; the same in every evaluation
    best: Literal[
        "frechet", "kernel", "precision", "recall", "density", "coverage", "classifier_score", "class_accuracy"
    ] = "frechet"  # the metric by which the best weights are kept, in `best/` of the run


class Run(Strict):
    """The config of any training run."""

    seed: int = Field(0, ge=0, lt=2**63)  # of weights, order, noise and everything else that is random
    images: int = Field(gt=0)  # length of the run, in images seen
    batch: int = Field(gt=0)  # global batch, over all processes
    accumulate: int = Field(1, ge=1)  # gradient accumulation: into how many parts a process splits its batch
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"  # mixed precision; auto: bf16 where the hardware has it
    optimizer: Optimizer
    ema: int = Field(50_000, ge=0)  # half-life of the EMA weights, in images; 0: no EMA
    log_every: int = Field(1_000, gt=0)  # images between rows of log.csv
    sample_every: int = Field(20_000, gt=0)  # images between sample sheets
    save_every: int = Field(20_000, gt=0)  # images between checkpoints
    keep: int = Field(2, ge=1)  # checkpoints kept, the newest
    compile: bool = False  # torch.compile the network
    deterministic: bool = False  # deterministic algorithms only: bit-exact on a GPU too, and slower
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()  # log there too, besides log.csv


class Judged(Run):
    """The config of a run that can be evaluated during training."""

    evaluate: Evaluate | None = None
