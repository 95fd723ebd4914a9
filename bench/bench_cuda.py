"""The CUDA kernels beside their bounds and their peers, in one run on one GPU: ``python bench/bench_cuda.py FOLDER``.

Writes cuda.json and cuda.md. Times are medians of CUDA events, with the GPU held up while the host queues the work, so
that they hold no time of the host's (calls of peers that wait for the host do). "cold": the L2 cache is overwritten
before each round. Bounds are measured in the same run with the same clock: a kernel that only reads the input (twice
for encode, plus what the message takes to write), and PyTorch's copy.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import terngrad_kernels as tk
from terngrad_kernels.bench.models import gpt2, resnet50

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

CLIP = 2.5
RESNET = 25_600_000
LARGE = 134_217_728
#: Cycles for which the GPU is held up while the host queues a round: some 0.3 ms, longer than any call takes to queue.
HELD = 600_000

Call = Callable[[], Any]


class Clock:
    """Times calls on the current stream."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        size = 4 * torch.cuda.get_device_properties(0).L2_cache_size
        self.flush = torch.empty(max(size, 1 << 26), dtype=torch.uint8, device="cuda")

    def __call__(self, call: Call, cold: bool = True, rounds: int | None = None) -> dict[str, float]:
        """Return median and quartiles in us."""
        for _ in range(3):
            call()
        torch.cuda.synchronize()
        spans = []
        for k in range(rounds or self.rounds):
            if cold:
                self.flush.fill_(k & 127)
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(HELD)
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
        start = time.perf_counter()
        for _ in range(calls):
            call()
        best = min(best, (time.perf_counter() - start) / calls)
    torch.cuda.synchronize()
    return 1e6 * best


def wall_us(call: Call, wait: Call, rounds: int = 15) -> dict[str, float]:
    """Microseconds until a call has ended, for what runs on streams of its own."""
    wait(call())
    spans = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        wait(call())
        spans.append(1e6 * (time.perf_counter() - start))
    low, median, high = statistics.quantiles(spans, n=4)
    return {"us": median, "low": low, "high": high, "clock": "host"}


# ---- kernels of Triton's: the bound, and peers

