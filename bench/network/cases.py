"""What is measured: PyTorch's communication hooks, peers re-stated as such hooks, and ours; and what each should send.

A case makes a hook for one process of a group. PyTorch's own are taken as they are, those that refuse gloo included.
The re-stated ones follow what their papers and programs say; no source text is taken over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook, quantization_hooks

from terngrad_kernels.bench.peers import grace_compress
from terngrad_kernels.torch import TernGradState, terngrad_hook

Future = torch.futures.Future
Hook = Callable[[Any, Any], Any]

#: Elements of a row of the int8 hooks, which have a scale each: PyTorch's default.
ROW = 512


@dataclass(frozen=True)
class Case:
    """One way to average gradients.

    `make` returns state and hook; `sent(elements, nodes, local)` the payload bytes that each node sends in an exchange,
    None where it depends on more than these. `peer`: whose it is.
    """

    name: str
    peer: str
    make: Callable[[torch.nn.Module, Any], tuple[Any, Hook]]
    sent: Callable[[int, int, int], float] | None = None
    #: Seconds that its own arithmetic takes for ResNet-50, about, where that is much: fewer rounds then.
    slow: float = 0.0
    #: Whether this case is for several processes a node alone.
    local: bool = False
    #: Seconds after which a group gives up, where a hang is known.
    timeout: float | None = None
    #: What its bytes are fewer than float32's by, on paper, is asked of it end to end (targets).
    ours: bool = False


def _ring(bytes_per_element: float) -> Callable[[int, int, int], float]:
    """A ring all-reduce over all processes, those of a node side by side: one of them sends to the next node."""

    def sent(elements: int, nodes: int, local: int) -> float:
        ranks = nodes * local
        return bytes_per_element * elements * 2 * (ranks - 1) / ranks

    return sent


def _gathered(bytes_per_element: float) -> Callable[[int, int, int], float]:
    return lambda elements, nodes, local: bytes_per_element * elements * (nodes * local - 1)


# ---- PyTorch's


def _float32(_model: torch.nn.Module, _groups: Any) -> tuple[Any, Hook]:
    return None, default_hooks.allreduce_hook


def _fp16(_model: torch.nn.Module, _groups: Any) -> tuple[Any, Hook]:
    return None, default_hooks.fp16_compress_hook


def _bf16(_model: torch.nn.Module, _groups: Any) -> tuple[Any, Hook]:
    return None, default_hooks.bf16_compress_hook


def _int8(_model: torch.nn.Module, _groups: Any) -> tuple[Any, Hook]:
    return None, quantization_hooks.quantization_perchannel_hook


def _power(_model: torch.nn.Module, _groups: Any) -> tuple[Any, Hook]:
    state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=1, start_powerSGD_iter=2)
    return state, powerSGD_hook.powerSGD_hook


# ---- peers, re-stated


def _done(x: torch.Tensor) -> Any:
    future: Any = Future()
    future.set_result(x)
    return future


def bf16_restated(_state: Any, bucket: Any) -> Any:
    """An all-reduce of bfloat16, which gloo has."""
    x = bucket.buffer()
    half = x.bfloat16().div_(dist.get_world_size())
    sum_of_halves = dist.all_reduce(half, async_op=True).get_future()
    return sum_of_halves.then(lambda done: x.copy_(done.value()[0]))


def int8_restated(_state: Any, bucket: Any) -> Any:
    """Rows of 512 between their minimum and maximum in 256 levels, all-gathered; every process adds all of them."""
    world, x = dist.get_world_size(), bucket.buffer()
    rows = torch.nn.functional.pad(x, (0, -x.numel() % ROW)).view(-1, ROW)
    low, high = rows.aminmax(dim=1, keepdim=True)
    step = ((high - low) / 255).clamp_min(torch.finfo(torch.float32).tiny)
    codes = ((rows - low) / step).round().to(torch.uint8)
    ranges = torch.cat([low, step], 1)
    all_ranges = ranges.new_empty((world * len(rows), 2))
    all_codes = codes.new_empty((world * len(rows), ROW))
    dist.all_gather_into_tensor(all_ranges, ranges)
    dist.all_gather_into_tensor(all_codes, codes)
    total = torch.zeros_like(rows)
    for part, part_ranges in zip(all_codes.chunk(world), all_ranges.chunk(world), strict=True):
        total += part * part_ranges[:, 1:] + part_ranges[:, :1]
    x.copy_((total / world).view(-1)[: x.numel()])
    return _done(x)


def grace_restated(_state: Any, bucket: Any) -> Any:
    """GRACE's TernGrad with its all-gather: int8 trits and a scalar, layer by layer, each gathered before the next."""
    world = dist.get_world_size()
    for layer in bucket.gradients():
        codes, scalar = grace_compress(layer)
        all_codes, all_scalars = codes.new_empty(world * codes.numel()), scalar.new_empty(world)
        dist.all_gather_into_tensor(all_codes, codes)
        dist.all_gather_into_tensor(all_scalars, scalar)
        total = torch.zeros_like(layer).view(-1)
        for part, its_scalar in zip(all_codes.chunk(world), all_scalars, strict=True):
            total += part * its_scalar
        layer.copy_((total / world).view(layer.shape))
    return _done(bucket.buffer())


# DDP looks at the annotations of hooks.
for _hook in (bf16_restated, int8_restated, grace_restated):
    _hook.__annotations__ = {}


def _of(hook: Hook) -> Callable[[torch.nn.Module, Any], tuple[Any, Hook]]:
    return lambda _model, _groups: (None, hook)


# ---- ours


def _ours(strategy: str, packing: str, **options: Any) -> Callable[[torch.nn.Module, Any], tuple[Any, Hook]]:
    def make(model: torch.nn.Module, groups: Any) -> tuple[Any, Hook]:
        places = {"process_group": groups[0], "local_group": groups[1]} if strategy == "hierarchical" else {}
        return TernGradState(model, strategy=strategy, packing=packing, **options, **places), terngrad_hook

    return make


def _cases() -> Sequence[Case]:
    torchs = "PyTorch"
    cases = [
        Case("float32", torchs, _float32, _ring(4)),
        Case("fp16 hook", torchs, _fp16, _ring(2)),
        Case("bf16 hook", torchs, _bf16, _ring(2)),
        Case("int8 hook", torchs, _int8, _gathered(1 + 8 / ROW)),
        Case("PowerSGD hook, rank 1", torchs, _power, timeout=15.0),
        Case("bf16 re-stated", "re-stated", _of(bf16_restated), _ring(2)),
        Case("int8 re-stated", "re-stated", _of(int8_restated), _gathered(1 + 8 / ROW), slow=2.0),
        Case("GRACE's TernGrad", "re-stated", _of(grace_restated), _gathered(1), slow=2.0),
    ]
    for strategy in ("gather", "sum", "requantize", "hierarchical"):
        for packing in ("two_bit", "base3"):
            name = f"{strategy} {packing}"
            cases.append(Case(name, "ours", _ours(strategy, packing), local=strategy == "hierarchical", ours=True))
    for strategy in ("gather", "sum", "requantize"):
        waiting = _ours(strategy, "two_bit", overlap=False)
        cases.append(Case(f"{strategy} two_bit, waiting in the hook", "ours", waiting, ours=True))
    return cases


CASES = {case.name: case for case in _cases()}
