"""Configs: what they can say, and errors that name the key and the line."""

import inspect
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alignjax as aj
from alignjax.cli import errors, main, observe
from alignjax.cli.axes import SPACINGS
from alignjax.cli.config import Document
from alignjax.cli.errors import CommandError
from alignjax.cli.problem import FILES, IMAGES, SYNTHETIC
from alignjax.cli.simulation import INITIALIZERS, KINDS, read_simulation
from alignjax.cli.training import METHODS

pytest.importorskip("typer")

LINES = """\
observe = ["risk"]
[problem]
kind = "factorization"
M = "M.csv"
[network]
depth = 2
[start]
initializer = "gaussian"
seed = 1
[train]
steps = 10
[axes]
learning_rate = [0.1, 0.2]
scale = {geomspace = [
    0.1,
    1.0,
    2,
]}
[sweep]
store = "runs.zarr"
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Write a config: the base, with some pieces replaced."""
    # Paths in a config are relative to it, not to where the command runs.
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "M.csv").write_text("3,0\n0,2\n")

    def write(*pairs):
        text = LINES
        for old, new in pairs:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "config.toml"
        path.write_text(text)
        return path

    return write


def separable(train):
    """Changes of the base: data with a loss that has a tail, another [train], and no axes."""
    return (
        ('kind = "factorization"\nM = "M.csv"', 'dataset = "separable_pair"\nn = 6\nk_0 = 3'),
        ("[train]\nsteps = 10", f"[train]\n{train}"),
        (LINES[LINES.index("[axes]") : LINES.index("[sweep]")], ""),
        ("seed = 1", "seed = 1\nscale = 0.5"),
    )


def read(path, **options):
    return read_simulation(Document(path), **options)


