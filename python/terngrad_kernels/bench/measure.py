"""Times of calls, measured alternately with plain reads and fills of the same memory.

On a shared machine only ratios of one run mean anything. So everything that is compared takes turns, round after
round: what disturbs the machine disturbs all sides. A figure is the median of its rounds, its spread their quartiles.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import importlib
import itertools
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import terngrad_kernels as tk

__all__ = [
    "Call",
    "Clock",
    "CpuPlace",
    "CudaPlace",
    "Effort",
    "EventClock",
    "Part",
    "Place",
    "Timing",
    "alternate",
    "machine",
    "noise",
    "noise_warnings",
]

Call = Callable[[], Any]


class Effort(NamedTuple):
    """How long to measure: seconds of one round, seconds of one row in all, and the fewest and the most rounds."""

    round: float
    row: float
    least: int
    most: int


QUICK = Effort(0.002, 0.1, 5, 21)
FULL = Effort(0.01, 0.5, 9, 41)


class Timing(NamedTuple):
    """Seconds of one call: median, quartiles and the fastest of the rounds."""

    median: float
    q1: float
    q3: float
    fastest: float
    rounds: int
    repeats: int

    @classmethod
    def of(cls, seconds: Sequence[float], repeats: int) -> Timing:
        """Summarise the rounds."""
        q1, _, q3 = statistics.quantiles(seconds, method="inclusive") if len(seconds) > 1 else [seconds[0]] * 3
        return cls(statistics.median(seconds), q1, q3, min(seconds), len(seconds), repeats)

    def less(self, overhead: float) -> Timing:
        """Take off what the call costs when it does nothing.

        On a busy machine nothing can seem to cost more than something; then a tenth is left.
        """
        times = [max(value - overhead, value / 10) for value in self[:4]]
        return Timing(times[0], times[1], times[2], times[3], self.rounds, self.repeats)


# ---- clocks


class Clock:
    """Seconds of a call that has done its work when it returns."""

    cache = "warm"
    #: Calls of one round.
    most_repeats = 1_000_000

    def seconds(self, call: Call, repeats: int) -> float:
        """Return the mean of some calls in a row."""
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - start) / repeats


class EventClock(Clock):
    """Seconds of work on a GPU, between two events of its stream around each call.

    Parameters
    ----------
    event : callable
        Makes an event, with ``record`` and ``synchronize``.
    elapsed : callable
        Milliseconds between two events.
    hold : callable, optional
        Keeps the GPU busy while the host queues the call, so that no time of the host's is measured.
    flush : callable, optional
        Sweeps the L2 cache, before each call and outside of the events. None: what the call before left there.
    """

    most_repeats = 10

    def __init__(
        self,
        event: Call,
        elapsed: Callable[[Any, Any], float],
        hold: Call | None = None,
        flush: Call | None = None,
    ) -> None:
        self._event = event
        self._elapsed = elapsed
        self._before = [call for call in (flush, hold) if call is not None]
        self.cache = "warm" if flush is None else "flushed"

    def seconds(self, call: Call, repeats: int) -> float:
        """Return the mean of some calls."""
        pairs = []
        for _ in range(repeats):
            for prepare in self._before:
                prepare()
            first, last = self._event(), self._event()
            first.record()
            call()
            last.record()
            pairs.append((first, last))
        pairs[-1][1].synchronize()
        return sum(self._elapsed(first, last) for first, last in pairs) / 1e3 / repeats


def alternate(
    calls: Sequence[Call],
    clock: Clock,
    effort: Effort,
    done: Callable[[int], None] = lambda _: None,
) -> list[Timing]:
    """Time calls in turn, round after round; slow ones take part in fewer rounds, evenly spread.

    Parameters
    ----------
    calls : sequence of callables
        What is compared.
    clock : Clock
        Of the place where they work.
    effort : Effort
        How long.
    done : callable
        Told the place of each call in the sequence each time it was measured for the last time.

    Returns
    -------
    list of Timing
        In the order of the calls.
    """
    repeats, rounds = [], []
    for call in calls:
        call()  # caches, page tables, compilers
        once = clock.seconds(call, 1)
        if once < effort.round:
            once = min(once, clock.seconds(call, max(1, min(100, int(effort.round / max(once, 1e-9))))))
        repeats.append(min(clock.most_repeats, max(1, round(effort.round / max(once, 1e-9)))))
        rounds.append(min(effort.most, max(effort.least, int(effort.row / (once * repeats[-1])))))
    seconds: list[list[float]] = [[] for _ in calls]
    total = max(rounds, default=0)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in range(total):
            order = range(len(calls)) if turn % 2 == 0 else reversed(range(len(calls)))
            for i in order:
                if (turn + 1) * rounds[i] // total > turn * rounds[i] // total:
                    seconds[i].append(clock.seconds(calls[i], repeats[i]))
                    if len(seconds[i]) == rounds[i]:
                        done(i)
    finally:
        if collecting:
            gc.enable()
    return [Timing.of(*measured) for measured in zip(seconds, repeats, strict=True)]


# ---- places: where arrays lie, and what their memory does


class Part(NamedTuple):
    """What memory is asked to do with so many bytes (``add_one``: elements): read, fill, copy, or update in place."""

    what: str
    amount: int


class Place:
    """A framework on a device."""

    name = "numpy"
    device = "cpu"
    #: Bytes below which a call costs more than its memory.
    small = 1 << 16
    #: Calls that do nothing: what they take is no memory's fault.
    empty_parts: tuple[Part, ...] = ()

    def array(self, values: Any, dtype: str = "float32") -> Any:
        """Return NumPy's values as this framework's array."""
        raise NotImplementedError

    def clocks(self) -> list[Clock]:
        """Return the ways to take times here."""
        return [Clock()]

    @contextmanager
    def memory(self, nbytes: int, threads: int) -> Iterator[Callable[[Part], Call]]:
        """Lend two buffers of so many bytes, and what makes calls of parts."""
        raise NotImplementedError

    def free(self) -> int:
        """Return the bytes of memory that are free."""
        raise NotImplementedError


class CpuPlace(Place):
    """NumPy. Memory is read by the C library's memchr, filled by its memset, copied by its memcpy."""

    empty_parts = (Part("read", 0), Part("fill", 0))

    def array(self, values: Any, dtype: str = "float32") -> Any:
        """Return the values in a dtype."""
        if dtype == "bfloat16":
            dtype = importlib.import_module("ml_dtypes").bfloat16
        return np.ascontiguousarray(values, dtype)

    @contextmanager
    def memory(self, nbytes: int, threads: int) -> Iterator[Callable[[Part], Call]]:
        """Lend two buffers of so many bytes, and what makes calls of parts, shared out over threads."""
        library = ctypes.CDLL(None)
        size, pointer = ctypes.c_size_t, ctypes.c_void_p
        library.memchr.argtypes = library.memset.argtypes = (pointer, ctypes.c_int, size)
        library.memcpy.argtypes = (pointer, pointer, size)
        for function in (library.memchr, library.memset, library.memcpy):
            function.restype = pointer
        # Not of zeros: memory of Zen 4 takes those more than twice as fast as anything else.
        source, target = np.ones(nbytes, np.uint8), np.ones(nbytes, np.uint8)
        ones = np.ones(max(1, min(nbytes, self.small) // 4), np.float32)
        with ThreadPoolExecutor(max(1, threads - 1)) as pool:

            def call(part: Part) -> Call:
                if part.what == "add_one":
                    some = ones[: part.amount]
                    return lambda: some + 1
                works: list[tuple[Any, ...]] = []
                cuts = [part.amount * i // threads for i in range(threads + 1)]
                for first, last in itertools.pairwise(cuts):
                    here, there, count = source.ctypes.data + first, target.ctypes.data + first, last - first
                    works.append(
                        {
                            "read": (library.memchr, here, 0, count),  # which is not there
                            "fill": (library.memset, there, 1, count),
                            # A processor reads the lines that it writes: a fill moves what an update in place does.
                            "update": (library.memset, there, 1, count),
                            "copy": (library.memcpy, there, here, count),
                        }[part.what]
                    )
                (function, *arguments), *others = works
                if not others:
                    return lambda: function(*arguments)

                def shared() -> None:
                    waits = [pool.submit(work[0], *work[1:]) for work in others]
                    function(*arguments)
                    for wait in waits:
                        wait.result()

                return shared

            yield call

    def free(self) -> int:
        """Return what the system says is available."""
        for line in (_text("/proc/meminfo") or "").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class CudaPlace(Place):
    """PyTorch or CuPy on the current CUDA device. Memory is read by a maximum, filled and copied by what they have."""

    small = 1 << 20

    def __init__(self, name: str) -> None:
        self.name = name
        self.device = "cuda"
        self._module = importlib.import_module(name)

    def ready(self) -> bool:
        """Return whether there is a device."""
        if self.name == "torch":
            return bool(self._module.cuda.is_available())
        try:
            return int(self._module.cuda.runtime.getDeviceCount()) > 0
        except self._module.cuda.runtime.CUDARuntimeError:
            return False

    def array(self, values: Any, dtype: str = "float32") -> Any:
        """Return the values in a dtype, on the device."""
        if self.name == "torch":
            made = self._module.from_numpy(np.ascontiguousarray(values)).cuda()
            return made.to(getattr(self._module, dtype))
        return self._module.asarray(CpuPlace().array(values, dtype))

    def clocks(self) -> list[Clock]:
        """Events, with what is in the L2 cache left there, and with it swept, by reads: none is written back later."""
        cuda = self._module.cuda
        if self.name == "torch":
            l2 = int(cuda.get_device_properties(cuda.current_device()).L2_cache_size)
            sweep = self.array(np.zeros(4 * l2, np.uint8), "uint8")

            def timed() -> Any:
                return cuda.Event(enable_timing=True)

            def elapsed(first: Any, last: Any) -> float:
                return float(first.elapsed_time(last))

            def hold() -> None:  # some 0.3 ms, longer than a call takes to queue
                cuda._sleep(600_000)

            return [EventClock(timed, elapsed, hold), EventClock(timed, elapsed, hold, sweep.max)]
        sweep = self._module.zeros(4 * int(cuda.Device().attributes["L2CacheSize"]), self._module.uint8)
        plain = EventClock(cuda.Event, cuda.get_elapsed_time)
        return [plain, EventClock(cuda.Event, cuda.get_elapsed_time, flush=sweep.max)]

    @contextmanager
    def memory(self, nbytes: int, threads: int) -> Iterator[Callable[[Part], Call]]:
        """Lend two buffers on the device, and what makes calls of parts."""
        source = self.array(np.ones(nbytes // 4 + 1, np.float32))
        target = self.array(np.ones(nbytes // 4 + 1, np.float32))

        def call(part: Part) -> Call:
            if part.what == "add_one":
                some = source[: part.amount]
                return lambda: some + 1
            here, there = source[: part.amount // 4], target[: part.amount // 4]
            if part.what == "read":
                return lambda: here.max()
            if self.name == "torch":  # an update in place moves what a copy does
                return (lambda: there.fill_(1)) if part.what == "fill" else lambda: there.copy_(here)
            return (lambda: there.fill(1)) if part.what == "fill" else lambda: self._module.copyto(there, here)

        yield call

    def free(self) -> int:
        """Return what the driver says is free."""
        cuda = self._module.cuda
        return int((cuda.mem_get_info() if self.name == "torch" else cuda.runtime.memGetInfo())[0])


# ---- the machine, and what disturbs it


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return None


def machine() -> dict[str, Any]:
    """Describe the machine and the build, with nothing that names its owner."""
    fields: dict[str, str] = {}
    for line in (_text("/proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    build = {key: value for key, value in tk.build_info().items() if key != "threads"}
    cpus = sorted(os.sched_getaffinity(0))
    index = "/sys/devices/system/cpu/cpu0/cache/index"
    caches = [(_text(f"{index}{i}/level"), _text(f"{index}{i}/type"), _text(f"{index}{i}/size")) for i in range(4)]
    return {
        "processor": fields.get("model name", platform.processor() or platform.machine()),
        "family": f"{fields.get('cpu family', '?')}, model {fields.get('model', '?')}",
        "cores": len(cpus),
        "caches": [f"L{level} {size}" for level, kind, size in caches if level and kind != "Instruction"],
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        **build,
    }


class _Ticks(NamedTuple):
    """Seconds of all processors since some time: all of them, those not idle, those that the hypervisor took, ours."""

    total: float
    busy: float
    stolen: float
    own: float

    @classmethod
    def now(cls) -> _Ticks:
        fields = [int(value) for value in (_text("/proc/stat") or "cpu 0 0 0 0 0 0 0 0").splitlines()[0].split()[1:9]]
        user, nice, system, _, _, interrupts, soft, stolen = (value / os.sysconf("SC_CLK_TCK") for value in fields)
        own = sum(os.times()[:4])
        return cls(sum(fields) / os.sysconf("SC_CLK_TCK"), user + nice + system + interrupts + soft, stolen, own)

    def others(self, later: _Ticks) -> float:
        """Return the share of the processors' time that other processes took."""
        taken = later.busy - self.busy - (later.own - self.own)
        return round(max(0.0, taken) / max(1e-9, later.total - self.total), 4)


def _clock_probe() -> float:
    """Seconds of a fixed computation in the first cache: what it varies by, the processor's clock varies by."""
    block = bytes(16384)
    hashlib.sha256(block).digest()
    seconds = []
    for _ in range(15):
        start = time.perf_counter()
        hashlib.sha256(block).digest()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def noise(before: dict[str, Any] | None = None) -> dict[str, Any]:
    """Say what may disturb: called before measuring, and again, with what it said then, after."""
    cpu = "/sys/devices/system/cpu"
    ticks = _Ticks.now()
    probe = _clock_probe()
    if before is not None:
        first: _Ticks = before["ticks"]
        return {
            **{key: value for key, value in before.items() if key != "ticks"},
            "end": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "load_at_end": round(os.getloadavg()[0], 2),
            "others": first.others(ticks),
            "steal": round((ticks.stolen - first.stolen) / max(1e-9, ticks.total - first.total), 4),
            "clock_probe_us": [*before["clock_probe_us"], round(probe * 1e6, 3)],
        }
    time.sleep(0.5)
    begun = _Ticks.now()
    turbo = _text(f"{cpu}/cpufreq/boost") or {"0": "1", "1": "0"}.get(_text(f"{cpu}/intel_pstate/no_turbo") or "")
    return {
        "start": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "load_at_start": round(os.getloadavg()[0], 2),
        "others_at_start": ticks.others(begun),
        "governor": _text(f"{cpu}/cpu0/cpufreq/scaling_governor") or "not shown (a virtual machine, or no cpufreq)",
        "turbo": {"1": "on", "0": "off"}.get(turbo or "", "not shown"),
        "clock_probe_us": [round(probe * 1e6, 3)],
        "ticks": begun,
    }


def noise_warnings(state: dict[str, Any]) -> list[str]:
    """Say in words what is wrong with the circumstances, if anything."""
    warnings = []
    others = state.get("others", state["others_at_start"])
    if others > 0.05:
        warnings.append(f"other processes took {others:.0%} of the processors' time: only ratios mean anything")
    if state.get("steal", 0) > 0.02:
        warnings.append(f"the hypervisor gave {state['steal']:.1%} of the time to others")
    probes = state["clock_probe_us"]
    if max(probes) > 1.05 * min(probes):
        warnings.append(f"the processor's clock moved by {max(probes) / min(probes) - 1:.0%} from start to end")
    return warnings
