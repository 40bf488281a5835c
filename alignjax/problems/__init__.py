"""What is learned: data or their moments, a loss, the risk and its gradient.

Rows are samples: ``X (n, k_0)``, ``Y (n, k_d)``. The risk of a network with end-to-end matrix ``W``
is ``(1/n) sum_i l(W x_i, y_i)``, and the squared loss is ``1/2 ||.||^2``. Moments are means:
``Sigma_xx = X^T X / n`` and ``Sigma_yx = Y^T X / n``.

Where there are fewer samples than inputs (``n < k_0``), the data lie in the span of ``n``
orthonormal directions, the problem's ``basis``, and everything is computed in coordinates of it: no
``(k_0, k_0)`` matrix is formed, and what ``W_1`` does outside of the span never moves.
"""

from __future__ import annotations

from alignjax.problems.by_outputs import ByOutputs
from alignjax.problems.classification import classification
from alignjax.problems.evaluate import (
    check_fit,
    check_weights,
    checked_gradient,
    from_span,
    gradient,
    largest_risk,
    lift_gradient,
    outputs,
    risk,
    risk_and_gradient,
    to_span,
)
from alignjax.problems.kinds import MomentProblem, Problem, SampleProblem, SensingProblem
from alignjax.problems.least_squares import (
    autoencoding,
    factorization,
    from_moments,
    inversion,
    regression,
    sensing,
)
from alignjax.problems.log_domain import (
    check_tail,
    checked_log_gradient,
    log_risk_and_gradient,
)
from alignjax.problems.smoothness import smoothness

__all__ = [
    "ByOutputs",
    "MomentProblem",
    "Problem",
    "SampleProblem",
    "SensingProblem",
    "autoencoding",
    "check_fit",
    "check_tail",
    "check_weights",
    "checked_gradient",
    "checked_log_gradient",
    "classification",
    "factorization",
    "from_moments",
    "from_span",
    "gradient",
    "inversion",
    "largest_risk",
    "lift_gradient",
    "log_risk_and_gradient",
    "outputs",
    "regression",
    "risk",
    "risk_and_gradient",
    "sensing",
    "smoothness",
    "to_span",
]
