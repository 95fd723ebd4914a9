"""Averaging of gradients in PyTorch that sends 16 times fewer bytes: a hook for DistributedDataParallel, a function.

::

    from terngrad_kernels.torch import TernGradState, terngrad_hook

    model = DistributedDataParallel(model)
    model.register_comm_hook(TernGradState(model), terngrad_hook)

The collectives are torch.distributed's. What each strategy sends, and when it pays, is in ``docs/distributed.md``.
"""

# Annotations are no texts here: DistributedDataParallel looks at those of a hook.
import hashlib
import json
import math
import queue
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from . import operations as tk
from .layout import COUNTS, DTYPES, Layout, dtype_name, packing_code
from .packed import Counts, Packed, Scales, counts_for

__all__ = ["Recommendation", "Report", "TernGradState", "all_reduce_mean", "measure_link", "recommend", "terngrad_hook"]

STRATEGIES = ("gather", "sum", "requantize", "hierarchical")

# Of a model's elements, those of embeddings and the head that may ride along as float32.
_SMALL_SHARE = 0.01
# Layers below it ride along too: their scale field and padding are a large part of so short a message.
_LEAST_ELEMENTS = 512

#: An exchange: yields what it waits for. What comes before the first wait runs in the hook, the rest on a thread.
_Exchange = Generator[Any, None, None]

# New names of the last releases, and the names before.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


@dataclass
class _Bucket:
    """What the exchanges of one bucket need again in each step: its layout, memory, residuals and times."""

    key: Any
    sizes: tuple[int, ...]
    dtype: str
    layer: int  # index of its first layer in the model
    layout: Layout
    scratch: dict[str, torch.Tensor] = field(default_factory=dict)
    step: int = 0  # of the exchange that is going on
    residual: torch.Tensor | None = None
    second_residual: torch.Tensor | None = None
    sent: int = 0
    kernel_seconds: float = 0.0
    done: float = 0.0

    def memory(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, like: torch.Tensor) -> torch.Tensor:
        """Return memory of this bucket, allocated when it is first asked for."""
        found = self.scratch.get(name)
        if found is None or found.shape != shape or found.device != like.device:
            found = self.scratch[name] = torch.empty(shape, dtype=dtype, device=like.device)
        return found

    @property
    def size(self) -> int:
        """Elements."""
        return sum(self.sizes)


@dataclass(frozen=True)
class Report:
    """What the exchanges of the last step cost this rank.

    Attributes
    ----------
    steps : int
        Steps so far.
    bytes_sent : int
        Payload bytes that this rank sent in a step, as a ring or a direct exchange sends them.
    bytes_float32 : int
        What a ring all-reduce of the same elements in float32 sends.
    kernel_seconds : float
        Spent in this package's kernels.
    exposed_seconds : float
        From the moment the last gradient was there to the moment the last average was.
    scratch_bytes : int
        Memory held between steps.
    buckets : tuple of dict
        The same for each bucket.
    """

    steps: int
    bytes_sent: int
    bytes_float32: int
    kernel_seconds: float
    exposed_seconds: float
    scratch_bytes: int
    buckets: tuple[dict[str, Any], ...]

    @property
    def ratio(self) -> float:
        """Bytes of float32 over bytes sent."""
        return self.bytes_float32 / self.bytes_sent if self.bytes_sent else math.inf

    def __str__(self) -> str:
        """One line."""
        return (
            f"{self.steps} steps; {self.bytes_sent:,} bytes sent a step, {self.ratio:.2f} x fewer than float32; "
            f"{1e3 * self.kernel_seconds:.2f} ms in kernels, {1e3 * self.exposed_seconds:.2f} ms exposed, "
            f"{self.scratch_bytes:,} bytes of scratch"
        )


