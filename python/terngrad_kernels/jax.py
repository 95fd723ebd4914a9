"""Averaging of gradients over JAX's devices that sends 16 times fewer bytes: a function and a gradient transformation.

::

    from terngrad_kernels.jax import terngrad

    optimizer = optax.chain(terngrad("workers", seed=1), optax.adam(1e-3))

Both are called with the gradients of one device: under `jax.shard_map` or `jax.pmap`, or under `jax.vmap` with an
``axis_name``, which simulates several devices on one. The collectives are those of `jax.lax`. See
``docs/distributed.md`` for what each strategy sends, and ``docs/jax.md`` for JAX. optax is not needed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import operations as tk
from .adapters import jax as _adapter
from .averaging import WIDEST_CLIP, ring_bytes, travels_as_float32
from .layout import COUNTS, DTYPES, TERNARY, Layout, _whole, dtype_name, packing_code
from .packed import Counts, Packed, Scales, counts_for

__all__ = ["GradientTransformation", "TernGradState", "Traffic", "all_reduce_mean", "local", "terngrad", "traffic"]

STRATEGIES = ("gather", "sum", "requantize")


class GradientTransformation(NamedTuple):
    """A pair of functions, as optax defines it under this name.

    Parameters
    ----------
    init : callable
        ``init(params) -> state``.
    update : callable
        ``update(updates, state, params=None) -> (updates, state)``.
    """

    init: Callable[[Any], TernGradState]
    update: Callable[..., tuple[Any, TernGradState]]


class TernGradState(NamedTuple):
    """The state of `terngrad` between steps: a pytree.

    ``TernGradState(step=P(), residual=P("workers"))`` are its specs for `jax.shard_map`.

    Parameters
    ----------
    step : array of int32, shape ()
        Number of averages so far, which the random bits depend on. The same on all devices.
    residual : pytree
        With error feedback, what each device's messages lost; otherwise empty. ``residual["first"]`` has the shapes of
        the parameters, with a first axis of length 1 on each device, in float32. With `requantize`,
        ``residual["second"]`` has one array per dtype, of shape (1, elements of the largest shard).
    """

    step: Any
    residual: Any


class Traffic(NamedTuple):
    """Bytes that each device sends for one average, as a ring or a direct exchange sends them.

    Parameters
    ----------
    bytes_sent : int
        Bytes of messages.
    bytes_float32 : int
        Bytes that a ring all-reduce of the same elements in float32 sends.
    """

    bytes_sent: int
    bytes_float32: int

    @property
    def ratio(self) -> float:
        """Bytes of float32 divided by bytes sent."""
        return self.bytes_float32 / self.bytes_sent if self.bytes_sent else float("inf")


@dataclass(frozen=True)
class _Options:
    strategy: str
    clip: float | None
    packing: str
    block: int | None
    seed: int
    float32: Callable[[str, Any], bool] | None
    error_feedback: bool = False

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ValueError(f"strategy: expected one of {', '.join(STRATEGIES)}, got {self.strategy!r}")
        packing_code(self.packing, offered=TERNARY)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise TypeError(f"seed: expected an int, got {type(self.seed).__name__}")
        if self.float32 is not None and not callable(self.float32):
            raise TypeError(f"float32: expected a function of a path and a leaf, got {type(self.float32).__name__}")
        tk.encode(np.zeros(1, np.float32), clip=self.clip, seed=self.seed, block=self.block)  # says what is wrong
        if self.error_feedback and (self.clip is None or self.clip > WIDEST_CLIP):
            raise ValueError(
                f"clip: expected at most {WIDEST_CLIP} with error_feedback, got {self.clip}: "
                "what is lost with wider clipping adds up"
            )


class _Bucket(NamedTuple):
    """Leaves of one dtype, which travel together."""

    leaves: tuple[int, ...]  # their places in the pytree
    layer: int  # index of the first among all layers
    dtype: str
    layout: Layout


def _buckets(options: _Options, tree: Any, world: int, argument: str) -> list[_Bucket]:
    together: dict[str, list[tuple[int, str, Any]]] = {}
    for i, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(tree)):
        name = jax.tree_util.keystr(path)
        if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
            raise TypeError(f"{argument}{name}: expected an array, got {type(leaf).__name__}")
        together.setdefault(dtype_name(leaf.dtype, f"{argument}{name}"), []).append((i, name, leaf))
    if options.strategy == "sum" and world > COUNTS["counts16"]:
        raise ValueError(
            f"axis_name: expected at most {COUNTS['counts16']} devices for the strategy 'sum', got {world}"
        )
    decide = options.float32 or (lambda _, leaf: travels_as_float32(leaf.size, leaf.ndim))
    buckets = []
    layer = 0
    for dtype, members in together.items():
        layout = Layout(
            [leaf.shape for _, _, leaf in members],
            "float32" if options.error_feedback else dtype,
            ["float32" if decide(name, leaf) else options.packing for _, name, leaf in members],
            options.block,
            1 if options.strategy == "gather" else world,
            "list",
        )
        buckets.append(_Bucket(tuple(i for i, _, _ in members), layer, dtype, layout))
        layer += len(members)
    return buckets


# ---- the collectives


def _axes(axis_name: Any) -> frozenset[Any]:
    return frozenset(axis_name) if isinstance(axis_name, (tuple, list)) else frozenset([axis_name])


def _is_tracked(axis_name: Any) -> bool:
    """Return whether JAX tracks which values vary over the axis: not under vmap, nor with shard_map's checks off."""
    return _axes(axis_name) <= _adapter.varying_axes(jax.lax.axis_index(axis_name))


