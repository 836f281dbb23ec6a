"""Pictures to start from, and a second pass."""

from __future__ import annotations

from t2i.cli.options import section, together

option = section("Start from a picture")
options = together(
    option(
        "-i",
        "--image",
        "--init-image",
        metavar="IMAGE",
        help="Draw from this picture, at its own size if the model can; with -W and -H it is scaled and cut to that.",
    ),
    option(
        "--mask",
        metavar="IMAGE",
        help="White is painted anew, black stays exactly as it is in --image (inpainting).",
    ),
    option(
        "--strength",
        type=float,
        help="Amount of noise, above 0 to 1; 1 = ignore the image. Of --steps 20, 0.6 runs the last 12."
        " Default: 0.6; 1 with --mask.",
    ),
    option(
        "--control",
        "controls",
        metavar="TYPE:IMAGE[:SCALE]",
        multiple=True,
        help="Let a ControlNet guide the drawing. TYPE is canny, depth, pose, scribble, tile, ... as there are for the"
        " model, or a folder or Hub id. IMAGE is taken as the map itself: edges for canny, not a photo. May be"
        " repeated.",
    ),
    option(
        "--upscale",
        metavar="FACTOR[:STRENGTH]",
        help="Then draw it again, FACTOR times as large, from the enlarged picture.  [strength: 0.4]",
    ),
)
