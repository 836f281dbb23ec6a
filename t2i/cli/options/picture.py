"""How to draw: steps, guidance, seeds, sizes."""

from __future__ import annotations

from t2i.cli.options import completion_values, section, together

SCHEDULER_NAMES = "ddim, dpm++2m, dpm++2m-karras, euler, euler-a, unipc, heun, pndm, lcm, ..."

option = section("How to draw")
options = together(
    option("--steps", "--num-inference-steps", type=int, help="Denoising steps, 1 to 1000. Default: the model's."),
    option(
        "--guidance",
        "--cfg-scale",
        "--guidance-scale",
        type=float,
        help="How closely to follow the prompt, 0 to 100; 1 or less turns guidance off. Default: the model's.",
    ),
    option(
        "-s",
        "--seed",
        "seeds",
        type=int,
        multiple=True,
        help="Seed of a prompt's first image, 0 to 2^64-1; the next ones count up. May be repeated."
        " Default: -1, a random one, which is shown and recorded.",
    ),
    option("-b", "--batch-count", "--num-images", "count", type=int, default=1, help="Images per prompt.  [1]"),
    option("-W", "--width", type=int, help="Pixels. Default: the model's."),
    option("-H", "--height", type=int, help="Pixels. Default: the model's."),
    option("--size", metavar="WxH", help="Both at once, as 512x512."),
    option(
        "--scheduler",
        "--sampler",
        metavar="NAME",
        shell_complete=completion_values.schedulers,
        help=f"{SCHEDULER_NAMES} or A1111's names. Default: the model's own.",
    ),
)
