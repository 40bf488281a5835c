"""The audits of theory: each runs at quick scale and finds what is known to be true."""

import importlib

import pytest

from experiments import style
from experiments.context import Context

EXPERIMENTS = {
    "corollary_1": {"printed", "lesser_gain"},
    "proposition_1": {"bound_largest", "matrices_at_bound"},
    "proposition_2": set(),
    "saddles": {"small_starts"},
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_claims_come_out_as_known_and_everything_is_written(name, tmp_path):
    module = importlib.import_module(f"experiments.alignment.{name}")
    context = Context(f"alignment/{name}", scale="quick", folder=tmp_path)
    with style.paper():
        getattr(module, name)(context)
    assert not [claim for claim in context.claims if claim.surprising]
    refuted = {claim.id for claim in context.claims if claim.verdict == "refuted"}
    assert refuted == EXPERIMENTS[name]
    for figure in context.figures:
        assert (tmp_path / f"{figure.name}.png").stat().st_size > 10_000
        assert (tmp_path / f"{figure.name}.pdf").exists()
    assert context.figures
    assert all((tmp_path / f"{table.name}.csv").exists() for table in context.tables)
    assert context.tables
