"""From C++ source to a loaded library: find a compiler, compile once, keep the result on disk, believe nothing unread.

Every failure is a :class:`ToolchainError` with the reason; callers answer by other means.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-shared", "-fPIC", "-pthread")
COMPILERS = ("c++", "g++", "clang++")
# Far above what a slow, loaded machine needs (measured: 3 to 15 s); a compiler that hangs is given up after it.
TIMEOUT_S = 600.0

_running: dict[subprocess.Popen, Path] = {}  # compilers at work and the folders that they write to


class ToolchainError(Exception):
    """No library, and why."""


def cache_folder() -> Path:
    """Where libraries are kept: NEURAL_EXPM_KERNEL_CACHE, else neural_expm/kernels in the user's cache folder."""
    chosen = os.environ.get("NEURAL_EXPM_KERNEL_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "neural_expm" / "kernels"
    except RuntimeError as error:  # no home directory
        raise ToolchainError(f"no cache folder ({error}); set NEURAL_EXPM_KERNEL_CACHE") from error


def compiler() -> list[str]:
    """The C++ compiler: CXX, else the first of c++, g++, clang++ on the path, else the one that pip can install."""
    chosen = shlex.split(os.environ.get("CXX", ""))
    for candidate in [chosen] if chosen else [[name] for name in COMPILERS]:
        found = shutil.which(candidate[0])
        if found:
            return [found, *candidate[1:]]
    if not chosen and find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "c++"]
    raise ToolchainError(
        f"no C++ compiler ({' '.join(chosen) or ', '.join(COMPILERS)} not found; "
        "pip install neural-expm[compiler] brings one)"
    )


@lru_cache(maxsize=1)
def processor() -> str:
    """What a library compiled for this processor depends on; machines that share a home folder may differ in it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        flags = platform.processor()
    return f"{platform.system()} {platform.machine()} {flags}"


def _native() -> str:
    return "-march=native" if platform.machine().lower() in ("x86_64", "amd64", "i686") else "-mcpu=native"


def library_path(source: str, defines: Mapping[str, object], stem: str) -> Path:
    """Where the library of this source, these definitions and this processor is kept."""
    key = "\n".join([source, *(f"{k}={v}" for k, v in sorted(defines.items())), *FLAGS, processor()])
    return cache_folder() / f"{stem}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.so"


def load(path: Path) -> ctypes.CDLL | None:
    """The library, if it is there whole: its sha256 stands beside it, as loading half a file may kill the process."""
    try:
        expected = path.with_suffix(".sha256").read_text().strip()
        if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            return None
        return ctypes.CDLL(str(path))
    except OSError:
        return None


def build(source: str, defines: Mapping[str, object], path: Path) -> ctypes.CDLL:
    """Compile, put the library in place by renaming, and load it.

    Raises:
        ToolchainError: no compiler, it fails, or the folder cannot be written.
    """
    command = [*compiler(), *FLAGS, _native(), *(f"-D{k}={v}" for k, v in defines.items())]
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix="building-"))
    except OSError as error:
        raise ToolchainError(
            f"cannot write to {path.parent} ({error}); set NEURAL_EXPM_KERNEL_CACHE"
        ) from error
    try:
        code, result = folder / "kernel.cpp", folder / path.name
        code.write_text(source)
        _run([*command, str(code), "-o", str(result)], folder)
        digest = hashlib.sha256(result.read_bytes()).hexdigest()
        (folder / "sha256").write_text(digest + "\n")
        os.replace(result, path)
        os.replace(folder / "sha256", path.with_suffix(".sha256"))
    except OSError as error:
        raise ToolchainError(f"cannot compile in {path.parent} ({error})") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    loaded = load(path)
    if loaded is None:
        raise ToolchainError(f"the compiled library {path} cannot be loaded")
    return loaded


def _run(command: list[str], folder: Path) -> None:
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    _running[process] = folder
    try:
        output, _ = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        process.kill()
        process.communicate()
        raise ToolchainError(f"{command[0]} did not finish within {TIMEOUT_S:g} s") from error
    finally:
        _running.pop(process, None)
    if process.returncode:
        first = next((line for line in output.splitlines() if "error" in line), output.strip()[:200])
        raise ToolchainError(f"{command[0]} failed with status {process.returncode}: {first}")


@atexit.register
def _stop() -> None:
    """A program that ends does not wait for the compiler, and leaves nothing behind."""
    for process, folder in list(_running.items()):
        process.kill()
        shutil.rmtree(folder, ignore_errors=True)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_running.clear)
