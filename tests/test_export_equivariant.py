"""The equivariant networks in other runtimes: torch.export, AOTInductor, and ONNX run by onnxruntime."""

from __future__ import annotations

import shutil
import subprocess
import sys

import cases
import pytest
import torch

import neural_expm
from neural_expm import exact
from neural_expm.training.__main__ import main

# What a runtime has to know: products, element-wise operations, reductions, and the plumbing of shapes.
ARITHMETIC = {"MatMul", "Add", "Sub", "Mul", "Div", "Reciprocal", "Sqrt", "Abs", "Min", "Clip"}
CHOICE = {"Greater", "LessOrEqual", "Equal", "Where"}
REDUCTIONS = {"ReduceSum", "ReduceMax", "ReduceL2"}
SHAPES = {"Shape", "Expand", "Squeeze", "Unsqueeze", "Range", "Cast", "Concat"}
# Relative error at norm 50: the condition number of exp is as large there, and each squaring may double the rounding.
AT_50 = {torch.float32: 5e-5, torch.float64: 1e-12}


def written(folder, name, *options):
    """An ONNX model by the command line, and a session of onnxruntime with it."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    assert main(["export", name, "--format", "onnx", "--out", str(folder), *options]) == 0
    # The name says what was chosen, lest one model take the place of another.
    chosen = "".join(f"_{option[2:]}" if option.startswith("--") else option for option in options)
    path = folder / f"{name.replace('-', '_')}{chosen}.onnx"
    return onnx.load(path), runtime.InferenceSession(path, providers=["CPUExecutionProvider"])


def answer(session, A):
    return torch.from_numpy(session.run(None, {"A": A.numpy()})[0])


@pytest.fixture(scope="module", params=[torch.float32, torch.float64], ids=str)
def exponential(request, tmp_path_factory):
    name = f"expm-equivariant-{str(request.param).removeprefix('torch.')}"
    return request.param, *written(tmp_path_factory.mktemp("onnx"), name)


def test_onnx_exponential_takes_any_batch_and_n(exponential):
    dtype, _, session = exponential
    for batch, n in ((1, 4), (7, 2), (3, 16), (5, 33)):
        for norm in (0.0, 1e-6, 0.3, 2.0, 50.0):
            A = torch.randn(batch, n, n, dtype=torch.float64, generator=cases.generator(n))
            A = (A / torch.linalg.matrix_norm(A, 2, keepdim=True) * norm).to(dtype)
            truth = torch.linalg.matrix_exp(A.double())
            limit = AT_50[dtype] if norm == 50 else cases.VALUE[dtype]
            assert cases.relative(answer(session, A), truth).max() <= limit, (batch, n, norm)


def test_onnx_exponential_is_nan_beyond_its_radius_and_never_wrong(exponential):
    dtype, _, session = exponential
    A = torch.stack([scale * torch.eye(3) for scale in (1.0, 1e4, -1e4, torch.inf, torch.nan, 2.0)]).to(dtype)
    F = answer(session, A)
    assert bool(F[1:5].isnan().all())
    assert cases.relative(F[[0, 5]], torch.linalg.matrix_exp(A[[0, 5]].double())).max() <= cases.VALUE[dtype]


def test_onnx_exponential_has_products_and_elementwise_operations_only(exponential):
    _, model, _ = exponential
    operators = {node.op_type for node in model.graph.node}
    assert operators <= ARITHMETIC | CHOICE | REDUCTIONS | SHAPES
    assert not model.functions


def test_onnx_of_a_fixed_size_and_radius_takes_fewer_products(tmp_path):
    model, session = written(tmp_path, "expm-equivariant-float32", "--n", "3", "--radius", "2")
    assert sum(node.op_type == "MatMul" for node in model.graph.node) == 4
    A = cases.ginibre(3, 11, seed=5).float()
    assert cases.relative(answer(session, A), torch.linalg.matrix_exp(A.double())).max() <= 1e-6
    assert bool(answer(session, 10 * torch.eye(3)[None]).isnan().all())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sign", "sqrtm"])
def test_onnx_sign_and_square_root(name, tmp_path):
    model, session = written(tmp_path, f"{name}-equivariant")
    assert {node.op_type for node in model.graph.node} <= ARITHMETIC | CHOICE | REDUCTIONS | SHAPES
    for batch, n in ((1, 3), (4, 6)):
        G = torch.randn(batch, n, n, dtype=torch.float64, generator=cases.generator(n))
        A = G + G.mT if name == "sign" else G @ G.mT + 0.1 * torch.eye(n)
        truth, undefined = exact.VALUE[name](A)
        assert not bool(undefined.any())
        assert cases.relative(answer(session, A), truth).max() <= cases.SIGN[torch.float64]
    # One that has no sign and no principal root.
    rotation = torch.tensor([[[0.0, 1.0], [-1.0, 0.0]]], dtype=torch.float64)
    assert bool(answer(session, rotation if name == "sign" else rotation @ rotation).isnan().all())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["expm-equivariant-float32", "--format", "c"], "use --format onnx"),
        (["expm-equivariant-float32", "--format", "numpy"], "use --format onnx"),
        (["expm-equivariant-float32", "--format", "onnx", "--weights", "int8"], "leave out --weights"),
        (["expm-equivariant-float32", "--format", "onnx", "--radius", "1e4"], "no rung reaches radius 10000"),
        (["sign-equivariant", "--format", "onnx", "--radius", "1"], "leave out --radius"),
        (["expm-relu-proven-n2", "--format", "onnx", "--n", "2"], "leave out --dtype, --n and --radius"),
        (["expm-transformer-block", "--format", "onnx"], "only the relu family and the equivariant one"),
    ],
)
def test_command_says_which_options_do_not_apply(arguments, message, capsys, tmp_path):
    assert main(["export", *arguments, "--out", str(tmp_path)]) == 1
    assert message in capsys.readouterr().err


class Exponential(torch.nn.Module):
    """What a user would write."""

    def forward(self, A):
        return neural_expm.expm(A, outside="trust")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("module", [Exponential, neural_expm.load], ids=["function", "network"])
def test_exported_program_takes_any_batch_and_n(module, dtype):
    network = Exponential() if module is Exponential else module("expm-equivariant", dtype.to_real())
    free = torch.export.Dim.DYNAMIC
    example = torch.zeros(2, 3, 3, dtype=dtype)
    program = torch.export.export(network, (example,), dynamic_shapes=({0: free, 1: free, 2: free},))
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not {name for name in operators if "cond" in name or "linalg_matrix_exp" in name}
    for batch, n in ((1, 5), (9, 2), (4, 20)):
        A = cases.ginibre(n, batch, seed=n, dtype=dtype if dtype.is_complex else torch.float64).to(dtype)
        truth = torch.linalg.matrix_exp(A.to(torch.complex128 if dtype.is_complex else torch.float64))
        assert cases.relative(program.module()(A), truth).max() <= cases.VALUE[dtype]


@pytest.mark.parametrize("n", [1, 2, 4])
def test_traced_exponential_is_as_exact_as_the_untraced_one(n):
    program = neural_expm.load("expm-equivariant", torch.float64).program()
    for A in (-50.0 * torch.eye(n), 50.0 * torch.eye(n), torch.zeros(n, n), 1e-9 * torch.eye(n)):
        A = A.double()[None]
        truth = torch.linalg.matrix_exp(A)
        limit = 2 * cases.relative(neural_expm.expm(A), truth) + 1e-14  # 2^s roundings and a few
        assert bool((cases.relative(program(A), truth) <= limit).all())


def test_traced_gradient_at_zero_and_beside_a_matrix_outside():
    program = neural_expm.load("expm-equivariant", torch.float64).program()
    A = torch.stack([torch.zeros(3, 3), torch.eye(3), 1e4 * torch.eye(3)]).double().requires_grad_()
    (gradient,) = torch.autograd.grad(program(A)[:2].sum(), A)
    truth = exact.expm_frechet(A.detach()[:2], torch.ones(2, 3, 3, dtype=torch.float64))
    assert cases.relative(gradient[:2], truth).max() <= cases.GRADIENT[torch.float64]


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("c++") is None and shutil.which("g++") is None, reason="needs a C++ compiler"
)
def test_ahead_of_time_compiled_package(tmp_path):
    free = torch.export.Dim.DYNAMIC
    program = torch.export.export(Exponential(), (torch.zeros(2, 4, 4),), dynamic_shapes=({0: free},))
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "expm.pt2"))
    compiled = torch._inductor.aoti_load_package(path)
    for batch in (1, 9):
        A = cases.ginibre(4, batch, radius=6.0, seed=batch).float()
        assert cases.relative(compiled(A), torch.linalg.matrix_exp(A.double())).max() <= 1e-5
    assert bool(compiled(1e4 * torch.eye(4)[None]).isnan().all())


def test_first_call_of_a_process_may_be_traced():
    # All three functions in one trace, with weights that nobody has read yet.
    lines = [
        "import sys, torch, neural_expm as ne",
        "class Sum(torch.nn.Module):",
        "    def forward(self, A):",
        "        E = ne.expm(A, outside='trust') + ne.expm(A, outside='trust', rtol=1e-2)",
        "        return E + ne.sqrtm(A, outside='trust') + ne.sign(A, outside='trust')",
        "A = torch.eye(3)[None]",
        "if sys.argv[1] == 'export':",
        "    f = torch.export.export(Sum(), (A,)).module()",
        "else:",
        "    f = torch.compile(Sum(), fullgraph=True, backend='aot_eager')",
        "assert torch.allclose(f(A), A * (2 * torch.e + 2), rtol=1e-2), f(A)",
    ]
    for how in ("export", "compile"):
        subprocess.run([sys.executable, "-c", "\n".join(lines), how], check=True, timeout=120)
