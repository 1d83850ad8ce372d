"""Training: one configuration gives one set of weights; kills and full disks lose nothing."""

import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from neural_expm.errors import TrainingError
from neural_expm.training import __main__ as command_line
from neural_expm.training import fit as fitting
from neural_expm.training.config import RunConfig
from neural_expm.training.fit import Run, draw, fit, learning_rate
from neural_expm.training.progress import Progress, duration
from neural_expm.training.recipes import RECIPES, recipe

ROOT = Path(__file__).resolve().parent.parent
TINY = {
    "name": "tiny",
    "function": "expm",
    "network": {
        "encoding": "block",
        "frame": {"kind": "expm"},
        "width": 16,
        "heads": 2,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "hidden": 16,
    },
    "data": [{"distribution": "ginibre", "radius": 2.0}],
    "sizes": [2, 3],
    "batch": 16,
    "steps": 12,
    "warmup": 2,
    "validate_count": 16,
    "validate_every": 6,
    "save_every": 4,
}


def config(**changes):
    return RunConfig.from_dict({**TINY, **changes})


def weights(run):
    return torch.cat([p.detach().flatten() for p in (*run.net.parameters(), *run.average.parameters())])


def environment(**extra):
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **extra}


def test_training_lowers_the_error(tmp_path):
    start = Run(config(), tmp_path / "a").validate()["mean"]
    run = fit(config(steps=150, batch=64, learning_rate=3e-3), tmp_path / "b", quiet=True)
    assert run.validate()["mean"] < 0.8 * start


def test_a_seed_gives_the_same_weights(tmp_path):
    first, again, other = (
        fit(config(seed=seed), tmp_path / str(i), quiet=True) for i, seed in enumerate((1, 1, 2))
    )
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(other))


def test_a_killed_run_resumes_to_the_same_weights(tmp_path):
    """SIGKILL in the middle of a run, then --resume: bit for bit the weights of a run never broken."""
    long = {**TINY, "steps": 100, "validate_every": 1000}
    path = tmp_path / "run.json"
    path.write_text(json.dumps(long))
    folder = tmp_path / "killed"
    arguments = ["fit", "--config", str(path), "--folder", str(folder)]
    process = subprocess.Popen(
        [sys.executable, "-m", "neural_expm.training", *arguments],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not (folder / "state.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    saved = torch.load(folder / "state.pt", weights_only=True)["step"]
    assert 0 < saved < 100, "the run must have been killed on its way"
    resumed = fit(RunConfig.from_dict(long), folder, resume=True, quiet=True)
    unbroken = fit(RunConfig.from_dict(long), tmp_path / "whole", quiet=True)
    assert resumed.step == unbroken.step == 100
    assert torch.equal(weights(resumed), weights(unbroken))


WORKER = """
import sys, torch
from pathlib import Path
from neural_expm.training.config import RunConfig
from neural_expm.training.fit import fit, process_group
with process_group():
    run = fit(RunConfig.from_file(sys.argv[1]), Path(sys.argv[2]), quiet=True)
    torch.save([p.detach() for p in run.net.parameters()], f"{sys.argv[2]}/rank{run.rank}.pt")
"""


def test_two_processes_average_their_gradients(tmp_path):
    """A torchrun of two gloo processes equals one process that averages the losses of both batches."""
    path, folder = tmp_path / "run.json", tmp_path / "two"
    path.write_text(json.dumps({**TINY, "steps": 5}))
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(tmp_path / "worker.py"), str(path), str(folder)]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    ranks = [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert all(torch.equal(a, b) for a, b in zip(*ranks, strict=True))

    alone = Run(config(steps=5), tmp_path / "one")
    alone.processes = 2  # draws half batches, as each process does
    for _ in range(5):
        alone.net.zero_grad()
        loss = (alone.loss(0) + alone.loss(1)) / 2
        loss.backward()
        alone._update(loss.item())
    for shared, expected in zip(ranks[0], alone.net.parameters(), strict=True):
        torch.testing.assert_close(shared, expected.detach(), rtol=1e-3, atol=1e-5)


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(fitting.dist, "get_rank", lambda: 0)
    monkeypatch.setattr(fitting.dist, "get_world_size", lambda: 3)
    with pytest.raises(TrainingError, match="batch 16 cannot be shared equally by 3"):
        Run(config(), tmp_path)


def test_mixed_precision_trains_float32_weights(tmp_path):
    run = fit(config(precision="bfloat16", steps=6), tmp_path / "low", quiet=True)
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in run.net.parameters())
    exact = fit(config(steps=6), tmp_path / "full", quiet=True)
    assert not torch.equal(weights(run), weights(exact))
    assert run.validate()["mean"] == pytest.approx(exact.validate()["mean"], rel=0.2)


def test_a_resumed_run_with_another_configuration_is_refused(tmp_path):
    fit(config(), tmp_path, quiet=True)
    with pytest.raises(TrainingError, match=r"another configuration \(different: batch, learning_rate\)"):
        fit(config(batch=8, learning_rate=1e-4), tmp_path, resume=True, quiet=True)


def test_a_finished_folder_is_not_overwritten(tmp_path):
    fit(config(), tmp_path, quiet=True)
    before = (tmp_path / "state.pt").read_bytes()
    with pytest.raises(TrainingError, match="--resume"):
        fit(config(seed=3), tmp_path, quiet=True)
    assert (tmp_path / "state.pt").read_bytes() == before


def test_a_full_disk_leaves_the_earlier_state(tmp_path, monkeypatch):
    run = fit(config(), tmp_path, quiet=True)
    before = (tmp_path / "state.pt").read_bytes()

    def full(state, path):
        Path(path).write_bytes(b"half a ch")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(TrainingError, match=r"No space left on device.*the earlier file is intact"):
        run.save()
    assert (tmp_path / "state.pt").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["state.pt"], "no half-written file stays behind"


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None], ids=["empty", "text", "cut"])
def test_a_damaged_state_is_named(tmp_path, content):
    fit(config(), tmp_path, quiet=True)
    state = tmp_path / "state.pt"
    state.write_bytes(state.read_bytes()[:-200] if content is None else content)
    with pytest.raises(TrainingError, match=r"state\.pt is not a saved run"):
        fit(config(), tmp_path, resume=True, quiet=True)


