"""The operations: arguments are checked here, the work is done by `_core`.

All arguments after the first are keyword-only. Arrays may come from any framework (docs/frameworks.md). Results are in
the framework and on the device of the input, and decoded results in its dtype. Inputs are never written, and an error
leaves every argument as it was. "Contract" is docs/contract.md.

Each function works in one order: inputs, layout, other arguments, outputs, scratch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from . import _core
from .adapters import Adapter, adapter_of, numpy_adapter, path_of
from .layout import (
    COUNTS,
    DTYPES,
    ENCODED,
    TERNARY,
    Layout,
    _packings,
    _require_alike,
    _shape,
    dtype_name,
    packing_code,
)
from .packed import Counts, Packed, Scales, counts_for

__all__ = [
    "clip",
    "decode",
    "decode_sum",
    "encode",
    "pack",
    "repack",
    "scales",
    "sum_trits",
    "ternarize",
    "unpack",
    "validate",
]

# ---- what is given


class _Bucket(NamedTuple):
    """The layers of a call: `arrays` is one dense array, or a tuple of them."""

    adapter: Adapter
    arrays: Any
    like: Any  # an array on the device that outputs go to; None where no array is given
    shapes: tuple[tuple[int, ...], ...]
    dtype: str
    form: str


_new = tuple.__new__


def _dense(x: Any, argument: str) -> tuple[Adapter, Any]:
    """Return the adapter of an array, and the array as `_core` and the adapter can read it."""
    adapter = adapter_of(x, argument)
    array = adapter.dense(x, argument)
    if adapter.name == "dlpack":  # which looks at a GPU's arrays as those of a framework that is loaded
        adapter = adapter_of(array, argument)
    return adapter, array


def _one(x: Any, argument: str) -> tuple[Adapter, Any, str]:
    adapter, array = _dense(x, argument)
    dtype = adapter.dtype(array)
    if dtype not in DTYPES:
        raise TypeError(f"{argument}: expected {', '.join(DTYPES)}, got {adapter.name} {dtype}")
    return adapter, array, dtype


def _bucket(x: Any) -> _Bucket:
    if not isinstance(x, (list, tuple)):
        adapter, array, dtype = _one(x, "x")
        # Without the class's own __new__, which takes three times as long.
        return _new(_Bucket, (adapter, array, array, (tuple(array.shape),), dtype, "array"))
    if not x:
        return _Bucket(numpy_adapter(), (), None, (), "float32", "list")
    adapter, first, dtype = _one(x[0], "x[0]")
    device = adapter.device(first)
    arrays = [first]
    for i, item in enumerate(x[1:], 1):
        other, array, other_dtype = _one(item, f"x[{i}]")
        if other is not adapter:
            raise TypeError(f"x[{i}]: expected a {adapter.name} array as x[0] is, got a {other.name} array")
        if other_dtype != dtype:
            raise TypeError(f"x[{i}]: expected {dtype} as x[0] is, got {other_dtype}")
        if adapter.device(array) != device:
            raise ValueError(f"x[{i}]: expected device {device} as x[0] is on, got {adapter.device(array)}")
        arrays.append(array)
    return _Bucket(adapter, tuple(arrays), first, tuple(tuple(array.shape) for array in arrays), dtype, "list")


_layouts: dict[Any, Layout] = {}


def _layout_of(bucket: _Bucket, packing: Any, block: int | None) -> Layout:
    """Return the layout of what was passed in: looked up, since each training step asks for the same ones."""
    names = tuple(packing) if isinstance(packing, list) else packing
    try:
        key = (bucket.shapes, bucket.dtype, names, block, type(block), bucket.form)  # 2560.0 == 2560, but is refused
        found = _layouts.get(key)
    except TypeError:  # no packing or block at all
        return _new_layout(bucket, packing, block)
    if found is None:
        found = _new_layout(bucket, packing, block)
        if len(_layouts) >= 4096:
            _layouts.clear()
        _layouts[key] = found
    return found


def _new_layout(bucket: _Bucket, packing: Any, block: int | None) -> Layout:
    names = _packings(packing, len(bucket.shapes), ENCODED)
    return Layout(bucket.shapes, bucket.dtype, names, block, form=bucket.form)


def _given_layout(layout: Any, bucket: _Bucket) -> Layout:
    if not isinstance(layout, Layout):
        raise TypeError(f"layout: expected a Layout, got {type(layout).__name__}")
    if bucket.form == "list":
        if layout.index is not None:
            raise ValueError("x: expected one flat array for the layout of a shard, got a list")
        if len(bucket.shapes) != len(layout.shapes):
            raise ValueError(f"x: expected {len(layout.shapes)} arrays, got {len(bucket.shapes)}")
    if bucket.shapes and bucket.dtype != layout.dtype:
        raise ValueError(f"x: expected {layout.dtype} as the layout says, got {bucket.dtype}")
    if layout.counts:
        names = ", ".join(sorted(layout.counts))
        raise ValueError(f"layout.packing: expected {', '.join(ENCODED)}, got {names}, which sum_trits alone makes")
    return layout


def _passed(passed: Any, adapter: Adapter, argument: str = "scales") -> tuple[Any, Any] | None:
    if passed is None:
        return None
    if not isinstance(passed, tuple) or len(passed) != 2:
        raise TypeError(f"{argument}: expected a Scales (scale, limit), got {type(passed).__name__}")
    arrays = []
    for field, array in zip(Scales._fields, passed, strict=True):
        name = f"{argument}.{field}"
        other, dense = _dense(array, name)
        if other is not adapter:
            raise TypeError(f"{name}: expected a {adapter.name} array as the input is, got a {other.name} array")
        arrays.append(dense)
    return arrays[0], arrays[1]


def _word(value: Any, argument: str) -> Any:
    """Return a seed or an offset as `_core` takes it: an int, or a dense array."""
    if isinstance(value, int) or not hasattr(value, "__dlpack__"):
        return value
    return _dense(value, argument)[1]


def _output(adapter: Adapter, out: Any, shape: tuple[int, ...], dtype: str, like: Any, argument: str = "out") -> Any:
    """Return what `_core` writes: the caller's own `out`, or a new array."""
    if out is None:
        return adapter.empty(shape, dtype, like)
    other = adapter_of(out, argument)
    if other is not adapter:
        raise TypeError(f"{argument}: expected a {adapter.name} array as the input is, got a {other.name} array")
    return adapter.writable(out, argument)


