"""Pack a finished run of `t2i train text2image` as the embedded model: a plain Stable Diffusion folder with a card.

    python scripts/package_mini.py --run runs/mini-text2image --out t2i/mini

Weights in float16 safetensors; settings in t2i.json; a sheet of samples, and one of samples above their nearest
training images, both made here; the card README.md, whose numbers come from the run's own files.
"""

from __future__ import annotations

import csv
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import click
import torch
from PIL.Image import Image

from t2i import config
from t2i.data.memory_table import ImageTable, load_memory
from t2i.data.sources import open_source
from t2i.imaging import images
from t2i.metadata.recipe import Mark
from t2i.model_files.weight_files import check_pipeline_folder, weights_hash
from t2i.pipelines.text_to_image.pipeline import Job, TextToImage

LIMIT = 40_000_000  # bytes of the folder
PROMPTS = Path(__file__).parents[1] / "configs" / "mini-grid.txt"  # objects across, styles down
OBJECTS = ("horse", "dog", "elephant", "giraffe", "house", "guitar", "person")
STYLES = ("photo", "painting", "cartoon", "sketch", "Van Gogh")
COMPARED = 8  # samples whose nearest training images are shown
SEED = 1


@click.command()
@click.option("--run", type=click.Path(exists=True, file_okay=False, path_type=Path), default="runs/mini-text2image")
@click.option("--autoencoder-run", type=click.Path(path_type=Path), default="runs/mini-autoencoder")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default="t2i/mini")
@click.option("--machine", required=True, help="Where it was trained, for the card.")
@click.option("--date", required=True, help="When it was trained, for the card.")
@click.option("--steps", default=20)
@click.option("--guidance", default=5.0)
def main(run: Path, autoencoder_run: Path, out: Path, machine: str, date: str, steps: int, guidance: float) -> None:
    """Pack a finished text2image run as the embedded model."""
    settings = config.load_config(run / "config.yaml", "text2image")
    assert isinstance(settings, config.Text2ImageConfig)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "mini"
        parameters = write_weights(run / "export", folder)
        own = {"name": "mini", "steps": steps, "guidance": guidance, "size": settings.data.size}
        own |= {"scheduler": "dpm++2m", "license": "research data, see the card"}
        (folder / "t2i.json").write_text(json.dumps(own, indent=1) + "\n")
        model = TextToImage.load(str(folder))
        images.save(draw_grid(model), folder / "grid.png", recipe=Mark())
        table = load_memory(settings.data)
        sheet, distances = neighbours(model, table)
        images.save(sheet, folder / "neighbours.png", recipe=Mark())
        facts = {
            "parameters": parameters,
            "sha256": weights_hash(check_pipeline_folder(folder)[1], folder),
            "autoencoder": spent(autoencoder_run),
            "text2image": spent(run),
            "machine": machine,
            "date": date,
            "distances": distances,
            "table": table,
            "settings": settings,
            "own": own,
        }
        (folder / "README.md").write_text(card(facts))
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        if size > LIMIT:
            raise click.ClickException(f"{size / 1e6:.1f} MB; the embedded model has at most {LIMIT / 1e6:.0f} MB")
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(folder, out)
        for file in out.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)  # safetensors writes files that only their owner can read
    click.echo(f"{out}  {size / 1e6:.1f} MB")


