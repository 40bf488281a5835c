"""The runner of the experiments: verdicts, files, exit codes and the page."""

import csv
import io
import json
import re
import sys
from functools import partial

import jax
import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

import matplotlib.pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from rich.console import Console
from typer.testing import CliRunner

from experiments import files, page, style
from experiments.__main__ import make_app
from experiments.claims import Claim, describe, measured_claim, number, unmeasured_claim
from experiments.context import Context
from experiments.provenance import PACKAGES, commit
from experiments.registry import UnknownExperimentError, discover, experiment, select
from experiments.run import exit_code, run_experiments, run_one

NOTE = "Made from 8 × 8 digits, not from MNIST."
SOURCE = "Radhakrishnan et al. 2020, Figure 1a"


@experiment("alignment/good", title="A line, and <b>claims</b>", source=SOURCE)
def good(context):
    context.note(NOTE)
    with context.figure("line", "Risk [x] against the step.") as (_, axes):
        axes.plot([0, 1], [1, 0])
        axes.set(xlabel="step", ylabel="risk")
    context.table("line", {"step": np.arange(2), "risk": [1 / 3, 1e-300]}, "The line.")
    context.claim_close("close", SOURCE, "It is one.", predicted=1, measured=1.0, tolerance=0)
    context.claim_below(
        "below", SOURCE, "As printed: [A] = 0", bound=1e-10, measured=0.5, expected="refuted"
    )
    context.not_measured("images", SOURCE, "On images.", reason="no images were found")


@experiment("alignment/raises", title="It raises", source=SOURCE)
def raises(context):
    context.claim_above("above", SOURCE, "It is large.", bound=1, measured=2)
    raise RuntimeError("the third layer is missing")


@experiment("alignment/surprise", title="A surprise", source=SOURCE)
def surprise(context):
    context.claim_close("off", SOURCE, "It is one.", predicted=1, measured=2, tolerance=0.1)


FAKES = {entry.name: entry for entry in (raises, good, surprise)}


def run(experiments, output, scale="quick", seed=0):
    console = Console(file=io.StringIO(), width=160)
    outcomes = run_experiments(experiments, scale=scale, seed=seed, output=output, console=console)
    return outcomes, console.file.getvalue()


def invoke(*arguments, load=lambda: FAKES):
    return CliRunner().invoke(make_app(load), [str(argument) for argument in arguments])


@pytest.fixture
def context(tmp_path):
    with style.paper():
        yield Context("alignment/fake", folder=tmp_path)


def compare(comparison, predicted, measured, tolerance=0.0, **options):
    return measured_claim(
        "id",
        SOURCE,
        "statement",
        comparison=comparison,
        predicted=predicted,
        measured=measured,
        tolerance=tolerance,
        **options,
    ).verdict


@pytest.mark.parametrize(
    ("comparison", "predicted", "measured", "tolerance", "verdict"),
    [
        ("close", 1.0, 1.25, 0.25, "confirmed"),
        ("close", 1.0, 0.75, 0.25, "confirmed"),
        ("close", 1.0, 1.2500001, 0.25, "refuted"),
        ("close", 1.0, 0.7499999, 0.25, "refuted"),
        ("close", 0.0, float("inf"), 0.25, "refuted"),
        ("below", 1.0, 1.0, 0.0, "confirmed"),
        ("below", 1.0, -9.0, 0.0, "confirmed"),
        ("below", 1.0, 1.0 + 1e-15, 0.0, "refuted"),
        ("below", 1.0, 1.25, 0.25, "confirmed"),
        ("below", 1.0, 1.3, 0.25, "refuted"),
        ("above", 1.0, 1.0, 0.0, "confirmed"),
        ("above", 1.0, float("inf"), 0.0, "confirmed"),
        ("above", 1.0, 1.0 - 1e-15, 0.0, "refuted"),
        ("above", 1.0, 0.75, 0.25, "confirmed"),
        ("above", 1.0, 0.7, 0.25, "refuted"),
    ],
)
def test_verdict_is_the_comparison(comparison, predicted, measured, tolerance, verdict):
    assert compare(comparison, predicted, measured, tolerance) == verdict


