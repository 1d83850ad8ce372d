"""Pretrained, differentiable, certified matrix functions for PyTorch."""

from .errors import (
    CheckpointError,
    HubError,
    InputError,
    InputTypeError,
    ManifestError,
    NeuralExpmError,
    OutsideDomainError,
    UndefinedFunctionError,
    UnknownModelError,
)
from .functions import explain, expm, load, sign, sqrtm
from .manifest import Checkpoint, list_models
from .report import Report

__version__ = "0.1.0"

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "HubError",
    "InputError",
    "InputTypeError",
    "ManifestError",
    "NeuralExpmError",
    "OutsideDomainError",
    "Report",
    "UndefinedFunctionError",
    "UnknownModelError",
    "explain",
    "expm",
    "list_models",
    "load",
    "sign",
    "sqrtm",
]
