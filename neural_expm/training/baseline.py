"""The polynomial baselines of the sign and square-root frames: least squares on the training distribution."""

from __future__ import annotations

import math
from typing import Any

import torch

from neural_expm.errors import TrainingError
from neural_expm.networks.frames import fourth_mean
from neural_expm.training import data

#: Matrices of each size that the fit looks at; the coefficients no longer move in the third digit.
COUNT = 4000


def fit_polynomial(
    function: str, entry: dict[str, Any], powers: list[int], sizes: list[int]
) -> tuple[list[float], float]:
    """Fit Σ cₖ zᵖᵏ to f on the eigenvalues of normalised matrices of a distribution.

    Returns the coefficients and the root-mean-square error on those eigenvalues: the unit of the residual.
    Every size counts alike, as in the mean relative error that training minimises.
    """
    if function not in ("sign", "sqrtm"):
        raise TrainingError(f"function {function!r} has no polynomial baseline; use 'sign' or 'sqrtm'")
    params = {key: value for key, value in entry.items() if key not in ("weight", "distribution")}
    rows, targets = [], []
    for n in sizes:
        generator = data.split_generator("train", 0, n)
        matrices = data.sample(entry["distribution"], n, COUNT, generator, **params)
        norm = (
            fourth_mean(matrices) if function == "sign" else torch.linalg.matrix_norm(matrices, keepdim=True)
        )
        z = torch.linalg.eigvals(matrices) / norm[:, 0]
        weight = 1 / math.sqrt(n)
        value = z.real.sign().to(z.dtype) if function == "sign" else z.sqrt()
        rows.append(torch.stack([z**p for p in powers], dim=-1).flatten(0, 1) * weight)
        targets.append(value.flatten() * weight)
    table, target = torch.cat(rows), torch.cat(targets)
    real_table, real_target = torch.cat([table.real, table.imag]), torch.cat([target.real, target.imag])
    coefficients = torch.linalg.lstsq(real_table, real_target[:, None]).solution[:, 0]
    error = real_table @ coefficients - real_target
    rms = float((error.square().sum() / (len(sizes) * COUNT)).sqrt())
    return [float(c) for c in coefficients], rms
