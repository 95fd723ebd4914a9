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
import numbers
import queue
import statistics
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.distributed as dist

from . import __version__, _cost
from . import operations as tk
from ._cost import MOST_DIRECT as _MOST_DIRECT
from .adapters import torch as _operators  # noqa: F401  (saved programs find the operators)
from .averaging import WIDEST_CLIP as _WIDEST_CLIP
from .averaging import ring_bytes as _ring
from .averaging import travels_as_float32
from .layout import COUNTS, DTYPES, TERNARY, Layout, _whole, dtype_name, packing_code
from .packed import Counts, Packed, Scales, counts_for

if not dist.is_available():
    raise ImportError("terngrad_kernels.torch: this build of PyTorch has no torch.distributed")

__all__ = ["Recommendation", "Report", "TernGradState", "all_reduce_mean", "measure_link", "recommend", "terngrad_hook"]

STRATEGIES = ("gather", "sum", "requantize", "hierarchical")

# Of a model's elements, those of embeddings and the head that may ride along as float32.
_SMALL_SHARE = 0.01

#: An exchange: yields what it waits for. What comes before the first wait runs in the hook, the rest on threads.
_Exchange = Generator[Any, None, None]
# Of sends and receives: apart from those of the program itself.
_TAG = 0x7E76
#: Collectives of an exchange, one after the other.
_MOST_WAITS = 3

# New names of the last releases, and the names before.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


#: A moment: of the clock, or on a GPU's stream, where it is known when the work before it is done.
_Mark: TypeAlias = float | torch.cuda.Event


@dataclass(frozen=True)
class _Groups:
    """The groups of an exchange, and this rank's place in them. Without nodes, `inside` is None and counts one rank."""

    between: Any
    inside: Any
    world: int
    rank: int
    local_world: int
    local_rank: int
    again: Any = None  # another one of the ranks of `between`

    @classmethod
    def of(cls, between: Any, inside: Any) -> "_Groups":
        between = dist.group.WORLD if between is None else between
        world, rank = dist.get_world_size(between), dist.get_rank(between)
        if rank < 0:
            raise ValueError("process_group: expected a group that this rank is in, got one that it is not in")
        if inside is None:
            return cls(between, None, world, rank, 1, 0)
        local_rank = dist.get_rank(inside)
        if local_rank < 0:
            raise ValueError("local_group: expected a group that this rank is in, got one that it is not in")
        shared = set(dist.get_process_group_ranks(between)) & set(dist.get_process_group_ranks(inside))
        if len(shared) > 1:
            raise ValueError(
                "process_group: expected the ranks of one place in each node, "
                f"got one that shares the ranks {sorted(shared)} with local_group"
            )
        return cls(between, inside, world, rank, dist.get_world_size(inside), local_rank)


@dataclass
class _Bucket:
    """What the exchanges of one bucket need in each step: its layout, memory, residuals and times."""

    key: int | str
    identity: Any  # equal as long as it is the same bucket
    groups: _Groups
    sizes: tuple[int, ...]
    dtype: str
    device: torch.device
    layer: int  # index of its first layer in the model
    layout: Layout
    scratch: dict[str, torch.Tensor] = field(default_factory=dict)
    step: int = 0  # of the exchange that is going on
    residual: torch.Tensor | None = None
    second_residual: torch.Tensor | None = None
    sent: int = 0
    sent_inside: int = 0
    bytes_float32: int = 0
    in_kernels: list[tuple[_Mark, _Mark]] = field(default_factory=list)
    done: _Mark | None = None

    def memory(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, like: torch.Tensor) -> torch.Tensor:
        """Return memory of this bucket, allocated at first use."""
        found = self.scratch.get(name)
        if found is None or found.shape != shape or found.device != like.device:
            found = self.scratch[name] = torch.empty(shape, dtype=dtype, device=like.device)
        return found

    @property
    def size(self) -> int:
        """Number of elements."""
        return sum(self.sizes)


def _mark(device: torch.device) -> _Mark:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def _seconds(start: _Mark | None, end: _Mark | None) -> float:
    """Return the seconds between two moments on one device, waiting for them; 0 if one of them is missing."""
    if isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
        start.synchronize()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3
    return end - start if isinstance(start, float) and isinstance(end, float) else 0.0


@dataclass(frozen=True)
class Report:
    """What the exchanges of the last step cost this rank.

    Attributes
    ----------
    steps : int
        Number of steps so far.
    bytes_sent : int
        Payload bytes that this rank sent in the step, as a ring or a direct exchange sends them; with `hierarchical`,
        those to other nodes.
    bytes_float32 : int
        Bytes that a ring all-reduce of the same elements in float32 sends; with `gather` under FSDP, a reduce-scatter.
    bytes_inside : int
        Bytes sent inside the node, with `hierarchical`.
    kernel_seconds : float
        Seconds in the kernels of this package; on a GPU, from their start to their end on its stream.
    exposed_seconds : float
        Seconds from the last gradient to the last average.
    scratch_bytes : int
        Bytes of memory held between steps.
    buckets : tuple of dict
        For each bucket "bucket" (its number, or a text), "elements", and the figures above except steps.
    """

    steps: int
    bytes_sent: int
    bytes_float32: int
    bytes_inside: int
    kernel_seconds: float
    exposed_seconds: float
    scratch_bytes: int
    buckets: tuple[dict[str, Any], ...]

    @property
    def ratio(self) -> float:
        """Bytes of float32 divided by bytes sent."""
        return self.bytes_float32 / self.bytes_sent if self.bytes_sent else math.inf

    def __str__(self) -> str:
        """One line."""
        return (
            f"{self.steps} steps; {self.bytes_sent:,} bytes sent a step, {self.ratio:.2f} x fewer than float32; "
            f"{1e3 * self.kernel_seconds:.2f} ms in kernels, {1e3 * self.exposed_seconds:.2f} ms exposed, "
            f"{self.scratch_bytes:,} bytes of scratch"
        )


