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


@pytest.fixture
def eager(monkeypatch, no_assembler):
    """Neither a compiled nor an assembled kernel."""
    from neural_expm.kernels import compiled

    monkeypatch.setenv("NEURAL_EXPM_COMPILE", "0")
    compiled.forget()
    yield monkeypatch
    compiled.forget()


@pytest.fixture(scope="session")
def libraries(tmp_path_factory):
    """A cache folder with the compiled kernels of SHAPES and SHARED."""
    from compiled_cases import SHAPES, SHARED

    from neural_expm.kernels import compiled
    from neural_expm.kernels.compiled import toolchain

    folder = tmp_path_factory.mktemp("kernels")
    os.environ["NEURAL_EXPM_KERNEL_CACHE"] = str(folder)
    for n, dtype in [*SHAPES, SHARED]:
        source, defines, stem = compiled._recipe("expm", n, dtype)
        toolchain.build(source, defines, toolchain.library_path(source, defines, stem))
    del os.environ["NEURAL_EXPM_KERNEL_CACHE"]
    return folder


@pytest.fixture
def fresh(monkeypatch, no_assembler):
    """Compiled kernels as in a new process, in automatic mode."""
    from neural_expm.kernels import compiled

    monkeypatch.setenv("NEURAL_EXPM_COMPILE", "auto")
    monkeypatch.delenv("CXX", raising=False)
    compiled.forget()
    yield monkeypatch
    compiled.forget()


@pytest.fixture
def ready(libraries, fresh):
    """The kernels of SHAPES and SHARED are in the cache folder."""
    fresh.setenv("NEURAL_EXPM_KERNEL_CACHE", str(libraries))
    return fresh


@pytest.fixture
def machine_code(monkeypatch):
    """Assembled kernels as in a new process without a compiler."""
    from neural_expm.kernels import assembled, compiled

    monkeypatch.setenv("NEURAL_EXPM_COMPILE", "0")
    monkeypatch.delenv("NEURAL_EXPM_ASSEMBLE", raising=False)
    for module in (assembled, compiled):
        module.forget()
    yield monkeypatch
    for module in (assembled, compiled):
        module.forget()
