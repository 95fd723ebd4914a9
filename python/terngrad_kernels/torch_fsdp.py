"""Averaging of the gradients of fully sharded models (FSDP2) as trits.

::

    from terngrad_kernels.torch import TernGradState
    from terngrad_kernels.torch_fsdp import apply_terngrad

    fully_shard(model)
    apply_terngrad(model, TernGradState(seed=1))

In place of FSDP's reduce-scatter each rank sends every other one the trits of its shard, and adds up the messages
that it gets. With the strategy ``hierarchical`` FSDP's own reduce-scatter stays, inside a node, and what it leaves is
averaged over nodes as trits. See ``docs/distributed.md``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from . import operations as tk
from .averaging import ring_bytes
from .layout import Layout, dtype_name
from .packed import Packed
from .torch import (
    TernGradState,
    _Bucket,
    _check_agreement,
    _finish,
    _gather_over,
    _Groups,
    _mark,
    _plain,
    _reduce_scatter,
    _require_state,
    _small_parameters,
    _Timed,
)

try:
    from torch.distributed.fsdp import FSDPModule
except ImportError as error:
    raise ImportError(f"terngrad_kernels.torch_fsdp: PyTorch {torch.__version__} has no FSDPModule") from error

__all__ = ["apply_terngrad"]

#: Strategies of `TernGradState` that a reduce-scatter has: each rank needs the average of its own shard alone.
STRATEGIES = ("gather", "hierarchical")


class _Row(NamedTuple):
    """The part of a module's gradient that one rank gets: a run of the flat input, with a chunk of every parameter.

    FSDP pads chunks to equal lengths. Padding is no gradient: counted, it would make scales too small, and sent,
    messages too long.
    """

    chunks: tuple[slice, ...]  # without their padding
    whole: bool  # nothing is padding
    layout: Layout

    def of(self, flat: torch.Tensor) -> Any:
        """Return the layers of a flat row: itself, or where there is padding a list of them."""
        return flat if self.whole else [flat[chunk] for chunk in self.chunks]


@dataclass
class _Shards(_Bucket):
    """A bucket that is cut into one row per rank; `layout` is the layout of this rank's row."""

    rows: tuple[_Row, ...] = ()
    length: int = 0  # of a row, its padding included


class _Run:
    """Counts the steps of a state: each backward pass in which something is averaged is one."""

    def __init__(self, state: TernGradState) -> None:
        self.state = state
        self.members: list[_Member] = []
        self.most_ranks = 1  # that a module is sharded over
        self._task = -1  # PyTorch's number of the backward pass

    def begin(self, device: torch.device) -> None:
        """Note that an average is taken, and have the step counted when this backward pass ends."""
        self.state._all_there = {**self.state._all_there, device: _mark(device)}
        task = torch._C._current_graph_task_id()
        if task == self._task:
            return
        # Had the last pass ended with an error, its step would not have been counted, and this one draws its bits.
        self._task = task
        for member in self.members:
            member.times = 0
        for bucket in self.state._buckets.values():  # for the report: not all need have a gradient in this pass
            bucket.sent = bucket.sent_inside = bucket.bytes_float32 = 0
            bucket.in_kernels.clear()
        torch.autograd.Variable._execution_engine.queue_callback(self._end)

    def _end(self) -> None:
        self.state.step += 1


