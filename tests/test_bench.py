"""``python -m terngrad_kernels bench``: what it measures, checks, compares and shows; nothing depends on a time."""

from __future__ import annotations

import copy
import json
import math
import re
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import terngrad_kernels as tk
from terngrad_kernels.bench import cases, command, measure, page, peers, report
from terngrad_kernels.bench.models import MODELS

HASTE = measure.Effort(1e-5, 1e-4, 3, 3)


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    """Every section, tiny."""
    patch = pytest.MonkeyPatch()
    patch.setattr(measure, "QUICK", HASTE)
    patch.setattr(cases, "QUICK_SIZES", (1024, 1 << 14, 1 << 16))
    patch.setattr(cases, "LARGE", 1 << 16)
    patch.setattr(cases, "LAYERED", 1 << 16)
    patch.setattr(cases, "MODELS", {"tiny": lambda: [(64, 32), (64,), (3, 64, 3, 3)]})
    patch.setattr(cases, "_FRAMEWORKS", {"numpy": cases._FRAMEWORKS["numpy"], "no_such": lambda _, values: values})
    few = [peer for peer in peers.PEERS if peer.name in ("terngrad_kernels", "NumPy", "NumPy, packed")]
    patch.setattr(peers, "PEERS", (*few, peers.Peer("missing", ("cpu",), ("no_such",), 1, "", lambda _: few[0])))
    patch.setattr(peers.built, "__defaults__", (peers.PEERS,))
    before = tk.get_num_threads()
    made = command.run(quick=True)
    patch.undo()
    assert tk.get_num_threads() == before
    json.dumps(made, allow_nan=False)
    return json.loads(command.dumps(made))


# ---- networks


@pytest.mark.parametrize(
    ("name", "layers", "elements"),
    [
        ("AlexNet", 16, 61_100_840),
        ("GoogLeNet", 173, 6_624_904),
        ("ResNet-50", 161, 25_557_032),
        ("VGG-16", 32, 138_357_544),
        ("BERT-base", 199, 109_482_240),
        ("GPT-2 small", 148, 124_439_808),
    ],
)
def test_networks_have_their_published_sizes(name: str, layers: int, elements: int) -> None:
    shapes = MODELS[name]()
    assert (len(shapes), sum(map(math.prod, shapes))) == (layers, elements)


# ---- what is measured


def test_a_time_stays_above_0_without_the_overhead() -> None:
    timing = measure.Timing(3e-6, 2e-6, 4e-6, 1e-6, 3, 10)
    assert timing.less(5e-7)[:4] == pytest.approx((2.5e-6, 1.5e-6, 3.5e-6, 5e-7))
    assert timing.less(2.5e-6)[:4] == pytest.approx((5e-7, 2e-7, 1.5e-6, 1e-7))  # a busy machine's


def test_rows(result: dict[str, Any]) -> None:
    assert result["format"] == command.FORMAT
    assert set(result) == {"format", "machine", "noise", "warnings", "options", "left_out", "rows"}
    assert {row["section"] for row in result["rows"]} == {*command.SECTIONS, "memory"} - {"dtypes"}
    assert set(result["noise"]) == {
        *("start", "end", "load_at_start", "load_at_end", "others_at_start", "others", "steal"),
        *("governor", "turbo", "clock_probe_us"),
    }
    for row in result["rows"]:
        seconds = row["seconds"]
        assert 0 < seconds["fastest"] <= seconds["q1"] <= seconds["median"] <= seconds["q3"]
        assert seconds["rounds"] == 3
        if row["section"] not in ("memory", "peers"):
            assert row["bound"]["seconds"] > 0
            assert row["ratio"] == pytest.approx(seconds["median"] / row["bound"]["seconds"])
    keys = [tuple(row[key] for key in report._KEY) for row in result["rows"]]
    assert len(set(keys)) == len(keys)  # by which two runs are compared
    assert result["left_out"] == ["framework no_such: not installed", "peer missing: no_such not installed"]


