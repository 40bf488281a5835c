#!/usr/bin/env bash
# optax: inject_hyperparams refuses a factory that takes **options.
#
# Expected: inject_hyperparams(f)(learning_rate=0.1) calls f(learning_rate=0.1). Seen with optax
# 0.2.8: where f has **options in its signature it is called with options={} as if that were a keyword
# of its own, so what f forwards its options to raises TypeError, with and without options given.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 optax==0.2.8
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PY'
import jax
import jax.numpy as jnp
import optax

print("jax", jax.__version__, "optax", optax.__version__)
assert optax.__version__ == "0.2.8"
x = jnp.ones(3)


def plain(learning_rate, momentum=None):
    return optax.sgd(learning_rate, momentum)


def forwarding(learning_rate, **options):
    return optax.sgd(learning_rate, **options)


for options in ({}, {"momentum": 0.9}):
    forwarding(0.1, **options).init(x)
    optax.inject_hyperparams(plain)(learning_rate=0.1, **options).init(x)
    try:
        optax.inject_hyperparams(forwarding)(learning_rate=0.1, **options).init(x)
    except TypeError as error:
        print(f"given {options}:", error)
        assert "unexpected keyword argument 'options'" in str(error)
    else:
        raise SystemExit("a factory with **options is taken now")
PY
