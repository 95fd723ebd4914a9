"""The TernGrad compressor of GRACE (sands-lab/grace), for its torch, dist and tensorflow packages alike.

::

    from terngrad_kernels.frontends.grace import TernGradCompressor

    Allgather(TernGradCompressor(packed=True), ResidualMemory(), world_size)

GRACE need not be installed. Where it is, `TernGradCompressor` counts as a subclass of its classes, so that `isinstance`
holds (the AllToAll communicator asks); nothing is inherited from them.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from .. import operations
from ..layout import DTYPES, Layout, _shape
from ..packed import Packed
from ._arrays import array_of, arrays_of, is_traced, scalars
from ._draws import Draws, process_draws

__all__ = ["TernGradCompressor"]


class TernGradCompressor:
    """Compress a tensor to its TernGrad codes: GRACE's interface, our kernels.

    Each tensor is clipped to 2.5 times its population standard deviation about the mean (not at all where that is 0:
    the original makes zeros of a constant tensor) and quantised with its largest magnitude after that.

    Parameters
    ----------
    average : bool, default True
        Whether communicators divide by the number of workers; they read this attribute.
    tensors_size_are_same : bool, default True
        Whether the workers' compressed tensors have the same sizes, as they do; communicators read this attribute.
    packed : bool, default False
        False: as GRACE's own, codes are int8, a quarter of the bytes. True: one message with 2 bits per code, a
        sixteenth, for communicators that only move bytes (Allgather, Broadcast). Allreduce adds codes and AllToAll
        cuts them: False.
    clip : float > 0 or None, default 2.5
        The multiple of the standard deviation; None does not clip.
    seed : int, optional
        In [-2**63, 2**64), this worker's own (base + rank). What a tensor draws then depends on the seed, its name
        and how often that name was compressed by this compressor. None: the process's seed, see
        `terngrad_kernels.frontends.manual_seed`.

    Raises
    ------
    TypeError, ValueError
        The message names the argument, what was expected and what was got.
    """

    def __init__(
        self,
        average: bool = True,
        tensors_size_are_same: bool = True,
        *,
        packed: bool = False,
        clip: float | None = 2.5,
        seed: int | None = None,
    ) -> None:
        if clip is not None:
            if isinstance(clip, bool) or not isinstance(clip, (int, float)):
                raise TypeError(f"clip: expected a number or None, got {type(clip).__name__}")
            if not 0 < clip < math.inf:
                raise ValueError(f"clip: expected a finite number > 0, or None, got {clip}")
        self.average = average
        self.tensors_size_are_same = tensors_size_are_same
        self.packed = bool(packed)
        self.clip = clip
        self._draws = process_draws() if seed is None else Draws(seed)
        for framework in _GRACE:
            if framework in sys.modules:
                _join(framework)

    def compress(self, tensor: Any, name: Any) -> tuple[tuple[Any, ...], Any]:
        """Compress one tensor.

        Parameters
        ----------
        tensor : array
            Tensor of float32, float16, bfloat16 or float64, of any shape and framework.
        name : object
            Which tensor it is, by its text: each draws bits of its own.

        Returns
        -------
        compressed : tuple of arrays
            (codes, scalar): int8 of shape (n,), and float32 of shape (1,). If packed: one uint8 array, a message of
            ``Layout([shape], packing="two_bit")`` (contract section 5), scale and all.
        ctx : shape
            Of `tensor`, what `decompress` needs.

        Raises
        ------
        TypeError, ValueError
            The message names the argument, what was expected and what was got.
        """
        adapter, x = array_of(tensor, "tensor")
        dtype = adapter.dtype(x)
        if dtype not in DTYPES:
            raise TypeError(f"tensor: expected {', '.join(DTYPES)}, got {adapter.name} {dtype}")
        if is_traced(x):
            raise TypeError(
                "tensor: expected known values, got traced ones, whose draws would be the same in every run"
            )
        _join(adapter.name)
        seed, offset, layer = self._draws.next(str(name))
        own = operations.scales(x, clip=self.clip, center=True)
        if self.packed:
            message = operations.encode(x, seed=seed, offset=offset, layer=layer, scales=own)
            return (message.data,), x.shape
        codes, scale = operations.ternarize(x, seed=seed, offset=offset, layer=layer, scales=own)
        return (arrays_of(adapter.name).reshape(codes, (-1,)), scale), x.shape

    def decompress(self, tensors: Sequence[Any], ctx: Any) -> Any:
        """Turn what `compress` returned, or what a communicator made of it, back into a tensor.

        Parameters
        ----------
        tensors : sequence of arrays
            (codes, scalar), codes of any type: sums or means of several workers' too. If packed: one message.
        ctx : sequence of int
            The shape.

        Returns
        -------
        array of float32
            codes * scalar, in that shape; NaN everywhere if the tensor had a NaN or an infinity.

        Raises
        ------
        TypeError, ValueError
            The message names the argument, what was expected and what was got.
        """
        shape = _shape(ctx, "ctx")
        expected = ("one message",) if self.packed else ("codes", "scalar")
        if not isinstance(tensors, (tuple, list)):
            raise TypeError(f"tensors: expected ({', '.join(expected)}), got {type(tensors).__name__}")
        if len(tensors) != len(expected):
            got = f"{len(tensors)} tensors"
            raise ValueError(f"tensors: expected ({', '.join(expected)}), got {got}")
        adapter, x = array_of(tensors[0], "tensors[0]")
        given = math.prod(x.shape)
        if self.packed:
            layout = Layout((shape,), form="array")
            if given != layout.nbytes:
                raise ValueError(f"tensors[0]: expected {layout.nbytes} bytes for shape {shape}, got {given}")
            return operations.decode(Packed(layout, x))
        if given != math.prod(shape):
            raise ValueError(f"tensors[0]: expected {math.prod(shape)} codes for shape {shape}, got {given}")
        arrays = arrays_of(adapter.name)
        scalar = scalars([tensors[1]], ["tensors[1]"], adapter, x)
        return arrays.reshape(arrays.times(arrays.reshape(x, (-1,)), scalar), shape)

    def aggregate(self, tensors: Iterable[Any]) -> Any:
        """Return the sum of the tensors.

        Parameters
        ----------
        tensors : iterable of arrays
            Decompressed tensors, one per worker.

        Returns
        -------
        array
            Their sum.
        """
        return sum(tensors)


# Where GRACE keeps its compressors for tensors of a framework. Its classes are ABCs, which can be told of subclasses.
_GRACE = {"torch": ("grace_dl.torch", "grace_dl.dist"), "tensorflow": ("grace_dl.tensorflow",)}


@cache
def _join(framework: str) -> None:
    """Count as one of GRACE's compressors, where it is installed. The framework must be in use: GRACE imports it."""
    for package in _GRACE.get(framework, ()):
        try:
            original = importlib.import_module(f"{package}.compressor.terngrad").TernGradCompressor
        except ImportError:
            continue
        original.register(TernGradCompressor)