def test_every_operation_has_a_row_of_every_packing(result: dict[str, Any]) -> None:
    for size in (1024, 1 << 14, 1 << 16):
        rows = report.select(result, "operations", elements=size)
        expected = [(name, "two_bit") for name in cases.OPERATIONS] + [(name, "base3") for name in cases.PACKED]
        assert sorted((row["operation"], row["packing"]) for row in rows) == sorted(expected)


@pytest.mark.parametrize("operation", cases.OPERATIONS)
@pytest.mark.parametrize("packing", ["two_bit", "base3"])
@pytest.mark.parametrize("model", ["", "tiny"])
def test_bytes(monkeypatch: pytest.MonkeyPatch, operation: str, packing: str, model: str) -> None:
    """The bytes of a bound are those that the operation cannot do without."""
    if model and operation in ("pack", "unpack"):
        pytest.skip("take one array")
    monkeypatch.setattr(cases, "MODELS", {"tiny": lambda: [(40, 64), (2560,)]})
    n = 5120
    case = cases.Case("operations", operation, n, model=model, packing=packing)
    given = cases.Inputs(case, measure.CpuPlace())
    ready = cases.prepare(case, given)
    ready.call()
    message = tk.encode(given.x, packing=packing).layout.nbytes
    payload = n // (4 if packing == "two_bit" else 5)
    counts = tk.sum_trits(given.messages(packing, cases.WORKERS)).layout.nbytes
    assert (
        ready.moved
        == {
            "scales": 4 * n,
            "clip": 12 * n,
            "ternarize": 9 * n,
            "encode": 8 * n + message,
            "decode": message + 4 * n,
            "decode_sum": 4 * message + 4 * n,
            "accumulate": message + 8 * n,
            "sum_trits": 4 * message + counts,
            "repack": 9 * message,
            "pack": n + payload,
            "unpack": n + payload,
        }[operation]
    )


def test_alternation_takes_turns_and_slow_calls_fewer() -> None:
    order: list[str] = []

    class Fake(measure.Clock):
        def seconds(self, call: measure.Call, repeats: int) -> float:
            call()
            return {"a": 0.001, "b": 0.004}[order[-1]]

    calls = [lambda: order.append("a"), lambda: order.append("b")]
    told: list[int] = []
    first, second = measure.alternate(calls, Fake(), measure.Effort(0.001, 0.008, 2, 8), told.append)
    assert (first.rounds, second.rounds) == (8, 2)
    assert (first.median, second.median) == (0.001, 0.004)
    assert sorted(told) == [0, 1]
    turns = "".join(order)[-10:]
    assert turns.count("b") == 2
    assert "bb" not in turns


def test_memory_is_shared_out_to_the_last_byte() -> None:
    with measure.CpuPlace().memory(1001, 3) as call_of:
        for what in ("read", "fill", "copy", "update"):
            call_of(measure.Part(what, 1001))()
        assert call_of(measure.Part("add_one", 7))().shape == (7,)


def test_events_flush_before_each_call() -> None:
    log: list[str] = []

    class Event:
        def record(self) -> None:
            log.append("event")

        def synchronize(self) -> None:
            log.append("wait")

    def elapsed(first: Event, last: Event) -> float:
        return 6.0

    warm = measure.EventClock(Event, elapsed, lambda: log.append("hold"))
    assert warm.seconds(lambda: log.append("call"), 3) == pytest.approx(0.006)
    assert log == ["hold", "event", "call", "event"] * 3 + ["wait"]
    log.clear()
    flushed = measure.EventClock(Event, elapsed, lambda: log.append("hold"), lambda: log.append("flush"))
    assert flushed.seconds(lambda: log.append("call"), 2) == pytest.approx(0.006)
    assert log == ["flush", "hold", "event", "call", "event"] * 2 + ["wait"]
    assert (warm.cache, flushed.cache) == ("warm", "flushed")