class _Carrier:
    """Threads that run exchanges: each waits for one collective of an exchange, and starts what follows it.

    An exchange goes from thread to thread, so that the link carries one while kernels work on another. Other
    collectives of the job run on the caller's groups at the same time, in an order that these threads do not know; on
    groups where one thread alone starts them, the order is that of the buckets on every rank.
    """

    def __init__(self, groups: _Groups, again: bool) -> None:
        def second(group: Any) -> Any:
            return dist.new_group(
                dist.get_process_group_ranks(group),
                timeout=_timeout(group),
                backend=dist.get_backend_config(group),
                use_local_synchronization=not _is_whole(group),
            )

        inside = None if groups.inside is None else second(groups.inside)
        self.later = _Groups.of(second(groups.between), inside)
        if again:
            self.later = replace(self.later, again=second(groups.between))
        self._queues = [queue.SimpleQueue[Any]() for _ in range(_MOST_WAITS)]
        failed: list[str] = []
        threads = [
            threading.Thread(target=_carry, args=(here, after, failed), name=f"terngrad-exchange-{i}", daemon=True)
            for i, (here, after) in enumerate(zip(self._queues, [*self._queues[1:], None], strict=True))
        ]
        for thread in threads:
            thread.start()
        # At exit too: a thread that comes back from a collective when the interpreter is gone aborts the process.
        weakref.finalize(self, _stop, self._queues[0], threads)

    def carry_on(self, exchange: _Exchange, work: Any, x: torch.Tensor) -> torch.futures.Future[torch.Tensor]:
        future = _future(x)
        # An exception that is merely set would reach DistributedDataParallel as a result; one raised here is an error.
        passed_on = future.then(lambda done: done.value())
        self._queues[0].put((exchange, work, x, future))
        return passed_on


def _carry(here: Any, after: Any, failed: list[str]) -> None:
    """Take each exchange of the queue `here` over one wait; one that waits again goes to the queue `after`."""
    while (item := here.get()) is not None:
        exchange, work, x, future = item
        try:
            if failed:  # ranks are at different places now; waiting again would only add another timeout
                raise RuntimeError(f"TernGrad: an exchange before this one failed: {failed[0]}")
            with _beside(x):
                if work is not None:
                    work.wait()
                    work = next(exchange, None)
                if work is None:
                    future.set_result(x)
                else:
                    after.put((exchange, work, x, future))
        except Exception as error:
            failed.append(f"{type(error).__name__}: {error}")
            future.set_exception(error)
        del item, exchange, work, x, future  # not kept alive until the next one comes
    if after is not None:
        after.put(None)


def _stop(first: Any, threads: Sequence[threading.Thread]) -> None:
    first.put(None)
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join()  # collectives end within the timeout of their group


def _finish(exchange: _Exchange, work: Any) -> None:
    while work is not None:
        work.wait()
        work = next(exchange, None)


# ---- GPUs: exchanges run on a stream of their own, beside the backward pass


def _future(x: torch.Tensor) -> torch.futures.Future[Any]:
    """Return a future of `x`. On a GPU, the stream of whoever waits for it waits for the stream that set it."""
    return torch.futures.Future(devices=[x.device] if x.is_cuda else None)


_streams: dict[torch.device, torch.cuda.Stream] = {}


def _beside(x: torch.Tensor, after: bool = False) -> AbstractContextManager[Any]:
    """Make the stream of exchanges the current one of the device of `x`. `after`: it waits for the one before.

    Memory of exchanges is allocated on it, so that the caching allocator gives it away in its order. The backward pass
    waits for it before it ends, so the gradients' own memory outlives what reads it.
    """
    if not x.is_cuda:
        return nullcontext()
    stream = _streams.get(x.device)
    if stream is None:
        stream = _streams.setdefault(x.device, torch.cuda.Stream(x.device))
    if after:
        stream.wait_stream(torch.cuda.current_stream(x.device))
    context: AbstractContextManager[Any] = torch.cuda.stream(stream)
    return context


def _waits_on_the_host(groups: _Groups, x: torch.Tensor) -> bool:
    """Return whether waiting for a collective blocks this thread: not with NCCL, where the current stream waits."""
    members = [group for group in (groups.inside, groups.between) if group is not None]
    return not x.is_cuda or any(group._get_backend(x.device).name() != "nccl" for group in members)


#: By the groups of the caller, and whether there is a third group of them: states share them, since groups cannot be
#: taken down and made again at will.
_carriers: "weakref.WeakKeyDictionary[Any, weakref.WeakKeyDictionary[Any, dict[bool, _Carrier]]]"
_carriers = weakref.WeakKeyDictionary()


def _is_whole(group: Any) -> bool:
    """Return whether all ranks of the job are in the group, so that they can name another group by counting."""
    return group is None or bool(dist.get_world_size(group) == dist.get_world_size())


def _to_be_named(groups: _Groups, again: bool) -> dict[str, Any]:
    """Return what else the ranks must agree on to make the groups of their `_Carrier`.

    PyTorch names a group that only its own ranks make by how many groups a rank is in; where these numbers differ,
    the ranks would wait for one another under different names.
    """
    if again in _carriers_of(groups) or (_is_whole(groups.between) and _is_whole(groups.inside)):
        return {}
    return {
        "number of process groups (which only overlap=False does without)": len(dist.distributed_c10d._world.pg_names)
    }


