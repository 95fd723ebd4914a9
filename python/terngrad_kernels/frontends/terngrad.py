"""The functions of the paper's own code, wenwei202/terngrad, `bingrad_common.py`: same names, arguments and bytes.

::

    from terngrad_kernels.frontends import terngrad as bingrad_common

Gradients are arrays of any framework, each of float32, float16, bfloat16 or float64; a gradient that is None stays
None. Variables may be any objects and are passed through. The package's kernels measure, clip and draw, so the codes
have the same bits on every machine; the framework packs them into the original's bytes, on the device.

What differs from the original, on purpose:

- A layer without spread (one element, or all equal: a standard deviation of 0) is not clipped, and its scaler is its
  largest magnitude (contract section 2, `center`). The original makes zeros of it.
- A layer with a NaN or an infinity has the scaler +infinity and decodes to NaN everywhere.
- The padding of `ternary_encoder`, which no decoder reads, is the digit 0 and not random.
- Random bits come from `seed` and `offset`, not from TensorFlow's generator: see `stochastical_binarize_gradients`.
"""

from __future__ import annotations

import functools
import math
import numbers
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import operations
from ..adapters import Adapter, numpy_adapter
from ..layout import DTYPES, _shape
from ..packed import Scales
from ._arrays import array_of, arrays_of, is_traced, scalars
from ._draws import manual_seed, process_draws

__all__ = [
    "average_gradients",
    "average_gradients2",
    "average_scalers",
    "clip_gradients_by_stddev",
    "clip_gradients_by_thresholds",
    "decode_from_ternary_gradients",
    "encode_to_ternary_gradients",
    "gradient_binarizing_scalers",
    "manual_seed",
    "max_scalers",
    "size_to_binarize",
    "stochastical_binarize_gradients",
    "ternary_decoder",
    "ternary_encoder",
]

#: Layers of fewer elements stay float32: the original's flag of that name. Set it here, or pass it to the functions
#: that have such an argument; all workers must agree.
size_to_binarize: int = 1

# Stands for a threshold of 0, which the kernels would take for a mistake: what is beyond becomes the smallest float32
# there is, which every scale takes for 0.
_SMALLEST = 2.0**-149

Pair = tuple[Any, Any]

# ---- the bytes


def ternary_encoder(input: Any) -> Any:
    """Pack -1, 0, +1 into bytes, four per byte, as the original does.

    ``sign + 1`` of each element in row-major order, padded by 4 - n mod 4 elements (1 to 4), cut into four equal
    quarters a0..a3: a byte is ``a0 + 4 * a1 + 16 * a2 + 64 * a3``.

    Parameters
    ----------
    input : array
        Array of any shape and numeric type. Other values count by their sign, NaN as 0.

    Returns
    -------
    array of uint8, shape (n // 4 + 1,)
        The bytes, in the framework and on the device of `input`.

    Raises
    ------
    TypeError
        If `input` is not an array.
    """
    adapter, x = array_of(input, "input")
    arrays = arrays_of(adapter.name)
    x = arrays.reshape(x, (-1,))
    n = math.prod(x.shape)
    m = n // 4 + 1
    # 0, 1, 2 for -1, 0, +1; the pad's 0 is the code of -1, which nobody reads
    digits = arrays.cast(x > 0, "uint8") + arrays.cast(~(x < 0), "uint8")
    digits = arrays.concatenate([digits, arrays.zeros(4 * m - n, x)])
    a0, a1, a2, a3 = (digits[k * m : (k + 1) * m] for k in range(4))
    return a0 + 4 * (a1 + 4 * (a2 + 4 * a3))


def ternary_decoder(encoded: Any, scaler: Any, shape: Any) -> Any:
    """Turn the bytes of `ternary_encoder` back into numbers: the inverse, times `scaler`.

    Parameters
    ----------
    encoded : array of uint8, shape (n // 4 + 1,)
        Any bytes decode; a digit 3, which no encoder makes, gives 2.
    scaler : number, or array of one element
        Value of a code of 1, as float32.
    shape : sequence of int
        Shape of the result, of n elements.

    Returns
    -------
    array of float32
        The numbers, in the framework and on the device of `encoded`.

    Raises
    ------
    TypeError, ValueError
        The message names the argument, what was expected and what was got.
    """
    return _decoded(encoded, scaler, _shape(shape, "shape"), "encoded", "scaler")


