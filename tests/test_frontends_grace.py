"""GRACE's compressor: its contract, and the call sequences of GRACE's memories and communicators.

The sequences are stated here as GRACE's classes make them, with the workers side by side in one process in place of a
collective. Where GRACE itself is installed, its own classes run as well, over gloo in two processes.
"""

from __future__ import annotations

import inspect
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from arrays import DTYPES, Array, Framework, assert_same, layer

import reference as ref
import terngrad_kernels as tk
from terngrad_kernels.frontends import manual_seed
from terngrad_kernels.frontends.grace import TernGradCompressor

PACKED = (False, True)


@pytest.fixture(autouse=True)
def _a_process_seed() -> Iterator[None]:
    manual_seed(12)
    yield
    manual_seed(None)


# ---- the contract


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 5), (), (1,), (0,), (2, 700)], ids=str)
def test_int8_contract(framework: Framework, shape: tuple[int, ...], dtype: str) -> None:
    """Flat int8 signs and a float32 scalar of shape (1,): clip at 2.5 deviations about the mean, scale by max-abs."""
    x = layer("normal", int(np.prod(shape)), dtype).reshape(shape)
    (codes, scalar), ctx = TernGradCompressor(seed=4).compress(framework.make(x), "w")
    assert tuple(ctx) == shape
    for got, name, size in ((codes, "int8", x.size), (scalar, "float32", 1)):
        assert framework.owns(got)
        assert got.dtype == framework.dtype(name)
        assert tuple(got.shape) == (size,)
    own = ref.scales([x], center=True)
    assert_same(framework.to_numpy(scalar), own[0])
    wide = x.astype(np.float64)
    limit = 2.5 * wide.std() if x.size > 1 else np.inf
    largest = np.abs(np.clip(wide, -limit, limit)).max(initial=0)
    assert float(framework.to_numpy(scalar)[0]) == pytest.approx(largest, rel=2.0**-20)
    word = TernGradCompressor(seed=4)._draws.next("w")[2]
    [trits], _ = ref.ternarize([x.reshape(-1)], seed=4, layer=word, scales=own)
    assert_same(framework.to_numpy(codes), trits)
    back = TernGradCompressor().decompress((codes, scalar), ctx)
    assert framework.owns(back)
    assert back.dtype == framework.dtype("float32")
    np.testing.assert_array_equal(framework.to_numpy(back), (trits * own[0]).reshape(shape))


@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_holds_the_same_codes(framework: Framework, dtype: str) -> None:
    x = layer("normal", 5000, dtype).reshape(50, 100)
    plain, packed = TernGradCompressor(seed=4), TernGradCompressor(packed=True, seed=4)
    for _ in range(2):
        tensors, ctx = plain.compress(framework.make(x), "w")
        (message,), packed_ctx = packed.compress(framework.make(x), "w")
        assert framework.owns(message)
        assert message.dtype == framework.dtype("uint8")
        layout = tk.Layout([(50, 100)])
        assert tuple(message.shape) == (layout.nbytes,)
        assert layout.ratio > 15.6
        tk.validate(tk.Packed(layout, message))
        back = packed.decompress((message,), packed_ctx)
        assert tuple(back.shape) == (50, 100)
        assert back.dtype == framework.dtype("float32")
        # -0 and +0: the message has no sign for a code of 0, a product by a positive scalar neither
        assert_same(framework.to_numpy(back), framework.to_numpy(plain.decompress(tensors, ctx)))


def test_a_tensor_that_is_no_dense_block(framework: Framework) -> None:
    x = layer("normal", 600).reshape(20, 30)
    for packed in PACKED:
        views = TernGradCompressor(packed=packed, seed=1), TernGradCompressor(packed=packed, seed=1)
        turned = framework.make(x.T.copy())
        dense, ctx = views[0].compress(framework.make(x), "w")
        other, other_ctx = views[1].compress(turned.T if hasattr(turned, "T") else framework.make(x), "w")
        assert tuple(ctx) == tuple(other_ctx) == (20, 30)
        for a, b in zip(dense, other, strict=True):
            assert_same(framework.to_numpy(a), framework.to_numpy(b))


