"""What the tests share: frameworks, layers of every kind, and comparisons bit by bit."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from producer import Producer

import reference as ref
import terngrad_kernels as tk
from terngrad_kernels import _core, operations
from terngrad_kernels.adapters import dlpack

Array = Any

DTYPES = tuple(ref.DTYPES)
TERNARY = ("two_bit", "base3")
PACKINGS = (*TERNARY, "float32")
COUNTS = tuple(ref.COUNT_BITS)

#: Every small size, then both sides of all that the contract or a kernel cuts at: rows, tiles, units...
_CUTS = (16, 32, 64, 128, 256, 384, 512, 640, 1024, 1280, 2560, 5120, 8192, 16384)
EDGES = (*range(10), *(n + d for n in _CUTS for d in (-1, 0, 1)))

# ---- layers

BITS = {"float32": np.uint32, "float16": np.uint16, "bfloat16": np.uint16, "float64": np.uint64}


def cast(x: Array, dtype: str) -> Array:
    """Return `x` rounded to `dtype`; what is too large for it becomes infinite."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return np.asarray(x).astype(ref.DTYPES[dtype])


def from_bits(bits: Array, dtype: str) -> Array:
    return np.array(bits, BITS[dtype]).view(ref.DTYPES[dtype])


def _placed(value: float) -> Callable[[np.random.Generator, int], Array]:
    """Normal values with one of another kind somewhere."""

    def values(rng: np.random.Generator, n: int) -> Array:
        x = rng.standard_normal(n)
        if n:
            x[rng.integers(n)] = value
        return x

    return values


#: Kinds of layers by what they try; each makes n values, to be cast to the dtype.
KINDS: dict[str, Callable[[np.random.Generator, int], Array]] = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "outlier": _placed(50.0),
    "small": lambda rng, n: 1e-3 * rng.standard_normal(n),
    "zero": lambda rng, n: np.zeros(n),
    "negative zero": lambda rng, n: np.full(n, -0.0),
    "constant": lambda rng, n: np.full(n, -0.3),
    "ternary": lambda rng, n: 0.37 * rng.integers(-1, 2, n),
    "heavy mean": lambda rng, n: 0.01 + 1e-4 * rng.standard_normal(n),
    "wide": lambda rng, n: rng.standard_normal(n) * np.exp2(rng.integers(-90, 20, n)),
    "subnormal": lambda rng, n: rng.standard_normal(n) * 2.0**-130,
    "about the smallest scale": lambda rng, n: rng.uniform(-1, 1, n) * 2.0**-60,
    "squares underflow": lambda rng, n: rng.standard_normal(n) * 2.0**-59,
    "squares overflow": lambda rng, n: rng.standard_normal(n) * 2.0**64,
    "near the largest": lambda rng, n: rng.uniform(-1, 1, n) * 3.4028234e38,
    "infinity": _placed(np.inf),
    "negative infinity": _placed(-np.inf),
    "nan": _placed(np.nan),
    "all nan": lambda rng, n: np.full(n, -np.nan),
}


def layer(kind: str, n: int, dtype: str = "float32", seed: int = 0) -> Array:
    return cast(KINDS[kind](np.random.default_rng([seed, n]), n), dtype)


def bucket(sizes: Sequence[int], dtype: str = "float32", kind: str = "normal", seed: int = 0) -> list[Array]:
    return [layer(kind, n, dtype, seed + i) for i, n in enumerate(sizes)]


def flat(layers: Sequence[Array], dtype: str = "float32") -> Array:
    return np.concatenate([x.reshape(-1) for x in layers]) if layers else np.empty(0, ref.DTYPES[dtype])


# ---- comparisons


def bits_of(x: Array) -> Array:
    x = np.ascontiguousarray(x).reshape(-1)
    return x.view(np.dtype(f"u{x.dtype.itemsize}"))


