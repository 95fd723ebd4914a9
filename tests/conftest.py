"""Fixtures of all tests."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import nullcontext

import arrays
import hypothesis
import pytest
from lost_device import pytest_runtest_protocol  # noqa: F401

import terngrad_kernels as tk
from terngrad_kernels import _core

# JAX would take three quarters of a GPU's memory, which other frameworks' tests need.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

# No deadline: test machines are shared. Fixtures set a state (the instruction set) that all examples share.
hypothesis.settings.register_profile(
    "terngrad",
    deadline=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("terngrad")


def pytest_configure(config: pytest.Config) -> None:
    """Find out once whether tests are to run on a GPU too: where there is one, and where ``-m cuda`` asks for it."""
    wanted = re.fullmatch(r".*\bcuda\b.*", config.getoption("markexpr")) and "not cuda" not in config.getoption(
        "markexpr"
    )
    config.stash[_on_cuda] = bool(wanted) or arrays.no_cuda() is None


_on_cuda = pytest.StashKey[bool]()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what asks for `isa` or `framework` with each of them: a GPU is one more, and CI is not told of it in vain."""
    given = {mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")}
    for name, here, there in (
        ("isa", _core.isas(), ["cuda"]),
        ("framework", list(arrays.FRAMEWORKS), list(arrays.CUDA_FRAMEWORKS)),
    ):
        if name in metafunc.fixturenames and name not in given:
            # Arrays are to stay where they are; or a framework's, which are on the GPU already.
            stay = metafunc.definition.get_closest_marker("host") or (
                name == "isa" and "framework" in metafunc.fixturenames
            )
            more = there if metafunc.config.stash[_on_cuda] and not stay else []
            values = [*here, *(pytest.param(value, marks=pytest.mark.cuda) for value in more)]
            metafunc.parametrize(name, values, indirect=True)


@pytest.fixture
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each instruction set that can run here, in turn; on "cuda" the operations run on a GPU."""
    if request.param == "cuda":
        arrays.move_operations(monkeypatch)
        yield "cuda"
        return
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


@pytest.fixture
def framework(request: pytest.FixtureRequest) -> Iterator[arrays.Framework]:
    """Each framework that is installed; JAX with 64-bit types, which it has only on request."""
    if request.param in arrays.CUDA_FRAMEWORKS:
        if reason := arrays.no_cuda():
            pytest.skip(reason)
        made = arrays.CUDA_FRAMEWORKS[request.param]()
    else:
        made = arrays.FRAMEWORKS[request.param]()
    with made.with_64_bits() if isinstance(made, arrays.Jax) else nullcontext():
        yield made
