"""Many threads at once, forked children, interrupts, and how many threads and which instruction set are chosen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from arrays import assert_same, bucket, layer

import terngrad_kernels as tk
from terngrad_kernels import _core

LARGE = 3 * 2**16 + 77  # more than 64 K elements a thread: the pool is asked for help


def run_python(code: str, timeout: float = 60, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh process; neither of the package's variables is set but those given."""
    own = {key: value for key, value in os.environ.items() if not key.startswith("TERNGRAD_KERNELS_")}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=own | environment,
        check=False,
    )


def printed(code: str, timeout: float = 60, **environment: str) -> str:
    done = run_python(code, timeout, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# ---- many threads at once


def work_of(x: Any, layers: list[Any], packed: tk.Packed) -> list[Callable[[], bytes]]:
    """Calls that share their inputs, each giving the bytes of its result."""
    return [
        lambda: tk.encode(x, seed=1).data.tobytes(),
        lambda: tk.encode(layers, packing="base3", seed=2).data.tobytes(),
        lambda: tk.decode(packed).tobytes(),
        lambda: tk.decode_sum([packed] * 3, weights=[1, 2, 3]).tobytes(),
        lambda: tk.sum_trits([packed] * 9).data.tobytes(),
        lambda: tk.repack([packed] * 3, seed=4, offset=5, clip=2.5).data.tobytes(),
        lambda: b"".join(field.tobytes() for field in tk.scales(layers)),
        lambda: tk.ternarize(x, seed=3)[0].tobytes(),
        lambda: tk.clip(x, clip=0.5).tobytes(),
        lambda: tk.unpack(tk.pack(tk.ternarize(layers[0])[0]), shape=700).tobytes(),
        lambda: repr(tk.Layout([(n,) for n in range(len(layers))], shards=3).pieces).encode(),
        lambda: refused(lambda: tk.encode(x, clip=-1)),
    ]


def refused(call: Callable[[], Any]) -> bytes:
    try:
        call()
    except ValueError as error:
        return str(error).encode()
    raise AssertionError("no error")


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(("n", "calls"), [(3000, 300), (LARGE, 12)])
def test_64_threads_get_the_same_bytes(n: int, calls: int) -> None:
    before = tk.get_num_threads()
    tk.set_num_threads(3)
    try:
        x, layers = layer("outlier", n), bucket((700, 2600, 0, 33))
        work = work_of(x, layers, tk.encode(x))
        want = [call() for call in work]
        start = threading.Barrier(64)

        def worker(index: int) -> list[int]:
            rng = np.random.default_rng(index)
            start.wait()
            return [k for k in rng.integers(len(work), size=calls) if work[k]() != want[k]]

        with ThreadPoolExecutor(64) as threads:
            assert [wrong for wrong in threads.map(worker, range(64)) if wrong] == []
    finally:
        tk.set_num_threads(before)


def test_changing_the_settings_under_others_changes_no_bit() -> None:
    x = layer("outlier", LARGE)
    want = tk.encode(x).data.tobytes()
    before, isa = tk.get_num_threads(), _core.isa()
    stop = threading.Event()

    def restless() -> None:
        while not stop.is_set():
            for count in (1, 4, 2):
                tk.set_num_threads(count)
            for name in _core.isas():
                _core.set_isa(name)

    changer = threading.Thread(target=restless)
    changer.start()
    try:
        with ThreadPoolExecutor(4) as threads:
            results = list(threads.map(lambda _: tk.encode(x).data.tobytes(), range(60)))
    finally:
        stop.set()
        changer.join()
        tk.set_num_threads(before)
        _core.set_isa(isa)
    assert set(results) == {want}


def test_the_first_calls_come_all_at_once() -> None:
    """In a fresh process, where the pool, the adapters and the caches are all made by whoever comes first."""
    code = """
        import sys, threading, numpy
        import terngrad_kernels as tk
        tk.set_num_threads(2)
        sys.setswitchinterval(1e-6)
        x = numpy.linspace(-1, 1, 150_000, dtype="f4")
        barrier, results = threading.Barrier(64), set()
        def first():
            barrier.wait()
            results.add(tk.encode(x).data.tobytes())
        threads = [threading.Thread(target=first) for _ in range(64)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print(len(results))
    """
    for _ in range(3):
        assert printed(code) == "1"


# ---- fork

FORK = """
    import os, signal, threading, time, warnings, numpy
    import terngrad_kernels as tk
    warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of what is tried here
    tk.set_num_threads(2)
    x = numpy.linspace(-1, 1, 150_000, dtype="f4")
    want = tk.encode(x).data.tobytes()
    stop = threading.Event()
    def encode_on():
        while not stop.is_set(): tk.encode(x)
    busy = [threading.Thread(target=encode_on) for _ in range({busy})]
    for thread in busy: thread.start()
    for i in range(20):
        child = os.fork()
        if child == 0:
            signal.alarm(5)
            good = all(tk.encode(x).data.tobytes() == want for _ in range(3)) and tk.get_num_threads() == 2
            # A child of the child, which has a pool of its own too.
            if i % 5 == 0 and good:
                grandchild = os.fork()
                if grandchild == 0:
                    os._exit(0 if tk.encode(x).data.tobytes() == want else 1)
                good = os.waitpid(grandchild, 0)[1] == 0
            os._exit(0 if good else 1)
        status = os.waitpid(child, 0)[1]
        assert status == 0, (i, status)
        assert tk.encode(x).data.tobytes() == want
    stop.set()
    for thread in busy: thread.join()
    print("good")
"""


@pytest.mark.parametrize("busy", [0, 2])
def test_forked_children_work(busy: int) -> None:
    """Children of a process that has used its pool; with `busy`, of one that is using it at that very moment."""
    assert printed(FORK.format(busy=busy)) == "good"


def test_multiprocessing_works_either_way() -> None:
    code = """
        import multiprocessing, sys, warnings, numpy
        import terngrad_kernels as tk
        def encode(seed):
            return tk.encode(numpy.linspace(-1, 1, 150_000, dtype="f4"), seed=seed).data.tobytes()
        if __name__ == "__main__":
            warnings.simplefilter("ignore", DeprecationWarning)
            tk.set_num_threads(2)
            want = [encode(seed) for seed in range(4)]
            with multiprocessing.get_context("fork").Pool(2) as pool:
                assert pool.map_async(encode, range(4)).get(30) == want
            print("good")
    """
    assert printed(code) == "good"


# ---- interrupts


@pytest.fixture
def interrupting() -> Iterator[Callable[[float], None]]:
    """A function that has SIGINT arrive after some seconds."""
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals arrive on the main thread")
    before = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    interrupts = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds) and None
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
    signal.signal(signal.SIGINT, interrupts)


