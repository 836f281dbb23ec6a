"""`--verify-resume`: show on this machine, with this config, that a resumed run is the uninterrupted one."""

from __future__ import annotations

import shutil
from pathlib import Path

import t2i.training as training
from t2i.config import AutoencoderConfig, Run
from t2i.distributed import processes
from t2i.errors import CheckpointError
from t2i.training.runs.checkpoint import PARTS, load_checkpoint
from t2i.training.runs.run_folder import Launch, RunFolder

STEPS = 4  # before the interruption, and as many after it
NEVER = 2**62


def verify_resume(config: Run, folder: Path, progress: bool = True) -> str:
    """Train 2N images straight, and N, resume, N; compare weights, their average and the optimiser bit for bit.

    folder: where both runs are written, and removed again when they are equal.
    Returns one line of what was compared.  Raises CheckpointError naming the first tensor that differs.
    """
    n = STEPS * config.batch
    changes: dict[str, object] = {
        "images": max(config.images, 2 * n),
        "save_every": NEVER,
        "sample_every": NEVER,
        "log_every": config.batch * getattr(config, "d_steps", 1),
    }
    if "latents" in type(config).model_fields:
        changes["latents"] = getattr(config, "latents", None) or str(folder / "latents")  # encoded once
    if isinstance(config, AutoencoderConfig):  # a late discriminator joins early, and is interrupted too
        joins = min(config.loss.adversarial_from, n // 2)
        changes["loss"] = config.loss.model_copy(update={"adversarial_from": joins})
    settings = config.model_copy(update=changes)
    loop = getattr(training, training.TRAINERS[config.model_dump()["family"]])
    for run, until in (("straight", 2 * n), ("resumed", n), ("resumed", 2 * n)):
        loop(settings, folder / run, Launch(progress=progress, until=until))
    processes().wait_for_everyone()
    straight, resumed = (load_checkpoint(RunFolder(folder / run).saved()[0]) for run in ("straight", "resumed"))
    count = 0
    for part in PARTS:
        for name, tensor in straight.tensors[part].items():
            other = resumed.tensors[part].get(name)
            if other is None or not tensor.equal(other):
                raise CheckpointError(
                    f"a resumed run differs from the uninterrupted one: {part} of {name}, after {2 * n:,} images",
                    f"both runs are in {folder}; on a GPU, --deterministic makes runs equal",
                )
            count += tensor.numel()
    processes().wait_for_everyone()
    if processes().is_main_process:
        shutil.rmtree(folder)
    return f"equal bit for bit: {count:,} numbers after {2 * n:,} images, with and without an interruption at {n:,}"