def write_weights(export: Path, folder: Path) -> int:
    """Write the run's pipeline in float16, in a form that plain diffusers loads in float32.  Returns its parameters."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(export, safety_checker=None)
    parts = [pipe.vae, pipe.text_encoder, pipe.unet]
    for part in parts:
        part.half()
    pipe.save_pretrained(folder)
    path = folder / "text_encoder" / "config.json"
    # transformers loads in the stored dtype, diffusers in float32: without this their dtypes would differ
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "float32"}, indent=2) + "\n")
    return sum(p.numel() for part in parts for p in part.parameters())


def prompts() -> list[str]:
    """Return every object in every style, one style per row."""
    return PROMPTS.read_text(encoding="utf-8").splitlines()


def draw_grid(model: TextToImage) -> Image:
    """Generate objects across, styles down; seeds count up from SEED, as `t2i generate --prompts` does: uncurated."""
    jobs = [Job(prompt, SEED + row) for row, prompt in enumerate(prompts())]
    results = model.draw(jobs, model.settings())
    return images.grid([result.image for result in results], row_labels=STYLES, column_labels=OBJECTS)


def neighbours(model: TextToImage, table: ImageTable) -> tuple[Image, list[tuple[float, float]]]:
    """Make a sheet of eight samples above the training images nearest to them.

    Distance is the root mean square over pixel values in [0, 255], mirrored images included. Returns the sheet, and
    for each sample (distance to the nearest image, distance of that image to its own nearest other image): the distance
    between different training images shows which distances are small.
    """
    chosen = prompts()[:: len(prompts()) // COMPARED][:COMPARED]
    jobs = [Job(prompt, SEED + 100 + k) for k, prompt in enumerate(chosen)]
    drawn = [result.image for result in model.draw(jobs, model.settings())]
    queries = torch.stack([images.pixels(image) for image in drawn])
    distance, nearest = closest(queries, table.pixels)
    theirs, _ = closest(table.pixels[nearest], table.pixels, others=True)
    below = images.from_tensor(images.from_uint8(table.pixels[nearest]))
    pairs = list(zip(distance.tolist(), theirs.tolist(), strict=True))
    return images.grid([*drawn, *below], columns=COMPARED, row_labels=["drawn", "nearest"]), pairs


def closest(queries: torch.Tensor, pixels: torch.Tensor, others: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Return root-mean-square distance to, and index of, the image in `pixels` nearest to each query, mirrored or not.

    queries: (Q, 3, S, S), pixels: (N, 3, S, S), uint8.  others: ignore the query itself, wherever it is.
    """
    wanted = queries.flatten(1).float()
    best = torch.full((len(queries),), torch.inf)
    index = torch.zeros(len(queries), dtype=torch.int64)
    for first in range(0, len(pixels), 1024):
        some = pixels[first : first + 1024]
        for view in (some, some.flip(3)):
            distances = torch.cdist(wanted, view.flatten(1).float(), compute_mode="donot_use_mm_for_euclid_dist")
            if others:
                distances = distances.masked_fill(distances == 0, torch.inf)
            value, place = distances.min(1)
            index = torch.where(value < best, first + place, index)
            best = torch.minimum(best, value)
    return best / wanted.shape[1] ** 0.5, index


def spent(run: Path) -> dict[str, Any]:
    """Return images seen, hours of training and the last row of the log of a run."""
    with (run / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    images_seen = [int(row["images"]) for row in rows]
    gaps = [b - a for a, b in zip([0, *images_seen], images_seen, strict=False)]
    seconds = sum(gap / float(row["images_per_second"]) for gap, row in zip(gaps, rows, strict=True))
    finished = config.parse_yaml((run / "config.yaml").read_text(encoding="utf-8"))
    return {"images": finished["images"], "hours": seconds / 3600, "last": rows[-1]}


def card(facts: dict[str, Any]) -> str:
    """Return the model card: mini_card.md, filled in."""
    settings, table, own = facts["settings"], facts["table"], facts["own"]
    first, second = facts["autoencoder"], facts["text2image"]
    kinds = [
        "stylised" if "stylised after" in source else style
        for style, source in zip(table.columns["style"], table.columns["source"], strict=True)
    ]
    # the first source repeats pictures of the others
    typical, visits = open_source(settings.data.sources[0]).count, settings.data.sources[0].repeat
    assert Path(settings.data.sources[0].path).stem == "typical"
    counts = {kind: kinds[typical:].count(kind) for kind in dict.fromkeys(kinds)}
    near = "\n".join(f"| {k + 1} | {mine:.1f} | {theirs:.1f} |" for k, (mine, theirs) in enumerate(facts["distances"]))
    return (
        Path(__file__)
        .with_name("mini_card.md")
        .read_text(encoding="utf-8")
        .format(
            parameters=facts["parameters"] / 1e6,
            sha256=facts["sha256"],
            size=settings.data.size,
            machine=facts["machine"],
            date=facts["date"],
            ae_images=first["images"],
            ae_hours=first["hours"],
            psnr=float(first["last"]["psnr"]),
            images=second["images"],
            hours=second["hours"],
            typical=typical,
            share=typical * visits / len(table),
            counts=", ".join(f"{count:,} {kind}" for kind, count in counts.items()),
            steps=own["steps"],
            guidance=own["guidance"],
            near=near,
            seed=SEED,
        )
    )


if __name__ == "__main__":
    main()
