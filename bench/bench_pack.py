"""pack under pytest-benchmark."""

from collections.abc import Callable


def test_pack(measure: Callable[[], None]) -> None:
    measure()
