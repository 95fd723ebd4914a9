"""`terngrad_kernels.jax`: every device's averages are the same bits, those that NumPy's calls give in one process."""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import averages
import numpy as np
import pytest
from arrays import assert_same

import reference as ref
import terngrad_kernels as tk

jax = pytest.importorskip("jax")
jnp = jax.numpy
if not hasattr(jax, "ffi"):
    pytest.skip("jax.ffi came with JAX 0.5", allow_module_level=True)

import terngrad_kernels.jax as tkj  # noqa: E402

STRATEGIES = ("gather", "sum", "requantize")
FEEDBACK = {"error_feedback": True, "clip": averages.CLIP}

#: By name, in the order of the pytree: several units in one layer, odd sizes, biases, a scalar, an empty layer.
LEAVES: dict[str, tuple[tuple[int, ...], str]] = {
    "a": ((40, 70), "float32"),
    "b": ((70,), "bfloat16"),
    "c": ((2563, 3), "bfloat16"),
    "d": ((), "float32"),
    "e": ((0, 4), "float32"),
    "f": ((30, 30), "float32"),
}
if jax.__version_info__[:2] == (0, 11):
    del LEAVES["e"]  # compiling jax.shard_map over an empty array that is used ends the process, with or without us


class Alone(averages.Alone):
    """Of the leaves above."""

    shapes = tuple(shape for shape, _ in LEAVES.values())

    def means(self, gradients: dict[str, Any], step: int) -> dict[str, Any]:
        """Of one row a worker in each leaf."""
        names = list(LEAVES)
        found = {}
        first = 0
        for dtype in dict.fromkeys(dtype for _, dtype in LEAVES.values()):  # those of one dtype travel together
            layers = [i for i, (_, of_leaf) in enumerate(LEAVES.values()) if of_leaf == dtype]
            rows = [
                np.concatenate([gradients[names[i]][rank].reshape(-1) for i in layers]) for rank in range(self.world)
            ]
            if self.error_feedback:
                rows = [row.astype(np.float32) for row in rows]
            mean = self.average(layers, step, first, rows).astype(ref.DTYPES[dtype])
            first += len(layers)
            cuts = np.cumsum([math.prod(self.shapes[i]) for i in layers])[:-1]
            for i, part in zip(layers, np.split(mean, cuts), strict=True):
                found[names[i]] = part.reshape(self.shapes[i])
        return found


def gradients(world: int, step: int) -> dict[str, Any]:
    rng = np.random.default_rng([world, step])
    return {
        name: rng.standard_normal((world, *shape)).astype(np.float32).astype(ref.DTYPES[dtype])
        for name, (shape, dtype) in LEAVES.items()
    }


def assert_same_trees(got: Any, want: Any) -> None:
    assert set(got) == set(want)
    for name in want:
        assert_same(np.asarray(got[name]), want[name], name)


@pytest.fixture(scope="module")
def devices() -> Iterator[Callable[..., Any]]:
    """Calls functions of tests/devices.py in a process that sees four."""
    flags = os.environ.get("XLA_FLAGS")
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        import devices

        def call(name: str, *arguments: Any) -> Any:
            return process.submit(getattr(devices, name), *arguments).result(timeout=120)

        call("to_numpy", ())  # starts it
        if flags is None:
            del os.environ["XLA_FLAGS"]
        else:
            os.environ["XLA_FLAGS"] = flags
        yield call


# ---- on devices

#: Of a mesh of several axes XLA prints programs by itself.
prints = pytest.mark.skipif(
    tuple(map(int, jax.__version__.split(".")[:2])) < (0, 7),
    reason="XLA of this version ends the process when it prints a program that has our custom calls in branches",
)