@pytest.mark.parametrize("sign", [1, -1])
def test_relative_tolerance_is_in_units_of_the_prediction(sign):
    assert compare("close", sign * 100, sign * 100.5, 0.01, relative=True) == "confirmed"
    assert compare("close", sign * 100, sign * 101.5, 0.01, relative=True) == "refuted"
    assert compare("close", sign * 100, sign * 100.5, 0.01) == "refuted"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"measured": float("nan")}, ValueError, "measured is NaN"),
        ({"predicted": float("nan")}, ValueError, "predicted must be finite"),
        ({"predicted": float("inf")}, ValueError, "predicted must be finite"),
        ({"tolerance": -1.0}, ValueError, "tolerance must be at least 0"),
        ({"tolerance": float("nan")}, ValueError, "tolerance must be at least 0"),
        ({"measured": np.ones(2)}, TypeError, r"measured must be a scalar.*\(2,\)"),
        ({"expected": "maybe"}, ValueError, "expected must be one of.*'maybe'"),
        ({"comparison": "near"}, ValueError, "comparison must be.*'near'"),
    ],
)
def test_a_claim_that_compares_nothing_is_refused(change, error, message):
    arguments = {"comparison": "close", "predicted": 1.0, "measured": 1.0, "tolerance": 0.0}
    with pytest.raises(error, match=message):
        compare(**(arguments | change))


def test_a_claim_that_is_not_measured_needs_a_reason():
    with pytest.raises(ValueError, match="needs a reason"):
        unmeasured_claim("id", SOURCE, "statement", reason=" ")
    claim = unmeasured_claim("id", SOURCE, "statement", reason="no data")
    assert (claim.verdict, claim.surprising) == ("not measured", False)
    assert unmeasured_claim("id", SOURCE, "s", reason="r", expected="confirmed").surprising


@pytest.mark.parametrize("measured", [0.1, float("inf"), -float("inf")])
def test_claims_survive_strict_json(measured):
    claim = measured_claim(
        "id", SOURCE, "statement", comparison="above", predicted=1 / 3, measured=measured
    )
    assert Claim.from_json(json.loads(json.dumps(claim.to_json(), allow_nan=False))) == claim


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-3.0, "−3"),
        (0.65, "0.65"),
        (123456.0, "123456"),
        (1e-12, "10⁻¹²"),
        (-1.25e-9, "−1.25 × 10⁻⁹"),
        (2.5e8, "2.5 × 10⁸"),
        (float("inf"), "∞"),
        (-float("inf"), "−∞"),
        (None, "—"),
    ],
)
def test_numbers_are_written_for_people(value, text):
    assert number(value) == text


def test_a_small_deviation_is_shown_where_rounding_would_hide_it():
    claim = measured_claim(
        "id", SOURCE, "s", comparison="close", predicted=1, measured=1 - 2**-45, tolerance=1e-9
    )
    assert describe(claim)["measured"] == "1 − 3 × 10⁻¹⁴"


def test_scale_picks_and_key_depends_on_seed_and_name(tmp_path):
    def bits(name, seed):
        return tuple(jax.random.key_data(Context(name, seed=seed, folder=tmp_path).key).tolist())

    quick = Context("alignment/a", scale="quick", folder=tmp_path)
    assert quick.pick(quick=1, standard=2, full=3) == 1
    assert Context("alignment/a", folder=tmp_path).pick(quick=1, standard=2, full=3) == 2
    assert bits("alignment/a", 0) == bits("alignment/a", 0)
    assert len({bits("alignment/a", 0), bits("alignment/a", 1), bits("alignment/b", 0)}) == 3


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "columns is empty"),
        ({"a": [1, 2], "b": [1]}, r"'b' must have shape \(2,\), got \(1,\)"),
        ({"a": [[1, 2]]}, r"'a' must have shape \(2,\), got \(1, 2\)"),
        ({"a": 1.0}, r"'a' must have shape \(1,\), got \(\)"),
    ],
)
def test_a_table_that_is_none_is_refused(context, columns, message):
    with pytest.raises(ValueError, match=message):
        context.table("t", columns, "caption")


