"""The Python door: `t2i.load`.

from t2i import load

draw = load("mini")
pictures = draw("a horse in Van Gogh style", seed=7, num_images=4)  # seeds 7, 8, 9, 10
pictures[0].save("horse.png")  # the file says how it was made, as does pictures[0].recipe
pictures  # in a notebook: one sheet of all
"""

from __future__ import annotations

import secrets
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from t2i.errors import UsageError
from t2i.pipelines.adapters.specs import Adapters, Specs
from t2i.pipelines.loading.plan import DeviceOptions
from t2i.pipelines.prompts.dynamic_prompts import Wildcards, resolve, resolve_negative
from t2i.pipelines.settings.edit import Control, Upscale, make_image_inputs
from t2i.pipelines.settings.limits import check_image_count
from t2i.pipelines.settings.settings import Job
from t2i.pipelines.text_to_image.pictures import Picture, Pictures
from t2i.pipelines.text_to_image.pipeline import Progress, TextToImage

if TYPE_CHECKING:
    from PIL.Image import Image


def load(
    model: str | Path = "mini",
    *,
    device: str | None = None,
    dtype: str | None = None,
    offline: bool = False,
    revision: str | None = None,
    scheduler: str | None = None,
    lora: Specs = (),
    embedding: Specs = (),
    ip_adapter: Specs = (),
    offload: str | None = None,
    quantize: int | None = None,
    tiling: bool | None = None,
    compile: bool = False,
    auto_retry: bool = False,
    deterministic: bool = False,
    safety: bool = True,
    cache: str | None = None,
) -> Model:
    """Load a text-to-image model: a name of the zoo, a pipeline or run folder, a Hub id, a .safetensors file.

    device, dtype: default: what is best here.
    offline: do not use the network.  revision: of a model on the Hub.  scheduler: default the model's own.
    lora, embedding, ip_adapter: one, or several: "style.safetensors:0.8", "PATH:TOKEN", "PATH:IMAGE:SCALE", as on the
    command line; `draw.model.attached.lines` tells what of them was used, and what fitted nothing is a warning.
    offload ("none", "model", "group"), quantize (8, 4, or 0 for not), tiling: default: what fits the free memory.
    compile: a slow first picture, faster ones after.  auto_retry: where memory runs out, go on with less of it.
    deterministic: the same bits at every run.  safety: use the model's own checker, where it has one.
    cache: "reuse", "taylor" or "first-block", faster and not quite the same picture (see `step_cache.py`).
    Raises UsageError, ModelUnavailable, ModelError, OutOfMemory (all of them `t2i.errors.T2IError`).
    """
    drawer = TextToImage.load(
        model,
        device=device,
        dtype=dtype,
        offline=offline,
        revision=revision,
        scheduler=scheduler,
        adapters=Adapters.read(lora, embedding, ip_adapter),
        cache=cache,
        options=DeviceOptions(dtype, offload, quantize, tiling, compile, deterministic, safety, auto_retry),
    )
    for warning in drawer.attached.warnings:
        warnings.warn(warning.removeprefix("warning: "), stacklevel=2)
    return Model(drawer)


class Model:
    """A loaded model, to be called with a prompt.  It keeps nothing from one call to the next.

    model: what draws underneath: it takes seeds one by one and yields pictures as they are drawn; `model.pipe` is
    the diffusers pipeline.
    """

    def __init__(self, model: TextToImage) -> None:
        self.model = model

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        seed: int | None = None,
        num_images: int = 1,
        negative_prompt: str = "",
        steps: int | None = None,
        guidance: float | None = None,
        width: int | None = None,
        height: int | None = None,
        scheduler: str | None = None,
        image: str | Path | Image | None = None,
        mask: str | Path | Image | None = None,
        strength: float | None = None,
        control: str | Control | Sequence[str | Control] = (),
        upscale: float | str | Upscale | None = None,
        batch_size: int | None = None,
        raw: bool = False,
        chunks: bool | None = None,
        wildcards: str | Path | None = None,
        progress: bool = False,
    ) -> Pictures:
        """Draw `num_images` pictures of the prompt, or of each of several; picture k of a prompt has seed + k.

        seed: default: a random one, which the recipes hold.  None elsewhere: as the model draws best.
        width, height: pixels.  image: a picture to start from, with this much noise (`strength`, 1: ignore it).
        mask: white where the picture is painted anew; elsewhere it stays as it is.
        control: "TYPE:IMAGE" or "TYPE:IMAGE:SCALE": a map that guides, read by a ControlNet (see `controlnet.py`).
        upscale: a second pass, so many times as large; "2:0.3" names its strength.
        batch_size: how many at once; changes speed and memory, not the pictures.
        raw: take prompts as they are: no `{a|b}` (see `language.py`), no `(word:1.2)` (see `weighting.py`).
        `<lora:...>` is for the command line and refused here: adapters are put on by `load`.
        chunks: whether a prompt that is longer than the encoder reads is read in chunks rather than cut.
        wildcards: the folder of `__name__`.
        progress: a bar on stderr.
        Raises UsageError for what is out of range, NonFinite instead of a black picture.
        """
        first = secrets.randbelow(2**32) if seed is None else seed
        seeds = range(first, first + check_image_count(num_images))
        prompts = [prompt] if isinstance(prompt, str) else prompt
        settings = self.model.settings(
            negative=negative_prompt,
            steps=steps,
            guidance=guidance,
            width=width,
            height=height,
            scheduler=scheduler,
            edit=make_image_inputs(image, mask, strength, control, upscale),
            weights=not raw,
            chunks=chunks,
        )
        known = Wildcards(None if wildcards is None else Path(wildcards))

        def job(text: str, number: int) -> Job:
            if raw:
                return Job(text, number)
            if "<lora:" in text:  # plain text it would be, and nobody means that
                raise UsageError("<lora:...> in a prompt is for the command line", "load(lora=...), or raw=True")
            negative = resolve_negative(negative_prompt, number, known)
            return Job(resolve(text, number, known), number, text, negative, negative_prompt)

        jobs = [job(text, number) for text in prompts for number in seeds]
        with _bar(progress) as report:
            results = self.model.draw(jobs, settings, batch_size=batch_size, progress=report)
            return Pictures(Picture.of(result.image, result.recipe, result.blanked) for result in results)

    def __repr__(self) -> str:
        return f"<Model {self.model.name} on {self.model.device} in {self.model.dtype}>"


@contextmanager
def _bar(shown: bool) -> Iterator[Progress]:
    from tqdm import tqdm

    with tqdm(desc="drawing", unit="step", leave=False, file=sys.stderr, disable=not shown) as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield report