def _carriers_of(groups: _Groups) -> dict[bool, _Carrier]:
    by_inside = _carriers.setdefault(groups.between, weakref.WeakKeyDictionary())
    return by_inside.setdefault(groups.inside or groups.between, {})


def _carrier_of(groups: _Groups, again: bool) -> _Carrier:
    made = _carriers_of(groups)
    if again not in made:
        made[again] = _Carrier(groups, again)
    return made[again]


class TernGradState:
    """Options and state of the ternary averaging of gradients, for `terngrad_hook` and `all_reduce_mean`.

    Parameters
    ----------
    model : torch.nn.Module, optional
        Model of which small layers are carried as float32: as many of its embeddings and its last registered Linear,
        smallest first, as fit in 1 % of its elements. Without a model they are ternarized.
    strategy : {"gather", "sum", "requantize", "hierarchical"}, default "gather"
        How messages travel; see ``docs/distributed.md``.
    clip : float > 0 or None, default 2.5
        As in `terngrad_kernels.encode`.
    packing : {"two_bit", "base3"}, default "two_bit"
        Packing of the ternary layers.
    block : int, optional
        Number of elements that share a scale, a multiple of 2560; None: one scale per layer.
    seed : int, default 0
        Seed, the same on all ranks: each rank adds its own number.
    start_step : int, default 0
        First step that ternarizes. Earlier steps average in the dtype of the gradients.
    float32 : callable, optional
        ``float32(parameter) -> bool``: whether a layer is carried as float32. By default layers of fewer than 512
        elements are, those of one dimension and fewer than 65536, and those that `model` names.
    error_feedback : bool, default False
        Add what the last step lost (clipping included) to the gradient of this step, in float32, at both quantisations
        of `requantize` (which then clips both). It starts from zero whenever the buckets change. Needs ``clip <= 2``.
    process_group : ProcessGroup, optional
        Ranks to average over; the default group if None. With `hierarchical`, the ranks of one place in each node.
    local_group : ProcessGroup, optional
        The ranks of this node, with `hierarchical` alone.
    overlap : bool, default True
        Run exchanges on threads and groups of their own during the backward pass; otherwise wait in the hook.

    Attributes
    ----------
    step : int
        Number of averages so far, which the random bits depend on.

    Raises
    ------
    TypeError, ValueError
        The message names the argument, what was expected and what was got.
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
        packing_code(packing, offered=TERNARY)
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise TypeError(f"seed: expected an int, got {type(seed).__name__}")
        if float32 is not None and not callable(float32):
            raise TypeError(f"float32: expected a function of a parameter, got {type(float32).__name__}")
        _require_local_group(strategy, local_group)
        start_step = _whole(start_step, "start_step", 0)
        tk.encode(torch.zeros(1), clip=clip, seed=seed, block=block)  # which says what is wrong with them
        if error_feedback and (clip is None or clip > _WIDEST_CLIP):
            raise ValueError(
                f"clip: expected at most {_WIDEST_CLIP} with error_feedback, got {clip}: "
                "what is lost with wider clipping adds up"
            )
        small = _small_parameters(model)
        self.strategy = strategy
        self.clip = clip
        self.packing = packing
        self.block = block
        self.seed = seed
        self.start_step = start_step
        self.float32 = float32
        self.error_feedback = bool(error_feedback)
        self.process_group = process_group
        self.local_group = local_group
        self.overlap = bool(overlap)
        self.step = 0
        self._small = small
        self._buckets: dict[int | str, _Bucket] = {}
        self._loaded: dict[str, Any] = {}
        self._layers = 0  # of the buckets of this step so far
        self._all_there: dict[torch.device, _Mark] = {}  # when the last bucket of the last step came

    def attach(
        self, model: torch.nn.Module | None = None, *, process_group: Any = None, local_group: Any = None
    ) -> None:
        """Restore the model and the groups, which are not pickled.

        Parameters
        ----------
        model, process_group, local_group
            As in `TernGradState`.

        Raises
        ------
        TypeError, ValueError
            The message names the argument, what was expected and what was got.
        """
        _require_local_group(self.strategy, local_group)
        self._small = _small_parameters(model)
        self.process_group, self.local_group = process_group, local_group

    # ---- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return what this rank needs to go on as if it had not stopped.

        Returns
        -------
        dict
            "step", "seed", and "residuals": a dict by bucket.
        """
        residuals = dict(self._loaded)
        for bucket in self._buckets.values():
            if bucket.residual is not None:
                residuals[str(bucket.key)] = {
                    "place": _place(bucket),
                    "first": bucket.residual.clone(),
                    "second": None if bucket.second_residual is None else bucket.second_residual.clone(),
                }
        return {"step": self.step, "seed": self.seed, "residuals": residuals}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned. All ranks must call this together.

        Residuals belong to one rank. They start from zero where the rank, the number of ranks or the buckets differ.

        Parameters
        ----------
        state : dict
            What `state_dict` returned.

        Raises
        ------
        TypeError, ValueError
            If `state` is not such a dict.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state: expected the dict that state_dict returns, got {type(state).__name__}")
        missing = [name for name in ("step", "seed", "residuals") if name not in state]
        if missing:
            raise ValueError(f"state: expected the dict that state_dict returns, got one without {', '.join(missing)}")
        residuals = state["residuals"]
        if not isinstance(residuals, Mapping):
            raise TypeError(f"state['residuals']: expected a dict, got {type(residuals).__name__}")
        step, seed = _whole(state["step"], "state['step']", 0), _whole(state["seed"], "state['seed']", -(2**63), 2**64)
        self.step, self.seed, self._loaded = step, seed, dict(residuals)
        self._buckets.clear()

    def __getstate__(self) -> dict[str, Any]:
        """Pickle options, step and residuals, without groups and the model's parameters: see `attach`."""
        left: dict[str, Any] = {
            "process_group": None,
            "local_group": None,
            "_small": set(),
            "_buckets": {},
            "_all_there": {},
        }
        return {**self.__dict__, **left, "_loaded": self.state_dict()["residuals"]}

    # ---- what it cost

    def report(self) -> Report:
        """Return what the last step cost this rank; waits for its GPU.

        Returns
        -------
        Report
            Sums over the buckets, and the figures of each.
        """
        rows: list[dict[str, Any]] = [
            {
                "bucket": bucket.key,
                "elements": bucket.size,
                "bytes_sent": bucket.sent,
                "bytes_float32": bucket.bytes_float32,
                "bytes_inside": bucket.sent_inside,
                "kernel_seconds": sum(_seconds(start, end) for start, end in bucket.in_kernels),
                "exposed_seconds": max(0.0, _seconds(self._all_there.get(bucket.device), bucket.done)),
                "scratch_bytes": sum(memory.nbytes for memory in bucket.scratch.values()),
            }
            for bucket in self._buckets.values()
        ]
        sums: dict[str, Any] = {
            name: sum(row[name] for row in rows)
            for name in ("bytes_sent", "bytes_float32", "bytes_inside", "kernel_seconds", "scratch_bytes")
        }
        exposed = max((row["exposed_seconds"] for row in rows), default=0.0)
        return Report(steps=self.step, exposed_seconds=exposed, buckets=tuple(rows), **sums)

    # ---- buckets

    def _options(self) -> dict[str, Any]:
        """Return the options that must be equal on all ranks."""
        return {
            "terngrad_kernels": __version__,
            "strategy": self.strategy,
            "clip": self.clip,
            "packing": self.packing,
            "block": self.block,
            "seed": self.seed,
            "start_step": self.start_step,
            "step": self.step,
            "error_feedback": self.error_feedback,
            "overlap": self.overlap,
        }

    def _bucket(
        self,
        key: int | str,
        parameters: Sequence[torch.Tensor],
        like: torch.Tensor,
        group: Any,
        identity: Any,
        whole: Sequence[str] = (),
    ) -> _Bucket:
        """Return what is known of a bucket; one that is new, or not what it was, begins anew.

        `identity`: what tells it from another one of the same sizes. `whole`: what it is a part of.
        """
        groups = _Groups.of(group, self.local_group)
        sizes = tuple(parameter.numel() for parameter in parameters)
        dtype = dtype_name(like.dtype, "gradients")
        layer, self._layers = self._layers, self._layers + len(sizes)
        identity = (identity, sizes, dtype, layer, groups)
        found = self._buckets.get(key)
        if found is not None and found.identity == identity:
            return found
        needs_carrier = self.overlap and isinstance(key, int) and _waits_on_the_host(groups, like)
        packing = tuple("float32" if self._is_float32(parameter) else self.packing for parameter in parameters)
        _check_agreement(
            {
                **self._options(),
                **(_to_be_named(groups, self._again) if needs_carrier else {}),
                "ranks of a node": groups.local_world,
                "dtype": dtype,
                "layers": sizes,
                "packing of layers": packing,
                "tensors": whole,
            },
            like.device,
            groups,
        )
        if self.strategy == "sum" and groups.world > COUNTS["counts16"]:
            raise ValueError(
                f"process_group: expected at most {COUNTS['counts16']} ranks for the strategy 'sum', got {groups.world}"
            )
        shapes: Sequence[tuple[int, ...]] = [(size,) for size in sizes]
        if self.strategy == "hierarchical":
            shapes, packing = _chunk_of(sizes, packing, groups.local_rank, groups.local_world)
        layout = Layout(
            shapes,
            "float32" if self.error_feedback else dtype,
            packing,
            self.block,
            groups.world if self.strategy in ("sum", "requantize") else 1,
        )
        made = _Bucket(key, identity, groups, sizes, dtype, like.device, layer, layout)
        made.bytes_float32 = _ring(4 * _chunk(made.size, groups.local_world), groups.world)
        self._restore(made, like.device)
        # After DistributedDataParallel made its buckets anew there may be fewer of them.
        if isinstance(key, int):
            self._buckets = {at: old for at, old in self._buckets.items() if isinstance(at, str) or at < key}
        self._buckets[key] = made
        return made

    @property
    def _again(self) -> bool:
        """Whether two collectives on the same ranks follow the first wait, so that a third group is needed."""
        return self.strategy == "sum"

    def _is_float32(self, parameter: torch.Tensor) -> bool:
        if self.float32 is not None:
            return bool(self.float32(parameter))
        return travels_as_float32(parameter.numel(), parameter.ndim) or id(parameter) in self._small

    def _restore(self, bucket: _Bucket, device: torch.device) -> None:
        if not self.error_feedback:
            return
        bucket.residual = torch.zeros(bucket.layout.size, dtype=torch.float32, device=device)
        if self.strategy == "requantize":
            own = bucket.layout.shard(bucket.groups.rank).size
            bucket.second_residual = torch.zeros(own, dtype=torch.float32, device=device)
        # A new process goes through DistributedDataParallel's first buckets again before it comes to those it saved.
        loaded = self._loaded.get(str(bucket.key))
        if loaded is None or loaded["place"] != _place(bucket):
            return
        del self._loaded[str(bucket.key)]
        bucket.residual.copy_(loaded["first"])
        if bucket.second_residual is not None:
            bucket.second_residual.copy_(loaded["second"])