def _outputs(adapter: Adapter, out: Any, shapes: Sequence[tuple[int, ...]], dtype: str, like: Any) -> tuple[Any, ...]:
    """Return what `_core` writes for a list of layers."""
    if out is None:
        return tuple(adapter.empty(shape, dtype, like) for shape in shapes)
    if not isinstance(out, (list, tuple)):
        raise TypeError(f"out: expected a list of {len(shapes)} arrays, got {type(out).__name__}")
    if len(out) != len(shapes):
        raise ValueError(f"out: expected {len(shapes)} arrays, got {len(out)}")
    return tuple(_output(adapter, item, (), dtype, like, f"out[{i}]") for i, item in enumerate(out))


def _results(adapter: Adapter, written: Any, out: Any) -> Any:
    if out is not None:
        return out
    if isinstance(written, tuple):
        return [adapter.result(item) for item in written]
    return adapter.result(written)


# ---- messages


def _message(message: Any, argument: str) -> tuple[Layout, Adapter, Any]:
    """Return layout, adapter and dense data of a Packed or Counts."""
    if isinstance(message, Packed):
        if message.layout.counts:
            names = ", ".join(sorted(message.layout.counts))
            raise ValueError(f"{argument}.layout.packing: expected {', '.join(ENCODED)} in a Packed, got {names}")
    elif not isinstance(message, Counts):
        raise TypeError(f"{argument}: expected a Packed or a Counts, got {type(message).__name__}")
    return message.layout, *_dense(message.data, f"{argument}.data")


def _one_message(message: Any, argument: str = "packed") -> tuple[Layout, Adapter, Any]:
    layout, adapter, data = _message(message, argument)
    if data.ndim != 1:
        shape = tuple(data.shape)
        raise ValueError(f"{argument}.data: expected one message, shape ({layout.nbytes},), got shape {shape}")
    return layout, adapter, data


class _Messages(NamedTuple):
    """Messages of layouts that agree: `items` as given; `data` is one dense array of all of them, or a tuple."""

    adapter: Adapter
    items: Sequence[Packed | Counts]
    data: Any
    number: int

    @property
    def layout(self) -> Layout:
        """Layout of the first message."""
        return self.items[0].layout

    @property
    def like(self) -> Any:
        """An array on the device of all messages."""
        return self.data[0] if isinstance(self.data, tuple) else self.data


