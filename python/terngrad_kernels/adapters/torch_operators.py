"""PyTorch operators: `torch.ops.terngrad_kernels.*`, registered when the first tensor is passed in.

An operator takes a layout as plain fields, and does its work by calling the public function: what is checked, allocated
and run is said there alone, for every device. Beside it stands its fake kernel, which knows the sizes of results. A
result of several layers is one flat tensor.

A step counter must not make a compiler start anew: `seed`, `offset` and `layer` are symbolic integers to the operators.
Where seed or offset is a tensor, it is passed as `seed_tensor` or `offset_tensor`, and the integer is not looked at.
Tensors that require grad are data: autograd does not see the operators.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch

from .. import _core, operations
from ..layout import COUNTS, Layout, packing_code
from ..packed import Counts, Packed, Scales, counts_for

_library = torch.library.Library("terngrad_kernels", "DEF")

_LAYOUT = "int[] sizes, str[] packings, int? block, int shards, int? index"
_WORDS = "SymInt seed, SymInt offset, Tensor? seed_tensor, Tensor? offset_tensor, SymInt layer"
_PASSED = "float? clip, Tensor? scale, Tensor? limit"
# Outputs must be dense; an inductor of versions that know no exact strides keeps their order, which comes to the same.
_TAGS = (
    torch.Tag.pt2_compliant_tag,
    getattr(torch.Tag, "needs_exact_strides", torch.Tag.needs_fixed_stride_order),
)


def _define(arguments: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as the operator of its name, for every device, and `fake` as what it gives without one."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        name = function.__name__.removeprefix("_run_")
        _library.define(f"{name}{arguments}", tags=_TAGS)
        _library.impl(name, function, "CompositeExplicitAutograd")
        _library.impl(name, torch.library.fallthrough_kernel, "Autograd")
        torch.library.register_fake(f"terngrad_kernels::{name}", fake, lib=_library)
        return function

    return register


@lru_cache(maxsize=1024)
def _cached_layout(
    sizes: tuple[int, ...],
    packings: tuple[str, ...],
    block: int | None,
    shards: int,
    index: int | None,
    dtype: Any,
    form: str,
) -> Layout:
    packing = packings[0] if len(packings) == 1 else packings
    return Layout([(size,) for size in sizes], dtype, packing, block, shards, form, index)


def _layout(
    sizes: Sequence[int],
    packings: Sequence[str],
    block: int | None,
    shards: int,
    index: int | None,
    dtype: Any = "float32",
    form: str = "flat",
) -> Layout:
    # Not `map(int, ...)`: a symbolic size of a traced program is made a number here, and guarded.
    plain = tuple(operator.index(size) for size in sizes)
    return _cached_layout(plain, tuple(packings), block, shards, index, dtype, form)


def _given(tensors: Sequence[Any]) -> Any:
    """Return a list as the public functions take it: one tensor is a layer or a flat array of all."""
    return tensors[0] if len(tensors) == 1 else list(tensors)


def _message(layout: Layout, data: Any) -> Packed | Counts:
    """Return a message of any kind; what its packing does not say of the number of workers, decoding does not need."""
    for name in layout.counts:
        return Counts(layout, COUNTS[name], data)
    return Packed(layout, data)


def _scales(scale: Any, limit: Any) -> Scales | None:
    return None if scale is None else Scales(scale, limit)


def _flat(x: Sequence[Any], dtype: Any) -> tuple[Any, Any]:
    """Return a new flat tensor for a result of each layer, and the parts to write, as `out` takes them."""
    sizes = [tensor.numel() for tensor in x]
    flat = x[0].new_empty(sum(sizes), dtype=dtype)
    return flat, _given(flat.split(sizes))


def _fake_encode(x: Any, sizes: Any, packings: Any, block: Any, shards: int, index: Any, *others: Any) -> Any:
    return x[0].new_empty(_layout(sizes, packings, block, shards, index).nbytes, dtype=torch.uint8)


@_define(f"(Tensor[] x, {_LAYOUT}, {_PASSED}, {_WORDS}) -> Tensor", _fake_encode)
def _run_encode(
    x: Any,
    sizes: Any,
    packings: Any,
    block: Any,
    shards: int,
    index: Any,
    clip: Any,
    scale: Any,
    limit: Any,
    seed: int,
    offset: int,
    seed_tensor: Any,
    offset_tensor: Any,
    layer: int,
) -> Any:
    return operations.encode(
        _given(x),
        clip=clip,
        seed=seed if seed_tensor is None else seed_tensor,
        offset=offset if offset_tensor is None else offset_tensor,
        layer=layer,
        scales=_scales(scale, limit),
        layout=_layout(sizes, packings, block, shards, index, x[0].dtype),
    ).data


def _fake_decode(
    data: Any, sizes: Any, packings: Any, block: Any, shards: int, index: Any, weight: Any, dtype: Any
) -> Any:
    return data.new_empty(_layout(sizes, packings, block, shards, index).size, dtype=dtype)


@_define(f"(Tensor data, {_LAYOUT}, float weight, ScalarType dtype) -> Tensor", _fake_decode)
def _run_decode(
    data: Any, sizes: Any, packings: Any, block: Any, shards: int, index: Any, weight: Any, dtype: Any
) -> Any:
    packed = _message(_layout(sizes, packings, block, shards, index), data)
    return operations.decode(packed, weight=weight, dtype=dtype)


@_define(
    f"(Tensor data, {_LAYOUT}, float weight, bool accumulate, Tensor(a!)[] out) -> ()",
    lambda *arguments: None,
)
def _run_decode_out(
    data: Any, sizes: Any, packings: Any, block: Any, shards: int, index: Any, weight: Any, accumulate: bool, out: Any
) -> None:
    form = "flat" if len(out) == 1 else "list"
    packed = _message(_layout(sizes, packings, block, shards, index, form=form), data)
    operations.decode(packed, weight=weight, accumulate=accumulate, out=_given(out))


def _messages(messages: Any, layout: Layout) -> Any:
    return _given([_message(layout, data) for data in messages])


def _fake_decode_sum(
    messages: Any, sizes: Any, packings: Any, block: Any, shards: int, index: Any, weights: Any, dtype: Any
) -> Any:
    return messages[0].new_empty(_layout(sizes, packings, block, shards, index).size, dtype=dtype)


@_define(f"(Tensor[] messages, {_LAYOUT}, float[]? weights, ScalarType dtype) -> Tensor", _fake_decode_sum)
def _run_decode_sum(
    messages: Any, sizes: Any, packings: Any, block: Any, shards: int, index: Any, weights: Any, dtype: Any
) -> Any:
    layout = _layout(sizes, packings, block, shards, index)
    return operations.decode_sum(_messages(messages, layout), weights=weights, dtype=dtype)


@_define(
    f"(Tensor[] messages, {_LAYOUT}, float[]? weights, Tensor(a!)[] out) -> ()",
    lambda *arguments: None,
)
def _run_decode_sum_out(
    messages: Any, sizes: Any, packings: Any, block: Any, shards: int, index: Any, weights: Any, out: Any
) -> None:
    layout = _layout(sizes, packings, block, shards, index, form="flat" if len(out) == 1 else "list")
    operations.decode_sum(_messages(messages, layout), weights=weights, out=_given(out))


def _summed(sizes: Any, packings: Any, block: Any, shards: int, index: Any, workers: Any) -> list[Layout]:
    """Return the layouts of several messages, whose packings come one after the other, one per layer."""
    each = len(packings) // len(workers)
    return [
        _layout(sizes, packings[i * each : (i + 1) * each] or ["two_bit"], block, shards, index)
        for i in range(len(workers))
    ]


def _fake_sum_trits(messages: Any, sizes: Any, packings: Any, block: Any, shards: int, index: Any, workers: Any) -> Any:
    layouts = _summed(sizes, packings, block, shards, index, workers)
    rows = messages[0].shape[0] if messages[0].ndim == 2 else 1
    total = operator.index(rows) * sum(count or 1 for count in workers)
    return messages[0].new_empty(layouts[0].with_ternary(counts_for(total)).nbytes, dtype=torch.uint8)


@_define(f"(Tensor[] messages, {_LAYOUT}, int[] workers) -> Tensor", _fake_sum_trits)
def _run_sum_trits(messages: Any, sizes: Any, packings: Any, block: Any, shards: int, index: Any, workers: Any) -> Any:
    layouts = _summed(sizes, packings, block, shards, index, workers)
    items = [
        Counts(layout, count, data) if count else Packed(layout, data)
        for layout, count, data in zip(layouts, workers, messages, strict=True)
    ]
    return operations.sum_trits(_given(items)).data


def _fake_repack(
    messages: Any, sizes: Any, packings: Any, block: Any, shards: int, index: Any, weights: Any, to: Any, *others: Any
) -> Any:
    return messages[0].new_empty(_layout(sizes, to, block, shards, index).nbytes, dtype=torch.uint8)


@_define(f"(Tensor[] messages, {_LAYOUT}, float[]? weights, str[] to, {_PASSED}, {_WORDS}) -> Tensor", _fake_repack)
def _run_repack(
    messages: Any,
    sizes: Any,
    packings: Any,
    block: Any,
    shards: int,
    index: Any,
    weights: Any,
    to: Any,
    clip: Any,
    scale: Any,
    limit: Any,
    seed: int,
    offset: int,
    seed_tensor: Any,
    offset_tensor: Any,
    layer: int,
) -> Any:
    layout = _layout(sizes, packings, block, shards, index)
    return operations.repack(
        _messages(messages, layout),
        seed=seed if seed_tensor is None else seed_tensor,
        offset=offset if offset_tensor is None else offset_tensor,
        layer=layer,
        weights=weights,
        clip=clip,
        scales=_scales(scale, limit),
        packing=_layout(sizes, to, block, shards, index).packing,
    ).data


def _fake_scales(
    x: Any, sizes: Any, packings: Any, block: Any, shards: int, index: Any, clip: Any, center: bool
) -> Any:
    groups = _layout(sizes, packings, block, shards, index).groups
    return x[0].new_empty(groups, dtype=torch.float32), x[0].new_empty(groups, dtype=torch.float32)


@_define(f"(Tensor[] x, {_LAYOUT}, float? clip, bool center) -> (Tensor scale, Tensor limit)", _fake_scales)
def _run_scales(x: Any, sizes: Any, packings: Any, block: Any, shards: int, index: Any, clip: Any, center: bool) -> Any:
    layout = _layout(sizes, packings, block, shards, index, x[0].dtype)
    return tuple(operations.scales(_given(x), clip=clip, center=center, layout=layout))


def _fake_clip(x: Any, *others: Any) -> Any:
    return _flat(x, x[0].dtype)[0]


@_define(f"(Tensor[] x, {_PASSED}, bool center) -> Tensor", _fake_clip)
def _run_clip(x: Any, clip: Any, scale: Any, limit: Any, center: bool) -> Any:
    flat, parts = _flat(x, x[0].dtype)
    operations.clip(_given(x), clip=clip, center=center, scales=_scales(scale, limit), out=parts)
    return flat


def _fake_ternarize(x: Any, *others: Any) -> Any:
    return _flat(x, torch.int8)[0], x[0].new_empty(len(x), dtype=torch.float32)


@_define(f"(Tensor[] x, {_PASSED}, {_WORDS}) -> (Tensor trits, Tensor scale)", _fake_ternarize)
def _run_ternarize(
    x: Any,
    clip: Any,
    scale: Any,
    limit: Any,
    seed: int,
    offset: int,
    seed_tensor: Any,
    offset_tensor: Any,
    layer: int,
) -> Any:
    flat, parts = _flat(x, torch.int8)
    own = x[0].new_empty(len(x), dtype=torch.float32)
    operations.ternarize(
        _given(x),
        clip=clip,
        seed=seed if seed_tensor is None else seed_tensor,
        offset=offset if offset_tensor is None else offset_tensor,
        layer=layer,
        scales=_scales(scale, limit),
        out=(parts, own),
    )
    return flat, own


def _fake_pack(trits: Any, packing: str) -> Any:
    return trits.new_empty(_core.payload_bytes(packing_code(packing), operator.index(trits.numel())), dtype=torch.uint8)


@_define("(Tensor trits, str packing) -> Tensor", _fake_pack)
def _run_pack(trits: Any, packing: str) -> Any:
    return operations.pack(trits, packing=packing)


def _fake_unpack(payload: Any, size: int, packing: str) -> Any:
    return payload.new_empty(size, dtype=torch.int8)


@_define("(Tensor payload, int size, str packing) -> Tensor", _fake_unpack)
def _run_unpack(payload: Any, size: int, packing: str) -> Any:
    return operations.unpack(payload, shape=size, packing=packing)