@pytest.mark.usefixtures("threads")
def test_an_interrupt_comes_after_the_call(interrupting: Callable[[float], None]) -> None:
    """At random times, over and over: it is raised, and the next call is right."""
    x = layer("outlier", LARGE)
    want = tk.encode(x).data
    out = np.empty_like(want)
    begin = time.perf_counter()
    tk.encode(x, out=out)
    one_call = time.perf_counter() - begin
    rng = np.random.default_rng(0)

    def until_interrupted() -> None:
        interrupting(rng.uniform(1e-5, 4 * one_call))
        deadline = time.perf_counter() + 10
        while time.perf_counter() < deadline:
            tk.encode(x, out=out)

    for _ in range(60):
        with pytest.raises(KeyboardInterrupt):
            until_interrupted()
        assert_same(tk.encode(x, out=out).data, want)


# ---- how many threads


def test_set_and_get_num_threads() -> None:
    before = tk.get_num_threads()
    try:
        for count in (1, 2, 7, 1024, np.int64(3)):
            tk.set_num_threads(count)
            assert tk.get_num_threads() == count
            assert tk.build_info()["threads"] == count
        for count in (0, -1, 1025, 2**40):
            with pytest.raises(ValueError, match=f"^n: expected 1 <= n <= 1024, got {count}"):
                tk.set_num_threads(count)
        for wrong in (1.5, "2", None, [2], True, np.True_):
            with pytest.raises(TypeError, match=f"^n: expected an int, got {type(wrong).__name__}"):
                tk.set_num_threads(wrong)  # type: ignore[arg-type]
        tk.set_num_threads(n=3)
        assert tk.get_num_threads() == 3
    finally:
        tk.set_num_threads(before)


