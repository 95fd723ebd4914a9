"""What tests/test_jax_averaging.py runs in a process that sees four devices: functions that return NumPy's arrays."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import terngrad_kernels as tk
import terngrad_kernels.jax as tkj

# Before 0.6.2 shard_map cannot be told that what was gathered is the same everywhere.
if hasattr(jax, "shard_map"):
    shard_map, UNCHECKED = jax.shard_map, {"check_vma": False}
else:
    from jax.experimental.shard_map import shard_map

    UNCHECKED = {"check_rep": False}
CHECKED: dict[str, Any] = {} if hasattr(jax, "shard_map") else UNCHECKED
#: JAX says of each value over which devices it varies.
TRACKED = not CHECKED

AXIS = "workers"
SPECS = tkj.TernGradState(step=P(), residual=P(AXIS))


def mesh_of(world: int) -> Mesh:
    return Mesh(np.array(jax.devices()[:world]), (AXIS,))


def on_devices(function: Any, world: int, in_specs: Any, out_specs: Any, **checks: Any) -> Any:
    return jax.jit(shard_map(function, mesh=mesh_of(world), in_specs=in_specs, out_specs=out_specs, **checks))


def own(tree: Any) -> Any:
    """What lies on this device, without the axis that says which."""
    return jax.tree_util.tree_map(lambda x: x[0], tree)


def to_numpy(tree: Any) -> Any:
    return jax.tree_util.tree_map(np.asarray, tree)


def updates(steps: list[Any], world: int, options: dict[str, Any]) -> Any:
    """Averages of each step's gradients on each device, the last state, and how often it was compiled."""
    transformation = tkj.terngrad(AXIS, **options)
    params = own(steps[0])
    state = on_devices(transformation.init, world, P(), SPECS, **CHECKED)(params)

    def update(gradients: Any, state: Any) -> Any:
        means, state = transformation.update(own(gradients), state)
        return jax.tree_util.tree_map(lambda x: x[None], means), means, state

    run = on_devices(update, world, (P(AXIS), SPECS), (P(AXIS), P(), SPECS), **CHECKED)
    found = []
    for gradients in steps:
        rows, means, state = run(gradients, state)
        found.append((to_numpy(rows), to_numpy(means)))
    return found, to_numpy(state), run._cache_size()


def received(gradients: Any, options: dict[str, Any]) -> dict[str, int]:
    """Elements that each collective of the compiled program leaves on a device, by operation and type."""

    def mean(gradients: Any) -> Any:
        return tkj.all_reduce_mean(own(gradients), AXIS, step=0, **options)

    text = on_devices(mean, 4, P(AXIS), P(), **CHECKED).lower(gradients).compile().as_text()
    found: dict[str, int] = {}
    for results, name in re.findall(r"= (.*?) (all-[\w-]+|collective-[\w-]+|reduce-scatter)\(", text):
        for kind, shape in re.findall(r"(\w+)\[([\d,]*)\]", results):
            elements = int(np.prod([int(n) for n in shape.split(",") if n]))
            found[f"{name} {kind}"] = found.get(f"{name} {kind}", 0) + elements
    return found


def gradients_of_shared_parameters() -> Any:
    """The same average in every way to differentiate by parameters; and the error where they were added up already."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((4, 8, 600)).astype(np.float32), rng.standard_normal((600, 5)).astype(np.float32)

    def mean(w: Any, x: Any, prepare: Any) -> Any:
        gradient = jax.grad(lambda w: (jnp.tanh(x[0] @ w) ** 2).mean())(prepare(w))
        return gradient[None], tkj.all_reduce_mean({"w": gradient}, AXIS, step=0)["w"]

    def found(prepare: Any, **checks: Any) -> Any:
        return to_numpy(on_devices(partial(mean, prepare=prepare), 4, (P(), P(AXIS)), (P(AXIS), P()), **checks)(w, x))

    results = [found(lambda w: tkj.local(w, AXIS), **checks) for checks in (CHECKED, UNCHECKED)]
    results.append(found(lambda w: w, **UNCHECKED))
    mapped = jax.pmap(partial(mean, prepare=lambda w: w), axis_name=AXIS, in_axes=(None, 0))(w, x[:, None])
    results.append((np.asarray(mapped[0])[:, 0], np.asarray(mapped[1])[0]))
    if not TRACKED:
        return results, None
    try:
        found(lambda w: w)
    except ValueError as error:
        return results, str(error)
    raise AssertionError("no ValueError")


def axes(gradients: Any, options: dict[str, Any]) -> Any:
    """Averages over both axes of a mesh, and over one of them where XLA cuts the other by itself."""
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("nodes", "cards"))

    def over(names: Any, x: Any) -> Any:
        return tkj.all_reduce_mean(x[0], names, step=0, **options)

    both = ("nodes", "cards")
    run = shard_map(partial(over, both), mesh=mesh, in_specs=P(both), out_specs=P())
    found = [np.asarray(jax.jit(run)(gradients))]
    run = shard_map(partial(over, "nodes"), mesh=mesh, in_specs=P("nodes"), out_specs=P(), axis_names={"nodes"})
    placed = jax.device_put(gradients[:2], jax.sharding.NamedSharding(mesh, P("nodes", "cards")))
    return found + [np.asarray(jax.jit(run)(placed))]


def differing_results_are_no_shared_ones(x: Any) -> str:
    """A shard_map that says it returns one message for all, of devices that each made another."""
    try:
        on_devices(lambda x: tk.encode(x[0]).data, 4, P(AXIS), P())(x)
    except ValueError as error:
        return str(error)
    raise AssertionError("no ValueError")


def residual_from_elsewhere(params: Any) -> str:
    """What update says of a state whose residuals are not cut over the devices."""
    transformation = tkj.terngrad(AXIS, error_feedback=True, clip=1.5)
    state = on_devices(transformation.init, 4, P(), SPECS, **CHECKED)(params)
    whole = tkj.TernGradState(state.step, jax.tree_util.tree_map(np.asarray, state.residual))
    rows = jax.tree_util.tree_map(lambda x: np.stack([x] * 4), params)
    update = on_devices(lambda g, s: transformation.update(own(g), s)[0], 4, (P(AXIS), P()), P(), **CHECKED)
    try:
        update(rows, whole)
    except ValueError as error:
        return str(error)
    raise AssertionError("no ValueError")
