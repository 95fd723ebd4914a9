"""Processes that serve cases by name, so that starting them is paid once; and those of test_torch_distributed.py."""

from __future__ import annotations

import copy
import importlib
import multiprocessing
import os
import pickle
import queue
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import terngrad_kernels.torch as tkt

#: What a rank waits for another one before it calls it a fault, where a case does not say.
TIMEOUT = 30.0
#: Several units in one layer, odd sizes, a bias, a scalar, an empty layer.
SHAPES = ((40, 70), (70,), (2563, 3), (), (0, 4), (30, 30))
SIZES = tuple(int(np.prod(shape)) for shape in SHAPES)


class Pool:
    """Processes of one group, which serve the cases of a module."""

    def __init__(self, world: int, folder: Path, leave: str = "destroy", module: str = __name__) -> None:
        context = multiprocessing.get_context("spawn")
        self.world = world
        self.dead = False
        self.results: Any = context.Queue()
        self.requests: list[Any] = [context.Queue() for _ in range(world)]
        address = f"file://{folder}/store"
        self.processes = [
            context.Process(
                target=_serve, args=(rank, world, address, leave, module, requests, self.results), daemon=True
            )
            for rank, requests in enumerate(self.requests)
        ]
        for process in self.processes:
            process.start()

    def run(self, case: str, *arguments: Any, ranks: Sequence[int] | None = None, **options: Any) -> list[Any]:
        """Return what each rank's case returned; `ranks`: those that are expected to."""
        for requests in self.requests:
            requests.put((case, arguments, options))
        found: dict[int, Any] = {}
        wanted = range(self.world) if ranks is None else ranks
        until = time.monotonic() + 4 * TIMEOUT
        while len(found) < len(wanted):
            try:
                rank, error, value = self.results.get(timeout=max(0.1, until - time.monotonic()))
            except queue.Empty:
                self.kill()
                raise AssertionError(f"{case}: no answer of ranks {sorted(set(wanted) - set(found))}") from None
            if error:
                self.kill()
                raise AssertionError(f"{case}, rank {rank}: {error}")
            found[rank] = pickle.loads(value)
        return [found[rank] for rank in sorted(found)]

    def stop(self) -> list[int | None]:
        """Return how each process ended."""
        for requests in self.requests:
            requests.put(None)
        for process in self.processes:
            process.join(TIMEOUT)
        codes = [process.exitcode for process in self.processes]
        self.kill()
        return codes

    def kill(self) -> None:
        self.dead = True
        for process in self.processes:
            if process.is_alive():
                process.kill()


def _serve(rank: int, world: int, address: str, leave: str, module: str, requests: Any, results: Any) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    timeout = timedelta(seconds=TIMEOUT)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world, timeout=timeout)
    cases = importlib.import_module(module).CASES
    while (request := requests.get()) is not None:
        case, arguments, options = request
        try:
            results.put((rank, "", pickle.dumps(cases[case](*arguments, **options))))
        except BaseException:
            results.put((rank, traceback.format_exc(), b""))
    if leave == "destroy":
        dist.destroy_process_group()


# ---- what cases are made of