BAD = {
    "no TOML": (("steps = 10", "steps = "), 11, "no TOML"),
    "unknown key": (("steps = 10", "steps = 10\nstepz = 3"), 12, "did you mean 'steps'"),
    "unknown axis": (
        ("learning_rate = [", "learning_rates = ["),
        13,
        "did you mean 'learning_rate'",
    ),
    "unknown word": (("gaussian", "gausian"), 8, "did you mean 'gaussian'"),
    "unknown metric": (('["risk"]', '["rsk"]'), 1, "did you mean 'risk'"),
    "a kind": (("steps = 10", 'steps = "ten"'), 11, "expected an integer, got 'ten'"),
    "true is no number": (("steps = 10", "steps = true"), 11, "expected an integer, got True"),
    "negative steps": (("steps = 10", "steps = -1"), 11, "at least 0"),
    "save points": (("steps = 10", "steps = 10\nsave_at = [0, 20]"), 12, "between 0 and steps"),
    "missing key": (("steps = 10", ""), 10, "needs the key 'steps'"),
    "missing file": (("M.csv", "N.csv"), 4, "no such file"),
    "a misspelt key that is needed": (("steps = 10", "step = 10"), 11, "did you mean 'steps'"),
    "range of numbers": (("[0.1, 0.2]", "{range = [0.0, 2]}"), 13, "expected integers"),
    "empty axis": (("[0.1, 0.2]", "[]"), 13, "is empty"),
    "negative rate": (("[0.1, 0.2]", "[0.1, -0.2]"), 13, "at least 0, got -0.2"),
    "text in an axis": (("[0.1, 0.2]", '["fast"]'), 13, "got 'fast'"),
    "spacing from 0": (("    0.1,", "    0.0,"), 14, "geomspace"),
    "two spacings": (("{geomspace", "{linspace = [0, 1, 2], geomspace"), 14, "one of linspace"),
    "twice": (("seed = 1", "seed = 1\nscale = 0.5"), 10, "is an axis too"),
    "zip of one": (('store = "', 'zip = [["scale"]]\nstore = "'), 20, "two or more axes"),
    "zip of nothing": (('store = "', 'zip = [["scale", "width"]]\nstore = "'), 20, "two or more"),
    "chunk": (('store = "', 'chunk = 0\nstore = "'), 20, "at least 1"),
    "widths": (("depth = 2", "widths = [3, 2]"), 6, "k_0"),
    "widths and depth": (("depth = 2", "depth = 2\nwidths = [2, 2, 2]"), 6, "widths gives it"),
    "a metric of another problem": (('["risk"]', '["margin"]'), 1, "margin"),
    "infinite seed": (("[0.1, 0.2]", "[0.1]\nseed = [inf]"), 14, "got inf"),
    "too many": (("[0.1, 0.2]", "{linspace = [0, 1, 100000000]}"), 13, "at most 10,000,000"),
    "too long a range": (("[0.1, 0.2]", "{range = 100000000000}"), 13, "at most 10,000,000"),
    "true in a spacing": (("[0.1, 0.2]", "{linspace = [true, 2, 3]}"), 13, "got [True, 2, 3]"),
    "true as a count": (("[0.1, 0.2]", "{linspace = [0, 2, true]}"), 13, "got [0, 2, True]"),
    "nan in a spacing": (("[0.1, 0.2]", "{linspace = [nan, 2, 3]}"), 13, "got nan"),
    "true as a step": (("steps = 10", "steps = 10\nsave_at = [true, 3]"), 12, "got [True, 3]"),
    "a risk below 0": (("steps = 10", "steps = 10\nuntil = -1.0"), 12, "at least 0, got -1.0"),
    "a unit of nothing": (('.zarr"\n', '.zarr"\n[units]\nriks = "1"\n'), 22, "did you mean 'risk'"),
    "zip of lists": (('store = "', 'zip = [[["scale"], []]]\nstore = "'), 20, "two or more axes"),
    "rate of no layer": (("learning_rate = [", "learning_rate_3 = ["), 13, "has 2 layers"),
    "no rate of a layer": (("learning_rate = [", "learning_rate_1 = ["), 13, "layer 2 has no rate"),
    "engine": (("steps = 10", 'steps = 10\nengine = "warp"'), 12, "expected auto"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_error_names_the_key_and_the_line(config, capsys, name):
    change, line, words = BAD[name]
    code = main(["sweep", str(config(change))])
    err = capsys.readouterr().err
    assert code in (errors.BAD_INPUT, errors.MISSING_FILE)
    assert "Traceback" not in err
    assert f"line {line}" in err
    assert words in err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ([("[train]", "[training]")], ["unknown key", "'train'"]),
        (
            [
                ("[0.1, 0.2]", "[0.1]"),
                ('store = "', 'zip = [["scale", "learning_rate"]]\nstore = "'),
            ],
            ["line 20: sweep.zip", "scale has 2, learning_rate has 1"],
        ),
        (
            [('"gaussian"\nseed = 1', '"identity"'), ("[0.1, 0.2]", "[0.1]\nseed = [0, 1]")],
            ["line 13: axes.seed", "takes no seed"],
        ),
        (
            [("depth = 2", ""), ("[0.1, 0.2]", "[0.1]\ndepth = [2, 3]"), ('"risk"', '"norms"')],
            ["line 1: observe", "norms_max"],
        ),
        ([("gaussian", "orthogonal"), ('"risk"', '"invariance"')], ["observe", "arbitrary"]),
        ([("depth = 2", ""), ("[0.1, 0.2]", "[0.1]\ndepth = [0]")], ["axes.depth", "at least 1"]),
        (
            [("scale = {geom", "width = {lin"), ("    0.1,\n    1.0", "    2,\n    3")],
            ["line 7: start", "needs the key 'scale', or such an axis"],
        ),
        ([("learning_rate = [0.1, 0.2]", "")], ["train", "needs the key 'learning_rate'"]),
        (
            [("steps = 10", 'method = "gradient_flow"\ntimes = [0.0, 1.0]')],
            ["axes.learning_rate", "takes no learning rate"],
        ),
        (
            [("steps = 10", 'method = "gradient_flow"\ntimes = [0.0, 1.0]\nrtol = inf')],
            ["line 13: train.rtol", "a finite number above 0, got inf"],
        ),
        (
            [
                (
                    'kind = "factorization"\nM = "M.csv"',
                    'dataset = "separable_pair"\nn = 6\nk_0 = 3',
                ),
                ("steps = 10", 'method = "adaptive_descent"\nsteps = 2\nconstant = 0.1'),
            ],
            ["line 14: train.constant", "the rule 'ball' takes none"],
        ),
        *(
            (
                [("steps = 10", f'method = "optimizer_descent"\nsteps = 3\noptimizer_options={o}')],
                ["line 13: train.optimizer_options", words],
            )
            for o, words in (
                ("{b1 = true}", "b1: expected a number, got True"),
                ("{b1 = nan}", "b1: expected finite numbers that are at least 0, got nan"),
                ("{nesterov = 1}", "nesterov: expected true or false, got 1"),
                ("{beta1 = 0.9}", "did you mean 'b1'"),
                ("{learning_rate = 0.1}", "unknown key"),
            )
        ),
    ],
)
def test_what_does_not_go_together_is_told(config, capsys, changes, words):
    assert main(["sweep", str(config(*changes))]) == errors.BAD_INPUT
    err = capsys.readouterr().err
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    ("dataset", "keys", "got"),
    [
        ("aligned_regression", "input_spectrum = [true, 1]\ntarget_spectrum = [1]", "got True"),
        ("aligned_regression", "seed = -1", "got -1"),
        ("digits", "classes = [true, 3]", "got [True, 3]"),
        ("digits", "classes = [3, 99]", "got [3, 99]"),
        ("digits", "classes = [3, 3]", "a class twice"),
        ("digits", "mean = nan", "got nan"),
    ],
)
def test_what_a_dataset_does_not_have_is_told(config, dataset, keys, got):
    if dataset == "digits":
        pytest.importorskip("sklearn")
    path = config(('kind = "factorization"\nM = "M.csv"', f'dataset = "{dataset}"\n{keys}'))
    with pytest.raises(CommandError, match=f"line 4: problem.{keys.partition(' ')[0]}: ") as caught:
        read(path)
    assert got in str(caught.value)


