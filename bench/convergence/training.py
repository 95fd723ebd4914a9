"""One training run, given by its settings alone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch.func import functional_call, grad_and_value, vmap

import terngrad_kernels as tk

from .exchanges import Exchange, Options, quantisation
from .networks import Task, loss_of, network, task

CURVE = 40
TESTS = 10
#: Seeds of the draws lie this far apart: ranks and second hops add to them.
SEEDS = 1 << 10


@dataclass(frozen=True)
class Run:
    """Settings of a run. ``batch`` is that of all workers together; each has an equal part of it."""

    experiment: str
    variant: str
    seed: int
    options: Options
    network: str
    workers: int
    batch: int
    steps: int
    optimizer: str
    rate: float
    schedule: str = "cosine"

    @property
    def key(self) -> tuple[str, str, int, int, int, str, float, str]:
        """What tells it from all others, and from itself with other settings."""
        return (
            self.variant,
            self.optimizer,
            self.workers,
            self.batch,
            self.steps,
            self.schedule,
            self.rate,
            self.seed,
        )


def batches(count: int, steps: int, batch: int, seed: int) -> Iterator[torch.Tensor]:
    """Indices of each step's batch, dealt in order from one shuffled epoch after the other."""
    rng = np.random.default_rng([seed, 1])
    waiting = np.empty(0, dtype=np.intp)
    for _ in range(steps):
        while waiting.size < batch:
            waiting = np.concatenate([waiting, rng.permutation(count)])
        taken, waiting = np.split(waiting, [batch])
        yield torch.from_numpy(taken)


def per_worker(model: torch.nn.Module) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """Return a function of (workers, images, ...) and targets: flat gradients (workers, elements) and losses."""

    def loss(parameters: dict[str, torch.Tensor], inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return loss_of(functional_call(model, parameters, (inputs,)), targets)

    one = grad_and_value(loss)
    many = vmap(one, in_dims=(None, 0, 0))

    def gradients(inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
        if len(inputs) == 1:  # then with the bits of an ordinary backward pass, which vmap would round else
            layers, losses = one(parameters, inputs[0], targets[0])
            return torch.cat([layer.flatten() for layer in layers.values()])[None], losses[None]
        layers, losses = many(parameters, inputs, targets)
        return torch.cat([layer.flatten(1) for layer in layers.values()], 1), losses

    return gradients


def optimizer_of(run: Run, model: torch.nn.Module) -> torch.optim.Optimizer:
    """``sgd``, ``momentum`` (0.9) or ``adam``, with PyTorch's defaults."""
    if run.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=run.rate)
    return torch.optim.SGD(model.parameters(), lr=run.rate, momentum=0.9 if run.optimizer == "momentum" else 0.0)


def rate_at(run: Run, step: int) -> float:
    """Constant, or falling to 0 along a half cosine."""
    return run.rate * (1.0 if run.schedule == "constant" else (1 + math.cos(math.pi * step / run.steps)) / 2)


def evaluate(model: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[float, float]:
    """Mean loss, and the share that is guessed right."""
    loss = right = 0.0
    with torch.no_grad():
        for x, y in zip(inputs.split(256), targets.split(256), strict=True):
            logits = model(x)
            loss += loss_of(logits, y).item() * len(x) / len(inputs)
            right += (logits.argmax(-1) == y).sum().item() / targets.numel()
    return loss, right


def train(run: Run, on: Task | None = None, model: torch.nn.Module | None = None) -> dict[str, Any]:
    """Train and return what there is to know of the run, as JSON values; ``model`` is left with its last weights."""
    torch.set_num_threads(1)
    tk.set_num_threads(1)
    start = time.process_time()
    on = task(run.network, run.seed) if on is None else on
    model = network(run.network, run.seed) if model is None else model
    gradients_of = per_worker(model)
    exchange = Exchange(run.options, model, run.workers, SEEDS * run.seed)
    optimizer = optimizer_of(run, model)
    losses, tests, gradients_seen = [], [], []
    for step, taken in enumerate(batches(len(on.inputs), run.steps, run.batch, run.seed)):
        optimizer.param_groups[0]["lr"] = rate_at(run, step)
        per = run.batch // run.workers
        inputs, targets = (x[taken].view(run.workers, per, *x.shape[1:]) for x in (on.inputs, on.targets))
        gradients, own = gradients_of(inputs, targets)
        if run.options.rule == "float32" and step in [run.steps * tenth // 10 for tenth in (1, 5, 9)]:
            gradients_seen.append({"step": step, "layers": describe(model, gradients[0])})
        mean = exchange(gradients, step)
        for parameter, piece in zip(model.parameters(), mean.split(exchange.sizes), strict=True):
            parameter.grad = piece.view_as(parameter)
        optimizer.step()
        losses.append(own.mean().item())
        if run.network == "transformer" and (step + 1) % max(1, run.steps // TESTS) == 0:
            tests.append([step + 1, _short(evaluate(model, on.test_inputs, on.test_targets)[0])])
    test_loss, accuracy = evaluate(model, on.test_inputs, on.test_targets)
    found: dict[str, Any] = {
        **{name: value for name, value in asdict(run).items() if name not in ("experiment", "options")},
        "accuracy": round(accuracy, 5),
        "test_loss": _short(test_loss),
        "curve": [_short(float(part.mean())) for part in np.array_split(losses, min(CURVE, run.steps))],
        "traffic": asdict(exchange.traffic),
        "seconds": round(time.process_time() - start, 2),
    }
    if run.network == "lenet":
        found["train_loss"] = _short(evaluate(model, on.inputs, on.targets)[0])
    if tests:
        found["tests"] = tests
    if gradients_seen:
        found["gradients"] = gradients_seen
    return found


def describe(model: torch.nn.Module, gradient: torch.Tensor) -> list[list[Any]]:
    """Of each layer of one worker's gradient: name, elements, top / rms, and `quantisation` with and without clipping.

    The numbers are [share clipped, error] at 2.5, then the error without clipping.
    """
    rows = []
    layers = gradient.split([parameter.numel() for parameter in model.parameters()])
    for (name, _), layer in zip(model.named_parameters(), layers, strict=True):
        rms = layer.double().square().mean().sqrt().item() or 1.0
        clipped, error = quantisation(layer, 2.5)
        numbers = (layer.abs().max().item() / rms, clipped, error, quantisation(layer, None)[1])
        rows.append([name, layer.numel(), *map(_short, numbers)])
    return rows


def _short(value: float) -> float | None:
    """Four figures; what is not finite is null."""
    return float(f"{value:.4g}") if math.isfinite(value) else None
