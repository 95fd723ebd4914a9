"""clip under pytest-benchmark."""

from collections.abc import Callable


def test_clip(measure: Callable[[], None]) -> None:
    measure()
