"""The house: what imports what, what an import costs, what the wheel holds."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import neural_expm
from neural_expm.manifest import PACKAGE, manifest_path, read_manifest

# From the public surface down to the ground; a module may import from its own row or from rows below it, never above.
LAYERS = [
    {"__init__"},
    {"functions"},
    {"hub"},
    {"route"},
    {"report", "exact", "validate", "certificate"},
    {"checkpoints"},
    {"manifest", "safetensors_header"},
    {"networks"},
    {"differentiation"},
    {"kernels"},
    {"domain"},
    {"errors"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def _imports(path: Path) -> set[str]:
    """Top-level names inside the package that a module imports."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = list(parts[: len(parts) - node.level])
            target = base + (node.module.split(".") if node.module else [])
            found |= {target[0]} if target else {alias.name for alias in node.names}
    return found


def test_imports_go_one_way():
    for path in PACKAGE.rglob("*.py"):
        here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for target in _imports(path):
            if here not in ("bench", "training"):
                assert target not in ("bench", "training"), f"{path.name} imports {target}"
            if here in RANK and target in RANK and here != target:
                assert RANK[here] < RANK[target], f"{path} imports upwards: {target}"


def test_import_reads_no_weights_and_no_hub():
    code = (
        "import sys, torch, builtins; seen = []; opened = builtins.open\n"
        "def spy(path, *a, **k):\n    seen.append(str(path)); return opened(path, *a, **k)\n"
        "builtins.open = spy\nimport neural_expm\n"
        "loud = ('huggingface_hub', 'neural_expm.training', 'neural_expm.bench', 'triton', 'onnx', 'torch._inductor')\n"
        "bad = [m for m in sys.modules if m.startswith(loud)]\n"
        "assert not bad, bad\nassert not [p for p in seen if p.endswith('.safetensors')], seen\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_import_is_quick(tmp_path):
    code = (
        "import sys, time, torch; "
        f"sys.dont_write_bytecode, sys.pycache_prefix = True, {str(tmp_path)!r}; "  # all of it is compiled anew
        "t = time.process_time(); import neural_expm; print(time.process_time() - t)"
    )
    command = [sys.executable, "-c", code]
    times = [float(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(3)]
    assert min(times) < 0.05


def test_import_leaves_to_the_first_call_what_only_a_call_needs():
    heavy = ["networks.exponential", "kernels.compiled", "kernels.eager", "certificate", "exact", "hub.proof"]
    code = (
        "import sys, neural_expm\n"
        f"late = {['safetensors.torch', *(f'neural_expm.{name}' for name in heavy)]}\n"
        "bad = [name for name in late if name in sys.modules]\nassert not bad, bad\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_manifest_lists_every_weight_and_every_weight_is_listed():
    records = read_manifest(manifest_path())
    assert {record.file for record in records.values()} == {
        p.name for p in (PACKAGE / "weights").glob("*.safetensors")
    }
    for record in records.values():
        assert record.trained_by.startswith("python -m neural_expm.training ")
        assert record.license == "Apache-2.0"
        assert (record.root / record.file).stat().st_size == record.size <= 4 * 2**20


def test_public_functions_say_what_they_are():
    for name in neural_expm.__all__:
        assert getattr(neural_expm, name).__doc__, name
    for function in (neural_expm.expm, neural_expm.sign, neural_expm.sqrtm):
        for words in ("Args:", "Returns:", "Raises:", "Classical equivalent", "Higham"):
            assert words in function.__doc__


@pytest.mark.parametrize(
    "error", ["InputError", "OutsideDomainError", "UndefinedFunctionError", "ManifestError"]
)
def test_errors_are_also_what_old_handlers_catch(error):
    assert issubclass(getattr(neural_expm, error), ValueError)
