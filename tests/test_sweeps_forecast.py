"""What a sweep would take is counted before it runs, and counting changes nothing."""

import jax.numpy as jnp
import pytest

from alignjax.sweeps import StoreMismatchError, forecast, sweep
from tests.soak_store import contents

pytest.importorskip("zarr")


def run(rate, seed, power):
    return {"value": (rate + seed) ** power * jnp.arange(3.0), "sign": rate > 1}


AXES = {"rate": [0.1, 1.0, 10.0, 20.0], "seed": [0, 1, 2]}
ARGUMENTS = {"static": {"power": [1, 2]}, "dims": {"value": "time"}, "chunk": 5}


def test_runs_programs_blocks_and_bytes_are_counted():
    plan = forecast(run, AXES, **ARGUMENTS)
    assert plan.dims == {"power": 2, "rate": 4, "seed": 3}
    assert plan.outputs == {"sign": {}, "value": {"time": 3}}
    assert (plan.runs, plan.runs_left, plan.programs) == (24, 24, 2)
    # Blocks of 1 x 3 runs, since 5 hold no second row.
    assert (plan.chunk, plan.blocks, plan.blocks_left) == (3, 8, 8)
    assert plan.bytes_of_results == 24 * (3 * 8 + 1)
    assert plan.seconds > 0


def test_what_a_store_has_is_not_counted_again_and_nothing_is_written(tmp_path):
    store = tmp_path / "runs.zarr"
    forecast(run, AXES, store=store, **ARGUMENTS)
    assert list(tmp_path.iterdir()) == []

    sweep(run, AXES, store=store, **ARGUMENTS)
    finished = forecast(run, AXES, store=store, **ARGUMENTS)
    assert (finished.runs_left, finished.blocks_left, finished.seconds) == (0, 0, 0.0)
    next((store / "complete" / "records").glob("*.json")).unlink()
    before = contents(store)
    plan = forecast(run, AXES, store=store, **ARGUMENTS)
    assert (plan.runs_left, plan.blocks_left) == (3, 1)
    assert forecast(run, AXES, store=store, overwrite=True, **ARGUMENTS).runs_left == 24
    with pytest.raises(StoreMismatchError, match="rate"):
        forecast(run, {**AXES, "rate": [0.1, 1.0, 10.0, 30.0]}, store=store, **ARGUMENTS)
    with pytest.raises(FileExistsError, match="resume is False"):
        forecast(run, AXES, store=store, resume=False, **ARGUMENTS)
    assert contents(store) == before


def test_a_place_that_the_sweep_would_refuse_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for store, overwrite in ((tmp_path, False), (tmp_path, True), (tmp_path / "notes.txt", False)):
        with pytest.raises(FileExistsError, match="no sweep store"):
            forecast(run, AXES, store=store, overwrite=overwrite, **ARGUMENTS)


def test_what_a_store_could_not_hold_or_replace_is_refused(tmp_path):
    store = tmp_path / "runs.zarr"
    with pytest.raises(ValueError, match="output named 'complete'"):
        forecast(lambda rate: {"complete": rate}, {"rate": [0.1]}, store=store)
    sweep(run, AXES, store=store, **ARGUMENTS)
    (store / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"notes\.txt"):
        forecast(run, AXES, store=store, overwrite=True, **ARGUMENTS)