def test_names_are_file_names_and_used_once(context):
    context.table("t", {"a": [1]}, "caption")
    with pytest.raises(ValueError, match="already has"):
        context.table("t", {"a": [1]}, "caption")
    with pytest.raises(ValueError, match="cannot be a file name"):
        context.table("../t", {"a": [1]}, "caption")
    context.not_measured("id", SOURCE, "s", reason="r")
    with pytest.raises(ValueError, match="'id' is made twice"):
        context.not_measured("id", SOURCE, "s", reason="r")


def test_a_note_cannot_come_after_what_should_carry_it(context):
    context.table("t", {"a": [1]}, "caption")
    with pytest.raises(RuntimeError, match="before the first figure or table"):
        context.note("late")


def test_a_note_is_printed_below_the_axes_and_the_figure_grows(context):
    figure, axes = style.subplots(height=2.0)
    axes.set(xlabel="step", ylabel="risk")
    context.note("word " * 60)
    context.save_figure(figure, "f", "caption")
    assert figure.get_figheight() > 2.0
    (note,) = figure.texts
    renderer = FigureCanvasAgg(figure).get_renderer()
    assert note.get_window_extent(renderer).y1 <= axes.get_tightbbox(renderer).y0
    assert note.get_window_extent(renderer).x1 <= figure.bbox.x1
    assert not plt.fignum_exists(figure.number)


def test_a_figure_whose_block_raises_is_closed_and_not_written(context):
    before = plt.get_fignums()
    with pytest.raises(RuntimeError, match="inside"), context.figure("f", "caption"):
        raise RuntimeError("inside")
    assert plt.get_fignums() == before
    assert not list(context.folder.iterdir())


def test_unknown_widths_are_refused():
    with pytest.raises(ValueError, match="width: expected single, double or inches, got 'triple'"):
        style.subplots(width="triple")
    with pytest.raises(ValueError, match="positive number of inches"):
        style.subplots(width=-1.0)