def _all_gather(x: Any, axis_name: Any) -> Any:
    """Gather rows, and let an enclosing shard_map know that they are the same on all devices."""
    if not _is_tracked(axis_name):
        return jax.lax.all_gather(x, axis_name)
    if "to" in inspect.signature(jax.lax.all_gather).parameters:
        return jax.lax.all_gather(x, axis_name, to="invarying")
    return jax.lax.all_gather_invariant(x, axis_name)


def _all_to_all(x: Any, axis_name: Any, world: int) -> Any:
    """Send each device its shard of a message; what comes back is one shard of every device's, in rows."""
    return jax.lax.all_to_all(x.reshape(world, -1), axis_name, 0, 0)


def _seed_of(seed: int, axis_name: Any, world: int) -> Any:
    """Return a device's own seed, seed + its index, as the two words that hold 64 bits whatever types JAX has."""
    words = [[word & 0xFFFFFFFF, word >> 32 & 0xFFFFFFFF] for word in range(seed, seed + world)]
    return jnp.asarray(words, jnp.uint32)[jax.lax.axis_index(axis_name)]


def _on_each(axis_name: Any, world: int, function: Callable[[int], Callable[..., Any]], *operands: Any) -> Any:
    """Call on each device the function of its own index, which layouts of shards need to know while tracing."""
    if world == 1:
        return function(0)(*operands)
    return jax.lax.switch(jax.lax.axis_index(axis_name), [function(rank) for rank in range(world)], *operands)


# ---- the strategies


