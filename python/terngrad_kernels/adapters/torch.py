"""PyTorch tensors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils._pytree as pytree

from .. import _core
from ..adapters import handle_of, no_stream, queue
from ..layout import Layout
from ..packed import PYTREES
from . import torch_operators as _operators  # noqa: F401  (which registers them)

_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
    "int8": torch.int8,
    "uint8": torch.uint8,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
# By names of their own, since each call looks them up several times.
_Tensor, _strided, _empty = torch.Tensor, torch.strided, torch.empty


def _current_stream(device: int) -> int:
    return int(torch.cuda.current_stream(device).cuda_stream)


# Without an object made of it, which takes longer than the call. A build without CUDA has none.
_raw_stream = getattr(torch._C, "_cuda_getCurrentRawStream", _current_stream)


def _require_memory(x: Any, argument: str) -> None:
    """Refuse tensors without memory of one array, as far as can be seen here; `_core` refuses the rest."""
    if x.layout is not _strided or x.is_nested:
        kind = "nested" if x.is_nested else f"of layout {x.layout}"
        raise TypeError(f"{argument}: expected a strided tensor, got one that is {kind}")
    if type(x) is not _Tensor and hasattr(x, "fake_mode"):  # whose memory PyTorch warns of being asked for
        raise TypeError(f"{argument}: expected a tensor with memory of its own, got a {type(x).__name__}")


class TorchAdapter:
    """See `terngrad_kernels.adapters.Adapter`."""

    name = "torch"
    core = _core
    queue = queue

    def accepts(self, x: Any) -> bool:
        """Return whether `x` is a tensor; `dense` refuses those without memory of their own."""
        return isinstance(x, _Tensor)

    def dtype(self, x: Any) -> str:
        """Return the name without "torch."."""
        return _NAMES.get(x.dtype) or str(x.dtype).removeprefix("torch.")

    def device(self, x: Any) -> Any:
        """Return the torch.device."""
        return x.device

    def dense(self, x: Any, argument: str) -> Any:
        """Return the data, outside autograd, with lazy negation and conjugation resolved, which DLPack would ignore."""
        _require_memory(x, argument)
        if x.requires_grad:
            x = x.detach()
        if x.is_neg():
            x = x.resolve_neg()
        return x if x.is_contiguous() else x.contiguous()

    def stream(self, x: Any) -> int | None:
        """Return the current stream of torch.cuda."""
        return _raw_stream(x.device.index) if x.is_cuda else None

    @contextmanager
    def on_stream(self, x: Any, stream: Any, arrays: Sequence[Any]) -> Iterator[None]:
        """Record the use of the arrays on this stream, so that their memory is not reused before the call ends."""
        if not x.is_cuda:
            raise no_stream()
        if not isinstance(stream, torch.cuda.Stream):
            handle = handle_of(stream, self.name)
            # ExternalStream(0) would be a new stream; 1 is CUDA's other name of the default one.
            default = handle in (0, 1)
            stream = torch.cuda.default_stream(x.device) if default else torch.cuda.ExternalStream(handle, x.device)
        if stream.device != x.device:
            raise ValueError(f"stream: expected one of {x.device}, got one of {stream.device}")
        with torch.cuda.stream(stream):
            yield
            for array in arrays:
                if isinstance(array, torch.Tensor) and array.is_cuda:
                    array.record_stream(stream)

    def empty(self, shape: tuple[int, ...], dtype: str, like: Any) -> Any:
        """Return an uninitialised tensor."""
        return _empty(shape, dtype=_DTYPES[dtype], device=like.device)

    def result(self, written: Any) -> Any:
        """Return the tensor itself."""
        return written

    def writable(self, x: Any, argument: str) -> Any:
        """Return the data, outside autograd; refuse lazily negated views."""
        _require_memory(x, argument)
        if x.is_neg():
            raise ValueError(f"{argument}: expected a tensor of its own values, got a lazily negated view")
        return x.detach() if x.requires_grad else x

    def as_float32(self, x: Any) -> Any:
        """Return a view."""
        return x.view(torch.float32)

    def to_numpy(self, x: Any) -> Any:
        """Return a view of a host tensor, a copy of any other."""
        return x.detach().cpu().numpy()

    def from_numpy(self, x: Any, like: Any) -> Any:
        """Return a tensor of its own memory."""
        return torch.from_numpy(x.copy()).to(like.device)


adapter = TorchAdapter()


def _register(kind: Any, static: tuple[str, ...]) -> None:
    """Make a pytree of a kind of message: its data is the leaf, its other fields are static, and saved as text."""

    def values(x: Any) -> tuple[Any, ...]:
        return tuple(getattr(x, name) for name in static)

    def load(text: str) -> tuple[Any, ...]:
        layout, *others = json.loads(text)
        return Layout(*layout), *others

    pytree.register_pytree_node(
        kind,
        lambda x: ([x.data], values(x)),
        lambda leaves, values: kind(data=next(iter(leaves)), **dict(zip(static, values, strict=True))),
        serialized_type_name=f"terngrad_kernels.{kind.__name__}",
        flatten_with_keys_fn=lambda x: ([(pytree.GetAttrKey("data"), x.data)], values(x)),
        to_dumpable_context=lambda values: json.dumps([values[0].__reduce__()[1], *values[1:]]),
        from_dumpable_context=load,
    )


for _kind, _static in PYTREES.items():
    _register(_kind, _static)
# For torch.load(weights_only=True), which torch.export.load calls for the arguments that a program was made with.
torch.serialization.add_safe_globals([Layout, *PYTREES])
