"""`t2i report RUN...`: training runs on one page, and as plots."""

from __future__ import annotations

from pathlib import Path

import click

EXAMPLES = """\b
Examples:
  t2i report runs/ddpm-smoke
  t2i report runs/vae-cifar10 runs/dcgan-cifar10 -o both.html
  t2i report runs/ddpm-smoke --plots plots/
  t2i eval score runs/ddpm-smoke --ref ref.safetensors -o runs/ddpm-smoke/scores/50-steps
"""


@click.command(epilog=EXAMPLES)
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="The page.  [report.html]")
@click.option(
    "--plots", type=click.Path(file_okay=False, path_type=Path), help="Write the curves here, as PNG and SVG."
)
@click.option("--overwrite", is_flag=True, help="Replace files that are not an earlier report on these runs.")
def report(runs: tuple[Path, ...], output: Path | None, plots: Path | None, overwrite: bool) -> None:
    """Show training runs on one page: loss curves, samples during training, scores, metrics, config, environment.

    RUN is a run folder, finished or still training. Several are shown side by side. The page is one file that needs no
    network. With --plots and without --output only the plots are written.

    Scores are those that `evaluate` in the config computed during training, next to those of real images, and those
    that `t2i eval score` wrote to RUN/score.json or RUN/scores/NAME/score.json.

    Running the same command again replaces its page and plots: they are made from the run folders alone.
    """
    from t2i.report.writers import save_page, save_plots

    if plots is not None:
        for path in save_plots(runs, plots, overwrite):
            click.echo(path)
    if output is not None or plots is None:
        click.echo(save_page(runs, output or Path("report.html"), overwrite))
