"""Every error this package raises on purpose.

Each one is also the built-in that an old handler would catch, and each message names the value, what was
expected and the next move.
"""

from __future__ import annotations


class NeuralExpmError(Exception):
    """Base class of all errors raised on purpose by ``neural_expm``."""


class InputError(NeuralExpmError, ValueError):
    """The input matrix, or an option, has a value that no algorithm here can accept."""


class InputTypeError(NeuralExpmError, TypeError):
    """The input is not a dense floating-point or complex tensor."""


class OutsideDomainError(NeuralExpmError, ValueError):
    """A matrix lies outside the network's domain and ``outside="raise"`` was asked for."""


class UndefinedFunctionError(NeuralExpmError, ValueError):
    """The matrix function does not exist at this matrix (sign: an eigenvalue on the imaginary axis, …)."""


class UnknownModelError(NeuralExpmError, LookupError):
    """No checkpoint has this name; the message lists those that exist."""


class CheckpointError(NeuralExpmError, RuntimeError):
    """A weight file is missing, truncated, tampered with, or does not fit its configuration."""


class HubError(CheckpointError, ConnectionError):
    """The Hugging Face Hub cannot be reached, or refuses to give what was asked for."""


class ManifestError(NeuralExpmError, ValueError):
    """``checkpoints_manifest.json`` does not follow its schema."""


class TrainingError(NeuralExpmError, RuntimeError):
    """A training run, data set or study cannot go on; the message says what to change."""
