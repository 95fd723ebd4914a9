"""The public functions as PyTorch's compilers record them; imported while one is at work.

TorchDynamo reads the source of what it compiles instead of running it, and cannot follow caches and compiled objects.
So each public function first calls its namesake here (`adapters.path_of`), which records one operator of
`torch_operators` and splits its result. `torch.export` takes the same path, with tensors that have no values.

Layouts are static: a symbolic size is guarded to be the one that was seen, and another one is recorded anew.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch._subclasses import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from .. import operations
from ..layout import COUNTS, DTYPES, ENCODED, TERNARY, Layout, _packings, _require_alike, dtype_name, packing_code
from ..packed import Counts, Packed, Scales, counts_for
from .torch import adapter

__all__ = [
    "clip",
    "decode",
    "decode_sum",
    "encode",
    "is_recorded",
    "pack",
    "repack",
    "scales",
    "sum_trits",
    "ternarize",
    "unpack",
    "validate",
]

_operators = torch.ops.terngrad_kernels
_DTYPES = {name: getattr(torch, name) for name in DTYPES}


def is_recorded(x: Any) -> bool:
    """Return whether `x` is, or contains, a tensor without values: another thread may be compiling."""
    first = x[0] if isinstance(x, (list, tuple)) and x else x
    if isinstance(first, (Packed, Counts)):
        first = first.data
    if torch.compiler.is_dynamo_compiling():
        return isinstance(first, (torch.Tensor, list, tuple))  # an empty list is a tensor's too where PyTorch compiles
    return isinstance(first, (FakeTensor, FunctionalTensor))


def _made(
    shapes: Any, dtype: str, packing: Any, block: Any, shards: int, form: str, index: int | None, encoded: bool
) -> Layout | str:
    """Return a layout, or the text of an error: a compiler shows only what its program raises itself."""
    try:
        if encoded:
            packing = _packings(packing, len(shapes), ENCODED)
        return Layout(shapes, dtype, packing, block, shards, form, index)
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


_constant_layout = torch.compiler.assume_constant_result(_made)


def _shape(shape: Iterable[int]) -> tuple[int, ...]:
    """Return a shape as numbers: layouts are static, so a symbolic size is guarded to be the one seen."""
    return tuple([operator.index(size) for size in shape])


def _fields(layout: Layout) -> tuple[Any, ...]:
    """Return a layout as operators take it."""
    packings = [layout.packing] if isinstance(layout.packing, str) else list(layout.packing)
    sizes = [math.prod(_shape(shape)) for shape in layout.shapes]
    return sizes, packings, layout.block, layout.shards, layout.index


def _tensor(x: Any, argument: str) -> Any:
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{argument}: expected a tensor in a compiled function, got {type(x).__name__}")
    return x.detach()


def _layers(x: Any) -> tuple[list[Any], tuple[tuple[int, ...], ...], str, str]:
    """Return the tensors of a bucket, their shapes, the name of their dtype, and the form."""
    if not isinstance(x, (list, tuple)):
        tensor = _tensor(x, "x")
        return [tensor], (_shape(x.shape),), _float_name(tensor, "x"), "array"
    if not x:
        return [torch.empty(0)], (), "float32", "list"  # read as the flat array of no layers
    tensors = [_tensor(item, f"x[{i}]") for i, item in enumerate(x)]
    name = _float_name(tensors[0], "x[0]")
    for i, tensor in enumerate(tensors):
        if tensor.dtype != tensors[0].dtype:
            other = str(tensor.dtype).partition(".")[2]
            raise TypeError(f"x[{i}]: expected {name} as x[0] is, got {other}")
        if tensor.device != tensors[0].device:
            raise ValueError(f"x[{i}]: expected device {tensors[0].device} as x[0] is on, got {tensor.device}")
    return tensors, tuple([_shape(tensor.shape) for tensor in tensors]), name, "list"


def _float_name(tensor: Any, argument: str) -> str:
    name = str(tensor.dtype).partition(".")[2]
    if name not in DTYPES:
        raise TypeError(f"{argument}: expected {', '.join(DTYPES)}, got torch {name}")
    return name


def _layout_for(
    shapes: tuple[tuple[int, ...], ...], dtype: str, form: str, packing: Any, block: Any, layout: Any
) -> Layout:
    """Return the layout of what was passed in, or the given one."""
    if layout is not None:
        if packing is not None or block is not None:
            name, value = ("block", block) if packing is None else ("packing", packing)
            raise ValueError(f"{name}: expected None where a layout is given, got {value!r}")
        return operations._given_layout(layout, operations._Bucket(adapter, (), None, shapes, dtype, form))
    return _layout(shapes, dtype, "two_bit" if packing is None else packing, block, form, encoded=True)


def _layout(
    shapes: Any,
    dtype: str,
    packing: Any,
    block: Any,
    form: str,
    shards: int = 1,
    index: int | None = None,
    *,
    encoded: bool = False,
) -> Layout:
    """Return a layout that is a constant of the program; `encoded`: of what `encode` can make."""
    if isinstance(packing, list):
        packing = tuple(packing)
    made: Layout | str = _constant_layout(shapes, dtype, packing, block, shards, form, index, encoded)
    if isinstance(made, str):
        kind, _, text = made.partition(": ")
        raise TypeError(text) if kind == "TypeError" else ValueError(text)
    return made


def _repacked(layout: Layout, packing: Any) -> Layout:
    """Return the layout of the same pieces, packed in another way."""
    shapes = tuple([_shape(shape) for shape in layout.shapes])
    return _layout(shapes, layout.dtype, packing, layout.block, layout.form, layout.shards, layout.index)


def _with_ternary(layout: Layout, packing: str) -> Any:
    """Return the packing of a layout with another one for all layers but those carried as float32."""
    if isinstance(layout.packing, str):
        return layout.packing if layout.packing == "float32" else packing
    return tuple([name if name == "float32" else packing for name in layout.packing])


def _no_stream(stream: Any) -> None:
    if stream is not None:
        raise ValueError("stream: a compiled function runs on its caller's stream, expected None")


def _passed(passed: Any) -> tuple[Any, Any]:
    if passed is None:
        return None, None
    if not isinstance(passed, tuple) or len(passed) != 2:
        raise TypeError(f"scales: expected a Scales (scale, limit), got {type(passed).__name__}")
    return _tensor(passed[0], "scales.scale"), _tensor(passed[1], "scales.limit")


def _word(value: Any, argument: str) -> tuple[Any, Any]:
    """Return a seed or an offset as an int64 and a tensor, of which one counts."""
    if isinstance(value, torch.Tensor):
        return 0, value.detach()
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(
            f"{argument}: expected an int, a 0-d int64 array or a uint32 array (low, high), got {type(value).__name__}"
        )
    if not -(2**63) <= value < 2**64:
        raise ValueError(f"{argument}: expected an int from -2**63 to 2**64 - 1, got {value}")
    return (value - 2**64 if value >= 2**63 else value), None


def _words(seed: Any, offset: Any, layer: Any) -> tuple[Any, ...]:
    (seed, seed_tensor), (offset, offset_tensor) = _word(seed, "seed"), _word(offset, "offset")
    return seed, offset, seed_tensor, offset_tensor, layer


def _written(result: Any, out: Any, argument: str = "out") -> Any:
    """Return a result, or `out` with the result in it."""
    if out is None:
        return result
    target = _target(out, argument)
    if target.dtype != result.dtype:
        wanted, given = (str(tensor.dtype).partition(".")[2] for tensor in (result, target))
        raise TypeError(f"{argument}: expected {wanted}, got {given}")
    if target.numel() != result.numel():
        raise ValueError(f"{argument}: expected {result.numel()} elements, got {target.numel()}")
    target.view(-1).copy_(result.view(-1))
    return out


def _target(out: Any, argument: str) -> Any:
    target = _tensor(out, argument)
    if not target.is_contiguous():
        raise ValueError(f"{argument}: expected a dense row-major array, got one with other strides")
    return target


def _parts(flat: Any, shapes: Sequence[tuple[int, ...]], form: str, out: Any = None, argument: str = "out") -> Any:
    """Return a flat result in the form of a layout, or `out` with the result in it."""
    if form == "flat":
        return _written(flat, out, argument)
    if form == "array":
        return _written(flat.view(shapes[0]), out, argument)
    parts = [
        part.view(shape) for part, shape in zip(flat.split([math.prod(shape) for shape in shapes]), shapes, strict=True)
    ]
    if out is None:
        return parts
    _require_list(out, len(parts))
    for i, part in enumerate(parts):
        _written(part, out[i], f"{argument}[{i}]")
    return out


def _require_list(out: Any, count: int) -> None:
    if not isinstance(out, (list, tuple)):
        raise TypeError(f"out: expected a list of {count} arrays, got {type(out).__name__}")
    if len(out) != count:
        raise ValueError(f"out: expected {count} arrays, got {len(out)}")


def _outputs(layout: Layout, out: Any, dtype: Any) -> list[Any]:
    """Return the tensors that a decoding writes to."""
    if layout.form == "list":
        _require_list(out, len(layout.shapes))
        targets = [_target(item, f"out[{i}]") for i, item in enumerate(out)]
    else:
        targets = [_target(out, "out")]
    for target in targets:
        name = _float_name(target, "out")
        if dtype is not None and name != dtype_name(dtype):
            raise TypeError(f"out: expected {dtype_name(dtype)} as dtype says, got {name}")
    return targets


def _decoded_dtype(layout: Layout, dtype: Any) -> Any:
    return _DTYPES[layout.dtype if dtype is None else dtype_name(dtype)]


def _decoded(flat: Any, layout: Layout) -> Any:
    return _parts(flat, tuple([_shape(shape) for shape in layout.shapes]), layout.form)


def encode(
    x: Any,
    *,
    clip: Any,
    seed: Any,
    offset: Any,
    layer: Any,
    packing: Any,
    block: Any,
    scales: Any,
    layout: Any,
    out: Any,
    stream: Any,
) -> Packed:
    """Record `terngrad_kernels.encode`."""
    _no_stream(stream)
    tensors, shapes, dtype, form = _layers(x)
    layout = _layout_for(shapes, dtype, form, packing, block, layout)
    scale, limit = _passed(scales)
    data = _operators.encode(tensors, *_fields(layout), clip, scale, limit, *_words(seed, offset, layer))
    return Packed(layout, _written(data, out))


def decode(packed: Any, *, out: Any, dtype: Any, weight: Any, accumulate: Any, stream: Any) -> Any:
    """Record `terngrad_kernels.decode`."""
    _no_stream(stream)
    data, layout = _message(packed, "packed"), packed.layout
    if data.ndim != 1:
        raise ValueError(f"packed.data: expected one message, got shape {tuple(data.shape)}")
    if accumulate and out is None:
        raise ValueError("out: expected what accumulate adds to, got None")
    if out is None:
        return _decoded(_operators.decode(data, *_fields(layout), weight, _decoded_dtype(layout, dtype)), layout)
    targets = _outputs(layout, out, dtype)
    _operators.decode_out(data, *_fields(layout), weight, bool(accumulate), targets)
    return out


def _message(message: Any, argument: str) -> Any:
    """Return the data of one message."""
    if not isinstance(message, (Packed, Counts)):
        raise TypeError(f"{argument}: expected a Packed or a Counts, got {type(message).__name__}")
    return _tensor(message.data, f"{argument}.data")


def _messages(messages: Any) -> tuple[list[Any], list[Any]]:
    """Return messages, and the data of each; one of them may hold several rows."""
    if isinstance(messages, (Packed, Counts)):
        return [messages], [_message(messages, "messages")]
    if not messages:
        raise ValueError("messages: expected at least one message, got none")
    return list(messages), [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _require_same(items: list[Any], *, cuts: bool = False) -> None:
    for i, message in enumerate(items):
        _require_alike(message.layout, items[0].layout, f"messages[{i}].layout", "messages[0]", cuts=cuts)


def decode_sum(messages: Any, *, weights: Any, out: Any, dtype: Any, stream: Any) -> Any:
    """Record `terngrad_kernels.decode_sum`."""
    _no_stream(stream)
    items, data = _messages(messages)
    layout = items[0].layout
    _require_same(items)
    factors = None if weights is None else list(weights)
    if out is None:
        flat = _operators.decode_sum(data, *_fields(layout), factors, _decoded_dtype(layout, dtype))
        return _decoded(flat, layout)
    targets = _outputs(layout, out, dtype)
    _operators.decode_sum_out(data, *_fields(layout), factors, targets)
    return out


def sum_trits(messages: Any, *, out: Any, stream: Any) -> Counts:
    """Record `terngrad_kernels.sum_trits`."""
    _no_stream(stream)
    items, data = _messages(messages)
    layout = items[0].layout
    packings: list[str] = []
    workers: list[int] = []
    _require_same(items, cuts=True)
    for message in items:
        names = message.layout.packing
        packings += [names] * len(layout.shapes) if isinstance(names, str) else list(names)
        workers.append(operator.index(message.workers) if isinstance(message, Counts) else 0)
    rows = operator.index(data[0].shape[0]) if data[0].ndim == 2 else 1
    total = rows * sum([count or 1 for count in workers])
    if total > COUNTS["counts16"]:
        raise ValueError(f"messages: expected at most {COUNTS['counts16']} workers together, got {total}")
    sizes, _, *cuts = _fields(layout)
    summed = _operators.sum_trits(data, sizes, packings, *cuts, workers)
    return Counts(_repacked(layout, _with_ternary(layout, counts_for(total))), total, _written(summed, out))


def repack(
    messages: Any,
    *,
    seed: Any,
    offset: Any,
    layer: Any,
    weights: Any,
    clip: Any,
    scales: Any,
    packing: Any,
    out: Any,
    stream: Any,
) -> Packed:
    """Record `terngrad_kernels.repack`."""
    _no_stream(stream)
    items, data = _messages(messages)
    _require_same(items)
    layout = items[0].layout
    if packing is None:
        packing = _with_ternary(layout, "two_bit") if isinstance(items[0], Counts) else layout.packing
    elif isinstance(packing, str):
        packing_code(packing, offered=TERNARY)
        packing = _with_ternary(layout, packing)
    made = _repacked(layout, packing)
    factors = None if weights is None else list(weights)
    words, to = _words(seed, offset, layer), _fields(made)[1]
    repacked = _operators.repack(data, *_fields(layout), factors, to, clip, *_passed(scales), *words)
    return Packed(made, _written(repacked, out))


def scales(x: Any, *, clip: Any, center: Any, block: Any, layout: Any, out: Any, stream: Any) -> Scales:
    """Record `terngrad_kernels.scales`."""
    _no_stream(stream)
    tensors, shapes, dtype, form = _layers(x)
    layout = _layout_for(shapes, dtype, form, None, block, layout)
    if out is not None and (not isinstance(out, tuple) or len(out) != 2):
        raise TypeError(f"out: expected a Scales (scale, limit), got {type(out).__name__}")
    scale, limit = _operators.scales(tensors, *_fields(layout), clip, bool(center))
    if out is not None:
        scale, limit = _written(scale, out[0], "out.scale"), _written(limit, out[1], "out.limit")
    return Scales(scale, limit)


def clip(x: Any, *, clip: Any, center: Any, scales: Any, out: Any, stream: Any) -> Any:
    """Record `terngrad_kernels.clip`."""
    _no_stream(stream)
    tensors, shapes, _, form = _layers(x)
    return _parts(_operators.clip(tensors, clip, *_passed(scales), bool(center)), shapes, form, out)


def ternarize(
    x: Any, *, clip: Any, seed: Any, offset: Any, layer: Any, scales: Any, out: Any, stream: Any
) -> tuple[Any, Any]:
    """Record `terngrad_kernels.ternarize`."""
    _no_stream(stream)
    tensors, shapes, _, form = _layers(x)
    if out is not None and (not isinstance(out, tuple) or len(out) != 2):
        raise TypeError(f"out: expected a tuple (trits, scale), got {type(out).__name__}")
    trits_out, scale_out = (None, None) if out is None else out
    flat, scale = _operators.ternarize(tensors, clip, *_passed(scales), *_words(seed, offset, layer))
    trits = _parts(flat, shapes, form, trits_out, "out[0]")
    return trits, _written(scale[: len(shapes)], scale_out, "out[1]")


def pack(trits: Any, *, packing: Any, out: Any, stream: Any) -> Any:
    """Record `terngrad_kernels.pack`."""
    _no_stream(stream)
    packing_code(packing, offered=TERNARY)
    return _written(_operators.pack(_tensor(trits, "trits"), packing), out)


def unpack(payload: Any, *, shape: Any, packing: Any, out: Any, stream: Any) -> Any:
    """Record `terngrad_kernels.unpack`."""
    _no_stream(stream)
    packing_code(packing, offered=TERNARY)
    sizes = _shape((shape,) if isinstance(shape, int) else shape)
    trits = _operators.unpack(_tensor(payload, "payload"), math.prod(sizes), packing)
    return _written(trits.view(sizes), out)


def validate(packed: Any) -> None:
    """Refuse: what it raises depends on the data, which a compiled function does not wait for."""
    raise TypeError("packed: expected a message outside compiled functions, got one inside: validate looks at its data")
