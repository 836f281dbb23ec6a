"""Config sections that all families share: data, optimizer, durations."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


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


class Optimizer(Strict):
    """AdamW and its learning rate: linear warm-up, then constant, or falling to zero over the run or at its end."""

    lr: float = Field(gt=0)
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = Field(0.0, ge=0)
    warmup: int = Field(0, ge=0)  # images
    decay: Literal["none", "cosine"] = "none"  # over the whole run
    cooldown: int = Field(0, ge=0)  # images at the end over which the rate falls to zero; with decay none
    clip: float | None = Field(1.0, gt=0)  # global gradient norm; none: as it comes

    @model_validator(mode="after")
    def _one_decay(self) -> Self:
        if self.cooldown and self.decay != "none":
            raise ValueError("give either `decay` or `cooldown`")
        return self


class Evaluate(Strict):
    """Evaluation during training, of images drawn by the EMA weights with random numbers of their own."""

    reference: str  # a file of `t2i eval reference`
    features: str | None = None  # its extractor, where that is a folder of this machine
    every: int = Field(100_000, gt=0)  # images seen
    n: int = Field(1_000, ge=10)  # pictures drawn each time
    seed: int = Field(0, ge=0, lt=2**63)  # of the first; the same each time
    best: Literal[
        "frechet", "kernel", "precision", "recall", "density", "coverage", "classifier_score", "class_accuracy"
    ] = "frechet"  # by which the best weights are kept, as `best/` of the run


class Run(Strict):
    """The config of any training run."""

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


class Judged(Run):
    """The config of a run that can be evaluated during training."""

    evaluate: Evaluate | None = None