def test_cuda_by_stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """What drives a GPU, with PyTorch's CPU in its place: every case, bound, clock and peer of one small size."""
    torch = pytest.importorskip("torch")

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            self.at = 0.0

        def record(self) -> None:
            self.at = time.perf_counter()

        def synchronize(self) -> None:
            pass

        def elapsed_time(self, last: Event) -> float:
            return (last.at - self.at) * 1e3

    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: None, raising=False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(L2_cache_size=1024))
    place = measure.CudaPlace("torch")
    assert [clock.cache for clock in place.clocks()] == ["warm", "flushed"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cases, "QUICK_SIZES", (1 << 18,))
        patch.setattr(cases, "MODELS", {"tiny": lambda: [(1 << 10, 1 << 8)]})
        sizes, *_, models = cases.groups(True, [1, 2], 1 << 30, "cuda")
        for group in (sizes, models):
            rows = list(cases.bounded_rows(group, place, HASTE))
            assert sorted({row["cache"] for row in rows}) == ["flushed", "warm"]
            assert {(row["framework"], row["device"]) for row in rows} == {("torch", "cuda")}
            ours = [row for row in rows if row["section"] != "memory"]
            assert len(ours) == 2 * len(group)
            assert all(row["bound"]["seconds"] > 0 for row in ours if row["cache"] == "warm")
    few = [peer for peer in peers.PEERS if peer.name in ("terngrad_kernels", "torch eager", "JAX jit", "NumPy")]
    monkeypatch.setattr(peers.built, "__defaults__", (few,))
    notes: list[str] = []
    rows = list(peers.measure_peers(place, 4096, HASTE, notes.append, lambda _: None))
    assert "NumPy" not in {row["operation"] for row in rows}
    assert {row["operation"]: "host's clock" in row["says"] for row in rows} == {
        "terngrad_kernels": False,
        "torch eager": False,
        **({} if notes else {"JAX jit": True}),
    }


def test_noise_is_named() -> None:
    quiet = {"others_at_start": 0.4, "others": 0.01, "steal": 0.0, "clock_probe_us": [10.0, 10.1]}
    assert measure.noise_warnings(quiet) == []
    loud = {"others_at_start": 0.4, "steal": 0.1, "clock_probe_us": [10.0, 12.0]}
    others, steal, clock = measure.noise_warnings(loud)
    assert "40%" in others
    assert "10.0%" in steal
    assert "20%" in clock


# ---- whether draws are right

X = np.random.default_rng(1).standard_normal(4096, dtype=np.float32)
LEVELS = peers.sigma_levels(X)


