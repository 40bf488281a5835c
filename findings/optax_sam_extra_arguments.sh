#!/usr/bin/env bash
# optax: sam is a GradientTransformationExtraArgs that refuses extra arguments.
#
# Expected: what has this type ignores extra arguments that it does not use, so that a loop can hand
# value= to any of them. Seen with optax 0.2.8: contrib.sam raises TypeError, alone, inside chain(),
# and after with_extra_args_support(), which leaves it as it is because of its type.
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
sam = optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05), sync_period=2)
assert isinstance(sam, optax.GradientTransformationExtraArgs)
x = jnp.ones(3)
rules = {
    "sam": sam,
    "chain(sam)": optax.chain(sam),
    "with_extra_args_support(sam)": optax.with_extra_args_support(sam),
}
for name, rule in rules.items():
    rule.update(x, rule.init(x), x)
    try:
        rule.update(x, rule.init(x), x, value=1.0)
    except TypeError as error:
        print(f"{name}:", error)
        assert "unexpected keyword argument 'value'" in str(error)
    else:
        raise SystemExit(f"{name} takes value= now")
# One of the same type that does as expected.
adam = optax.with_extra_args_support(optax.adam(0.1))
adam.update(x, adam.init(x), x, value=1.0)
PY
