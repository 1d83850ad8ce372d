"""Exports compute what the PyTorch network computes: C99 by gcc, numpy without torch, ONNX by onnxruntime."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from relu_cases import box_matrices, spd_matrices

import neural_expm
from neural_expm.checkpoints import save
from neural_expm.errors import InputError
from neural_expm.networks.relu import TrainedReLUNet
from neural_expm.networks.relu_construction import ExpRecipe, SqrtRecipe
from neural_expm.networks.relu_executor import ConstructedReLUNet
from neural_expm.training.__main__ import main
from neural_expm.training.export_c import constant_bytes, write_c
from neural_expm.training.export_numpy import write_numpy
from neural_expm.training.export_onnx import write_onnx
from neural_expm.training.export_program import program_of

# Rounding in another order of summation: a few units in the last place of numbers of size e².
TOLERANCE = {"float32": 2e-5, "float64": 1e-12}


def trained(function, n, **options):
    """A network of the trained kind with seeded random weights: exports must be right for any weights."""
    torch.manual_seed(n)
    frame = {"squarings": 0, "baseline": 1} | options
    quantized = frame.pop("int8", False)
    network = TrainedReLUNet(function, n, [24, 17], **frame).requires_grad_(False)
    return (network.quantized() if quantized else network).eval()


NETWORKS = {
    "expm-plain": lambda: trained("expm", 3, baseline=-1),
    "expm-linear": lambda: trained("expm", 2, baseline=1, squarings=2),
    "expm-quadratic": lambda: trained("expm", 4, baseline=2, squarings=1),
    "expm-int8": lambda: trained("expm", 3, baseline=2, squarings=1, int8=True),
    "sqrtm-trained": lambda: trained("sqrtm", 3),
    "sqrtm-int8": lambda: trained("sqrtm", 4, int8=True),
    "expm-constructed": lambda: ConstructedReLUNet(ExpRecipe(2, 1.0, 4, 1, 6)),
    "sqrtm-constructed": lambda: ConstructedReLUNet(SqrtRecipe(2, 0.1, 1.0, 2, 8)),
}


@pytest.fixture(params=NETWORKS)
def case(request):
    """(program, input matrices, the PyTorch network's answer)."""
    network = NETWORKS[request.param]()
    program = program_of(network, request.param)
    n, sqrt = network.n, program.function == "sqrtm"
    A = spd_matrices(n, 0.1, 1.0, 20, seed=3) if sqrt else box_matrices(n, 1.0, 20, seed=3)
    A = A.to(getattr(torch, program.dtype))
    return program, A, network(A).numpy()


def agree(result, expected, dtype):
    assert result.shape == expected.shape
    assert np.abs(result - expected).max() <= TOLERANCE[dtype] * max(1.0, np.abs(expected).max())


def compile_c(source, *flags):
    library = source.with_suffix(".so")
    strict = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-O2"]
    subprocess.run(["gcc", *strict, *flags, "-shared", "-fPIC", "-o", library, source], check=True)
    return ctypes.CDLL(str(library))


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_c_file_compiles_without_warnings_and_agrees(case, tmp_path):
    program, A, expected = case
    (source,) = write_c(program, tmp_path)
    function = getattr(compile_c(source, "-nostdlib"), program.name.replace("-", "_"))
    function.restype = None
    inputs = A.numpy()
    result = np.empty_like(inputs)
    for one, answer in zip(inputs, result, strict=True):
        function(one.ctypes.data_as(ctypes.c_void_p), answer.ctypes.data_as(ctypes.c_void_p))
    agree(result, expected, program.dtype)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_c_file_includes_nothing_and_may_work_in_place(tmp_path):
    network = NETWORKS["expm-quadratic"]()
    program = program_of(network, "in-place")
    (source,) = write_c(program, tmp_path)
    text = source.read_text()
    assert "#include" not in text
    assert "malloc" not in text
    assert f"Constants: {constant_bytes(program)} bytes" in text
    A = box_matrices(4, 1.0, 1, seed=1)[0].float()
    buffer = A.numpy().copy()
    pointer = buffer.ctypes.data_as(ctypes.c_void_p)
    compile_c(source).in_place(pointer, pointer)
    agree(buffer, network(A).numpy(), "float32")


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
@pytest.mark.parametrize("name", ["expm-quadratic", "sqrtm-trained"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 1e30, -1.0])
def test_c_file_comes_back_from_absurd_input_as_the_network_does(name, value, tmp_path):
    network = NETWORKS[name]()
    (source,) = write_c(program_of(network, name), tmp_path)
    A = torch.eye(network.n) * value
    answer = np.empty((network.n, network.n), dtype=np.float32)
    function = getattr(compile_c(source), name.replace("-", "_"))
    function(A.numpy().ctypes.data_as(ctypes.c_void_p), answer.ctypes.data_as(ctypes.c_void_p))
    assert np.array_equal(np.isfinite(answer), network(A).isfinite().numpy())


def test_numpy_runner_needs_no_torch_and_agrees(case, tmp_path):
    program, A, expected = case
    runner, _ = write_numpy(program, tmp_path)
    np.save(tmp_path / "in.npy", A.numpy())
    script = (
        "import sys; sys.modules['torch'] = None; sys.modules['scipy'] = None; import numpy as np; "
        f"from {runner.stem} import apply; np.save('out.npy', apply(np.load('in.npy')))"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    agree(np.load(tmp_path / "out.npy"), expected, program.dtype)


@pytest.mark.parametrize(
    "name", ["expm-relu-n2-10k", "expm-relu-proven-n2", "sqrtm-relu-n3-10k", "sqrtm-relu-proven-n2"]
)
def test_numpy_runner_answers_within_the_domain_alone(name, tmp_path):
    """As the library does, which asks the exact algorithm for the others."""
    function, n = name.split("-")[0], 3 if "n3" in name else 2
    assert main(["export", name, "--format", "numpy", "--out", str(tmp_path)]) == 0
    base = (
        spd_matrices(n, 0.2, 1.0, 12, seed=1) if function == "sqrtm" else box_matrices(n, 0.5, 12, seed=1)
    ).double()
    A = torch.cat(
        [base, 3 * base, base + 0.1 * torch.eye(n).roll(1, 0).triu(), -base, base * torch.nan, base * 1e9]
    )
    A = A.to(torch.float64 if "proven" in name else torch.float32)
    np.save(tmp_path / "in.npy", A.numpy())
    script = (
        "import sys; sys.modules['torch'] = None; import numpy as np; "
        f"from {name.replace('-', '_')} import apply; A = np.load('in.npy'); "
        "np.save('out.npy', apply(A)); np.save('all.npy', apply(A, trust=True))"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], cwd=tmp_path, check=True)
    out, everything = (torch.from_numpy(np.load(tmp_path / f"{each}.npy")) for each in ("out", "all"))
    call = getattr(neural_expm, function)
    expected, report = call(A, model=name, outside="nan", return_report=True)
    assert torch.equal(out.isnan().any(-1).any(-1), ~report.inside)
    assert 0 < int(report.inside.sum()) < len(A)
    agree(out[report.inside].numpy(), expected[report.inside].numpy(), str(A.dtype).removeprefix("torch."))
    torch.testing.assert_close(everything[report.inside], out[report.inside], rtol=1e-3, atol=1e-4)


def test_onnx_model_passes_the_checker_and_agrees(case, tmp_path):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    program, A, expected = case
    (path,) = write_onnx(program, tmp_path)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"A": A.numpy()})
    agree(result, expected, program.dtype)
    (one,) = session.run(None, {"A": A.numpy()[:1]})
    agree(one, expected[:1], program.dtype)


