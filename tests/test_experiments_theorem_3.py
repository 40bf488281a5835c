"""Theorem 3, run at its smallest scale."""

import csv

import pytest

pytest.importorskip("matplotlib")

from experiments.alignment.theorem_3 import theorem_3
from tests.audits import run


def test_printed_statements_are_refuted_and_corrected_ones_hold(tmp_path):
    context = run(theorem_3, tmp_path)
    assert not [claim for claim in context.claims if claim.surprising]
    refuted = {claim.id for claim in context.claims if claim.verdict == "refuted"}
    assert refuted == {"printed", "example"}
    assert (tmp_path / "theorem_3.png").stat().st_size > 10_000
    assert (tmp_path / "theorem_3.pdf").exists()
    with open(tmp_path / "map.csv") as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == 9 * 4  # every dimension and number of samples, one subspace
    aligned = [float(row["least defect at exact fit"]) < 1e-10 for row in rows]
    assert any(aligned)
    assert not all(aligned)