def _messages(messages: Any, *, cuts: bool = False) -> _Messages:
    """Return messages of layouts that agree; `cuts`: only in how they cut layers, not in how they pack trits."""
    if isinstance(messages, (Packed, Counts)):
        layout, adapter, data = _message(messages, "messages")
        if data.ndim not in (1, 2) or data.shape[-1] != layout.nbytes:
            raise ValueError(f"messages.data: expected shape (W, {layout.nbytes}), got shape {tuple(data.shape)}")
        count = data.shape[0] if data.ndim == 2 else 1
        if count == 0:
            raise ValueError("messages: expected at least one message, got none")
        return _Messages(adapter, (messages,), data, count)
    if not isinstance(messages, (list, tuple)):
        raise TypeError(f"messages: expected Packed or Counts messages, got {type(messages).__name__}")
    if not messages:
        raise ValueError("messages: expected at least one message, got none")
    parts = []
    first: tuple[Layout, Adapter] | None = None
    for i, message in enumerate(messages):
        layout, adapter, data = _one_message(message, f"messages[{i}]")
        if first is None:
            first = layout, adapter
        elif adapter is not first[1]:
            raise TypeError(f"messages[{i}]: expected {first[1].name} data as messages[0] has, got {adapter.name}")
        elif layout is not first[0]:
            _require_alike(layout, first[0], f"messages[{i}].layout", "messages[0]", cuts=cuts)
        parts.append(data)
    assert first is not None
    return _Messages(first[1], messages, tuple(parts), len(parts))


def _weights(weights: Any, count: int) -> tuple[Any, ...]:
    if weights is None:
        return (1.0,) * count
    if not isinstance(weights, Iterable):
        raise TypeError(f"weights: expected numbers, one per message, got {type(weights).__name__}")
    factors = tuple(weights)
    if len(factors) != count:
        raise ValueError(f"weights: expected {count}, one per message, got {len(factors)}")
    return factors


def _decoded(layout: Layout, adapter: Adapter, like: Any, out: Any, dtype: Any) -> Any:
    """Return what a decoding writes, by the layout's form."""
    name = layout.dtype if dtype is None else dtype_name(dtype)
    if layout.form == "list":
        written = _outputs(adapter, out, layout.shapes, name, like)
    elif isinstance(out, (list, tuple)):
        raise TypeError(f"out: expected one array for a layout of form {layout.form!r}, got {type(out).__name__}")
    else:
        shape = layout.shapes[0] if layout.form == "array" else (layout.size,)
        written = _output(adapter, out, shape, name, like)
    if out is None:
        return written
    for array in written[:1] if isinstance(written, tuple) else (written,):  # all of one, says `_core`
        given = adapter.dtype(array)
        if dtype is not None and given != name:
            raise TypeError(f"out: expected {name} as dtype says, got {given}")
        if given not in DTYPES:
            raise TypeError(f"out: expected {', '.join(DTYPES)}, got {given}")
    return written


# ---- the operations