def _require_local_group(strategy: str, local_group: Any) -> None:
    if (strategy == "hierarchical") != (local_group is not None):
        expected = "a group" if strategy == "hierarchical" else "None"
        raise ValueError(f"local_group: expected {expected} with the strategy {strategy!r}, got {local_group!r}")


def _require_state(state: Any) -> None:
    if not isinstance(state, TernGradState):
        raise TypeError(f"state: expected a TernGradState, got {type(state).__name__}")


def _place(bucket: _Bucket) -> list[Any]:
    """Return what residuals belong to: ranks and sizes with which alone they can be used."""
    groups = bucket.groups
    second = 0 if bucket.second_residual is None else bucket.second_residual.numel()
    return [list(bucket.sizes), groups.world, groups.rank, groups.local_world, groups.local_rank, second]


# ---- the strategies


def _exchange(state: TernGradState, bucket: _Bucket, x: torch.Tensor, later: _Groups) -> _Exchange:
    """Average one flat bucket in place. `later`: the groups for what comes after the first wait."""
    bucket.sent = bucket.sent_inside = 0
    bucket.in_kernels.clear()
    bucket.step = state.step  # which goes on before the exchange ends
    if bucket.size:
        yield from (_plain if state.step < state.start_step else _STRATEGIES[state.strategy])(state, bucket, x, later)
    bucket.done = _mark(x.device)


