"""sum_trits under pytest-benchmark."""

from collections.abc import Callable


def test_sum_trits(measure: Callable[[], None]) -> None:
    measure()
