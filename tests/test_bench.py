"""The benchmark measures what it says, judges errors rightly, and fails when an answer is wrong."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch

import neural_expm
from neural_expm.bench import accuracy, measure, readme, suite, truth
from neural_expm.bench.__main__ import main
from neural_expm.bench.workloads import SUITES, Workload, ginibre, select
from neural_expm.errors import InputError

# Extended precision against mpmath: 64-bit significands, a few hundred roundings of 5e-20.
TRUTH_TOLERANCE = 1e-17
STATED = {  # what the workloads are said to be
    "phylogenetics-dna": ((7880, 4, 4), torch.float64),
    "phylogenetics-amino": ((788, 20, 20), torch.float64),
    "rotation-so3": ((100_000, 3, 3), torch.float32),
    "rigid-se3": ((100_000, 4, 4), torch.float32),
    "quantum-pulses": ((1000, 4, 4), torch.complex64),
    "control-zoh": ((200, 14, 14), torch.float64),
    "crystal-cell": ((1000, 3, 3), torch.float64),
    "graph-heat": ((32, 100, 100), torch.float32),
    "notears-20": ((20, 20), torch.float64),
    "notears-100": ((100, 100), torch.float64),
    "orthogonal-128": ((128, 128), torch.float32),
    "orthogonal-512": ((512, 512), torch.float32),
}
EVERY = [w for workloads in SUITES.values() for w in workloads]


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def small(name: str) -> Workload:
    (workload,) = [w for w in EVERY if w.name == name]
    return workload.smaller(20, 12 if workload.n > 20 else None)


# --- workloads ----------------------------------------------------------------------------------------------


def test_apps_are_the_stated_ones():
    assert {w.name: (w.shape, w.dtype) for w in SUITES["apps"]} == STATED
    assert any(w.shape == (3, 3) for w in SUITES["quick"])


@pytest.mark.parametrize("name", [w.name for w in EVERY])
def test_workloads_are_seeded_and_shaped(name):
    workload = small(name)
    A = workload.matrices(seed=3)
    assert A.shape == workload.shape
    assert A.dtype == workload.dtype
    assert torch.isfinite(torch.view_as_real(A) if A.is_complex() else A).all()
    assert torch.equal(A, workload.matrices(seed=3))
    assert not torch.equal(A, workload.matrices(seed=4))
    assert workload.cotangent().shape == A.shape


def test_workloads_have_their_structure():
    rates = small("phylogenetics-dna").matrices()
    assert rates.sum(-1).abs().max() < 1e-12
    assert (rates.diagonal(dim1=-2, dim2=-1) < 0).all()
    for name in ("rotation-so3", "orthogonal-128"):
        A = small(name).matrices()
        assert torch.equal(A, -A.mT)
    pulses = small("quantum-pulses").matrices()
    assert torch.allclose(pulses, -pulses.mH)
    assert torch.allclose(torch.linalg.matrix_norm(pulses, 2), torch.tensor(0.3))
    assert (small("notears-20").matrices() >= 0).all()
    assert (small("control-zoh").matrices()[:, -4:] == 0).all()
    heat = torch.linalg.eigvalsh(small("graph-heat").matrices().double())
    assert heat.max() < 1e-5


def test_unknown_names_say_what_exists():
    with pytest.raises(InputError, match="notears-20"):
        select("apps", ["notears-21"])
    with pytest.raises(InputError, match="functions"):
        select("app")


# --- truth and gates ----------------------------------------------------------------------------------------


@pytest.mark.skipif(not truth.EXTENDED, reason="longdouble is double here; the bench asks mpmath itself")
@pytest.mark.parametrize(
    ("function", "name"),
    [
        ("expm", "phylogenetics-dna"),
        ("expm", "crystal-cell"),
        ("expm", "quantum-pulses"),
        ("sign", "sign-symmetric-8-f64"),
        ("sign", "sign-general-8-f64"),
        ("sqrtm", "sqrtm-spd-8-f64"),
    ],
)
def test_extended_precision_agrees_with_mpmath(function, name):
    A = small(name).matrices()[:2]
    A = A.to(torch.complex128) if A.is_complex() else A
    extended = truth.value(function, A)
    for i, a in enumerate(A.numpy()):
        exact = truth.mpmath_value(function, a)
        error = np.linalg.norm((extended[i] - exact).astype(np.complex128)) / np.linalg.norm(
            exact.astype(np.complex128)
        )
        assert error < TRUTH_TOLERANCE


@pytest.mark.parametrize("function", ["expm", "sign", "sqrtm"])
def test_gradient_of_the_truth(function):
    """⟨L(Aᴴ, G), E⟩ = ⟨G, L(A, E)⟩, with L(A, E) by a difference in extended precision."""
    A = small("sqrtm-spd-8-f64").matrices()[:2]
    G = torch.randn(A.shape, dtype=A.dtype, generator=torch.Generator().manual_seed(1))
    E = torch.randn(A.shape, dtype=A.dtype, generator=torch.Generator().manual_seed(2)) * 2.0**-20
    difference = (truth.value(function, A + E) - truth.value(function, A - E)) / 2
    left = (truth.gradient(function, A, G) * E.numpy()).sum((-2, -1))
    right = (difference * G.numpy()).sum((-2, -1))
    assert np.allclose(left.astype(float), right.astype(float), rtol=1e-5, atol=1e-9)


def test_relative_error_is_the_largest_and_keeps_nan():
    exact = np.stack([np.eye(3), 100 * np.eye(3)])
    X = torch.from_numpy(exact.copy())
    X[0, 0, 0] += 0.1 * 3**0.5
    assert accuracy.relative_error(exact, X) == pytest.approx(0.1)
    X[1] = torch.nan
    assert np.isnan(accuracy.relative_error(exact, X))
    assert not accuracy.Error(ours=float("nan"), baseline=1e-7, limit=1e-6, checked=2).passed


def test_vanishing_derivative_is_judged_against_its_cotangent():
    """Sign of a definite matrix is constant: a gradient of pure rounding is right there, and 1e-3 is wrong."""
    workload = small("sign-symmetric-8-f64")
    A, G = torch.eye(8, dtype=torch.float64)[None] * 0.5, workload.cotangent()[:1]
    noise = 1e-15 * torch.ones_like(A)
    assert accuracy.gradient_error(workload, A, G, noise, noise).passed
    assert not accuracy.gradient_error(workload, A, G, 1e12 * noise, noise).passed


# --- timing -------------------------------------------------------------------------------------------------


def test_ratio_survives_a_drifting_machine(monkeypatch):
    clock, slowdown = [0.0], itertools.count(1)

    def cost(seconds):
        def f():
            clock[0] += seconds * (1 + next(slowdown) / 100)

        return f

    monkeypatch.setitem(measure.CLOCKS, "wall", lambda: clock[0])
    timing = measure.compare(cost(0.3), cost(0.1), budget=0.0)
    assert timing.pairs == measure.MIN_PAIRS
    assert timing.ratio == pytest.approx(3, rel=0.05)
    assert timing.spread[0] <= timing.ratio <= timing.spread[1]


def test_geometric_mean():
    assert measure.geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
    assert np.isnan(measure.geometric_mean([]))


# --- the command --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_results():
    """A record of every kind: real, complex, one matrix, trace, sign and sqrtm."""
    names = (
        "rotation-so3",
        "quantum-pulses",
        "notears-20",
        "single-3",
        "sign-general-8-f64",
        "sqrtm-spd-8-f32",
    )
    return suite.result("apps", list(suite.run(tuple(map(small, names)), seconds=0.0)), 0.0)


def test_result_has_every_figure(tiny_results):
    result = json.loads(json.dumps(tiny_results))
    assert set(result) == {"format", "suite", "environment", "seconds", "workloads", "summary"}
    assert {"torch", "scipy", "neural_expm", "threads", "device", "cpu", "clock"} <= set(
        result["environment"]
    )
    for record in result["workloads"]:
        assert record["passed"], record
        assert 0 <= record["fallback"] <= 1
        assert record["scipy_ns"] > 0
        assert record["checkpoint"] in {model.name for model in neural_expm.list_models(record["function"])}
        for key in ("forward", "forward_backward"):
            part = record[key]
            assert part["baseline_ns"] > 0
            assert part["ours_ns"] > 0
            assert part["ratio_quartiles"][0] <= part["ratio"] <= part["ratio_quartiles"][1]
            assert part["pairs"] >= measure.MIN_PAIRS
            assert 0 <= part["error"]["ours"] <= part["error"]["limit"]
            assert 0 < part["error"]["checked"] <= 20
    assert result["summary"]["failed"] == []
    assert result["summary"]["worst_forward"] == min(r["forward"]["ratio"] for r in result["workloads"])


def test_command_writes_json_and_plot(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path, chart = tmp_path / "a" / "quick.json", tmp_path / "b" / "quick.svg"
    arguments = ["--only", "single-3", "--seconds", "0", "--threads", "1", "--seed", "5"]
    assert main([*arguments, "--json", str(path), "--plot", str(chart)]) == 0
    (record,) = readme.read(path)["workloads"]
    assert (record["name"], record["shape"], record["seed"]) == ("single-3", [3, 3], 5)
    assert "<svg" in chart.read_text()
    printed = capsys.readouterr().out
    assert "single-3" in printed
    assert "error gates: all passed" in printed


@pytest.mark.parametrize(
    ("told", "arguments", "expected"), [(None, [], 2), ("1", [], 1), ("1", ["--threads", "2"], 2)]
)
def test_the_threads_that_are_asked_for(monkeypatch, capsys, told, arguments, expected):
    """OMP_NUM_THREADS is what torch itself began with."""
    if told is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        torch.set_num_threads(1)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", told)
        torch.set_num_threads(int(told))
    assert main(["--only", "single-3", "--seconds", "0", *arguments]) == 0
    assert torch.get_num_threads() == expected
    assert f"{expected} thread" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [1.0 + 1e-4, float("nan")])
def test_wrong_answer_fails_the_gate(monkeypatch, capsys, wrong):
    right = neural_expm.expm

    def broken(A, **options):
        result = right(A, **options)
        return (result[0] * wrong, result[1]) if isinstance(result, tuple) else result

    monkeypatch.setattr(neural_expm, "expm", broken)
    assert main(["--only", "single-3", "--seconds", "0", "--threads", "1"]) == 1
    assert "FAILED on single-3" in capsys.readouterr().out


def test_wrong_gradient_fails_the_gate(monkeypatch, capsys):
    right = neural_expm.expm

    def broken(A, **options):
        result = right(A, **options)
        return result if isinstance(result, tuple) else result + 1e-3 * (A - A.detach())

    monkeypatch.setattr(neural_expm, "expm", broken)
    assert main(["--only", "single-3", "--seconds", "0", "--threads", "1"]) == 1
    assert "FAILED on single-3" in capsys.readouterr().out


# --- README -------------------------------------------------------------------------------------------------

README = """# Title
<!-- results:apps -->
old
<!-- /results -->
between
<!-- results:elsewhere -->
kept
<!-- /results -->
<!-- results:models -->
<!-- /results -->
"""


def test_readme_tables_come_from_the_results(tmp_path, tiny_results):
    path = tmp_path / "README.md"
    path.write_text(README, encoding="utf-8")
    with pytest.raises(InputError, match=r"--suite apps --json"):
        readme.update(path)
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    (results / "apps.json").write_text(json.dumps(tiny_results), encoding="utf-8")
    assert readme.update(path) == ["apps", "models"]
    text = path.read_text(encoding="utf-8")
    assert "old" not in text
    assert "between\n<!-- results:elsewhere -->\nkept\n<!-- /results -->" in text
    assert tiny_results["workloads"][0]["source"] in text
    assert f"{tiny_results['workloads'][0]['forward']['ratio']:.1f}×" in text
    for model in neural_expm.list_models():
        assert f"`{model.name}`" in text
    readme.update(path)
    assert path.read_text(encoding="utf-8") == text


def test_models_table_takes_errors_from_the_workloads_of_each_model(tiny_results):
    record = neural_expm.list_models("sqrtm")[0]
    (used,) = [w for w in tiny_results["workloads"] if w["checkpoint"] == record.name]
    table = readme.models([tiny_results], [record])
    assert f"{used['forward']['error']['ours']:.1e}" in table
    assert "| – | – |" in readme.models([], [record])


def test_ginibre_is_the_one_of_the_data_sets():
    norms = torch.linalg.matrix_norm(ginibre(200, 5, torch.Generator().manual_seed(0)), 2)
    assert 1.8 < norms.max() <= 2.0
