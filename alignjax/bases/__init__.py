"""Common bases: of a problem's moments alone, and of a problem together with a chain of layers.

A problem is aligned if one pair of orthogonal matrices ``U``, ``V`` makes ``U^T Sigma_yx V`` and
``V^T Sigma_xx V`` diagonal. A chain is aligned with it if orthogonal ``P_0 = V, P_1, ..., P_d = U``
make every ``P_i^T W_i P_{i-1}`` diagonal too. All of this runs on the host, in float64.
"""

from alignjax.bases.certificate import Certificate, certify
from alignjax.bases.chain import ChainBases, NotAlignedError, chain_bases
from alignjax.bases.weak import WeakCondition, weak_condition

__all__ = [
    "Certificate",
    "ChainBases",
    "NotAlignedError",
    "WeakCondition",
    "certify",
    "chain_bases",
    "weak_condition",
]