def test_the_default_is_what_this_process_may_use() -> None:
    processors = sorted(os.sched_getaffinity(0))
    code = """
        import os
        os.sched_setaffinity(0, {processors})
        import terngrad_kernels
        print(terngrad_kernels.get_num_threads())
    """
    for some in (processors[:1], processors):
        assert printed(code.format(processors=some)) == str(len(some))


SHOW_THREADS = "import terngrad_kernels; print(terngrad_kernels.get_num_threads())"


@pytest.mark.parametrize("text", ["1", "3", "1024", " 5"])
def test_num_threads_from_the_environment(text: str) -> None:
    assert printed(SHOW_THREADS, TERNGRAD_KERNELS_NUM_THREADS=text) == text.strip()


def test_an_empty_variable_is_none() -> None:
    default = printed(SHOW_THREADS)
    assert printed(SHOW_THREADS, TERNGRAD_KERNELS_NUM_THREADS="", TERNGRAD_KERNELS_ISA="") == default


@pytest.mark.parametrize("text", ["0", "-1", "1025", "two", "2.5", "2 ", " ", "99999999999999999999", "0x2"])
def test_bad_num_threads_in_the_environment(text: str) -> None:
    done = run_python(SHOW_THREADS, TERNGRAD_KERNELS_NUM_THREADS=text)
    assert done.returncode == 1
    message = f"ImportError: TERNGRAD_KERNELS_NUM_THREADS: expected a whole number from 1 to 1024, got '{text}'"
    assert message in done.stderr


# ---- which instruction set

SHOW_ISA = "import terngrad_kernels as tk; print(tk.build_info()['instruction_set'])"


@pytest.mark.parametrize("name", _core.isas())
def test_isa_from_the_environment(name: str) -> None:
    assert printed(SHOW_ISA, TERNGRAD_KERNELS_ISA=name) == name


def test_the_default_isa_is_the_widest() -> None:
    assert printed(SHOW_ISA) == _core.isas()[-1]


@pytest.mark.parametrize("name", ["sse9", "AVX2", "avx2,scalar", " scalar", "0"])
def test_an_isa_that_cannot_run_here(name: str) -> None:
    done = run_python(SHOW_ISA, TERNGRAD_KERNELS_ISA=name)
    assert done.returncode == 1
    choices = ", ".join(_core.isas())
    message = f"ImportError: TERNGRAD_KERNELS_ISA: instruction set '{name}' cannot run here; choices: {choices}"
    assert message in done.stderr


def test_set_isa() -> None:
    before = _core.isa()
    with pytest.raises(ValueError, match=r"instruction set 'sse9' cannot run here; choices: scalar"):
        _core.set_isa("sse9")
    assert _core.isa() == before
    assert set(_core.isas()) <= set(_core.built_isas())
    info = tk.build_info()
    assert info["instruction_sets"] == _core.built_isas()
    assert info["instruction_sets_here"] == _core.isas()


def test_set_num_threads_is_for_the_whole_process() -> None:
    before = tk.get_num_threads()
    try:
        with ThreadPoolExecutor(1) as other:
            other.submit(tk.set_num_threads, 5).result()
        assert tk.get_num_threads() == 5
    finally:
        tk.set_num_threads(before)
