"""repack under pytest-benchmark."""

from collections.abc import Callable


def test_repack(measure: Callable[[], None]) -> None:
    measure()