class _Worker:
    """A thread that carries exchanges on after their first wait, in the order in which they came."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="terngrad-exchange", daemon=True)
        self._thread.start()

    def carry_on(self, exchange: _Exchange, waiting: Any, result: torch.Tensor) -> torch.futures.Future[torch.Tensor]:
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        self._queue.put((exchange, waiting, result, future))
        return future

    def _run(self) -> None:
        while True:
            exchange, waiting, result, future = self._queue.get()
            try:
                _finish(exchange, waiting)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
            del exchange, waiting, result, future  # not kept alive until the next one comes


def _finish(exchange: _Exchange, waiting: Any) -> None:
    waiting.wait()
    for work in exchange:
        work.wait()


class TernGradState:
    """Options and state of the ternary averaging of gradients, for `terngrad_hook` and `all_reduce_mean`.

    Parameters
    ----------
    model : torch.nn.Module, optional
        Whose embeddings and last linear layer are carried as float32 where they are small (together at most 1 % of
        its elements). Without it they are ternarized.
    strategy : {"gather", "sum", "requantize", "hierarchical"}, default "gather"
        How messages travel; see ``docs/distributed.md``.
    clip : float > 0 or None, default 2.5
        As in `terngrad_kernels.encode`.
    packing : {"two_bit", "base3"}, default "two_bit"
        Of the ternary layers.
    block : int, optional
        Elements that share a scale, a multiple of 2560; None: a scale a layer.
    seed : int, default 0
        The same on all ranks: each adds its own rank.
    start_step : int, default 0
        Steps before it average plainly, in the dtype of the gradients.
    float32 : callable, optional
        ``float32(parameter) -> bool``: whether a layer is carried as float32. By default layers of one dimension or
        fewer than 512 elements, and those that `model` names, are.
    error_feedback : bool, default False
        Add what the last step lost (clipping included) to this step's gradient, in float32, at both quantisations of
        `requantize`.
    process_group : ProcessGroup, optional
        The default group without it. With `hierarchical`, the ranks of one place in each node.
    local_group : ProcessGroup, optional
        With `hierarchical`: the ranks of this node.
    overlap : bool, default True
        Carry exchanges on, on a thread of their own and a group of their own, while the backward pass goes on; else
        wait in the hook.

    Raises
    ------
    TypeError, ValueError
        Naming the argument.
    """

    def __init__(
        self,
        model: torch.nn.Module | None = None,
        *,
        strategy: str = "gather",
        clip: float | None = 2.5,
        packing: str = "two_bit",
        block: int | None = None,
        seed: int = 0,
        start_step: int = 0,
        float32: Callable[[torch.Tensor], bool] | None = None,
        error_feedback: bool = False,
        process_group: Any = None,
        local_group: Any = None,
        overlap: bool = True,
    ) -> None:
        if strategy not in STRATEGIES:
            raise ValueError(f"strategy: expected one of {', '.join(STRATEGIES)}, got {strategy!r}")
        if packing_code(packing) > 1:
            raise ValueError(f"packing: expected 'two_bit' or 'base3', got {packing!r}")
        if (strategy == "hierarchical") != (local_group is not None):
            raise ValueError("local_group: expected one with the strategy 'hierarchical', and with no other")
        if isinstance(start_step, bool) or not isinstance(start_step, int) or start_step < 0:
            raise ValueError(f"start_step: expected an int >= 0, got {start_step!r}")
        Layout([(1,)], packing=packing, block=block)  # which says what is wrong with block
        self.strategy = strategy
        self.clip = clip
        self.packing = packing
        self.block = block
        self.seed = seed
        self.start_step = start_step
        self.float32 = float32
        self.error_feedback = error_feedback
        self.process_group = process_group
        self.local_group = local_group
        self.overlap = overlap
        self.step = 0
        self._small = _small_parameters(model) if model is not None else set()
        self._buckets: dict[Any, _Bucket] = {}
        self._loaded: dict[str, Any] = {}
        self._layers = 0  # of the buckets of this step so far
        self._all_there = 0.0  # when the last bucket of the last step came
        self._worker: _Worker | None = None
        self._second_group: Any = None

    # ---- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return step, seed and residuals: what a run needs to go on as if it had not stopped."""
        residuals = {
            str(bucket.key): {
                "sizes": bucket.sizes,
                "first": bucket.residual,
                "second": bucket.second_residual,
            }
            for bucket in self._buckets.values()
            if bucket.residual is not None
        }
        return {"step": self.step, "seed": self.seed, "residuals": residuals}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave.

        Residuals are those of one rank. Where buckets or the number of ranks are others now, they start from zero.
        """
        self.step = int(state["step"])
        self.seed = int(state["seed"])
        self._loaded = dict(state["residuals"])
        self._buckets.clear()

    def __getstate__(self) -> dict[str, Any]:
        """Pickle options, step and residuals; groups, threads and the model's parameters stay behind."""
        left = {"process_group": None, "local_group": None, "_worker": None, "_second_group": None, "_small": set()}
        return {**self.__dict__, **left, "_buckets": {}, "_loaded": self.state_dict()["residuals"]}

    # ---- what it cost

    def report(self) -> Report:
        """Return what the last step cost this rank."""
        world = dist.get_world_size(self.process_group)
        rows = []
        for bucket in self._buckets.values():
            rows.append(
                {
                    "bucket": bucket.key,
                    "elements": bucket.size,
                    "bytes_sent": bucket.sent,
                    "bytes_float32": _ring(4 * bucket.size, world),
                    "kernel_seconds": bucket.kernel_seconds,
                    "exposed_seconds": max(0.0, bucket.done - self._all_there),
                    "scratch_bytes": sum(memory.nbytes for memory in bucket.scratch.values()),
                }
            )
        return Report(
            self.step,
            sum(row["bytes_sent"] for row in rows),
            sum(row["bytes_float32"] for row in rows),
            sum(row["kernel_seconds"] for row in rows),
            max((row["exposed_seconds"] for row in rows), default=0.0),
            sum(row["scratch_bytes"] for row in rows),
            tuple(rows),
        )

    # ---- buckets

    def _options(self) -> dict[str, Any]:
        """What must be the same on all ranks."""
        return {
            "strategy": self.strategy,
            "clip": self.clip,
            "packing": self.packing,
            "block": self.block,
            "seed": self.seed,
            "start_step": self.start_step,
            "step": self.step,
            "error_feedback": self.error_feedback,
        }

    def _bucket(self, key: Any, parameters: Sequence[torch.Tensor], x: torch.Tensor) -> _Bucket:
        """Return what is known of a bucket; one that is new, or not what it was, begins anew."""
        sizes = tuple(parameter.numel() for parameter in parameters)
        dtype = dtype_name(x.dtype, "gradients")
        layer, self._layers = self._layers, self._layers + len(sizes)
        found = self._buckets.get(key)
        if found is not None and found.sizes == sizes and found.dtype == dtype and found.layer == layer:
            return found
        packing = tuple("float32" if self._is_float32(parameter) else self.packing for parameter in parameters)
        group = self.process_group
        if self.strategy == "hierarchical":
            layout = _chunk_layout(sizes, packing, self._place(), dist.get_world_size(self.local_group))
        else:
            layout = Layout(((size,) for size in sizes), packing=packing)
        layout = Layout(
            layout.shapes,
            "float32" if self.error_feedback else dtype,
            layout.packing,
            self.block,
            dist.get_world_size(group) if self.strategy in ("sum", "requantize") else 1,
        )
        made = _Bucket(key, sizes, dtype, layer, layout)
        _check_agreement(self._options(), made, x.device, group)
        self._restore(made, x)
        self._buckets[key] = made
        return made

    def _is_float32(self, parameter: torch.Tensor) -> bool:
        if self.float32 is not None:
            return bool(self.float32(parameter))
        return parameter.ndim <= 1 or parameter.numel() < _LEAST_ELEMENTS or id(parameter) in self._small

    def _place(self) -> int:
        return dist.get_rank(self.local_group)

    def _restore(self, bucket: _Bucket, x: torch.Tensor) -> None:
        if not self.error_feedback:
            return
        bucket.residual = torch.zeros(bucket.layout.size, dtype=torch.float32, device=x.device)
        if self.strategy == "requantize":
            own = bucket.layout.shard(dist.get_rank(self.process_group)).size
            bucket.second_residual = torch.zeros(own, dtype=torch.float32, device=x.device)
        loaded = self._loaded.pop(str(bucket.key), None)
        if loaded is None or tuple(loaded["sizes"]) != bucket.sizes:
            return
        for residual, old in ((bucket.residual, loaded["first"]), (bucket.second_residual, loaded["second"])):
            if residual is not None and old is not None and old.shape == residual.shape:
                residual.copy_(old)

    def _carrier(self) -> tuple[_Worker, Any]:
        """The thread for what comes after the first wait, and a group that only it uses.

        Other collectives of the job run on the caller's group at the same time, in an order that this thread does not
        know; on a group of its own every rank's order is that of the buckets.
        """
        if self._worker is None:
            group = self.process_group
            ranks = dist.get_process_group_ranks(group if group is not None else dist.group.WORLD)
            self._second_group = dist.new_group(
                ranks, timeout=_timeout(group), backend=dist.get_backend(group), use_local_synchronization=True
            )
            self._worker = _Worker()
        return self._worker, self._second_group


