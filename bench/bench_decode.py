"""decode under pytest-benchmark."""

from collections.abc import Callable


def test_decode(measure: Callable[[], None]) -> None:
    measure()