def test_int8_constants_are_a_quarter(tmp_path):
    wide, narrow = trained("expm", 4), trained("expm", 4, int8=True)
    weights = sum(layer.weight.numel() for layer in wide.linears)
    saved = constant_bytes(program_of(wide, "wide")) - constant_bytes(program_of(narrow, "narrow"))
    rows = sum(len(layer.bias) for layer in wide.linears)
    assert saved == 3 * weights - 4 * rows  # four bytes become one; a scale for each row


def test_other_families_and_huge_networks_are_refused(tmp_path):
    with pytest.raises(InputError, match="only the relu family and the equivariant one"):
        program_of(torch.nn.Linear(4, 4), "linear")
    big = ConstructedReLUNet(ExpRecipe(6, 1.0, 6, 3, 12))
    with pytest.raises(InputError, match="use --format c or numpy"):
        write_onnx(program_of(big, "big"), tmp_path)


def test_command_writes_the_files_of_a_shipped_network(tmp_path, capsys):
    for kind, suffix in (("c", ".c"), ("numpy", ".npz")):
        assert main(["export", "expm-relu-proven-n2", "--format", kind, "--out", str(tmp_path / "new")]) == 0
        assert (tmp_path / "new" / f"expm_relu_proven_n2{suffix}").exists()
    assert (
        "Made for: general, real, n = 2, ||A||_inf <= 2."
        in (tmp_path / "new" / "expm_relu_proven_n2.c").read_text()
    )
    assert "bytes of constants" in capsys.readouterr().out


def test_command_takes_a_weight_file_and_quantizes(tmp_path):
    path = tmp_path / "tiny.safetensors"
    save(trained("expm", 2), path, name="tiny", function="expm", family="relu")
    assert main(["export", str(path), "--format", "c", "--weights", "int8", "--out", str(tmp_path)]) == 0
    assert "static const signed char" in (tmp_path / "tiny_int8.c").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-model", "--format", "c"], "no checkpoint 'no-such-model'"),
        (["missing.safetensors", "--format", "c"], "cannot read"),
        (["expm-relu-proven-n2", "--format", "c", "--weights", "int8"], "would lose its proof"),
    ],
)
def test_command_says_what_is_wrong(arguments, message, capsys, tmp_path):
    assert main(["export", *arguments, "--out", str(tmp_path)]) == 1
    assert message in capsys.readouterr().err