# ---- the strategies


def _exchange(state: TernGradState, bucket: _Bucket, x: torch.Tensor, later: Any) -> _Exchange:
    """Average one flat bucket in place. `later`: the group for what comes after the first wait."""
    started = {"gather": _gather, "sum": _sum, "requantize": _requantize, "hierarchical": _hierarchical}
    bucket.kernel_seconds = 0.0
    bucket.step = state.step  # which goes on before the exchange ends
    yield from started[state.strategy](state, bucket, x, later)
    bucket.done = time.perf_counter()


class _Timed:
    """Adds the time of its block to the bucket's."""

    def __init__(self, bucket: _Bucket) -> None:
        self._bucket = bucket

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._bucket.kernel_seconds += time.perf_counter() - self._start


def _encode(state: TernGradState, bucket: _Bucket, x: torch.Tensor, scales: Scales | None = None) -> torch.Tensor:
    """Return the bucket's message, and leave what it lost in the residual."""
    data = bucket.memory("message", (bucket.layout.nbytes,), torch.uint8, x)
    with _Timed(bucket):
        packed = tk.encode(
            x,
            clip=state.clip,
            seed=state.seed + dist.get_rank(),
            offset=bucket.step,
            layer=bucket.layer,
            scales=scales,
            layout=bucket.layout,
            out=data,
        )
        if bucket.residual is not None:
            _keep_lost(bucket.residual, x, packed)
    return data