class _Member:
    """One FSDP module's part: knows the parameters behind the flat tensors that FSDP hands over."""

    def __init__(self, run: _Run, name: str, group: Any, first: int) -> None:
        self.run = run
        self.times = 0  # in this backward pass: of a module that is called twice, gradients are averaged twice
        self._name = name
        self._group = group
        self._first = first  # parameters of the modules before it
        # Now, since what is known of parameters by identity ends when they are gathered.
        state = run.state
        self.packing = tuple(
            "float32" if state._is_float32(parameter.sharded_param) else state.packing
            for parameter in group.fsdp_params
        )
        self._with_gradient: tuple[int, ...] = ()
        group.post_backward = self._post_backward

    def _post_backward(self, *unused: Any) -> None:
        """Note which parameters FSDP is going to average, those it has a gradient of: it does not say so later."""
        group = self._group
        self._with_gradient = tuple(
            i
            for i, parameter in enumerate(group.fsdp_params)
            if hasattr(parameter, "_unsharded_param")
            and (
                parameter.unsharded_accumulated_grad is not None
                or parameter.unsharded_param.grad is not None
                or (group.reduce_scatter_unused_params and parameter.unsharded_param.requires_grad)
            )
        )
        type(group).post_backward(group, *unused)

    @property
    def ranks(self) -> int:
        """Number of ranks that the parameters are sharded over."""
        return int(self._group.mesh_info.shard_mesh_size)

    @property
    def place(self) -> int:
        """Place of this rank among them."""
        return int(self._group.mesh_info.shard_mesh_rank)

    def begin(self, row: torch.Tensor, groups: _Groups, agreed: _Groups) -> _Shards:
        """Return the bucket of a call. `row`: like this rank's; `agreed`: who must agree on options and layers."""
        run, state = self.run, self.run.state
        run.begin(row.device)
        identity = (self._with_gradient, row.dtype, groups)
        bucket = state._buckets.get(self._name)
        if not isinstance(bucket, _Shards) or bucket.identity != identity:
            bucket = state._buckets[self._name] = self._made(row, groups, agreed, identity)
        if bucket.length != row.numel():
            raise RuntimeError(
                f"{self._name or 'the root module'}: the FSDP of PyTorch {torch.__version__} averages shards of "
                f"{row.numel()} elements, where that of PyTorch 2.13 has {bucket.length}"
            )
        # Bits that no other module, row, or call in this pass draws.
        turn = self.times * sum(len(member.packing) for member in run.members)
        self.times += 1
        bucket.layer = (turn + self._first) * run.most_ranks
        bucket.step = state.step
        return bucket

    def _made(self, row: torch.Tensor, groups: _Groups, agreed: _Groups, identity: Any) -> _Shards:
        state = self.run.state
        parameters = [self._group.fsdp_params[i] for i in self._with_gradient]
        packing = tuple(self.packing[i] for i in self._with_gradient)
        sizes = tuple(math.prod(parameter._orig_size) for parameter in parameters)
        dtype = dtype_name(row.dtype, "gradients")
        _check_agreement(
            {
                **state._options(),
                "module": self._name,
                "ranks of its shards": self.ranks,
                "dtype": dtype,
                "layers": sizes,
                "packing of layers": packing,
            },
            row.device,
            agreed,
        )
        rows, length = _rows(parameters, packing, self.ranks, "float32" if state.error_feedback else dtype, state.block)
        own = replace(rows[self.place].layout, form="flat")
        made = _Shards(self._name, identity, groups, sizes, dtype, row.device, 0, own, rows=rows, length=length)
        state._restore(made, row.device)
        return made


