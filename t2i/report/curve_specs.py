"""The curves of each family's log, with titles and explanations, as dicts to read."""

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
    meaning: one sentence.  scale: log where values are positive and span decades.  smooth: also plot a moving average.
    zero: the y axis begins at 0.
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
    "Mean squared error of the prediction, for each quarter of the time from image to noise.",
    "log",
)
CURVES: dict[str, tuple[Curve, ...]] = {
    "ddpm": (
        Curve(
            "Diffusion loss",
            {"loss": "weighted", "mse": "unweighted"},
            "Mean squared error of the prediction over all noise levels, with the weights of training and without.",
            "log",
        ),
        BY_NOISE,
    ),
    "text2image": (
        Curve("Diffusion loss", {"loss": "loss"}, "Mean squared error of the prediction over all noise levels.", "log"),
        BY_NOISE,
    ),
    "dcgan": (
        Curve(
            "Adversarial losses",
            {"d_loss": "discriminator", "g_loss": "generator"},
            "Losses of discriminator and generator; they oppose each other, so neither needs to fall.",
        ),
        Curve(
            "Discriminator accuracy",
            {"d_accuracy_real": "real", "d_accuracy_fake": "generated"},
            "Share of images classified correctly as real or generated: near 1 on both, the generator learns little.",
        ),
        Curve(
            "Standard deviation of generated images",
            {"spread": "ratio to real images"},
            "Within a class, if any, relative to that of real images: far below 1 indicates mode collapse.",
        ),
    ),
    "vae": (
        Curve(
            "Negative ELBO (bits/dim)",
            {
                "bits_per_dim": "training",
                "evaluation/train_bits_per_dim": "training, EMA weights",
                "evaluation/held_out_bits_per_dim": "held-out, EMA weights",
            },
            "Negative evidence lower bound, an upper bound on the code length of an image: lower is better.",
        ),
        Curve(
            "Reconstruction (bits/dim)",
            {
                "reconstruction": "training",
                "evaluation/train_reconstruction": "training, EMA weights",
                "evaluation/held_out_reconstruction": "held-out, EMA weights",
            },
            "Negative log likelihood of the image given its latent.",
        ),
        Curve(
            "KL divergence (bits/dim)",
            {
                "kl": "training",
                "evaluation/train_kl": "training, EMA weights",
                "evaluation/held_out_kl": "held-out, EMA weights",
            },
            "KL divergence of the posterior from the prior; at 0 the decoder ignores the latent.",
            "log",
        ),
        Curve("Training loss", {"loss": "loss"}, "Nats per dimension of the image, with beta and free bits."),
        Curve(
            "Mean squared error", {"mse": "mse"}, "Mean squared error of the reconstruction, pixels in [-1, 1].", "log"
        ),
        Curve(
            "Decoder standard deviation",
            {
                "evaluation/train_sigma": "training, EMA weights",
                "evaluation/held_out_sigma": "held-out, EMA weights",
            },
            "Sigma of the decoder's normal distribution around the reconstruction, with which the ELBO is computed.",
        ),
    ),
    "classifier": (
        Curve(
            "Cross-entropy",
            {"loss": "training", "evaluation/cross_entropy": "held-out, EMA weights"},
            "In nats; in training with smoothed labels and augmented images.",
            "log",
        ),
        Curve(
            "Accuracy",
            {"accuracy": "training", "evaluation/accuracy": "held-out, EMA weights"},
            "Share of images whose most likely class is the true one.",
        ),
        Curve(
            "Expected calibration error",
            {"evaluation/calibration_error": "held-out, EMA weights"},
            "Mean absolute difference between confidence and accuracy.",
        ),
    ),
    "autoencoder": (
        Curve("Training loss", {"loss": "loss"}, "The weighted sum of all terms but the adversarial one.", "log"),
        Curve(
            "Reconstruction error",
            {"l1": "pixels", "gradient": "gradients"},
            "Mean absolute error of pixels, and of differences between neighbouring pixels.",
            "log",
        ),
        Curve(
            "Perceptual distance",
            {"perceptual": "in training", "evaluation/held_out_perceptual": "held-out images"},
            "Mean squared distance between ImageNet features of image and reconstruction, from 0 to 4; held-out images "
            "are whole, in training they may be crops.",
            "log",
        ),
        Curve("SSIM", {"ssim": "SSIM"}, "Structural similarity: 1 where the reconstruction equals the image."),
        Curve(
            "PSNR",
            {"psnr": "in training", "evaluation/held_out_psnr": "held-out images"},
            "Peak signal-to-noise ratio of the reconstruction, in dB: higher is better. Held-out images are "
            "reconstructed by the EMA weights, without noise.",
        ),
        Curve("KL divergence", {"kl": "KL"}, "Nats per dimension of the image, from a standard normal distribution."),
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
# Curves of every run, last.
COMMON: tuple[Curve, ...] = (
    Curve(
        "Learning rate",
        {"lr": "learning rate"},
        "Of the optimizer, at the last step before the row.",
        smooth=False,
        zero=True,
    ),
    Curve("Speed", {"images_per_second": "images/s"}, "Images per second, samples and saving included.", zero=True),
    Curve(
        "Gradient norm",
        {"gradient_norm": "all weights", "d_gradient_norm": "discriminator", "g_gradient_norm": "generator"},
        "Before clipping; a rise indicates steps that are too large.",
        "log",
    ),
)
# Metrics of evaluation during training; each may have a column NAME_floor, the same metric of real images.
SCORES: tuple[Curve, ...] = (
    Curve(
        "Frechet distance",
        {"scores/frechet": "generated"},
        "Between the features of generated and of real images: lower is better.",
        "log",
        smooth=False,
    ),
    Curve(
        "Precision and recall",
        {"scores/precision": "precision", "scores/recall": "recall"},
        "Share of generated images that lie among real ones, and of real images that lie among generated ones.",
        smooth=False,
        zero=True,
    ),
    Curve(
        "Density and coverage",
        {"scores/density": "density", "scores/coverage": "coverage"},
        "Density of generated images among real ones, and the share of real images with a generated one nearby.",
        smooth=False,
        zero=True,
    ),
    Curve(
        "Class accuracy",
        {"scores/class_accuracy": "generated"},
        "Share of generated images that the judge classifies as the class they were generated for.",
        smooth=False,
        zero=True,
    ),
    Curve(
        "Kernel distance",
        {"scores/kernel": "generated"},
        "Times 1000; unbiased: about 0 between real images, and a little below it by chance.",
        smooth=False,
    ),
    Curve(
        "Classifier score",
        {"scores/classifier_score": "generated"},
        "Confidence of the judge in each image's class, and evenness of the classes: higher is better.",
        smooth=False,
    ),
    Curve(
        "Nearest neighbour distance",
        {"scores/nearest": "generated"},
        "Median feature distance to the nearest real image; far below that of real images it indicates copies.",
        smooth=False,
        zero=True,
    ),
)
FLOOR = "_floor"  # suffix of the column with the same metric of real images


def score_curves(columns: Iterable[str]) -> list[Curve]:
    """Return the curves of scores, and one for each of these columns that has none and is no floor."""
    named = {name for curve in SCORES for name in curve.columns}
    rest = [name for name in columns if name not in named and not name.endswith(FLOOR)]
    own = [_unknown(name, smooth=False) for name in dict.fromkeys(rest)]
    return [*SCORES, *own]


def curves_of(family: str, columns: Iterable[str]) -> list[Curve]:
    """Return the family's curves, and one for each column that has none: nothing that was logged is hidden."""
    known = [*CURVES.get(family, ()), *COMMON]
    named = {name for curve in known for name in curve.columns}
    rest = sorted(name for name in columns if name not in named)
    own = [_unknown(name) for name in rest]
    cut = len(known) - len(COMMON)
    return [*known[:cut], *own, *known[cut:]]


def _unknown(name: str, smooth: bool = True) -> Curve:
    return Curve(name.rpartition("/")[2].replace("_", " "), {name: name}, f"Column {name}.", smooth=smooth)