def test_clip_is_an_argument() -> None:
    x = layer("outlier", 1000)
    scalars = [TernGradCompressor(clip=clip).compress(x, "w")[0][1][0] for clip in (None, 2.5, 1.0)]
    assert scalars[0] == np.abs(x).max()
    assert scalars[1] == tk.scales(x, center=True).scale[0] < scalars[0]
    assert scalars[2] == tk.scales(x, clip=1.0, center=True).scale[0] < scalars[1]


def test_an_overflow_is_seen() -> None:
    x = np.array([1.0, np.nan, 2.0], np.float32)
    for packed in PACKED:
        compressor = TernGradCompressor(packed=packed)
        assert np.isnan(compressor.decompress(*compressor.compress(x, "w"))).all()


def test_attributes_and_signatures() -> None:
    """What communicators look at, as GRACE's base class has it."""
    compressor = TernGradCompressor()
    assert (compressor.average, compressor.tensors_size_are_same, compressor.packed) == (True, True, False)
    compressor = TernGradCompressor(False, False, packed=True)
    assert (compressor.average, compressor.tensors_size_are_same, compressor.packed) == (False, False, True)
    assert [str(p) for p in inspect.signature(TernGradCompressor.compress).parameters] == ["self", "tensor", "name"]
    assert [str(p) for p in inspect.signature(TernGradCompressor.decompress).parameters] == ["self", "tensors", "ctx"]
    assert compressor.aggregate([np.ones(2), np.ones(2), 2 * np.ones(2)]).tolist() == [4, 4]


# ---- what is drawn


def codes_of(compressor: TernGradCompressor, name: Any = "w") -> bytes:
    x = np.linspace(-1, 1, 4096, dtype=np.float32)
    return b"".join(part.tobytes() for part in TernGradCompressor.compress(compressor, x, name)[0])


def test_seeds_repeat_and_steps_names_and_compressors_do_not() -> None:
    a, b, other = TernGradCompressor(seed=1), TernGradCompressor(seed=1), TernGradCompressor(seed=2)
    first = [codes_of(a, "v"), codes_of(a), codes_of(a, "v"), codes_of(a)]
    assert len(set(first)) == 4
    # The order in which layers come does not matter, as backward passes do not always keep it.
    again = [codes_of(b), codes_of(b), codes_of(b, "v"), codes_of(b, "v")]
    assert first == [again[2], again[0], again[3], again[1]]
    assert codes_of(other) not in first
    unseeded = [codes_of(TernGradCompressor()) for _ in range(3)]
    assert len(set(unseeded)) == 3
    manual_seed(12)
    assert [codes_of(TernGradCompressor()) for _ in range(3)] == unseeded
    assert codes_of(TernGradCompressor(), None) != codes_of(TernGradCompressor(), None), "any name will do"


# ---- memories: compensate, compress, update


class Residual:
    """GRACE's residual memory: what was lost is added next time."""

    def __init__(self, beta: float = 1.0, gamma: float = 1.0) -> None:
        self.residuals: dict[str, Any] = {}
        self.beta, self.gamma = beta, gamma

    def compensate(self, tensor: Any, name: str) -> Any:
        if name not in self.residuals:
            return tensor
        return self.beta * self.residuals[name] + self.gamma * tensor

    def update(self, tensor: Any, name: str, compressor: Any, tensors: Any, ctx: Any) -> None:
        self.residuals[name] = tensor - compressor.decompress(tensors, ctx)


class NoMemory(Residual):
    def update(self, tensor: Any, name: str, compressor: Any, tensors: Any, ctx: Any) -> None:
        pass


def compressed(tensor: Any, name: str, compressor: Any, memory: Any) -> tuple[Any, Any]:
    """A communicator's first half."""
    tensor = memory.compensate(tensor, name)
    tensors, ctx = compressor.compress(tensor, name)
    memory.update(tensor, name, compressor, tensors, ctx)
    return tensors, ctx


@pytest.mark.parametrize("packed", PACKED)
def test_residual_memory(framework: Framework, packed: bool) -> None:
    """What was received and what is kept back add up to what was put in, step after step."""
    if framework.name == "dlpack":
        pytest.skip("which need not have arithmetic")
    compressor, memory = TernGradCompressor(packed=packed), Residual()
    x = layer("normal", 210).reshape(30, 7)
    received = np.zeros((30, 7), np.float64)
    steps = 5
    for _ in range(steps):
        tensors, ctx = compressed(framework.make(x), "w", compressor, memory)
        received += framework.to_numpy(compressor.decompress(tensors, ctx))
    total = received + framework.to_numpy(memory.residuals["w"])
    np.testing.assert_allclose(total, steps * x.astype(np.float64), atol=1e-4)


