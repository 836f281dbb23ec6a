"""Results of a drawing: images with their recipes, and the check for non-finite ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from t2i.errors import NonFinite
from t2i.metadata.recipe import Recipe
from t2i.pipelines.settings.settings import Job, Settings
from t2i.pipelines.text_to_image.passes import PassResult
from t2i.pipelines.text_to_image.record import make_recipe
from t2i.pipelines.text_to_image.runner import PipelineRunner

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Result:
    """An image with its recipe.  blanked: the model's own safety checker has painted it black.

    index: its position among the jobs of one drawing.
    """

    image: Image
    recipe: Recipe
    blanked: bool = False
    index: int = 0


def make_results(
    runner: PipelineRunner,
    batch: Sequence[Job],
    settings: Settings,
    drawn: PassResult,
    first: int,
    known: Mapping[str, Any],
) -> tuple[list[Result], NonFinite | None]:
    """Return the finite images of a batch as results, and the error to raise after them if one was not finite.

    first: the index of its first job.  known: fields that all recipes share.
    """
    from t2i.imaging.images import from_tensor

    x, blanked = drawn
    finite = x.isfinite().flatten(1).all(1).tolist()
    guided = runner.uses_negative(settings.guidance)
    results = []
    for k, job in enumerate(batch):
        if finite[k]:
            image = from_tensor(x[k : k + 1])[0]
            reading = runner.prompt_encoder.describe(job, settings, guided)
            about = {**known, "batch_size": len(batch), "batch_index": k, "reading": reading}
            recipe = make_recipe(job, settings, image, runner.pipe.scheduler, about)
            results.append(Result(image, recipe, blanked[k], first + k))
    bad = ", ".join(str(job.seed) for k, job in enumerate(batch) if not finite[k])
    failure = NonFinite(f"non-finite image: NaN or infinity for seed {bad}", runner.suggestion()) if bad else None
    return results, failure
