"""Train one network: ``python -m neural_expm.training fit``.

Every batch is drawn afresh from a generator seeded by (seed, step, process), so a resumed run sees exactly
the batches that an unbroken one would have seen, and no batch can repeat a held-out matrix
(``data.split_seed``).
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from neural_expm.errors import TrainingError
from neural_expm.networks import network_class
from neural_expm.training import data
from neural_expm.training.config import RunConfig
from neural_expm.training.files import write_aside
from neural_expm.training.metrics import relative_error, summary
from neural_expm.training.progress import Progress

#: Families that this loop trains.
FAMILIES = ("transformer", "mlp")


def build_network(config: RunConfig) -> Any:
    """Build the network of a run, its weights drawn from torch's current seed."""
    if config.family not in FAMILIES:
        raise TrainingError(f"cannot train family {config.family!r} here; use one of {', '.join(FAMILIES)}")
    return network_class(config.family, config.function).from_config(config.network)  # type: ignore[attr-defined]


def _pairs(
    config: RunConfig, entry: dict[str, Any], n: int, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    params = {key: value for key, value in entry.items() if key not in ("weight", "distribution")}
    return data.sample_pairs(config.function, entry["distribution"], n, count, generator, **params)


def draw(config: RunConfig, step: int, rank: int, count: int) -> tuple[Tensor, Tensor]:
    """Draw one training batch (A, f(A)) in float64: one entry of ``config.data`` and one size."""
    generator = data.split_generator("train", config.seed, step, rank)
    weights = torch.tensor([float(entry.get("weight", 1.0)) for entry in config.data])
    entry = config.data[int(torch.multinomial(weights, 1, generator=generator))]
    sizes = torch.tensor([float(n) for n in config.sizes]) ** config.size_power
    n = config.sizes[int(torch.multinomial(sizes, 1, generator=generator))]
    return _pairs(config, entry, n, count, generator)


def learning_rate(config: RunConfig, step: int) -> float:
    """Linear warm-up, then half a cosine down to zero at the last step."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class Run:
    """The state of a run: network, its moving average, optimiser, step; saved and restored as one file."""

    def __init__(self, config: RunConfig, folder: Path):
        self.config, self.folder = config, folder
        torch.manual_seed(config.seed)
        self.net = build_network(config)
        self.average = copy.deepcopy(self.net).requires_grad_(False)
        self.optimiser = torch.optim.AdamW(
            self.net.parameters(),
            lr=config.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=config.weight_decay,
            foreach=True,
        )
        self.step = 0
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.processes = dist.get_world_size() if dist.is_initialized() else 1
        if config.batch % self.processes:
            raise TrainingError(
                f"batch {config.batch} cannot be shared equally by {self.processes} processes"
            )

    @property
    def state_file(self) -> Path:
        return self.folder / "state.pt"

    def loss(self, rank: int) -> Tensor:
        """Return the loss on the batch that process ``rank`` draws at this step."""
        config = self.config
        matrices, values = draw(config, self.step, rank, config.batch // self.processes)
        matrices, values = matrices.float(), values.float()
        low = config.precision == "bfloat16"
        with torch.autocast("cpu", torch.bfloat16) if low else contextlib.nullcontext():
            prepared = self.net.frame.prepare(matrices)
            residual = self.net.residual(prepared.channels, prepared.cues)
            loss = self._score(self.net.frame.finish(prepared, residual), values)
            if config.raw_weight:
                raw = self.net.frame.finish(prepared, residual, polish=False)
                loss = loss + config.raw_weight * self._score(raw, values)
        return loss

    def _score(self, output: Tensor, values: Tensor) -> Tensor:
        error = relative_error(output.float(), values)
        return (error.log1p() if self.config.loss == "log1p" else error).mean()

    def advance(self) -> float:
        """Make one optimiser step; returns the loss of the batch."""
        self.net.zero_grad(set_to_none=True)
        loss = self.loss(self.rank)
        loss.backward()
        value = self._share_gradients(loss.detach())
        self._update(value)
        return value

    def _update(self, loss: float) -> None:
        """Move the weights along the gradients that ``backward`` left, and the average after them."""
        config = self.config
        if not math.isfinite(loss):
            raise TrainingError(
                f"{config.name}: the loss is {loss} at step {self.step}; lower learning_rate "
                f"(now {config.learning_rate}) and start again from {self.state_file}"
            )
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(config, self.step)
        nn.utils.clip_grad_norm_(self.net.parameters(), config.clip)
        self.optimiser.step()
        self.step += 1
        # The average forgets faster at first, so that the initial weights leave it.
        keep = min(config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.net.parameters()), 1 - keep)

    def _share_gradients(self, loss: Tensor) -> float:
        """Average loss and gradients over the processes of a data-parallel run."""
        if self.processes > 1:
            shared = [p.grad for p in self.net.parameters() if p.grad is not None] + [loss]
            flat = torch.cat([t.reshape(-1) for t in shared])
            dist.all_reduce(flat)
            flat /= self.processes
            offset = 0
            for tensor in shared:
                tensor.copy_(flat[offset : offset + tensor.numel()].view_as(tensor))
                offset += tensor.numel()
        return float(loss)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return error quantiles of the averaged network on the first entry of ``data``, n uniform."""
        self.average.eval()
        config, errors = self.config, []
        for n in config.sizes:
            generator = data.split_generator("validation", config.seed, n)
            matrices, values = _pairs(config, config.data[0], n, config.validate_count, generator)
            errors.append(relative_error(self.average(matrices.float()).double(), values))
        return summary(torch.cat(errors))

    def save(self) -> None:
        """Write the whole state aside, then rename: a kill or a full disk leaves the earlier one."""
        state = {
            "config": self.config.to_dict(),
            "step": self.step,
            "net": self.net.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        write_aside(self.state_file, lambda aside: torch.save(state, aside))

    def restore(self) -> None:
        """Continue from the saved state; TrainingError if it belongs to another configuration."""
        try:
            state = torch.load(self.state_file, weights_only=True)
            saved = state["config"]
        except (OSError, RuntimeError, KeyError, EOFError, UnpicklingError) as error:
            raise TrainingError(
                f"{self.state_file} is not a saved run: {error}; delete it to start over"
            ) from error
        mine = self.config.to_dict()
        if changed := sorted(k for k in mine.keys() | saved.keys() if mine.get(k) != saved.get(k)):
            raise TrainingError(
                f"{self.state_file} belongs to another configuration (different: {', '.join(changed)}); "
                "give the old configuration, or another --folder"
            )
        self.net.load_state_dict(state["net"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step = state["step"]


def fit(config: RunConfig, folder: Path, resume: bool = False, quiet: bool = False) -> Run:
    """Train from the start, or from the saved state if ``resume``, to ``config.steps``."""
    run = Run(config, folder)
    if run.state_file.exists():
        if not resume:
            raise TrainingError(f"{run.state_file} exists; pass --resume to go on, or another --folder")
        run.restore()
    lead = run.rank == 0
    progress = Progress(config.steps, run.step, folder / "log.jsonl") if lead and not quiet else None
    recent = 0.0
    quantiles: dict[str, float] = {}
    began = time.monotonic()
    while run.step < config.steps:
        loss = run.advance()
        recent = loss if recent == 0.0 else 0.98 * recent + 0.02 * loss
        last = run.step == config.steps
        if progress is not None:
            progress.update(run.step, loss=recent, **quantiles)
            if last or run.step % config.validate_every == 0 or run.step in (10, 100):
                quantiles = run.validate()
                seconds = round(time.monotonic() - began, 1)
                progress.record(run.step, loss=recent, **quantiles, seconds=seconds)
        if lead and (last or run.step % config.save_every == 0):
            run.save()
    return run


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join the group that ``torchrun`` announces in the environment, and leave it together; nothing in a plain run."""
    if "WORLD_SIZE" not in os.environ:
        yield
        return
    dist.init_process_group("gloo")
    try:
        yield
        # A process that leaves while another is still in its last exchange makes gloo abort that one.
        dist.barrier()
    finally:
        dist.destroy_process_group()


def main(argv: list[str]) -> int:
    from neural_expm.training.auto import resolve
    from neural_expm.training.recipes import RECIPES, recipe

    parser = argparse.ArgumentParser(prog="python -m neural_expm.training fit", description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--recipe", choices=sorted(RECIPES), help="a checkpoint that this package ships")
    source.add_argument("--config", help="a JSON file with the fields of RunConfig")
    parser.add_argument("--folder", type=Path, help="where state and log go (default: runs/NAME)")
    parser.add_argument("--resume", action="store_true", help="go on from the saved state")
    options = parser.parse_args(argv)
    config = recipe(options.recipe) if options.recipe else RunConfig.from_file(options.config)
    folder = options.folder or Path("runs") / config.name
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    with process_group():
        if config.network.get("encoding") == "auto":
            config = resolve(config, folder)
        fit(config, folder, options.resume)
    return 0
