"""decode_sum under pytest-benchmark."""

from collections.abc import Callable


def test_decode_sum(measure: Callable[[], None]) -> None:
    measure()