def assert_same(got: Array, want: Array, what: str = "") -> None:
    """Assert equal dtype, size and bits."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.dtype == want.dtype, what
    assert got.size == want.size, what
    different = np.flatnonzero(bits_of(got) != bits_of(want))
    if different.size:
        first = different[0]
        pair = f"got {got.reshape(-1)[first]}, want {want.reshape(-1)[first]}"
        pytest.fail(f"{what}: {different.size} of {got.size} differ, first at {first}: {pair}")


def assert_same_but_nan(got: Array, want: Array, what: str = "") -> None:
    """Assert equal bits but for those of NaNs: which NaN arithmetic makes is not part of the contract."""
    got, want = np.asarray(got).reshape(-1), np.asarray(want).reshape(-1)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        nan = np.isnan(want)
        np.testing.assert_array_equal(np.isnan(got), nan, what)
    assert_same(got[~nan], want[~nan], what)


def assert_all_same(got: Sequence[Array], want: Sequence[Array], same: Any = assert_same) -> None:
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        same(a, b, f"[{i}]")


# ---- messages


def names_of(layout: tk.Layout) -> list[str]:
    """Return the packing of each layer."""
    return [layout.packing] * len(layout.shapes) if isinstance(layout.packing, str) else list(layout.packing)


def sizes_of(layout: tk.Layout) -> list[int]:
    """Return the elements of each layer of the whole bucket."""
    return [math.prod(shape) for shape in layout.shapes]


def cuts_of(layout: tk.Layout) -> dict[str, Any]:
    """Return what else the reference asks of a layout."""
    return {"block": layout.block, "shards": layout.shards, "index": layout.index}


def garbage(layout: tk.Layout, seed: int, workers: int | None = None) -> Any:
    """Return a message of any bytes, of counts if `workers` are given; half of its scale fields are 1."""
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, layout.nbytes, dtype=np.uint8)
    for piece in layout.pieces:
        if rng.integers(2):
            data[piece.scale_at : piece.scale_at + 4] = np.float32([1]).view(np.uint8)
    return tk.Packed(layout, data) if workers is None else tk.Counts(layout, workers, data)


def canonical_nans(data: Array, layout: tk.Layout) -> Array:
    """Return a copy of a message with every NaN in a float32 layer the canonical one: sums leave their bits open."""
    data = np.array(data)
    for piece in layout.pieces:
        if piece.packing == "float32":
            values = data[piece.payload_at : piece.payload_at + piece.nbytes].view(np.float32)
            values[np.isnan(values)] = np.array(0x7FC00000, np.uint32).view(np.float32)
    return data


# ---- frameworks


class Framework:
    """NumPy, and what the others have in common with it."""

    name = "numpy"
    title = "NumPy, with ml_dtypes"
    immutable = False
    words = (np.int64, np.uint32)  # types of arrays that a seed may be

    def make(self, x: Array) -> Array:
        """Return a copy of a NumPy array as one of this framework."""
        return np.array(x)

    def to_numpy(self, x: Array) -> Array:
        return np.asarray(x)

    def dtype(self, name: str) -> Any:
        """Return the framework's own dtype of that name."""
        return ref.DTYPES[name] if name in ref.DTYPES else np.dtype(name)

    def owns(self, x: Array) -> bool:
        """Whether `x` is what results come in."""
        return type(x) is np.ndarray

    def transposed(self, x: Array) -> Array:
        return x.T

    def reshaped(self, x: Array, shape: tuple[int, ...]) -> Array:
        return x.reshape(shape)

    def broadcast(self, x: Array, shape: tuple[int, ...]) -> Array:
        return np.broadcast_to(x, shape)


class Torch(Framework):
    name = "torch"
    title = "PyTorch"

    def __init__(self) -> None:
        self.torch = pytest.importorskip("torch")

    def make(self, x: Array) -> Array:
        x = np.array(x, order="C")
        if x.dtype == ref.DTYPES["bfloat16"]:
            return self.torch.from_numpy(x.view(np.int16)).view(self.torch.bfloat16)
        return self.torch.from_numpy(x)

    def to_numpy(self, x: Array) -> Array:
        x = x.detach().resolve_neg()
        if x.dtype == self.torch.bfloat16:
            return x.contiguous().view(self.torch.int16).numpy().view(ref.DTYPES["bfloat16"])
        return x.numpy()

    def dtype(self, name: str) -> Any:
        return getattr(self.torch, name)

    def owns(self, x: Array) -> bool:
        return isinstance(x, self.torch.Tensor)

    def broadcast(self, x: Array, shape: tuple[int, ...]) -> Array:
        return x.expand(shape)


class Jax(Framework):
    name = "jax"
    title = "JAX, eager"
    immutable = True

    def __init__(self) -> None:
        self.jax = pytest.importorskip("jax")

    def with_64_bits(self) -> Any:
        """Return a context in which JAX has types of 64 bits."""
        if hasattr(self.jax, "enable_x64"):
            return self.jax.enable_x64(True)
        from jax.experimental import enable_x64  # where it was in older versions

        return enable_x64(True)

    def make(self, x: Array) -> Array:
        return self.jax.numpy.array(x)

    def dtype(self, name: str) -> Any:
        return getattr(self.jax.numpy, name)

    def owns(self, x: Array) -> bool:
        return isinstance(x, self.jax.Array)

    def broadcast(self, x: Array, shape: tuple[int, ...]) -> Array:
        return self.jax.numpy.broadcast_to(x, shape)


