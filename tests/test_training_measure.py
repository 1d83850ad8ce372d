"""Data sets on disk, conformal bounds, Fréchet derivatives, evaluation, shipping and the study."""

import json

import pytest
import torch
from test_training import config

from neural_expm import checkpoints, manifest
from neural_expm.errors import TrainingError
from neural_expm.training import __main__ as command_line
from neural_expm.training import data, evaluate, shipping, study
from neural_expm.training.conformal import conformal_bound, covered
from neural_expm.training.datasets import held_out, read_dataset, write_dataset
from neural_expm.training.fit import fit
from neural_expm.training.frechet import adjoint_frechet
from neural_expm.training.metrics import d1_error, relative_error, summary

#: Central differences in float64 with step 1e-6: truncation and rounding together.
DIFFERENCES = 1e-7


def test_a_data_set_round_trips_with_its_manifest(tmp_path):
    path = write_dataset(tmp_path, "sign", "sign_general", [2, 5], 30, "test", 7, gap=0.3)
    facts, pairs = read_dataset(path)
    assert facts["distribution"] == "sign_general"
    assert facts["parameters"] == {"gap": 0.3}
    assert facts["seed"] == 7
    assert "V·sign(D)·V⁻¹" in facts["reference"]
    for n in (2, 5):
        matrices, values = held_out("sign", "sign_general", n, 30, "test", 7, gap=0.3)
        assert torch.equal(pairs[n][0], matrices)
        assert torch.equal(pairs[n][1], values)


def test_a_longer_set_begins_with_the_shorter():
    short, _ = held_out("expm", "ginibre", 3, 10)
    long, _ = held_out("expm", "ginibre", 3, 5000)
    assert long.shape == (5000, 3, 3)
    assert torch.equal(long[:10], short)


