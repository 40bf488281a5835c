"""What is measured on a network: shared bases, invariance, balance, spectra, margin, sharpness.

Everything here can be traced, by ``jit`` and by ``vmap``, and stays finite on zero matrices,
repeated singular values and deficient ranks; only the logarithm of a zero risk is ``-inf``. A share
whose total is zero (a zero layer is aligned with anything) is 1. Weights that are NaN are refused
where they are concrete, and give NaN where they are traced.

Singular vectors are defined up to signs and, where singular values repeat, up to rotations. Metrics
that compare them one by one inherit that, so all but :func:`singular_vector_alignment` use
commutators and energies, which no choice of basis enters.
"""

from alignjax.metrics.fit import log_risk, margin
from alignjax.metrics.frozen_bases import invariance, strong_invariance
from alignjax.metrics.hessian import sharpness, sharpness_and_residual
from alignjax.metrics.shared_bases import alignment, chain_alignment, chance_alignment
from alignjax.metrics.singular_values import balancedness, spectral_ratio
from alignjax.metrics.singular_vectors import singular_vector_alignment
from alignjax.metrics.tracking import SpectralTracker

__all__ = [
    "SpectralTracker",
    "alignment",
    "balancedness",
    "chain_alignment",
    "chance_alignment",
    "invariance",
    "log_risk",
    "margin",
    "sharpness",
    "sharpness_and_residual",
    "singular_vector_alignment",
    "spectral_ratio",
    "strong_invariance",
]
