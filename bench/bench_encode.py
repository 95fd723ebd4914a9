"""encode under pytest-benchmark."""

from collections.abc import Callable


def test_encode(measure: Callable[[], None]) -> None:
    measure()