class Given(torch.nn.Module):
    """A model whose gradients are what it is given."""

    def __init__(self, shapes: Sequence[tuple[int, ...]] = SHAPES, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.layers = torch.nn.ParameterList(torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes)

    def forward(self, gradients: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """Return what has them as its gradient; None: a layer that is not used."""
        parts = [(layer * x).sum() for layer, x in zip(self.layers, gradients, strict=True) if x is not None]
        return torch.stack(parts).sum()


def gradient(rank: int, step: int, layer: int, shape: tuple[int, ...], dtype: str = "float32") -> Any:
    return np.random.default_rng([rank, step, layer]).standard_normal(shape).astype(dtype)


def gradients(step: int, shapes: Sequence[tuple[int, ...]] = SHAPES, dtype: str = "float32") -> list[torch.Tensor]:
    rank = dist.get_rank()
    return [
        torch.from_numpy(np.asarray(gradient(rank, step, i, shape, dtype))).reshape(shape)
        for i, shape in enumerate(shapes)
    ]


def wrap(model: torch.nn.Module, state: Any, hook: Callable[..., Any] = tkt.terngrad_hook, **options: Any) -> Any:
    made = DistributedDataParallel(model, **{"bucket_cap_mb": 0.02, **options})
    made.register_comm_hook(state, hook)
    return made


def backward(wrapped: Any, given: Sequence[torch.Tensor | None]) -> list[Any]:
    for layer in wrapped.parameters():
        layer.grad = None
    wrapped(given).backward()
    return grads(wrapped)


def grads(wrapped: Any) -> list[Any]:
    return [None if layer.grad is None else layer.grad.numpy().copy() for layer in wrapped.parameters()]


def message_of(call: Callable[[], Any]) -> tuple[str, float]:
    """Return what the RuntimeError that a call ends with says, and the seconds it took."""
    start = time.monotonic()
    try:
        call()
    except RuntimeError as error:
        return str(error), time.monotonic() - start
    raise AssertionError("no RuntimeError")


def halves() -> tuple[Any, Any]:
    """Four ranks as two nodes of two: the group of this rank's place, and that of its node."""
    groups = {ranks: dist.new_group(list(ranks)) for ranks in ((0, 2), (1, 3), (0, 1), (2, 3))}
    rank = dist.get_rank()
    between, inside = (group for ranks, group in groups.items() if rank in ranks)
    return between, inside


_halves: list[Any] = []


def groups_of(strategy: str) -> dict[str, Any]:
    if strategy != "hierarchical":
        return {}
    if not _halves:
        _halves.extend(halves())
    return {"process_group": _halves[0], "local_group": _halves[1]}


# ---- cases


def means(strategy: str, dtype: str, steps: int, options: dict[str, Any], ddp: dict[str, Any]) -> Any:
    """Averages of the layers after each step, and the layers of the buckets that DDP made."""
    model = Given(dtype=getattr(torch, dtype))
    number = {id(layer): i for i, layer in enumerate(model.layers)}
    buckets: list[list[list[int]]] = []

    def watching(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        if bucket.index() == 0:
            buckets.append([])
        buckets[-1].append([number[id(layer)] for layer in bucket.parameters()])
        return tkt.terngrad_hook(state, bucket)

    # DDP reads annotations, which are texts in this module.
    watching.__annotations__ = {}
    state = tkt.TernGradState(strategy=strategy, **groups_of(strategy), **options)
    wrapped = wrap(model, state, watching, **ddp)
    found = [backward(wrapped, gradients(step, dtype=dtype)) for step in range(steps)]
    assert state.step == steps
    report = state.report()
    assert report.steps == steps
    assert report.scratch_bytes > 0
    assert len(report.buckets) == len(buckets[-1])
    assert str(report).startswith(f"{steps} steps; ")
    return found, buckets, (report.bytes_sent, report.bytes_float32, report.bytes_inside)


def means_by_collectives(*arguments: Any) -> Any:
    """The same in a group as large that gloo's own collectives are used."""
    direct, tkt._MOST_DIRECT = tkt._MOST_DIRECT, 0
    try:
        return means(*arguments)
    finally:
        tkt._MOST_DIRECT = direct


def accumulated(strategy: str) -> Any:
    """Gradients under the options of DDP that change how and when the hook is called."""
    found = []
    for ddp in ({}, {"find_unused_parameters": True}, {"static_graph": True}, {"gradient_as_bucket_view": True}):
        state = tkt.TernGradState(strategy=strategy)
        wrapped = wrap(Given(), state, **ddp)
        for step in range(3):
            given: list[torch.Tensor | None] = list(gradients(step))
            if "find_unused_parameters" in ddp:
                given[step] = None
            backward(wrapped, given)
        assert state.step == 3
        if "static_graph" not in ddp:
            wrapped.zero_grad()
            with wrapped.no_sync():
                wrapped(gradients(7)).backward()
            assert state.step == 3
            wrapped(gradients(8)).backward()
            assert state.step == 4
        found.append(grads(wrapped))
    return found


def joined(strategy: str) -> Any:
    """Gradients of a model of two dtypes and memory formats, then of uneven inputs; and what a sparse one gives."""
    torch.manual_seed(0)
    convolution = torch.nn.Conv2d(3, 40, 5).to(memory_format=torch.channels_last)
    model = torch.nn.Sequential(convolution, torch.nn.Flatten(), torch.nn.Linear(40, 30).double())
    convolution.register_forward_hook(lambda _module, _inputs, x: x.double())
    state = tkt.TernGradState(model, strategy=strategy)
    wrapped = wrap(model, state)
    torch.manual_seed(dist.get_rank())

    def step() -> None:
        wrapped.zero_grad()
        wrapped(torch.randn(2, 3, 5, 5)).sum().backward()

    for _ in range(3):
        step()
    found = grads(wrapped)
    with wrapped.join():
        for _ in range(2 + dist.get_rank()):
            step()
    embedding = wrap(torch.nn.Embedding(100, 40, sparse=True), tkt.TernGradState(strategy=strategy))
    try:
        embedding(torch.tensor([1, 2])).sum().backward()
    except TypeError as error:
        return found, state.step, str(error)
    raise AssertionError("no TypeError")


def sums(strategy: str, shape: tuple[int, ...], rounds: int, options: dict[str, Any]) -> Any:
    """The sum of the averages of many steps of one gradient."""
    state = tkt.TernGradState(strategy=strategy, **options)
    given = gradients(0, [shape])[0]
    total = torch.zeros(shape, dtype=torch.float64)
    for _ in range(rounds):
        x = given.clone()
        tkt.all_reduce_mean([x], state)
        total += x
    return total.numpy()


def lists(strategy: str) -> Any:
    """Mixed dtypes, memory formats, a scalar, an empty tensor, tensors that require gradients; carried exactly."""
    rank = dist.get_rank()
    x: list[torch.Tensor] = [
        torch.full((3, 5), 1.0 + rank),
        torch.full((2, 3, 4, 4), 2.0 + rank, dtype=torch.float64).to(memory_format=torch.channels_last),
        torch.full((), 3.0 + rank, dtype=torch.bfloat16),
        torch.full((7,), 4.0 + rank, dtype=torch.float16),
        torch.empty(0, 3),
        torch.full((6, 4), 5.0 + rank).t().requires_grad_(),
    ]
    x[1][1] += 1
    state = tkt.TernGradState(strategy=strategy)
    tkt.all_reduce_mean(x, state)
    tkt.all_reduce_mean([], state)
    assert state.step == 2
    assert x[1].is_contiguous(memory_format=torch.channels_last)
    assert x[5].requires_grad
    scratch = state.report().scratch_bytes
    tkt.all_reduce_mean([tensor.detach().clone() for tensor in x], state)
    assert state.report().scratch_bytes == scratch
    return [tensor.detach().double().contiguous().numpy() for tensor in x]


def subgroup(strategy: str) -> Any:
    """Averages over the first two ranks only, which `group` or the state names."""
    group = dist.new_group([0, 1])
    if dist.get_rank() > 1:
        return None
    found = []
    for state, given in ((tkt.TernGradState(strategy=strategy), group), (tkt.TernGradState(process_group=group), None)):
        x = gradients(0, [(50, 40)])
        tkt.all_reduce_mean(x, state, group=given)
        found.append(x[0].numpy())
    return found


def tiny(strategy: str, options: dict[str, Any]) -> Any:
    """Fewer elements than ranks, nothing carried: shards, and chunks of nodes, that hold no element."""
    state = tkt.TernGradState(strategy=strategy, float32=lambda _: False, **groups_of(strategy), **options)
    found = []
    for shapes in ([(1,)], [(0,)], [(1,), (0, 2), ()], [()]):
        x = [torch.full(shape, -0.7) for shape in shapes]
        for _ in range(2):
            tkt.all_reduce_mean(x, state)
        found += [tensor.numpy() for tensor in x]
    return found


def not_finite(strategy: str, options: dict[str, Any]) -> Any:
    """Averages after the last rank had a NaN in a ternary layer and an infinity in a carried one; and a step later."""
    state = tkt.TernGradState(strategy=strategy, **groups_of(strategy), **options)
    wrapped = wrap(Given(), state)
    x = gradients(0)
    if dist.get_rank() == dist.get_world_size() - 1:
        x[0][3, 4] = np.nan
        x[1][5] = np.inf
    return backward(wrapped, x), backward(wrapped, gradients(1)), backward(wrapped, [0 * g for g in gradients(2)])


def scaler(strategy: str) -> Any:
    """Scale and weights of each step of a GradScaler; in the second step one rank overflows."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.Linear(30, 2))
    wrapped = wrap(model, tkt.TernGradState(strategy=strategy))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    grad_scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    found = []
    for step in range(3):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = wrapped(torch.ones(4, 40) * (1 + dist.get_rank())).square().mean()
        if step == 1 and dist.get_rank() == 0:
            loss = loss * torch.inf
        grad_scaler.scale(loss).backward()
        grad_scaler.step(optimizer)
        grad_scaler.update()
        found.append((grad_scaler.get_scale(), [layer.detach().numpy().copy() for layer in model.parameters()]))
    return found


def started_late(strategy: str) -> Any:
    """Averages with start_step = 2 and those of DDP itself."""
    state = tkt.TernGradState(strategy=strategy, start_step=2, **groups_of(strategy))
    wrapped = wrap(Given(), state)
    plain = DistributedDataParallel(Given(), bucket_cap_mb=0.02)
    return [(backward(wrapped, gradients(step)), backward(plain, gradients(step))) for step in range(3)]


def resumed(strategy: str, folder: str) -> Any:
    """Averages of three steps that follow two: without a break, from a checkpoint, from a pickle, on another rank."""

    def go_on(state: Any, steps: Sequence[int]) -> list[Any]:
        found = []
        for step in steps:
            x = gradients(step)
            tkt.all_reduce_mean(x, state)
            found.append([tensor.numpy() for tensor in x])
        return found

    def fresh() -> Any:
        return tkt.TernGradState(strategy=strategy, error_feedback=True, clip=1.5, seed=5)

    whole = fresh()
    go_on(whole, range(2))
    path = f"{folder}/{strategy}{dist.get_rank()}"
    torch.save(whole.state_dict(), path)
    pickled = pickle.dumps(whole)
    loaded = fresh()
    saved = torch.load(path, weights_only=True)
    loaded.load_state_dict(saved)
    assert loaded.state_dict()["step"] == 2
    unpickled = pickle.loads(pickled)
    elsewhere, nothing = fresh(), fresh()
    moved = copy.deepcopy(saved)
    for kept in moved["residuals"].values():
        kept["place"][1] += 1  # ranks
    elsewhere.load_state_dict(moved)
    nothing.load_state_dict({"step": 2, "seed": 5, "residuals": {}})
    return [go_on(state, range(2, 5)) for state in (whole, loaded, unpickled, elsewhere, nothing)]


def trained(strategy: str | None, options: dict[str, Any]) -> float:
    """The loss of a small classification after training, averaged over ranks."""
    torch.manual_seed(0)
    truth = torch.randn(32, 10)
    model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    wrapped = DistributedDataParallel(model)
    if strategy is not None:
        wrapped.register_comm_hook(
            tkt.TernGradState(strategy=strategy, **groups_of(strategy), **options), tkt.terngrad_hook
        )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=200)
    draw = torch.Generator().manual_seed(dist.get_rank())
    losses = []
    for _ in range(200):
        x = torch.randn(32, 32, generator=draw)
        loss = torch.nn.functional.cross_entropy(wrapped(x), (x @ truth).argmax(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return float(np.mean(losses[-30:]))


def link() -> Any:
    return tkt.measure_link(nbytes=1 << 16, rounds=2)


# ---- faults


def differing(strategy: str, options: dict[str, Any], overlap: bool) -> Any:
    """What each rank says where the last one has another option."""
    last = dist.get_rank() == dist.get_world_size() - 1
    options = options if last else {}
    if options.get("overlap") == 0:
        options = {"overlap": not overlap}
    state = tkt.TernGradState(strategy=strategy, **groups_of(strategy), **{"overlap": overlap, **options})
    wrapped = wrap(Given(), state)
    return message_of(lambda: backward(wrapped, gradients(0)))[0]


def differing_numbers_of_groups() -> Any:
    """What each rank says where the groups of a group cannot be named alike, and averages without a second group."""
    dist.new_group([0, 1])
    if dist.get_rank() == 0:
        dist.new_group([0], use_local_synchronization=True)
    group = dist.new_group([0, 1])
    if dist.get_rank() > 1:
        return None
    found = message_of(
        lambda: backward(wrap(Given(), tkt.TernGradState(process_group=group), process_group=group), gradients(0))
    )
    state = tkt.TernGradState(process_group=group, overlap=False)
    return found[0], backward(wrap(Given(), state, process_group=group), gradients(0))


def differing_lists() -> Any:
    """The same for tensors; the group is in order afterwards."""
    last = dist.get_rank() == dist.get_world_size() - 1
    x = gradients(0)
    found = []
    for other in (x[:-1], [*x[:-1], x[-1].double()], [x[0].reshape(-1), *x[1:]]):
        state = tkt.TernGradState()
        found.append(message_of(lambda state=state, other=other: tkt.all_reduce_mean(other if last else x, state))[0])
    tkt.all_reduce_mean(x, tkt.TernGradState())
    return found


def silent(seconds: float, overlap: bool) -> Any:
    """What the others say, and when, where the last rank does not come; and when they try again."""
    group = dist.new_group(timeout=timedelta(seconds=seconds))
    state = tkt.TernGradState(strategy="requantize", overlap=overlap, process_group=group)
    wrapped = wrap(Given(), state, process_group=group)
    backward(wrapped, gradients(0))
    if dist.get_rank() == dist.get_world_size() - 1:
        time.sleep(2 * seconds)
        return None
    return message_of(lambda: backward(wrapped, gradients(1)))


def dying(seconds: float, overlap: bool) -> Any:
    """The same where the last rank is killed in the midst of a step."""
    group = dist.new_group(timeout=timedelta(seconds=seconds))
    state = tkt.TernGradState(strategy="sum", overlap=overlap, process_group=group)

    def dies(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        if state.step == 1 and dist.get_rank() == dist.get_world_size() - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return tkt.terngrad_hook(state, bucket)

    dies.__annotations__ = {}
    wrapped = wrap(Given(), state, dies, process_group=group)
    backward(wrapped, gradients(0))
    return message_of(lambda: backward(wrapped, gradients(1)))


def breaking() -> Any:
    """What each rank says where an exchange fails on the thread that carries it on, and in the exchange after it."""
    group = dist.new_group()
    state = tkt.TernGradState(process_group=group)
    wrapped = wrap(Given(), state, process_group=group)
    backward(wrapped, gradients(0))
    real = tkt.tk.decode_sum

    def fails(*_: Any, **__: Any) -> None:
        raise MemoryError("no memory for the sum")

    tkt.tk.decode_sum = fails
    try:
        return message_of(lambda: backward(wrapped, gradients(1)))[0]
    finally:
        tkt.tk.decode_sum = real


CASES: dict[str, Callable[..., Any]] = {
    case.__name__: case
    for case in (
        means,
        means_by_collectives,
        accumulated,
        joined,
        sums,
        lists,
        subgroup,
        tiny,
        not_finite,
        scaler,
        started_late,
        resumed,
        trained,
        link,
        differing,
        differing_lists,
        differing_numbers_of_groups,
        silent,
        dying,
        breaking,
    )
}