class _Timed:
    """Adds the time of its block to the bucket's."""

    def __init__(self, bucket: _Bucket) -> None:
        self._bucket = bucket

    def __enter__(self) -> None:
        self._start = _mark(self._bucket.device)

    def __exit__(self, *_: object) -> None:
        self._bucket.in_kernels.append((self._start, _mark(self._bucket.device)))


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


def _plain(_state: TernGradState, bucket: _Bucket, x: torch.Tensor, later: _Groups) -> _Exchange:
    """The average without quantising; divided first, so that a sum of half-precision gradients stays in range."""
    groups = bucket.groups
    if groups.inside is not None:
        bucket.sent_inside = _ring(x.nbytes, groups.local_world)
        x.div_(groups.local_world)
        yield dist.all_reduce(x, group=groups.inside, async_op=True)
        groups = later
    bucket.sent = _ring(x.nbytes, groups.world)
    x.div_(groups.world)
    yield dist.all_reduce(x, group=groups.between, async_op=True)


def _gather(state: TernGradState, bucket: _Bucket, x: torch.Tensor, _later: _Groups) -> _Exchange:
    """Every rank gets every message, and adds them up itself."""
    yield from _gather_over(state, bucket, x, bucket.groups)


def _gather_over(state: TernGradState, bucket: _Bucket, x: torch.Tensor, groups: _Groups) -> _Exchange:
    message = _encode(state, bucket, _with_residual(bucket, x))
    work, gathered = _gather_parts(bucket, message, groups, groups.between)
    yield work
    with _Timed(bucket):
        tk.decode_sum(Packed(bucket.layout, gathered), weights=_mean(groups), out=x)


def _mean(groups: _Groups) -> list[float]:
    return [1.0 / groups.world] * groups.world


class _All:
    """Several sends and receives, waited for as one."""

    def __init__(self, works: Sequence[Any]) -> None:
        self._works = works

    def wait(self) -> None:
        for work in self._works:
            work.wait()


def _directly(parts: torch.Tensor, own: Sequence[torch.Tensor], groups: _Groups, group: Any) -> _All | None:
    """Send `own[r]` to each rank r, into its `parts[rank]`; None where this is left to the group's own collectives.

    gloo's collectives send before they say that they are ready to receive. What says so then waits in the socket
    behind the whole message, and the other rank, which waits for it, sends only after: a link that could carry both
    ways at once carries one after the other. Here all that is to be received is announced first.
    """
    if groups.world > _MOST_DIRECT or own[0].is_cuda or not own[0].numel() or dist.get_backend(group) != "gloo":
        return None
    others = [(groups.rank + i) % groups.world for i in range(1, groups.world)]  # not all to the same one at once
    ranks = dist.get_process_group_ranks(group)
    works = [dist.irecv(parts[other], ranks[other], group, _TAG) for other in reversed(others)]
    works += [dist.isend(own[other], ranks[other], group, _TAG) for other in others]
    parts[groups.rank].copy_(own[groups.rank])
    return _All(works)


def _gather_parts(bucket: _Bucket, own: torch.Tensor, groups: _Groups, group: Any) -> tuple[Any, torch.Tensor]:
    """Give every rank all ranks' parts: a shard each of one message, or a message each."""
    gathered = bucket.memory("gathered", (groups.world, own.numel()), torch.uint8, own)
    bucket.sent += (groups.world - 1) * own.numel()
    work = _directly(gathered, [own] * groups.world, groups, group)
    return work or _all_gather(gathered, own.view(1, -1), group=group, async_op=True), gathered


