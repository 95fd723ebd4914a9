"""What `gpu_check.sh` runs besides the tests: ``python bench/gpu_check.py STAGE``.

short: every operation on small inputs, for the tools of compute-sanitizer. exhaustive: the bytes of the CPU for all
2^32 float32 patterns. profile: the kernels whose time counts most, for ncu. ddp: what the hook of
DistributedDataParallel costs one process with NCCL, that the host never waits in it, and how much of its kernels runs
beside others. gloo RANKS: several processes on one card, against the CPU.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import terngrad_kernels as tk
from terngrad_kernels.bench.models import resnet50


def on_cuda(x: Any) -> Any:
    return torch.from_numpy(x).cuda()


def same(got: Any, want: Any, what: str) -> None:
    """Raise unless the bits are equal."""
    got, want = (x.cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x) for x in (got, want))
    # ravel(): an array without dimensions cannot be seen as bytes.
    got, want = (np.ascontiguousarray(x).ravel().view(np.uint8) for x in (got, want))
    if not np.array_equal(got, want):
        if got.size != want.size:
            raise AssertionError(f"{what}: {got.size} bytes, expected {want.size}")
        different = np.flatnonzero(got != want)
        raise AssertionError(f"{what}: {different.size} bytes differ, the first at {different[0]} of {got.size}")


# ---- short


def short() -> None:
    rng = np.random.default_rng(0)
    sizes = (0, 1, 5, 129, 2560, 2561, 12_900, 70_001)
    for dtype in (np.float32, np.float16, np.float64):
        layers = [rng.standard_normal(n).astype(dtype) for n in sizes]
        there = [on_cuda(x) for x in layers]
        for packing in ("two_bit", "base3", ["two_bit", "float32", "base3", "two_bit"] * 2):
            for block in (None, 2560):
                draw = {"packing": packing, "block": block, "offset": 3}
                tk._core.set_cuda_at_once(True)
                at_once = tk.encode(there, seed=0, **draw).data
                tk._core.set_cuda_at_once(False)
                got = [tk.encode(there, seed=k, **draw) for k in range(3)]
                want = [tk.encode(layers, seed=k, **draw) for k in range(3)]
                what = f"{dtype.__name__} {packing} {block}"
                same(at_once, want[0].data, what + ", one launch")
                for a, b in zip(got, want, strict=True):
                    same(a.data, b.data, what)
                    tk.validate(a)
                for a, b in zip(tk.decode(got[0]), tk.decode(want[0]), strict=True):
                    same(a, b, what)
                for a, b in zip(
                    tk.decode_sum(got, weights=[0.5] * 3), tk.decode_sum(want, weights=[0.5] * 3), strict=True
                ):
                    same(a, b, what)
                counts = tk.sum_trits(got)
                same(counts.data, tk.sum_trits(want).data, what)
                same(tk.repack(got, seed=1, offset=2).data, tk.repack(want, seed=1, offset=2).data, what)
                same(
                    tk.repack(counts, seed=1, offset=2, clip=2.5).data,
                    tk.repack(tk.sum_trits(want), seed=1, offset=2, clip=2.5).data,
                    what,
                )
                print(what, flush=True)
        for a, b in zip(tk.clip(there), tk.clip(layers), strict=True):
            same(a, b, "clip")
        (trits, scale), (wanted, wanted_scale) = tk.ternarize(there), tk.ternarize(layers)
        same(scale, wanted_scale, "scale")
        for a, b in zip(trits, wanted, strict=True):
            same(a, b, "ternarize")
            for packing in ("two_bit", "base3"):
                payload = tk.pack(a, packing=packing)
                same(payload, tk.pack(b, packing=packing), "pack")
                same(tk.unpack(payload, shape=b.shape, packing=packing), b, "unpack")
        for center in (False, True):
            for a, b in zip(tk.scales(there, center=center), tk.scales(layers, center=center), strict=True):
                same(a, b, "scales")
    # Several waves of blocks, and one layer that many of them share: few enough to be summed at once, and more.
    for n in (3_000_001, 9_000_001):
        x = rng.standard_normal(n, dtype=np.float32)
        there = on_cuda(x)
        for on in (True, False):
            tk._core.set_cuda_at_once(on)
            same(tk.encode(there, seed=5).data, tk.encode(x, seed=5).data, f"a layer of {n}, {on}")
        for a, b in zip(tk.scales(there), tk.scales(x), strict=True):
            same(a, b, f"scales of {n}")
        packed, want = (tk.encode(each, seed=5) for each in (there, x))
        again = {"seed": 1, "offset": 2, "clip": 2.5}
        same(tk.repack([packed], **again).data, tk.repack([want], **again).data, f"repack of {n}")
    torch.cuda.synchronize()
    print("every operation gave the CPU's bytes")


# ---- exhaustive


def exhaustive() -> None:
    chunk = 1 << 27
    cases = [(1.0, 1.0), (2.0**-100, 0.6 * 2.0**-100), (3.4e38, 3e38)]
    start = time.perf_counter()
    for first in range(0, 1 << 32, chunk):
        bits = np.arange(first, first + chunk, dtype=np.uint32)
        x = bits.view(np.float32)
        there = torch.from_numpy(bits.view(np.int32)).cuda().view(torch.float32)
        for scale, limit in cases:
            scales = tk.Scales(np.float32([scale]), np.float32([limit]))
            on_device = tk.Scales(*map(on_cuda, scales))
            packing = "base3" if scale == 1.0 else "two_bit"
            draw = {"seed": first, "offset": 1, "packing": packing}
            same(
                tk.encode(there, scales=on_device, **draw).data,
                tk.encode(x, scales=scales, **draw).data,
                f"{first:#x} {scale}",
            )
        same(tk.clip(there, scales=on_device), tk.clip(x, scales=scales), f"clip {first:#x}")
        same(tk.encode(there, packing="float32").data, tk.encode(x, packing="float32").data, f"float32 {first:#x}")
        measured, want = tk.scales(there), tk.scales(x)
        same(measured.scale, want.scale, f"scale {first:#x}")
        same(measured.limit, want.limit, f"limit {first:#x}")
        if first % (1 << 30) == 0:
            print(f"{first:#x} after {time.perf_counter() - start:.0f} s", flush=True)
    print(f"all 2^32 patterns gave the CPU's bytes: {len(cases)} encodes, clip, float32, scales")


# ---- profile


def profile() -> None:
    """Twice each, since the first time is cold: one layer and the layers of ResNet-50, in two launches and in one."""
    layers = [torch.randn(shape, device="cuda") for shape in resnet50()]
    whole = torch.randn(25_600_000, device="cuda")
    for at_once in (False, True):
        tk._core.set_cuda_at_once(at_once)
        for x in (whole, layers):
            for _ in range(2):
                packed = tk.encode(x)
            out = tk.decode(packed)
            tk.decode_sum([packed] * 8, weights=[0.125] * 8, out=out)
    torch.cuda.synchronize()


# ---- training with one process


class Attention(torch.nn.Module):
    """One block of a transformer, 7.1 million parameters at width 768."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.inward, self.outward = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)
        self.wide, self.narrow = torch.nn.Linear(width, 4 * width), torch.nn.Linear(4 * width, width)

    def forward(self, x: Any) -> Any:
        query, key, value = (
            part.unflatten(-1, (12, -1)).transpose(1, 2) for part in self.inward(self.first(x)).chunk(3, -1)
        )
        seen = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.outward(seen.transpose(1, 2).flatten(2))
        return x + self.narrow(torch.nn.functional.gelu(self.wide(self.second(x))))


def overlap_of(trace: Path) -> dict[str, float]:
    """Return how long our kernels ran, and how long of it kernels of other streams ran too, in us."""
    events = [event for event in json.loads(trace.read_text())["traceEvents"] if event.get("cat") == "kernel"]
    ours = [event for event in events if "terngrad" in event["name"]]
    streams = {event["args"]["stream"] for event in ours}
    spans = sorted(
        (event["ts"], event["ts"] + event["dur"]) for event in events if event["args"]["stream"] not in streams
    )
    beside = 0.0
    for event in ours:
        at, end = event["ts"], event["ts"] + event["dur"]
        for low, high in spans:
            if high > at and low < end:
                beside += min(high, end) - max(low, at)
                at = min(high, end)
    return {
        "kernels": len(ours),
        "us": sum(event["dur"] for event in ours),
        "us_beside_others": beside,
        "streams_of_ours": len(streams),
        "streams": len({event["args"]["stream"] for event in events}),
    }


def ddp() -> None:
    import torch.distributed as dist
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
    from torch.nn.parallel import DistributedDataParallel

    from terngrad_kernels.torch import TernGradState, terngrad_hook

    store = tempfile.mktemp()
    dist.init_process_group("nccl", init_method=f"file://{store}", rank=0, world_size=1)
    torch.manual_seed(0)
    x = torch.randn(8, 512, 768, device="cuda")

    def model() -> Any:
        torch.manual_seed(0)
        return DistributedDataParallel(torch.nn.Sequential(*(Attention(768) for _ in range(12))).cuda())

    def milliseconds(step: Callable[[], object], rounds: int = 30) -> float:
        for _ in range(5):
            step()
        spans = []
        for _ in range(rounds):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            step()
            end.record()
            torch.cuda.synchronize()
            spans.append(start.elapsed_time(end))
        return statistics.median(spans)

    states: dict[str, tuple[Any, Any]] = {"DistributedDataParallel alone": (None, None)}
    states["fp16_compress_hook"] = (None, fp16_compress_hook)
    for strategy in ("gather", "sum", "requantize"):
        states[f"terngrad_hook, {strategy}"] = (strategy, terngrad_hook)
    for name, (strategy, hook) in states.items():
        network = model()
        state = None if strategy is None else TernGradState(network, strategy=strategy, seed=1)
        if hook is not None:
            network.register_comm_hook(state, hook)

        def step(network: Any = network) -> None:
            network.zero_grad(set_to_none=True)
            network(x).square().mean().backward()

        line: dict[str, Any] = {"ms_a_step": milliseconds(step)}
        if state is not None:
            report = state.report()
            line |= {"kernel_ms": 1e3 * report.kernel_seconds, "exposed_ms": 1e3 * report.exposed_seconds}
            torch.cuda.set_sync_debug_mode("error")
            step()
            torch.cuda.set_sync_debug_mode("default")
            torch.cuda.synchronize()
            trace = Path(tempfile.mkdtemp()) / "trace.json"
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                step()
                torch.cuda.synchronize()
            profile.export_chrome_trace(str(trace))
            line["overlap"] = overlap_of(trace)
            if not all(bool(p.grad.isfinite().all()) for p in network.parameters()):
                raise AssertionError(f"{name}: a gradient that is not finite")
        print(f"{name}: {json.dumps(line)}", flush=True)
        del network
    dist.destroy_process_group()
    Path(store).unlink(missing_ok=True)
    print("no step waited for the device")


# ---- several processes on one card


STRATEGIES = ("gather", "sum", "requantize")
SHAPES = ((300, 784), (300,), (100, 300), (100,), (7, 0), (1000, 513))


def rank_of(rank: int, world: int, store: str, device: str, found: Any) -> None:
    import torch.distributed as dist

    from terngrad_kernels.torch import TernGradState, all_reduce_mean

    dist.init_process_group("gloo", init_method=f"file://{store}-{device}", rank=rank, world_size=world)
    for strategy in STRATEGIES:
        state = TernGradState(strategy=strategy, seed=3)
        results = []
        try:
            for step in range(3):
                rng = np.random.default_rng([rank, step])
                tensors = [
                    torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).to(device) for shape in SHAPES
                ]
                all_reduce_mean(tensors, state)
                results.append(b"".join(tensor.cpu().numpy().tobytes() for tensor in tensors))
            found.put((device, strategy, rank, results))
        except Exception as error:  # PyTorch's gloo has not every collective for CUDA tensors
            found.put((device, strategy, rank, f"{type(error).__name__}: {str(error).splitlines()[0]}"))
            break  # ranks may be at different places
    dist.destroy_process_group()


def gloo(world: int) -> None:
    import torch.multiprocessing as mp

    store, context = tempfile.mktemp(), mp.get_context("spawn")
    found: dict[tuple[str, str, int], Any] = {}
    for device in ("cpu", "cuda:0"):
        queue = context.Queue()
        processes = [
            context.Process(target=rank_of, args=(rank, world, store, device, queue), daemon=True)
            for rank in range(world)
        ]
        for process in processes:
            process.start()
        while len(found) < world * len(STRATEGIES) * (1 if device == "cpu" else 2):
            name, strategy, rank, result = queue.get(timeout=60)
            found[name, strategy, rank] = result
            if isinstance(result, str):
                for rest in STRATEGIES[STRATEGIES.index(strategy) + 1 :]:
                    found[name, rest, rank] = "not tried after that"
        for process in processes:
            process.join(30)
    wrong = 0
    for strategy in STRATEGIES:
        results = [found["cuda:0", strategy, rank] for rank in range(world)]
        texts = [result for result in results if isinstance(result, str)]
        if texts:
            print(f"{strategy}: {texts[0]}")
            wrong += strategy == "gather"  # which needs nothing but an all-gather
        elif results != [found["cpu", strategy, rank] for rank in range(world)]:
            print(f"{strategy}: other bits than on the CPU")
            wrong += 1
        else:
            print(f"{strategy}: the bits of the CPU, 3 steps, {world} processes on one card")
    if wrong:
        raise SystemExit(1)


def main(arguments: list[str]) -> int:
    stages: dict[str, Callable[..., None]] = {
        **{"short": short, "exhaustive": exhaustive, "profile": profile},
        **{"ddp": ddp, "gloo": gloo},
    }
    if not arguments or arguments[0] not in stages:
        print(__doc__, file=sys.stderr)
        return 2
    if not torch.cuda.is_available() or not tk.build_info()["cuda"]:
        print("needs PyTorch with a CUDA device and a build with CUDA kernels", file=sys.stderr)
        return 77
    stages[arguments[0]](*map(int, arguments[1:]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
