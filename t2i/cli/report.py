"""`t2i report RUN...`: what training runs did, on one page, and as plots."""

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
    """Show training runs on one page: error functions, samples along training, scores, metrics, config, environment.

    RUN is a run folder, finished or still training. Several are laid side by side. The page is one file that needs no
    network. With --plots and without --output only the plots are written.

    Scores are those that `evaluate` in the config made along training, beside what real pictures get, and those that
    `t2i eval score` wrote to RUN/score.json or RUN/scores/NAME/score.json.

    The same command again replaces its page and its plots, since it loses nothing: they are made of the run folders.
    """
    from t2i.report.writers import save_page, save_plots

    if plots is not None:
        for path in save_plots(runs, plots, overwrite):
            click.echo(path)
    if output is not None or plots is None:
        click.echo(save_page(runs, output or Path("report.html"), overwrite))