def test_the_line_is_that_of_the_statement_in_every_style():
    class Told(Document):
        def __init__(self, text):
            self.text = text

    text = '# head\na.b = 1\n[t] # c\nx = """\ny = 2\n"""\ny = [\n 1,\n]\n[u]\nv = {w = {z = 1}}\n'
    lines = {("a", "b"): 2, ("t",): 3, ("t", "x"): 4, ("t", "y"): 7, ("u", "v", "w", "z"): 11}
    for key, line in lines.items():
        assert Told(text).line(key) == line
    # A missing key is looked for where it should be.
    assert Told(text).line(("u", "missing")) == 10


def test_axes_are_lists_spacings_or_files(config, tmp_path):
    np.save(tmp_path / "rates.npy", [0.3, 0.6])
    seen = read(
        config(
            ("[0.1, 0.2]", '"rates.npy"'),
            ("seed = 1", ""),
            ("depth = 2", ""),
            ("[sweep]", "seed = {range = [2, 8, 3]}\ndepth = [2, 3]\n[sweep]"),
        )
    )
    assert seen.axes["learning_rate"] == [0.3, 0.6]
    assert seen.axes["seed"] == [2, 5]
    np.testing.assert_allclose(seen.axes["scale"], [0.1, 1.0], rtol=1e-15)
    axes, static = seen.grid()
    # The order is the config's.
    assert list(axes) == ["learning_rate", "scale", "seed"]
    assert static == {"depth": [2, 3]}
    assert seen.store == tmp_path / "runs.zarr"