# ---- communicators: the second half, of several workers, in PyTorch


def decompressed_mean(compressor: Any, gathered: Sequence[Sequence[Any]], ctx: Any) -> Any:
    total = compressor.aggregate([compressor.decompress(tensors, ctx) for tensors in gathered])
    return total / len(gathered) if compressor.average else total


def gather_into_lists(torch: Any, compressor: Any, sent: list[Any], ctx: Any) -> Any:
    """The dist Allgather: a list like each compressed tensor is filled, and the lists are transposed."""
    lists = []
    for k in range(len(sent[0])):
        received = [torch.empty_like(sent[0][k]) for _ in sent]
        for target, tensors in zip(received, sent, strict=True):
            target.copy_(tensors[k])
        lists.append(received)
    return decompressed_mean(compressor, list(zip(*lists, strict=True)), ctx)


def gather_and_split(torch: Any, compressor: Any, sent: list[Any], ctx: Any) -> Any:
    """Horovod's: one long tensor, split by the sizes of the workers."""
    parts = []
    for k in range(len(sent[0])):
        sizes = [tensors[k].size()[0] for tensors in sent]
        parts.append(torch.cat([tensors[k] for tensors in sent]).split(sizes))
    return decompressed_mean(compressor, list(zip(*parts, strict=True)), ctx)


def broadcast(torch: Any, compressor: Any, sent: list[Any], ctx: Any) -> Any:
    """Each root in turn: lists in place of tuples, the own tensors as they are."""
    received = [list(sent[0]), *([tensor.clone() for tensor in tensors] for tensors in sent[1:])]
    return decompressed_mean(compressor, received, ctx)


def all_to_all(torch: Any, compressor: Any, sent: list[Any], ctx: Any) -> Any:
    """The dist AllToAll: codes padded and cut in chunks, each decompressed, added up and compressed again."""
    workers = len(sent)
    chunks: list[Any] = []
    for rank in range(workers):
        received = []
        for codes, scalar in sent:
            padded = torch.cat((codes, torch.zeros(-codes.numel() % workers, dtype=codes.dtype)))
            received.append((padded.chunk(workers)[rank], scalar.clone()))
        shape = received[0][0].size()
        total = compressor.aggregate([compressor.decompress(tensors, shape) for tensors in received])
        chunks.append(compressor.decompress(*compressor.compress(total, f"chunk of {rank}")))
    total = torch.cat(chunks)[: sent[0][0].numel()].view(ctx)
    return total / workers if compressor.average else total


def all_reduce(torch: Any, compressor: Any, sent: list[Any], ctx: Any) -> Any:
    """Sums of codes and of scalars, as float where they are averaged."""
    summed = [torch.stack([tensors[k].float() for tensors in sent]).sum(0) / len(sent) for k in (0, 1)]
    return compressor.decompress(summed, ctx)


COMMUNICATORS: dict[str, tuple[Callable[..., Any], bool]] = {
    "allgather, dist": (gather_into_lists, True),
    "allgather, horovod": (gather_and_split, True),
    "broadcast": (broadcast, True),
    "all to all": (all_to_all, False),
    "allreduce": (all_reduce, False),
}