if triton is not None:

    @triton.jit
    def _read(x, out, n, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        tl.store(out + tl.program_id(0), tl.max(tl.load(x + at, mask=at < n, other=0.0).to(tl.float32)))

    @triton.jit
    def _measure(x, tops, squares, n, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        value = tl.load(x + at, mask=at < n, other=0.0).to(tl.float32)
        tl.store(tops + tl.program_id(0), tl.max(tl.abs(value)))
        tl.store(squares + tl.program_id(0), tl.sum(value * value))

    @triton.jit
    def _ternarize(x, scale, limit, out, n, seed, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
        byte = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        top, most = tl.load(scale), tl.load(limit)
        codes = tl.zeros((BLOCK,), tl.int32)
        draws = tl.rand4x(seed, byte)
        for k in tl.static_range(4):
            at = byte * 4 + k
            value = tl.load(x + at, mask=at < n, other=0.0).to(tl.float32)
            fires = draws[k] * top < tl.minimum(tl.abs(value), most)
            codes |= tl.where(fires, tl.where(value < 0, 3, 1), 0) << (2 * k)
        tl.store(out + byte, codes.to(tl.uint8), mask=byte * 4 < n)

    @triton.jit
    def _levels(x, low, high, out, n, seed, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
        byte = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        least = tl.load(low)
        step = (tl.load(high) - least) / 3
        codes = tl.zeros((BLOCK,), tl.int32)
        draw = tl.rand(seed, byte * 0 + tl.arange(0, BLOCK))  # alike for all bytes of that place
        for k in tl.static_range(4):
            at = byte * 4 + k
            value = tl.load(x + at, mask=at < n, other=0.0).to(tl.float32)
            codes |= tl.floor((value - least) / step + draw).to(tl.int32) << (2 * k)
        tl.store(out + byte, codes.to(tl.uint8), mask=byte * 4 < n)


def reader(x: Any) -> Call:
    """Return what reads `x` once and writes next to nothing."""
    block = 8192
    blocks = triton.cdiv(x.numel(), block)
    out = torch.empty(blocks, device="cuda")
    return lambda: _read[(blocks,)](x, out, x.numel(), BLOCK=block, num_warps=8)


def triton_pair(x: Any) -> Call:
    n, block, bytes_ = x.numel(), 8192, triton.cdiv(x.numel(), 4)
    blocks = triton.cdiv(n, block)
    tops, squares = torch.empty(blocks, device="cuda"), torch.empty(blocks, device="cuda")
    out = torch.empty(bytes_, dtype=torch.uint8, device="cuda")

    def encode() -> Any:
        _measure[(blocks,)](x, tops, squares, n, BLOCK=block, num_warps=8)
        limit = CLIP * (squares.sum() / n).sqrt()
        scale = torch.minimum(tops.max(), limit)
        _ternarize[(triton.cdiv(bytes_, 1024),)](x, scale, limit, out, n, 1, BLOCK=1024)
        return out, scale

    return encode


def hipress(x: Any) -> Call:
    n, bytes_ = x.numel(), triton.cdiv(x.numel(), 4)
    out = torch.empty(bytes_, dtype=torch.uint8, device="cuda")

    def encode() -> Any:
        low, high = torch.aminmax(x)
        _levels[(triton.cdiv(bytes_, 1024),)](x, low, high, out, n, 1, BLOCK=1024)
        return out

    return encode


# ---- peers


def torch_encode(x: Any) -> Any:
    """Clip at 2.5 sigma, scale, draw, take signs, pack four in a byte."""
    limit = CLIP * x.std(unbiased=False)
    clipped = torch.clamp(x, -limit, limit)
    magnitude = clipped.abs()
    scale = magnitude.max()
    fires = torch.rand_like(x) * scale < magnitude
    codes = (clipped.sign() * fires).to(torch.int8).view(torch.uint8) & 3
    quarters = codes.view(4, -1)
    return quarters[0] | quarters[1] << 2 | quarters[2] << 4 | quarters[3] << 6, scale


def torch_trits(x: Any) -> Any:
    """The same, not packed: for layers of any size."""
    limit = CLIP * x.std(unbiased=False)
    clipped = torch.clamp(x, -limit, limit)
    magnitude = clipped.abs()
    scale = magnitude.max()
    return (clipped.sign() * (torch.rand_like(x) * scale < magnitude)).to(torch.int8), scale


def grace(x: Any) -> Any:
    """GRACE's algorithm: see `peers.grace_compress`; nothing is packed."""
    flat = x.flatten()
    deviation = (flat - flat.mean()).square().mean().sqrt()
    limit = (CLIP * deviation).item()
    clipped = flat.clamp(-limit, limit)
    magnitude = clipped.abs()
    scale = magnitude.max()
    signs = clipped.sign()
    draws = torch.empty_like(flat).uniform_(0, scale.item())
    signs[draws >= magnitude] = 0
    return signs.to(torch.int8), scale.reshape(1)


def jax_jit(x: Any) -> dict[str, float]:
    import jax
    import jax.numpy as jnp

    def encode(x: Any, key: Any) -> Any:
        limit = CLIP * x.std()
        clipped = jnp.clip(x, -limit, limit)
        magnitude = jnp.abs(clipped)
        scale = magnitude.max()
        fires = jax.random.uniform(key, x.shape) * scale < magnitude
        codes = ((jnp.sign(clipped) * fires).astype(jnp.int8).view(jnp.uint8) & 3).reshape(4, -1)
        return codes[0] | codes[1] << 2 | codes[2] << 4 | codes[3] << 6, scale

    there, key, compiled = jnp.asarray(x.cpu().numpy()), jax.random.key(0), jax.jit(encode)
    return wall_us(lambda: compiled(there, key), jax.block_until_ready)


def cupy_elementwise(x: Any) -> Call:
    import cupy

    there = cupy.from_dlpack(x)

    def encode() -> Any:
        limit = CLIP * there.std()
        clipped = cupy.clip(there, -limit, limit)
        magnitude = cupy.abs(clipped)
        scale = magnitude.max()
        fires = cupy.random.random(there.shape, dtype=cupy.float32) * scale < magnitude
        codes = ((cupy.sign(clipped) * fires).astype(cupy.int8).view(cupy.uint8) & 3).reshape(4, -1)
        return codes[0] | codes[1] << 2 | codes[2] << 4 | codes[3] << 6, scale

    return encode


def compile_of(function: Callable[..., Any]) -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(function, fullgraph=True, dynamic=False)
    return compiled


# ---- the run


class Report:
    """Rows as they come, so that a run that is cut short leaves what it has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        info = tk.build_info()
        self.all: dict[str, Any] = {
            "device": torch.cuda.get_device_name(),
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
        lines = [
            f"{self.all['device']}, PyTorch {self.all['torch']}",
            "",
            "| | us | bound | x bound | target | |",
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
                report.add(
                    f"encode {n} {dtype}",
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
                report.add(
                    f"encode {name}", clock(lambda x=x, out=out: tk.encode(x, out=out), cold),
                    bound_us=bound, target=target, note=note,
                )  # fmt: skip
            report.add(
                f"encode {name}, as one flat array",
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
    for n in (RESNET, LARGE):
        x = torch.randn(n, device="cuda")
        makes: dict[str, Callable[[], Call]] = {
            "PyTorch eager": lambda x=x: lambda: torch_encode(x),
            "torch.compile": lambda x=x: (lambda compiled: lambda: compiled(x))(compile_of(torch_encode)),
            "a pair of Triton kernels": lambda x=x: triton_pair(x),
            "HiPress's algorithm (aminmax, a Triton kernel)": lambda x=x: hipress(x),
            "GRACE's algorithm": lambda x=x: lambda: grace(x),
            "CuPy elementwise": lambda x=x: cupy_elementwise(x),
            "cast to float16": lambda x=x: lambda: x.to(torch.float16),
        }
        for name, make in makes.items():
            with report.part(f"{name} {n}"):
                rounds = 7 if name in ("CuPy elementwise", "GRACE's algorithm") else None
                report.add(f"peer: {name}, {n}", clock(make(), rounds=rounds))
        with report.part(f"JAX jit {n}"):
            report.add(f"peer: JAX jit, {n}", jax_jit(x))
            report.add(
                f"encode {n} by the host's clock", wall_us(lambda x=x: tk.encode(x), lambda _: torch.cuda.synchronize())
            )
    layers = [torch.randn(shape, device="cuda") for shape in resnet50()]
    with report.part("eager, 161 layers"):
        report.add("peer: PyTorch eager, 161 layers", clock(lambda: [torch_trits(x) for x in layers], rounds=5))
        report.add("peer: GRACE's algorithm, 161 layers", clock(lambda: [grace(x) for x in layers], rounds=5))
    if slow:
        with report.part("torch.compile, 161 layers"):
            compiled = compile_of(lambda layers: [torch_trits(x) for x in layers])
            start = time.perf_counter()
            compiled(layers)
            torch.cuda.synchronize()
            seconds = time.perf_counter() - start
            report.add(
                "peer: torch.compile, 161 layers", clock(lambda: compiled(layers), rounds=9), compile_seconds=seconds
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, no peers")
    parser.add_argument("--slow", action="store_true", help="also what takes a minute to compile")
    options = parser.parse_args()
    if not torch.cuda.is_available() or tk.build_info()["cuda"] is None:
        print("bench_cuda: needs PyTorch with a CUDA device and a build with CUDA kernels", file=sys.stderr)
        return 3
    if triton is None:
        print("bench_cuda: needs Triton, whose kernels are the bounds", file=sys.stderr)
        return 3
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