def test_a_changed_data_set_is_refused(tmp_path):
    path = write_dataset(tmp_path, "expm", "ginibre", [2], 5)
    file = path.with_suffix(".safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(TrainingError, match="sha256 is"):
        read_dataset(path)
    file.unlink()
    with pytest.raises(TrainingError, match="cannot read the data set"):
        read_dataset(path)


def test_the_data_command_writes_and_verifies(tmp_path, capsys):
    arguments = ["--function", "sqrtm", "--distribution", "spd", "--sizes", "3", "--count", "4"]
    assert (
        command_line.main(["data", "write", *arguments, "--set", "condition=10", "--folder", str(tmp_path)])
        == 0
    )
    path = capsys.readouterr().out.strip()
    assert command_line.main(["data", "verify", path]) == 0
    _, pairs = read_dataset(type(tmp_path)(path))
    assert torch.linalg.eigvalsh(pairs[3][0]).min() >= 0.1 - 1e-12
    assert command_line.main(["data", "write", *arguments, "--set", "condition=ten"]) == 1
    assert "expected NAME=NUMBER" in capsys.readouterr().err


def test_training_never_draws_a_held_out_matrix():
    held = torch.cat([held_out("expm", "ginibre", 3, 4096, split)[0] for split in ("test", "calibration")])
    drawn = torch.cat(
        [data.sample("ginibre", 3, 256, data.split_generator("train", 0, step, 0)) for step in range(50)]
    )
    keys = set(held[:, 0, 0].tolist())
    assert not keys & set(drawn[:, 0, 0].tolist())


def test_conformal_bounds_cover_what_they_promise():
    generator = torch.Generator().manual_seed(0)
    errors = torch.rand(200_000, generator=generator).square()
    for coverage in (0.95, 0.99):
        bound = conformal_bound(errors[:100_000], coverage)
        assert covered(errors[100_000:], bound) == pytest.approx(coverage, abs=0.003)
    # Nine errors: the ⌈10·0.9⌉ = 9-th smallest, the largest of all.
    assert conformal_bound(torch.arange(9.0), 0.9) == 8.0


@pytest.mark.parametrize(("count", "coverage"), [(10, 0.95), (100, 1.0), (100, 0.0)])
def test_impossible_coverages_are_refused(count, coverage):
    with pytest.raises(TrainingError, match="coverage"):
        conformal_bound(torch.rand(count), coverage)


@pytest.mark.parametrize(
    ("function", "name"),
    [("expm", "ginibre"), ("sign", "sign_general"), ("sign", "sign_symmetric"), ("sqrtm", "spd")],
)
def test_adjoint_frechet_derivatives_match_differences(function, name):
    """⟨W, f(A+hE) − f(A−hE)⟩/2h = ⟨E, gradient⟩ for a direction E that keeps the spectrum's side."""
    matrices, _ = data.sample_pairs(function, name, 4, 8, data.split_generator("test", 4))
    generator = torch.Generator().manual_seed(1)
    weights, direction = torch.randn(2, *matrices.shape, generator=generator, dtype=torch.float64)
    gradient = adjoint_frechet(function, matrices, weights)

    def value(A):
        if function == "expm":
            return (torch.linalg.matrix_exp(A) * weights).sum((1, 2))
        eigenvalues, vectors = torch.linalg.eig(A)
        image = eigenvalues.real.sign().to(vectors.dtype) if function == "sign" else eigenvalues.sqrt()
        return ((vectors * image.unsqueeze(-2) @ torch.linalg.inv(vectors)).real * weights).sum((1, 2))

    step = 1e-6
    difference = (value(matrices + step * direction) - value(matrices - step * direction)) / (2 * step)
    expected = (gradient * direction).sum((1, 2))
    scale = 1 + gradient.flatten(1).norm(dim=1) * direction.flatten(1).norm(dim=1)
    assert ((difference - expected).abs() / scale).max() < DIFFERENCES * 100


def test_metrics_against_hand_values():
    reference = torch.tensor([[[3.0, 0.0], [0.0, 4.0]]])
    output = torch.tensor([[[3.0, 0.5], [0.0, 4.0]]])
    assert relative_error(output, reference).item() == pytest.approx(0.1)
    assert d1_error(output, reference).item() == pytest.approx(0.5 / 7)
    assert summary(torch.arange(100.0)) == {"mean": 49.5, "median": 50.0, "p95": 95.0, "max": 99.0}
    assert summary(torch.tensor([1.0, float("nan")]))["max"] == float("inf")


def test_measure_reports_every_published_figure(tmp_path):
    run = fit(config(steps=20), tmp_path, quiet=True)
    figures = evaluate.measure(run.average, config(), count=200)
    assert figures["samples"] == figures["calibration_samples"] == 400
    assert figures["relative_error"]["mean"] == pytest.approx(figures["parts"]["network"]["mean"])
    for n in ("2", "3"):
        assert figures["conformal_by_size"][n]["0.95"] <= figures["conformal_by_size"][n]["0.99"]
        assert figures["coverage_by_size"][n]["0.95"] == pytest.approx(0.95, abs=0.07)
    assert 0 < figures["gradient_error"]["median"] < 1
    assert figures["d1_within"]["0.05"] >= figures["d1_within"]["0.005"]


def test_the_gradient_error_of_the_truth_is_zero():
    figures = evaluate.gradient_errors(torch.linalg.matrix_exp, config(), count=20)
    assert figures["max"] < 1e-5, "float32 rounding"


def test_scaling_extends_the_exponential_beyond_the_radius():
    matrices, values = held_out("expm", "gaussian_symmetric", 4, 200)
    output = evaluate.scaled_exponential(torch.linalg.matrix_exp, matrices, 2.0)
    assert relative_error(output, values).max() < 1e-11


def test_shipping_enters_a_measured_checkpoint(tmp_path, monkeypatch):
    fit(config(steps=20), tmp_path / "run", quiet=True)
    monkeypatch.setattr(manifest, "PACKAGE", tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({"format": 1, "checkpoints": []}))
    for _ in range(2):  # the second time replaces the entry
        shipping.ship(tmp_path / "run", count=120, path=path)
    (record,) = manifest.read_manifest(path, tmp_path / "weights").values()
    assert record.name == "tiny"
    assert record.bound_kind == "statistical"
    assert record.bound == max(b["0.99"] for b in record.measured["conformal_by_size"].values())
    assert record.measured["samples"] == 240
    assert "baseline" in record.card
    net = checkpoints.load_record(record)
    matrices, values = held_out("expm", "ginibre", 3, 100)
    assert relative_error(net(matrices.float()).double(), values).mean() < 0.1


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(TrainingError, match="holds no finished run"):
        shipping.load_run(tmp_path)


def test_a_small_study_is_complete_and_goes_on_where_it_stopped(tmp_path, capsys):
    out, picture = tmp_path / "study.json", tmp_path / "study.png"
    common = ["study", "--budget", "0.2", "--sizes", "2", "--functions", "sqrtm", "--out", str(out)]
    common += ["--plot", str(picture), "--seeds", "0"]
    assert command_line.main([*common, "--models", "block", "mlp"]) == 0
    first = json.loads(out.read_text())["cells"]
    assert command_line.main(common) == 0
    content = json.loads(out.read_text())
    assert content["cells"][:2] == first, "finished cells are not trained again"
    assert {c["model"] for c in content["cells"]} == set(study.MODELS)
    (row,) = content["table"]
    assert row["best_encoding"] in study.ENCODINGS
    assert row["auto_chose"][0] in study.ENCODINGS
    assert row["mean_error"]["block"] == content["cells"][0]["error"]["mean"]
    assert picture.stat().st_size > 5000
