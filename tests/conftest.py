"""Fixtures of all tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import arrays
import hypothesis
import pytest

import terngrad_kernels as tk
from terngrad_kernels import _core

# No deadline: test machines are shared. Fixtures set a state (the instruction set) that all examples share.
hypothesis.settings.register_profile(
    "terngrad",
    deadline=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("terngrad")


@pytest.fixture(params=_core.isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set that can run here, in turn."""
    before = _core.isa()
    _core.set_isa(request.param)
    yield request.param
    _core.set_isa(before)


@pytest.fixture(params=[1, 2, 3], ids=lambda n: f"threads{n}")
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = tk.get_num_threads()
    tk.set_num_threads(request.param)
    yield request.param
    tk.set_num_threads(before)


@pytest.fixture(params=list(arrays.FRAMEWORKS))
def framework(request: pytest.FixtureRequest) -> Iterator[arrays.Framework]:
    """Each framework that is installed; JAX with 64-bit types, which it has only on request."""
    made = arrays.FRAMEWORKS[request.param]()
    with made.with_64_bits() if isinstance(made, arrays.Jax) else nullcontext():
        yield made