@pytest.mark.parametrize("feedback", [False, True], ids=["", "feedback"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_averages_on_devices(devices: Callable[..., Any], strategy: str, feedback: bool) -> None:
    """Under shard_map and jit, which compile once. The result counts as the same on all devices: specs say P()."""
    for world, packing in ((4, "two_bit"), (2, "base3"))[: 1 if feedback else 2]:
        steps = [gradients(world, step) for step in range(3)]
        options = {"strategy": strategy, "packing": packing, **(FEEDBACK if feedback else {})}
        found, state, compiled = devices("updates", steps, world, options)
        assert compiled == 1
        assert state.step == 3
        alone = Alone(strategy, packing, world, feedback)
        for step, (rows, means) in enumerate(found):
            want = alone.means(steps[step], step)
            assert_same_trees(means, want)
            for rank in range(world):
                assert_same_trees({name: x[rank] for name, x in rows.items()}, want)
        if not feedback:
            assert state.residual == ()
            continue
        for name, (shape, _) in LEAVES.items():
            assert state.residual["first"][name].shape == (world, *shape)
        for (layers, rank, *second), lost in alone.lost.items():
            if second:
                dtypes = [dtype for _, dtype in LEAVES.values()]
                place = list(dict.fromkeys(dtypes)).index(dtypes[layers[0]])
                kept = state.residual["second"][place][rank]
                assert_same(kept[: lost.size], lost)
                assert not kept[lost.size :].any()
                continue
            leaves = list(LEAVES)
            kept = np.concatenate([state.residual["first"][leaves[i]][rank].reshape(-1) for i in layers])
            assert_same(kept, lost)


@prints
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_travels(devices: Callable[..., Any], strategy: str) -> None:
    """In the compiled program: messages, and scales where they are shared; and as many bytes as `traffic` says."""
    x = {"w": np.random.default_rng(0).standard_normal((4, 40, 2560)).astype(np.float32)}
    layout = tk.Layout([(40, 2560)], shards=1 if strategy == "gather" else 4)
    want = {
        "gather": {"all-gather u8": 4 * layout.nbytes},
        "sum": {
            "all-reduce f32": 1,
            "all-to-all u8": layout.nbytes,
            "all-gather u8": layout.with_ternary("counts4").nbytes,
        },
        "requantize": {"all-to-all u8": layout.nbytes, "all-gather u8": layout.nbytes},
    }[strategy]
    assert devices("received", x, {"strategy": strategy}) == want
    traffic = tkj.traffic({"w": x["w"][0]}, 4, strategy=strategy)
    # A fourth of what is there in the end was the device's own; and a ring passes each scale on six times in four.
    scales = 6 if strategy == "sum" else 0
    assert traffic.bytes_sent == 3 * sum(size for name, size in want.items() if "u8" in name) // 4 + scales
    assert traffic.bytes_float32 == 2 * 3 * 40 * 2560 * 4 // 4
    assert traffic.ratio == traffic.bytes_float32 / traffic.bytes_sent


def test_gradients_of_parameters_that_devices_share(devices: Callable[..., Any]) -> None:
    """shard_map adds them up by itself, unless told not to: found, not averaged once more."""
    results, refused = devices("gradients_of_shared_parameters")
    for own, mean in results:
        packed = [tk.encode([row.reshape(600, 5)], seed=rank) for rank, row in enumerate(own.reshape(4, 600, 5))]
        assert_same(mean, tk.decode_sum(packed, weights=[0.25] * 4)[0])
    if refused is not None:
        assert refused.startswith(
            "grads: expected each device's own gradients, got ones that are the same on all devices."
        )


@prints
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_several_axes(devices: Callable[..., Any], strategy: str) -> None:
    x = np.random.default_rng(0).standard_normal((4, 100, 60)).astype(np.float32)
    for world, found in zip((4, 2), devices("axes", x, {"strategy": strategy}), strict=True):
        assert_same(found, np.asarray(by_vmap(x[:world], strategy=strategy))[0])


def test_messages_of_devices_differ(devices: Callable[..., Any]) -> None:
    """A custom call's results vary as its operands do. (JAX 0.10 calls that by another name, and nothing was said.)"""
    import devices as module

    if not module.TRACKED:
        pytest.skip("this version of JAX does not track it")
    assert "replicat" in devices("differing_results_are_no_shared_ones", np.ones((4, 1000), np.float32))


def test_residuals_from_elsewhere(devices: Callable[..., Any]) -> None:
    text = devices("residual_from_elsewhere", {"w": np.ones((30, 30), np.float32)})
    assert text.startswith(
        "state.residual: expected the residuals of these gradients on one device of this axis, got others;"
    )


# ---- several devices played on one


def by_vmap(tree: Any, **options: Any) -> Any:
    mean = jax.jit(jax.vmap(lambda x: tkj.all_reduce_mean(x, "workers", step=0, **options), axis_name="workers"))
    return mean(tree)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("world", [1, 9])
def test_averages_by_vmap(world: int, strategy: str) -> None:
    """9 workers count in bytes."""
    given = gradients(world, 0)
    found = by_vmap(given, strategy=strategy)
    want = Alone(strategy, "two_bit", world).means(given, 0)
    for rank in range(world):
        assert_same_trees({name: x[rank] for name, x in found.items()}, want)


def test_seeds_of_64_bits() -> None:
    """The sum of seed and device carries into the upper word, with and without types of 64 bits."""
    x = np.random.default_rng(0).standard_normal((3, 900)).astype(np.float32)
    for seed in (2**32 - 2, -1, 2**63, 2**64 - 2):
        packed = [tk.encode(row, seed=(seed + rank) % 2**64, offset=0) for rank, row in enumerate(x)]
        found = by_vmap({"w": x}, seed=seed, float32=lambda *_: False)["w"]
        assert_same(np.asarray(found[0]), tk.decode_sum(packed, weights=[1 / 3] * 3))


def test_who_is_carried() -> None:
    """By the caller's rule, which sees paths; values that float32 holds come through exactly."""
    x = {"head": np.full((2, 40, 40), 0.25, np.float32), "body": np.full((2, 40, 40), 0.25, np.float32)}
    x["head"][0] = x["body"][0] = 0.75
    x["body"][:, 0, 0] = 1.0
    seen = []

    def carried(path: str, leaf: Any) -> bool:
        seen.append((path, leaf.shape))
        return "head" in path

    found = by_vmap(x, float32=carried)
    assert set(seen) == {("['body']", (40, 40)), ("['head']", (40, 40))}
    assert (np.asarray(found["head"]) == 0.5).all()
    assert not (np.asarray(found["body"]) == 0.5).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_nan_reaches_everybody_and_no_residual(strategy: str) -> None:
    x = np.random.default_rng(0).standard_normal((3, 30, 30)).astype(np.float32)
    x[1, 5, 5] = np.nan
    transformation = tkj.terngrad("workers", strategy=strategy, **FEEDBACK)
    state = jax.vmap(lambda x: transformation.init({"w": x}), axis_name="workers")(x)
    step = jax.jit(jax.vmap(lambda x, s: transformation.update({"w": x}, s), axis_name="workers"))
    means, state = step(x, state)
    assert np.isnan(np.asarray(means["w"])).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree_util.tree_leaves(state))
    means, _ = step(np.nan_to_num(x), state)
    assert np.isfinite(np.asarray(means["w"])).all()


def test_trees_without_leaves() -> None:
    transformation = tkj.terngrad("workers")
    assert transformation.init({}).residual == ()
    run = jax.vmap(lambda x: tkj.all_reduce_mean({"n": None}, "workers", step=0), axis_name="workers")
    assert run(np.zeros(3)) == {"n": None}
    assert tkj.traffic({}, 4) == (0, 0)


def test_with_optax() -> None:
    """As a part of a chain: the parameters of plain descent along the averages."""
    optax = pytest.importorskip("optax")
    x = np.random.default_rng(0).standard_normal((2, 30, 30)).astype(np.float32)
    chain = optax.chain(tkj.terngrad("workers", seed=5), optax.sgd(0.5))

    def run(x: Any) -> Any:
        params = {"w": jnp.zeros((30, 30))}
        state = chain.init(params)
        for _ in range(2):
            updates, state = chain.update({"w": x}, state, params)
            params = optax.apply_updates(params, updates)
        return params["w"]

    found = np.asarray(jax.jit(jax.vmap(run, axis_name="workers"))(x))
    want = np.zeros((30, 30), np.float32)
    for step in range(2):
        packed = [tk.encode(row, seed=5 + rank, offset=step) for rank, row in enumerate(x)]
        want += np.float32(-0.5) * tk.decode_sum(packed, weights=[0.5, 0.5])
    # Equal, but for the sign of zeros: XLA leaves additions to zero out.
    assert (found == want).all()


# ---- errors

REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "strategy": ({"strategy": "hierarchical"}, ValueError, r"^strategy: expected one of gather, sum, requantize, got"),
    "packing": ({"packing": "float32"}, ValueError, r"^packing: expected one of two_bit, base3, got 'float32'"),
    "seed": ({"seed": 1.5}, TypeError, r"^seed: expected an int, got float"),
    "large seed": ({"seed": 2**64}, ValueError, r"^seed: expected an int from"),
    "feedback, no clip": (
        {"error_feedback": True, "clip": "a"},
        TypeError,
        r"^clip: expected a number > 0 or None, got str",
    ),
    "clip": ({"clip": -1}, ValueError, r"^clip: expected a number > 0"),
    "block": ({"block": 7}, ValueError, r"^block: "),
    "float32": ({"float32": "bias"}, TypeError, r"^float32: expected a function of a path and a leaf, got str"),
    "feedback": ({"error_feedback": True}, ValueError, r"^clip: expected at most 2.0 with error_feedback, got 2.5"),
    "feedback unclipped": ({"error_feedback": True, "clip": None}, ValueError, r"^clip: expected at most 2.0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_options(name: str) -> None:
    options, error, text = REFUSED[name]
    with pytest.raises(error, match=text):
        tkj.terngrad("workers", **options)


def test_refused_leaves() -> None:
    with pytest.raises(TypeError, match=r"grads\['w'\]: expected one of float32, .*, got 'int32'"):
        by_vmap({"w": np.ones((2, 3), np.int32)})
    with pytest.raises(TypeError, match=r"grads\['w'\]: expected an array, got float"):
        jax.vmap(lambda x: tkj.all_reduce_mean({"w": 1.0}, "workers", step=0), axis_name="workers")(np.zeros(3))
    with pytest.raises(NameError):
        tkj.all_reduce_mean(np.zeros(3, np.float32), "workers", step=0)  # no such axis
    for world, error, text in (
        (0, ValueError, " >= 1, got 0"),
        (1.0, TypeError, ", got float"),
        (True, TypeError, ", got bool"),
    ):
        with pytest.raises(error, match=f"^world_size: expected an int{text}$"):
            tkj.traffic({}, world)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"^axis_name: expected at most 32767 devices for the strategy 'sum', got 40000"
    ):
        tkj.traffic({"w": np.zeros(3, np.float32)}, 40000, strategy="sum")