@pytest.mark.parametrize("kind", COMMUNICATORS)
@pytest.mark.parametrize("packed", PACKED)
def test_communicators(kind: str, packed: bool) -> None:
    """The mean of what the workers sent, bit by bit where messages are only moved; nothing is lost on the average."""
    torch = pytest.importorskip("torch")
    send, takes_packed = COMMUNICATORS[kind]
    if packed and not takes_packed:
        pytest.skip("adds or cuts codes")
    workers, steps = 3, 200
    compressors = [TernGradCompressor(packed=packed, seed=rank) for rank in range(workers)]
    x = torch.linspace(-1, 1, 35).reshape(5, 7)
    total = torch.zeros(5, 7)
    for _ in range(steps):
        sent, ctxs = zip(*(compressed(x, "w", c, NoMemory()) for c in compressors), strict=True)
        got = send(torch, compressors[0], list(sent), ctxs[0])
        assert got.shape == x.shape
        assert got.dtype == torch.float32
        if kind.startswith(("allgather", "broadcast")):
            want = sum(c.decompress(t, ctx) for c, t, ctx in zip(compressors, sent, ctxs, strict=True)) / workers
            assert_same(got.numpy(), want.numpy())
        total += got
    # The variance of an element is at most 1 / 4 (the scale is 1), and 1 / 4 more where means of 3 are quantised again.
    # 7 deviations of a normal, in 35 elements: a right implementation fails with a probability below 1e-10.
    deviation = np.sqrt((0.5 if kind == "all to all" else 0.25) / steps)
    assert (total / steps - x).abs().max() < 7 * deviation


# ---- GRACE's classes


def fake_grace(monkeypatch: pytest.MonkeyPatch, packages: Sequence[str]) -> dict[str, type]:
    """Stand-ins for the modules, with the abstract class that GRACE's compressors have."""
    from abc import ABC, abstractmethod

    class Compressor(ABC):
        @abstractmethod
        def compress(self, tensor: Any, name: Any) -> Any: ...

    made: dict[str, type] = {"base": Compressor}
    for package in packages:
        made[package] = type("TernGradCompressor", (Compressor,), {"compress": lambda self, tensor, name: None})
        for name in ("grace_dl", package, f"{package}.compressor", f"{package}.compressor.terngrad"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        sys.modules[f"{package}.compressor.terngrad"].TernGradCompressor = made[package]  # type: ignore[attr-defined]
    return made


def test_counts_as_graces_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    from terngrad_kernels.frontends import grace

    pytest.importorskip("torch")
    made = fake_grace(monkeypatch, ["grace_dl.torch", "grace_dl.dist"])
    grace._join.cache_clear()
    try:
        compressor = TernGradCompressor()
        for cls in made.values():
            assert isinstance(compressor, cls)
            assert issubclass(TernGradCompressor, cls)
        assert TernGradCompressor.__mro__ == (TernGradCompressor, object), "and inherits nothing"
    finally:
        grace._join.cache_clear()


def test_importing_imports_no_framework_and_needs_no_grace() -> None:
    code = """
        import sys
        sys.modules["grace_dl"] = None  # not installed
        import numpy as np
        from terngrad_kernels.frontends import grace, terngrad
        compressor = grace.TernGradCompressor(packed=True)
        compressor.decompress(*compressor.compress(np.ones(3, np.float32), "w"))
        print(sorted({"torch", "jax", "tensorflow", "cupy", "paddle", "horovod"} & sys.modules.keys()))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


REAL = """
    import sys
    import torch
    from torch import distributed as dist
    import grace_dl.dist
    import grace_dl.torch
    from grace_dl.dist.communicator.all_to_all import AllToAll
    from grace_dl.dist.communicator.allgather import Allgather
    from grace_dl.dist.communicator.broadcast import Broadcast
    from grace_dl.dist.memory.efsignsgd import EFSignSGDMemory
    from grace_dl.dist.memory.none import NoneMemory
    from grace_dl.dist.memory.residual import ResidualMemory
    from terngrad_kernels.frontends.grace import TernGradCompressor

    rank, workers, store = int(sys.argv[1]), 2, sys.argv[2]
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=workers)
    x = torch.linspace(-1, 1, 36).reshape(4, 9)  # even: what AllToAll pads with was never written
    for packed in (False, True):
        compressor = TernGradCompressor(packed=packed, seed=rank)
        assert isinstance(compressor, grace_dl.dist.Compressor)
        assert isinstance(compressor, grace_dl.torch.Compressor)
        for memory in (NoneMemory, ResidualMemory, lambda: EFSignSGDMemory(1.0)):
            communicators = [Allgather(compressor, memory(), workers), Broadcast(compressor, memory(), workers, rank)]
            if not packed:
                communicators.append(AllToAll(compressor, memory(), workers))
            for communicator in communicators:
                total = torch.zeros(4, 9)
                for step in range(100):
                    got = communicator.step(x.clone(), "w")
                    assert got.shape == x.shape and got.dtype == torch.float32
                    total += got
                error = (total / 100 - x).abs().max()
                if not (isinstance(communicator, AllToAll) and memory is not NoneMemory):
                    assert error < 1, (packed, memory, communicator, error)
    try:
        AllToAll(TernGradCompressor(packed=True), NoneMemory(), workers).step(x, "w")
    except ValueError:
        print("done")
