"""`t2i report`: what a run wrote is what the page and the plots show, whatever state the run is in."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from report_kit import COLOURS, Page, make_run, some_log
from training_kit import classifier_config, makers_over, train, write_config

from t2i.cli.main import main
from t2i.errors import UsageError
from t2i.report.curve_specs import CURVES
from t2i.report.plots import plain, short
from t2i.report.runs import read_numbers, read_run, read_runs
from t2i.report.samples import MOST, evenly
from t2i.report.series import HALF_LIFE, POINTS, moving_average, thin
from t2i.report.summary_rows import duration, number, shareable

ROOT = Path(__file__).parents[2]


def report(*words: Any) -> int:
    return main(["report", *map(str, words)])


def page_of(*runs: Path, folder: Path) -> Page:
    """The report on these runs, made by the command."""
    assert report(*runs, "-o", folder / "report.html", "--overwrite") == 0
    return Page((folder / "report.html").read_text(encoding="utf-8"))


# Truth: the numbers of the log


def test_the_curves_are_the_numbers_of_the_log(tmp_path: Path) -> None:
    log = some_log()
    page = page_of(make_run(tmp_path / "run", log), folder=tmp_path)
    plots = page.plots()
    assert list(plots) == ["Diffusion loss", "Loss by noise level", "Learning rate", "Speed", "Gradient norm"]
    for title, label, column in [
        ("Diffusion loss", "weighted", "loss"),
        ("Diffusion loss", "plain", "mse"),
        ("Loss by noise level", "least noise", "mse_quarter1"),
        ("Loss by noise level", "most noise", "mse_quarter4"),
        ("Learning rate", "learning rate", "lr"),
    ]:
        assert plots[title][label]["x"] == log["images"]
        assert plots[title][label]["y"] == [float(value) for value in log[column]]
    assert plots["Learning rate"]["learning rate"]["mean"] == plots["Learning rate"]["learning rate"]["y"]


def test_all_plots_of_a_family_begin_at_zero_and_reach_as_far(tmp_path: Path) -> None:
    """A number that was measured once stands where it was measured."""
    runs = [
        make_run(tmp_path / name, some_log(rows), {"images": [200], "fcd": [7]})
        for name, rows in (("a", 40), ("b", 10))
    ]
    frames = [plot["frame"][2:] for plot in page_of(*runs, folder=tmp_path).data["curves"].values()]
    assert len(frames) > 5
    assert all(frame == [0, pytest.approx(1.02 * 400)] for frame in frames)


def test_the_drawn_line_passes_through_the_numbers(tmp_path: Path) -> None:
    """Read back from the SVG: the position of each point is one linear function of the number."""
    log = some_log(20)
    page = page_of(make_run(tmp_path / "run", log, family="dcgan"), folder=tmp_path)
    key = next(key for key, plot in page.data["curves"].items() if plot["title"] == "Learning rate")
    svg = page.html[page.html.index(f'<figure id="{key}">') :].partition("</svg>")[0]
    paths = [p for p in re.findall(r'd="(M[^"]*)"[^>]*stroke: var\(--line0\)', svg) if p.count("L") == 19]
    assert len(paths) == 1
    x, y = np.array(re.findall(r"[ML] (\S+) (\S+)", paths[0]), dtype=float).T
    for drawn, numbers in ((x, log["images"]), (y, log["lr"])):
        line = np.polyfit(np.array(numbers, dtype=float), drawn, 1)
        assert np.abs(np.polyval(line, np.array(numbers, dtype=float)) - drawn).max() < 1e-3
    assert np.polyfit(np.array(log["lr"], dtype=float), y, 1)[0] < 0  # upwards on a screen is less
    left, right, low, high = page.data["curves"][key]["frame"]
    width = float(re.search(r'viewBox="0 0 (\S+) ', svg)[1])  # type: ignore[index]
    assert x[3] == pytest.approx(width * (left + (right - left) * (log["images"][3] - low) / (high - low)), abs=0.01)


def test_moving_average_is_the_weighted_mean_of_what_went_before() -> None:
    x = np.array([10.0, 20, 25, 60, 1000])
    y = np.array([3.0, 1, 4, 1, 5])
    half = HALF_LIFE * 990
    for k, value in enumerate(moving_average(x, y)):
        weights = 0.5 ** ((x[k] - x[: k + 1]) / half)
        assert value == pytest.approx((weights * y[: k + 1]).sum() / weights.sum(), rel=1e-12)
    assert moving_average(np.array([5.0]), np.array([2.0])).tolist() == [2.0]
    assert np.allclose(moving_average(x, np.full(5, 7.0)), 7)  # no bias at the start


def test_long_logs_are_averaged_in_groups() -> None:
    values = np.arange(10.0 * POINTS)
    assert thin(values).tolist() == [10 * k + 4.5 for k in range(POINTS)]
    assert thin(values[:POINTS]) is not None
    assert thin(values[:POINTS]).tolist() == values[:POINTS].tolist()
    assert len(thin(np.arange(10.0 * POINTS + 1))) <= POINTS


def test_summary_says_how_far_how_long_and_how_fast(tmp_path: Path) -> None:
    log = some_log(40) | {"images_per_second": ["50"] * 20 + ["100"] * 20}
    page = page_of(make_run(tmp_path / "run", log, images=1600), folder=tmp_path)
    for fact in ("400 of 1,600 (25\u00a0%)", "6 seconds", "66.67", "ddpm"):
        assert fact in page.text
    assert read_run(tmp_path / "run").seconds == pytest.approx(200 / 50 + 200 / 100)
    assert [duration(s) for s in (math.nan, 59, 3600, 9000, 200_000)] == [
        "–",
        "59 seconds",
        "60.0 minutes",
        "2.5 hours",
        "2.3 days",
    ]
    assert [number(x) for x in (0.00123456, 12.3456, 15023.2, math.nan)] == ["0.001235", "12.35", "15,020", "–"]
    assert [number(x, 2) for x in (290.4, 1.96, 0)] == ["290", "2", "0"]
    assert [plain(y) for y in (0, 5e-5, 1.25e-5, 0.0002, -5e-5, 2e-7, 1563.2)] == [
        "0",
        "0.00005",
        "0.0000125",
        "0.0002",
        "-0.00005",
        "2e-07",
        "1563",
    ]
    assert [short(x) for x in (0, 950, 4200, 620_000, 1.5e6)] == ["0", "950", "4.2k", "620k", "1.5M"]


def test_a_column_that_nobody_knows_has_a_curve_too(tmp_path: Path) -> None:
    log = {"images": [1, 2], "loss": [3, 2], "surprise": [5, 6]}
    page = page_of(make_run(tmp_path / "run", log, {"images": [2], "fcd": [7]}, family="new"), folder=tmp_path)
    assert page.plots()["surprise"]["surprise"]["y"] == [5, 6]
    assert page.plots()["fcd"]["evaluation/fcd"]["y"] == [7]


def test_metrics_are_those_of_the_export_or_the_newest_evaluation(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", some_log(), {"images": [100, 200], "accuracy": [0.5, 0.625]}, family="classifier")
    assert "0.625" in page_of(run, folder=tmp_path).text
    (run / "export").mkdir()
    (run / "export" / "facts.json").write_text(json.dumps({"images_seen": 400, "accuracy": 0.8125, "confusion": [[1]]}))
    page = page_of(run, folder=tmp_path)
    assert "0.8125" in page.text
    assert "confusion" not in page.text


def test_a_classifiers_answers_by_class(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", some_log(), family="classifier")
    (run / "export").mkdir()
    facts, classes = run / "export" / "facts.json", run / "export" / "classes.json"
    facts.write_text(json.dumps({"confusion": [[30, 10], [0, 5]]}))
    classes.write_text(json.dumps({"classes": ["cat", "<b>dog"]}))
    page = page_of(run, folder=tmp_path)
    shares = [attributes["style"] for name, attributes in page.tags if "--share" in str(attributes.get("style"))]
    assert shares == ["--share:75.0%", "--share:25.0%", "--share:0.0%", "--share:100.0%"]
    assert "75.0" in page.text
    assert page.text.count("<b>dog") == 2
    classes.write_text(json.dumps({"classes": ["cat"]}))  # of another model
    assert "Answers by class" not in page_of(run, folder=tmp_path).text


def test_what_was_said_of_a_run_that_goes_wrong(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, some_log(), seed=k) for k, name in enumerate("ab")]
    assert "Warnings" not in page_of(runs[0], folder=tmp_path).html
    (runs[0] / "warnings.csv").write_text("images,text\r\n100,it <b>falls\r\n200,other\r\n2100,it <b>falls\r\n300,half")
    for page in (page_of(runs[0], folder=tmp_path), page_of(*runs, folder=tmp_path)):
        assert "a: it <b>falls (2 times, at 100 to 2,100 images)" in page.text
        assert "a: other (at 200 images)" in page.text
        assert "half" not in page.text.replace("half-life", "")


# A run in any state


@pytest.mark.parametrize(
    "end", ["410,0.5", "410,0.5,1,1,1,1,1,1,1,5", "4", "410,a,b,c,d,e,f,g,h,i\r\n", "410,1\r\n", "\r\n"]
)
def test_a_row_that_is_not_whole_is_passed_over(end: str, tmp_path: Path) -> None:
    """The first three are still being written; the second may yet become 50 images per second."""
    run = make_run(tmp_path / "run", some_log())
    with (run / "log.csv").open("a", newline="") as f:
        f.write(end)
    assert read_run(run).images_seen == 400
    assert len(page_of(run, folder=tmp_path).plots()["Diffusion loss"]["plain"]["x"]) == 40


def test_empty_cells_are_gaps(tmp_path: Path) -> None:
    log = some_log(4) | {"mse_quarter2": ["", "0.5", "", "0.25"]}
    line = page_of(make_run(tmp_path / "run", log), folder=tmp_path).plots()["Loss by noise level"]["second quarter"]
    assert (line["x"], line["y"]) == ([20, 40], [0.5, 0.25])


def test_an_older_log_without_noise_levels(tmp_path: Path) -> None:
    log = {name: values for name, values in some_log().items() if "quarter" not in name and name != "mse"}
    plots = page_of(make_run(tmp_path / "run", log, family="text2image"), folder=tmp_path).plots()
    assert list(plots) == ["Diffusion loss", "Learning rate", "Speed", "Gradient norm"]


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run"), folder=tmp_path)
    for word in ("Nothing is logged yet", "There are no samples", "Not recorded", "0 of 1,000"):
        assert word in page.text


def test_damaged_samples_and_files_are_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", some_log(), samples={100: "red", 200: "blue"})
    (run / "samples" / "000000000300.png").write_bytes((run / "samples" / "000000000200.png").read_bytes()[:60])
    (run / "samples" / "notes.png").write_bytes(b"")
    (run / "environment.json").write_text("[{")
    (run / "checkpoints" / "000000000100").mkdir(parents=True)
    (run / "checkpoints" / "000000000100" / "model.safetensors").write_bytes(b"\xff" * 20)
    page = page_of(run, folder=tmp_path)
    assert page.data["samples"]["stops"] == [100, 200]


@pytest.mark.parametrize("what", ["nothing", "empty", "twice", "broken"])
def test_no_run_is_a_clear_error(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    run = make_run(tmp_path / "run")
    make_run(tmp_path / "broken")
    (tmp_path / "broken" / "config.yaml").write_text("a: *b")
    given = {"nothing": ["nothing"], "empty": ["empty"], "twice": ["run", "run/../run"], "broken": ["broken"]}[what]
    assert report(*(tmp_path / name for name in given), "-o", tmp_path / "report.html") == 2
    said = capsys.readouterr().err
    assert {"nothing": "is not there", "empty": "no config.yaml", "twice": "given twice", "broken": "broken"}[
        what
    ] in said
    assert "hint" in said or what == "broken"
    assert not (tmp_path / "report.html").exists()
    assert run.exists()


# Several runs


def test_several_runs_share_the_frames_of_their_family(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "a", some_log(), samples={100: "red"}, seed=1),
        make_run(tmp_path / "b", some_log(30, 0.5), samples={50: "red", 100: "blue"}, seed=2),
        make_run(tmp_path / "c", {"images": [8, 16], "loss": [2, 1]}, family="classifier"),
    ]
    page = page_of(*runs, folder=tmp_path)
    plots = page.plots()
    assert list(plots["Diffusion loss: plain"]) == ["a", "b"]
    assert plots["Diffusion loss: plain"]["b"]["y"] == [float(v) for v in some_log(30, 0.5)["mse"]]
    assert list(plots["Cross-entropy"]) == ["in training"]
    head = re.search(r"<thead>.*?</table>", page.html, re.DOTALL)
    assert head is not None
    cells = {row[0]: row[1:] for row in (re.findall(r"<t[hd][^>]*>([^<]*)", tr) for tr in head[0].split("<tr>")[2:])}
    assert cells["family"] == ["ddpm", "ddpm", "classifier"]
    assert [cells["diffusion loss, plain"][2], *cells["cross-entropy, in training"][:2]] == ["–"] * 3
    assert cells["cross-entropy, in training"][2] == f"{moving_average(np.array([8.0, 16]), np.array([2.0, 1]))[1]:.4g}"
    assert page.data["samples"]["stops"] == [50, 100]
    assert [run["name"] for run in page.data["samples"]["runs"]] == ["a", "b"]
    assert "What differs (ddpm)" in page.text
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name / "run") for name in "ab"]
    assert [run.name for run in read_runs(runs)] == ["a/run", "b/run"]
    with pytest.raises(UsageError, match="given twice"):
        read_runs([runs[0], runs[0]])


# Safety: nothing from a run becomes part of the page, and the page asks for nothing


def test_what_comes_from_a_run_is_text(tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>"
    end = "</script><script>alert(2)</script><!--"
    log = {"images": [1, 2], "loss": [2, 1], f"{evil}{end}": [1, 2]}
    run = make_run(
        tmp_path / "<b onclick=alert(3)>&'\"", log, samples={2: "red"}, note=end, quote="\"'>{{made}}", family=f"{evil}"
    )
    (run / "environment.json").write_text(json.dumps([{"since": 0, evil: end}]))
    other = make_run(tmp_path / "other", log, family=evil, note="x")
    for runs in ([run], [run, other]):
        page = page_of(*runs, folder=tmp_path)
        assert [name for name, _ in page.tags if name in ("img", "b") and name == "img"] == ["img"]  # its one sheet
        assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on")]
        assert len(page.scripts) == 1
        assert "alert" not in page.scripts[0]
        for text in (evil, end, "{{made}}", "<b onclick=alert(3)>&'\""):
            assert text in page.text


def test_the_page_forbids_itself_the_network_and_other_scripts(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", some_log(), samples={100: "red", 200: "blue"})
    page = page_of(run, folder=tmp_path)
    policy = next(str(a["content"]) for name, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(page.scripts[0].encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy
    assert "script-src 'unsafe" not in policy
    assert not re.findall(r"https?:|@import|url\((?!#)", page.html)
    for name, attributes in page.tags:
        assert name not in ("link", "iframe", "object", "embed", "base", "form")
        for key in ("src", "href", "xlink:href", "srcset", "action", "data"):
            assert (attributes.get(key) or "#").startswith(("data:image/", "#"))


def test_folders_of_this_machine_do_not_leave_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", some_log(), data={"sources": [{"path": str(tmp_path / "photos")}]})
    page = page_of(run, folder=tmp_path)
    assert str(tmp_path) not in page.html
    assert "…/photos" in page.text
    assert shareable({"a": ["C:\\x\\y.png", "a/b", "/"]}) == {"a": ["…/y.png", "a/b", "/"]}


def test_every_picture_of_the_page_is_the_sheet_of_its_moment(tmp_path: Path) -> None:
    import io

    run = make_run(tmp_path / "run", samples={100 * (k + 1): colour for k, colour in enumerate(COLOURS)})
    (data,) = page_of(run, folder=tmp_path).data["samples"]["runs"]
    assert data["images"] == [100, 200, 300, 400]
    for uri, colour in zip(data["uris"], COLOURS, strict=True):
        sheet = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")
        wanted = Image.new("RGB", sheet.size, colour)
        assert np.abs(np.asarray(sheet, dtype=int) - np.asarray(wanted, dtype=int)).max() < 12
    assert evenly(3, MOST) == [0, 1, 2]
    assert evenly(1000, 5) == [0, 250, 500, 749, 999]


# Files


def test_plots_are_files_for_light_and_dark_ground(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", some_log())
    assert report(run, "--plots", tmp_path / "plots") == 0
    said = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(said) == sorted((tmp_path / "plots").iterdir())
    assert len(said) == 5 * 4
    assert not Path("report.html").exists()
    for path in said:
        light = "-dark" not in path.stem
        if path.suffix == ".png":
            picture = np.asarray(Image.open(path).convert("L"), dtype=float)
            assert (picture[0, 0] > 200) == light
            assert picture.std() > 5
        else:
            root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
            text = " ".join("".join(node.itertext()) for node in root.iter() if node.tag.endswith("}text"))
            assert "images seen" in text
    assert "most noise" in (tmp_path / "plots" / "loss-by-noise-level.svg").read_text(encoding="utf-8")


def test_a_name_of_a_run_is_no_formula_and_may_be_in_any_script(tmp_path: Path) -> None:
    """matplotlib would read $ as mathematics, and leave out of a legend what begins with _."""
    names = ["_hidden", "$\\frac{", "马-🐎", *(f"a-long-name-of-a-run-{k}" for k in range(9))]
    runs = [make_run(tmp_path / name, {"images": [8, 16], "mse": [2, 1]}) for name in names]
    assert report(*runs, "--plots", tmp_path / "plots") == 0
    assert report(*runs, "--plots", tmp_path / "plots") == 0  # they say in every script what they are about
    svg = (tmp_path / "plots" / "diffusion-loss.svg").read_text(encoding="utf-8")
    text = [
        "".join(node.itertext()).strip() for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("}text")
    ]
    assert set(names) <= set(text)
    assert list(page_of(*runs, folder=tmp_path).plots()["Diffusion loss"]) == names


def test_the_users_own_style_of_plots_is_left_alone_and_not_used(tmp_path: Path) -> None:
    import matplotlib

    run = make_run(tmp_path / "run", some_log())
    assert report(run, "--plots", tmp_path / "a") == 0
    with matplotlib.rc_context(
        {"lines.linewidth": 9, "axes.facecolor": "red", "font.size": 30, "svg.fonttype": "path"}
    ):
        assert report(run, "--plots", tmp_path / "b") == 0
        assert matplotlib.rcParams["font.size"] == 30
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_report_is_replaced_by_a_newer_one_and_nothing_else_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = {"images": [8, 16], "mse": [2, 1]}
    run, other = make_run(tmp_path / "run", log), make_run(tmp_path / "other", log)
    page, plots = tmp_path / "report.html", tmp_path / "plots"
    words = ("-o", page, "--plots", plots)
    assert report(run, *words) == 0
    first = page.read_text(encoding="utf-8")
    with (run / "log.csv").open("a") as f:
        f.write("24,0.5\r\n")
    assert report(run, *words) == 0
    assert page.read_text(encoding="utf-8") != first
    capsys.readouterr()
    for given, output in ((other, ("-o", page)), (other, ("--plots", plots))):
        before = {path: path.read_bytes() for path in [page, *plots.iterdir()]}
        assert report(given, *output) == 2
        assert "--overwrite" in capsys.readouterr().err
        assert {path: path.read_bytes() for path in [page, *plots.iterdir()]} == before
        assert report(given, *output, "--overwrite") == 0
    page.write_text("my thesis")
    assert report(run, "-o", page) == 2
    assert page.read_text() == "my thesis"


def test_help_and_pages_are_light() -> None:
    """Help loads no matplotlib, and a report no torch."""
    check = (
        "import sys, t2i.cli.report as r; assert not {'matplotlib', 'numpy', 'yaml'} & {*sys.modules}, 'help';"
        "import t2i.report.writers; assert not {'matplotlib', 'torch', 'diffusers'} & {*sys.modules}, 'save'"
    )
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True)


# Every family, trained and reported on by the commands


@pytest.fixture(scope="module")
def makers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Callable[..., Any]]:
    return makers_over(tmp_path_factory.mktemp("data")) | {"classifier": classifier_config}


EVERYTHING: dict[str, dict[str, Any]] = {  # what gives a family's run all of its columns
    "autoencoder": {
        "loss": {"perceptual": 0.5, "adversarial": 0.5, "adversarial_from": 16},
        "discriminator__channels": [4, 8],
        "held_out": {"sources": [{"path": "t2i:shapes.parquet"}], "size": 16},
    }
}


@pytest.mark.parametrize("family", sorted(CURVES))
def test_every_familys_run(family: str, makers: dict[str, Callable[..., Any]], tmp_path: Path) -> None:
    """Every column of the log and of the evaluation is in the page, under a curve that knows it."""
    config = write_config(makers[family](**EVERYTHING.get(family, {})), tmp_path / "config.yaml")
    assert main(["train", family, str(config), "--run", str(tmp_path / "run"), "--quiet"]) == 0
    page = page_of(tmp_path / "run", folder=tmp_path)
    drawn = {(tuple(line["x"]), tuple(line["y"])) for plot in page.plots().values() for line in plot.values()}
    for name in ("log.csv", "evaluation.csv"):
        if not (tmp_path / "run" / name).exists():
            continue
        with (tmp_path / "run" / name).open(newline="") as f:
            rows = list(csv.DictReader(f))
        for column in [column for column in rows[0] if column != "images"]:
            points = [(float(row["images"]), float(row[column])) for row in rows if row[column]]
            x, y = zip(*points, strict=True)
            assert (x, y) in drawn, column
    known = {curve.title for curve in CURVES[family]}
    assert known <= set(page.plots())
    assert page.data.get("samples", {}).get("stops") == (None if family == "classifier" else [16, 32])
    (entry,) = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert entry["t2i"] in page.text
    assert entry["device"] in page.text
    assert ("Answers by class" in page.text) == (family == "classifier")


def test_parameters_are_counted_without_reading_them(makers: dict[str, Callable[..., Any]], tmp_path: Path) -> None:
    from t2i.training.families.dcgan import Players

    config = makers["dcgan"]()
    train(config, tmp_path / "run")
    count = sum(p.numel() for p in Players(config, 0).parameters())
    assert read_run(tmp_path / "run").parameters == count
    assert read_numbers(tmp_path / "run" / "log.csv")["images"][-1] == 32
