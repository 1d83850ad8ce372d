"""Defaults of the whole suite."""

import os

# The tests of the compiled kernels ask for them by name; elsewhere no background compiler shall write to a home folder.
os.environ.setdefault("NEURAL_EXPM_COMPILE", "0")