def encode(
    x: Any,
    *,
    clip: float | None = 2.5,
    seed: Any = 0,
    offset: Any = 0,
    layer: int = 0,
    packing: str | Sequence[str] | None = None,
    block: int | None = None,
    scales: Scales | None = None,
    layout: Layout | None = None,
    out: Any = None,
    stream: Any = None,
) -> Packed:
    """Ternarize and pack a gradient: the fused main operation.

    Each element becomes ``s * sign(x) * b``, where s is the scale of the layer and
    ``b ~ Bernoulli(min(|x|, limit) / s)``. This is an unbiased estimate of the clipped layer (Wen et al. 2017, section
    3; contract sections 2 to 5).

    Parameters
    ----------
    x : array or list of arrays
        float32, float16, bfloat16 or float64 (rounded to float32). A list is a bucket of layers of one framework,
        device and dtype. With `layout`, one flat array of all layers is accepted too.
    clip : float > 0 or None, default 2.5
        Clip each layer to `clip` times its root mean square; None does not clip. Ignored where `scales` is given.
    seed : int or array, default 0
        Key of the random bits: an int in [-2**63, 2**64), a 0-d int64 array (JAX: int32 too), or a uint32 array
        (low, high). Each worker needs a different one.
    offset : int or array, default 0
        Step counter, of the same types as `seed`. Equal (seed, offset, layer) draw equal bits, everywhere.
    layer : int, default 0
        Index of the first layer in the model, so that the buckets of a model draw different bits.
    packing : str or sequence of str, optional
        ``two_bit`` (default), ``base3`` or ``float32``; one for all layers, or one per layer.
    block : int, optional
        Number of elements that share a scale, a multiple of 2560. None: one scale per layer.
    scales : Scales, optional
        Scales to use instead of the layers' own (scaler sharing). `x` is then read only once.
    layout : Layout, optional
        Layout of the message; replaces `packing` and `block`. Each layer needs as many elements as in the layout. Its
        shape is not compared: `decode` returns the shapes of the layout.
    out : array of uint8, shape (layout.nbytes,), optional
        Array to write the message to. Must not overlap an input.
    stream : int or the framework's stream, optional
        CUDA stream to use instead of the current one. Must be None for CPU arrays.

    Returns
    -------
    Packed
        The message, in the framework of `x`.

    Raises
    ------
    TypeError, ValueError, BufferError
        The message names the argument, what was expected and what was got.

    Examples
    --------
    >>> import numpy as np
    >>> import terngrad_kernels as tk
    >>> grad = np.array([0.3, -1.0, 0.1, 0.0, -0.6, 0.2], np.float32)
    >>> tk.decode(tk.encode(grad, seed=0, offset=1))
    array([ 0., -1.,  0.,  0.,  0.,  0.], dtype=float32)
    """
    if path := path_of("encode", x, stream):
        taken: Packed = path(
            x,
            clip=clip,
            seed=seed,
            offset=offset,
            layer=layer,
            packing=packing,
            block=block,
            scales=scales,
            layout=layout,
            out=out,
            stream=stream,
        )
        return taken
    bucket = _bucket(x)
    adapter = bucket.adapter
    if layout is None:
        layout = _layout_of(bucket, "two_bit" if packing is None else packing, block)
    else:
        if packing is not None or block is not None:
            name, value = ("block", block) if packing is None else ("packing", packing)
            raise ValueError(f"{name}: expected None where a layout is given, got {value!r}")
        _given_layout(layout, bucket)
    passed = _passed(scales, adapter)
    seed, offset = _word(seed, "seed"), _word(offset, "offset")
    geometry = layout.geometry
    data = _output(adapter, out, (geometry.nbytes,), "uint8", bucket.like)
    queue = adapter.queue(bucket.like, geometry, passed is None, bucket.arrays, data)
    adapter.core.encode(geometry, bucket.arrays, clip, passed, seed, offset, layer, data, queue)
    return Packed(layout, _results(adapter, data, out))


def decode(
    packed: Packed | Counts,
    *,
    out: Any = None,
    dtype: Any = None,
    weight: float = 1.0,
    accumulate: bool = False,
    stream: Any = None,
) -> Any:
    """Turn a message back into floating-point layers (contract section 6).

    Safe on any bytes: no address depends on the data. The bytes are not checked (see `validate`). A layer with a
    non-finite scale decodes to NaN everywhere. Rounding to float16 or bfloat16 adds a bias of up to 2**-11 or 2**-8 of
    the scale.

    Parameters
    ----------
    packed : Packed or Counts
        One message.
    out : array or list of arrays, optional
        Array or list of arrays to write to, of any of the four dtypes, in the form of the layout. Must not overlap the
        message.
    dtype : str or dtype, optional
        Type of the result; by default that of the layout.
    weight : float, default 1.0
        Factor that the result is multiplied by (as float32).
    accumulate : bool, default False
        Add the result to the values in `out`, with one fused multiply-add per element.
    stream : int or the framework's stream, optional
        CUDA stream to use instead of the current one. Must be None for CPU arrays.

    Returns
    -------
    array or list of arrays
        The layers, in the form ``packed.layout.form``; `out` if it was given.

    Raises
    ------
    TypeError, ValueError, BufferError
        The message names the argument, what was expected and what was got.
    """
    if path := path_of("decode", packed, stream):
        return path(packed, out=out, dtype=dtype, weight=weight, accumulate=accumulate, stream=stream)
    layout, adapter, data = _one_message(packed)
    if accumulate and out is None:
        raise ValueError("out: expected what accumulate adds to, got None")
    written = _decoded(layout, adapter, data, out, dtype)
    queue = adapter.queue(data, layout.geometry, False, data, written)
    adapter.core.decode(layout.geometry, data, weight, bool(accumulate), written, queue)
    return _results(adapter, written, out)


