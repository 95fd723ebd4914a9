"""One process of a group: averages gradients over its link, alone and in training steps."""

from __future__ import annotations

import datetime
import os
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from cases import Case
from links import counted, enter
from torch.nn.parallel import DistributedDataParallel

import terngrad_kernels as tk
import terngrad_kernels.torch as tkt

#: Of DistributedDataParallel: the first bucket's limit and the others'.
BUCKETS = [1 << 20, 25 << 20]
#: Of a step's computing, what comes before the backward pass.
FORWARD = 1 / 3


class Bucket:
    """What hooks see of a torch.distributed.GradBucket."""

    def __init__(self, index: int, last: bool, parameters: list[torch.Tensor], gradients: list[torch.Tensor]) -> None:
        self._index, self._last, self._parameters = index, last, parameters
        self._given = gradients
        self._buffer = torch.empty(sum(each.numel() for each in gradients))
        parts = self._buffer.split([each.numel() for each in gradients])
        self._gradients = [part.view(each.shape) for part, each in zip(parts, gradients, strict=True)]

    def fill(self) -> None:
        for into, given in zip(self._gradients, self._given, strict=True):
            into.copy_(given)

    def index(self) -> int:
        return self._index

    def is_last(self) -> bool:
        return self._last

    def buffer(self) -> torch.Tensor:
        return self._buffer

    def parameters(self) -> list[torch.Tensor]:
        return self._parameters

    def gradients(self) -> list[torch.Tensor]:
        return self._gradients


class _Layer(torch.autograd.Function):
    """A layer whose computing takes a time, and uses no processor: as on an accelerator."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, given: torch.Tensor, seconds: float) -> torch.Tensor:
        ctx.given, ctx.seconds = given, seconds
        _compute(FORWARD * seconds)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        _compute((1 - FORWARD) * ctx.seconds)
        return gradients[0], ctx.given, None, None


def _compute(seconds: float) -> None:
    if seconds:
        time.sleep(seconds)


class Model(torch.nn.Module):
    """Layers of the given shapes and gradients; those of more than one dimension share `seconds` evenly."""

    def __init__(self, gradients: Sequence[torch.Tensor], seconds: float) -> None:
        super().__init__()
        self.layers = torch.nn.ParameterList(torch.nn.Parameter(torch.zeros(each.shape)) for each in gradients)
        self.given = gradients
        heavy = sum(each.ndim > 1 for each in gradients)
        self.seconds = [seconds / heavy if each.ndim > 1 else 0.0 for each in gradients]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer, given, seconds in zip(self.layers, self.given, self.seconds, strict=True):
            x = _Layer.apply(x, layer, given, seconds)
        return x.sum()


def serve(
    case: Case,
    what: str,
    rank: int,
    nodes: Sequence[int],
    local: int,
    store: str,
    gradients: list[torch.Tensor],
    timing: dict[str, float],
) -> dict[str, Any]:
    """Measure one case in one process, and return what it found."""
    warnings.simplefilter("ignore")
    enter(nodes[rank // local])
    os.environ["GLOO_SOCKET_IFNAME"] = "eth0"
    torch.set_num_threads(1)
    tk.set_num_threads(1)
    world = len(nodes) * local
    timeout = datetime.timedelta(seconds=timing["timeout"])
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timeout)
    groups = _nodes(rank, world, local) if case.local else (None, None)
    # As the last rank: everybody is through once it is.
    found = {"exchange": _exchanges, "step": _steps, "link": _link}[what](case, groups, gradients, timing)
    dist.barrier()
    return found


def _nodes(rank: int, world: int, local: int) -> tuple[Any, Any]:
    """The group of this rank's place in each node, and that of its node's ranks."""
    between = [dist.new_group(list(range(place, world, local))) for place in range(local)]
    inside = [dist.new_group(list(range(first, first + local))) for first in range(0, world, local)]
    return between[rank % local], inside[rank // local]


def _rounds(call: Callable[[], None], prepare: Callable[[], None], timing: dict[str, float]) -> dict[str, Any]:
    """Call it again and again; before each time all processes wait for one another."""
    times, sent = [], []
    warm = int(timing["warm"])
    for _ in range(warm + int(timing["rounds"])):
        prepare()
        dist.barrier()
        before, start = counted(), time.perf_counter()
        call()
        times.append((start, time.perf_counter()))
        dist.barrier()
        after = counted()
        sent.append({name: after[name] - before[name] for name in after})
    kept = sent[warm:]
    return {"times": times[warm:], **{name: statistics.mean(each[name] for each in kept) for name in kept[0]}}


def _exchanges(case: Case, groups: Any, gradients: list[torch.Tensor], timing: dict[str, float]) -> dict[str, Any]:
    """One exchange: the buckets of DistributedDataParallel, all there at once, and their averages waited for."""
    model = Model(gradients, 0.0)
    state, hook = case.make(model, groups)
    # Refuses what it refuses.
    DistributedDataParallel(torch.nn.Linear(1, 1), init_sync=False).register_comm_hook(state, hook)
    if "PowerSGD" in case.name:
        state.iter = state.start_powerSGD_iter  # past the steps in which it averages plainly
    backwards = list(reversed(list(zip(model.layers, gradients, strict=True))))
    indices, _ = dist._compute_bucket_assignment_by_size([given for _, given in backwards], BUCKETS)
    buckets = [
        Bucket(i, i == len(indices) - 1, [backwards[j][0] for j in members], [backwards[j][1] for j in members])
        for i, members in enumerate(indices)
    ]

    def exchange() -> None:
        for future in [hook(state, bucket) for bucket in buckets]:
            future.wait()

    def prepare() -> None:
        for bucket in buckets:
            bucket.fill()

    found = _rounds(exchange, prepare, timing)
    return found | {"buckets": len(buckets)} | _reported(state)


def _steps(case: Case, groups: Any, gradients: list[torch.Tensor], timing: dict[str, float]) -> dict[str, Any]:
    """Training steps, the gradients averaged while the backward pass goes on; and the same without averaging."""
    model = Model(gradients, timing["compute"])
    wrapped = DistributedDataParallel(model, init_sync=False)
    state, hook = case.make(model, groups)
    if case.name != "float32":  # which is what it does without a hook
        wrapped.register_comm_hook(state, hook)
    x = torch.zeros(1)

    def step() -> None:
        wrapped.zero_grad()
        wrapped(x).backward()

    def nothing() -> None:
        pass

    with wrapped.no_sync():
        alone = _rounds(step, nothing, {"warm": 1, "rounds": 2})["times"]
    found = _rounds(step, nothing, timing)
    return found | {"alone": alone} | _reported(state)


def _link(_case: Case, _groups: Any, _gradients: Any, _timing: dict[str, float]) -> dict[str, Any]:
    bandwidth, latency = tkt.measure_link(nbytes=int(_timing["bytes"]))
    return {"bandwidth": bandwidth, "latency": latency, "times": []}


def _reported(state: Any) -> dict[str, Any]:
    if not isinstance(state, tkt.TernGradState):
        return {}
    report = state.report()
    return {
        "computed": report.bytes_sent,
        "kernel_seconds": report.kernel_seconds,
        "exposed_seconds": report.exposed_seconds,
        "scratch_bytes": report.scratch_bytes,
        "buckets": len(report.buckets),
    }
