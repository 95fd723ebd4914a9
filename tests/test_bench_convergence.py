"""bench/convergence: its exchanges are those of real ranks, and what docs/convergence.md says stands in its results."""

from __future__ import annotations

import math
import multiprocessing
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import terngrad_kernels as tk

torch = pytest.importorskip("torch")
dist = pytest.importorskip("torch.distributed")
pytest.importorskip("mlxtend")
if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("this build of PyTorch has no gloo", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bench"))

from convergence import __main__ as program  # noqa: E402
from convergence import networks, plan, tables, training  # noqa: E402
from convergence.exchanges import Exchange, Options, quantisation  # noqa: E402

from terngrad_kernels.torch import TernGradState, all_reduce_mean  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

RESULTS = ROOT / "bench" / "results" / "2026-11-24-convergence"
SEED, STEPS = 77, 3
CASES = {
    "gather": Options("gather"),
    "sum": Options("sum"),
    "requantize": Options("requantize"),
    "base3": Options("requantize", packing="base3"),
    "block": Options("gather", block=2560, clip=None),
    "feedback": Options("gather", clip=1.5, error_feedback=True),
    "sum feedback": Options("sum", clip=1.5, error_feedback=True),
    "requantize feedback": Options("requantize", clip=1.5, error_feedback=True),
}


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    ours, theirs = tk.get_num_threads(), torch.get_num_threads()
    yield
    tk.set_num_threads(ours)
    torch.set_num_threads(theirs)


def gradients(workers: int, step: int) -> Any:
    made = torch.from_numpy(np.random.default_rng([step, 5]).standard_t(3, (4, 90_026)).astype(np.float32))
    return made[:workers]


def _rank(rank: int, world: int, address: str, answers: Any) -> None:
    """One real rank: its averages in each case and step, and the bytes it says that it sent."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    shapes = [parameter.shape for parameter in networks.LeNet().parameters()]
    found = {}
    for name, options in CASES.items():
        state = TernGradState(
            strategy=options.rule,
            clip=options.clip,
            packing=options.packing,
            block=options.block,
            error_feedback=options.error_feedback,
            seed=SEED,
        )
        means = []
        for step in range(STEPS):
            pieces = gradients(world, step)[rank].split([shape.numel() for shape in shapes])
            layers = [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]
            all_reduce_mean(layers, state)
            means.append(np.concatenate([layer.numpy().ravel() for layer in layers]))
        found[name] = (means, state.report().bytes_sent)
    if rank == 0:
        answers.put(found)
    dist.destroy_process_group()


def test_exchanges_are_those_of_real_ranks(tmp_path: Path) -> None:
    world = 3
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    arguments = (world, f"file://{tmp_path}/store", answers)
    processes = [context.Process(target=_rank, args=(rank, *arguments), daemon=True) for rank in range(world)]
    for process in processes:
        process.start()
    found = answers.get(timeout=120)
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    model = networks.LeNet()
    for name, options in CASES.items():
        exchange = Exchange(options, model, world, SEED)
        means, sent = found[name]
        for step, mean in enumerate(means):
            ours = exchange(gradients(world, step), step).numpy()
            assert (ours.view(np.uint32) == mean.view(np.uint32)).all(), (name, step)
        assert exchange.traffic.sent == sent, name


def run_of(**changed: Any) -> training.Run:
    made = {"experiment": "strategies", "variant": "float32", "seed": 1, "options": Options("float32"), **plan.DIGITS}
    return training.Run(**{**made, "rate": 0.05, **changed})  # type: ignore[arg-type]


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_float32_of_one_worker_is_plain_training(optimizer: str) -> None:
    run = run_of(workers=1, batch=32, steps=8, optimizer=optimizer, rate=0.002)
    on, ours, plain = networks.digits(1).first(300), networks.network("lenet", 1), networks.network("lenet", 1)
    curve = training.train(run, on, ours)["curve"]
    if optimizer == "adam":
        updates: Any = torch.optim.Adam(plain.parameters(), lr=0.002)
    else:
        updates = torch.optim.SGD(plain.parameters(), lr=0.002, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(updates, lambda step: (1 + math.cos(math.pi * step / 8)) / 2)
    losses = []
    for taken in training.batches(300, 8, 32, 1):
        updates.zero_grad()
        loss = torch.nn.functional.cross_entropy(plain(on.inputs[taken]), on.targets[taken])
        loss.backward()
        updates.step()
        schedule.step()
        losses.append(float(f"{loss.item():.4g}"))
    assert curve == losses
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["lenet", "transformer"])
def test_gradients_of_each_worker(name: str) -> None:
    model, on = networks.network(name, 3), networks.task(name, 3)
    inputs, targets = (x[:12].view(3, 4, *x.shape[1:]) for x in (on.inputs, on.targets))
    found, losses = training.per_worker(model)(inputs, targets)
    for worker in range(3):
        loss = networks.loss_of(model(inputs[worker]), targets[worker])
        layers = torch.autograd.grad(loss, list(model.parameters()))
        torch.testing.assert_close(
            found[worker], torch.cat([layer.flatten() for layer in layers]), rtol=1e-4, atol=1e-6
        )
        torch.testing.assert_close(losses[worker], loss.detach())


def test_every_worker_count_sees_the_same_batches() -> None:
    on = networks.digits(1).first(300)
    few, many = (training.train(run_of(workers=workers, batch=32, steps=1), on)["curve"] for workers in (2, 32))
    assert few == pytest.approx(many, rel=1e-3)


def test_seeds_of_runs_do_not_meet() -> None:
    """A rank's seed is the run's plus its number, and a second hop with feedback adds the workers once more."""
    assert 2 * max(plan.WORKERS) <= training.SEEDS


# ---- other people's rules


@pytest.mark.parametrize(("rule", "values"), [("grace", 3), ("hipress", 4), ("hipress_independent", 4)])
def test_rules_of_others(rule: str, values: int) -> None:
    """One worker's message has so many values a layer, and its mean over many draws is the (clipped) gradient.

    A layer's mean of 200 draws of 81,920 elements, each within one gap of its own expectation, errs by more than
    gap * sqrt(2 ln(2e9) / 200 / elements) with a probability of 1e-9; alike draws are as few as 4 a message.
    """
    model = networks.LeNet()
    exchange = Exchange(Options(rule), model, 1, SEED)
    x = gradients(1, 0)
    total = torch.zeros_like(x[0], dtype=torch.float64)
    for step in range(200):
        mean = exchange(x, step)
        total += mean
    layer, own = (flat.split(exchange.sizes)[4] for flat in (mean, x[0]))
    assert len(layer.unique()) == values
    gap = float(layer.unique().double().diff().max())
    if rule == "grace":
        own = own.clamp(-2.5 * own.std(unbiased=False), 2.5 * own.std(unbiased=False))
        assert float(layer.max()) == pytest.approx(float(own.max()), rel=1e-6)
    else:
        assert (float(layer.min()), float(layer.max())) == pytest.approx((float(own.min()), float(own.max())), rel=1e-6)
    draws = 4 if rule == "hipress" else layer.numel()
    off = (total.split(exchange.sizes)[4] / 200 - own).mean().item()
    assert abs(off) < gap * math.sqrt(2 * math.log(2e9) / 200 / draws)


def test_hipress_draws_alike_in_every_byte() -> None:
    x = torch.linspace(-1, 1, 90_026)[None].clone()
    x[0, 300:5000] = -0.95  # in the second convolution, which has 5,000 from element 260 on
    exchange = Exchange(Options("hipress"), networks.LeNet(), 1, SEED)
    second = exchange(x, 0).split(exchange.sizes)[2][40:4700].view(-1, 4)
    assert len(second.unique(dim=0)) == 1
    independent = Exchange(Options("hipress_independent"), networks.LeNet(), 1, SEED)
    assert len(independent(x, 0).split(exchange.sizes)[2][40:4700].view(-1, 4).unique(dim=0)) > 4


@pytest.mark.parametrize("clip", [2.5, 1.0, None])
def test_what_ternarizing_costs(clip: float | None) -> None:
    """The formula against the package: clipping to the bit of rounding, the error over 300 draws within 2 %."""
    x = gradients(1, 0)[0, :20_000]
    clipped, error = quantisation(x, clip)
    power = float(x.double().square().sum())
    lost = float((x - tk.clip(x, clip=clip)).double().square().sum()) / power
    assert clipped == pytest.approx(lost, rel=1e-5)
    errors = [float((tk.decode(tk.encode(x, clip=clip, seed=1, offset=i)) - x).square().sum()) for i in range(300)]
    assert error == pytest.approx(np.mean(errors) / power, rel=0.02)


# ---- the program, and what was made with it


def test_quick(tmp_path: Path) -> None:
    """Runs of every kind are made, each once, and those that are there are not made again."""
    wanted = [run for run in plan.quick() if run.experiment in ("strategies", "text")]
    assert {run.variant for run in wanted} | {"gather, ends in float32"} == set(plan.VARIANTS)
    for experiment in ("strategies", "text"):
        arguments = [str(tmp_path), "--quick", "--only", experiment]
        assert program.main([*arguments, "--seconds", "-1"]) == 75
        assert program.main(arguments) == 0
        assert program.main([*arguments, "--seconds", "-1"]) == 0
    assert program.pending(tmp_path, wanted) == []
    lines = program.read(tmp_path, "strategies")
    assert len(lines) == len(plan.DIGITS_VARIANTS)
    assert all(math.isfinite(loss) for line in lines for loss in line["curve"])
    by_name = {line["variant"]: line for line in lines}
    assert by_name["gather"]["curve"] == by_name["gather, base-3"]["curve"] != by_name["float32"]["curve"]


needs_results = pytest.mark.skipif(not RESULTS.exists(), reason="the results are not in a source distribution")


@needs_results
def test_no_seed_is_left_out() -> None:
    """Runs come in the order of their seeds, each once, at the rates that were best for float32."""
    planned: dict[Any, list[int]] = {}
    for run in plan.runs():
        planned.setdefault((run.experiment, *run.key[:-1]), []).append(run.seed)
    found: dict[Any, list[int]] = {}
    for name in plan.EXPERIMENTS:
        for line in program.read(RESULTS, name):
            found.setdefault((name, *program.key_of(line)[:-1]), []).append(line["seed"])
    for key, seeds in found.items():
        assert key[0] == "rates" or sorted(seeds) == planned[key][: len(seeds)], key
    best = tables.best_rates(RESULTS)
    assert best.pop(("transformer", "adam")) == plan.TEXT_RATE
    assert best == {("lenet", optimizer): rate for optimizer, rate in plan.RATES.items()}


@needs_results
def test_base3_trains_alike_to_the_bit() -> None:
    """Another packing of the same trits: nothing but the bytes differs."""
    lines = program.read(RESULTS, "strategies")
    for dense, other in (
        ("gather, base-3", "gather"),
        ("gather, base-3, every layer ternary", "gather, every layer ternary"),
    ):
        found = [
            {line["seed"]: (line["curve"], line["accuracy"]) for line in lines if line["variant"] == name}
            for name in (dense, other)
        ]
        assert found[0] == found[1] != {}


@needs_results
def test_tables_and_pictures_of_the_page() -> None:
    pytest.importorskip("scipy")
    page = (ROOT / "docs" / "convergence.md").read_text()
    assert tables.rewrite(page, tables.tables(RESULTS)) == page
    for picture in re.findall(r"\((convergence-\w+\.svg)\)", page):
        assert (ROOT / "docs" / picture).exists()


def test_the_paired_test() -> None:
    stats = pytest.importorskip("scipy.stats")
    values, base = {1: 0.5, 2: 0.7, 3: 0.2, 9: 5.0}, {1: 0.4, 2: 0.65, 3: 0.3, 4: 0.1}
    found = tables.compare(values, base)
    known = stats.ttest_rel([0.5, 0.7, 0.2], [0.4, 0.65, 0.3])
    assert (found.pairs, found.p) == (3, pytest.approx(known.pvalue))
    assert (found.low, found.high) == pytest.approx(tuple(known.confidence_interval()))
    assert tables.compare(base, base)[1:] == (0.0, 0.0, 0.0, 1.0)
    assert tables.holm([0.01, math.nan, 0.04, 0.03]) == pytest.approx([0.03, math.nan, 0.06, 0.06], nan_ok=True)
