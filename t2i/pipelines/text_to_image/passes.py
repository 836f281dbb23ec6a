"""Passes from images: image-to-image, inpainting, a second pass, each also guided by ControlNets.

They are diffusers' other pipelines over the same loaded networks, which cost no memory, made when first needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from t2i.errors import UsageError
from t2i.imaging.images import from_tensor, to_tensor
from t2i.pipelines.noise import draw_in_float32, make_generators
from t2i.pipelines.settings.edit import Control, ImageInputs
from t2i.pipelines.settings.image_input import ImageInput, cover
from t2i.pipelines.settings.settings import PipelineTraits, Settings, call_parameters, parameters_of
from t2i.pipelines.text_to_image.call import watch_steps
from t2i.pipelines.text_to_image.controlnet import MeanEncoder, check_control, load_control, locate_control

if TYPE_CHECKING:
    import torch

PassResult = tuple["torch.Tensor", list[bool]]  # (B, 3, H, W) in [-1, 1]; which of them the safety checker has blanked

Call = Callable[[Any, tuple[int, int], Mapping[str, Any]], PassResult]  # (pipeline, (width, height), arguments)

# task: (diffusers' table of pipelines, the class that makes them, arguments that such a pipeline must have)
TASKS: dict[str, tuple[str, str, frozenset[str]]] = {
    "text-to-image": ("AUTO_TEXT2IMAGE_PIPELINES_MAPPING", "AutoPipelineForText2Image", frozenset()),
    "image-to-image": (
        "AUTO_IMAGE2IMAGE_PIPELINES_MAPPING",
        "AutoPipelineForImage2Image",
        frozenset({"image", "strength"}),
    ),
    "inpainting": (
        "AUTO_INPAINT_PIPELINES_MAPPING",
        "AutoPipelineForInpainting",
        frozenset({"image", "mask_image", "strength"}),
    ),
}
LANCZOS = Image.Resampling.LANCZOS
GUIDED = "-controlnet"  # what diffusers adds to a family's name
OFFLOADING = ("_all_hooks", "_offload_device", "_offload_gpu_id")  # what a pipeline knows of its networks' hooks


class ImagePasses:
    """Draws from images with the networks of a text-to-image pipeline.

    pipe: the pipeline, with whose scheduler it draws.  offline: find ControlNets without a network.
    """

    def __init__(self, pipe: Any, offline: bool = False) -> None:
        self.offline = offline
        self._nets: dict[str, Any] = {}
        self._pipes: dict[tuple[str, tuple[str, ...]], Any] = {}
        self._located: dict[str, tuple[Path, str]] = {}  # ControlNets that were checked: {net: (folder, class)}
        self.adopt(pipe)

    def adopt(self, pipe: Any) -> None:
        """Draw with the networks of this pipeline from now on, and release those before; None: with none for now."""
        self.pipe = pipe
        self._nets.clear()
        self._pipes.clear()

    def check(self, edit: ImageInputs, traits: PipelineTraits) -> None:
        """Check what image inputs need, before anything is loaded or drawn.

        traits: of the pipeline.
        Raises UsageError: not available for this model's family; and as `locate_control` and `check_control` do.
        """
        if edit.mask is not None:
            _mask(edit.mask, edit.mask.size)
        if not edit:
            return
        for task in _passes(edit):
            if task != "text-to-image" or edit.controls:  # that one is the pipeline itself
                check_task(family_named(traits.kind), task, guided=bool(edit.controls))
        for one in edit.controls:
            self._locate(one.net, traits)

    def draw(
        self,
        call: Call,
        options: Mapping[str, Any],
        settings: Settings,
        report: Callable[[float], None],
        suggestion: str,
    ) -> PassResult:
        """Draw one batch, in one or two passes.

        call: draws one pass.  options: arguments for the text-to-image pipeline.
        report: takes the part that is done.  suggestion: of NonFinite.
        """

        def watch(start: float, end: float) -> Callable[..., Any]:
            return watch_steps(lambda done: report(start + (end - start) * done), suggestion)

        edit, size = settings.edit, (settings.width, settings.height)
        tasks = _passes(edit)
        for task in tasks:  # load everything before the first pass is drawn
            self._pipeline(task, edit.controls)
        part = 1 / len(tasks)
        images = [_crop(edit.image, size)] * len(options["generator"]) if edit.image else []
        mask = _mask(edit.mask, size) if edit.mask else None
        own = self._pass(tasks[0], edit, size, images, mask, edit.known_strength())
        x, blanked = self._call(call, options, own | {"callback_on_step_end": watch(0.0, part)}, tasks[0], edit, size)
        if mask is not None:
            x = _paste(x, images[0], mask)
        if edit.upscale is None:
            return x, blanked
        finite = x.isfinite().flatten(1).all(1)
        images = [cover(image, settings.final, LANCZOS) for image in from_tensor(x.nan_to_num(0.0, 0.0, 0.0))]
        own = self._pass(tasks[1], edit, settings.final, images, None, edit.upscale.strength)
        x, black = self._call(
            call, options, own | {"callback_on_step_end": watch(part, 1.0)}, tasks[1], edit, settings.final
        )
        x[~finite] = float("nan")  # zeros went into the second pass in their place
        return x, [first or second for first, second in zip(blanked, black, strict=True)]

    def _pass(
        self,
        task: str,
        edit: ImageInputs,
        size: tuple[int, int],
        images: Sequence[Image.Image],
        mask: Image.Image | None,
        strength: float,
    ) -> dict[str, Any]:
        """Return the arguments of one pass, besides prompts."""
        options: dict[str, Any] = {"width": size[0], "height": size[1]}
        if images:
            options |= {"image": list(images), "strength": strength, "latents": None}
        if mask is not None:
            options["mask_image"] = [mask] * len(images)
        if edit.controls:
            maps = [_crop(one.image_input, size) for one in edit.controls]
            scales = [one.scale for one in edit.controls]
            known = call_parameters(self._pipeline(task, edit.controls))
            options["control_image" if "control_image" in known else "image"] = maps if len(maps) > 1 else maps[0]
            options["controlnet_conditioning_scale"] = scales if len(scales) > 1 else scales[0]
        return options

    def _call(
        self,
        call: Call,
        options: Mapping[str, Any],
        more: Mapping[str, Any],
        task: str,
        edit: ImageInputs,
        size: tuple[int, int],
    ) -> PassResult:
        chosen = {**options, **more}
        if "strength" in more:  # fresh ones: noise for a text-to-image pipeline may have been drawn from these
            chosen["generator"] = make_generators([generator.initial_seed() for generator in options["generator"]])
        pipe = self._pipeline(task, edit.controls)
        return call(pipe, size, {key: value for key, value in chosen.items() if value is not None})

    def _pipeline(self, task: str, controls: Sequence[Control]) -> Any:
        """Return the pipeline of a task, guided by these ControlNets."""
        if task == "text-to-image" and not controls:
            return self.pipe
        key = task, tuple(one.net for one in controls)
        if key not in self._pipes:
            self._pipes[key] = self._make(task, controls)
        return self._pipes[key]

    def _make(self, task: str, controls: Sequence[Control]) -> Any:
        import diffusers

        extra: dict[str, Any] = {}
        if controls:
            for one in controls:
                if one.net not in self._nets:
                    self._nets[one.net] = load_control(one.net, *self._locate(one.net), self.pipe)
            nets = [self._nets[one.net] for one in controls]
            extra["controlnet"] = nets if len(nets) > 1 else nets[0]
        pipe = getattr(diffusers, TASKS[task][1]).from_pipe(self.pipe, **extra)
        pipe.set_progress_bar_config(disable=True)
        for name in OFFLOADING:
            if hasattr(self.pipe, name):
                setattr(pipe, name, getattr(self.pipe, name))
        if controls and family_named(type(self.pipe).__name__) == "stable-diffusion-3":
            pipe.vae = MeanEncoder(pipe.vae)
        for name in ("prepare_latents", "prepare_mask_latents"):
            if hasattr(pipe, name):
                setattr(pipe, name, draw_in_float32(getattr(pipe, name)))
        return pipe

    def _locate(self, net: str, traits: PipelineTraits | None = None) -> tuple[Path, str]:
        """Return the folder and the class of a ControlNet, which is checked once."""
        if net not in self._located:
            traits = traits or PipelineTraits.of(self.pipe)
            folder, kind = locate_control(net, family_named(traits.kind), self.offline)
            check_control(net, folder, kind, traits.network)
            self._located[net] = folder, kind
        return self._located[net]


def family_named(kind: str) -> str:
    """Return diffusers' own name of a text-to-image pipeline's family, by its class; empty where it has none."""
    from diffusers.pipelines import auto_pipeline

    table = auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING
    return next((key for key, one in table.items() if one.__name__ == kind), "")


def check_task(family: str, task: str, guided: bool) -> None:
    """Raise UsageError, naming the available tasks, where diffusers has no pipeline for this one."""
    if not _has(family, task, guided):
        there = [words for one in TASKS for words in (one, f"{one} with `control`") if _has(family, one, words != one)]
        wanted = f"{task} with `control`" if guided else task
        raise UsageError(f"this model ({family or 'of no family'}) has no {wanted}", f"it has {', '.join(there)}")


def _has(family: str, task: str, guided: bool) -> bool:
    from diffusers.pipelines import auto_pipeline

    table, _, needed = TASKS[task]
    kind = getattr(auto_pipeline, table).get(family + GUIDED if guided else family)
    if kind is None:
        return False
    takes = set(parameters_of(kind))
    return needed <= takes and (not guided or task == "text-to-image" or "control_image" in takes)


def _passes(edit: ImageInputs) -> list[str]:
    """Return the tasks of image inputs, in order."""
    first = "inpainting" if edit.mask else "image-to-image" if edit.image else "text-to-image"
    return [first] if edit.upscale is None else [first, "image-to-image"]


def _crop(image_input: ImageInput, size: tuple[int, int]) -> Image.Image:
    return cover(image_input.open(), size, LANCZOS)


def _mask(image_input: ImageInput, size: tuple[int, int]) -> Image.Image:
    """Return the mask in black and white: white, from middle grey on, is repainted.  Raises UsageError: all black."""
    grey = cover(image_input.open(), size, Image.Resampling.NEAREST).convert("L")
    mask = grey.point(lambda value: 255 if value > 127 else 0)
    if mask.getbbox() is None:
        raise UsageError(
            f"mask {image_input.name}: black all over, so nothing would be repainted", "white is repainted"
        )
    return mask


def _paste(x: torch.Tensor, image: Image.Image, mask: Image.Image) -> torch.Tensor:
    """Take x, (B, 3, H, W) in [-1, 1], where the mask is white, and exactly the image elsewhere."""
    keep = to_tensor([mask])[:, :1] < 0
    painted = x.cpu().where(~keep, to_tensor([image]))
    finite = x.cpu().isfinite().flatten(1).all(1)
    painted[~finite] = float("nan")
    return painted
