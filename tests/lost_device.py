"""A plugin: a process whose GPU is lost ends after the test that lost it, and does not fail all others too.

After a fault in a kernel every call on the device fails until the process ends. Under pytest-xdist another process goes
on with the next test.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator

import pytest


def lost_device() -> str | None:
    """Say what is wrong with the device, for all that this process will do with it; None if nothing is."""
    torch = sys.modules.get("torch")
    try:
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    return None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Look at the device after each test that uses it."""
    done = yield
    if item.get_closest_marker("cuda") and (error := lost_device()):
        if "PYTEST_XDIST_WORKER" in os.environ:
            os._exit(1)  # as a crash would: what is left of CUDA could hang at a regular exit
        item.session.shouldfail = f"{item.nodeid}: the device is lost: {error}"
    return done