def decode_sum(
    messages: Packed | Counts | Sequence[Packed] | Sequence[Counts],
    *,
    weights: Iterable[float] | None = None,
    out: Any = None,
    dtype: Any = None,
    stream: Any = None,
) -> Any:
    """Decode several messages and add them, in one pass over the output (contract section 6).

    The sum is float32, in the order of the messages, and is rounded once at the end: the same messages give the same
    bits everywhere.

    Parameters
    ----------
    messages : sequence of Packed or of Counts, or one of them whose data has shape (W, nbytes)
        Messages whose layouts agree in all but dtype and form.
    weights : iterable of float, optional
        One factor per message (as float32); 1 by default. ``[1 / W] * W`` gives the mean.
    out, dtype, stream
        As in `decode`. The sum replaces the values in `out`.

    Returns
    -------
    array or list of arrays
        The layers, in the form of the first message's layout; `out` if it was given.

    Raises
    ------
    TypeError, ValueError, BufferError
        The message names the argument, what was expected and what was got.

    Examples
    --------
    >>> import numpy as np
    >>> import terngrad_kernels as tk
    >>> grad = np.array([0.5, -1.0, 0.3], np.float32)
    >>> messages = [tk.encode(grad, seed=worker) for worker in range(4096)]
    >>> tk.decode_sum(messages, weights=[1 / 4096] * 4096).round(1)
    array([ 0.5, -1. ,  0.3], dtype=float32)
    """
    if path := path_of("decode_sum", messages, stream):
        return path(messages, weights=weights, out=out, dtype=dtype, stream=stream)
    given = _messages(messages)
    factors = _weights(weights, given.number)
    written = _decoded(given.layout, given.adapter, given.like, out, dtype)
    queue = given.adapter.queue(given.like, given.layout.geometry, False, factors, written)  # one weight per message
    given.adapter.core.decode_sum(given.layout.geometry, given.data, factors, written, queue)
    return _results(given.adapter, written, out)


def sum_trits(messages: Packed | Counts | Sequence[Packed | Counts], *, out: Any = None, stream: Any = None) -> Counts:
    """Add the trits of several workers that share their scales, without decoding (contract section 6).

    The sums are exact and do not depend on the order or the grouping of the additions. Scales agree between workers
    where they were shared: see `Scales`.

    Parameters
    ----------
    messages : sequence of Packed or Counts, or one of them whose data has shape (W, nbytes)
        Messages whose layouts agree in all but dtype, form and how trits are packed.
    out : array of uint8, optional
        Array of the result's ``layout.nbytes`` elements to write the message to. Must not overlap an input.
    stream : int or the framework's stream, optional
        CUDA stream to use instead of the current one. Must be None for CPU arrays.

    Returns
    -------
    Counts
        The sums over all workers. A layer whose scales differ is poisoned: it decodes to NaN. A layer carried as
        float32 holds the float32 sum, in the order of the messages.

    Raises
    ------
    ValueError
        If the layouts do not agree, or the messages are of more than 32767 workers together.
    TypeError, BufferError
        The message names the argument, what was expected and what was got.

    Examples
    --------
    >>> import numpy as np
    >>> import terngrad_kernels as tk
    >>> gradients = [np.array([0.5, -1.0, 0.25], np.float32), np.array([2.0, -1.0, 0.0], np.float32)]
    >>> own = [tk.scales(x, clip=None) for x in gradients]
    >>> shared = np.maximum(own[0].scale, own[1].scale)  # an all-reduce
    >>> messages = [
    ...     tk.encode(x, seed=rank, scales=mine._replace(scale=shared))
    ...     for rank, (x, mine) in enumerate(zip(gradients, own))
    ... ]
    >>> counts = tk.sum_trits(messages)
    >>> counts.workers, counts.layout.packing, float(counts.scales[0])
    (2, 'counts4', 2.0)
    """
    if path := path_of("sum_trits", messages, stream):
        taken: Counts = path(messages, out=out, stream=stream)
        return taken
    given = _messages(messages, cuts=True)
    each = given.number // len(given.items)
    workers = sum(message.workers if isinstance(message, Counts) else 1 for message in given.items) * each
    if workers > COUNTS["counts16"]:
        raise ValueError(f"messages: expected at most {COUNTS['counts16']} workers together, got {workers}")
    layout = given.layout.with_ternary(counts_for(workers))
    arrays = given.data if isinstance(given.data, tuple) else (given.data,)
    summands = [
        (message.layout.geometry, array, message.workers if isinstance(message, Counts) else 1)
        for message, array in zip(given.items, arrays, strict=True)
    ]
    data = _output(given.adapter, out, (layout.nbytes,), "uint8", given.like)
    queue = given.adapter.queue(given.like, layout.geometry, False, (None,) * given.number, data)
    given.adapter.core.sum_trits(summands, layout.geometry, data, queue)
    return Counts(layout, workers, _results(given.adapter, data, out))


