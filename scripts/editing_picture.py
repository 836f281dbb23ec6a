"""Make the README's strip of images: `--image`, `--mask` and `--upscale` applied to a horse.

python scripts/editing_picture.py  # 15 seconds; writes docs/pictures/editing.png
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from PIL import Image

import t2i
from t2i.imaging import images
from t2i.metadata.recipe import Mark

OUTPUT = Path(__file__).parents[1] / "docs" / "pictures" / "editing.png"
SIDE = 160  # pixels of each picture in the strip
SEED = 22


def main() -> None:
    """Generate the five and save the strip, marked as generated."""
    draw = t2i.load("mini")
    with tempfile.TemporaryDirectory() as folder:
        horse, mask = Path(folder) / "horse.png", Path(folder) / "mask.png"
        (photo,) = draw("a photo of a horse", seed=SEED)
        photo.save(horse)
        upper = Image.new("L", photo.size, 0)
        upper.paste(255, (0, 0, photo.width, 28))
        upper.save(mask)
        strip = [
            photo,
            *draw("a cartoon of a horse", seed=SEED, image=horse, strength=0.65),
            *draw("a horse in Van Gogh style", seed=SEED, image=horse, strength=0.65),
            *draw("a photo of a giraffe", seed=2, image=horse, mask=mask),
            *draw("a photo of a horse", seed=SEED, upscale=2),
        ]
    same = [picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS) for picture in strip]
    images.save(images.grid(same, len(same)), OUTPUT, recipe=Mark(), overwrite=True)
    print(OUTPUT)


if __name__ == "__main__":
    main()