class _Exchange:
    """One average of one bucket: what all strategies know."""

    def __init__(self, options: _Options, bucket: _Bucket, axis_name: Any, world: int, step: Any) -> None:
        self.layout, self.dtype, self.world = bucket.layout, bucket.dtype, world
        self.clip, self.axis_name = options.clip, axis_name
        self.weights = [1.0 / world] * world
        self.draw = {"offset": step, "layer": bucket.layer}
        self.seed = _seed_of(options.seed, axis_name, world)
        # A second message with error feedback is encoded like the first: a seed that no first message uses.
        self.second_seed = _seed_of(options.seed + world, axis_name, world)

    def encode(self, x: list[Any], scales: Scales | None = None) -> Packed:
        return tk.encode(x, clip=self.clip, seed=self.seed, scales=scales, layout=self.layout, **self.draw)

    def gather(self, x: list[Any], second: Any) -> tuple[list[Any], Packed, Any]:
        packed = self.encode(x)
        gathered = Packed(self.layout, _all_gather(packed.data, self.axis_name))
        return tk.decode_sum(gathered, weights=self.weights, dtype=self.dtype), packed, second

    def sum(self, x: list[Any], second: Any) -> tuple[list[Any], Packed, Any]:
        own = tk.scales(x, clip=self.clip, layout=self.layout)
        packed = self.encode(x, own._replace(scale=jax.lax.pmax(own.scale, self.axis_name)))
        received = _all_to_all(packed.data, self.axis_name, self.world)

        def add(rank: int) -> Callable[..., Any]:
            return lambda received: tk.sum_trits(Packed(self.layout.shard(rank), received)).data

        sums = _on_each(self.axis_name, self.world, add, received)
        gathered = _all_gather(sums, self.axis_name).reshape(-1)
        counts = Counts(self.layout.with_ternary(counts_for(self.world)), self.world, gathered)
        return tk.decode(counts, weight=self.weights[0], dtype=self.dtype), packed, second

    def requantize(self, x: list[Any], second: Any) -> tuple[list[Any], Packed, Any]:
        packed = self.encode(x)
        received = _all_to_all(packed.data, self.axis_name, self.world)

        def again(rank: int) -> Callable[..., Any]:
            own = self.layout.shard(rank)

            def plainly(received: Any, seed: Any, offset: Any) -> Any:
                draw = {**self.draw, "offset": offset, "seed": seed}
                return tk.repack(Packed(own, received), weights=self.weights, **draw).data

            def with_residual(received: Any, seed: Any, offset: Any, second: Any) -> Any:
                mean = tk.decode_sum(Packed(own, received), weights=self.weights) + second[: own.size]
                draw = {**self.draw, "offset": offset, "seed": seed}
                packed = tk.encode(mean, clip=self.clip, layout=own, **draw)
                lost = _lost(mean, tk.decode(packed))
                return packed.data, jnp.pad(lost, (0, second.size - own.size))

            return plainly if second is None else with_residual

        seed, offset = self.seed, self.draw["offset"]
        if second is None:
            data = _on_each(self.axis_name, self.world, again, received, seed, offset)
        else:
            data, second = _on_each(self.axis_name, self.world, again, received, self.second_seed, offset, second)
        gathered = Packed(self.layout, _all_gather(data, self.axis_name).reshape(-1))
        return tk.decode(gathered, dtype=self.dtype), packed, second


def _lost(x: Any, decoded: Any) -> Any:
    """Return what a message lost of x. What is not finite is lost for good: it would never leave again."""
    lost = x - decoded
    return jnp.where(jnp.isfinite(lost), lost, jnp.zeros_like(lost))


def _second_sizes(options: _Options, buckets: list[_Bucket]) -> list[int]:
    """Elements of the largest shard of each bucket: what a device may have to keep of second messages."""
    if options.strategy != "requantize":
        return []
    return [max(b.layout.shard(rank).size for rank in range(b.layout.shards)) for b in buckets]


def _average(options: _Options, tree: Any, axis_name: Any, step: Any, residual: Any) -> tuple[Any, Any]:
    world = jax.lax.psum(1, axis_name)  # an int: what is constant is added up while tracing
    buckets = _buckets(options, tree, world, "grads")
    leaves, structure = jax.tree_util.tree_flatten(tree)
    if leaves and _is_tracked(axis_name) and not any(_axes(axis_name) & _adapter.varying_axes(x) for x in leaves):
        raise ValueError(
            "grads: expected each device's own gradients, got ones that are the same on all devices. Under "
            "jax.shard_map the gradient with respect to shared parameters is a sum over the devices: differentiate "
            "with respect to terngrad_kernels.jax.local(params, axis_name)"
        )
    lost: list[Any] = [None] * len(leaves)
    second: list[Any] = [None] * len(buckets)
    if options.error_feedback:
        lost, second = _checked(residual, leaves, buckets, options)
    for place, bucket in enumerate(buckets):
        exchange = _Exchange(options, bucket, axis_name, world, step)
        given = [leaves[i] for i in bucket.leaves]
        if options.error_feedback:
            given = [x.astype(jnp.float32) + lost[i] for i, x in zip(bucket.leaves, given, strict=True)]
        means, packed, second[place] = getattr(exchange, options.strategy)(given, second[place])
        for i, mean in zip(bucket.leaves, means, strict=True):
            leaves[i] = mean
        if options.error_feedback:
            for i, x, decoded in zip(bucket.leaves, given, tk.decode(packed), strict=True):
                lost[i] = _lost(x, decoded)
    kept = _residual(lost, second, structure, options) if options.error_feedback else residual
    return jax.tree_util.tree_unflatten(structure, leaves), kept


