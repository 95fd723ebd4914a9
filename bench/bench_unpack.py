"""unpack under pytest-benchmark."""

from collections.abc import Callable


def test_unpack(measure: Callable[[], None]) -> None:
    measure()
