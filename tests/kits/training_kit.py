"""Tiny data, configs and child processes for the tests of training: a run of eight steps takes about a second."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from t2i.config import (
    FAMILIES,
    AutoencoderConfig,
    ClassifierConfig,
    DCGANConfig,
    DDPMConfig,
    Text2ImageConfig,
    VAEConfig,
    build_config,
    dump_config,
)

SIZE = 16
ROWS = [(style, object_) for style in ("photo", "sketch") for object_ in ("horse", "elephant", "house", "dog", "")]
COMMON: dict[str, Any] = {
    "seed": 7,
    "images": 32,  # eight steps; an epoch has ten visits, so steps cross epochs
    "batch": 4,
    "precision": "no",
    "ema": 8,
    "log_every": 4,
    "sample_every": 16,
    "save_every": 12,
    "keep": 9,
}
AUTOENCODER: dict[str, Any] = {
    "model": {"channels": [8, 16], "groups": 4},
    "optimizer": {"lr": 1e-3, "warmup": 8},
    "loss": {"gradient": 0.5, "ssim": 0.1},
}
TEXT2IMAGE: dict[str, Any] = {
    "captions": {
        "by": "style",
        "templates": {
            "photo": ["a photo of {a object}", "{a object}, photo", "a photo"],
            "sketch": ["a sketch of {a object}", "a sketch"],
        },
        "drop": 0.2,
    },
    "text_encoder": {"vocabulary": 620, "tokens": 8, "width": 16, "layers": 1, "heads": 2},
    "unet": {"channels": [32, 32], "attention": [False, True], "head_size": 16, "groups": 8},
    "optimizer": {"lr": 1e-3, "warmup": 8},
    "samples": {"prompts": ["a photo of a horse", "a sketch"], "steps": 1, "guidance": 2.0, "columns": 2},
}
DDPM: dict[str, Any] = {
    "model": {"channels": [16, 16], "attention": [False, True], "layers": 1, "groups": 4},
    "optimizer": {"lr": 1e-3, "warmup": 8},
    "samples": {"count": 4, "columns": 2, "steps": 2},
}
DCGAN: dict[str, Any] = {
    "model": {"generator": [16, 8, 8], "discriminator": [8, 8, 16], "latent": 8},
    "loss": {"augment": ["color", "translation", "cutout"]},
    "optimizer": {"lr": 1e-3, "warmup": 8, "betas": [0.5, 0.999]},
    "samples": {"count": 4, "columns": 2},
}
CLASSIFIER: dict[str, Any] = {
    "held_out": {"size": SIZE, "sources": [{"path": "t2i:shapes.parquet"}]},
    "label": "shape",
    "model": {"channels": [8, 16], "blocks": 1},
    "augment": {"shift": 2, "erase": 4},
    "optimizer": {"lr": 1e-3, "warmup": 8},
}
VAE: dict[str, Any] = {
    "model": {"channels": [8, 16], "latent": 6, "groups": 4},
    "optimizer": {"lr": 1e-3, "warmup": 8},
    "samples": {"columns": 3},
}
SHAPES = Path(__file__).parents[2] / "configs" / "shapes.parquet"

ROOT = Path(__file__).parents[2]


def make_images(folder: Path, count: int = len(ROWS)) -> Path:
    """An image folder: smooth pictures that differ, not symmetric, with columns style and object."""
    folder.mkdir(parents=True)
    lines = []
    for k in range(count):
        image = Image.new("RGB", (SIZE, SIZE))
        image.putdata([_colour(k, x, y) for y in range(SIZE) for x in range(SIZE)])
        image.save(folder / f"{k:02d}.png")
        style, object_ = ROWS[k % len(ROWS)]
        lines.append(json.dumps({"file_name": f"{k:02d}.png", "style": style, "object": object_}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def _colour(k: int, x: int, y: int) -> tuple[int, int, int]:
    return (16 * x * (k % 3 + 1) // 3 % 256, (16 * y + 25 * k) % 256, (255 if (x - k) ** 2 + (y - 8) ** 2 < 16 else 40))


TRAINED = ["autoencoder", "dcgan", "ddpm", "text2image", "vae"]  # the families that the tests of all of them go through


def autoencoder_config(data: Path, **changes: Any) -> AutoencoderConfig:
    """changes: {dotted_key_with_two_underscores: value}; a mapping changes only the keys it has."""
    config = _build("autoencoder", AUTOENCODER | {"data": _data(data)}, changes)
    assert isinstance(config, AutoencoderConfig)
    return config


def text2image_config(data: Path, autoencoder: Path, **changes: Any) -> Text2ImageConfig:
    config = _build("text2image", TEXT2IMAGE | {"data": _data(data), "autoencoder": str(autoencoder)}, changes)
    assert isinstance(config, Text2ImageConfig)
    return config


def ddpm_config(data: Path = SHAPES, **changes: Any) -> DDPMConfig:
    label = "shape" if data == SHAPES else None
    config = _build("ddpm", DDPM | {"data": _data(data), "label": label}, changes)
    assert isinstance(config, DDPMConfig)
    return config


def dcgan_config(data: Path = SHAPES, **changes: Any) -> DCGANConfig:
    label = "shape" if data == SHAPES else None
    config = _build("dcgan", DCGAN | {"data": _data(data), "label": label}, changes)
    assert isinstance(config, DCGANConfig)
    return config


def classifier_config(data: Path = SHAPES, **changes: Any) -> ClassifierConfig:
    config = _build("classifier", CLASSIFIER | {"data": _data(data)}, changes)
    assert isinstance(config, ClassifierConfig)
    return config


def vae_config(data: Path = SHAPES, **changes: Any) -> VAEConfig:
    label = "shape" if data == SHAPES else None
    config = _build("vae", VAE | {"data": _data(data), "label": label}, changes)
    assert isinstance(config, VAEConfig)
    return config


def save_autoencoder(folder: Path, seed: int = 0) -> Path:
    """An untrained autoencoder in diffusers' format: all that training in its latents needs."""
    from t2i.config import AutoencoderModel
    from t2i.training.families.autoencoder import build_autoencoder

    build_autoencoder(AutoencoderModel(**AUTOENCODER["model"]), SIZE, seed).save_pretrained(folder)
    return folder


