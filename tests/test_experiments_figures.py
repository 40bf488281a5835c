"""Figures 1a, 1b and 1c, run at their smallest scale."""

import csv
import math

import numpy as np
import pytest

pytest.importorskip("matplotlib")

import alignjax as aj
from alignjax import datasets
from experiments.alignment import _classification
from experiments.alignment.figure_1a import figure_1a
from experiments.alignment.figure_1b import figure_1b
from experiments.alignment.figure_1c import figure_1c
from experiments.context import Context
from tests.audits import run


def verdicts(context):
    return {claim.id: claim.verdict for claim in context.claims}


def rows(context, name):
    with open(context.folder / f"{name}.csv") as lines:
        return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def test_figure_1a_loses_invariance(tmp_path):
    context = run(figure_1a, tmp_path)
    assert set(verdicts(context).values()) == {"confirmed"}
    first = rows(context, "curves")[0]
    assert first["step"] == "0"
    assert math.isclose(float(first["balanced: alignment"]), 1, rel_tol=1e-12)
    assert (tmp_path / "figure_1a.png").stat().st_size > 0


def check_classification(context, name):
    expected = dict.fromkeys(
        ("data condition", "start", "invariance", "strong invariance", "alignment"), "confirmed"
    )
    assert verdicts(context) == expected | {"loss": "not measured"}
    table = rows(context, name)
    losses = [float(list(row.values())[1]) for row in table]
    assert losses[-1] < 0.5 * losses[0]
    assert (context.folder / f"{name}.pdf").stat().st_size > 0


@pytest.mark.parametrize(("figure", "name"), [(figure_1b, "figure_1b"), (figure_1c, "figure_1c")])
def test_classification_of_mnist_loses_alignment(figure, name, tmp_path, mnist_dir):
    context = run(figure, tmp_path)
    assert "stand in" not in context.notes[0]
    check_classification(context, name)


def test_loss_is_the_mean_over_entries_and_other_images_are_named(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.setattr(datasets, "mnist_or_digits", datasets.digits)
    context = Context("a/b", scale="quick", folder=tmp_path)
    setting = _classification.prepare(context, "squared")
    assert "stand in for MNIST" in context.notes[0]
    images = datasets.digits("train")[:64]
    outputs = datasets.flatten(images) @ np.asarray(aj.end_to_end(setting.start)).T
    errors = outputs - datasets.one_hot(images.labels.astype(int), 10)
    risk = float(aj.risk(setting.problem, setting.start))
    assert math.isclose(setting.loss_per_risk * risk, (errors**2).mean(), rel_tol=1e-12)