def _keep_lost(residual: torch.Tensor, x: torch.Tensor, packed: Packed) -> None:
    """Leave x minus what the message says in `residual`. What is not finite is lost: it would never leave again."""
    residual.copy_(x)
    tk.decode(packed, out=residual, weight=-1.0, accumulate=True)
    torch.nan_to_num_(residual, nan=0.0, posinf=0.0, neginf=0.0)


def _with_residual(bucket: _Bucket, x: torch.Tensor) -> torch.Tensor:
    """What is encoded: the gradient, plus what was lost before."""
    if bucket.residual is None:
        return x
    total = bucket.memory("total", (bucket.layout.size,), torch.float32, x)
    return torch.add(bucket.residual, x, out=total)


def _gather(state: TernGradState, bucket: _Bucket, x: torch.Tensor, _later: Any) -> _Exchange:
    """Every rank gets every message, and adds them up itself."""
    yield from _gather_over(state, bucket, x, state.process_group)


def _gather_over(state: TernGradState, bucket: _Bucket, x: torch.Tensor, group: Any) -> _Exchange:
    world = dist.get_world_size(group)
    message = _encode(state, bucket, _with_residual(bucket, x))
    gathered = bucket.memory("gathered", (world, bucket.layout.nbytes), torch.uint8, x)
    bucket.sent = (world - 1) * message.nbytes
    yield _all_gather(gathered, message.view(1, -1), group=group, async_op=True)
    with _Timed(bucket):
        tk.decode_sum(Packed(bucket.layout, gathered), weights=[1.0 / world] * world, out=x)