def _import(name: str) -> Any:
    """Import what warns of many things that are not ours, or skip the test."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


class TensorFlow(Framework):
    name = "tensorflow"
    title = "TensorFlow, eager"
    immutable = True

    def __init__(self) -> None:
        if importlib.util.find_spec("paddle"):
            _import("paddle")  # which ends the process when it comes after TensorFlow (versions 3.3 and 2.21)
        self.tf = _import("tensorflow")

    def make(self, x: Array) -> Array:
        return self.tf.constant(np.array(x))

    def to_numpy(self, x: Array) -> Array:
        return x.numpy()

    def dtype(self, name: str) -> Any:
        return self.tf.as_dtype(name)

    def owns(self, x: Array) -> bool:
        return isinstance(x, self.tf.Tensor)

    def transposed(self, x: Array) -> Array:
        return self.tf.transpose(x)

    def reshaped(self, x: Array, shape: tuple[int, ...]) -> Array:
        return self.tf.reshape(x, shape)

    def broadcast(self, x: Array, shape: tuple[int, ...]) -> Array:
        return self.tf.broadcast_to(x, shape)


class Paddle(Framework):
    name = "paddle"
    title = "Paddle, dynamic"
    words = (np.int64,)

    def __init__(self) -> None:
        self.paddle = _import("paddle")

    def make(self, x: Array) -> Array:
        x = np.array(x, order="C")
        if x.dtype == ref.DTYPES["bfloat16"]:
            return self.paddle.to_tensor(x.view(np.int16)).view("bfloat16")
        return self.paddle.to_tensor(x)

    def to_numpy(self, x: Array) -> Array:
        return x.numpy().view(ref.DTYPES["bfloat16"]) if x.dtype == self.paddle.bfloat16 else x.numpy()

    def dtype(self, name: str) -> Any:
        return getattr(self.paddle, name)

    def owns(self, x: Array) -> bool:
        return isinstance(x, self.paddle.Tensor)

    def broadcast(self, x: Array, shape: tuple[int, ...]) -> Array:
        return x.expand(shape)


class DLPack(Framework):
    """Anything else: results come in an array of our own."""

    name = "dlpack"
    title = "anything else with `__dlpack__`"

    def make(self, x: Array) -> Array:
        return Producer(np.array(x, order="C"))

    def to_numpy(self, x: Array) -> Array:
        return x.array if isinstance(x, Producer) else np.asarray(x)

    def owns(self, x: Array) -> bool:
        return type(x) is dlpack.Array

    def broadcast(self, x: Array, shape: tuple[int, ...]) -> Array:
        return Producer(np.broadcast_to(x.array, shape))


# ---- frameworks on a GPU


class TorchCuda(Torch):
    title = "PyTorch on a GPU"

    def __init__(self) -> None:
        super().__init__()
        if not self.torch.cuda.is_available():
            pytest.skip("PyTorch finds no CUDA device")

    def make(self, x: Array) -> Array:
        return super().make(x).cuda()

    def to_numpy(self, x: Array) -> Array:
        return super().to_numpy(x.detach().cpu())

    def owns(self, x: Array) -> bool:
        return super().owns(x) and x.is_cuda


class CuPy(Framework):
    name = "cupy"
    title = "CuPy"

    def __init__(self) -> None:
        self.cupy = _import("cupy")
        try:
            self.cupy.cuda.runtime.getDeviceCount()
        except self.cupy.cuda.runtime.CUDARuntimeError as error:
            pytest.skip(f"CuPy finds no CUDA device: {error}")

    def make(self, x: Array) -> Array:
        return self.cupy.array(np.array(x, order="C"))

    def to_numpy(self, x: Array) -> Array:
        return self.cupy.asnumpy(x)

    def owns(self, x: Array) -> bool:
        return isinstance(x, self.cupy.ndarray)

    def broadcast(self, x: Array, shape: tuple[int, ...]) -> Array:
        return self.cupy.broadcast_to(x, shape)


class JaxCuda(Jax):
    title = "JAX on a GPU, eager"

    def __init__(self) -> None:
        super().__init__()
        try:
            self.device = self.jax.devices("gpu")[0]
        except RuntimeError as error:
            pytest.skip(f"JAX finds no GPU: {error}")

    def make(self, x: Array) -> Array:
        return self.jax.device_put(np.array(x), self.device)

    def owns(self, x: Array) -> bool:
        return super().owns(x) and x.devices() == {self.device}


class PaddleCuda(Paddle):
    title = "Paddle on a GPU"

    def __init__(self) -> None:
        super().__init__()
        if not self.paddle.is_compiled_with_cuda() or self.paddle.device.cuda.device_count() == 0:
            pytest.skip("Paddle finds no CUDA device")

    def make(self, x: Array) -> Array:
        return super().make(x).cuda()

    def to_numpy(self, x: Array) -> Array:
        return super().to_numpy(x.cpu())

    def owns(self, x: Array) -> bool:
        return super().owns(x) and x.place.is_gpu_place()


FRAMEWORKS: dict[str, type[Framework]] = {
    kind.name: kind for kind in (Framework, Torch, Jax, Paddle, TensorFlow, DLPack)
}
#: What lies on a GPU, by the name of the test's parameter.
CUDA_FRAMEWORKS: dict[str, type[Framework]] = {
    f"{kind.name}-cuda": kind for kind in (TorchCuda, CuPy, JaxCuda, PaddleCuda)
}


def skip_if_cuda_is_built(device_type: Any) -> None:
    """Skip a test of what a build without CUDA kernels says of arrays on a CUDA device."""
    if device_type in (2, 13) and (_core.CUDA_BUILT or _core.EMULATED):
        pytest.skip("this build takes arrays on CUDA devices")


def no_cuda() -> str | None:
    """Say why nothing can run on a CUDA device here; None if it can."""
    if not _core.CUDA_BUILT:
        return "this build of terngrad_kernels has no CUDA kernels"
    info = _core.cuda_info()
    if not info["devices"]:
        return f"no CUDA device: {info['error']}"
    if not any(map(importlib.util.find_spec, ("torch", "cupy"))):
        return "neither PyTorch nor CuPy, whose arrays the tests use, is installed"
    return None


def cuda_framework() -> Framework:
    """Return what the tests' arrays on a GPU are of, or skip the test."""
    if reason := no_cuda():
        pytest.skip(reason)
    return TorchCuda() if importlib.util.find_spec("torch") else CuPy()