def _rows(
    parameters: Sequence[Any], packing: tuple[str, ...], ranks: int, dtype: str, block: int | None
) -> tuple[tuple[_Row, ...], int]:
    """Return the row of each rank, and the length that they have in common.

    A parameter that is sharded in its first dimension gives each rank equally many rows of it, rounded up, so that the
    last ranks have fewer or none; those that are sharded in another one FSDP cuts evenly.
    """
    of_each: list[list[slice]] = [[] for _ in range(ranks)]
    at = 0
    for parameter in parameters:
        size, dim = parameter._orig_size, parameter.fsdp_placement.dim
        number, inner = (size[0], math.prod(size[1:])) if dim == 0 else (size[dim], math.prod(size) // size[dim])
        most = -(-number // ranks)
        for rank, chunks in enumerate(of_each):
            chunks.append(slice(at, at + inner * min(max(number - rank * most, 0), most)))
        at += inner * most
    rows = []
    for chunks in of_each:
        shapes = [(chunk.stop - chunk.start,) for chunk in chunks]
        whole = sum(size for (size,) in shapes) == at
        rows.append(_Row(tuple(chunks), whole, Layout(shapes, dtype, packing, block, form="flat" if whole else "list")))
    return tuple(rows), at


class _ReduceScatter(_Member):
    """The replacement of FSDP's reduce-scatter (``FSDPModule.set_custom_reduce_scatter``)."""

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Return memory for the input or the output."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: Any, op: Any, async_op: bool = False
    ) -> None:
        """Leave this rank's shard of what `op` makes of the ranks' inputs in the output.

        Collectives follow one another in the caller's order, so FSDP's all-gathers in the same group keep their places.
        """
        state = self.run.state
        groups = _Groups.of(group, None)
        # Of a second dimension of the mesh, over which FSDP averages by itself afterwards.
        agreed = _Groups.of(group, getattr(self._group.mesh_info, "replicate_process_group", None))
        bucket = self.begin(output_tensor, groups, agreed)
        bucket.bytes_float32 = 4 * (groups.world - 1) * bucket.length
        if state.step < state.start_step:
            bucket.sent = (groups.world - 1) * output_tensor.nbytes
            _reduce_scatter(output_tensor, input_tensor, op=op, group=group)
        else:
            self._exchange(bucket, output_tensor, input_tensor, self._weight(op))
        bucket.done = _mark(bucket.device)

    def _exchange(self, bucket: _Shards, output: torch.Tensor, x: torch.Tensor, weight: float) -> None:
        state, world = self.run.state, bucket.groups.world
        lengths = [row.layout.nbytes for row in bucket.rows]
        own = bucket.rows[self.place]
        message = x.new_empty(sum(lengths), dtype=torch.uint8)
        received = x.new_empty((world, own.layout.nbytes), dtype=torch.uint8)
        with _Timed(bucket):
            for i, (row, flat, part) in enumerate(
                zip(bucket.rows, x.view(world, -1), message.split(lengths), strict=True)
            ):
                tk.encode(
                    row.of(flat),
                    clip=state.clip,
                    seed=state.seed + dist.get_rank(),
                    offset=bucket.step,
                    layer=bucket.layer + i * len(self.packing),
                    layout=row.layout,
                    out=part,
                )
        bucket.sent = message.nbytes - own.layout.nbytes
        dist.all_to_all_single(
            received.view(-1), message, [own.layout.nbytes] * world, lengths, group=bucket.groups.between
        )
        with _Timed(bucket):
            if not own.whole:
                output.zero_()  # the padding too, which a later all-reduce reads
            tk.decode_sum(Packed(own.layout, received), weights=[weight] * world, out=own.of(output))

    def _weight(self, op: Any) -> float:
        """Return the factor of each rank's input in `op`. FSDP itself may divide before and after it."""
        if op == dist.ReduceOp.AVG:
            return 1.0 / self.ranks
        if op == dist.ReduceOp.SUM:
            return 1.0
        if op == dist.ReduceOp.PREMUL_SUM:
            return 1.0 / float(self._group.gradient_divide_factor)
        raise ValueError(f"op: expected AVG, SUM or PREMUL_SUM, got {op}")


class _AllReduceHook(_Member):
    """The hook that FSDP calls with the shard from its own reduce-scatter (``FSDPModule.set_all_reduce_hook``)."""

    def __call__(self, reduce_output: torch.Tensor) -> None:
        """Average it over the nodes, in place."""
        state = self.run.state
        both = _Groups.of(state.process_group, state.local_group)
        between = replace(both, inside=None)
        bucket = self.begin(reduce_output, between, both)
        bucket.layer += self.place * len(self.packing)
        bucket.bytes_float32 = ring_bytes(4 * bucket.length, between.world)
        bucket.sent_inside = (self.ranks - 1) * reduce_output.nbytes  # by FSDP
        own = bucket.rows[self.place]
        if own.layout.size:  # else this rank, and those of its place in the other nodes, have padding alone
            x = reduce_output if own.whole else torch.cat(own.of(reduce_output))
            average = _plain if state.step < state.start_step else _gather_over
            exchange = average(state, bucket, x, between)
            _finish(exchange, next(exchange, None))
            if not own.whole:
                for chunk, mean in zip(own.of(reduce_output), x.split(own.layout.sizes), strict=True):
                    chunk.copy_(mean)
        if reduce_output.is_cuda:  # FSDP made it on another stream, and may let go of it before this one is done
            reduce_output.record_stream(torch.cuda.current_stream(reduce_output.device))
        bucket.done = _mark(bucket.device)


def apply_terngrad(model: torch.nn.Module, state: TernGradState) -> None:
    """Average the gradients of a fully sharded model as trits from now on: ``apply_terngrad(model, TernGradState())``.

    After all calls of ``fully_shard``, on every rank. With the strategy ``gather`` each rank's shard of an average has
    the bits of `decode_sum` of the ranks' messages for it; layers have a scale for each shard. With ``hierarchical``,
    where ``local_group`` is the group that the model is sharded over, FSDP averages inside it, and `decode_sum` over
    ``process_group``, the ranks of one place in each node.

    Parameters
    ----------
    model : torch.nn.Module
        Model that ``torch.distributed.fsdp.fully_shard`` has sharded, itself or modules in it. Its small layers are
        carried as float32, as with the `model` of `TernGradState`.
    state : TernGradState
        Options and step; one state per model. ``float32`` is called with the sharded parameters, whose shape is that of
        the whole. ``overlap`` is ignored: FSDP's streams overlap.

    Raises
    ------
    TypeError, ValueError
        For a model without FSDP modules; for strategies, groups or modules that this cannot serve.
    RuntimeError
        If this PyTorch's FSDP has other parts than that of PyTorch 2.13. From the backward pass, as `terngrad_hook`.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    _require_state(state)
    if state.strategy not in STRATEGIES:
        raise ValueError(
            f"state: expected one of the strategies {', '.join(STRATEGIES)}, got {state.strategy!r}: "
            "what gives every rank the whole average has no use where each needs its shard"
        )
    nodes = state.strategy == "hierarchical"
    if state.error_feedback and not nodes:
        raise ValueError(
            f"state: expected error_feedback=False with the strategy {state.strategy!r}, got True: "
            "each rank would keep the residuals of all parameters, not only of its shards"
        )
    if state.process_group is not None and not nodes:
        raise ValueError(
            f"state: expected process_group=None with the strategy {state.strategy!r}, got one: FSDP has its own groups"
        )
    found = _fsdp_groups(model)
    for name, group in found:
        _require_served(name, group, state)
    state._small = _small_parameters(model)
    run = _Run(state)
    run.most_ranks = max(int(group.mesh_info.shard_mesh_size) for _, group in found)
    first = 0
    for name, group in found:
        module = group.modules[0]
        if nodes:
            hook = _AllReduceHook(run, name, group, first)
            module.set_all_reduce_hook(hook)
            run.members.append(hook)
        else:
            comm = _ReduceScatter(run, name, group, first)
            module.set_custom_reduce_scatter(comm)
            run.members.append(comm)
        first += len(group.fsdp_params)


def _fsdp_groups(model: torch.nn.Module) -> list[tuple[str, Any]]:
    """Return the name of each FSDP module and its group of parameters; those without parameters have none."""
    found: dict[int, tuple[str, Any]] = {}
    for name, module in model.named_modules():
        if not isinstance(module, FSDPModule):
            continue
        for part in ("set_custom_reduce_scatter", "set_all_reduce_hook", "_get_fsdp_state"):
            _require_part(module, part, "FSDPModule")
        fsdp_state = module._get_fsdp_state()
        _require_part(fsdp_state, "_fsdp_param_groups", "FSDPState")
        groups = fsdp_state._fsdp_param_groups
        if len(groups) > 1:
            raise ValueError(f"model: expected one group of parameters in {name or 'the root'}, got {len(groups)}")
        for group in groups:  # modules that were sharded together have one
            found.setdefault(id(group), (name, group))
    if not found:
        raise ValueError("model: expected modules sharded by torch.distributed.fsdp.fully_shard, found none")
    return list(found.values())


_GROUP_PARTS = (
    "modules",
    "fsdp_params",
    "mesh_info",
    "post_backward",
    "gradient_divide_factor",
    "reduce_scatter_unused_params",
)
_PARAMETER_PARTS = ("sharded_param", "unsharded_param", "unsharded_accumulated_grad", "fsdp_placement", "_orig_size")


def _require_served(name: str, group: Any, state: TernGradState) -> None:
    for part in _GROUP_PARTS:
        _require_part(group, part, "FSDPParamGroup")
    for parameter in group.fsdp_params:
        for part in _PARAMETER_PARTS:
            _require_part(type(parameter) if part == "unsharded_param" else parameter, part, "FSDPParam")
    mesh = group.mesh_info
    where = name or "the root"
    if not hasattr(mesh, "shard_process_group"):
        raise ValueError(f"model: expected {where} to be sharded, got it replicated")
    if state.strategy != "hierarchical":
        return
    if hasattr(mesh, "replicate_process_group"):
        raise ValueError(
            f"model: expected {where} to be sharded over a mesh of one dimension, the ranks of a node, got two "
            "dimensions: FSDP averages over the other one first"
        )
    ranks, local = (
        sorted(dist.get_process_group_ranks(each)) for each in (mesh.shard_process_group, state.local_group)
    )
    if ranks != local:
        raise ValueError(f"state: expected the local_group {ranks} that {where} is sharded over, got {local}")
    _Groups.of(state.process_group, state.local_group)  # which says what is wrong with them


def _require_part(thing: Any, part: str, kind: str) -> None:
    if not hasattr(thing, part):
        raise RuntimeError(
            f"terngrad_kernels.torch_fsdp: {kind} of PyTorch {torch.__version__} has no {part}, "
            "which that of PyTorch 2.13 has"
        )
