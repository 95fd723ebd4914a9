"""The CUDA kernels beside their bounds and their peers, in one run on one GPU: ``python bench/gpu_bench.py FOLDER``.

Writes cuda.json and cuda.md. Times are medians of CUDA events, with the GPU held up while the host queues the work, so
that they hold no time of the host's (calls of peers that wait for the host do). "cold": before each round the L2 cache
is filled with something else, by reading it, so that no round pays for writing back what the cache held. Bounds are
measured in the same run with the same clock: a kernel that only reads the input (twice for encode, plus what the
message takes to write), and PyTorch's copy. So ratios stand for any card; targets in us were set for an H100.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

import terngrad_kernels as tk
from terngrad_kernels.bench.measure import CudaPlace
from terngrad_kernels.bench.models import gpt2, resnet50
from terngrad_kernels.bench.peers import built

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

RESNET = 25_600_000
LARGE = 134_217_728
#: Cycles for which the GPU is held up while the host queues a round: 0.3 ms, or twice what the call took to queue.
HELD = 600_000

Call = Callable[[], Any]


class Clock:
    """Times calls on the current stream."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        size = 4 * torch.cuda.get_device_properties(0).L2_cache_size
        self.sweep = reader(torch.zeros(max(size, 1 << 26) // 4, device="cuda"))

    def __call__(self, call: Call, cold: bool = True, rounds: int | None = None) -> dict[str, float]:
        """Return median and quartiles in us."""
        for _ in range(3):
            call()
        torch.cuda.synchronize()
        started = perf_counter()
        call()
        held = max(HELD, int(4e9 * (perf_counter() - started)))
        torch.cuda.synchronize()
        spans = []
        for _ in range(rounds or self.rounds):
            if cold:
                self.sweep()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(held)
            start.record()
            call()
            end.record()
            torch.cuda.synchronize()
            spans.append(1e3 * start.elapsed_time(end))
        low, median, high = statistics.quantiles(spans, n=4)
        return {"us": median, "low": low, "high": high}


def host_us(call: Call, calls: int = 200, rounds: int = 15) -> float:
    """Microseconds of the host for one call of several in a row, the GPU far behind."""
    best = float("inf")
    for _ in range(3):
        call()
    for _ in range(rounds):
        torch.cuda.synchronize()
        torch.cuda._sleep(40 * HELD)
        start = perf_counter()
        for _ in range(calls):
            call()
        best = min(best, (perf_counter() - start) / calls)
    torch.cuda.synchronize()
    return 1e6 * best


def wall_us(call: Call, wait: Call, rounds: int = 15) -> dict[str, float]:
    """Microseconds until a call has ended, for what runs on streams of its own."""
    wait(call())
    spans = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = perf_counter()
        wait(call())
        spans.append(1e6 * (perf_counter() - start))
    low, median, high = statistics.quantiles(spans, n=4)
    return {"us": median, "low": low, "high": high, "clock": "host"}


# ---- the bound

if triton is not None:

    @triton.jit
    def _read(x, out, n, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        tl.store(out + tl.program_id(0), tl.max(tl.load(x + at, mask=at < n, other=0.0).to(tl.float32)))


def reader(x: Any) -> Call:
    """Return what reads `x` once and writes next to nothing."""
    block = 8192
    blocks = triton.cdiv(x.numel(), block)
    out = torch.empty(blocks, device="cuda")
    return lambda: _read[(blocks,)](x, out, x.numel(), BLOCK=block, num_warps=8)


# ---- the run


class Report:
    """Rows as they come, so that a run that is cut short leaves what it has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        info = tk.build_info()
        card = torch.cuda.get_device_properties(0)
        self.all: dict[str, Any] = {
            "device": torch.cuda.get_device_name(),
            "processors": card.multi_processor_count,
            "l2_bytes": card.L2_cache_size,
            "memory_bytes": card.total_memory,
            "torch": torch.__version__,
            "triton": getattr(triton, "__version__", None),
            "build": info,
            "rows": [],
            "failed": {},
        }

    def add(self, name: str, time: dict[str, float], **notes: Any) -> None:
        bound = notes.get("bound_us")
        if bound:
            notes["over_bound"] = time["us"] / bound
        self.all["rows"].append({"name": name, **time, **notes})
        print(f"{name:<58} {time['us']:>10.1f} us", *(f"{k}={v}" for k, v in notes.items()), flush=True)
        self.write()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Go on after a part that fails, and say so."""
        try:
            yield
        except Exception as error:
            self.all["failed"][name] = f"{type(error).__name__}: {error}"
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        torch.cuda.empty_cache()
        self.write()

    def write(self) -> None:
        (self.folder / "cuda.json").write_text(json.dumps(self.all, indent=1, default=str) + "\n")
        card = (
            f"{self.all['device']}, {self.all['processors']} processors, {self.all['l2_bytes'] / 2**20:.0f} MiB of L2"
        )
        lines = [
            f"{card}; PyTorch {self.all['torch']}",
            "",
            "| | us | bound | x bound | target (us: on an H100) | |",
            "|---|---|---|---|---|---|",
        ]
        for row in self.all["rows"]:
            bound, over = row.get("bound_us"), row.get("over_bound")
            shown = [f"{bound:.1f}" if bound else "", f"{over:.3f}" if over else "", row.get("target", "")]
            lines.append(f"| {row['name']} | {row['us']:.1f} | " + " | ".join(shown) + f" | {row.get('note', '')} |")
        lines += [f"\n{name}: {text}" for name, text in self.all["failed"].items()]
        (self.folder / "cuda.md").write_text("\n".join(lines) + "\n")


def encode_bound(clock: Clock, x: Any, cold: bool = True) -> float:
    """Two reads of the input, and the message written."""
    read, message = reader(x), torch.empty(x.numel() // 4, dtype=torch.uint8, device="cuda")

    def twice() -> None:
        read()
        read()
        message.fill_(1)

    return clock(twice, cold)["us"]


def launches_of_encode() -> Iterator[str]:
    """Both ways, one after the other: which is faster where decides what is shipped."""
    for at_once, text in ((False, "two launches"), (True, "one launch")):
        tk._core.set_cuda_at_once(at_once)
        yield text
    tk._core.set_cuda_at_once(False)


def single_layers(clock: Clock, report: Report, quick: bool) -> None:
    targets = {(LARGE, "float32"): "1.03 x", (RESNET, "float32"): "60 us", (1 << 20, "float32"): "8 us"}
    for n in (1 << 20, RESNET, LARGE):
        for dtype in ("float32", "bfloat16"):
            x = torch.randn(n, device="cuda", dtype=getattr(torch, dtype))
            out = tk.encode(x).data
            target = targets.get((n, dtype), "1.05 x" if n > 1 << 20 else "")
            read = clock(reader(x))["us"]
            for cold in (True, False):
                note = "L2 cold" if cold else "L2 warm"
                bound = encode_bound(clock, x, cold)
                step = torch.zeros((), dtype=torch.int64, device="cuda")
                for launches in launches_of_encode():
                    report.add(
                        f"encode {n} {dtype}, {launches}",
                        clock(lambda x=x, out=out, step=step: tk.encode(x, seed=1, offset=step, out=out), cold),
                        bound_us=bound,
                        read_once_us=read,
                        target=target,
                        note=note,
                    )
    if quick:
        return
    x = torch.randn(RESNET, device="cuda")
    out = tk.encode(x, packing="base3").data
    report.add(f"encode {RESNET} base3", clock(lambda: tk.encode(x, packing="base3", out=out)))


def buckets(clock: Clock, report: Report) -> None:
    twelve = [(2048, 512, 1, 1), (2048,), (2048,), (512, 512, 3, 3), (512,), (512,), (512, 2048, 1, 1), (512,), (512,)]
    twelve += [(2048, 512, 1, 1), (2048,), (2048,)]
    cases = {
        "ResNet-50's 161 layers": (resnet50(), "60 us"),
        "GPT-2's 148 layers": (gpt2(), "380 us"),
        "a 25 MB bucket of 12 layers": (twelve, "20 us"),
        "10,000 layers of 2,560": ([(2560,)] * 10_000, ""),
    }
    for name, (shapes, target) in cases.items():
        with report.part(name):
            x = [torch.randn(shape, device="cuda") for shape in shapes]
            flat = torch.cat([layer.reshape(-1) for layer in x])
            layout = tk.Layout(shapes, form="list")
            out, packed = tk.encode(x).data, tk.encode(x)
            bound = encode_bound(clock, flat)
            for cold in (True, False):
                note = "L2 cold" if cold else "L2 warm"
                for launches in launches_of_encode():
                    report.add(
                        f"encode {name}, {launches}", clock(lambda x=x, out=out: tk.encode(x, out=out), cold),
                        bound_us=bound, target=target, note=note,
                    )  # fmt: skip
            for launches in launches_of_encode():
                report.add(
                    f"encode {name}, as one flat array, {launches}",
                    clock(lambda flat=flat, layout=layout, out=out: tk.encode(flat, layout=layout, out=out)),
                    bound_us=bound,
                    target=target,
                )
            outs = tk.decode(packed)
            report.add(f"decode {name}", clock(lambda packed=packed, outs=outs: tk.decode(packed, out=outs)))


def decodes(clock: Clock, report: Report) -> None:
    for n in (RESNET, LARGE):
        x = torch.randn(n, device="cuda")
        y = torch.empty_like(x)
        copy = clock(lambda x=x, y=y: y.copy_(x))["us"]
        bandwidth = 8 * n / copy  # bytes a us, read and written
        report.add(f"copy {n}", {"us": copy}, note=f"{bandwidth / 1e6:.2f} TB/s")
        packed = tk.encode(x)
        report.add(
            f"decode {n}",
            clock(lambda packed=packed, y=y: tk.decode(packed, out=y)),
            bound_us=4.25 * n / bandwidth,
            target=f"{1 / 0.95:.3f} x",
        )
        rows = tk.Packed(packed.layout, torch.stack([tk.encode(x, seed=k).data for k in range(8)]))
        report.add(
            f"decode_sum of 8, {n}",
            clock(lambda rows=rows, y=y: tk.decode_sum(rows, weights=[0.125] * 8, out=y)),
            bound_us=6 * n / bandwidth,
            target="1.1 x",
        )
        counts = tk.sum_trits(rows)
        report.add(f"sum_trits of 8, {n}", clock(lambda rows=rows, out=counts.data: tk.sum_trits(rows, out=out)))
        again = packed.data.clone()
        report.add(f"repack of 8, {n}", clock(lambda rows=rows, out=again: tk.repack(rows, seed=1, offset=2, out=out)))


def overheads(report: Report) -> None:
    x = torch.randn(1024, device="cuda")
    packed = tk.encode(x)
    y = torch.empty_like(x)
    layers = [torch.randn(n, device="cuda") for n in (640, 64, 64) * 54][:161]
    message = tk.encode(layers).data
    for name, call, target in (
        ("encode", lambda: tk.encode(x, seed=1), "12 us"),
        ("encode with out=", lambda: tk.encode(x, seed=1, out=packed.data), "8 us"),
        ("decode", lambda: tk.decode(packed), "12 us"),
        ("decode with out=", lambda: tk.decode(packed, out=y), "8 us"),
        ("encode of 161 layers with out=", lambda: tk.encode(layers, out=message), ""),
        ("PyTorch's x + 1", lambda: x + 1, ""),
    ):
        report.add(f"a call from Python: {name}", {"us": host_us(call)}, target=target, note="host")
    try:
        import cupy

        there = cupy.from_dlpack(x)
        out = tk.encode(there).data
        report.add("a call from Python: CuPy, encode", {"us": host_us(lambda: tk.encode(there))}, note="host")
        report.add(
            "a call from Python: CuPy, encode with out=",
            {"us": host_us(lambda: tk.encode(there, out=out))},
            note="host",
        )
    except ImportError:
        pass


def peers(clock: Clock, report: Report, slow: bool) -> None:
    """The peers of `python -m terngrad_kernels bench`, on one layer and on the layers of ResNet-50 one by one."""
    place = CudaPlace("torch")
    known = list(built(place, lambda text: print(text, file=sys.stderr)))
    rng = np.random.default_rng(0)
    for n in (RESNET, LARGE):
        values = rng.standard_normal(n, dtype=np.float32)
        for peer, drawing in known:
            with report.part(f"{peer.name} {n}"):
                x = drawing.array(values)
                if drawing.own_stream:
                    time = wall_us(lambda x=x, drawing=drawing: drawing.encode(x), waiting(peer.needs))
                else:
                    rounds = 7 if peer.name in ("CuPy", "GRACE") else None
                    time = clock(lambda x=x, drawing=drawing: drawing.encode(x), rounds=rounds)
                report.add(f"peer: {peer.name}, {n}", time)
    layers = [rng.standard_normal(shape, dtype=np.float32).reshape(-1) for shape in resnet50()]
    for peer, drawing in known:
        if peer.name in ("torch eager", "GRACE"):
            with report.part(f"{peer.name}, 161 layers"):
                there = [drawing.array(x) for x in layers]
                call = clock(lambda there=there, drawing=drawing: [drawing.encode(x) for x in there], rounds=5)
                report.add(f"peer: {peer.name}, 161 layers", call)
        if peer.name == "torch eager" and slow:
            with report.part("torch.compile, 161 layers"):
                compiled = torch.compile(lambda there, encode=drawing.encode: [encode(x) for x in there])
                start = perf_counter()
                compiled(there)
                torch.cuda.synchronize()
                seconds = perf_counter() - start
                once = clock(lambda there=there, compiled=compiled: compiled(there), rounds=9)
                report.add("peer: torch.compile, 161 layers", once, compile_seconds=seconds)


def waiting(needs: Sequence[str]) -> Call:
    """Return what waits for results of a framework with streams of its own."""
    return importlib.import_module("jax").block_until_ready if "jax" in needs else lambda _: torch.cuda.synchronize()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, no peers")
    parser.add_argument("--slow", action="store_true", help="also what takes a minute to compile")
    options = parser.parse_args()
    if not torch.cuda.is_available() or tk.build_info()["cuda"] is None:
        print("gpu_bench: needs PyTorch with a CUDA device and a build with CUDA kernels", file=sys.stderr)
        return 77
    if triton is None:
        print("gpu_bench: needs Triton, whose kernels are the bounds", file=sys.stderr)
        return 77
    options.folder.mkdir(parents=True, exist_ok=True)
    clock, report = Clock(15 if options.quick else 51), Report(options.folder)
    with report.part("layers"):
        single_layers(clock, report, options.quick)
    buckets(clock, report)
    with report.part("decode"):
        decodes(clock, report)
    with report.part("calls"):
        overheads(report)
    if not options.quick:
        peers(clock, report, options.slow)
    return 1 if report.all["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