def _decoded(encoded: Any, scaler: Any, shape: tuple[int, ...], argument: str, scaler_name: str) -> Any:
    n = math.prod(shape)
    adapter, x = _encoded(encoded, n // 4 + 1, shape, argument)
    arrays = arrays_of(adapter.name)
    worth = scalars([scaler], [scaler_name], adapter, x)
    digits = arrays.concatenate([arrays.digit(x, k) for k in range(4)])[:n]
    return arrays.reshape(arrays.times(arrays.cast(digits, "int8") - 1, worth), shape)


def _encoded(encoded: Any, nbytes: int, shape: tuple[int, ...], argument: str) -> tuple[Adapter, Any]:
    """Return the bytes of a layer of that shape, as an array of one dimension."""
    adapter, x = array_of(encoded, argument)
    if adapter.dtype(x) != "uint8":
        raise TypeError(f"{argument}: expected uint8, got {adapter.name} {adapter.dtype(x)}")
    given = math.prod(x.shape)
    if given != nbytes:
        raise ValueError(f"{argument}: expected {nbytes} bytes for shape {shape}, got {given}")
    return adapter, arrays_of(adapter.name).reshape(x, (-1,))


def encode_to_ternary_gradients(
    grads_and_vars: Iterable[Pair], get_shape: bool = False, *, size_to_binarize: int | None = None
) -> Any:
    """Encode each layer; those of fewer than `size_to_binarize` elements stay float32, returned as bytes.

    Parameters
    ----------
    grads_and_vars : iterable of (gradient, variable)
        Codes -1, 0, +1, or the gradients of layers that stay float32.
    get_shape : bool, default False
        Return the shapes too.
    size_to_binarize : int, optional
        Value to use instead of the module's setting of that name.

    Returns
    -------
    list of (array of uint8, variable)
        Bytes of shape (n // 4 + 1,), see `ternary_encoder`; for a layer of shape s that stays float32, s + (4,).
    list of tuple of int
        The shapes, None where the gradient is None. Only with `get_shape`, which makes the result a tuple.

    Raises
    ------
    TypeError, ValueError, BufferError
        The message names the argument, what was expected and what was got.
    """
    gradients, variables = _split(grads_and_vars, "grads_and_vars")
    smallest = _smallest(size_to_binarize)
    encoded: list[Any] = []
    shapes: list[tuple[int, ...] | None] = []
    for i, gradient in enumerate(gradients):
        if gradient is None:
            encoded.append(None)
            shapes.append(None)
            continue
        adapter, x = array_of(gradient, f"grads_and_vars[{i}][0]")
        shape = tuple(x.shape)
        shapes.append(shape)
        if math.prod(shape) >= smallest:
            encoded.append(ternary_encoder(x))
        else:
            _require_floats(adapter, x, f"grads_and_vars[{i}][0]")
            payload = operations.encode(x, packing="float32").payload[: 4 * math.prod(shape)]
            encoded.append(arrays_of(adapter.name).reshape(payload, (*shape, 4)))
    pairs = list(zip(encoded, variables, strict=True))
    return (pairs, shapes) if get_shape else pairs


def decode_from_ternary_gradients(
    grads_and_vars: Iterable[Pair],
    scalers: Sequence[Any],
    shapes: Sequence[Any],
    *,
    size_to_binarize: int | None = None,
) -> list[Pair]:
    """Decode each layer: the inverse of `encode_to_ternary_gradients`, times the layer's scaler.

    Parameters
    ----------
    grads_and_vars : iterable of (array of uint8, variable)
        Layers that `encode_to_ternary_gradients` returned.
    scalers : sequence
        One scaler per layer, as in `ternary_decoder`; ignored where the gradient is None or stayed float32.
    shapes : sequence of shapes
        One shape per layer.
    size_to_binarize : int, optional
        Value that the layers were encoded with.

    Returns
    -------
    list of (array of float32, variable)
        The gradients, None where they are None.

    Raises
    ------
    TypeError, ValueError
        The message names the argument, what was expected and what was got.
    """
    gradients, variables = _split(grads_and_vars, "grads_and_vars")
    scalers = _as_many(scalers, len(gradients), "scalers")
    shapes = _as_many(shapes, len(gradients), "shapes")
    smallest = _smallest(size_to_binarize)
    decoded: list[Any] = []
    for i, encoded in enumerate(gradients):
        if encoded is None:
            decoded.append(None)
            continue
        name, shape = f"grads_and_vars[{i}][0]", _shape(shapes[i], f"shapes[{i}]")
        n = math.prod(shape)
        if n >= smallest:
            decoded.append(_decoded(encoded, scalers[i], shape, name, f"scalers[{i}]"))
        else:
            adapter, x = _encoded(encoded, 4 * n, shape, name)
            arrays = arrays_of(adapter.name)
            # A copy, as bytes at an odd address cannot be seen as float32.
            flat = arrays.concatenate([x, arrays.zeros(0, x)])
            floats = adapter.as_float32(flat) if n else arrays.cast(flat, "float32")  # Paddle cannot view no bytes
            decoded.append(arrays.reshape(floats, shape))
    return list(zip(decoded, variables, strict=True))


# ---- clipping, scalers, drawing


def clip_gradients_by_stddev(grads_and_vars: Iterable[Pair], clip_factor: float = 2.5) -> list[Pair]:
    """Clip each layer to +-clip_factor times its population standard deviation about the mean.

    Parameters
    ----------
    grads_and_vars : iterable of (gradient, variable)
        The layers.
    clip_factor : float > 0, default 2.5
        Multiple of the standard deviation; the default is that of the paper.

    Returns
    -------
    list of (gradient, variable)
        New arrays, of the same shapes and dtypes.

    Raises
    ------
    TypeError, ValueError, BufferError
        The message names the argument, what was expected and what was got.
    """
    factor = _number(clip_factor, "clip_factor")
    if not 0 < factor < math.inf:
        raise ValueError(f"clip_factor: expected a finite number > 0, got {clip_factor}")
    return _by_kind(grads_and_vars, lambda kind: operations.clip(kind.layers, clip=factor, center=True))


def clip_gradients_by_thresholds(grads_and_vars: Iterable[Pair], thresholds: Sequence[Any]) -> list[Pair]:
    """Clip each layer to +-threshold.

    Parameters
    ----------
    grads_and_vars : iterable of (gradient, variable)
        The layers.
    thresholds : sequence
        One number, or array of one element, per layer; ignored where the gradient is None. With a threshold of 0, other
        values become +-2**-149 (rounded to the dtype), which counts as 0 in all later steps. A negative threshold or
        NaN gives NaN everywhere.

    Returns
    -------
    list of (gradient, variable)
        New arrays, of the same shapes and dtypes.

    Raises
    ------
    TypeError, ValueError, BufferError
        The message names the argument, what was expected and what was got.
    """
    pairs = list(grads_and_vars)
    thresholds = _as_many(thresholds, len(pairs), "thresholds")

    def clipped(kind: _Kind) -> Any:
        limit = _passed(kind, thresholds, "thresholds")
        limit = arrays_of(kind.adapter.name).put(_SMALLEST, limit == 0, limit)
        return operations.clip(kind.layers, scales=Scales(limit, limit))

    return _by_kind(pairs, clipped)


def gradient_binarizing_scalers(grads_and_vars: Iterable[Pair], clip_factor: float) -> list[Any]:
    """Measure the scaler of each layer: clip_factor times its standard deviation, or its largest magnitude.

    Parameters
    ----------
    grads_and_vars : iterable of (gradient, variable)
        The layers.
    clip_factor : float
        If above 1e-5, the scaler is clip_factor times the population standard deviation about the mean, even if no
        element is as large. Otherwise it is the largest magnitude.

    Returns
    -------
    list of array of float32, shape ()
        One scaler per layer, None where the gradient is None.

    Raises
    ------
    TypeError, ValueError, BufferError
        The message names the argument, what was expected and what was got.
    """
    factor = _number(clip_factor, "clip_factor")
    if not factor < math.inf:
        raise ValueError(f"clip_factor: expected a finite number, got {clip_factor}")

    def measured(kind: _Kind) -> Any:
        arrays = arrays_of(kind.adapter.name)
        if factor > 1e-5:
            scale, limit = operations.scales(kind.layers, clip=factor, center=True)
            scale = arrays.where(limit == math.inf, scale, limit)
        else:
            scale = operations.scales(kind.layers, clip=None).scale
        return [arrays.reshape(scale[i : i + 1], ()) for i in range(len(kind.layers))]

    return [scaler for scaler, _ in _by_kind(grads_and_vars, measured)]


def stochastical_binarize_gradients(
    grads_and_vars: Iterable[Pair],
    scalers: Sequence[Any],
    *,
    seed: Any = None,
    offset: Any = None,
    size_to_binarize: int | None = None,
) -> list[Pair]:
    """Draw the codes of each layer: sign(g) with probability min(1, abs(g) / scaler), else 0.

    Parameters
    ----------
    grads_and_vars : iterable of (gradient, variable)
        The layers. Those of fewer than `size_to_binarize` elements are returned as they are.
    scalers : sequence
        One number, or array of one element, per layer, as from `gradient_binarizing_scalers` or `max_scalers`; ignored
        where the gradient is None or returned unchanged. A layer whose scaler is 0 (or below 2**-60),
        negative, infinite or NaN has codes 0.
    seed : int or array, optional
        Seed of the random bits, different for each worker (base + rank). None: the seed of the process, which comes
        from the operating system, also in a forked child, unless `terngrad_kernels.frontends.manual_seed` has set it.
    offset : int or array, optional
        Step counter. Equal (seed, offset) and layers draw equal bits, everywhere. None: the number of calls without one
        in this process so far, so that no two calls draw alike.
    size_to_binarize : int, optional
        Value to use instead of the module's setting of that name.

    Returns
    -------
    list of (array, variable)
        -1, 0 or +1 in the shape and dtype of the gradient.

    Raises
    ------
    TypeError, ValueError, BufferError
        Naming the argument, what it is and what was expected. Under `jax.jit`, `seed` and `offset` must be given:
        what is counted while tracing would be the same in every run.
    """
    gradients, variables = _split(grads_and_vars, "grads_and_vars")
    scalers = _as_many(scalers, len(gradients), "scalers")
    smallest = _smallest(size_to_binarize)
    if seed is None or offset is None:
        if any(is_traced(gradient) for gradient in gradients):
            raise ValueError(f"{'seed' if seed is None else 'offset'}: expected a value under jax.jit, got None")
        own_seed, count, _ = process_draws().next()
        seed = own_seed if seed is None else seed
        offset = count if offset is None else offset
    ternary = [None if g is None else array_of(g, f"grads_and_vars[{i}][0]")[1] for i, g in enumerate(gradients)]
    small = [x is not None and math.prod(x.shape) < smallest for x in ternary]

    def drawn(kind: _Kind) -> Any:
        arrays = arrays_of(kind.adapter.name)
        scale = _passed(kind, scalers, "scalers")
        passed = Scales(scale, arrays.put(math.inf, scale == scale, scale))
        codes, _ = operations.ternarize(kind.layers, seed=seed, offset=offset, layer=kind.first, scales=passed)
        return [arrays.cast(code, layer.dtype) for code, layer in zip(codes, kind.layers, strict=True)]

    left = ((None if keep else x, None) for keep, x in zip(small, ternary, strict=True))
    codes = [code for code, _ in _by_kind(left, drawn)]
    kept = [g if keep else code for keep, g, code in zip(small, gradients, codes, strict=True)]
    return list(zip(kept, variables, strict=True))


# ---- across workers ("towers")


def max_scalers(tower_scalers: Sequence[Sequence[Any]]) -> list[Any]:
    """Share scalers: the largest of all workers, for each layer.

    Parameters
    ----------
    tower_scalers : sequence of sequences
        For each worker the scalers of its layers: numbers or arrays of one element, or None.

    Returns
    -------
    list of array of float32, shape ()
        One scaler per layer, None where it is None for all workers; NumPy arrays where only numbers are given.

    Raises
    ------
    TypeError, ValueError
        The message names the argument, what was expected and what was got.
    """
    return _over_scalers(tower_scalers, _maximum)


def average_scalers(tower_scalers: Sequence[Sequence[Any]]) -> list[Any]:
    """Share scalers: the mean of all workers, for each layer.

    Parameters
    ----------
    tower_scalers : sequence of sequences
        As in `max_scalers`.

    Returns
    -------
    list of array of float32, shape ()
        As from `max_scalers`. The sum is float32, in the order of the workers.

    Raises
    ------
    TypeError, ValueError
        The message names the argument, what was expected and what was got.
    """
    return _over_scalers(tower_scalers, _mean)


def average_gradients(tower_grads: Sequence[Iterable[Pair]]) -> list[Pair]:
    """Average the gradients of all workers, layer by layer.

    Parameters
    ----------
    tower_grads : sequence of iterables of (gradient, variable)
        For each worker its layers.

    Returns
    -------
    list of (gradient, variable)
        The means (summed in float32, or float64 if they are, in the order of the workers; in the dtype of the
        gradients), with the variables of the first worker. None where the gradient is for all workers.

    Raises
    ------
    TypeError, ValueError
        The message names the argument, what was expected and what was got.
    """
    return _averaged(_towers(tower_grads))


def average_gradients2(tower_grads: Sequence[Iterable[Pair]]) -> list[list[Pair]]:
    """Average the gradients of all workers, as `average_gradients` does, for each worker with its own variables.

    Parameters
    ----------
    tower_grads : sequence of iterables of (gradient, variable)
        For each worker its layers.

    Returns
    -------
    list of lists of (gradient, variable)
        One list per worker. The gradients are the same arrays in all lists.

    Raises
    ------
    TypeError, ValueError
        The message names the argument, what was expected and what was got.
    """
    towers = _towers(tower_grads)
    means = [mean for mean, _ in _averaged(towers)]
    return [[(mean, variable) for mean, (_, variable) in zip(means, tower, strict=True)] for tower in towers]


def _towers(tower_grads: Any) -> list[list[Pair]]:
    towers = []
    for w, tower in enumerate(_as_many(tower_grads, None, "tower_grads")):
        gradients, variables = _split(tower, f"tower_grads[{w}]")
        towers.append(list(zip(gradients, variables, strict=True)))
    return towers


def _averaged(towers: list[list[Pair]]) -> list[Pair]:
    def mean_of(values: list[Any], names: list[str]) -> Any:
        adapter, first = array_of(values[0], names[0])
        arrays = arrays_of(adapter.name)
        terms = []
        for value, name in zip(values, names, strict=True):
            other, x = array_of(value, name)
            if other is not adapter:
                raise TypeError(f"{name}: expected a {adapter.name} array as {names[0]} is, got a {other.name} array")
            if tuple(x.shape) != tuple(first.shape):
                raise ValueError(f"{name}: expected shape {tuple(first.shape)}, got {tuple(x.shape)}")
            if x.dtype != first.dtype:
                raise TypeError(f"{name}: expected {adapter.dtype(first)} as {names[0]} is, got {adapter.dtype(x)}")
            terms.append(arrays.reshape(x, (-1,)))  # NumPy makes scalars of arrays without dimensions
        wide = first.dtype if adapter.dtype(first) == "float64" else "float32"
        mean = _mean(arrays, [arrays.cast(term, wide) for term in terms])
        return arrays.reshape(arrays.cast(mean, first.dtype), tuple(first.shape))

    names = [[f"tower_grads[{w}][{i}][0]" for i in range(len(tower))] for w, tower in enumerate(towers)]
    means = _per_layer([[g for g, _ in tower] for tower in towers], names, "tower_grads", mean_of)
    return [(mean, variable) for mean, (_, variable) in zip(means, towers[0], strict=True)]


def _over_scalers(tower_scalers: Any, join: Callable[[Any, list[Any]], Any]) -> list[Any]:
    def joined(values: list[Any], names: list[str]) -> Any:
        own = [i for i, value in enumerate(values) if not isinstance(value, (numbers.Real, np.generic, np.ndarray))]
        adapter, like = array_of(values[own[0]], names[own[0]]) if own else (numpy_adapter(), None)
        arrays = arrays_of(adapter.name)
        each = [scalars([value], [name], adapter, like) for value, name in zip(values, names, strict=True)]
        return arrays.reshape(join(arrays, each), ())

    towers = [list(tower) for tower in _as_many(tower_scalers, None, "tower_scalers")]
    names = [[f"tower_scalers[{w}][{i}]" for i in range(len(tower))] for w, tower in enumerate(towers)]
    return _per_layer(towers, names, "tower_scalers", joined)


def _per_layer(
    towers: list[list[Any]], names: list[list[str]], argument: str, join: Callable[[list[Any], list[str]], Any]
) -> list[Any]:
    """Join what the workers have for each layer; all have None for a layer, or none has."""
    results = []
    for w, tower in enumerate(towers):
        if len(tower) != len(towers[0]):
            raise ValueError(
                f"{argument}[{w}]: expected {len(towers[0])} layers as {argument}[0] has, got {len(tower)}"
            )
    for values, called in zip(zip(*towers, strict=True), zip(*names, strict=True), strict=True):
        missing = [value is None for value in values]
        if any(missing) and not all(missing):
            raise ValueError(
                f"{called[missing.index(True)]}: expected an array as {called[missing.index(False)]} is, got None"
            )
        results.append(None if missing[0] else join(list(values), list(called)))
    return results


def _maximum(arrays: Any, values: list[Any]) -> Any:
    return functools.reduce(arrays.maximum, values)


def _mean(arrays: Any, values: list[Any]) -> Any:
    return functools.reduce(operator.add, values) / len(values)


# ---- arguments


class _Kind(NamedTuple):
    """Layers that one call of a kernel takes: of one framework, device and dtype."""

    adapter: Adapter
    layers: list[Any]
    at: list[int]  # where they are in the list of all layers
    first: int  # layers in the kinds before


def _by_kind(grads_and_vars: Iterable[Pair], work: Callable[[_Kind], Sequence[Any]]) -> list[Pair]:
    """Return the pairs with each gradient replaced by what `work` makes of it, called once for each kind of arrays."""
    gradients, variables = _split(grads_and_vars, "grads_and_vars")
    kinds: dict[Any, _Kind] = {}
    for i, gradient in enumerate(gradients):
        if gradient is None:
            continue
        name = f"grads_and_vars[{i}][0]"
        adapter, x = array_of(gradient, name)
        key = adapter.name, adapter.device(x), adapter.dtype(x)
        kind = kinds.setdefault(key, _Kind(adapter, [], [], 0))
        _require_floats(adapter, x, name)
        kind.layers.append(x)
        kind.at.append(i)
    results: list[Any] = [None] * len(gradients)
    first = 0
    for kind in kinds.values():
        for i, result in zip(kind.at, work(kind._replace(first=first)), strict=True):
            results[i] = result
        first += len(kind.layers)
    return list(zip(results, variables, strict=True))


def _passed(kind: _Kind, values: Sequence[Any], argument: str) -> Any:
    """Return what is passed for these layers, as the kernels take it: float32, one per layer."""
    return scalars([values[i] for i in kind.at], [f"{argument}[{i}]" for i in kind.at], kind.adapter, kind.layers[0])


def _require_floats(adapter: Adapter, x: Any, argument: str) -> None:
    dtype = adapter.dtype(x)
    if dtype not in DTYPES:
        raise TypeError(f"{argument}: expected {', '.join(DTYPES)}, got {adapter.name} {dtype}")


def _split(pairs: Any, argument: str) -> tuple[list[Any], list[Any]]:
    if not isinstance(pairs, Iterable):
        raise TypeError(f"{argument}: expected pairs (gradient, variable), got {type(pairs).__name__}")
    gradients, variables = [], []
    for i, pair in enumerate(pairs):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            kind = f"{len(pair)} values" if isinstance(pair, (tuple, list)) else type(pair).__name__
            raise TypeError(f"{argument}[{i}]: expected a pair (gradient, variable), got {kind}")
        gradients.append(pair[0])
        variables.append(pair[1])
    return gradients, variables


def _as_many(values: Any, expected: int | None, argument: str) -> list[Any]:
    """Return the values of a list of one per layer, or (expected = None) of one or more per worker."""
    if not isinstance(values, Iterable):
        what = "one per worker" if expected is None else "one per layer"
        raise TypeError(f"{argument}: expected a sequence of {what}, got {type(values).__name__}")
    many = list(values)
    if expected is None and not many:
        raise ValueError(f"{argument}: expected at least one worker's, got none")
    if expected is not None and len(many) != expected:
        raise ValueError(f"{argument}: expected {expected}, one per layer, got {len(many)}")
    return many


def _smallest(given: Any) -> int:
    value = size_to_binarize if given is None else given
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"size_to_binarize: expected an int, got {type(value).__name__}")
    return operator.index(value)


def _number(value: Any, argument: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{argument}: expected a number, got {type(value).__name__}") from None
