"""ternarize under pytest-benchmark."""

from collections.abc import Callable


def test_ternarize(measure: Callable[[], None]) -> None:
    measure()
