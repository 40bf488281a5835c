"""The command line: verdicts, runs, stores, plans and pictures, and how commands end."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import matplotlib.image
import numpy as np
import pytest

import alignjax as aj
from alignjax.cli import errors, main
from alignjax.cli.errors import CommandError
from alignjax.theory import alignment

pytest.importorskip("typer")
xarray = pytest.importorskip("xarray")

SWEEP = """
observe = ["risk"]
problem = {X = "X.csv", Y = "Y.npy"}
network = {width = 2}
start = {initializer = "gaussian"}
train = {steps = 4, save_at = [0, 4]}
[axes]
learning_rate = {geomspace = [0.01, 10.0, 6]}
scale = [0.1, 0.5, 1.0, 1.5, 2.0, 3.0]
seed = {range = 2}
depth = [2]
[sweep]
store = "runs.zarr"
chunk = 24
[units]
learning_rate = "1/s"
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with aligned data, and with data that are not."""
    monkeypatch.chdir(tmp_path)
    X, Y, *_ = aj.datasets.aligned_regression(
        jax.random.key(0), [4.0, 2.0, 1.0], [4.0, 1.0, 0.5], n=8
    )
    np.savetxt("X.csv", X, delimiter=",", header="first,second,third", comments="", fmt="%.17g")
    np.save("Y.npy", Y)
    np.savez("both.npz", X=X, Y=Y)
    np.save("other.npy", np.random.default_rng(0).normal(size=(8, 3)))
    Path("sweep.toml").write_text(SWEEP)
    return tmp_path


def spoken(capsys, *arguments):
    """Exit code, standard output and standard error of a command."""
    capsys.readouterr()
    code = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_certify_says_yes_and_gives_what_the_library_gives(folder, capsys):
    code, out, _ = spoken(
        capsys, "certify", "X.csv", "both.npz:Y", "--json", "--depth", 3, "--scale", 0.5
    )
    told = json.loads(out)
    problem = aj.regression(np.loadtxt("X.csv", delimiter=",", skiprows=1), np.load("Y.npy"))
    expected = alignment.certify(problem)
    values = np.full((3, 3), 0.5)
    bound = alignment.learning_rate_bound(expected, values)
    threshold = alignment.stability_threshold(expected, depth=3)
    (rate,) = told["learning_rates"]
    assert code == errors.YES
    assert told["verdict"] == "yes"
    np.testing.assert_allclose(told["V"], expected.V, atol=1e-12)
    np.testing.assert_allclose(rate["convergence_bound"], bound, rtol=1e-12)
    np.testing.assert_allclose(rate["stability_threshold"], threshold, rtol=1e-12)
    safe = alignment.safe_learning_rate(expected, values)
    np.testing.assert_allclose(rate["safe_learning_rate"], safe, rtol=1e-12)
    assert safe <= min(bound, threshold)


def test_certify_ends_with_1_for_no_and_with_2_where_it_cannot_tell(folder, capsys):
    assert spoken(capsys, "certify", "X.csv", "other.npy")[0] == errors.NO
    wide = ("--tolerance-yes", 1e-10, "--tolerance-no", 1.0, "--depth", 3)
    code, out, _ = spoken(capsys, "certify", "X.csv", "other.npy", *wide)
    assert code == errors.CANNOT_TELL
    assert "cannot tell" in out


def test_certify_of_one_file_is_autoencoding_and_writes_its_bases(folder, capsys):
    assert spoken(capsys, "certify", "X.csv", "--depth", 3, "--out", "bases.npz")[0] == errors.YES
    with np.load("bases.npz") as bases:
        np.testing.assert_allclose(np.abs(bases["U"]), np.abs(bases["V"]), atol=1e-12)
        np.testing.assert_allclose(bases["input_spectrum"], [4, 2, 1], rtol=1e-12)


def test_certify_takes_the_start_whose_learning_rate_is_asked_for(folder, capsys):
    problem = aj.regression(np.loadtxt("X.csv", delimiter=",", skiprows=1), np.load("Y.npy"))
    s = np.array([[0.3, 0.4, 0.5], [0.6, 0.5, 0.4]])
    start = aj.initializers.aligned(jax.random.key(0), problem, (3, 4, 3), s)
    np.savez("start.npz", W_1=start[0], W_2=start[1])
    told = json.loads(
        spoken(capsys, "certify", "X.csv", "Y.npy", "--weights", "start.npz", "--json")[1]
    )
    reduced = aj.reduce(problem, start)
    bound = alignment.learning_rate_bound(reduced, reduced.singular_values)
    (rate,) = told["learning_rates"]
    np.testing.assert_allclose(rate["convergence_bound"], bound, rtol=1e-9)
    np.savez("turned.npz", W_1=start[0], W_2=start[1][:, ::-1])
    told = json.loads(
        spoken(capsys, "certify", "X.csv", "Y.npy", "--weights", "turned.npz", "--json")[1]
    )
    assert told["verdict"] == "yes"
    assert told["learning_rates"] == []
    assert "not aligned" in told["learning_rates_note"]


def test_simulate_trains_as_the_library_does(folder, capsys):
    values = ("--set", "learning_rate=0.1", "--set", "scale=0.5", "--set", "seed=3")
    code, out, _ = spoken(
        capsys, "simulate", "sweep.toml", *values, "--set", "depth=2", "--out", "run.npz", "--json"
    )
    problem = aj.regression(np.loadtxt("X.csv", delimiter=",", skiprows=1), np.load("Y.npy"))
    start = aj.initializers.gaussian(jax.random.key(3), (3, 2, 3), 0.5)
    run = aj.gradient_descent(problem, start, 0.1, steps=4)
    told = json.loads(out)
    assert code == 0
    assert told["status"] == "completed"
    np.testing.assert_allclose(told["risk"], run.observations["risk"], rtol=1e-12)
    with np.load("run.npz") as written:
        np.testing.assert_allclose(written["W_2"], run.weights[1], rtol=1e-12)
        assert written["step"].tolist() == [0, 4]


def test_a_sweep_is_what_its_runs_are_and_resumes_without_computing_again(folder, capsys):
    plan = json.loads(spoken(capsys, "sweep", "sweep.toml", "--dry-run", "--json")[1])
    assert (plan["runs"], plan["programs"], plan["blocks"], plan["chunk"]) == (72, 1, 3, 24)
    assert not Path("runs.zarr").exists()

    assert spoken(capsys, "sweep", "sweep.toml")[0] == 0
    data = xarray.open_zarr("runs.zarr", consolidated=False).load()
    assert dict(data.sizes) == {"depth": 1, "learning_rate": 6, "scale": 6, "seed": 2, "step": 2}
    assert data.learning_rate.attrs["units"] == "1/s"
    problem = aj.regression(np.loadtxt("X.csv", delimiter=",", skiprows=1), np.load("Y.npy"))
    start = aj.initializers.gaussian(jax.random.key(1), (3, 2, 3), 1.0)
    kept = data.risk.sel(depth=2, scale=1.0, seed=1, step=0)
    np.testing.assert_allclose(kept, np.full(6, aj.risk(problem, start)), rtol=1e-12)
    assert {aj.Status.COMPLETED, aj.Status.DIVERGED} >= set(np.unique(data.status))

    record = sorted(Path("runs.zarr/complete/records").glob("*.json"))
    assert len(record) == 3
    record[0].unlink()
    before = {path: path.stat().st_mtime_ns for path in record[1:]}
    assert spoken(capsys, "sweep", "sweep.toml", "--quiet") == (0, "", "")
    assert {path: path.stat().st_mtime_ns for path in record[1:]} == before
    again = xarray.open_zarr("runs.zarr", consolidated=False).load()
    xarray.testing.assert_identical(again, data)

    # Nothing is lost without --overwrite, and a plan says so too.
    for plan in ((), ("--dry-run",)):
        code, _, err = spoken(capsys, "sweep", "sweep.toml", "--no-resume", *plan)
        assert code == errors.CANNOT_WRITE
        assert "pass --resume to continue it, --overwrite to replace it" in err
    Path("sweep.toml").write_text(SWEEP.replace("3.0]", "4.0]"))
    for plan in ((), ("--dry-run",)):
        code, _, err = spoken(capsys, "sweep", "sweep.toml", *plan)
        assert code == errors.CANNOT_WRITE
        assert "scale" in err
        assert "pass --overwrite" in err
    kept = xarray.open_zarr("runs.zarr", consolidated=False).load()
    xarray.testing.assert_identical(kept, data)

    _plots_show(capsys, data)


def _plots_show(capsys, data):
    """Pictures of the store: a map, lines, and what is refused."""
    code, out, _ = spoken(capsys, "plot", "runs.zarr")
    assert code == 0
    assert "risk over scale, learning_rate" in out or "risk over learning_rate, scale" in out
    assert matplotlib.image.imread("runs.png").std() > 0.05
    lines = ("--x", "learning_rate", "--y", "none", "--select", "scale=1.0")
    assert spoken(capsys, "plot", "runs.zarr", *lines, "--out", "lines.pdf")[0] == 0
    assert Path("lines.pdf").read_bytes().startswith(b"%PDF")
    for wrong, words in (
        (("--variable", "rsk"), "risk"),
        (("--x", "rate"), "learning_rate"),
        (("--select", "scale=big"), "number"),
        (("--average", "mode"), "median"),
        (("--out", "picture.gif"), ".png"),
    ):
        code, _, err = spoken(capsys, "plot", "runs.zarr", *wrong)
        assert code == errors.USAGE
        assert words in err
    assert spoken(capsys, "plot", "nothing.zarr")[0] == errors.MISSING_FILE
    assert spoken(capsys, "plot", ".")[0] == errors.BAD_INPUT


def test_what_is_drawn_hides_runs_that_diverged_and_says_so():
    from alignjax.cli.draw import draw
    from alignjax.cli.plot import Wanted, choose

    rates = np.geomspace(0.01, 1.0, 6)
    status = np.zeros((6, 3), int)
    status[5] = 1
    status[4, 0] = 1
    risk = np.arange(18.0).reshape(6, 3) + 1
    data = xarray.Dataset(
        {
            "risk": (("learning_rate", "seed"), risk),
            "status": (("learning_rate", "seed"), status),
            "complete": (("learning_rate", "seed"), np.ones((6, 3), bool)),
        },
        {"learning_rate": ("learning_rate", rates, {"units": "1/s"}), "seed": [0, 1, 2]},
    )
    picture = choose(data, Wanted())
    # Of rate 4 one run diverged, and the median is that of the two others.
    np.testing.assert_array_equal(picture.values[:5], [2, 5, 8, 11, 14.5])
    assert np.isnan(picture.values[5])
    figure = draw(picture)
    (axis,) = figure.axes
    assert axis.get_xscale() == "log"
    assert figure.get_supxlabel() == "learning rate η [1/s]"
    assert figure.get_supylabel() == "risk, median over seed"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "at least half\ndiverged"
    ]
    mean = choose(data, Wanted(average="mean", select=("learning_rate=0.2",), x="seed"))
    assert mean.at == " at learning rate 0.1585"


def test_zipped_axes_are_each_an_axis_of_a_picture_and_names_are_drawn_as_they_stand(tmp_path):
    from alignjax.cli.draw import draw
    from alignjax.cli.plot import Wanted, choose

    scale = ("learning_rate", [3.0, 1.0, 2.0], {"units": "$x"})
    data = xarray.Dataset(
        {"$a^$": ("learning_rate", [0.3, 0.1, 0.2]), "complete": ("learning_rate", [True] * 3)},
        {
            "learning_rate": [0.1, 0.2, 0.4],
            "scale": scale,
            "$loss$": ("learning_rate", list("abc")),
        },
    )
    assert choose(data, Wanted()).x == "learning_rate"
    picture = choose(data, Wanted(x="scale"))
    # Lines join neighbours.
    np.testing.assert_array_equal(picture.values, [0.1, 0.2, 0.3])
    figure = draw(picture)
    figure.savefig(tmp_path / "lines.png")
    assert figure.get_supxlabel() == r"initial scale [\$x]"
    assert figure.get_supylabel() == r"\$a^\$"
    draw(choose(data, Wanted(x="$loss$"))).savefig(tmp_path / "words.png")
    with pytest.raises(CommandError, match="scale: runs together with --x learning_rate"):
        choose(data, Wanted(x="learning_rate", y="scale"))
    with pytest.raises(CommandError, match="expected one of learning_rate, scale,"):
        choose(data, Wanted(x="rate"))


def test_what_cannot_be_drawn_is_told(folder, capsys):
    def run(x, seed):
        return {"z": 1j * x, "none": x * np.zeros(0), "y": x}

    aj.sweep(run, {"x": [1.0, np.inf], "seed": [0, 1]}, store="run.0.1", progress=False)
    code, _, err = spoken(capsys, "plot", "run.0.1", "-v", "z")
    assert code == errors.USAGE
    assert "complex128" in err
    code, _, err = spoken(capsys, "plot", "run.0.1", "-v", "none")
    assert code == errors.USAGE
    assert "no entries" in err
    code, _, err = spoken(capsys, "plot", "run.0.1", "--select", "x=nan")
    assert code == errors.USAGE
    assert "expected a number" in err
    # A value that is infinite has a place on the axis all the same.
    assert spoken(capsys, "plot", "run.0.1", "-v", "y")[0] == 0
    assert Path("run.0.1.png").exists()
    Path("run.0.1/y/c.0.0").write_bytes(b"cut")
    code, _, err = spoken(capsys, "plot", "run.0.1", "-v", "y")
    assert code == errors.BAD_INPUT
    assert "cannot be read" in err


def test_the_csv_of_a_run_is_a_table_with_a_header(folder, capsys):
    config = SWEEP.split("[axes]")[0].replace("width = 2", "widths = [3, 3, 3]")
    config = config.replace('"gaussian"', '"identity", scale = 0.5')
    config = config.replace('["risk"]', '["risk", "norms"]').replace(
        "{steps", "{learning_rate=0.1, steps"
    )
    Path("one.toml").write_text(config)
    assert spoken(capsys, "simulate", "one.toml", "--out", "run.csv")[0] == 0
    header, *rows = csv.reader(io.StringIO(Path("run.csv").read_text()))
    assert header == ["step", "time", "risk", "norms[1]", "norms[2]"]
    assert [row[0] for row in rows] == ["0", "4"]
    np.testing.assert_allclose(float(rows[0][3]), 0.5 * 3**0.5, rtol=1e-12)
    code, _, err = spoken(capsys, "sweep", "one.toml")
    assert code == errors.BAD_INPUT
    assert "[axes]" in err


def test_info_tells_versions_devices_and_engines(capsys):
    code, out, _ = spoken(capsys, "info", "--json")
    told = json.loads(out)
    assert code == 0
    assert told["alignjax"] == aj.__version__
    assert told["versions"]["jax"] == jax.__version__
    assert "xla" in told["engines"]
    assert spoken(capsys, "info")[0] == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("certify",),
        ("certify", "X.csv", "--depth", "two"),
        ("certify", "X.csv", "--depth", "10001"),
        ("certify", "X.csv", "--rank", "1", "--depth", "9999"),
        ("certify", "X.csv", "--scale", "inf"),
        ("certify", "X.csv", "Y.npy", "other.npy"),
        ("no-such-command",),
        ("sweep", "sweep.toml", "--no-such-option"),
        ("simulate", "sweep.toml"),
        ("simulate", "sweep.toml", "--set", "scale"),
        ("simulate", "sweep.toml", "--set", "scale=nan"),
        ("simulate", "sweep.toml", "--set", "rate=1"),
    ],
)
def test_wrong_usage_never_ends_as_a_verdict_does(folder, capsys, arguments):
    code, _, err = spoken(capsys, *arguments)
    assert code == errors.USAGE
    assert err.startswith("error: ")
    assert "Traceback" not in err


def test_a_fault_of_ours_never_ends_as_a_verdict_does(folder, capsys, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("broken")

    monkeypatch.setattr("alignjax.theory.alignment.certify", fail)
    code, _, err = spoken(capsys, "certify", "X.csv")
    assert code == errors.INTERNAL
    assert "RuntimeError: broken" in err


def test_without_the_extra_the_command_says_how_to_install_it(capsys, monkeypatch):
    for name in [n for n in sys.modules if n.startswith("alignjax.cli.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "typer", None)
    code, _, err = spoken(capsys, "info")
    assert code == 69
    assert "pip install 'alignjax[cli]'" in err


def test_precision_is_put_back_where_a_command_ends(folder, capsys):
    try:
        jax.config.update("jax_enable_x64", False)
        told = json.loads(spoken(capsys, "certify", "X.csv", "--json")[1])
        assert told["dtype"] == "float64"
        assert not jax.config.read("jax_enable_x64")
    finally:
        jax.config.update("jax_enable_x64", True)


def test_the_installed_command_runs_and_completes_its_commands(capsys):
    script = Path(sys.executable).with_name("alignjax")
    command = [str(script)] if script.exists() else [sys.executable, "-m", "alignjax.cli"]
    assert spoken(capsys, "--version") == (0, f"alignjax {aj.__version__}\n", "")
    # What a shell asks when the tab key is pressed after `alignjax s`.
    asked = os.environ | {
        "_ALIGNJAX_COMPLETE": "complete_bash",
        "COMP_WORDS": "alignjax s",
        "COMP_CWORD": "1",
    }
    told = subprocess.run(command, capture_output=True, text=True, env=asked)
    assert told.stdout.split() == ["simulate", "sweep"]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_excess_risk_is_never_negative_and_exact_far_below_the_least_risk(dtype):
    from alignjax.cli.observe import observation

    rng = np.random.default_rng(0)
    X, Y = (rng.standard_normal((30, k)).astype(dtype) for k in (4, 2))
    problem = aj.regression(X, Y)
    best, excess = problem.minimizer, observation("excess_risk").value
    step = rng.standard_normal((2, 4)).astype(dtype)
    for size in (0.0, 1e-3, 1e-7):
        layer = best + dtype(size) * step
        off = np.asarray(layer, np.float64) - np.asarray(best, np.float64)
        value = float(excess(problem, (layer,), (layer,)))
        assert value >= 0
        expected = 0.5 * np.sum(off @ np.asarray(problem.input_moment, np.float64) * off)
        eps = float(np.finfo(dtype).eps)
        np.testing.assert_allclose(
            value, expected, rtol=100 * eps, atol=100 * eps * np.abs(off).max(initial=0)
        )
