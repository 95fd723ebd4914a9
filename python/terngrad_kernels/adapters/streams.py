"""The operations on the stream that a caller names: it is made the current one, and the operation called again."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from .. import operations
from ..adapters import adapter_of, no_stream
from ..packed import Counts, Packed


def _arrays(x: Any) -> Iterator[Any]:
    """Give what may be an array in an argument."""
    if isinstance(x, (list, tuple)):
        for item in x:
            yield from _arrays(item)
    else:
        yield x.data if isinstance(x, (Packed, Counts)) else x


def on_stream(operation: str, x: Any, *, stream: Any, **arguments: Any) -> Any:
    """Call an operation, by its name, with the caller's stream as the current one of the device of `x`."""
    call = partial(getattr(operations, operation), x, **arguments)
    like = next(_arrays(x), None)
    if like is None:  # an empty list is NumPy's
        raise no_stream()
    try:
        adapter = adapter_of(like, "x")
    except TypeError:
        return call()  # which says what is wrong with it, by its name
    arrays = [*_arrays(x), *_arrays(list(arguments.values()))]
    with adapter.on_stream(like, stream, arrays):
        return call()
