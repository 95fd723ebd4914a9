"""Fully sharded models: `terngrad_kernels.torch_fsdp` among 2, 3 and 4 real processes over gloo on the loopback.

Each rank's shards of the averages have the bits that one process computes from the same gradients with `encode` and
`decode_sum` on NumPy arrays.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arrays import assert_same

import terngrad_kernels as tk

torch = pytest.importorskip("torch", minversion="2.13")
dist = pytest.importorskip("torch.distributed")
if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("this build of PyTorch has no gloo", allow_module_level=True)

import ranks_fsdp  # noqa: E402
from ranks import Pool, gradient  # noqa: E402
from ranks_fsdp import LAYERS, NAMES, SHAPES  # noqa: E402

CLIP = 1.5
WORLDS = (2, 3, 4)
NUMBERS = range(sum(map(len, LAYERS)))
ALL = dict(zip(NUMBERS, chain.from_iterable(SHAPES), strict=True))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., list[Any]]]:
    """Runs a case among the first of four processes, and returns what each found."""
    made: list[Pool] = []

    def among(world: int, case: str, *arguments: Any) -> list[Any]:
        if not made or made[-1].dead:  # after a case that failed
            # Groups are not taken down: see the end of examples/fsdp_transformer.py.
            made.append(Pool(4, tmp_path_factory.mktemp("store"), "exit", ranks_fsdp.__name__))
        return made[-1].run(case, world, *arguments)[:world]

    yield among
    for pool in made:
        pool.stop()


# ---- what one process computes


def gradients(world: int, step: int, dtype: str = "float32") -> list[dict[int, Any]]:
    """Of each rank, by the number of the layer; as tensors of `dtype` hold them."""
    kind = getattr(torch, dtype)
    return [
        {
            number: torch.from_numpy(gradient(rank, step, number, ALL[number])).to(kind).float().numpy()
            for number in NUMBERS
        }
        for rank in range(world)
    ]


def chunk(x: Any, ranks: int, place: int, dim: int = 0) -> Any:
    """What FSDP gives the rank at a place: as many rows as all but the last have, flattened."""
    most = -(-x.shape[dim] // ranks)
    return np.take(x, range(x.shape[dim])[place * most : (place + 1) * most], axis=dim)


def rounded(x: Any, dtype: str) -> Any:
    return torch.from_numpy(x).to(getattr(torch, dtype))


class Alone:
    """The shards of all ranks in one process, by the public functions."""

    def __init__(self, world: int, packing: str = "two_bit", seed: int = 0, dtype: str = "float32") -> None:
        self.world, self.packing, self.seed, self.dtype = world, packing, seed, dtype
        self.columns: set[int] = set()  # layers that are sharded in their second dimension

    def packings(self, numbers: Sequence[int]) -> list[str]:
        return ["float32" if math.prod(ALL[i]) < 512 or len(ALL[i]) < 2 else self.packing for i in numbers]

    def average(
        self, module: int, step: int, xs: Sequence[dict[int, Any]], weight: float, turn: int = 0
    ) -> dict[tuple[int, int], Any]:
        """Of one module: by layer and place. `xs`: of each rank, its layers that have a gradient."""
        numbers = [number for number in LAYERS[module] if number in xs[0]]
        found = {}
        for place in range(self.world):
            messages = []
            for rank, x in enumerate(xs):
                layers = [rounded(self.chunk(x[i], i, place).reshape(-1), self.dtype) for i in numbers]
                first = (turn * len(ALL) + LAYERS[module][0]) * self.world + place * len(LAYERS[module])
                messages.append(
                    tk.encode(layers, seed=self.seed + rank, offset=step, layer=first, packing=self.packings(numbers))
                )
            means = tk.decode_sum(messages, weights=[weight] * len(xs))
            found.update({(i, place): mean for i, mean in zip(numbers, means, strict=True)})
        return found

    def chunk(self, x: Any, number: int, place: int) -> Any:
        return chunk(x, self.world, place, 1 if number in self.columns else 0)

    def step(self, step: int, xs: Sequence[dict[int, Any]], weight: float | None = None) -> dict[tuple[int, int], Any]:
        """Of all modules."""
        weight = 1 / self.world if weight is None else weight
        found: dict[tuple[int, int], Any] = {}
        for module in range(len(LAYERS)):
            if any(number in xs[0] for number in LAYERS[module]):
                found.update(self.average(module, step, xs, weight))
        return found


def assert_shards(
    found: Sequence[Any], wanted: dict[tuple[int, int], Any], columns: Any = (), places: Any = None
) -> None:
    """`found`: of each rank, by layer. `places`: of each rank, its place among those that share the parameters."""
    places = range(len(found)) if places is None else places
    ranks = max(places) + 1
    for place, layers in zip(places, found, strict=True):
        assert [i for i in NUMBERS if layers[i] is not None] == sorted({i for i, _ in wanted})
        for i in {i for i, _ in wanted}:
            shape = chunk(np.empty(ALL[i]), ranks, place, 1 if i in columns else 0).shape
            want = wanted[i, place].to(torch.float32).numpy().reshape(shape)
            assert_same(layers[i], want, f"layer {i}, place {place}")


def same(found: Sequence[Any]) -> Any:
    """Return what all ranks found, which must be the same bits."""
    for other in found[1:]:
        for a, b in zip(other, found[0], strict=True):
            assert_same(a, b)
    return found[0]


@pytest.mark.parametrize("packing", ["two_bit", "base3"])
@pytest.mark.parametrize("world", WORLDS)
def test_averages(run: Any, world: int, packing: str) -> None:
    options = {"packing": packing, "seed": 3}
    every = run(world, "means", options, {"reshard": packing == "two_bit"})
    alone = Alone(world, packing, seed=3)
    means = []
    for step in range(2):
        means.append(alone.step(step, gradients(world, step)))
        assert_shards([found[step] for found, _, _ in every], means[-1])
    # The parameters went from zero by half of both averages; every rank puts the same ones together from the shards.
    order = [i for module in (1, 2, 0) for i in LAYERS[module]]
    for i, whole in zip(order, same([whole for _, _, whole in every]), strict=True):
        parts = [sum(-0.5 * mean[i, place].numpy() for mean in means) for place in range(world)]
        assert_same(np.concatenate(parts).reshape(ALL[i]), whole)
    for _, (sent, plain, inside), _ in every:
        assert inside == 0
        assert 12 * sent < plain


WAYS: dict[str, dict[str, Any]] = {
    "columns": {"columns": True},
    "prefetch": {"prefetch": True, "reshard": True},
    "factor": {"factor": 3.0},
    "sum": {"sum": True},
    "sum of a factor": {"sum": True, "factor": 3.0},
    "bfloat16": {"policy": {"param_dtype": "bfloat16"}},
    "bfloat16 reduced in float32": {"policy": {"param_dtype": "bfloat16", "reduce_dtype": "float32"}},
    "float16": {"policy": {"reduce_dtype": "float16"}},
}


@pytest.mark.parametrize("way", WAYS)
def test_ways_of_fsdp(run: Any, way: str) -> None:
    """FSDP divides before or after the average, or not at all; what it asks for is done once."""
    world, ways = 4 if way in ("columns", "float16") else 2, WAYS[way]
    policy = ways.get("policy", {})
    given = policy.get("param_dtype", "float32")
    alone = Alone(world, dtype=policy.get("reduce_dtype", given))
    alone.columns = {7} if "columns" in ways else set()
    # Of fp16 FSDP divides by 2 before and after where there are 4 ranks: by the square root.
    before, weight, after = {
        "factor": (1, 1 / 3, 1),
        "sum": (1, 1, 2),
        "sum of a factor": (1, 1, 3),
        "float16": (2, 1, 2),
    }.get(way, (1, 1 / world, 1))
    every = run(world, "means", {}, ways)
    for step in range(2):
        xs = [{i: x / np.float32(before) for i, x in each.items()} for each in gradients(world, step, given)]
        wanted = {key: mean.div_(after) for key, mean in alone.step(step, xs, weight).items()}
        assert_shards([found[step] for found, _, _ in every], wanted, alone.columns)


def test_accumulation_and_layers_without_gradients(run: Any) -> None:
    """Two passes at once; unused layers, unused blocks, zeros in their place; a frozen layer; a block called twice."""
    world = 2
    every = run(world, "accumulated")
    alone = Alone(world)
    at = [gradients(world, step) for step in range(7)]

    def without(xs: Sequence[dict[int, Any]], *numbers: int) -> list[dict[int, Any]]:
        return [{i: x for i, x in each.items() if i not in numbers} for each in xs]

    def times(xs: Sequence[dict[int, Any]], factor: int, numbers: Sequence[int]) -> list[dict[int, Any]]:
        return [{i: factor * x if i in numbers else x for i, x in each.items()} for each in xs]

    both = times(at[4], 2, LAYERS[1])
    wanted = [
        alone.step(0, [{i: at[0][rank][i] + at[1][rank][i] for i in NUMBERS} for rank in range(world)]),
        alone.step(1, without(at[2], 1, 2)),
        alone.step(2, without(at[3], *LAYERS[1])),
        alone.step(3, times(at[2], 0, (1, 2))),
        # Of both calls PyTorch adds up the gradients; after the other one FSDP averages zeros, as it was told to.
        {**alone.step(4, both), **alone.average(1, 4, both, 1 / world, turn=1)},
        alone.step(5, times(at[5], 2, LAYERS[1])),
        alone.step(6, without(at[6], 7)),
    ]
    for step, want in enumerate(wanted):
        assert_shards([found[step] for found in every], want)


def test_a_backward_pass_that_fails_is_no_step(run: Any) -> None:
    assert_shards(run(2, "failing"), Alone(2).step(1, gradients(2, 1)))


@pytest.mark.parametrize(
    "policy", [{}, {"param_dtype": "bfloat16", "reduce_dtype": "float32"}], ids=["float32", "bfloat16"]
)
def test_start_step(run: Any, policy: dict[str, str]) -> None:
    """Before it the bits are those of FSDP."""
    for (early, plain), (late, other) in run(3, "started_late", {}, policy):
        for x, want in zip(early, plain, strict=True):
            assert_same(x, want)
        # Three ranks with a scale each: 27 sums, of 14 magnitudes.
        assert len(np.unique(np.abs(late[0]))) <= 14 < len(np.unique(np.abs(other[0])))


def test_what_is_not_finite(run: Any) -> None:
    """A NaN takes its layer along in the shard that it lies in; an infinity of a carried layer stays; both pass."""
    found = run(2, "not_finite")
    first, later = zip(*found, strict=True)
    assert np.isnan(first[0][0]).all()
    assert np.isfinite(first[1][0]).all()
    assert np.isposinf(first[0][1][5])
    assert np.isfinite(first[1][1]).all()
    for layers in first:
        assert all(np.isfinite(x).all() for x in layers[2:])
    for layers in later:
        assert all(np.isfinite(x).all() for x in layers)


class TwoNodes(Alone):
    """Two nodes of two ranks: plain averages inside, messages between."""

    def __init__(self, clip: float, error_feedback: bool) -> None:
        super().__init__(2)
        self.clip = clip
        self.error_feedback = error_feedback
        self.lost: dict[tuple[int, int, int], Any] = {}

    def average(
        self, module: int, step: int, xs: Sequence[dict[int, Any]], weight: float, turn: int = 0
    ) -> dict[tuple[int, int], Any]:
        numbers, found = LAYERS[module], {}
        for place in range(2):
            messages = []
            for node in range(2):
                a, b = xs[2 * node], xs[2 * node + 1]
                layers = [chunk((a[i] + b[i]) / np.float32(2), 2, place).reshape(-1) for i in numbers]
                if self.error_feedback:
                    layers = [x + self.lost.get((i, place, node), 0) for i, x in zip(numbers, layers, strict=True)]
                packed = tk.encode(
                    layers,
                    clip=self.clip,
                    seed=2 * node + place,
                    offset=step,
                    layer=2 * numbers[0] + place * len(numbers),
                    packing=self.packings(numbers),
                )
                messages.append(packed)
                kept = tk.decode(packed, out=[x.copy() for x in layers], weight=-1.0, accumulate=True)
                self.lost.update({(i, place, node): x for i, x in zip(numbers, kept, strict=True)})
            means = tk.decode_sum(messages, weights=[0.5, 0.5])
            found.update({(i, place): torch.from_numpy(mean) for i, mean in zip(numbers, means, strict=True)})
        return found


@pytest.mark.parametrize("error_feedback", [False, True])
def test_hierarchical(run: Any, error_feedback: bool, tmp_path: Any) -> None:
    options = {"error_feedback": True, "clip": CLIP} if error_feedback else {}
    every = run(4, "hierarchical", options, str(tmp_path))
    alone = TwoNodes(CLIP if error_feedback else 2.5, error_feedback)
    for step in range(4):
        wanted = alone.step(step, gradients(4, step))
        assert_shards([found[step] for found, _, _ in every], wanted, places=(0, 1, 0, 1))
        if step >= 2:
            assert_shards([again[step - 2] for _, again, _ in every], wanted, places=(0, 1, 0, 1))
    for _, _, (sent, plain, inside) in every:
        assert 12 * sent < plain
        assert inside > 12 * sent


def test_a_mesh_of_two_dimensions(run: Any) -> None:
    """FSDP adds up what the shard groups averaged, of one pass or of several, and averages it over the groups."""
    every = run(4, "two_dimensions")

    def halves(step: int) -> list[dict[tuple[int, int], Any]]:
        xs = gradients(4, step)
        found = []
        for first in (0, 2):
            alone = Alone(2, seed=first)
            found.append(alone.step(step, xs[first : first + 2]))
        return found

    places = (0, 1, 0, 1)
    a, b = halves(0)
    assert_shards([found[0] for found in every], {key: (a[key] + b[key]) / 2 for key in a}, places=places)
    (a, b), (c, d) = halves(1), halves(2)
    wanted = {key: ((c[key] + a[key]) + (d[key] + b[key])) / 2 for key in a}
    assert_shards([found[1] for found in every], wanted, places=places)


def test_checkpoints(run: Any, tmp_path: Any) -> None:
    """A run that goes on has the bits of one that was not stopped."""
    for whole, loaded, unpickled in run(2, "resumed", str(tmp_path)):
        for other in (loaded, unpickled):
            for a, b in zip(chain.from_iterable(whole), chain.from_iterable(other), strict=True):
                assert_same(a, b)


@pytest.mark.parametrize("way", ["apart", "recomputed", "together"])
def test_training(run: Any, way: str) -> None:
    """The loss begins near ln 10 = 2.3; ternary gradients reach float32's to 0.25. Ranks hold the same parameters."""
    losses = []
    for ternary in (False, True):
        every = run(3, "trained", ternary, way)
        same([whole for _, whole in every])
        losses.append(float(np.mean([loss for loss, _ in every])))
    plain, ternary_loss = losses
    assert plain < 1.2
    assert ternary_loss < plain + 0.25


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"clip": 3.0}, "differ in clip: rank 2 has 3.0, rank 0 has 2.5"),
        ({"seed": 4}, "differ in seed: rank 2 has 4, rank 0 has 0"),
        ({"start_step": 2}, "differ in start_step: rank 2 has 2, rank 0 has 0"),
        (None, "differ in layers: rank 2 has [2870, 71], rank 0 has [2870, 70]"),
    ],
    ids=["clip", "seed", "start_step", "model"],
)
def test_what_differs_on_one_rank(run: Any, options: dict[str, Any] | None, text: str) -> None:
    for message in run(3, "differing", options or {}, options is None):
        assert text in message


