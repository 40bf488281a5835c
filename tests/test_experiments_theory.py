"""The audits of theory: each runs at quick scale and finds what is known to be true."""

import pytest

from tests.audits import audit, refuted

EXPERIMENTS = {
    "corollary_1": {"printed", "lesser_gain"},
    "proposition_1": {"bound_largest", "matrices_at_bound"},
    "proposition_2": set(),
    "saddles": {"small_starts"},
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_claims_come_out_as_known_and_everything_is_written(name, tmp_path):
    context = audit(f"alignment/{name}", tmp_path)
    assert refuted(context) == EXPERIMENTS[name]