def test_an_experiment_leaves_all_its_files(tmp_path):
    (outcome,), _ = run([good], tmp_path, scale="full", seed=7)
    folder = tmp_path / "alignment" / "good"
    assert outcome.succeeded
    names = {"line.png", "line.pdf", "line.csv", "config.json", "claims.json", "experiment.json"}
    assert {entry.name for entry in folder.iterdir()} == names
    assert (folder / "line.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "line.pdf").read_bytes().startswith(b"%PDF")
    note, *lines = (folder / "line.csv").read_text(encoding="utf-8").splitlines()
    assert note == f"# {NOTE}"
    header, *rows = csv.reader(lines)
    assert header == ["step", "risk"]
    assert [[float(cell) for cell in row] for row in rows] == [[0, 1 / 3], [1, 1e-300]]
    claims = json.loads((folder / "claims.json").read_text(encoding="utf-8"))
    assert [claim["verdict"] for claim in claims] == ["confirmed", "refuted", "not measured"]


def test_config_says_where_a_result_comes_from(tmp_path):
    run([good], tmp_path, scale="full", seed=7)
    config = json.loads((tmp_path / "alignment" / "good" / "config.json").read_text())
    assert (config["experiment"], config["scale"], config["seed"]) == ("alignment/good", "full", 7)
    assert set(config["versions"]) == {"python", *PACKAGES}
    assert config["versions"]["jax"] == jax.__version__
    assert config["versions"]["numpy"] == np.__version__
    assert {"commit", "dirty", "date", "wall_seconds"} <= set(config)
    assert config["x64"] is True
    assert config["hardware"]["device_kind"] == jax.devices()[0].device_kind
    assert all(config["hardware"][key] for key in ("platform", "cpu", "cpu_count", "backend"))


def test_a_folder_without_git_has_no_commit(tmp_path):
    assert commit(tmp_path) == {"commit": None, "dirty": None}


def test_equal_runs_write_equal_figures(tmp_path):
    for folder in ("first", "second"):
        run([good], tmp_path / folder)
    for name in ("line.png", "line.pdf", "line.csv", "claims.json"):
        first, second = (tmp_path / k / "alignment/good" / name for k in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()


def test_an_experiment_that_raises_does_not_lose_the_others(tmp_path):
    outcomes, text = run([raises, good], tmp_path)
    assert [outcome.succeeded for outcome in outcomes] == [False, True]
    assert "the third layer is missing" in text
    # what it claimed before the error is kept
    assert json.loads((tmp_path / "alignment/raises/claims.json").read_text())[0]["id"] == "above"
    html = (tmp_path / page.FILE).read_text(encoding="utf-8")
    assert "RuntimeError: the third layer is missing" in html
    assert "line.csv" in html


def test_exit_code_tells_errors_and_surprises(tmp_path):
    codes = [exit_code(run([entry], tmp_path)[0]) for entry in (good, raises, surprise)]
    assert codes == [0, 1, 1]


def test_a_second_run_replaces_the_first_and_leaves_foreign_files(tmp_path):
    @experiment("alignment/good", title="Another", source=SOURCE)
    def other(context):
        context.table("new", {"a": [1]}, "Another table.")

    folder = tmp_path / "alignment" / "good"
    run([good], tmp_path)
    (folder / "mine.txt").write_text("kept")
    run([other], tmp_path)
    names = {"new.csv", "config.json", "claims.json", "experiment.json", "mine.txt"}
    assert {entry.name for entry in folder.iterdir()} == names


def test_an_interrupted_run_leaves_the_last_results(tmp_path):
    @experiment("alignment/good", title="Interrupted", source=SOURCE)
    def interrupted(context):
        context.table("line", {"a": [1]}, "Half a result.")
        raise KeyboardInterrupt

    folder = tmp_path / "alignment" / "good"
    run([good], tmp_path)
    before = {entry.name: entry.read_bytes() for entry in folder.iterdir()}
    with pytest.raises(KeyboardInterrupt):
        run_one(interrupted, scale="quick", seed=0, output=tmp_path, shared={})
    assert {entry.name: entry.read_bytes() for entry in folder.iterdir()} == before


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "value.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(path, {"a": float("nan")})

    def half(file):
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.write_atomically(path, half)
    assert [entry.name for entry in tmp_path.iterdir()] == ["value.json"]
    assert json.loads(path.read_text()) == {"a": 1}


def test_the_page_is_self_contained_and_shows_everything(tmp_path):
    run([good], tmp_path)
    html = (tmp_path / page.FILE).read_text(encoding="utf-8")
    assert "data:image/png;base64,iVBORw0KGgo" in html
    without_images = re.sub(r"base64,[\w+/=]+", "", html)
    assert not re.search(r"https?:|//|@import|<script|<link|url\(", without_images)
    for link in re.findall(r'href="([^"#]+)"', html):
        assert (tmp_path / link).is_file(), link
    for text in ("Risk [x] against the step.", "It is one.", "As printed: [A] = 0", SOURCE):
        assert text in html
    # beside the figure and beside the table
    assert html.count(NOTE) == 2
    assert "A line, and &lt;b&gt;claims&lt;/b&gt;" in html
    for verdict in ("✓ confirmed", "✗ refuted", "– not measured"):
        assert verdict in html


def test_the_page_keeps_the_results_of_earlier_runs(tmp_path):
    run([good], tmp_path)
    run([surprise], tmp_path)
    html = (tmp_path / page.FILE).read_text(encoding="utf-8")
    assert 'id="alignment-good"' in html
    assert 'id="alignment-surprise"' in html
    assert "expected: confirmed" in html


def test_a_damaged_result_is_named(tmp_path):
    run([good], tmp_path)
    (tmp_path / "alignment/good/claims.json").write_text("{")
    with pytest.raises(ValueError, match=r"claims\.json does not hold JSON"):
        page.build(tmp_path)


def test_the_terminal_shows_brackets_and_no_progress_bar_in_a_file(tmp_path):
    _, text = run([good], tmp_path)
    assert "[A] = 0" in text
    assert "0:00:0" not in text
    assert "\x1b" not in text


def test_command_line_lists_and_runs(tmp_path):
    assert "alignment/surprise" in invoke("list").output
    result = invoke("run", "alignment/good", "--scale", "quick", "--output", tmp_path / "new" / "r")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "new" / "r" / page.FILE).is_file()


@pytest.mark.parametrize("names", [["--all"], ["all"], ["alignment"], list(FAKES)])
def test_command_line_runs_all_and_fails_where_one_does(tmp_path, names):
    result = invoke("run", *names, "--output", tmp_path)
    assert result.exit_code == 1
    assert {entry.name for entry in (tmp_path / "alignment").iterdir()} == {
        "raises",
        "good",
        "surprise",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["alignment/godo"], "did you mean alignment/good"),
        (["good"], "did you mean alignment/good"),
        (["zzz"], "'list' shows what there is"),
        ([], "name the experiments to run, or pass --all"),
        (["alignment/good", "--all"], "name the experiments to run, or pass --all"),
        (["alignment/good", "--seed", "-1"], "seed"),
        (["alignment/good", "--scale", "huge"], "huge"),
    ],
)
def test_bad_usage_exits_with_two(tmp_path, arguments, message):
    result = invoke("run", *arguments, "--output", tmp_path / "results")
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "results").exists()


