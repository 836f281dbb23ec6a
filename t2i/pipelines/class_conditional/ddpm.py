"""Diffusion in pixels, with or without classes: from a saved U-Net to images (Ho et al. 2020, algorithm 2).

    draw = DDPM.from_pretrained("runs/ddpm-cifar10-10m")
    draw(8, labels=["horse"], seed=0, sampler="dpm++2m", steps=20, guidance=2.0)[0].save("horse.png")

The folder is diffusers' own: `diffusers.DDPMPipeline` draws with an unconditional one and loads the U-Net of any.
The names of the classes are in classes.json. An image is a function of the model, the settings, its class, its seed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from t2i import atomic
from t2i.diffusion.guidance import Denoiser, clipped, denoiser, guided
from t2i.diffusion.samplers import SAMPLERS, sample
from t2i.diffusion.schedule import timestep
from t2i.diffusion.spacing import SPACINGS
from t2i.errors import ModelError, NonFinite, UsageError, one_line
from t2i.imaging import images
from t2i.model_files.locate import ModelFiles, locate
from t2i.model_files.registry import read_json
from t2i.nn.unet import UNet2DModel
from t2i.pipelines.class_conditional.diffusers_scheduler import read_scheduler
from t2i.pipelines.class_conditional.labels import Labels, label_numbers
from t2i.pipelines.class_conditional.protocol import draw_batches
from t2i.pipelines.loading.load import choose_device
from t2i.pipelines.noise import great_circle, make_generators
from t2i.pipelines.settings import limits
from t2i.threads import LOADING

if TYPE_CHECKING:
    from PIL.Image import Image

CLASSES_FILE = "classes.json"
KINDS = ("DDPMPipeline", "DDIMPipeline")
SAMPLER, SPACING, STEPS = "dpm++2m", "trailing", 20
BATCH = 64  # images drawn at once by default


class DDPM:
    """Draws images with a U-Net.

    unet: our U-Net.  scheduler: diffusers' scheduler, which says how the U-Net was trained.
    classes: names of the classes, in the order of their numbers; none for an unconditional model.
    """

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: Any,
        classes: Sequence[str] = (),
        *,
        name: str = "model",
        hash: str | None = None,
    ) -> None:
        """Set up the pipeline; use `from_pretrained` for a saved model.

        name, hash: of the model and of its weights, for records.
        Raises ModelError: a scheduler, or classes, that do not fit.
        """
        self.name, self.hash = name, hash
        self.unet, self.scheduler, self.classes = unet, scheduler, tuple(classes)
        self.schedule, self.predict = read_scheduler(scheduler.config)
        self.clip = bool(scheduler.config.get("clip_sample", True))
        embeddings = unet.config.num_class_embeds or 0
        if embeddings and not classes:
            self.classes = tuple(map(str, range(embeddings)))  # a folder from elsewhere has no names
        if embeddings - len(self.classes) not in (0, 1):
            raise ModelError(f"the U-Net has {embeddings} class embeddings, for {len(self.classes)} classes")
        # The number of the class that stands for "no class"; None where the model has not learned one.
        self.null = len(self.classes) if embeddings > len(self.classes) else None

    @classmethod
    def from_pretrained(
        cls, model: str | Path, *, device: str | None = None, revision: str | None = None, offline: bool = False
    ) -> DDPM:
        """Load a run, a folder in diffusers' format, or a Hub id, in float32.

        device: default CUDA, else MPS, else CPU.  Raises UsageError, ModelUnavailable, ModelError.
        """
        return cls.from_files(locate(str(model), revision=revision, offline=offline), device)

    @classmethod
    def from_files(cls, found: ModelFiles, device: str | None = None) -> DDPM:
        """Load located files.  Raises UsageError, ModelError."""
        if found.kind not in KINDS:
            raise ModelError(f"{found.model.name} is a {found.kind}, not a {KINDS[0]}", "t2i generate draws from text")
        import diffusers

        folder, index = found.path, read_json(found.path / "model_index.json")
        # As diffusers does: a component without a folder of its own is in the pipeline's.
        where = {name: folder / name if (folder / name).is_dir() else folder for name in ("unet", "scheduler")}
        kind = getattr(diffusers, str(index["scheduler"][1]), None)
        if kind is None:
            raise ModelError(f"diffusers {diffusers.__version__} has no scheduler {index['scheduler'][1]!r}")
        try:
            with LOADING:
                unet = UNet2DModel.from_pretrained(where["unet"], use_safetensors=True)
            scheduler = kind.from_pretrained(where["scheduler"])
        except ModelError:
            raise
        except Exception as e:
            reason = one_line(e, 300)
            raise ModelError(f"cannot load {found.model.name}: {type(e).__name__}: {reason}") from e
        names = folder / CLASSES_FILE
        classes = read_json(names).get("classes", ()) if names.exists() else ()
        name, hash = found.model.name, found.hash()
        return cls(unet.to(choose_device(device)).eval(), scheduler, classes, name=name, hash=hash)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model in diffusers' format."""
        import diffusers

        with torch.device("meta"):
            unet = diffusers.UNet2DModel.from_config(self.unet.config)
        unet.load_state_dict({k: v.cpu() for k, v in self.unet.state_dict().items()}, assign=True)
        diffusers.DDPMPipeline(unet, self.scheduler).save_pretrained(folder)
        if self.classes:
            text = json.dumps({"classes": self.classes}, ensure_ascii=False, indent=1)
            atomic.write(text.encode(), Path(folder) / CLASSES_FILE, overwrite=True)

    def __call__(
        self,
        batch: int = 1,
        labels: Labels = None,
        seed: int = 0,
        sampler: str | None = None,
        steps: int | None = None,
        guidance: float = 1.0,
        *,
        spacing: str | None = None,
        batch_size: int = BATCH,
    ) -> list[Image]:
        """Draw `batch` images; image k has seed + k, whatever the batch size.

        labels: names or numbers of classes, one for all or a list that is gone through in turn; None: all in turn.
        sampler: a key of SAMPLERS, default dpm++2m.  steps: default 20.  spacing: a key of SPACINGS, default trailing.
        guidance: 1 or less is off.  batch_size: how many are drawn at once.
        Raises UsageError, NonFinite.
        """
        settings = {"sampler": sampler, "steps": steps, "guidance": guidance, "spacing": spacing}
        return draw_batches(self, batch, labels, seed, batch_size, **settings)

    def settings(self, **given: Any) -> dict[str, Any]:
        """Complete the settings of `draw` with defaults, and check them.

        Raises UsageError: out of range, or unknown.
        """
        settings: dict[str, Any] = {"sampler": SAMPLER, "steps": STEPS, "guidance": 1.0, "spacing": SPACING} | given
        _choose("sampler", settings["sampler"], SAMPLERS)
        limits.check_guidance(settings["guidance"])
        self._times(settings["spacing"], settings["steps"])
        return settings

    def record(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a recipe that depend on the settings."""
        return {
            "steps": settings["steps"],
            "sampler": settings["sampler"],
            "schedule_type": settings["spacing"],
            "scheduler": settings["sampler"],
            "scheduler_config": dict(self.scheduler.config),
            "guidance": settings["guidance"],
            "device": str(self.unet.device),
        }

    def draw(self, seeds: Sequence[int], labels: Tensor | None, **settings: Any) -> list[Image]:
        """Draw one batch: the end of a `walk`, as images."""
        *_, (_, x, _) = self.walk(seeds, labels, **settings)
        return images.from_tensor(x.cpu())

    def interpolate(
        self, first: int, last: int, count: int = 10, label: str | int | None = None, **settings: Any
    ) -> list[Image]:
        """Draw `count` images on the way from one seed to another, all of one class: by default the first.

        settings: as for `walk`; the sampler must draw no fresh noise (Song et al. 2021, section 5.3).
        Raises UsageError: one seed twice, no such class, such a sampler.
        """
        a, b = (self._noise(make_generators([seed]))[0].cpu() for seed in limits.check_ends(first, last))
        labels = self.label_numbers(count, 0 if label is None and self.classes else label)

        def fresh() -> Tensor:
            raise UsageError(
                "interpolate: this sampler draws fresh noise in every step, which leaves no path between images",
                "choose ddim, dpm++2m, heun or euler",
            )

        way = great_circle(a, b, count).to(self.unet.device)
        drawn: list[Image] = []
        for part in torch.arange(count).split(BATCH):
            *_, (_, x, _) = self._walk(way[part], fresh, None if labels is None else labels[part], **settings)
            drawn += images.from_tensor(x.cpu())
        return drawn

    def walk(
        self,
        seeds: Sequence[int],
        labels: Tensor | None = None,
        sampler: str | None = None,
        steps: int | None = None,
        guidance: float = 1.0,
        spacing: str | None = None,
    ) -> Iterator[tuple[float, Tensor, Tensor]]:
        """Sample one batch step by step: yields (s, x_s, x0), the time, the images there, and the prediction used.

        seeds: one per image.  labels: (B,) int64, for models that have classes.
        Raises UsageError: an unknown setting; NonFinite: the network returned NaN or infinity.
        """
        generators = make_generators(seeds)

        def noise() -> Tensor:
            return self._noise(generators)

        return self._walk(noise(), noise, labels, sampler, steps, guidance, spacing)

    @torch.inference_mode()
    def _walk(
        self,
        x_T: Tensor,
        noise: Callable[[], Tensor],
        labels: Tensor | None,
        sampler: str | None = None,
        steps: int | None = None,
        guidance: float = 1.0,
        spacing: str | None = None,
    ) -> Iterator[tuple[float, Tensor, Tensor]]:
        step = _choose("sampler", sampler or SAMPLER, SAMPLERS)
        times = self._times(spacing or SPACING, STEPS if steps is None else steps)
        denoise = self._denoiser(labels, guidance)
        for s, x_s, x0 in sample(denoise, x_T, times, self.schedule, step, noise):
            if not x_s.isfinite().all():
                raise NonFinite(f"non-finite image at time {s:g}", "try another sampler, more steps, or less guidance")
            yield s, x_s, x0

    def label_numbers(self, batch: int, labels: Labels) -> Tensor | None:
        """Return class numbers of a batch, (B,) int64; None for an unconditional model.  Raises UsageError."""
        return label_numbers(self.classes, batch, labels)

    def _noise(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Draw noise (B, C, H, W), one image from each generator, on the U-Net's device."""
        size, channels = self.unet.config.sample_size, self.unet.config.in_channels
        shape = (channels, size, size) if isinstance(size, int) else (channels, *size)
        # The dtype is named: the default one belongs to the process, and other threads change it while they load.
        noise = [torch.randn(shape, generator=generator, dtype=torch.float32) for generator in generators]
        return torch.stack(noise).to(self.unet.device)

    def _times(self, spacing: str, steps: int) -> list[float]:
        most = self.schedule.steps or 1000
        if not 1 <= steps <= most:
            raise UsageError(f"steps: got {steps}, allowed 1 to {most}")
        make = _choose("spacing", spacing, SPACINGS)
        try:
            return make(self.schedule, steps)
        except ValueError as e:
            raise UsageError(f"spacing: {e}", "`spacing=trailing` fits every model") from None

    def _denoiser(self, labels: Tensor | None, guidance: float) -> Denoiser:
        def network(x_t: Tensor, t: Tensor, *condition: Tensor) -> Tensor:
            # float32: not every device has float64, and the network computes in no more
            return self.unet(x_t, timestep(t, self.schedule).to(x_t.device, torch.float32), *condition)

        denoise: Any = denoiser(network, self.schedule, self.predict)
        if labels is not None:
            labels = labels.to(self.unet.device)
            if guidance > 1 and self.null is None:
                raise UsageError(
                    f"guidance {guidance:g}: this model has learned no null class", "`guidance=1` turns it off"
                )
            null = torch.full_like(labels, self.null or 0)
            denoise = guided(denoise, labels, null, guidance)
        return clipped(denoise) if self.clip else denoise


def _choose(what: str, name: str, choices: dict[str, Any]) -> Any:
    if name not in choices:
        raise UsageError(f"{what}: got {name[:40]!r}, allowed are {', '.join(choices)}")
    return choices[name]