def repack(
    messages: Packed | Counts | Sequence[Packed] | Sequence[Counts],
    *,
    seed: Any,
    offset: Any,
    layer: int = 0,
    weights: Iterable[float] | None = None,
    clip: float | None = None,
    scales: Scales | None = None,
    packing: str | Sequence[str] | None = None,
    out: Any = None,
    stream: Any = None,
) -> Packed:
    """Decode, add and ternarize again in one call: the second hop of a reduction (contract section 6).

    The result is unbiased, since both hops are: on average it decodes to the weighted sum. Its random bits are ones
    that `encode` never draws.

    Parameters
    ----------
    messages
        As in `decode_sum`; either all Packed or all Counts.
    seed, offset, layer
        As in `encode`.
    weights : iterable of float, optional
        As in `decode_sum`.
    clip : float > 0 or None, default None
        Clip the sum as `encode` does. By default it is not clipped, since clipping would bias the second hop.
    scales : Scales, optional
        Scales to use instead of the sum's own. The messages are then read only once. A layer that is poisoned in one of
        the messages stays poisoned.
    packing : str or sequence of str, optional
        ``two_bit`` or ``base3`` for the ternary layers; layers carried as float32 stay float32. By default the packing
        of the messages, or ``two_bit`` for counts.
    out : array of uint8, optional
        Array of the result's ``layout.nbytes`` elements to write the message to. Must not overlap an input.
    stream : int or the framework's stream, optional
        CUDA stream to use instead of the current one. Must be None for CPU arrays.

    Returns
    -------
    Packed
        The message, in the framework of `messages`.

    Raises
    ------
    TypeError, ValueError, BufferError
        The message names the argument, what was expected and what was got.
    """
    if path := path_of("repack", messages, stream):
        taken: Packed = path(
            messages,
            seed=seed,
            offset=offset,
            layer=layer,
            weights=weights,
            clip=clip,
            scales=scales,
            packing=packing,
            out=out,
            stream=stream,
        )
        return taken
    given = _messages(messages)
    factors = _weights(weights, given.number)
    adapter = given.adapter
    layout = _repacked(given.layout, packing)
    passed = _passed(scales, adapter)
    seed, offset = _word(seed, "seed"), _word(offset, "offset")
    data = _output(adapter, out, (layout.nbytes,), "uint8", given.like)
    queue = adapter.queue(given.like, given.layout.geometry, passed is None, factors, data)
    adapter.core.repack(
        given.layout.geometry, given.data, factors, clip, passed, seed, offset, layer, layout.geometry, data, queue
    )
    return Packed(layout, _results(adapter, data, out))


def _repacked(layout: Layout, packing: Any) -> Layout:
    """Return the layout of what `repack` makes."""
    if packing is None:
        return layout.with_ternary("two_bit") if layout.counts else layout
    if isinstance(packing, str):
        packing_code(packing, offered=TERNARY)
        return layout.with_ternary(packing)
    wanted = replace(layout, packing=_packings(packing, len(layout.shapes), ENCODED))
    if not wanted.same_cuts(layout):
        raise ValueError(
            "packing: expected 'float32' for the layers that the messages carry as float32, and for no others"
        )
    return wanted


def scales(
    x: Any,
    *,
    clip: float | None = 2.5,
    center: bool = False,
    block: int | None = None,
    layout: Layout | None = None,
    out: Scales | None = None,
    stream: Any = None,
) -> Scales:
    """Measure scale and limit of each layer: the fused max-abs reduction alone (contract section 2).

    Parameters
    ----------
    x : array or list of arrays
        As in `encode`.
    clip : float > 0 or None, default 2.5
        ``limit = clip * rms``; None: no limit.
    center : bool, default False
        Take the standard deviation about the mean in place of the root mean square.
    block, layout
        As in `encode`. A layer that the layout carries as float32 is not measured: its entry is (1, +infinity).
    out : Scales, optional
        float32 arrays to write to, of one element per layer (or block).
    stream : int or the framework's stream, optional
        CUDA stream to use instead of the current one. Must be None for CPU arrays.

    Returns
    -------
    Scales
        float32 arrays of one element per layer (or block), (+infinity, +infinity) for a layer with a NaN or an
        infinity.

    Raises
    ------
    TypeError, ValueError, BufferError
        The message names the argument, what was expected and what was got.

    Examples
    --------
    >>> import numpy as np
    >>> import terngrad_kernels as tk
    >>> tk.scales(np.array([3.0, -4.0], np.float32), clip=1.0).limit  # the root of (9 + 16) / 2
    array([3.535534], dtype=float32)
    """
    if path := path_of("scales", x, stream):
        taken: Scales = path(x, clip=clip, center=center, block=block, layout=layout, out=out, stream=stream)
        return taken
    bucket = _bucket(x)
    if layout is None:
        layout = _layout_of(bucket, "two_bit", block)
    else:
        if block is not None:
            raise ValueError(f"block: expected None where a layout is given, got {block!r}")
        _given_layout(layout, bucket)
    if out is not None and (not isinstance(out, tuple) or len(out) != 2):
        raise TypeError(f"out: expected a Scales (scale, limit), got {type(out).__name__}")
    scale_out, limit_out = (None, None) if out is None else out
    shape = (layout.groups,)
    scale = _output(bucket.adapter, scale_out, shape, "float32", bucket.like, "out.scale")
    limit = _output(bucket.adapter, limit_out, shape, "float32", bucket.like, "out.limit")
    queue = bucket.adapter.queue(bucket.like, layout.geometry, True, bucket.arrays, scale, limit)
    bucket.adapter.core.scales(layout.geometry, bucket.arrays, clip, bool(center), scale, limit, queue)
    return Scales(_results(bucket.adapter, scale, scale_out), _results(bucket.adapter, limit, limit_out))


