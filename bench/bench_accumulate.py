"""accumulate under pytest-benchmark."""

from collections.abc import Callable


def test_accumulate(measure: Callable[[], None]) -> None:
    measure()