def drawn(seed: int, factor: float = 1.0, shared: bool = False) -> Any:
    target, low, high = LEVELS
    u = np.random.default_rng(seed).random(X.size)
    if shared:
        u = np.tile(u[:4], X.size // 4)
    scale = np.maximum(-low, high)
    return np.sign(target) * scale * (u < factor * np.abs(target) / scale)


def test_right_draws_pass() -> None:
    verdict = peers.check(drawn, *LEVELS)
    assert (verdict.unbiased, verdict.independent) == ("yes", "yes")
    assert abs(verdict.deviations or 0) < 5
    assert 0 < (verdict.visible or 0) < 0.01


@pytest.mark.parametrize("factor", [0.97, 1.03])
def test_biased_draws_are_called_biased(factor: float) -> None:
    verdict = peers.check(lambda seed: drawn(seed, factor), *LEVELS)
    assert verdict.unbiased == "BIASED"


def test_draws_that_go_together_are_called_correlated_and_not_biased() -> None:
    verdict = peers.check(lambda seed: drawn(seed, shared=True), *LEVELS)
    assert (verdict.unbiased, verdict.independent) == ("yes", "CORRELATED")


def test_one_element_that_is_always_lost_is_seen() -> None:
    """Of 4,096: no sum shows it."""

    def draw(seed: int) -> Any:
        values = drawn(seed)
        values[np.argmin(np.abs(np.abs(LEVELS[0]) - 1.2))] = 0
        return values

    assert peers.check(draw, *LEVELS).unbiased == "BIASED"


def test_levels_that_are_not_the_rules_are_seen() -> None:
    assert peers.check(lambda seed: 1.01 * drawn(seed), *LEVELS).unbiased == "WRONG LEVELS"


def test_cupys_peer_takes_cupys_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where all others take PyTorch's, as in bench/gpu_bench.py."""
    cupy = SimpleNamespace(asarray=lambda values: ("cupy", values), random=np.random)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    peer = next(peer for peer in peers.PEERS if peer.name == "CuPy")
    place = SimpleNamespace(name="torch", device="cuda", array=lambda values: ("torch", values))
    assert peer.build(place).array(np.ones(4))[0] == "cupy"  # type: ignore[arg-type]


def test_peers_that_need_nothing(result: dict[str, Any]) -> None:
    rows = report.select(result, "peers")
    assert [row["operation"] for row in rows] == ["terngrad_kernels", "NumPy", "NumPy, packed"]
    assert all((row["check"]["unbiased"], row["check"]["independent"]) == ("yes", "yes") for row in rows)


@pytest.mark.parametrize("name", ["torch eager", "JAX jit", "GRACE", "HiPress", "numba", "numba, LCG"])
def test_peers_of_frameworks(name: str) -> None:
    (peer,) = [peer for peer in peers.PEERS if peer.name == name]
    for needed in peer.needs:
        pytest.importorskip(needed)
    threads = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else 0
    verdict = peers._verdict(peer.build(measure.CpuPlace()), X)
    if threads:
        sys.modules["torch"].set_num_threads(threads)
    wrong = {"HiPress": ("yes", "CORRELATED")}
    assert verdict is not None
    if name == "numba, LCG":
        assert verdict.unbiased == "BIASED"
    else:
        assert (verdict.unbiased, verdict.independent) == wrong.get(name, ("yes", "yes"))


# ---- two runs


def slowed(result: dict[str, Any], row: int, time: float, bound: float = 1.0) -> dict[str, Any]:
    other = copy.deepcopy(result)
    seconds = other["rows"][row]["seconds"]
    for key in ("median", "q1", "q3", "fastest"):
        seconds[key] *= time
    other["rows"][row]["bound"]["seconds"] *= bound
    return other


@pytest.fixture(scope="module")
def steady(result: dict[str, Any]) -> dict[str, Any]:
    """The result as a machine without noise would have given it."""
    made = copy.deepcopy(result)
    for row in made["rows"]:
        seconds = row["seconds"]
        seconds.update(q1=0.99 * seconds["median"], q3=1.01 * seconds["median"])
        if "bound" in row:
            row["bound"]["iqr"] = 0.01 * row["bound"]["seconds"]
    return made


def verdicts(new: dict[str, Any], old: dict[str, Any]) -> list[str]:
    return [change.verdict for change in report.compare(new, old)[0]]


@pytest.mark.parametrize(
    ("time", "bound", "verdict"),
    [
        (1.0, 1.0, "same"),
        (1.04, 1.0, "same"),
        (1.2, 1.0, "slower"),
        (0.8, 1.0, "faster"),
        (1.2, 1.19, "as its bound"),
        (0.8, 0.81, "as its bound"),
        (1.5, 1.1, "slower"),
        (1.5, 0.9, "slower"),
    ],
)
def test_verdicts(steady: dict[str, Any], time: float, bound: float, verdict: str) -> None:
    expected = ["same"] * len(steady["rows"])
    expected[3] = verdict
    assert verdicts(slowed(steady, 3, time, bound), steady) == expected


@pytest.mark.parametrize("noisy", ["old", "new"])
def test_the_spread_of_either_run_excuses(steady: dict[str, Any], noisy: str) -> None:
    new, old = slowed(steady, 3, 1.2), copy.deepcopy(steady)
    seconds = (new if noisy == "new" else old)["rows"][3]["seconds"]
    seconds.update(q1=0.85 * seconds["median"], q3=1.15 * seconds["median"])
    assert verdicts(new, old)[3] == "same"


def test_machines_that_differ_and_rows_that_are_missing_are_named(steady: dict[str, Any]) -> None:
    new = copy.deepcopy(steady)
    new["machine"]["processor"] = "another"
    del new["rows"][-2:]
    changes, notes = report.compare(new, steady)
    assert len(changes) == len(steady["rows"]) - 2
    assert "another now" in notes[0]
    assert notes[-1].startswith("2 rows")


# ---- the command


def save(path: Path, result: dict[str, Any]) -> str:
    path.write_text(json.dumps(result), encoding="utf-8")
    return str(path)


def test_exit_status(steady: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A regression fails the command only where that was asked for."""
    old, new = save(tmp_path / "old.json", steady), save(tmp_path / "new.json", slowed(steady, 3, 2.0))
    assert command.main(["--show", new, "--compare", old]) == 0
    assert "1 slower" in capsys.readouterr().out
    assert command.main(["--show", new, "--compare", old, "--fail-on-regression"]) == 1
    assert command.main(["--show", old, "--compare", new, "--fail-on-regression"]) == 0


@pytest.mark.parametrize("rich", [True, False])
def test_terminal(
    result: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rich: bool
) -> None:
    if rich:
        pytest.importorskip("rich")
    monkeypatch.setattr(report, "_rich", lambda: rich)
    report.show(report.tables(result), report.machine_lines(result), ["hot"])
    shown = capsys.readouterr().out
    assert "warning: hot" in shown
    for table in report.tables(result):
        assert table.title in shown
    with report.progress(40) as step:
        for i in range(40):
            step(f"row {i}")
    assert len(capsys.readouterr().err.splitlines()) == 20


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--only", "nonsense"], "nonsense"),
        (["--most", "1"], "--most"),
        (["--fail-on-regression"], "--compare"),
        (["--json", "no/such/folder/x.json"], "no/such/folder"),
        (["--show", "no-such.json"], "no-such.json"),
        (["--device", "tpu"], "tpu"),
    ],
)
def test_wrong_usage(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code not in (0, None)
    assert named in f"{capsys.readouterr().err} {ended.value.code}"


def test_a_build_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tk, "build_info", lambda: {"cuda": None})
    with pytest.raises(SystemExit, match="no CUDA kernels"):
        command.main(["--device", "cuda"])


def test_a_file_that_is_no_result(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(SystemExit, match="not a result"):
        command.main(["--show", str(path)])


# ---- the page


class Page(HTMLParser):
    """What a page would load, its ids, and its open elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data") and not (value or "").startswith("#"):
                self.loads.append(f"{tag} {value}")
            if name == "id":
                self.ids.append(value or "")
        assert tag != "script"
        if tag not in ("meta", "br", "link", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page(steady: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    old = save(tmp_path / "old.json", steady)
    new = save(tmp_path / "new.json", slowed(steady, 3, 2.0))
    markdown = tmp_path / "table.md"
    path = tmp_path / "page.html"
    shown = ["--show", new, "--compare", old, "--html", str(path), "--markdown", str(markdown)]
    assert command.main(shown) == 0
    text = path.read_text(encoding="utf-8")
    seen = Page(text)
    assert seen.loads == []
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert seen.open == []
    assert len(set(seen.ids)) == len(seen.ids)
    assert 'name="viewport"' in text
    expected = [name for name, *_ in page.PLOTS if name != "threads" or len(command._threads(2)) > 1]
    if steady["machine"]["cores"] > 1:
        assert [name for name in seen.ids if name in {plot[0] for plot in page.PLOTS}] == expected
    for table in report.tables(steady):
        assert table.title in text
        assert f"## {table.title}" in markdown.read_text(encoding="utf-8")
    assert "Against the old run" in text
    assert len(text) < 500_000


def test_page_of_one_section(steady: dict[str, Any]) -> None:
    pytest.importorskip("matplotlib")
    only = {**steady, "rows": report.select(steady, "frameworks"), "warnings": ["loud & <hot>"]}
    text = page.render(only, report.tables(only))
    assert text.count("<figure") == 1
    assert "loud &amp; &lt;hot&gt;" in text
