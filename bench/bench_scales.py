"""scales under pytest-benchmark."""

from collections.abc import Callable


def test_scales(measure: Callable[[], None]) -> None:
    measure()
