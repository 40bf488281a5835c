"""A sweep of six blocks that needs no computing, for tests of the store alone."""

import dataclasses

import numpy as np

from alignjax.sweeps.spec import Output, Spec

SPEC = Spec(
    dims={"loss": 2, "rate": 5},
    block=(1, 2),
    outputs={
        "risk": Output(dims=("step",), shape=(3,), dtype="float64", units="1"),
        "status": Output(dims=(), shape=(), dtype="int32"),
    },
    coords={
        "loss": (("loss",), np.array(["squared", "logistic"]), {}),
        "rate": (("rate",), np.linspace(0.1, 0.5, 5), {"units": "1/step"}),
        "step": (("step",), np.array([0, 10, 20]), {}),
    },
    attrs={"jax": "0.0", "config_hash": "abc"},
    fingerprint={
        "function": {"name": "run", "source": "1234"},
        "axes": {"rate": "aaaa"},
        "key": [0, 1],
    },
)


def arrays_of(block, spec=SPEC):
    """Outputs that only the block's index decides."""
    rng = np.random.default_rng(block)
    cut = tuple(part.stop - part.start for part in spec.region(block))
    return {
        name: rng.standard_normal((*cut, *output.shape)).astype(output.dtype)
        for name, output in spec.outputs.items()
    }


def fill(store, spec=SPEC, blocks=None):
    for block in store.missing() if blocks is None else blocks:
        store.write(block, arrays_of(block, spec))


def with_fingerprint(**changes):
    return dataclasses.replace(SPEC, fingerprint={**SPEC.fingerprint, **changes})


def with_output(**changes):
    risk = dataclasses.replace(SPEC.outputs["risk"], **changes)
    return dataclasses.replace(SPEC, outputs={**SPEC.outputs, "risk": risk})


def with_rates(values):
    coords = {**SPEC.coords, "rate": (("rate",), values, {"units": "1/step"})}
    return dataclasses.replace(SPEC, coords=coords)