def test_a_diverging_run_stops_with_advice(tmp_path, monkeypatch):
    run = Run(config(), tmp_path)
    monkeypatch.setattr(run, "loss", lambda rank: next(run.net.parameters()).sum() * float("nan"))
    with pytest.raises(TrainingError, match="lower learning_rate"):
        run.advance()


def test_auto_races_the_encodings_once(tmp_path, capsys):
    path, folder = tmp_path / "run.json", tmp_path / "run"
    network = {**TINY["network"], "encoding": "auto"}
    path.write_text(json.dumps({**TINY, "network": network, "steps": 40}))
    arguments = ["fit", "--config", str(path), "--folder", str(folder)]
    assert command_line.main(arguments) == 0
    record = json.loads((folder / "auto.json").read_text())
    assert record["chosen"] == min(record["mean_error"], key=record["mean_error"].get)
    state = torch.load(folder / "state.pt", weights_only=True)
    assert state["config"]["network"]["encoding"] == record["chosen"]
    assert state["step"] == 40 - 3 * 4, "the race is paid from the run's own steps"
    assert command_line.main([*arguments, "--resume"]) == 0
    (folder / "auto.json").write_text("{}")
    assert command_line.main([*arguments, "--resume"]) == 1
    assert "does not say which encoding won" in capsys.readouterr().err


def test_the_log_is_json_with_error_quantiles(tmp_path):
    fit(config(), tmp_path, quiet=False)
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == [6, 10, 12]
    assert all({"loss", "mean", "median", "p95", "max", "seconds"} <= set(r) for r in records)
    assert records[-1]["median"] <= records[-1]["p95"] <= records[-1]["max"]


def test_the_progress_bar_shows_loss_and_time_left():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    progress = Progress(100, stream=terminal)
    progress.began -= 30
    progress.update(25, loss=0.0123)
    assert "█████···············" in terminal.getvalue()
    assert "25/100" in terminal.getvalue()
    assert "loss 1.230%" in terminal.getvalue()
    assert "1:30 left" in terminal.getvalue()
    assert [duration(s) for s in (5, 75, 3675)] == ["0:05", "1:15", "1:01:15"]


def test_the_learning_rate_warms_up_and_ends_at_zero():
    rates = [learning_rate(config(steps=100, warmup=10), step) for step in range(101)]
    assert rates[:10] == pytest.approx([1e-3 * (i + 1) / 10 for i in range(10)])
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert rates[100] == pytest.approx(0, abs=1e-12)


def test_training_batches_follow_the_weights_of_the_data():
    mixed = config(
        data=[{"distribution": "ginibre", "weight": 3}, {"distribution": "gaussian_symmetric", "radius": 2.0}]
    )
    symmetric = [bool((A.mT == A).all()) for A in (draw(mixed, step, 0, 2)[0] for step in range(400))]
    assert abs(sum(symmetric) / 400 - 0.25) < 0.07


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rat": 1e-3}, "unknown key.*learning_rat"),
        ({"steps": 0}, "steps = 0"),
        ({"precision": "float8"}, "float8"),
        ({"loss": "mse"}, "mse"),
        ({"ema": 1.0}, "ema = 1.0"),
        ({"sizes": []}, "sizes"),
        ({"data": []}, "data is empty"),
    ],
)
def test_bad_configurations_name_the_value(changes, message):
    with pytest.raises(TrainingError, match=message):
        config(**changes)


def test_a_missing_key_is_named():
    with pytest.raises(TrainingError, match=r"missing key.*function"):
        RunConfig.from_dict({"name": "x", "network": {}, "data": [{}]})


@pytest.mark.parametrize("text", ["{not json", "[1, 2]", None])
def test_an_unreadable_configuration_file_is_named(tmp_path, text):
    path = tmp_path / "run.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(TrainingError, match=r"run\.json"):
        RunConfig.from_file(path)


def test_an_unknown_family_is_named(tmp_path):
    with pytest.raises(TrainingError, match="transformer, mlp"):
        Run(config(family="lstm"), tmp_path)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_builds_and_starts_near_its_baseline(name, tmp_path):
    run = Run(recipe(name), tmp_path)
    assert sum(p.numel() for p in run.net.parameters()) * 2 < 4e6, "at most 4 MB in float16"
    assert run.validate()["median"] < 0.2


def test_unknown_recipes_list_those_that_exist():
    with pytest.raises(TrainingError, match="expm-transformer-block"):
        recipe("expm-transformer")


def test_the_command_line_reports_errors_without_a_traceback(tmp_path, capsys):
    path = tmp_path / "run.json"
    path.write_text(json.dumps({**TINY, "typo": 1}))
    assert command_line.main(["fit", "--config", str(path)]) == 1
    assert "unknown key(s) typo" in capsys.readouterr().err
    assert command_line.main(["fitt"]) == 2
    assert command_line.main([]) == 0
    assert "study" in capsys.readouterr().out


def test_the_command_line_imports_a_command_only_when_asked():
    code = (
        "import sys, neural_expm.training.__main__ as m; m.main(['--help']);"
        "assert not {'neural_expm.training.fit', 'neural_expm.training.study'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True, capture_output=True)