def clip(
    x: Any,
    *,
    clip: float | None = 2.5,
    center: bool = False,
    scales: Scales | None = None,
    out: Any = None,
    stream: Any = None,
) -> Any:
    """Clip each layer to +-limit: gradient clipping alone (Wen et al. 2017, section 3.2; contract section 2).

    Elements beyond the limit become +-limit, rounded once to the dtype. All others, NaN included, are copied.

    Parameters
    ----------
    x : array or list of arrays
        As in `encode`.
    clip, center
        As in `scales`.
    scales : Scales, optional
        Limits to clip to, in place of the layers' own. A limit that is NaN, negative or 0 gives NaN everywhere.
    out : array or list of arrays like x, optional
        Array or list of arrays to write to; may be `x` itself.
    stream : int or the framework's stream, optional
        CUDA stream to use instead of the current one. Must be None for CPU arrays.

    Returns
    -------
    array or list of arrays
        The clipped layers, in the form and dtype of `x`.

    Raises
    ------
    TypeError, ValueError, BufferError
        The message names the argument, what was expected and what was got.
    """
    if path := path_of("clip", x, stream):
        return path(x, clip=clip, center=center, scales=scales, out=out, stream=stream)
    bucket = _bucket(x)
    layout = _layout_of(bucket, "two_bit", None)
    passed = _passed(scales, bucket.adapter)
    written = _like(bucket, out, bucket.dtype)
    queue = bucket.adapter.queue(bucket.like, layout.geometry, passed is None, bucket.arrays, written)
    bucket.adapter.core.clip(layout.geometry, bucket.arrays, clip, bool(center), passed, written, queue)
    return _results(bucket.adapter, written, out)


def ternarize(
    x: Any,
    *,
    clip: float | None = 2.5,
    seed: Any = 0,
    offset: Any = 0,
    layer: int = 0,
    scales: Scales | None = None,
    out: tuple[Any, Any] | None = None,
    stream: Any = None,
) -> tuple[Any, Any]:
    """Ternarize without packing: the trits that `encode` packs (contract sections 2 to 4).

    Parameters
    ----------
    x : array or list of arrays
        As in `encode`.
    clip, seed, offset, layer, scales
        As in `encode`.
    out : (trits, scale), optional
        Arrays to write to: int8 in the form of `x`, and float32 of one element per layer.
    stream : int or the framework's stream, optional
        CUDA stream to use instead of the current one. Must be None for CPU arrays.

    Returns
    -------
    trits : array or list of arrays of int8
        -1, 0 or +1, in the form of `x`.
    scale : array of float32, shape (layers,)
        Value of a trit of +1 in each layer.

    Raises
    ------
    TypeError, ValueError, BufferError
        The message names the argument, what was expected and what was got.
    """
    if path := path_of("ternarize", x, stream):
        taken: tuple[Any, Any] = path(
            x, clip=clip, seed=seed, offset=offset, layer=layer, scales=scales, out=out, stream=stream
        )
        return taken
    bucket = _bucket(x)
    adapter = bucket.adapter
    layout = _layout_of(bucket, "two_bit", None)
    passed = _passed(scales, adapter)
    seed, offset = _word(seed, "seed"), _word(offset, "offset")
    if out is not None and (not isinstance(out, tuple) or len(out) != 2):
        raise TypeError(f"out: expected a tuple (trits, scale), got {type(out).__name__}")
    trits_out, scale_out = (None, None) if out is None else out
    trits = _like(bucket, trits_out, "int8")
    scale = _output(adapter, scale_out, (layout.groups,), "float32", bucket.like, "out[1]")
    queue = adapter.queue(bucket.like, layout.geometry, passed is None, bucket.arrays, trits, scale)
    adapter.core.ternarize(layout.geometry, bucket.arrays, clip, passed, seed, offset, layer, trits, scale, queue)
    return _results(adapter, trits, trits_out), _results(adapter, scale, scale_out)


