"""The experiments on Theorem 1 and Appendix L, at quick scale."""

import csv

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from experiments.alignment.appendix_l import CLASSES, LOSSES, appendix_l
from experiments.alignment.theorem_1 import FAMILIES, defect, theorem_1
from tests.audits import run


def _run(experiment, folder):
    context = run(experiment, folder)
    name = experiment.name.split("/")[1]
    lines = [x for x in (folder / f"{name}.csv").read_text().splitlines() if x[:1] != "#"]
    assert (folder / f"{name}.png").stat().st_size > 10_000
    assert (folder / f"{name}.pdf").stat().st_size > 1_000
    return context, list(csv.DictReader(lines))


@pytest.mark.slow
def test_theorem_1_has_the_verdicts_it_expects_and_a_row_for_each_run(tmp_path):
    context, rows = _run(theorem_1, tmp_path)
    assert [claim.id for claim in context.claims if claim.surprising] == []
    refuted = {claim.id for claim in context.claims if claim.verdict == "refuted"}
    assert refuted == {"rank_one_only_if", "still_modes_only_if", "sensing_only_if"}
    assert {row["family"] for row in rows} == set(FAMILIES)
    # The table tells the families apart without help from the claims.
    for row in rows:
        kept = min(float(row["least alignment"]), float(row["least invariance"])) > 1 - 1e-12
        lost = row["family"] in ("violating data", "one mode still", "no mode still")
        assert kept != lost
        assert (float(row["data residual"]) < 1e-10) == (row["family"] == "aligned data")


@pytest.mark.slow
def test_appendix_l_keeps_alignment_in_every_class_and_says_what_its_images_are(tmp_path):
    context, rows = _run(appendix_l, tmp_path)
    assert {claim.verdict for claim in context.claims} == {"confirmed"}
    assert {row["problem"] for row in rows} == {*CLASSES, *LOSSES}
    assert min(float(row["alignment"]) for row in rows) > 1 - 1e-9
    assert "not of MNIST" in context.notes[0]


def test_defect_takes_the_worse_of_alignment_and_the_invariance_asked_for():
    seen = {
        "alignment": np.array([1.0, 0.75]),
        "invariance": np.array([0.875, 1.0]),
        "strong invariance": np.array([0.5, 0.5]),
    }
    np.testing.assert_array_equal(defect(seen), [0.125, 0.25])
    np.testing.assert_array_equal(defect(seen, strong=True), [0.5, 0.5])
