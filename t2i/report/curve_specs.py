"""Which curves each family's log holds, and what they mean: dicts to read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Scale = Literal["linear", "log"]


@dataclass(frozen=True)
class Curve:
    """One plot over images seen.

    columns: {column: label}; `evaluation/NAME` is a column of evaluation.csv, `scores/NAME` of scores.csv, all others
    are of log.csv.
    meaning: one sentence.  scale: log where values are positive and span decades.  smooth: whether an average is drawn.
    zero: whether the axis begins there.
    """

    title: str
    columns: dict[str, str]
    meaning: str
    scale: Scale = "linear"
    smooth: bool = True
    zero: bool = False


QUARTERS = {
    "mse_quarter1": "least noise",
    "mse_quarter2": "second quarter",
    "mse_quarter3": "third quarter",
    "mse_quarter4": "most noise",
}
BY_NOISE = Curve(
    "Loss by noise level",
    QUARTERS,
    "Mean square error of the prediction, for each quarter of the time from image to noise.",
    "log",
)
CURVES: dict[str, tuple[Curve, ...]] = {
    "ddpm": (
        Curve(
            "Diffusion loss",
            {"loss": "weighted", "mse": "plain"},
            "Mean square error of the prediction over all noise levels, as weighted in training and without weights.",
            "log",
        ),
        BY_NOISE,
    ),
    "text2image": (
        Curve("Diffusion loss", {"loss": "loss"}, "Mean square error of the prediction over all noise levels.", "log"),
        BY_NOISE,
    ),
    "dcgan": (
        Curve(
            "Losses of the players",
            {"d_loss": "discriminator", "g_loss": "generator"},
            "Each player's own error function; they pull against each other, so neither need fall.",
        ),
        Curve(
            "Accuracy of the discriminator",
            {"d_accuracy_real": "on real", "d_accuracy_fake": "on generated"},
            "Share of images it takes for what they are: near 1 on both, the generator learns little.",
        ),
        Curve(
            "Spread of generated images",
            {"spread": "spread"},
            "Their deviation, within a class if any, as a part of the real images': far below 1, too many look alike.",
        ),
    ),
    "vae": (
        Curve(
            "Evidence lower bound",
            {
                "bits_per_dim": "in training",
                "evaluation/train_bits_per_dim": "averaged weights",
                "evaluation/held_out_bits_per_dim": "held-out images",
            },
            "The negative bound in bits per dimension, an upper limit of what the image costs: lower is better.",
        ),
        Curve(
            "Reconstruction term",
            {
                "reconstruction": "in training",
                "evaluation/train_reconstruction": "averaged weights",
                "evaluation/held_out_reconstruction": "held-out images",
            },
            "Bits per dimension that the image costs when its latent is known.",
        ),
        Curve(
            "KL term",
            {
                "kl": "in training",
                "evaluation/train_kl": "averaged weights",
                "evaluation/held_out_kl": "held-out images",
            },
            "Bits per dimension that the latent costs; at 0 the decoder ignores it.",
            "log",
        ),
        Curve("Loss", {"loss": "loss"}, "What is minimised: nats per number of the image, with beta and free bits."),
        Curve("Square error", {"mse": "mse"}, "Mean square error of the reconstruction, pixels in [-1, 1].", "log"),
        Curve(
            "Sigma",
            {"evaluation/train_sigma": "averaged weights", "evaluation/held_out_sigma": "held-out images"},
            "Deviation of the pixels around their reconstruction, by which the bound is measured.",
        ),
    ),
    "classifier": (
        Curve(
            "Cross-entropy",
            {"loss": "in training", "evaluation/cross_entropy": "held-out images"},
            "Nats that the right class costs; in training with smoothed labels and augmented images.",
            "log",
        ),
        Curve(
            "Accuracy",
            {"accuracy": "in training", "evaluation/accuracy": "held-out images"},
            "Share of images whose most likely class is the right one.",
        ),
        Curve(
            "Calibration error",
            {"evaluation/calibration_error": "held-out images"},
            "Mean distance between how sure the model is and how often it is right.",
        ),
    ),
    "autoencoder": (
        Curve("Loss", {"loss": "loss"}, "The weighted sum of all terms but the adversarial one.", "log"),
        Curve(
            "Distance from the image",
            {"l1": "pixels", "gradient": "edges"},
            "Mean absolute error of pixels, and of differences between neighbours.",
            "log",
        ),
        Curve(
            "Perceptual distance",
            {"perceptual": "in training", "evaluation/held_out_perceptual": "held-out images"},
            "Mean square distance between ImageNet features of image and reconstruction, from 0 to 4; held-out images "
            "are whole, in training they may be crops.",
            "log",
        ),
        Curve("Structural similarity", {"ssim": "SSIM"}, "1 where the reconstruction equals the image."),
        Curve(
            "PSNR",
            {"psnr": "in training", "evaluation/held_out_psnr": "held-out images"},
            "Decibels between the image and its reconstruction: higher is better. Held-out images are reconstructed by "
            "the averaged weights, without noise.",
        ),
        Curve("KL term", {"kl": "KL"}, "Nats per number of the image that the latent differs from a normal one."),
        Curve(
            "Adversarial losses",
            {"d_loss": "discriminator", "g_loss": "autoencoder"},
            "Each player's own error function; they pull against each other, so neither need fall.",
        ),
        Curve(
            "Accuracy of the discriminator",
            {"d_accuracy_real": "on images", "d_accuracy_fake": "on reconstructions"},
            "Share of patches it takes for what they are: near 1 on both, the autoencoder learns little from it.",
        ),
        Curve(
            "Weight of the adversarial loss",
            {"g_weight": "weight"},
            "By what the autoencoder's adversarial loss is multiplied, so that its gradient has the length asked for.",
            "log",
        ),
        Curve("Loss with the adversarial term", {"total_loss": "loss"}, "What the autoencoder minimises."),
    ),
}
# What every run logs, last.
COMMON: tuple[Curve, ...] = (
    Curve(
        "Learning rate",
        {"lr": "learning rate"},
        "Of the optimiser, at the last step before the row.",
        smooth=False,
        zero=True,
    ),
    Curve("Speed", {"images_per_second": "images/s"}, "Images per second, samples and saving included.", zero=True),
    Curve(
        "Gradient norm",
        {"gradient_norm": "all weights", "d_gradient_norm": "discriminator", "g_gradient_norm": "generator"},
        "Before it is clipped: a rise tells of steps that are too long.",
        "log",
    ),
)
# What a run was judged by along training; of each number there may be NAME_floor, what real pictures get.
SCORES: tuple[Curve, ...] = (
    Curve(
        "Frechet distance",
        {"scores/frechet": "generated"},
        "Between what the judge sees in generated and in real pictures: lower is better.",
        "log",
        smooth=False,
    ),
    Curve(
        "Precision and recall",
        {"scores/precision": "precision", "scores/recall": "recall"},
        "Share of generated pictures that lie among real ones, and of real ones that lie among generated.",
        smooth=False,
        zero=True,
    ),
    Curve(
        "Density and coverage",
        {"scores/density": "density", "scores/coverage": "coverage"},
        "How closely generated pictures lie among real ones, and the share of real ones that have one near.",
        smooth=False,
        zero=True,
    ),
    Curve(
        "Class accuracy",
        {"scores/class_accuracy": "generated"},
        "Share of pictures that the judge takes for the class they were drawn as.",
        smooth=False,
        zero=True,
    ),
    Curve(
        "Kernel distance",
        {"scores/kernel": "generated"},
        "Times 1000; unbiased: about 0 between real pictures, and a little below it by chance.",
        smooth=False,
    ),
    Curve(
        "Classifier score",
        {"scores/classifier_score": "generated"},
        "How sure the judge is of a picture's class, and how evenly classes are met: higher is better.",
        smooth=False,
    ),
    Curve(
        "Nearest real picture",
        {"scores/nearest": "generated"},
        "Median distance by features; far below that of real pictures it tells of copies.",
        smooth=False,
        zero=True,
    ),
)
FLOOR = "_floor"  # ends the column of what real pictures get


def score_curves(columns: Iterable[str]) -> list[Curve]:
    """The curves of scores, and one for each of these columns that none of them knows and that is no floor."""
    named = {name for curve in SCORES for name in curve.columns}
    rest = [name for name in columns if name not in named and not name.endswith(FLOOR)]
    own = [_unknown(name, smooth=False) for name in dict.fromkeys(rest)]
    return [*SCORES, *own]


def curves_of(family: str, columns: Iterable[str]) -> list[Curve]:
    """The family's curves, and one for each column that none of them knows: nothing that was logged is hidden."""
    known = [*CURVES.get(family, ()), *COMMON]
    named = {name for curve in known for name in curve.columns}
    rest = sorted(name for name in columns if name not in named)
    own = [_unknown(name) for name in rest]
    cut = len(known) - len(COMMON)
    return [*known[:cut], *own, *known[cut:]]


def _unknown(name: str, smooth: bool = True) -> Curve:
    return Curve(name.rpartition("/")[2].replace("_", " "), {name: name}, f"Column {name}.", smooth=smooth)