def test_an_initializer_may_be_an_axis(config):
    seen = read(
        config(
            ('initializer = "gaussian"\n', ""),
            ("[0.1, 0.2]", '[0.1]\ninitializer = ["identity", "balanced"]'),
        )
    )
    assert seen.grid()[1] == {"initializer": ["identity", "balanced"]}
    point = {**seen.fixed, **seen.first(), "initializer": "identity", "scale": 0.5}
    np.testing.assert_array_equal(seen.start(point)[0], 0.5 * np.eye(2))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"depth": "0"}, "network.depth: must be at least 1"),
        ({"initializer": "gausian"}, "did you mean 'gaussian'"),
        ({"learning_rate": "-1"}, "line 13: axes.learning_rate"),
        ({"learning_rate": "fast"}, "expected float, got 'fast'"),
        ({"rate": "1"}, "there are only learning_rate"),
        ({"seed": str(2**63)}, "below 2^63"),
    ],
)
def test_values_given_in_the_command_are_checked(config, given, words):
    with pytest.raises(CommandError, match=re.escape(words)):
        read(config(), given=given)


def test_zipped_axes_share_a_dimension(config):
    seen = read(config(('store = "', 'zip = [["scale", "learning_rate"]]\nstore = "')))
    axes, _ = seen.grid()
    assert list(axes) == [("scale", "learning_rate")]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_precision_is_the_configs(config, dtype):
    seen = read(config(('observe = ["risk"]', f'dtype = "{dtype}"')))
    assert seen.problem.dtype == jnp.dtype(dtype)
    assert seen.start({**seen.fixed, **seen.first()})[0].dtype == jnp.dtype(dtype)


def test_one_rate_a_layer_is_an_axis_a_layer(config):
    seen = read(
        config(("learning_rate = [0.1, 0.2]", "learning_rate_1 = [0.1]\nlearning_rate_2 = [0.3]"))
    )
    point = {"scale": 0.5, "learning_rate_1": 0.1, "learning_rate_2": 0.3}
    start = aj.initializers.gaussian(jax.random.key(1), (2, 2, 2), 0.5)
    expected = aj.gradient_descent(
        aj.factorization(jnp.diag(jnp.array([3.0, 2.0]))), start, [0.1, 0.3], steps=10
    )
    got = seen.train(**point)
    np.testing.assert_allclose(got.weights[0], expected.weights[0], rtol=1e-12)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ('dataset = "gaussian_regression"\nn = 5\nk_0 = 3\nk_d = 2', (3, 2)),
        ('dataset = "separable_pair"\nn = 6\nk_0 = 3', (3, 1)),
        (
            'dataset = "aligned_regression"\ninput_spectrum = [2, 1]\ntarget_spectrum = [1]',
            (2, 1),
        ),
        ('dataset = "digits"\nsamples = 20', (64, 64)),
        ('dataset = "digits"\nkind = "regression"\nsamples = 20', (64, 10)),
        (
            'dataset = "digits"\nkind = "classification"\nclasses = [3, 8]\nloss = "logistic"',
            (64, 1),
        ),
        ('kind = "inversion"\nM = "M.csv"', (2, 2)),
        ('kind = "sensing"\nmatrices = "A.npy"\nvalues = "b.csv"', (2, 2)),
        ('kind = "classification"\nX = "M.csv"\nlabels = "b.csv"\nloss = "cross_entropy"', (2, 2)),
        (
            'kind = "from_moments"\ninput_moment = "M.csv"\ncross_moment = "M.csv"\n'
            "target_energy = 5",
            (2, 2),
        ),
    ],
)
def test_every_problem_can_be_stated(config, tmp_path, table, expected):
    if "digits" in table:
        pytest.importorskip("sklearn")
    np.save(tmp_path / "A.npy", np.random.default_rng(0).normal(size=(2, 2, 2)))
    (tmp_path / "b.csv").write_text("value\n0\n1\n")
    problem = read(config(('kind = "factorization"\nM = "M.csv"', table))).problem
    assert (problem.input_width, problem.output_width) == expected