def test_what_is_refused(run: Any) -> None:
    version = torch.__version__
    part = f"RuntimeError: terngrad_kernels.torch_fsdp: {{}} of PyTorch {version} has no {{}}, which that of"
    for rank, found in enumerate(run(2, "refused")):
        expected = [
            "ValueError: model: expected modules sharded by torch.distributed.fsdp.fully_shard, found none",
            "TypeError: state: expected a TernGradState, got NoneType",
            "ValueError: state: expected one of the strategies gather, hierarchical, got 'sum'",
            "ValueError: state: expected error_feedback=False with the strategy 'gather', got True",
            "ValueError: state: expected process_group=None with the strategy 'gather', got one",
            f"ValueError: state: expected the local_group [0, 1] that the root is sharded over, got [{rank}]",
            "ValueError: process_group: expected the ranks of one place in each node",
            "ValueError: model: expected the root to be sharded over a mesh of one dimension, the ranks of a node",
            part.format("FSDPModule", "set_custom_reduce_scatter"),
            part.format("FSDPParamGroup", "reduce_scatter_unused_params"),
            "ValueError: model: expected one group of parameters in the root, got 2",
            "ValueError: model: expected the root to be sharded, got it replicated",
            "nothing",
            "nothing",
            f"the root module: the FSDP of PyTorch {version} averages shards of ",
        ]
        assert len(found) == len(expected)
        for text, begin in zip(found, expected, strict=True):
            assert text.startswith(begin)


@pytest.mark.parametrize(("workers", "options"), [(2, ()), (4, ("--nodes", "2"))], ids=["gather", "hierarchical"])
def test_the_example(workers: int, options: tuple[str, ...]) -> None:
    """examples/fsdp_transformer.py as its first lines say, but shorter. The entropy of a character alone is 3.25."""
    program = Path(__file__).resolve().parents[1] / "examples" / "fsdp_transformer.py"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)]
    done = subprocess.run(
        [*launch, str(program), "--steps", "40", "--batch", "8", *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    first, report = done.stdout.splitlines()
    found = re.fullmatch(rf"trits, {workers} workers: loss (\d\.\d+) after 40 steps", first)
    assert found
    assert float(found[1]) < 2.9
    assert report.startswith("40 steps; ")


def test_modules_are_counted_as_they_are_named() -> None:
    """What `Alone` takes for granted of the order of modules and layers."""
    named = [name for name, module in ranks_fsdp.Net().named_modules() if name == "" or name.startswith("blocks.")]
    assert [name for name in named if name.count(".") < 2] == list(NAMES)
    assert [tuple(range(sum(map(len, LAYERS)))[i] for i in numbers) for numbers in LAYERS] == list(LAYERS)
