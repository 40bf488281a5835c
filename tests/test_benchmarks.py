"""Every benchmark's peers give the same answer; nothing here looks at a time."""

import importlib.util
import json

import numpy as np
import pytest

from alignjax import datasets
from benchmarks import engine, moments, reduced, table_1
from benchmarks.__main__ import main, record, table
from benchmarks.timing import agree


def differences(rows):
    return {row.contender: row.difference for row in rows if row.difference is not None}


def test_moments_peer_on_samples_gives_the_same_weights():
    rows = moments.run(repeats=1, sizes=(50, 200), peer_up_to=100, steps=20)
    assert [(row.case, row.difference is None) for row in rows] == [
        ("n = 50", True),
        ("n = 50", False),
        ("n = 200", True),
    ]
    assert differences(rows)[moments.PEER] < 1e-5


def test_full_matrices_give_the_same_weights_as_the_reduction():
    rows = reduced.run(repeats=1, width=4, runs=3, steps=10, full_steps=5)
    assert differences(rows)[reduced.FULL] < 1e-5
    assert "scaled linearly" in rows[1].note


def test_table_1_is_the_same_row_from_all_samples_at_once():
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (60, 3, 4, 4), np.uint8)
    images = datasets.Images(pixels, random.integers(0, 10, 60, np.uint8), "noise", "a test")
    rows = table_1.run(repeats=1, rows={"noise": lambda: images})
    assert differences(rows)[table_1.PEER] < 1e-10


def test_table_1_without_images_says_not_measured():
    def unavailable():
        raise datasets.DataUnavailableError("no such data")

    (row,) = table_1.run(repeats=1, rows={"CIFAR-10": unavailable})
    assert row.run_seconds is None
    assert row.note == "not measured: CIFAR-10 is not available"


def test_engine_peers_give_the_same_weights():
    rows = engine.run(repeats=1, steps={4: 10}, batch=3)
    found = differences(rows)
    assert found[engine.PLAIN] < 1e-5
    if importlib.util.find_spec("torch"):
        assert found[engine.TORCH] < 1e-5


def test_a_missing_torch_is_a_row_that_says_not_measured(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    rows = engine.run(repeats=1, steps={4: 2}, batch=2)
    (absent,) = [row for row in rows if row.contender == engine.TORCH]
    assert absent.run_seconds is None
    assert absent.note.startswith("not measured")


@pytest.mark.parametrize("wrong", [1.01, np.nan])
def test_a_wrong_answer_stops_the_benchmark(wrong):
    layer = np.eye(3)
    with pytest.raises(ValueError, match="peer differs"):
        agree("peer", [layer, layer], [layer, wrong * layer], tolerance=1e-3)


def test_table_and_record_hold_every_row():
    rows = reduced.run(repeats=1, width=3, runs=2, steps=2, full_steps=2)
    assert len(table(rows).splitlines()) == 2 + len(rows)
    stored = json.loads(json.dumps(record(rows, 1)))
    assert len(stored["rows"]) == len(rows)
    assert {"jax", "torch", "python"} <= stored["versions"].keys()
    assert stored["hardware"]["cpu"]


def test_an_unknown_name_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["nothing"])
    assert (
        "NAME must be among moments, reduced, engine, structures, staircase, sweeps, table_1, "
        "got nothing" in capsys.readouterr().err
    )