@pytest.mark.parametrize(
    "table",
    [
        'method = "gradient_flow"\ntimes = {linspace = [0.0, 0.2, 3]}\nsolver = "explicit"',
        'method = "optimizer_descent"\noptimizer = "sgd"\nlearning_rate = 0.1\nsteps = 3\n'
        "batch_size = 4\nsave_at = {every = 2}\noptimizer_options = {momentum = 0.9}",
    ],
)
def test_methods_run_from_a_config(config, table):
    seen = read(config(*separable(table)))
    run = seen.train()
    assert run.observations["risk"].shape == (len(seen.training.points),)
    assert bool((jnp.diff(run.observations["risk"]) < 0).all())


@pytest.mark.parametrize(
    ("method", "table", "expected"),
    [
        (
            "gradient_descent",
            'learning_rate = 0.1\nsteps = 4\nuntil = 0.5\nengine = "xla"\nsave_at = [0, 3]',
            {"steps": 4, "until": 0.5, "engine": "xla", "save_at": (0, 3)},
        ),
        (
            "adaptive_descent",
            'steps = 2\nrule = "margin"\nconstant = 0.1\nsave_at = {log = 3}',
            {"steps": 2, "rule": "margin", "constant": 0.1, "save_at": (0, 1, 2)},
        ),
        (
            "gradient_flow",
            "times = [0, 1]\nlog_time = true\nrtol = 1e-6",
            {"times": [0.0, 1.0], "log_time": True, "rtol": 1e-6, "atol": None, "solver": "auto"},
        ),
    ],
)
def test_what_a_config_says_reaches_the_method(config, monkeypatch, method, table, expected):
    seen = read(config(*separable(f'method = "{method}"\n{table}')))
    signature, told = inspect.signature(getattr(aj, method)), {}
    call = lambda *args, **options: told.update(signature.bind(*args, **options).arguments)  # noqa: E731
    monkeypatch.setattr(aj, method, call)
    seen.train()
    assert {name: told[name] for name in expected} == expected


def test_values_given_in_the_command_replace_axes_and_fixed_ones(config):
    seen = read(config(), given={"learning_rate": "0.7", "seed": "5"})
    assert list(seen.axes) == ["scale"]
    assert (seen.fixed["learning_rate"], seen.fixed["seed"]) == (0.7, 5)


def test_weights_come_from_a_file(config, tmp_path):
    W = [np.eye(2), 2 * np.eye(2)]
    np.savez(tmp_path / "W.npz", W_1=W[0], W_2=W[1])
    change = ('initializer = "gaussian"\nseed = 1', 'file = "W.npz"')
    path = config(change, ("depth = 2", ""), ("scale = {", "_ = {"))
    text = path.read_text()
    path.write_text(text[: text.index("_ = {")] + text[text.index("[sweep]") :])
    start = read(path).start({})
    np.testing.assert_array_equal(start[1], W[1])


def test_the_config_in_the_readme_is_one(tmp_path):
    text = (Path(__file__).parents[1] / "README.md").read_text()
    (block,) = re.findall(r"```toml\n(.*?)```", text, flags=re.S)
    (tmp_path / "phases.toml").write_text(block)
    seen = read(tmp_path / "phases.toml")
    assert [len(values) for values in seen.axes.values()] == [2, 40, 20, 5]


def test_every_word_of_a_config_is_in_the_documentation():
    text = (Path(__file__).parents[1] / "docs" / "command_line.md").read_text()
    words = {*observe.SCALARS, *observe.VECTORS, *FILES, *IMAGES, *SYNTHETIC, *METHODS, *KINDS}
    assert [word for word in (*words, *INITIALIZERS, *SPACINGS) if word not in text] == []


def test_a_missing_config_is_a_missing_file(capsys):
    assert main(["sweep", str(Path("absent.toml"))]) == errors.MISSING_FILE