def makers_over(folder: Path) -> dict[str, Callable[..., Any]]:
    """Family -> what makes a config of it, with changes; all over the same ten images, which are made in the folder."""
    data, vae = make_images(folder / "images"), save_autoencoder(folder / "vae")
    return {
        "autoencoder": lambda **changes: autoencoder_config(data, **changes),
        "dcgan": lambda **changes: dcgan_config(data, **changes),
        "ddpm": lambda **changes: ddpm_config(data, **changes),
        "text2image": lambda **changes: text2image_config(data, vae, **changes),
        "vae": lambda **changes: vae_config(data, **changes),
    }


def train(config: Any, run: Path, **options: Any) -> Path:
    """The loop of the config's family, without bars."""
    import t2i.training
    from t2i.training.runs.run_folder import Launch

    loop = getattr(t2i.training, t2i.training.TRAINERS[config.family])
    return Path(loop(config, run, Launch(progress=False, **options)))


def read_log(run: Path) -> list[dict[str, float]]:
    """The rows of a run's log, without empty cells, and without the only number that may differ between equal runs."""
    with (run / "log.csv").open(newline="") as f:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(f)]
    for row in rows:
        del row["images_per_second"]
    return rows


def fingerprint(run: Path) -> dict[str, Any]:
    """Return what two equal runs must share bit for bit: newest checkpoint, log, exported weights."""
    from t2i.atomic import file_hash
    from t2i.training.runs.checkpoint import load_checkpoint, tensors_hash
    from t2i.training.runs.run_folder import RunFolder

    checkpoint = load_checkpoint(RunFolder(run).saved()[0])
    assert all(len(part) > 10 for part in checkpoint.tensors.values())
    exported = sorted((run / "export").rglob("*.safetensors"))
    assert exported
    return {
        **{part: tensors_hash(tensors.items()) for part, tensors in checkpoint.tensors.items()},
        "state": checkpoint.state,
        "log": read_log(run),
        "export": {str(path.relative_to(run)): file_hash(path) for path in exported},
    }