"""


def test_graces_own_classes(tmp_path: Any) -> None:
    """Its memories and communicators of torch.distributed themselves."""
    pytest.importorskip("grace_dl.dist", reason="GRACE is not installed")
    pytest.importorskip("torch")
    command = [sys.executable, "-c", textwrap.dedent(REAL)]
    ranks = [
        subprocess.Popen([*command, str(r), str(tmp_path / "store")], stdout=subprocess.PIPE, text=True) for r in (0, 1)
    ]
    assert [rank.communicate(timeout=300)[0].strip() for rank in ranks] == ["done", "done"]


# ---- errors

X = np.ones(8, np.float32)


def packed_message() -> Array:
    return TernGradCompressor(packed=True).compress(X, "w")[0][0]


ERRORS: dict[str, tuple[Any, type[Exception], str]] = {
    "clip": (lambda: TernGradCompressor(clip=0), ValueError, "clip: expected a finite number > 0, or None, got 0"),
    "clip of text": (lambda: TernGradCompressor(clip="x"), TypeError, "clip: expected a number or None, got str"),
    "seed": (lambda: TernGradCompressor(seed=2**64), ValueError, r"seed: expected -2\*\*63 <= seed < 2\*\*64, got"),
    "seed of text": (lambda: TernGradCompressor(seed="1"), TypeError, "seed: expected an int, got str"),
    "list": (lambda: TernGradCompressor().compress([1.0], "w"), TypeError, "tensor: expected .* got builtins.list"),
    "integers": (
        lambda: TernGradCompressor().compress(np.ones(3, np.uint8), "w"),
        TypeError,
        "tensor: expected float32, float16, bfloat16, float64, got numpy uint8",
    ),
    "one tensor": (
        lambda: TernGradCompressor().decompress((X,), (8,)),
        ValueError,
        r"tensors: expected \(codes, scalar\), got 1 tensors",
    ),
    "two tensors": (
        lambda: TernGradCompressor(packed=True).decompress((packed_message(), X), (8,)),
        ValueError,
        r"tensors: expected \(one message\), got 2 tensors",
    ),
    "codes": (
        lambda: TernGradCompressor().decompress((X, X[:1]), (9,)),
        ValueError,
        r"tensors\[0\]: expected 9 codes for shape \(9,\), got 8",
    ),
    "scalar": (
        lambda: TernGradCompressor().decompress((X, X), (8,)),
        ValueError,
        r"tensors\[1\]: expected one number, got shape \(8,\)",
    ),
    "message": (
        lambda: TernGradCompressor(packed=True).decompress((packed_message()[:-1],), (8,)),
        ValueError,
        r"tensors\[0\]: expected 32 bytes for shape \(8,\), got 31",
    ),
    "ctx": (
        lambda: TernGradCompressor().decompress((X, X[:1]), 8),
        TypeError,
        "ctx: expected a sequence of ints, got int",
    ),
}


@pytest.mark.parametrize("what", ERRORS)
def test_errors_name_the_argument(what: str) -> None:
    call, kind, message = ERRORS[what]
    with pytest.raises(kind, match=message):
        call()


def test_what_is_no_list_of_tensors() -> None:
    codes, scalar = np.zeros(3, np.int8), np.ones(1, np.float32)
    with pytest.raises(TypeError, match=r"^tensors: expected \(codes, scalar\), got generator$"):
        TernGradCompressor().decompress((x for x in (codes, scalar)), (3,))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^tensors: expected \(codes, scalar\), got 1 tensors$"):
        TernGradCompressor().decompress([codes], (3,))


def test_a_traced_tensor_is_refused() -> None:
    jax = pytest.importorskip("jax")
    with pytest.raises(TypeError, match=r"^tensor: expected known values, got traced ones"):
        jax.jit(lambda x: TernGradCompressor().compress(x, "w")[0])(jax.numpy.ones(4))