def _shard_exchange(bucket: _Bucket, message: torch.Tensor, group: Any) -> tuple[Any, torch.Tensor]:
    """Send each rank its shard of the message; what comes back is one shard of every rank's."""
    world = dist.get_world_size(group)
    received = bucket.memory("received", (world, message.numel() // world), torch.uint8, message)
    return dist.all_to_all_single(received.view(-1), message, group=group, async_op=True), received


def _sum(state: TernGradState, bucket: _Bucket, x: torch.Tensor, later: Any) -> _Exchange:
    """Scales are shared; each rank adds its shard's trits exactly, and all get the counts."""
    group = state.process_group
    world, rank = dist.get_world_size(group), dist.get_rank(group)
    if world > COUNTS["counts16"]:
        raise ValueError(f"strategy: 'sum' is for at most {COUNTS['counts16']} ranks, this group has {world}")
    total = _with_residual(bucket, x)
    with _Timed(bucket):
        scales = tk.scales(total, clip=state.clip, layout=bucket.layout)
    yield dist.all_reduce(scales.scale, op=dist.ReduceOp.MAX, group=group, async_op=True)
    message = _encode(state, bucket, total, scales)
    work, received = _shard_exchange(bucket, message, later)
    yield work
    own = bucket.layout.shard(rank)
    counts_layout = own.with_ternary(counts_for(world))
    sums = bucket.memory("sums", (counts_layout.nbytes,), torch.uint8, x)
    with _Timed(bucket):
        tk.sum_trits(Packed(own, received), out=sums)
    gathered = bucket.memory("gathered", (world, counts_layout.nbytes), torch.uint8, x)
    bucket.sent = (
        _ring(scales.scale.nbytes, world) + (world - 1) * (message.nbytes // world) + (world - 1) * sums.nbytes
    )
    yield _all_gather(gathered, sums.view(1, -1), group=later, async_op=True)
    with _Timed(bucket):
        whole = bucket.layout.with_ternary(counts_for(world))
        tk.decode(Counts(whole, world, gathered.view(-1)), weight=1.0 / world, out=x)


def _requantize(state: TernGradState, bucket: _Bucket, x: torch.Tensor, later: Any) -> _Exchange:
    """Each rank averages its shard and ternarizes it again: two bits an element on both ways."""
    group = state.process_group
    world, rank = dist.get_world_size(group), dist.get_rank(group)
    message = _encode(state, bucket, _with_residual(bucket, x))
    work, received = _shard_exchange(bucket, message, group)
    yield work
    own = bucket.layout.shard(rank)
    second = bucket.memory("second", (own.nbytes,), torch.uint8, x)
    weights = [1.0 / world] * world
    seed, offset = state.seed + dist.get_rank(), bucket.step
    with _Timed(bucket):
        if bucket.second_residual is None:
            tk.repack(Packed(own, received), seed=seed, offset=offset, layer=bucket.layer, weights=weights, out=second)
        else:
            # Its own residual is added before, which repack has no place for. The seed is one that no rank's first
            # message uses.
            mean = bucket.memory("mean", (own.size,), torch.float32, x)
            tk.decode_sum(Packed(own, received), weights=weights, out=mean, dtype="float32")
            mean += bucket.second_residual
            packed = tk.encode(
                mean,
                clip=None,
                seed=seed + dist.get_world_size(),
                offset=offset,
                layer=bucket.layer,
                layout=own,
                out=second,
            )
            _keep_lost(bucket.second_residual, mean, packed)
    gathered = bucket.memory("gathered", (world, own.nbytes), torch.uint8, x)
    bucket.sent = (world - 1) * (message.nbytes // world + second.nbytes)
    yield _all_gather(gathered, second.view(1, -1), group=later, async_op=True)
    with _Timed(bucket):
        tk.decode(Packed(bucket.layout, gathered.view(-1)), out=x)


def _hierarchical(state: TernGradState, bucket: _Bucket, x: torch.Tensor, _later: Any) -> _Exchange:
    """Inside a node gradients are averaged as they are; between nodes each rank sends its part of them as trits."""
    local = dist.get_world_size(state.local_group)
    chunk = _chunk(bucket.size, local)
    padded = bucket.memory("padded", (local * chunk,), x.dtype, x)
    padded[: x.numel()].copy_(x).div_(local)
    padded[x.numel() :].zero_()
    part = bucket.memory("part", (chunk,), x.dtype, x)
    yield _reduce_scatter(part, padded, group=state.local_group, async_op=True)
    yield from _gather_over(state, bucket, part[: bucket.layout.size], state.process_group)
    bucket.sent += 2 * (local - 1) * part.nbytes
    yield _all_gather(padded, part, group=state.local_group, async_op=True)
    x.copy_(padded[: x.numel()])


def _plain(x: torch.Tensor, group: Any) -> Any:
    """The average without quantising; divided first, so that a sum of half-precision gradients stays in range."""
    x.div_(dist.get_world_size(group))
    return dist.all_reduce(x, group=group, async_op=True)


# ---- the hook and the function


def terngrad_hook(state: TernGradState, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Average a bucket of gradients: ``model.register_comm_hook(state, terngrad_hook)``.

    Parameters
    ----------
    state : TernGradState
        Options, step and memory; one a model.
    bucket : torch.distributed.GradBucket
        As DistributedDataParallel hands it over.

    Returns
    -------
    torch.futures.Future
        Of the bucket's buffer, with the average in it.

    Raises
    ------
    RuntimeError
        At first use, if the ranks' options or layers differ: the text names a rank and the difference.
    """
    x = bucket.buffer()
    if bucket.index() == 0:
        state._layers = 0
    if state.step < state.start_step:
        state._layers += len(bucket.parameters())
        group = state.process_group
        if state.strategy == "hierarchical":
            x.div_(dist.get_world_size(state.local_group))
            dist.all_reduce(x, group=state.local_group)
        future = _plain(x, group).get_future().then(lambda done: done.value()[0])
    else:
        known = state._bucket(bucket.index(), bucket.parameters(), x)
        future = _start(state, known, x)
    if bucket.is_last():
        state._all_there = time.perf_counter()
        state.step += 1
    return future


def _start(state: TernGradState, bucket: _Bucket, x: torch.Tensor) -> torch.futures.Future[torch.Tensor]:
    if state.overlap:
        worker, later = state._carrier()
        exchange = _exchange(state, bucket, x, later)
        return worker.carry_on(exchange, next(exchange), x)
    exchange = _exchange(state, bucket, x, state.process_group)
    _finish(exchange, next(exchange))
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    future.set_result(x)
    return future


def all_reduce_mean(tensors: Sequence[torch.Tensor], state: TernGradState, group: Any = None) -> None:
    """Replace each of a list of tensors by its average over the ranks, as `terngrad_hook` does; waits for the result.

    One call is one step: random bits go by ``state.step``, which it raises by one.

    Parameters
    ----------
    tensors : sequence of torch.Tensor
        Floating point, of any dtypes, devices and memory formats; those that share dtype and device travel together.
        The same on all ranks.
    state : TernGradState
        Options, step and memory; one for each list that is averaged again and again.
    group : ProcessGroup, optional
        In place of the state's own.

    Raises
    ------
    TypeError, RuntimeError
        For tensors that are not of floating point; as `terngrad_hook`.
    """
    if group is not None and group is not state.process_group:
        state.process_group = group
        state._buckets.clear()
    state._layers = 0
    together: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
    for i, tensor in enumerate(tensors):
        dtype_name(tensor.dtype, f"tensors[{i}]")
        together.setdefault((tensor.dtype, tensor.device), []).append(tensor.detach())
    for key, members in together.items():
        flat = torch.cat([member.reshape(-1) for member in members])
        if state.step < state.start_step:
            if state.strategy == "hierarchical":
                _plain(flat, state.local_group).wait()
            _plain(flat, state.process_group).wait()
        else:
            bucket = state._bucket(f"{key[0]} {key[1]}", members, flat)
            exchange = _exchange(state, bucket, flat, state.process_group)
            _finish(exchange, next(exchange))
            state._all_there = bucket.done
        for member, mean in zip(members, flat.split([member.numel() for member in members]), strict=True):
            member.copy_(mean.view(member.shape))
    state.step += 1


# ---- what the exchanges stand on


def _ring(nbytes: int, world: int) -> int:
    """Bytes that each rank sends in a ring all-reduce."""
    return 2 * (world - 1) * nbytes // world


def _chunk(size: int, ranks: int) -> int:
    return -(-size // ranks)


def _chunk_layout(sizes: Sequence[int], packing: Sequence[str], place: int, ranks: int) -> Layout:
    """The parts of the layers that lie in one rank's chunk of a flat bucket, each a layer of its own."""
    chunk = _chunk(sum(sizes), ranks)
    first, last = place * chunk, (place + 1) * chunk
    shapes, packings = [], []
    at = 0
    for size, name in zip(sizes, packing, strict=True):
        inside = min(at + size, last) - max(at, first)
        at += size
        if inside > 0:
            shapes.append((inside,))
            packings.append(name)
    return Layout(shapes, packing=packings)


def _small_parameters(model: torch.nn.Module) -> set[int]:
    """Identities of the weights of embeddings and of the last linear layer, as many as are small together."""
    heads = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1:]
    embeddings = [
        module for module in model.modules() if isinstance(module, (torch.nn.Embedding, torch.nn.EmbeddingBag))
    ]
    weights = {id(module.weight): module.weight.numel() for module in heads + embeddings}
    left = _SMALL_SHARE * sum(parameter.numel() for parameter in model.parameters())
    small = set()
    for identity, elements in sorted(weights.items(), key=lambda item: item[1]):
        left -= elements
        if left < 0:
            break
        small.add(identity)
    return small


def _check_agreement(options: dict[str, Any], bucket: _Bucket, device: torch.device, group: Any) -> None:
    """Raise on every rank if options or layers differ between ranks, and name one of them."""
    own = {**options, "layers": bucket.sizes, "dtype": bucket.dtype, "packing of layers": bucket.layout.packing}
    text = json.dumps(own, sort_keys=True)
    digest = torch.tensor(list(hashlib.sha256(text.encode()).digest()), dtype=torch.uint8, device=device)
    world = dist.get_world_size(group)
    digests = torch.empty((world, digest.numel()), dtype=torch.uint8, device=device)
    _all_gather(digests, digest.view(1, -1), group=group)
    if bool((digests == digests[0]).all()):
        return
    everyone: list[Any] = [None] * world
    dist.all_gather_object(everyone, text, group=group)
    first = json.loads(everyone[0])
    for rank, other in enumerate(everyone):
        differing = {key: value for key, value in json.loads(other).items() if value != first.get(key)}
        for key, value in differing.items():
            raise RuntimeError(f"TernGrad: rank {rank} has {key} {value!r}, rank 0 has {first.get(key)!r}")


def _timeout(group: Any) -> Any:
    """The group's own timeout, so that a lost rank is found in the same time on both groups."""
    found = group if group is not None else dist.group.WORLD
    device = torch.device("cuda" if dist.get_backend(group) == "nccl" else "cpu")
    options = getattr(found._get_backend(device), "options", None)
    return getattr(options, "_timeout", None)


# ---- whether it pays


@dataclass(frozen=True)
class Recommendation:
    """What `recommend` found.

    Attributes
    ----------
    strategy : str or None
        The fastest; None: plain averaging in float32.
    seconds : dict
        Predicted seconds of one exchange that nothing hides, by strategy; "float32" is plain averaging.
    """

    strategy: str | None
    seconds: dict[str, float]


def measure_link(group: Any = None, nbytes: int = 1 << 22, rounds: int = 5) -> tuple[float, float]:
    """Measure the link between the ranks of a group, by all-reduces. All ranks call it together.

    Parameters
    ----------
    group : ProcessGroup, optional
        The default group without it.
    nbytes : int, default 4 MiB
        Of the larger all-reduce.
    rounds : int, default 5
        Of each size; the fastest counts.

    Returns
    -------
    bandwidth : float
        Bits a second that each rank sends.
    latency : float
        Seconds of one of the 2 (W - 1) steps of a ring.
    """
    world = dist.get_world_size(group)
    if world == 1:
        return math.inf, 0.0
    device = torch.device("cuda" if dist.get_backend(group) == "nccl" else "cpu")

    def fastest(elements: int) -> float:
        x = torch.zeros(elements, device=device)
        best = math.inf
        for _ in range(rounds):
            dist.barrier(group)
            start = time.perf_counter()
            dist.all_reduce(x, group=group)
            if device.type == "cuda":
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - start)
        return best

    small, large = fastest(1), fastest(nbytes // 4)
    # Ranks must come to the same answer, so to the slowest's.
    found = torch.tensor([small, large], dtype=torch.float64, device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX, group=group)
    small, large = found.tolist()
    return 8 * _ring(nbytes, world) / max(large - small, 1e-9), small / (2 * (world - 1))


def _measure_kernels(elements: int = 1 << 20, rounds: int = 5) -> dict[str, float]:
    """Seconds an element: to encode, and to add one message to a sum."""
    x = torch.linspace(-1.0, 1.0, elements)
    packed = tk.encode(x, seed=1)
    out = torch.empty_like(x)

    def fastest(call: Callable[[], object]) -> float:
        best = math.inf
        for _ in range(rounds):
            start = time.perf_counter()
            call()
            best = min(best, time.perf_counter() - start)
        return best / elements

    return {
        "encode": fastest(lambda: tk.encode(x, seed=1, out=packed.data)),
        "decode": fastest(lambda: tk.decode_sum([packed] * 4, out=out)) / 4,
    }


def recommend(
    elements: int,
    world_size: int,
    *,
    bandwidth: float,
    latency: float = 0.0,
    dtype: Any = "float32",
    packing: str = "two_bit",
    kernel_seconds: dict[str, float] | None = None,
) -> Recommendation:
    """Predict which strategy averages gradients fastest over a link, or that none beats plain averaging.

    Parameters
    ----------
    elements : int
        Of the gradient.
    world_size : int
        Ranks.
    bandwidth : float
        Bits a second that each rank sends; `measure_link` measures it.
    latency : float, default 0.0
        Seconds that a message takes on its way, whatever its length.
    dtype : str or dtype, default "float32"
        That plain averaging sends.
    packing : {"two_bit", "base3"}, default "two_bit"
        As in `TernGradState`.
    kernel_seconds : dict, optional
        Seconds an element of "encode", and of "decode" for each message that is added. Measured on this machine
        without it.

    Returns
    -------
    Recommendation
        The fastest strategy, and the seconds predicted for each.
    """
    rates = _measure_kernels() if kernel_seconds is None else kernel_seconds
    n, world = elements, world_size
    others = world - 1
    trits = Layout([(n,)], packing=packing).nbytes
    counts = Layout([(n,)], packing=counts_for(min(world, COUNTS["counts16"]))).nbytes
    encode, decode = rates["encode"] * n, rates["decode"] * n
    plain = _ring(DTYPES[dtype_name(dtype)] * n, world)
    # Bytes that a rank sends, messages that it waits for one after the other, seconds in kernels. A shard of every
    # rank's message is as long as one message.
    costs = {
        "float32": (plain, 2 * others, 0.0),
        "gather": (others * trits, others, encode + world * decode),
        "sum": (others * (trits + counts) // world, 4 * others, encode + 2 * decode),
        "requantize": (2 * others * trits // world, 2 * others, encode + (decode + encode / world) + decode),
    }
    seconds = {name: 8 * sent / bandwidth + latency * waits + work for name, (sent, waits, work) in costs.items()}
    best = min(seconds, key=lambda name: seconds[name])
    return Recommendation(None if best == "float32" else best, seconds)
