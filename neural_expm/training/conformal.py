"""Split-conformal bounds: distribution-free, for matrices exchangeable with the calibration set.

Vovk, Gammerman and Shafer 2005; Lei et al. 2018, section 2.2: with N calibration errors, the ⌈(N+1)(1−α)⌉-th
smallest bounds the error of a new matrix with probability at least 1 − α. It says nothing about one given
matrix, nor about another distribution.
"""

from __future__ import annotations

import math

from torch import Tensor

from neural_expm.errors import TrainingError


def conformal_bound(errors: Tensor, coverage: float) -> float:
    """Return the split-conformal bound of ``coverage`` from calibration ``errors`` of shape (N,)."""
    if not 0 < coverage < 1:
        raise TrainingError(f"coverage = {coverage} must lie strictly between 0 and 1")
    count = errors.numel()
    rank = math.ceil((count + 1) * coverage)
    if rank > count:
        raise TrainingError(f"{count} calibration errors are too few for a coverage of {coverage}")
    return float(errors.sort().values[rank - 1])


def covered(errors: Tensor, bound: float) -> float:
    """Return the share of ``errors`` at or below ``bound``."""
    return float((errors <= bound).double().mean())
