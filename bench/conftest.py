"""The cases of `python -m terngrad_kernels bench --quick` under pytest-benchmark: one file an operation."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import pytest

import terngrad_kernels as tk
from terngrad_kernels.bench.cases import Case, Inputs, groups, prepare
from terngrad_kernels.bench.measure import CpuPlace


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        operation = metafunc.module.__name__.removeprefix("bench_")
        threads = [1, len(os.sched_getaffinity(0))]
        cases = [case for group in groups(True, threads, CpuPlace().free()) for case in group]
        mine = [case for case in cases if case.operation == operation]
        metafunc.parametrize("case", mine, ids=_name)


def _name(case: Case) -> str:
    size = case.model or f"{case.elements}"
    return f"{case.section}-{size}-{case.dtype}-{case.packing}-{case.threads} threads".replace(" ", "_")


@pytest.fixture
def measure(benchmark: Any, case: Case) -> Iterator[Callable[[], None]]:
    """Time the case, and note what it is and the bytes that it moves."""
    before = tk.get_num_threads()
    tk.set_num_threads(case.threads)

    def run() -> None:
        ready = prepare(case, Inputs(case, CpuPlace()))
        benchmark.extra_info.update(asdict(case), bytes=ready.moved)
        benchmark(ready.call)

    yield run
    tk.set_num_threads(before)