def _residual(lost: list[Any], second: list[Any], structure: Any, options: _Options) -> dict[str, Any]:
    """Return residuals with the axis at the front that shard_map cuts."""
    first = jax.tree_util.tree_unflatten(structure, [x[None] for x in lost])
    if options.strategy != "requantize":
        return {"first": first}
    return {"first": first, "second": [x[None] for x in second]}


def _checked(
    residual: Any, leaves: list[Any], buckets: list[_Bucket], options: _Options
) -> tuple[list[Any], list[Any]]:
    """Return this device's residuals, of the leaves and of the second messages."""
    shapes = [(1, *leaf.shape) for leaf in leaves] + [(1, size) for size in _second_sizes(options, buckets)]
    found = jax.tree_util.tree_leaves(residual)
    if [x.shape for x in found] != shapes:
        raise ValueError(
            "state.residual: expected the residuals of these gradients on one device of this axis, got others; "
            "call init where update is called, and give shard_map the specs TernGradState(step=P(), "
            'residual=P("workers"))'
        )
    flat = [x[0] for x in found]
    return flat[: len(leaves)], flat[len(leaves) :] or [None] * len(buckets)


# ---- the function and the transformation


def local(params: Any, axis_name: Any) -> Any:
    """Return parameters by which `jax.grad` gives each device's own gradient under `jax.shard_map`.

    There the gradient with respect to a value that all devices share is a sum over them, which JAX sends as float32
    before it could be ternarized. Elsewhere, and with shard_map's checks off, `params` is returned unchanged.

    Parameters
    ----------
    params : pytree of arrays
        The same on all devices.
    axis_name : str or tuple of str
        As in `all_reduce_mean`.

    Returns
    -------
    pytree of arrays
        The same values.
    """
    if not _is_tracked(axis_name):
        return params
    return jax.tree_util.tree_map(lambda x: _adapter.vary(x, _axes(axis_name)), params)


def all_reduce_mean(
    grads: Any,
    axis_name: Any,
    *,
    step: Any,
    seed: int = 0,
    strategy: str = "gather",
    clip: float | None = 2.5,
    packing: str = "two_bit",
    block: int | None = None,
    float32: Callable[[str, Any], bool] | None = None,
) -> Any:
    """Average each device's gradients over the devices of an axis, sent as trits: `jax.lax.pmean` with fewer bytes.

    Every device gets the same bits: those that `terngrad_kernels` computes in one process from the same gradients.

    Parameters
    ----------
    grads : pytree of arrays
        Floating-point arrays of any dtypes and of the same shapes on all devices. Arrays of one dtype travel together.
    axis_name : str or tuple of str
        Name of the axis or axes of the enclosing `jax.shard_map`, `jax.pmap` or `jax.vmap`.
    step : int or array
        Step counter, as ``offset`` of `terngrad_kernels.encode`. If it is traced, a new value compiles nothing again.
    seed : int, default 0
        Seed, the same on all devices: each adds its index.
    strategy : {"gather", "sum", "requantize"}, default "gather"
        How messages travel; see ``docs/distributed.md``.
    clip, block
        As in `terngrad_kernels.encode`.
    packing : {"two_bit", "base3"}, default "two_bit"
        Packing of the ternary layers.
    float32 : callable, optional
        ``float32(path, leaf) -> bool``: whether a leaf is carried as float32; the path is that of
        ``jax.tree_util.keystr``, such as ``"['dense']['kernel']"``. By default leaves of fewer than 512 elements are,
        and those of one dimension and fewer than 65536.

    Returns
    -------
    pytree of arrays
        Averages, in the structure of `grads`. From JAX 0.6.2 on, `jax.shard_map` knows that they are equal on all
        devices; older versions need ``check_rep=False``.

    Raises
    ------
    TypeError, ValueError
        While tracing. The message names the argument or the leaf.
    """
    options = _Options(strategy, clip, packing, block, seed, float32)
    return _average(options, grads, axis_name, step, ())[0]