def _data(folder: Path) -> dict[str, Any]:
    return {"size": SIZE, "sources": [{"path": str(folder)}]}


def _build(family: str, special: dict[str, Any], changes: dict[str, Any]) -> Any:
    plain: dict[str, Any] = json.loads(json.dumps(COMMON | special))
    for key, value in changes.items():
        *parents, last = key.split("__")
        section = plain
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = section.get(last, {}) | value if isinstance(value, dict) else value
    return build_config(FAMILIES[family], plain)


# Child processes that die or run into limits. They are forked from a server that has the libraries imported already, so
# that each starts in a blink; each function below runs in a child.


PRELOADED = [
    "t2i.training.families.autoencoder",
    "t2i.training.families.classifier",
    "t2i.training.families.dcgan",
    "t2i.training.families.ddpm",
    "t2i.training.families.text2image",
    "t2i.training.families.vae",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "diffusers.schedulers.scheduling_dpmsolver_multistep",
    "transformers.models.clip.modeling_clip",
]


@lru_cache(maxsize=1)
def _server() -> Any:
    import multiprocessing

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def in_child(function: Callable[..., None], *args: Any) -> int:
    """Run a function of this module in a child process.  Returns its exit code, or minus the signal that killed it."""
    child = _server().Process(target=function, args=args)
    child.start()
    child.join(500)
    assert child.exitcode is not None, "the child hangs"
    return int(child.exitcode)


def child_killed_at_sync(config: Any, run: Path, checkpoint: str, point: str) -> None:
    """Train, and die by SIGKILL when `point`, a path in the run folder, is synced and `checkpoint` has been begun."""
    from t2i.training.runs import checkpoint as module

    sync = module._sync

    def die(path: Path) -> None:
        if path == run / point and [*run.glob(f"checkpoints/{checkpoint}*")]:
            os.kill(os.getpid(), signal.SIGKILL)
        sync(path)

    module._sync = die
    train(config, run)


def child_killed_at_prune(config: Any, run: Path) -> None:
    """Train, and die by SIGKILL when an old checkpoint is to be removed."""
    from types import SimpleNamespace

    from t2i.training.runs import run_folder as module

    module.shutil = SimpleNamespace(rmtree=lambda _: os.kill(os.getpid(), signal.SIGKILL))  # type: ignore[assignment]
    train(config, run)


def child_with_small_disk(config: Any, run: Path, file_size: int, said: Path) -> None:
    """Go on with a run where no file may grow beyond `file_size` bytes; what is raised goes to the file `said`."""
    import resource

    from t2i.errors import T2IError

    resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    try:
        train(config, run)
    except T2IError as e:
        said.write_text(f"{type(e).__name__}\n{e}")


def write_config(config: Any, path: Path) -> Path:
    """A config as the file a user has."""
    path.write_text(dump_config(config), encoding="utf-8")
    return path


def launch(
    processes: int,
    config: Path,
    run: Path,
    *options: str,
    family: str = "ddpm",
    driver: Path | None = None,
    code: int = 0,
) -> str:
    """`t2i train` under torchrun, on CPUs, or a driver with the same arguments; all that is said."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    program = ["--", str(driver)] if driver else ["-m", "--", "t2i"]
    call = ["train", family, str(config), "--run", str(run), "--quiet", *options]
    env = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, *program, *call], env=env, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr
