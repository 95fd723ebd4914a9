"""CUDA alone: streams, graphs, allocators, sizes beyond 2^32. All other tests run there too: ``pytest -m cuda``."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from arrays import DTYPES, TERNARY, TorchCuda, assert_same, bucket, cuda_framework, from_bits, layer

import terngrad_kernels as tk

# Warnings are those of PyTorch's and CuPy's versions on the machine, which this project does not choose.
pytestmark = [pytest.mark.cuda, pytest.mark.filterwarnings("ignore")]

#: Of a kernel that does nothing: some 0.1 s, long beside any call.
CYCLES = 200_000_000
N = 1_000_003


@pytest.fixture
def gpu() -> TorchCuda:
    made = cuda_framework()
    if not isinstance(made, TorchCuda):
        pytest.skip("PyTorch is not installed")
    return made


@pytest.fixture
def torch(gpu: TorchCuda) -> Any:
    return gpu.torch


@pytest.fixture
def cupy(torch: Any) -> Any:
    return pytest.importorskip("cupy")


X = layer("normal", N)


# ---- streams


def late(torch: Any, stream: Any, x: Any, values: Any) -> None:
    """Have `values` come into `x` on that stream, but not soon."""
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(CYCLES)
        x.copy_(values)


def test_a_call_is_ordered_by_the_current_stream_and_by_no_other(gpu: TorchCuda, torch: Any) -> None:
    """On another stream it must see the old values: else nothing here tests the order."""
    values, stream, other = gpu.make(X), torch.cuda.Stream(), torch.cuda.Stream()
    old, new = (tk.encode(x).data for x in (np.zeros_like(X), X))
    tk.encode(values)  # to load a kernel may wait for the device, and so make the order that is missing
    for _ in range(3):
        x = torch.zeros_like(values)
        torch.cuda.synchronize()
        late(torch, stream, x, values)
        with torch.cuda.stream(other):
            early = tk.encode(x)
        with torch.cuda.stream(stream):
            ordered = tk.encode(x)
        torch.cuda.synchronize()
        assert_same(gpu.to_numpy(early.data), old, "without order")
        assert_same(gpu.to_numpy(ordered.data), new)


@pytest.mark.parametrize("kind", ["stream", "handle", "cupy"])
def test_a_stream_that_is_named(kind: str, gpu: TorchCuda, torch: Any) -> None:
    values, stream = gpu.make(X), torch.cuda.Stream()
    named: Any = stream
    if kind == "handle":
        named = stream.cuda_stream
    if kind == "cupy":
        named = pytest.importorskip("cupy").cuda.ExternalStream(stream.cuda_stream)
    x = torch.zeros_like(values)
    torch.cuda.synchronize()
    late(torch, stream, x, values)
    packed = tk.encode(x, stream=named)
    decoded = tk.decode(packed, stream=named)
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    torch.cuda.synchronize()
    want = tk.encode(X)
    assert_same(gpu.to_numpy(packed.data), want.data)
    assert_same(gpu.to_numpy(decoded), tk.decode(want))


def test_the_default_stream_by_its_handles(gpu: TorchCuda, torch: Any) -> None:
    x, want = gpu.make(X), tk.encode(X).data
    for handle in (0, 1, torch.cuda.default_stream(), torch.cuda.default_stream().cuda_stream):
        assert_same(gpu.to_numpy(tk.encode(x, stream=handle).data), want)


def test_streams_that_are_none(gpu: TorchCuda) -> None:
    x = gpu.make(X[:12])
    for stream in ("default", 7.0, True, object()):
        with pytest.raises(TypeError, match=r"^stream: expected an int or a stream of torch, got "):
            tk.encode(x, stream=stream)


def test_calls_on_two_streams_do_not_share_memory(gpu: TorchCuda, torch: Any) -> None:
    """Each call's scratch is its own: with one that is shared, statistics of one call end up in the other."""
    sizes = [1 + 977 * i for i in range(300)]
    buckets = [bucket(sizes, seed=0), bucket(sizes, kind="small", seed=1)]
    wants = [tk.encode(layers).data for layers in buckets]
    arrays = [[gpu.make(x) for x in layers] for layers in buckets]
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    got: list[list[Any]] = [[], []]
    for _ in range(50):
        for k, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                got[k].append(tk.encode(arrays[k]).data)
    torch.cuda.synchronize()
    for k, want in enumerate(wants):
        for data in got[k]:
            assert_same(gpu.to_numpy(data), want)


@pytest.fixture(params=[False, True], ids=["two launches", "one launch"])
def at_once(request: pytest.FixtureRequest) -> Iterator[None]:
    """How the two passes of encode are launched."""
    tk._core.set_cuda_at_once(request.param)
    yield
    tk._core.set_cuda_at_once(False)


@pytest.mark.parametrize(
    "sizes",
    [
        [1 + 977 * i for i in range(300)],  # stripes of several layers under way, two launches for their addresses
        [20_000_003],  # more than the device's caches and processors hold
        [2560] * 3000 + [0, 7, 3_000_000, 0],
        [8_000_000, 100, 9_000_000, 65_536, 1],
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.usefixtures("at_once")
def test_both_passes_of_large_buckets(sizes: list[int], dtype: str, gpu: TorchCuda, torch: Any) -> None:
    """Blocks that wait for others or count, on two streams that take each other's processors, and in a graph."""
    packing = ["float32" if i % 7 == 3 else "base3" if i % 7 == 5 else "two_bit" for i in range(len(sizes))]
    buckets = [[torch.from_numpy(x).to(getattr(torch, dtype)) for x in bucket(sizes, seed=k)] for k in range(2)]
    wants = [tk.encode(layers, packing=packing, seed=3).data.numpy() for layers in buckets]
    arrays = [[x.cuda() for x in layers] for layers in buckets]
    outs = [[torch.empty(want.size, dtype=torch.uint8, device="cuda") for want in wants] for _ in range(10)]
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    for out in outs:
        for k, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                tk.encode(arrays[k], packing=packing, seed=3, out=out[k])
    graph = torch.cuda.CUDAGraph()
    replayed = torch.empty_like(outs[0][0])
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        tk.encode(arrays[0], packing=packing, seed=3, out=replayed)
    for _ in range(20):
        replayed.zero_()
        graph.replay()
        assert_same(replayed.cpu().numpy(), wants[0])
    for out in outs:
        for data, want in zip(out, wants, strict=True):
            assert_same(data.cpu().numpy(), want)


@pytest.mark.parametrize("sizes", [[4_000_000], [12_000_003], [100, 5_000_000, 70_000, 0, 7_000_001]])
@pytest.mark.parametrize("dtype", DTYPES)
def test_operations_on_more_than_the_device_sums_at_once(sizes: list[int], dtype: str, gpu: TorchCuda) -> None:
    """Other kernels measure such buckets than those of most tests; the first is near where they begin."""
    layers = bucket(sizes, dtype)
    there = [gpu.make(x) for x in layers]

    def check(what: str, got: Any, want: Any) -> None:
        for a, b in zip(got, want, strict=True):
            assert_same(gpu.to_numpy(a), b, what)

    for center in (False, True):
        check("scales", tk.scales(there, center=center), tk.scales(layers, center=center))
        check("clip", tk.clip(there, center=center), tk.clip(layers, center=center))
    (trits, scale), (want, want_scale) = (tk.ternarize(x, seed=3) for x in (there, layers))
    check("ternarize", [*trits, scale], [*want, want_scale])
    packed, expected = ([tk.encode(x, seed=k, packing=TERNARY[k]) for k in range(2)] for x in (there, layers))
    check("encode", [x.data for x in packed], [x.data for x in expected])
    for k in range(2):
        twice, twice_expected = [packed[k]] * 2, [expected[k]] * 2
        check("decode_sum", tk.decode_sum(twice, weights=[0.3, 0.5]), tk.decode_sum(twice_expected, weights=[0.3, 0.5]))
        check("sum_trits", [tk.sum_trits(twice).data], [tk.sum_trits(twice_expected).data])
        again = {"seed": 1, "offset": 2, "clip": 2.5}
        check("repack", [tk.repack(twice, **again).data], [tk.repack(twice_expected, **again).data])


def test_threads_with_streams_of_their_own(gpu: TorchCuda, torch: Any) -> None:
    layers = [bucket((3000, 0, 700, 25_600), seed=k) for k in range(8)]
    wants = [tk.encode(x, seed=k).data for k, x in enumerate(layers)]
    failures: list[BaseException] = []

    def work(k: int) -> None:
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                x = [gpu.make(item) for item in layers[k]]
                for _ in range(100):
                    assert_same(gpu.to_numpy(tk.encode(x, seed=k).data), wants[k])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


# ---- no host synchronisation


def operations(torch: Any, x: Any) -> dict[str, Callable[[], object]]:
    layers = [x[:700_000], x[700_000:]]
    packed, trits = tk.encode(x), tk.ternarize(x)[0]
    counts, scales, payload = tk.sum_trits([packed, packed]), tk.scales(x), tk.pack(trits)
    rows = tk.Packed(packed.layout, torch.stack([packed.data] * 4))
    step = torch.zeros((), dtype=torch.int64, device=x.device)
    mixed = ["two_bit", "float32"]
    return {
        "encode": lambda: tk.encode(x),
        "encode a list": lambda: tk.encode(layers, packing="base3"),
        "encode mixed": lambda: tk.encode(layers, packing=mixed),
        "encode in blocks": lambda: tk.encode(x, block=2560),
        "encode with scales": lambda: tk.encode(x, scales=scales),
        "encode with a step on the device": lambda: tk.encode(x, offset=step),
        "scales": lambda: tk.scales(x),
        "clip": lambda: tk.clip(layers),
        "ternarize": lambda: tk.ternarize(x),
        "decode": lambda: tk.decode(packed),
        "decode_sum": lambda: tk.decode_sum([packed, packed], weights=[0.5, 0.5]),
        "decode_sum of rows": lambda: tk.decode_sum(rows),
        "decode counts": lambda: tk.decode(counts),
        "sum_trits": lambda: tk.sum_trits(rows),
        "repack": lambda: tk.repack(rows, seed=1, offset=2),
        "repack counts": lambda: tk.repack(counts, seed=1, offset=2, clip=2.5),
        "pack": lambda: tk.pack(trits),
        "unpack": lambda: tk.unpack(payload, shape=N),
        "a transposed layer": lambda: tk.encode(x[: 2 * (N // 2)].view(2, -1).T),
        "a named stream": lambda: tk.encode(x, stream=torch.cuda.default_stream()),
    }


@pytest.fixture
def no_waits(torch: Any) -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def test_the_host_does_not_wait(gpu: TorchCuda, torch: Any, request: pytest.FixtureRequest) -> None:
    """While the stream is held up, every call returns: with what was waited for, the event would have come."""
    calls = operations(torch, gpu.make(X))
    for call in calls.values():
        call()  # tables and modules are loaded
    torch.cuda.synchronize()
    request.getfixturevalue("no_waits")
    for name, call in calls.items():
        torch.cuda._sleep(CYCLES)
        held_up = torch.cuda.Event()
        held_up.record()
        call()
        assert not held_up.query(), name
        torch.cuda.synchronize()  # which is no error, as a stream's own is


def test_what_looks_at_the_data_waits(gpu: TorchCuda, torch: Any) -> None:
    packed = tk.encode(gpu.make(X))
    tk.validate(packed)
    damaged = packed.data.clone()
    torch.cuda._sleep(CYCLES)
    damaged[0] = 0
    damaged[3] = 0x80  # a negative scale
    with pytest.raises(tk.CorruptMessage):
        tk.validate(tk.Packed(packed.layout, damaged))
    blob = tk.to_bytes(packed)
    assert blob == tk.to_bytes(tk.encode(X))
    back = tk.from_bytes(blob, like=packed.data)
    assert back.data.device == packed.data.device
    assert_same(gpu.to_numpy(back.data), gpu.to_numpy(packed.data))


# ---- graphs


def test_a_graph_replays_with_the_step_of_its_device(gpu: TorchCuda, torch: Any) -> None:
    """100 replays, whose step is a number on the device; the layout is met for the first time while it is captured."""
    sizes = (12_901, 0, 1, 2561, 640, 30_007)
    layers = bucket(sizes, seed=11)
    x = [gpu.make(item) for item in layers]
    seed = torch.tensor([5, 1], dtype=torch.uint32, device="cuda")
    step = torch.zeros((), dtype=torch.int64, device="cuda")
    tk.encode(gpu.make(X[:10]), offset=step)  # loads what is loaded once
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        packed = tk.encode(x, seed=seed, offset=step, packing="base3")
        mean = tk.decode_sum([packed, packed], weights=[0.5, 0.5])
        again = tk.repack([packed, packed], seed=seed, offset=step)
        step += 1
    for i in range(100):
        graph.replay()
        want = tk.encode(layers, seed=5 + (1 << 32), offset=i, packing="base3")
        assert_same(gpu.to_numpy(packed.data), want.data, f"replay {i}")
        for got, wanted in zip(mean, tk.decode_sum([want, want], weights=[0.5, 0.5]), strict=True):
            assert_same(gpu.to_numpy(got), wanted, f"replay {i}")
        wanted = tk.repack([want, want], seed=5 + (1 << 32), offset=i).data
        assert_same(gpu.to_numpy(again.data), wanted, f"replay {i}")
    assert step.item() == 100


def test_a_graph_sees_new_values_and_writes_to_outputs(gpu: TorchCuda, torch: Any) -> None:
    x, out = gpu.make(X), torch.empty_like(gpu.make(X))
    message = tk.encode(x).data
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        packed = tk.encode(x, out=message)
        tk.decode(packed, out=out)
    for kind in ("small", "outlier", "nan", "zero"):
        values = layer(kind, N)
        x.copy_(gpu.make(values))
        graph.replay()
        want = tk.encode(values)
        assert_same(gpu.to_numpy(message), want.data, kind)
        assert_same(gpu.to_numpy(out), tk.decode(want), kind)


def test_a_layout_may_go_before_the_graph(gpu: TorchCuda, torch: Any) -> None:
    values = bucket([3, 5000, 77] * 80, seed=3)
    x = [gpu.make(item) for item in values]
    layout = tk.Layout([item.shape for item in values], form="list", shards=3)
    want = tk.encode(values, layout=layout, seed=1).data
    tk.encode(gpu.make(X[:10]))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        data = tk.encode(x, layout=layout, seed=1).data
    del layout
    for _ in range(10):  # what was freed is given to others
        tk.encode([gpu.make(item) for item in bucket([9, 4000, 70] * 80)])
    data.zero_()
    graph.replay()
    assert_same(gpu.to_numpy(data), want)


def test_validate_is_refused_while_capturing(gpu: TorchCuda, torch: Any) -> None:
    packed = tk.encode(gpu.make(X[:700]))
    tk.validate(packed)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        again = tk.decode(packed)
        with pytest.raises(ValueError, match="captur"):
            tk.validate(packed)
    graph.replay()
    assert_same(gpu.to_numpy(again), tk.decode(tk.encode(X[:700])))


# ---- allocators


def allocations(torch: Any, call: Callable[[], object]) -> int:
    call()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    call()
    return int(torch.cuda.memory_stats()["allocation.all.allocated"]) - int(before)


def test_nothing_is_allocated_but_outputs_and_one_scratch(gpu: TorchCuda, torch: Any) -> None:
    x = gpu.make(X)
    layers = list(x.split(N // 50))
    for given in (x, layers):
        packed = tk.encode(given)
        decoded = tk.decode(packed)
        assert allocations(torch, lambda given=given: tk.encode(given)) <= 2
        assert allocations(torch, lambda given=given, packed=packed: tk.encode(given, out=packed.data)) <= 1
        assert allocations(torch, lambda packed=packed, out=decoded: tk.decode(packed, out=out)) <= 1
    reserved = torch.cuda.memory_reserved()
    for _ in range(100):
        tk.encode(layers)
    assert torch.cuda.memory_reserved() == reserved


def stream_of_memory(torch: Any, x: Any) -> int:
    """Return the stream that PyTorch's allocator holds the memory of a tensor for."""
    for segment in torch.cuda.memory_snapshot():
        if segment["address"] <= x.data_ptr() < segment["address"] + segment["total_size"]:
            return int(segment["stream"])
    raise AssertionError("not of PyTorch's allocator")


def test_outputs_are_allocated_for_the_stream_they_are_written_on(gpu: TorchCuda, torch: Any) -> None:
    x, stream = gpu.make(X), torch.cuda.Stream()
    torch.cuda.synchronize()
    assert stream_of_memory(torch, tk.encode(x).data) == torch.cuda.default_stream().cuda_stream
    with torch.cuda.stream(stream):
        assert stream_of_memory(torch, tk.encode(x).data) == stream.cuda_stream
    for named in (stream, stream.cuda_stream):
        assert stream_of_memory(torch, tk.encode(x, stream=named).data) == stream.cuda_stream
    torch.cuda.synchronize()


def test_memory_that_another_stream_still_reads_is_not_given_away(gpu: TorchCuda, torch: Any) -> None:
    values, stream = gpu.make(X), torch.cuda.Stream()
    # What is not known to be read elsewhere is given away at once: else nothing is tested.
    x = values.clone()
    address = x.data_ptr()
    del x
    x = values.clone()
    assert x.data_ptr() == address
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(CYCLES)
    packed = tk.encode(x, stream=stream)
    del x
    other = torch.full_like(values, 7.0)  # on the current stream, at once
    torch.cuda.synchronize()
    assert_same(gpu.to_numpy(packed.data), tk.encode(X).data)
    assert other.data_ptr() != address


SPIN = r"""
extern "C" __global__ void spin(long long cycles) {
  const long long start = clock64();
  while (clock64() - start < cycles) {
  }
}
"""


def test_cupy_streams_and_pool(cupy: Any) -> None:
    spin = cupy.RawKernel(SPIN, "spin")
    values, want = cupy.asarray(X), tk.encode(X)
    old = tk.encode(np.zeros_like(X)).data
    tk.decode(tk.encode(values))  # to load a kernel may wait for the device, and so make the order that is missing
    cupy.cuda.Device().synchronize()
    for named in (False, True):
        for _ in range(3):
            stream, other = cupy.cuda.Stream(non_blocking=True), cupy.cuda.Stream(non_blocking=True)
            x = cupy.zeros_like(values)
            cupy.cuda.Device().synchronize()
            with stream:
                spin((1,), (1,), (CYCLES,))
                x[...] = values
            early = tk.encode(x, stream=other)
            if named:
                packed = tk.encode(x, stream=stream)
                decoded = tk.decode(packed, stream=stream.ptr)
            else:
                with stream:
                    packed = tk.encode(x)
                    decoded = tk.decode(packed)
            assert cupy.cuda.get_current_stream() == cupy.cuda.Stream.null
            cupy.cuda.Device().synchronize()
            assert_same(cupy.asnumpy(early.data), old, "without order")
            assert_same(cupy.asnumpy(packed.data), want.data)
            assert_same(cupy.asnumpy(decoded), tk.decode(want))


def test_cupy_graphs(cupy: Any) -> None:
    layers = [*bucket((12_901, 0, 2561, 30_007), seed=4), X[:10_000].reshape(100, 100).T]
    x = [cupy.asarray(item) for item in layers[:-1]]
    x.append(cupy.asarray(layers[-1].T).T)  # of which a copy is made
    step = cupy.zeros((), cupy.int64)
    step += 0  # what adds to it is compiled before the capture
    stream = cupy.cuda.Stream(non_blocking=True)
    out = tk.encode(x).data
    cupy.cuda.Device().synchronize()
    with stream:
        tk.encode(x, out=out)  # so that the pool has the scratch: CuPy cannot allocate while it captures
        stream.begin_capture()
        tk.encode(x, offset=step, out=out)
        step += 1
        graph = stream.end_capture()
        # What comes next may be given any memory that the call gave back, and the graph writes to its own again.
        scratch = tk.encode(layers).layout.geometry.scratch_nbytes(True, len(layers))
        others = [cupy.full(nbytes, 7, cupy.uint8) for nbytes in (scratch, x[-1].nbytes) for _ in range(8)]
        for i in range(100):
            graph.launch()
            stream.synchronize()
            assert_same(cupy.asnumpy(out), tk.encode(layers, offset=i).data, f"replay {i}")
            assert all(bool((other == 7).all()) for other in others), f"replay {i}"


# ---- devices and errors


def test_the_current_device_is_left_as_it_was(torch: Any) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one device")
    values = X[:5000]
    for current in (0, 1):
        with torch.cuda.device(current):
            for at in (0, 1):
                x = torch.from_numpy(values).to(f"cuda:{at}")
                packed = tk.encode(x)
                assert packed.data.device == x.device
                assert_same(tk.decode(packed).cpu().numpy(), tk.decode(tk.encode(values)))
                assert torch.cuda.current_device() == current


def test_arrays_that_do_not_lie_together(gpu: TorchCuda, torch: Any) -> None:
    x, host = gpu.make(X[:12]), torch.from_numpy(X[:12].copy())
    packed = tk.encode(x)
    with pytest.raises(ValueError, match=r"^x\[1\]: expected device cuda:0 as x\[0\] is on, got cpu"):
        tk.encode([x, host])
    with pytest.raises(ValueError, match=r"^out: expected .*, got the CPU"):
        tk.encode(x, out=torch.empty(packed.layout.nbytes, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"^out: "):
        tk.encode(host, out=packed.data)
    with pytest.raises(ValueError, match=r"^scales.scale: expected .*, got the CPU"):
        tk.encode(x, scales=tk.scales(host))
    with pytest.raises(ValueError, match=r"^messages\[1\]: "):
        tk.decode_sum([packed, tk.encode(host)])


def test_an_error_leaves_the_device_usable(gpu: TorchCuda, torch: Any) -> None:
    x = gpu.make(X[:5000])
    packed = tk.encode(x)
    bad: list[tuple[type[Exception], Callable[[], object]]] = [
        (ValueError, lambda: tk.encode(x, out=packed.data[:-1])),
        (ValueError, lambda: tk.encode(x, clip=-1)),
        (TypeError, lambda: tk.encode(x.to(torch.int32))),
        (ValueError, lambda: tk.encode(x.view(torch.uint8)[:16].view(torch.float32), out=x.view(torch.uint8)[:16])),
    ]
    for error, call in bad:
        with pytest.raises(error):
            call()
        assert float((x + 1).sum()) == pytest.approx(float(X[:5000].sum()) + 5000, rel=1e-3)
        assert_same(gpu.to_numpy(tk.encode(x).data), tk.encode(X[:5000]).data)


def test_devices_are_named() -> None:
    cuda_framework()
    info = tk.build_info()
    assert info["cuda"]["toolkit"]
    assert info["cuda"]["architectures"]
    assert any(name.startswith("cuda:0 ") for name in info["devices"])


# ---- every place and size


@pytest.mark.parametrize("dtype", DTYPES)
def test_views_that_start_anywhere(dtype: str, gpu: TorchCuda) -> None:
    """An element off what a wide load would need, and messages a byte off."""
    values = layer("normal", 20_021, dtype)
    x = gpu.make(values)
    for n in (0, 1, 129, 2561, 20_000):
        want = tk.encode(values[:n])
        for shift in range(9):
            part = gpu.make(np.zeros(want.layout.nbytes + shift, np.uint8))[shift:]
            moved = gpu.make(np.concatenate([values[:shift], values[:n]]))[shift:]
            packed = tk.encode(moved, out=part)
            assert_same(gpu.to_numpy(part), want.data, f"{n} at {shift}")
            out = x.clone()[shift : shift + n]
            assert_same(gpu.to_numpy(tk.decode(packed, out=out)), tk.decode(want), f"{n} at {shift}")


def test_a_layer_draws_the_same_bits_wherever_it_stands() -> None:
    """Alone, in small and in large buckets: kernels are launched in other shapes for each."""
    gpu = cuda_framework()
    for n in (1, 2560, 2561, 100_000, 1_000_003):
        own = layer("normal", n, seed=n)
        want = tk.encode(own, seed=9, layer=40).payload
        for before, after in ((0, 0), (1, 0), (0, 1), (40, 200), (7, 3)):
            others = bucket([1000 + 37 * i for i in range(before + after)])
            layers = [*others[:before], own, *others[before:]]
            packed = tk.encode([gpu.make(x) for x in layers], seed=9, layer=40 - before)
            at, size = packed.layout.offsets[before], want.size
            assert_same(gpu.to_numpy(packed.data)[at : at + size], want, f"{n} after {before}")


def test_many_layers() -> None:
    gpu = cuda_framework()
    layers = bucket([i % 700 for i in range(10_000)])
    for packing in TERNARY:
        got = tk.encode([gpu.make(x) for x in layers], packing=packing, seed=3)
        want = tk.encode(layers, packing=packing, seed=3)
        assert_same(gpu.to_numpy(got.data), want.data)
        for part, wanted in zip(tk.decode(got), tk.decode(want), strict=True):
            assert_same(gpu.to_numpy(part), wanted)


def test_blocks_of_a_large_layer() -> None:
    gpu = cuda_framework()
    x = layer("outlier", 25_600_007)
    packed, want = tk.encode(gpu.make(x), block=2560), tk.encode(x, block=2560)
    assert_same(gpu.to_numpy(packed.data), want.data)


def test_beyond_2_to_the_32(torch: Any, gpu: TorchCuda) -> None:
    n = (1 << 32) + 5121
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("less than 24 GiB free on the device")
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(n, dtype=torch.bfloat16, device="cuda", generator=generator)
    packed = tk.encode(x, seed=3, offset=1 << 40)
    host = x.cpu()
    want = tk.encode(host, seed=3, offset=1 << 40)
    assert torch.equal(packed.data.cpu(), want.data)
    del x
    assert torch.equal(tk.decode(packed).cpu(), tk.decode(want, out=host))


# ---- every value of the half precisions


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_value(dtype: str, gpu: TorchCuda) -> None:
    """All 65536 of each, under scales that make them fire, saturate or vanish."""
    values = from_bits(np.arange(1 << 16), dtype)
    values = np.concatenate([values, values[::-1]])
    x = gpu.make(values)
    for scale in (2.0**-120, 6e-8, 0.03, 1.0, 3.3, 65504.0, 3e38, np.inf, 0.0):
        for limit in (scale, 0.7 * scale, np.inf, 0.0):
            with np.errstate(over="ignore"):
                given = tk.Scales(*(np.array([value], np.float32) for value in (scale, limit)))
            there = tk.Scales(*map(gpu.make, given))
            for packing in TERNARY:
                got = tk.encode(x, scales=there, packing=packing, seed=7)
                assert_same(gpu.to_numpy(got.data), tk.encode(values, scales=given, packing=packing, seed=7).data)
            assert_same(gpu.to_numpy(tk.clip(x, scales=there)), tk.clip(values, scales=given))
    finite = values[np.isfinite(values.astype(np.float32))]
    for clip in (None, 2.5, 1e-3):
        for got, want in zip(tk.scales(gpu.make(finite), clip=clip), tk.scales(finite, clip=clip), strict=True):
            assert_same(gpu.to_numpy(got), want)


# ---- compilers


def test_torch_compile(gpu: TorchCuda, torch: Any) -> None:
    """A new step does not compile anew, and the bytes are those of an eager call."""
    layers = [gpu.make(x) for x in bucket((3000, 700))]
    compiled = torch.compile(
        lambda x, step: tk.decode(tk.encode([item * 2 for item in x], seed=1, offset=step)), fullgraph=True
    )
    for step in range(3):
        at = torch.tensor(step, device="cuda")
        want = tk.decode(tk.encode([x * 2 for x in layers], seed=1, offset=step))
        for got, wanted in zip(compiled(layers, at), want, strict=True):
            assert_same(gpu.to_numpy(got), gpu.to_numpy(wanted))


def test_jax_jit() -> None:
    jax = pytest.importorskip("jax")
    if reason := _no_jax_gpu(jax):
        pytest.skip(reason)
    layers = bucket((3000, 0, 700))
    there = [jax.device_put(x, jax.devices("gpu")[0]) for x in layers]

    @jax.jit
    def both(x: Any, step: Any) -> Any:
        packed = tk.encode(x, seed=1, offset=step)
        return packed.data, tk.decode_sum([packed, packed], weights=[0.5, 0.5])

    for step in range(3):
        data, mean = both(there, step)
        want = tk.encode(layers, seed=1, offset=step)
        assert_same(np.asarray(data), want.data)
        for got, wanted in zip(mean, tk.decode_sum([want, want], weights=[0.5, 0.5]), strict=True):
            assert_same(np.asarray(got), wanted)


def _no_jax_gpu(jax: Any) -> str | None:
    try:
        jax.devices("gpu")
    except RuntimeError as error:
        return f"JAX finds no GPU: {error}"
    return None


# ---- averaging over ranks


#: A model whose gradients are the same bits on every device: those that it is given.
ONE_RANK = """
import sys, tempfile, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from terngrad_kernels.torch import TernGradState, terngrad_hook

class Fixed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.wanted = [torch.randn(size) for size in (300_000, 7, 70_000, 513)]
        self.weights = torch.nn.ParameterList(torch.zeros_like(x) for x in self.wanted)

    def forward(self, scale):
        return sum((weight * x.to(weight.device)).sum() for weight, x in zip(self.weights, self.wanted)) * scale

def averages(device, backend, strategy, overlap):
    dist.init_process_group(backend, init_method=f"file://{tempfile.mktemp()}", rank=0, world_size=1)
    model = Fixed().to(device)
    model.wanted = [x.to(device) for x in model.wanted]
    model = DistributedDataParallel(model, bucket_cap_mb=1)
    state = TernGradState(model, strategy=strategy, seed=5, overlap=overlap)
    model.register_comm_hook(state, terngrad_hook)
    scale = torch.ones((), device=device)
    steps = []
    for step in range(4):
        model.zero_grad(set_to_none=True)
        if step > 1 and backend == "nccl":  # buckets are made anew after the first step
            torch.cuda.set_sync_debug_mode("error")
        model(scale).backward()
        torch.cuda.set_sync_debug_mode("default") if backend == "nccl" else None
        steps.append([p.grad.cpu() for p in model.parameters()])
    report = state.report()
    assert report.steps == 4 and report.kernel_seconds > 0, report
    dist.destroy_process_group()
    return steps

for strategy in ("gather", "sum", "requantize"):
    want = averages("cpu", "gloo", strategy, False)
    for backend, overlap in (("nccl", True), ("nccl", False), ("gloo", True)):
        if backend == "gloo" and strategy != "gather":
            continue  # PyTorch's gloo has not every collective for CUDA tensors
        got = averages("cuda", backend, strategy, overlap)
        for a, b in zip(got, want):
            assert all(x.equal(y) for x, y in zip(a, b)), (strategy, backend, overlap)
print("same")
"""


def test_one_rank_averages_as_on_the_cpu(torch: Any) -> None:
    if not torch.distributed.is_nccl_available():
        pytest.skip("this PyTorch has no NCCL")
    done = subprocess.run([sys.executable, "-c", ONE_RANK], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "same"
