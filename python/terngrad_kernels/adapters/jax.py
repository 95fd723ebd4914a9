"""JAX arrays: concrete ones, and those that `jax.jit` and its like trace."""

from __future__ import annotations

import inspect
import operator
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..adapters import no_queue, no_stream
from ..packed import PYTREES

# ---- what both kinds have in common


def _is_traced(x: Any) -> bool:
    return isinstance(x, jax.core.Tracer)


def _is_xlas(x: Any) -> bool:
    """Return whether XLA calls the operation: for traced values, and on a GPU, where the streams are its own."""
    if _is_traced(x):
        return True
    platform = getattr(x, "platform", None)  # which arrays of keys have not
    return platform is not None and platform() != "cpu"


class _Anywhere:
    """Where traced values lie: wherever those do that the compiled function is called with."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


class _Output:
    """The output of an operation: memory that JAX takes over, since its arrays are immutable; a value if traced."""

    __slots__ = ("_memory", "dtype", "shape", "value")

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        self.shape = shape
        self.dtype = dtype
        self.value: Any = None
        self._memory: _core.Buffer | None = None

    def memory(self) -> _core.Buffer:
        if self._memory is None:
            self._memory = _core.Buffer(list(self.shape), self.dtype)
        return self._memory

    def __dlpack__(self, **arguments: Any) -> Any:
        return self.memory().__dlpack__(**arguments)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.memory().__dlpack_device__()

    def result(self) -> Any:
        return jax.dlpack.from_dlpack(self.memory()) if self.value is None else self.value


def _flat(items: Iterable[Any]) -> list[Any]:
    """Return what is in the tuples, without None."""
    flat: list[Any] = []
    for item in items:
        if isinstance(item, tuple):
            flat += item
        elif item is not None:
            flat.append(item)
    return flat


def _word(value: Any) -> Any:
    """Take JAX's own ints for Python's, which they are under `jax.jit`: without 64-bit types they have 32."""
    if not isinstance(value, jax.Array) or value.dtype != jnp.int32 or value.ndim:
        return value
    if not _is_xlas(value):
        return int(value)
    return jnp.stack([value.astype(jnp.uint32), (value >> 31).astype(jnp.uint32)])


# ---- traced arrays, and a GPU's: custom calls of XLA. Their operands, results and attributes: csrc/bindings/xla.cpp


_registering = threading.Lock()
_registered = False


def _register() -> None:
    """Tell XLA of the handlers, when the first is needed."""
    global _registered
    with _registering:
        if _registered:
            return
        if not hasattr(jax, "ffi"):
            raise TypeError(
                f"traced values and a GPU's need jax 0.5 or newer, which has jax.ffi; this is {jax.__version__}"
            )
        for platform, handlers in _core.xla_handlers().items():
            for name, handler in handlers.items():
                jax.ffi.register_ffi_target(name, handler, platform=platform)
        _registered = True


# JAX 0.5 does not track over which axes values vary; 0.6.0 does, but lets no result of a custom call say so. The newest
# calls it manual_axis_type, the others vma.
_SAYS_VARYING = {"vma", "manual_axis_type"} & set(inspect.signature(jax.ShapeDtypeStruct).parameters)


def varying_axes(x: Any) -> frozenset[Any]:
    """Return the axes of an enclosing `jax.shard_map` over which a value varies, as far as JAX tracks that."""
    if not _SAYS_VARYING:
        return frozenset()
    kind = jax.typeof(x)
    axes: frozenset[Any] = kind.manual_axis_type.varying if "manual_axis_type" in _SAYS_VARYING else kind.vma
    return axes


def vary(x: Any, axes: frozenset[Any]) -> Any:
    """Return a value that counts as one that varies over these axes too."""
    missing = tuple(axes - varying_axes(x))
    if not missing:
        return x
    return jax.lax.pcast(x, missing, to="varying") if hasattr(jax.lax, "pcast") else jax.lax.pvary(x, missing)


def _alike(operands: list[Any]) -> tuple[list[Any], dict[str, Any]]:
    """Return operands that all vary over the same axes of an enclosing `jax.shard_map`, and what says so of results."""
    varying = frozenset().union(*map(varying_axes, operands))
    if not varying:
        return operands, {}
    same = [vary(x, varying) for x in operands]
    if "manual_axis_type" not in _SAYS_VARYING:
        return same, {"vma": varying}
    mesh = next(jax.typeof(x).sharding.mesh for x in same)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return same, {"sharding": sharding, "manual_axis_type": jax.sharding.ManualAxisType(varying=varying)}


def _call(name: str, operands: Iterable[Any], outputs: Iterable[_Output], **attributes: Any) -> None:
    """Call a handler. Its inputs are read as data, outside differentiation."""
    alike, kinds = _alike([jax.lax.stop_gradient(x) for x in operands])
    # What JAX has no type for comes in the one that it has: float64 in float32.
    results = [
        jax.ShapeDtypeStruct(output.shape, jax.dtypes.canonicalize_dtype(output.dtype), **kinds) for output in outputs
    ]
    if not results:
        return
    # One row after the other under vmap: so each gives what it gives by itself.
    _register()
    call = jax.ffi.ffi_call(f"terngrad_kernels.{name}.v1", results, vmap_method="sequential")
    for output, value in zip(outputs, call(*alike, **attributes), strict=True):
        output.value = value


def _expect(x: Any, argument: str, size: int, dtype: str | None = None) -> None:
    """Check now what the handler can only find out when it runs."""
    if dtype is not None and x.dtype.name != dtype:
        raise TypeError(f"{argument}: expected {dtype}, got {x.dtype.name}")
    if x.size != size:
        raise ValueError(f"{argument}: expected {size} elements, got {x.size}")


def _layers(layout: _core.Layout, x: Any) -> tuple[Any, ...]:
    """Return the layers as operands."""
    if not isinstance(x, tuple):
        _expect(x, "x", layout.size)
        return (x,)
    for i, (item, size) in enumerate(zip(x, layout.sizes, strict=True)):
        _expect(item, f"x[{i}]", size)
    return x


def _passed(layout: _core.Layout, scales: tuple[Any, Any] | None) -> tuple[tuple[Any, ...], np.int64]:
    """Return the operands that passed scales are, and whether there are any."""
    if scales is None:
        return (), np.int64(0)
    for x, name in zip(scales, ("scales.scale", "scales.limit"), strict=True):
        _expect(x, name, layout.groups, "float32")
    return scales, np.int64(1)


def _halves(value: Any, argument: str) -> Any:
    """Return a seed or an offset as an operand of 8 bytes."""
    if isinstance(value, jax.Array):
        if (value.dtype.name, value.size) in (("int64", 1), ("uint32", 2)):
            return value
        raise TypeError(
            f"{argument}: expected an int, a 0-d int64 array or a uint32 array (low, high), "
            f"got {value.dtype.name} of shape {value.shape}"
        )
    if isinstance(value, np.ndarray):
        return np.ascontiguousarray(value).reshape(-1).view(np.uint32)
    word = operator.index(value)
    return np.array([word & 0xFFFFFFFF, word >> 32 & 0xFFFFFFFF], np.uint32)


def _draw(seed: Any, offset: Any, layer: Any, layers: int) -> tuple[tuple[Any, Any], np.int64]:
    """Return the operands that say which bits to draw, and the first layer."""
    # Of what is known now, the operation itself says whether it may be, before it writes nothing.
    known, step = (0 if isinstance(word, jax.Array) else word for word in (seed, offset))
    nothing = _core.Layout([0] * layers, [0], 0, 1, -1)
    _core.encode(nothing, np.empty(0, np.float32), None, None, known, step, layer, np.empty(nothing.nbytes, np.uint8))
    return (_halves(seed, "seed"), _halves(offset, "offset")), np.int64(layer)


_NOTHING = _core.Layout([], [0], 0, 1, -1)


def _clip(clip: Any) -> np.float64:
    """Return the clip factor, 0 for none."""
    nothing = np.empty(0, np.float32)
    _core.scales(_NOTHING, nothing, clip, False, nothing, np.empty(0, np.float32))
    return np.float64(0.0 if clip is None else clip)


def _weighted(layout: _core.Layout, messages: Any, weights: tuple[Any, ...]) -> tuple[list[Any], NDArray[np.float64]]:
    """Return messages as operands, and their weights."""
    arrays = _flat([messages])
    for i, data in enumerate(arrays):
        several = isinstance(messages, tuple)
        name = f"messages[{i}]" if several else "messages"
        _expect(data, name, layout.nbytes * (1 if several else len(weights)), "uint8")
    _core.decode_sum(_NOTHING, np.empty(0, np.uint8), weights, np.empty(0, np.float32))
    return arrays, np.array(weights, np.float64)


class _Core:
    """`_core`'s operations for JAX's arrays: the same functions with the same arguments. A queue XLA has itself."""

    def scales(
        self, layout: _core.Layout, x: Any, clip: Any, center: bool, scale: _Output, limit: _Output, queue: None = None
    ) -> None:
        if not any(map(_is_xlas, _flat([x]))):
            return _core.scales(layout, x, clip, center, scale, limit)
        _call(
            "scales",
            _layers(layout, x),
            (scale, limit),
            layout=layout.description,
            clip=_clip(clip),
            center=np.int64(center),
        )

    def clip(
        self, layout: _core.Layout, x: Any, clip: Any, center: bool, scales: Any, out: Any, queue: None = None
    ) -> None:
        if not any(map(_is_xlas, _flat([x, scales]))):
            return _core.clip(layout, x, clip, center, scales, out)
        passed, scaled = _passed(layout, scales)
        _call(
            "clip",
            (*_layers(layout, x), *passed),
            _flat([out]),
            layout=layout.description,
            clip=_clip(clip),
            center=np.int64(center),
            scaled=scaled,
        )

    def ternarize(
        self,
        layout: _core.Layout,
        x: Any,
        clip: Any,
        scales: Any,
        seed: Any,
        offset: Any,
        layer: Any,
        trits: Any,
        scale: _Output,
        queue: None = None,
    ) -> None:
        self._quantise(_core.ternarize, layout, x, clip, scales, seed, offset, layer, trits, scale)

    def encode(
        self,
        layout: _core.Layout,
        x: Any,
        clip: Any,
        scales: Any,
        seed: Any,
        offset: Any,
        layer: Any,
        out: _Output,
        queue: None = None,
    ) -> None:
        self._quantise(_core.encode, layout, x, clip, scales, seed, offset, layer, out)

    def _quantise(
        self,
        function: Callable[..., None],
        layout: _core.Layout,
        x: Any,
        clip: Any,
        scales: Any,
        seed: Any,
        offset: Any,
        layer: Any,
        *out: Any,
    ) -> None:
        seed, offset = _word(seed), _word(offset)
        if not any(map(_is_xlas, _flat([x, scales, seed, offset]))):
            return function(layout, x, clip, scales, seed, offset, layer, *out)
        passed, scaled = _passed(layout, scales)
        draw, first = _draw(seed, offset, layer, len(layout.sizes))
        _call(
            function.__name__,
            (*_layers(layout, x), *passed, *draw),
            _flat(out),
            layout=layout.description,
            clip=_clip(clip),
            layer=first,
            scaled=scaled,
        )

    def decode(
        self, layout: _core.Layout, data: Any, weight: Any, accumulate: bool, out: Any, queue: None = None
    ) -> None:
        if not _is_xlas(data):
            return _core.decode(layout, data, weight, accumulate, out)
        _expect(data, "packed.data", layout.nbytes, "uint8")
        _core.decode(_NOTHING, np.empty(0, np.uint8), weight, False, np.empty(0, np.float32))
        _call("decode", (data,), _flat([out]), layout=layout.description, weight=np.float64(weight))

    def decode_sum(
        self, layout: _core.Layout, messages: Any, weights: tuple[Any, ...], out: Any, queue: None = None
    ) -> None:
        if not any(map(_is_xlas, _flat([messages]))):
            return _core.decode_sum(layout, messages, weights, out)
        arrays, factors = _weighted(layout, messages, weights)
        _call("decode_sum", arrays, _flat([out]), layout=layout.description, weights=factors)

    def sum_trits(
        self, messages: list[tuple[_core.Layout, Any, int]], result: _core.Layout, out: _Output, queue: None = None
    ) -> None:
        if not any(_is_xlas(data) for _, data, _ in messages):
            return _core.sum_trits(messages, result, out)
        for i, (layout, data, _) in enumerate(messages):
            _expect(data, f"messages[{i}]", layout.nbytes * (data.shape[0] if data.ndim == 2 else 1), "uint8")
        layouts = {f"layout{i}": layout.description for i, (layout, _, _) in enumerate(messages)}
        workers = np.array([workers for _, _, workers in messages], np.int64)
        arrays = [data for _, data, _ in messages]
        _call("sum_trits", arrays, (out,), layout=result.description, workers=workers, **layouts)

    def repack(
        self,
        layout: _core.Layout,
        messages: Any,
        weights: tuple[Any, ...],
        clip: Any,
        scales: Any,
        seed: Any,
        offset: Any,
        layer: Any,
        result: _core.Layout,
        out: _Output,
        queue: None = None,
    ) -> None:
        seed, offset = _word(seed), _word(offset)
        if not any(map(_is_xlas, _flat([messages, scales, seed, offset]))):
            return _core.repack(layout, messages, weights, clip, scales, seed, offset, layer, result, out)
        arrays, factors = _weighted(layout, messages, weights)
        passed, scaled = _passed(layout, scales)
        draw, first = _draw(seed, offset, layer, len(layout.sizes))
        _call(
            "repack",
            (*arrays, *passed, *draw),
            (out,),
            layout=layout.description,
            result=result.description,
            weights=factors,
            clip=_clip(clip),
            layer=first,
            scaled=scaled,
        )

    def pack(self, trits: Any, packing: int, out: _Output, queue: None = None) -> None:
        if not _is_xlas(trits):
            return _core.pack(trits, packing, out)
        _expect(trits, "trits", trits.size, "int8")
        _call("pack", (trits,), (out,), packing=np.int64(packing))

    def unpack(self, payload: Any, packing: int, out: _Output, queue: None = None) -> None:
        if not _is_xlas(payload):
            return _core.unpack(payload, packing, out)
        _expect(payload, "payload", payload.size, "uint8")
        _call("unpack", (payload,), (out,), packing=np.int64(packing))

    def validate(self, layout: _core.Layout, data: Any, workers: int, queue: None = None) -> None:
        if _is_traced(data):
            raise TypeError("packed.data: expected known bytes, got a traced value; call validate outside jax.jit")
        _core.validate(layout, np.asarray(data), workers)  # which waits for a GPU


class JaxAdapter:
    """See `terngrad_kernels.adapters.Adapter`."""

    name = "jax"
    core = _Core()
    queue = no_queue

    def accepts(self, x: Any) -> bool:
        """Return whether `x` is an array or a tracer."""
        return isinstance(x, jax.Array)

    def dtype(self, x: Any) -> str:
        """Return NumPy's name."""
        return str(x.dtype.name)

    def device(self, x: Any) -> Any:
        """Return the set of devices."""
        return _Anywhere() if _is_traced(x) else frozenset(x.devices())

    def dense(self, x: Any, argument: str) -> Any:
        """Return the array, which is dense; refuse concrete ones without memory on one device."""
        if _is_traced(x):
            return x
        if x.is_deleted():
            raise ValueError(f"{argument}: expected an array with memory, got one that was deleted or donated")
        if len(x.devices()) > 1:
            raise ValueError(f"{argument}: expected an array on one device, got one on {len(x.devices())}")
        if _is_xlas(x) and "CUDA" not in _core.xla_handlers():
            raise ValueError(
                f"{argument}: expected an array on the CPU, got one on a {x.platform()}, for which this build of "
                "terngrad_kernels has no kernels"
            )
        return x

    def stream(self, x: Any) -> int | None:
        """Return None: on a GPU, XLA makes the calls, on its own stream."""
        return None

    def on_stream(self, x: Any, stream: Any, arrays: Sequence[Any]) -> AbstractContextManager[Any]:
        """Refuse: JAX shows no streams."""
        if _is_xlas(x) and not _is_traced(x):
            raise ValueError("stream: JAX has streams of its own and shows none, expected None")
        raise no_stream()

    def empty(self, shape: tuple[int, ...], dtype: str, like: Any) -> Any:
        """Return memory that JAX can take over without a copy, or a placeholder for a traced value."""
        return _Output(shape, dtype)

    def result(self, written: Any) -> Any:
        """Hand the memory to JAX, or return what was traced."""
        return written.result()

    def writable(self, x: Any, argument: str) -> Any:
        """Refuse: JAX arrays are immutable."""
        raise TypeError(f"{argument}: expected None, got a JAX array, which is immutable")

    def as_float32(self, x: Any) -> Any:
        """Return a copy: JAX has no views."""
        return jax.lax.bitcast_convert_type(x.reshape(*x.shape[:-1], -1, 4), jnp.float32)

    def to_numpy(self, x: Any) -> Any:
        """Return a view of a host array."""
        return np.asarray(x)

    def from_numpy(self, x: Any, like: Any) -> Any:
        """Return a copy on the device of `like`."""
        return jax.device_put(x.copy(), next(iter(like.devices())))


adapter = JaxAdapter()

for _kind, _static in PYTREES.items():
    jax.tree_util.register_dataclass(_kind, data_fields=["data"], meta_fields=_static)