def terngrad(
    axis_name: Any,
    *,
    seed: int = 0,
    strategy: str = "gather",
    clip: float | None = 2.5,
    packing: str = "two_bit",
    block: int | None = None,
    float32: Callable[[str, Any], bool] | None = None,
    error_feedback: bool = False,
) -> GradientTransformation:
    """Return the average over devices as a gradient transformation: the first of an `optax.chain`, or by itself.

    Parameters
    ----------
    axis_name, seed, strategy, clip, packing, block, float32
        As in `all_reduce_mean`.
    error_feedback : bool, default False
        Add what the last step lost (clipping included) to the gradient of this step, in float32, at both quantisations
        of `requantize` (which then clips both). Needs ``clip <= 2``.

    Returns
    -------
    GradientTransformation
        ``init(params)`` and ``update(updates, state, params=None)``. `update` takes the gradients of this device, where
        `axis_name` is bound. With error feedback `init` must be called there too; without it, anywhere.

    Raises
    ------
    TypeError, ValueError
        The message names the argument; `update` raises while tracing.
    """
    options = _Options(strategy, clip, packing, block, seed, float32, bool(error_feedback))

    def init(params: Any) -> TernGradState:
        step = jnp.zeros((), jnp.int32)
        if not options.error_feedback:
            return TernGradState(step, ())
        leaves, structure = jax.tree_util.tree_flatten(params)
        zeros = [jnp.zeros(leaf.shape, jnp.float32) for leaf in leaves]
        buckets = _buckets(options, params, jax.lax.psum(1, axis_name), "params")
        second = [jnp.zeros(size, jnp.float32) for size in _second_sizes(options, buckets)]
        return TernGradState(step, _residual(zeros, second, structure, options))

    def update(updates: Any, state: TernGradState, params: Any = None) -> tuple[Any, TernGradState]:
        means, residual = _average(options, updates, axis_name, state.step, state.residual)
        return means, TernGradState(state.step + 1, residual)

    return GradientTransformation(init, update)


def traffic(
    params: Any,
    world_size: int,
    *,
    strategy: str = "gather",
    packing: str = "two_bit",
    block: int | None = None,
    float32: Callable[[str, Any], bool] | None = None,
) -> Traffic:
    """Return what each device sends for one average, computed from shapes alone.

    Parameters
    ----------
    params : pytree of arrays
        Arrays, or objects with shape, ndim, size and dtype, as `jax.eval_shape` returns them.
    world_size : int
        Number of devices.
    strategy, packing, block, float32
        As in `all_reduce_mean`.

    Returns
    -------
    Traffic
        The bytes sent, and those of float32.

    Raises
    ------
    TypeError, ValueError
        The message names the argument or the leaf.
    """
    world_size = _whole(world_size, "world_size", 1)
    others = world_size - 1
    sent = elements = 0
    for bucket in _buckets(_Options(strategy, None, packing, block, 0, float32), params, world_size, "params"):
        layout = bucket.layout
        elements += layout.size
        if strategy == "gather":
            sent += others * layout.nbytes
        else:
            second = layout.with_ternary(counts_for(world_size)) if strategy == "sum" else layout
            sent += others * (layout.nbytes + second.nbytes) // world_size
        if strategy == "sum":
            sent += ring_bytes(4 * layout.groups, world_size)
    return Traffic(sent, ring_bytes(DTYPES["float32"] * elements, world_size))