def _exchange_shards(bucket: _Bucket, message: torch.Tensor, group: Any) -> tuple[Any, torch.Tensor]:
    """Send each rank its shard of the message; what comes back is one shard of every rank's."""
    world = bucket.groups.world
    received = bucket.memory("received", (world, message.numel() // world), torch.uint8, message)
    bucket.sent += (world - 1) * received.shape[1]
    work = _directly(received, message.view(world, -1), bucket.groups, group)
    return work or dist.all_to_all_single(received.view(-1), message, group=group, async_op=True), received


def _sum(state: TernGradState, bucket: _Bucket, x: torch.Tensor, later: _Groups) -> _Exchange:
    """Scales are shared; each rank adds its shard's trits exactly, and all get the counts."""
    world, rank = bucket.groups.world, bucket.groups.rank
    total = _with_residual(bucket, x)
    shape = (bucket.layout.groups,)
    scales = Scales(*(bucket.memory(name, shape, torch.float32, x) for name in Scales._fields))
    with _Timed(bucket):
        tk.scales(total, clip=state.clip, layout=bucket.layout, out=scales)
    own = scales.scale
    every = bucket.memory("every scale", (world, own.numel()), torch.float32, x)
    work = _directly(every, [own] * world, bucket.groups, bucket.groups.between)
    if work is not None:  # one message to each, where a ring would wait for twice as many one after the other
        bucket.sent = (world - 1) * own.nbytes
        yield work
        torch.amax(every, 0, out=own)
    else:
        bucket.sent = _ring(own.nbytes, world)
        yield dist.all_reduce(own, op=dist.ReduceOp.MAX, group=bucket.groups.between, async_op=True)
    message = _encode(state, bucket, total, scales)
    work, received = _exchange_shards(bucket, message, later.between)
    yield work
    shard, counts = bucket.layout.shard(rank), bucket.layout.with_ternary(counts_for(world))
    sums = bucket.memory("sums", (counts.nbytes // world,), torch.uint8, x)
    with _Timed(bucket):
        tk.sum_trits(Packed(shard, received), out=sums)
    work, gathered = _gather_parts(bucket, sums, bucket.groups, later.again or later.between)
    yield work
    with _Timed(bucket):
        tk.decode(Counts(counts, world, gathered.view(-1)), weight=1.0 / world, out=x)


def _requantize(state: TernGradState, bucket: _Bucket, x: torch.Tensor, later: _Groups) -> _Exchange:
    """Each rank averages its shard and ternarizes it again: two bits an element on both ways."""
    message = _encode(state, bucket, _with_residual(bucket, x))
    work, received = _exchange_shards(bucket, message, bucket.groups.between)
    yield work
    own = bucket.layout.shard(bucket.groups.rank)
    second = bucket.memory("second", (own.nbytes,), torch.uint8, x)
    draw: dict[str, Any] = {"seed": state.seed + dist.get_rank(), "offset": bucket.step, "layer": bucket.layer}
    weights = _mean(bucket.groups)
    with _Timed(bucket):
        if bucket.second_residual is None:
            tk.repack(Packed(own, received), weights=weights, out=second, **draw)
        else:
            # Its own residual is added before, which repack has no place for. The seed is one that no rank's first
            # message uses.
            draw["seed"] += dist.get_world_size()
            mean = bucket.memory("mean", (own.size,), torch.float32, x)
            tk.decode_sum(Packed(own, received), weights=weights, out=mean)
            mean += bucket.second_residual
            packed = tk.encode(mean, clip=state.clip, layout=own, out=second, **draw)
            _keep_lost(bucket.second_residual, mean, packed)
    work, gathered = _gather_parts(bucket, second, bucket.groups, later.between)
    yield work
    with _Timed(bucket):
        tk.decode(Packed(bucket.layout, gathered.view(-1)), out=x)


def _hierarchical(state: TernGradState, bucket: _Bucket, x: torch.Tensor, later: _Groups) -> _Exchange:
    """Inside a node gradients are averaged as they are; between nodes each rank sends its part of them as trits."""
    local = bucket.groups.local_world
    chunk = _chunk(bucket.size, local)
    padded = bucket.memory("padded", (local * chunk,), x.dtype, x)
    torch.div(x, local, out=padded[: x.numel()])
    padded[x.numel() :].zero_()
    part = bucket.memory("part", (chunk,), x.dtype, x)
    yield _reduce_scatter(part, padded, group=bucket.groups.inside, async_op=True)
    if bucket.layout.size:  # else this rank, and those of its place in the other nodes, have padding alone
        yield from _gather_over(state, bucket, part[: bucket.layout.size], later)
    bucket.sent_inside = 2 * (local - 1) * part.nbytes
    yield _all_gather(padded, part, group=later.inside, async_op=True)
    x.copy_(padded[: x.numel()])


_STRATEGIES = {"gather": _gather, "sum": _sum, "requantize": _requantize, "hierarchical": _hierarchical}


# ---- the hook and the function


def terngrad_hook(state: TernGradState, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Average a bucket of gradients: ``model.register_comm_hook(state, terngrad_hook)``.

    Parameters
    ----------
    state : TernGradState
        Options, step and memory; one state per model.
    bucket : torch.distributed.GradBucket
        The bucket that DistributedDataParallel passes.

    Returns
    -------
    torch.futures.Future
        Future of the bucket's buffer, with the average in it.

    Raises
    ------
    TypeError
        If `state` is not a TernGradState.
    RuntimeError
        At first use, on every rank, if the ranks' options or layers differ; the message names a rank and the
        difference. If a rank is lost, within the timeout of the group.
    """
    _require_state(state)
    x = bucket.buffer()
    if bucket.is_last():
        state._all_there = {x.device: _mark(x.device)}
    parameters = bucket.parameters()
    if bucket.index() == 0:
        state._layers = 0
    # Equal sizes are not enough: buckets made anew may hold other layers of the same sizes.
    known = state._bucket(bucket.index(), parameters, x, state.process_group, tuple(map(id, parameters)))
    if state.overlap and _waits_on_the_host(known.groups, x):
        carrier = _carrier_of(known.groups, state._again)
        exchange = _exchange(state, known, x, carrier.later)
        with _beside(x, after=True):
            work = next(exchange, None)
        future = carrier.carry_on(exchange, work, x)
    else:
        exchange = _exchange(state, known, x, known.groups)
        future = _future(x)
        with _beside(x, after=True) if state.overlap else nullcontext():
            _finish(exchange, next(exchange, None))
            future.set_result(x)
    if bucket.is_last():
        state.step += 1
    return future


def all_reduce_mean(tensors: Sequence[torch.Tensor], state: TernGradState, group: Any = None) -> None:
    """Replace each tensor of a list by its average over the ranks, as `terngrad_hook` does; waits for the result.

    One call is one step: random bits depend on ``state.step``, which the call raises by one.

    Parameters
    ----------
    tensors : sequence of torch.Tensor
        Floating-point tensors of any dtypes, devices and memory formats, alike on all ranks. Tensors that share dtype
        and device travel together.
    state : TernGradState
        Options, step and memory; one state for each list that is averaged repeatedly.
    group : ProcessGroup, optional
        Group to use instead of the state's ``process_group``.

    Raises
    ------
    TypeError
        If `tensors` is not a list of floating-point tensors, or `state` not a TernGradState.
    RuntimeError
        As in `terngrad_hook`.
    """
    if isinstance(tensors, torch.Tensor) or not isinstance(tensors, Iterable):
        raise TypeError(f"tensors: expected a list of tensors, got {type(tensors).__name__}")
    _require_state(state)
    group = state.process_group if group is None else group
    together: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
    for i, tensor in enumerate(tensors):
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"tensors[{i}]: expected a tensor, got {type(tensor).__name__}")
        dtype_name(tensor.dtype, f"tensors[{i}]")
        together.setdefault((tensor.dtype, tensor.device), []).append(tensor.detach())
    whole = [f"{tensor.dtype} {tensor.device.type} {list(tensor.shape)}" for tensor in tensors]
    state._layers = 0
    state._all_there = {device: _mark(device) for _, device in together}
    for (dtype, device), members in together.items():
        bucket = state._bucket(f"{dtype} {device}", members, members[0], group, None, whole)
        x = bucket.memory("flat", (bucket.size,), dtype, members[0])
        torch.cat([member.reshape(-1) for member in members], out=x)
        exchange = _exchange(state, bucket, x, bucket.groups)
        _finish(exchange, next(exchange, None))
        for member, mean in zip(members, x.split(bucket.sizes), strict=True):
            member.copy_(mean.view(member.shape))
    state.step += 1


# ---- what the exchanges stand on


def _chunk(size: int, ranks: int) -> int:
    return -(-size // ranks)


def _chunk_of(
    sizes: Sequence[int], packing: Sequence[str], place: int, ranks: int
) -> tuple[list[tuple[int, ...]], tuple[str, ...]]:
    """Shapes and packings of the parts of layers that lie in one rank's chunk of a flat bucket."""
    chunk = _chunk(sum(sizes), ranks)
    first, last = place * chunk, (place + 1) * chunk
    shapes: list[tuple[int, ...]] = []
    packings = []
    at = 0
    for size, name in zip(sizes, packing, strict=True):
        inside = min(at + size, last) - max(at, first)
        at += size
        if inside > 0:
            shapes.append((inside,))
            packings.append(name)
    return shapes, tuple(packings)


def _small_parameters(model: torch.nn.Module | None) -> set[int]:
    """Identities of the weights of embeddings and of the last linear layer, smallest first, while they are small."""
    if model is None:
        return set()
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
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


def _check_agreement(own: dict[str, Any], device: torch.device, groups: _Groups) -> None:
    """Raise on every rank if options or layers differ between ranks, and name one of them."""
    text = json.dumps(own, sort_keys=True)
    digest = hashlib.sha256(text.encode()).digest()
    # First inside the node; what its ranks sent then stands for the node, so that all others see a difference in it.
    members = [group for group in (groups.inside, groups.between) if group is not None]
    agreed = True
    for group in members:
        sent = torch.tensor([list(digest)], dtype=torch.uint8, device=device)
        digests = sent.new_empty((dist.get_world_size(group), len(digest)))
        _all_gather(digests, sent, group=group)
        agreed = agreed and bool((digests == digests[0]).all())
        digest = hashlib.sha256(digests.cpu().numpy().tobytes()).digest()
    if agreed:
        return
    known: list[tuple[int, str]] = [(dist.get_rank(), text)]
    for group in members:
        parts: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(parts, known, group=group)
        known = [item for part in parts for item in part]
    known.sort()
    (first_rank, first_text), *others = known
    first = json.loads(first_text)
    for rank, other_text in others:
        for key, value in json.loads(other_text).items():
            if value != first.get(key, value):  # some are there with some options alone, which then differ
                raise RuntimeError(
                    f"TernGrad: the ranks differ in {key}: rank {rank} has {value!r}, "
                    f"rank {first_rank} has {first[key]!r}"
                )


def _timeout(group: Any) -> Any:
    """The group's own timeout, so that a lost rank is found in the same time on both groups."""
    device = torch.device("cuda" if dist.get_backend(group) == "nccl" else "cpu")
    options = getattr(group._get_backend(device), "options", None)
    return getattr(options, "_timeout", None)


# ---- whether it pays


@dataclass(frozen=True)
class Recommendation:
    """The result of `recommend`.

    Attributes
    ----------
    strategy : str or None
        The fastest strategy; None if none beats plain averaging.
    seconds : dict
        Predicted seconds by strategy: of a training step, or without `compute_seconds` of one exchange that overlaps
        with nothing. "float32" is plain averaging.
    """

    strategy: str | None
    seconds: dict[str, float]


def measure_link(group: Any = None, nbytes: int = 1 << 22, rounds: int = 5) -> tuple[float, float]:
    """Measure the link between the ranks of a group by all-reduces. All ranks must call this together.

    Parameters
    ----------
    group : ProcessGroup, optional
        Group to measure; the default group if None.
    nbytes : int, default 4 MiB
        Size of the larger all-reduce, in bytes, at least 8.
    rounds : int, default 5
        Number of all-reduces of each size, of which the fastest counts.

    Returns
    -------
    bandwidth : float
        Bits per second that each rank sends.
    latency : float
        Seconds per step of a ring, which has 2 (W - 1) steps.

    Raises
    ------
    TypeError, ValueError
        The message names the argument, what was expected and what was got.
    """
    nbytes, rounds = _whole(nbytes, "nbytes", 8), _whole(rounds, "rounds", 1)
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
    """Return the seconds per element to encode, to decode one message, and to add each further message."""
    x = torch.linspace(-1.0, 1.0, elements)
    packed = tk.encode(x, seed=1)
    out = torch.empty_like(x)

    def seconds(call: Callable[[], object]) -> float:
        taken = []
        for _ in range(rounds):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
        return statistics.median(taken) / elements

    one, nine = (seconds(partial(tk.decode_sum, [packed] * many, out=out)) for many in (1, 9))
    return {
        "encode": seconds(lambda: tk.encode(x, seed=1, out=packed.data)),
        "decode": one,
        "add": max(0.0, nine - one) / 8,
    }


def _number(value: Any, argument: str) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{argument}: expected a number, got {type(value).__name__}")
    return float(value)


def _rates(kernel_seconds: Any) -> dict[str, float]:
    """Return the times that `recommend` was given."""
    names = ("encode", "decode", "add")
    if not isinstance(kernel_seconds, Mapping):
        raise TypeError(f"kernel_seconds: expected a dict of {', '.join(names)}, got {type(kernel_seconds).__name__}")
    missing = [name for name in names if name not in kernel_seconds]
    if missing:
        raise ValueError(f"kernel_seconds: expected {', '.join(names)}, got none for {', '.join(missing)}")
    return {name: _number(kernel_seconds[name], f"kernel_seconds[{name!r}]") for name in names}


def recommend(
    elements: int,
    world_size: int,
    *,
    bandwidth: float,
    latency: float = 0.0,
    dtype: Any = "float32",
    packing: str = "two_bit",
    kernel_seconds: dict[str, float] | None = None,
    compute_seconds: float = 0.0,
) -> Recommendation:
    """Predict which of `gather`, `sum` and `requantize` averages gradients fastest, or that plain averaging does.

    The model does not cover `hierarchical`: between nodes it is `gather` of node averages.
    ``docs/performance-model.md`` describes the model and compares it with measurements.

    Parameters
    ----------
    elements : int
        Number of elements of the gradient.
    world_size : int
        Number of ranks.
    bandwidth : float
        Bits per second that each rank sends; see `measure_link`.
    latency : float, default 0.0
        Seconds that a message takes, in addition to the time for its bytes.
    dtype : str or dtype, default "float32"
        Type in which plain averaging sends the gradient.
    packing : {"two_bit", "base3"}, default "two_bit"
        As in `TernGradState`.
    kernel_seconds : dict, optional
        Seconds per element to "encode", to "decode" a message, and to "add" each further message to it. By default
        measured on this machine.
    compute_seconds : float, default 0.0
        Seconds of computing in a training step: one third forward, two thirds backward. What overlaps with the backward
        pass costs no time.

    Returns
    -------
    Recommendation
        The fastest strategy, and the predicted seconds of each.

    Raises
    ------
    TypeError, ValueError
        The message names the argument, what was expected and what was got.
    """
    elements, world_size = _whole(elements, "elements", 0), _whole(world_size, "world_size", 1)
    if not _number(bandwidth, "bandwidth") > 0:
        raise ValueError(f"bandwidth: expected a number > 0, got {bandwidth}")
    for argument, value in (("latency", latency), ("compute_seconds", compute_seconds)):
        if not _number(value, argument) >= 0:
            raise ValueError(f"{argument}: expected a number >= 0, got {value}")
    plain = dtype_name(dtype)
    packing_code(packing, offered=TERNARY)
    rates = _measure_kernels() if kernel_seconds is None else _rates(kernel_seconds)
    seconds = {
        strategy: _cost.predict(
            strategy,
            _cost.split(elements, DTYPES[plain]),
            world_size,
            _cost.Link(bandwidth, latency),
            _cost.Kernels(rates["encode"], rates["decode"], rates["add"]),
            compute=compute_seconds,
            packing=packing,
            dtype=plain,
        )
        for strategy in _cost.STRATEGIES
        if strategy != "sum" or world_size <= COUNTS["counts16"]
    }
    best = min(seconds, key=lambda name: seconds[name])
    return Recommendation(None if best == "float32" else best, seconds)