def test_an_output_that_cannot_be_written_exits_with_two(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        result = invoke("run", "alignment/good", "--output", output)
        assert result.exit_code == 2
        assert "cannot write to the output folder" in result.output


HEADER = "from experiments.registry import experiment\n"
DEFINE = "@experiment({name!r}, title='t', source='s')\ndef run(context):\n    pass\n"


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "fake_experiments" / "alignment"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for name in [name for name in sys.modules if name.startswith("fake_experiments")]:
        del sys.modules[name]


def test_discovery_imports_every_file_and_a_broken_one_hides_no_other(package, tmp_path):
    (package / "first.py").write_text(HEADER + DEFINE.format(name="alignment/first"))
    (package / "second.py").write_text(
        HEADER
        + "from fake_experiments.alignment.first import run as neighbour\n"
        + DEFINE.format(name="alignment/second")
    )
    (package / "broken.py").write_text("import no_such_module_at_all\n")
    (package / "misnamed.py").write_text(HEADER + DEFINE.format(name="alignment/other"))
    (package / "_shared.py").write_text("raise RuntimeError('not an experiment')\n")
    found = discover("fake_experiments")
    names = ["broken", "first", "misnamed", "second"]
    assert list(found) == [f"alignment/{name}" for name in names]

    output = tmp_path / "results"
    result = invoke("run", "--all", "--output", output, load=partial(discover, "fake_experiments"))
    assert result.exit_code == 1
    assert "No module named 'no_such_module_at_all'" in result.output
    assert "must define one experiment, 'alignment/misnamed'" in result.output
    errors = {
        name: json.loads((output / "alignment" / name / "experiment.json").read_text())["error"]
        for name in names
    }
    assert [name for name, error in errors.items() if error is None] == ["first", "second"]


@pytest.mark.parametrize("name", ["figure", "a/b/c", "alignment/", "alignment/figure 1"])
def test_names_of_experiments_are_a_folder_and_a_file(name):
    with pytest.raises(ValueError, match="expected '<paper>/<file>'"):
        experiment(name, title="t", source="s")


def test_selection_keeps_order_and_runs_nothing_twice():
    chosen = select(FAKES, ["alignment/surprise", "alignment", "alignment/good"])
    assert [entry.name for entry in chosen] == [
        "alignment/surprise",
        "alignment/raises",
        "alignment/good",
    ]
    with pytest.raises(UnknownExperimentError):
        select(FAKES, ["align"])
