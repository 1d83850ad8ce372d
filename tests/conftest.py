"""Defaults of the whole suite, set before torch is imported."""

import os

import pytest

# The tests of the compiled kernels ask for them by name; elsewhere no background compiler shall write to a home folder.
os.environ.setdefault("NEURAL_EXPM_COMPILE", "0")
# "The same weights bit for bit" holds for the same number of threads, in this process and in those that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def no_assembler(monkeypatch):
    """Without machine code, as on a processor that has no assembler."""
    from neural_expm.kernels import assembled

    monkeypatch.setenv("NEURAL_EXPM_ASSEMBLE", "0")
    assembled.forget()
    yield
    assembled.forget()