def _like(bucket: _Bucket, out: Any, dtype: str) -> Any:
    """Return what `_core` writes, where the output has the form of the input."""
    if bucket.form == "list":
        return _outputs(bucket.adapter, out, bucket.shapes, dtype, bucket.like)
    return _output(bucket.adapter, out, bucket.shapes[0], dtype, bucket.like)


def pack(trits: Any, *, packing: str = "two_bit", out: Any = None, stream: Any = None) -> Any:
    """Pack the sign of each element of an int8 array (contract section 5).

    Parameters
    ----------
    trits : array of int8
        Array of any shape, read in row-major order.
    packing : {"two_bit", "base3"}
        4 or 5 trits per byte.
    out : array of uint8, optional
        Array of ceil(n / 4) or ceil(n / 5) elements to write to.
    stream : int or the framework's stream, optional
        CUDA stream to use instead of the current one. Must be None for CPU arrays.

    Returns
    -------
    array of uint8, shape (ceil(n / 4),) or (ceil(n / 5),)
        The payload.

    Raises
    ------
    TypeError, ValueError, BufferError
        The message names the argument, what was expected and what was got.
    """
    if path := path_of("pack", trits, stream):
        return path(trits, packing=packing, out=out, stream=stream)
    adapter, array = _dense(trits, "trits")
    code = packing_code(packing, offered=TERNARY)
    payload = _output(adapter, out, (_core.payload_bytes(code, math.prod(array.shape)),), "uint8", array)
    adapter.core.pack(array, code, payload, adapter.queue(array, None, False))
    return _results(adapter, payload, out)


def unpack(payload: Any, *, shape: Any, packing: str = "two_bit", out: Any = None, stream: Any = None) -> Any:
    """Turn a payload back into trits (contract sections 5 and 6).

    Any bytes are accepted: code 10 counts as 0, and base-3 digits are taken mod 3.

    Parameters
    ----------
    payload : array of uint8
        Array of exactly as many bytes as `shape` and `packing` need.
    shape : sequence of int
        Shape of the result.
    packing : {"two_bit", "base3"}
        Packing of the payload.
    out : array of int8, optional
        Array of as many elements as `shape` has to write to.
    stream : int or the framework's stream, optional
        CUDA stream to use instead of the current one. Must be None for CPU arrays.

    Returns
    -------
    array of int8
        Trits of -1, 0 or +1, in that shape.

    Raises
    ------
    TypeError, ValueError, BufferError
        The message names the argument, what was expected and what was got.
    """
    if path := path_of("unpack", payload, stream):
        return path(payload, shape=shape, packing=packing, out=out, stream=stream)
    adapter, array = _dense(payload, "payload")
    code = packing_code(packing, offered=TERNARY)
    sizes = _shape((shape,) if isinstance(shape, int) else shape, "shape")
    expected = _core.payload_bytes(code, math.prod(sizes))
    given = math.prod(array.shape)
    if given != expected:
        raise ValueError(f"payload: expected {expected} bytes for shape {sizes} in {packing}, got {given}")
    trits = _output(adapter, out, sizes, "int8", array)
    if out is not None and math.prod(trits.shape) != math.prod(sizes):  # a payload of whole bytes cannot tell
        raise ValueError(f"out: expected {math.prod(sizes)} elements, got {math.prod(trits.shape)}")
    adapter.core.unpack(array, code, trits, adapter.queue(array, None, False))
    return _results(adapter, trits, out)


def validate(packed: Packed | Counts) -> None:
    """Check that a message is one that `encode`, `repack` or `sum_trits` could have written (contract section 5).

    Parameters
    ----------
    packed : Packed or Counts
        One message, of one or more shards.

    Raises
    ------
    CorruptMessage
        Unless codes, counts, unused bits, gaps and scales are canonical and the length is that of the layout.
    TypeError
        If `packed` is neither a Packed nor a Counts, or its data is not uint8.
    """
    if path := path_of("validate", packed):
        return path(packed)  # type: ignore[no-any-return]
    layout, adapter, data = _one_message(packed)
    queue = adapter.queue(data, layout.geometry, True, data)
    adapter.core.validate(layout.geometry, data, packed.workers if isinstance(packed, Counts) else 1, queue)
