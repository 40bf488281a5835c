"""Classification by any loss, on samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from alignjax._validation import as_count, as_raw, as_real, is_concrete
from alignjax.losses import Loss, as_loss, squared
from alignjax.problems.kinds import MomentProblem, SampleProblem
from alignjax.problems.least_squares import in_span, regression

__all__ = ["classification"]


def classification(
    X: Float[Array, "n k_0"],
    labels: Shaped[Array, " n"],
    loss: str | Loss | Callable[[Any, Any], Any] = "logistic",
    *,
    classes: int | None = None,
) -> SampleProblem | MomentProblem:
    """Classification of the rows of ``X``.

    Args:
        X: inputs, ``(n, k_0)``.
        labels: -1 or +1 for one output (``"logistic"``, ``"exponential"``, ``"squared"`` without
            ``classes``), ids from 0 for one output a class (``"cross_entropy"``, ``"squared"`` on
            one-hot targets), or what a callable loss takes, one row a sample. Traced labels of the
            squared loss are ids.
        loss: a name, an :class:`alignjax.losses.Loss` or a callable ``(outputs (k_d,), label) ->
            scalar``.
        classes: the number of classes, where the labels alone do not tell it.

    Raises:
        TypeError: if the loss is no loss.
        ValueError: for an unknown loss, labels outside its domain, or rows that do not match.

    Source: Radhakrishnan et al. 2020, section 6; Ji & Telgarsky 2019, section 1.1.
    """
    chosen = as_loss(loss)
    inputs = as_real(X, "X", ndim=2)
    ids = as_raw(labels, "labels")
    if ids.ndim == 0 or ids.shape[0] != inputs.shape[0]:
        raise ValueError(
            f"labels must hold one label a sample: X has {inputs.shape[0]} rows, labels have shape "
            f"{ids.shape}"
        )
    if chosen == squared:
        if classes is None and _are_signs(ids):
            return regression(inputs, jnp.asarray(ids, inputs.dtype))
        ids, count = _class_ids(ids, classes)
        return regression(inputs, jax.nn.one_hot(ids, count, dtype=inputs.dtype))
    outputs: int | None = None
    if chosen.targets == "signs":
        if classes is not None:
            raise ValueError(
                f"classes does not apply to the {chosen.name} loss, which has one output, "
                f"got {classes}"
            )
        _check_one_dimensional(ids)
        if is_concrete(ids) and not bool(np.isin(np.asarray(ids), (-1, 1)).all()):
            raise ValueError(
                f"labels must be -1 or +1 for the {chosen.name} loss, got values "
                f"{np.unique(np.asarray(ids))[:6].tolist()}"
            )
        targets, outputs = jnp.asarray(ids, inputs.dtype), 1
    elif chosen.targets == "classes":
        targets, outputs = _class_ids(ids, classes)
    else:
        targets = jnp.asarray(ids)
        if jnp.issubdtype(targets.dtype, jnp.floating):
            targets = as_real(labels, "labels").astype(inputs.dtype)
        if classes is not None:
            outputs = as_count(classes, "classes", minimum=1)
    inputs, basis = in_span(inputs)
    return SampleProblem(inputs, targets, basis, chosen, outputs)


def _are_signs(labels: Any) -> bool:
    """Whether labels for the squared loss are signs, not class ids.

    Raises:
        ValueError: if all are 1, which could be either.
    """
    if not is_concrete(labels) or labels.dtype == np.bool_:
        return False
    values = np.unique(np.asarray(labels))
    if values.tolist() == [1]:
        raise ValueError(
            "labels are all 1, which may be signs or class ids: give classes= for class ids, or "
            "state the signs' problem by regression(X, labels)"
        )
    return bool(np.isin(values, (-1, 1)).all())


def _check_one_dimensional(labels: Any) -> None:
    if labels.ndim != 1:
        raise ValueError(f"labels must have 1 dimension(s), got shape {labels.shape}")


def _class_ids(labels: Any, classes: int | None) -> tuple[Array, int]:
    """Class ids as int32 and their number, checked."""
    _check_one_dimensional(labels)
    if not is_concrete(labels):
        if classes is None:
            raise TypeError("labels are traced, so the number of classes must be given: classes=")
        return labels.astype(jnp.int32), as_count(classes, "classes", minimum=2)
    ids = np.asarray(labels)
    if not np.isfinite(ids).all() or (ids != np.round(ids)).any() or ids.min() < 0:
        raise ValueError(
            f"labels must be class ids 0, 1, ... (or -1 and +1 where the loss has one output), got "
            f"values {np.unique(ids)[:6].tolist()}"
        )
    count = (
        max(int(ids.max()) + 1, 2) if classes is None else as_count(classes, "classes", minimum=2)
    )
    if ids.max() >= count:
        raise ValueError(f"labels must be below classes = {count}, got {int(ids.max())}")
    return jnp.asarray(ids, jnp.int32), count