# ---- the operations on arrays that go to a GPU and back


class Moved:
    """Calls an operation once with every NumPy array copied to the device, and copies what comes of it back."""

    def __init__(self, framework: Framework) -> None:
        self.framework = framework
        self.made: list[tuple[Array, Array]] = []  # NumPy's, the device's
        self.lists: list[tuple[Any, Any]] = []  # the same of lists and tuples: one that is an output comes back

    def there(self, x: Any) -> Any:
        if isinstance(x, np.ndarray):
            for own, made in self.made:
                if own is x:
                    return made  # an output may be an input
            self.made.append((x, self.framework.make(x)))
            return self.made[-1][1]
        if isinstance(x, (tk.Packed, tk.Counts)):
            return dataclasses.replace(x, data=self.there(x.data))
        if isinstance(x, tk.Scales):
            return tk.Scales(*map(self.there, x))
        if isinstance(x, (list, tuple)):
            self.lists.append((x, type(x)(map(self.there, x))))
            return self.lists[-1][1]
        return x

    def back(self, x: Any) -> Any:
        for own, made in (*self.made, *self.lists):
            if made is x:
                return own
        if self.framework.owns(x):
            return self.framework.to_numpy(x)
        if isinstance(x, (tk.Packed, tk.Counts)):
            return dataclasses.replace(x, data=self.back(x.data))
        if isinstance(x, tk.Scales):
            return tk.Scales(*map(self.back, x))
        return type(x)(map(self.back, x)) if isinstance(x, (list, tuple)) else x

    def is_only_shown_by_the_host(self, outputs: int) -> bool:
        """Whether an output, of which are the first that were made, is refused and its copy is not."""
        arrays = [own for own, _ in self.made]
        return any(
            not (out.flags.writeable and out.flags.c_contiguous)
            or any(np.may_share_memory(out, other) for other in arrays[i + 1 :])
            for i, out in enumerate(arrays[:outputs])
        )

    def call(self, operation: Callable[..., Any], /, *positional: Any, **named: Any) -> Any:
        """A number that is no stream is refused on the host; the driver takes it for an address."""
        self.there(named.get("out"))
        outputs = len(self.made)
        try:
            there = self.there(positional), {name: self.there(x) for name, x in named.items()}
            on_host = self.is_only_shown_by_the_host(outputs) or named.get("stream") is not None
            result = None if on_host else operation(*there[0], **there[1])
        except Exception as error:
            with pytest.raises(type(error)) as own:  # whose text names NumPy's arrays, as tests expect it
                operation(*positional, **named)
            raise own.value from error
        if on_host:
            return operation(*positional, **named)
        for own, made in self.made[:outputs]:
            own[...] = self.framework.to_numpy(made).reshape(own.shape)
        for own, made in self.made[outputs:]:
            assert_same(self.framework.to_numpy(made), own, "an input was written")
        return self.back(result)


def moved(framework: Framework, operation: Callable[..., Any], /, *positional: Any, **named: Any) -> Any:
    """Call an operation so; what it remembers is of this call, beside which others may run."""
    return Moved(framework).call(operation, *positional, **named)


def move_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the operations of `terngrad_kernels` run on a GPU until the end of the test, whatever they are given."""
    for name in operations.__all__:  # which operations do not call one another by
        monkeypatch.setattr(tk, name, functools.partial(moved, cuda_framework(), getattr(operations, name)))
