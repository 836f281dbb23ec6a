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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from t2i.pipelines.language import Wildcards, resolve
from t2i.pipelines.limits import check_image_count
from t2i.pipelines.pictures import Picture, Pictures
from t2i.pipelines.settings import Job
from t2i.pipelines.text_to_image import Progress, TextToImage


def load(
    model: str | Path = "mini",
    *,
    device: str | None = None,
    dtype: str | None = None,
    offline: bool = False,
    revision: str | None = None,
    scheduler: str | None = None,
    cache: str | None = None,
) -> Painter:
    """Load a text-to-image model: a name of the zoo, a pipeline or run folder, a Hub id, a .safetensors file.

    device: default CUDA, else MPS, else CPU.  dtype: default float32 on a CPU, else the model's.
    offline: do not use the network.  revision: of a model on the Hub.  scheduler: default the model's own.
    cache: "reuse", "taylor" or "first-block", faster and not quite the same picture (see `step_cache.py`).
    Raises UsageError, ModelUnavailable, ModelError (all of them `t2i.errors.T2IError`).
    """
    return Painter(
        TextToImage.load(
            model,
            device=device,
            dtype=dtype,
            offline=offline,
            revision=revision,
            scheduler=scheduler,
            cache=cache,
        )
    )


class Painter:
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
        batch_size: int | None = None,
        raw: bool = False,
        wildcards: str | Path | None = None,
        progress: bool = False,
    ) -> Pictures:
        """Draw `num_images` pictures of the prompt, or of each of several; picture k of a prompt has seed + k.

        seed: default: a random one, which the recipes hold.  None elsewhere: as the model draws best.
        width, height: pixels.  batch_size: how many at once; changes speed and memory, not the pictures.
        raw: take prompts as they are: no `{a|b}` (see `language.py`).  wildcards: the folder of `__name__`.
        progress: a bar on stderr.
        Raises UsageError for what is out of range, NonFinite instead of a black picture.
        """
        first = secrets.randbelow(2**32) if seed is None else seed
        seeds = range(first, first + check_image_count(num_images))
        prompts = [prompt] if isinstance(prompt, str) else prompt
        settings = self.model.settings(
            negative=negative_prompt, steps=steps, guidance=guidance, width=width, height=height, scheduler=scheduler
        )
        known = Wildcards(None if wildcards is None else Path(wildcards))
        jobs = [
            Job(text if raw else resolve(text, number, known), number, text) for text in prompts for number in seeds
        ]
        with _bar(progress) as report:
            results = self.model.draw(jobs, settings, batch_size=batch_size, progress=report)
            return Pictures(Picture.of(result.image, result.recipe, result.blanked) for result in results)

    def __repr__(self) -> str:
        return f"<Painter {self.model.name} on {self.model.device} in {self.model.dtype}>"


@contextmanager
def _bar(shown: bool) -> Iterator[Progress]:
    from tqdm import tqdm

    with tqdm(desc="drawing", unit="step", leave=False, file=sys.stderr, disable=not shown) as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield report
