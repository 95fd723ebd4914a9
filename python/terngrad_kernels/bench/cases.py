"""The cases: operations x sizes and networks x dtypes x packings x threads x frameworks, one set for all who measure.

A row is a case with its time, what memory takes for the same bytes (its bound), and the ratio of the two.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

import terngrad_kernels as tk

from .measure import Call, Clock, Effort, Part, Place, Timing, alternate
from .models import MODELS

__all__ = ["OPERATIONS", "Case", "Inputs", "bounded_rows", "frameworks", "groups", "prepare"]

#: Messages that decode_sum, sum_trits and repack take.
WORKERS = 4
SIZES = (1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24, 25_600_000, 1 << 26, 1 << 27, 1 << 29)
QUICK_SIZES = (1 << 10, 1 << 16, 1 << 20, 25_600_000)
#: ResNet-50's size, as a round number: from memory on any machine.
LARGE = 25_600_000
#: Shared out to one layer and to thousands.
LAYERED = 1 << 22
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8, "int8": 1, "uint8": 1}


@dataclass(frozen=True)
class Case:
    """What is measured; its fields are those of the row, and name it in comparisons with other runs."""

    section: str
    operation: str
    elements: int
    layers: int = 1
    model: str = ""
    dtype: str = "float32"
    packing: str = "two_bit"
    framework: str = "numpy"
    device: str = "cpu"
    threads: int = 1

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of the layers: a network's, or equal ones."""
        return MODELS[self.model]() if self.model else [(self.elements // self.layers,)] * self.layers


class Prepared(NamedTuple):
    """A call, and the bytes that it must read (as often as it must), write, and read and write again in place."""

    call: Call
    reads: tuple[int, ...]
    writes: int
    updates: int = 0

    @property
    def parts(self) -> tuple[Part, ...]:
        """What memory must do."""
        others = (Part("fill", self.writes), Part("update", self.updates))
        return (*(Part("read", count) for count in self.reads), *(part for part in others if part.amount))

    @property
    def moved(self) -> int:
        """Bytes read and written."""
        return sum(self.reads) + self.writes + 2 * self.updates


class Inputs:
    """What the operations of one group work on: made when first asked for, and shared.

    Parameters
    ----------
    case : Case
        Of which shapes and dtype are taken.
    place : Place
        Where the arrays lie.
    """

    def __init__(self, case: Case, place: Place) -> None:
        self._case = case
        self.place = place
        self.elements = case.elements
        self.nbytes = case.elements * BYTES[case.dtype]
        self._messages: dict[tuple[str, int], list[tk.Packed]] = {}

    def _layers(self, flat: Any) -> Any:
        if not self._case.model and self._case.layers == 1:
            return flat
        layers, first = [], 0
        for shape in self._case.shapes:
            layers.append(flat[first : first + math.prod(shape)].reshape(shape))
            first += math.prod(shape)
        return layers

    @cached_property
    def x(self) -> Any:
        """A gradient: normal values, the same ones again after 4 million."""
        some = np.random.default_rng(0).standard_normal(min(self.elements, 1 << 22), dtype=np.float32)
        return self._layers(self.place.array(np.resize(some, self.elements), self._case.dtype))

    @cached_property
    def like_x(self) -> Any:
        """Where something of x's form is written."""
        return self._layers(self.place.array(np.zeros(self.elements, np.float32), self._case.dtype))

    @cached_property
    def trits(self) -> Any:
        """Of x, unpacked."""
        return tk.ternarize(self.x, seed=1)[0]

    def messages(self, packing: str, count: int = 1) -> list[tk.Packed]:
        """Messages of several workers that share their scales."""
        key = (packing, count)
        if key not in self._messages:
            shared = tk.scales(self.x)
            seeds = range(1, count + 1)
            self._messages[key] = [tk.encode(self.x, seed=seed, scales=shared, packing=packing) for seed in seeds]
        return self._messages[key]


def _scales(given: Inputs, packing: str) -> Prepared:
    out = tk.scales(given.x)
    return Prepared(lambda: tk.scales(given.x, out=out), (given.nbytes,), 0)


def _clip(given: Inputs, packing: str) -> Prepared:
    out = given.like_x
    return Prepared(lambda: tk.clip(given.x, out=out), (given.nbytes,) * 2, given.nbytes)


def _ternarize(given: Inputs, packing: str) -> Prepared:
    out = tk.ternarize(given.x)
    return Prepared(lambda: tk.ternarize(given.x, seed=1, out=out), (given.nbytes,) * 2, given.elements)


def _encode(given: Inputs, packing: str) -> Prepared:
    out = tk.encode(given.x, packing=packing).data
    call = lambda: tk.encode(given.x, seed=1, packing=packing, out=out)  # noqa: E731
    return Prepared(call, (given.nbytes,) * 2, math.prod(out.shape))


def _decode(given: Inputs, packing: str) -> Prepared:
    (packed,) = given.messages(packing)
    out = given.like_x
    return Prepared(lambda: tk.decode(packed, out=out), (packed.layout.nbytes,), given.nbytes)


def _accumulate(given: Inputs, packing: str) -> Prepared:
    (packed,) = given.messages(packing)
    out = given.like_x
    call = lambda: tk.decode(packed, out=out, accumulate=True)  # noqa: E731
    return Prepared(call, (packed.layout.nbytes,), 0, given.nbytes)


def _decode_sum(given: Inputs, packing: str) -> Prepared:
    messages = given.messages(packing, WORKERS)
    out, weights = given.like_x, [1 / WORKERS] * WORKERS
    call = lambda: tk.decode_sum(messages, weights=weights, out=out)  # noqa: E731
    return Prepared(call, (messages[0].layout.nbytes,) * WORKERS, given.nbytes)


def _sum_trits(given: Inputs, packing: str) -> Prepared:
    messages = given.messages(packing, WORKERS)
    counts = tk.sum_trits(messages)
    call = lambda: tk.sum_trits(messages, out=counts.data)  # noqa: E731
    return Prepared(call, (messages[0].layout.nbytes,) * WORKERS, counts.layout.nbytes)


def _repack(given: Inputs, packing: str) -> Prepared:
    messages = given.messages(packing, WORKERS)
    out = tk.repack(messages, seed=1, offset=0).data
    nbytes = messages[0].layout.nbytes
    return Prepared(lambda: tk.repack(messages, seed=1, offset=0, out=out), (nbytes,) * 2 * WORKERS, nbytes)


def _pack(given: Inputs, packing: str) -> Prepared:
    out = tk.pack(given.trits, packing=packing)
    call = lambda: tk.pack(given.trits, packing=packing, out=out)  # noqa: E731
    return Prepared(call, (given.elements,), math.prod(out.shape))


def _unpack(given: Inputs, packing: str) -> Prepared:
    payload = tk.pack(given.trits, packing=packing)
    out = tk.unpack(payload, shape=given.elements, packing=packing)
    call = lambda: tk.unpack(payload, shape=given.elements, packing=packing, out=out)  # noqa: E731
    return Prepared(call, (math.prod(payload.shape),), given.elements)


OPERATIONS: dict[str, Callable[[Inputs, str], Prepared]] = {
    "scales": _scales,
    "clip": _clip,
    "ternarize": _ternarize,
    "encode": _encode,
    "decode": _decode,
    "decode_sum": _decode_sum,
    "accumulate": _accumulate,
    "sum_trits": _sum_trits,
    "repack": _repack,
    "pack": _pack,
    "unpack": _unpack,
}
#: Those that a packing makes a difference to, and those that the dtype does.
PACKED = ("encode", "decode", "decode_sum", "accumulate", "sum_trits", "repack", "pack", "unpack")
TYPED = ("scales", "clip", "ternarize", "encode", "decode", "decode_sum", "accumulate")


def prepare(case: Case, given: Inputs) -> Prepared:
    """Return what to call, with the bytes that memory has to move for it.

    Parameters
    ----------
    case : Case
        Operation and packing are taken of it.
    given : Inputs
        Of the same shapes and dtype.

    Returns
    -------
    Prepared
        The first call of it is yet to be made.
    """
    return OPERATIONS[case.operation](given, case.packing)


# ---- the plan


def groups(quick: bool, threads: Sequence[int], free: int, device: str = "cpu") -> Iterator[list[Case]]:
    """Yield the cases in groups that are measured in alternation: one size or network, one number of threads.

    Parameters
    ----------
    quick : bool
        A choice that takes a minute.
    threads : sequence of int
        Numbers of threads, 1 first.
    free : int
        Bytes of memory: groups that need more are left out.
    device : str
        ``cpu`` or ``cuda``, where threads do not matter.

    Yields
    ------
    list of Case
        Framework as the place where they are measured has it.
    """
    base = Case("operations", "encode", 0, device=device)
    for size in QUICK_SIZES if quick else SIZES:
        # x, as much of it again as output and for each of two bounds, trits and a few messages
        if 20 * size > free:
            continue
        group = [replace(base, operation=name, elements=size) for name in OPERATIONS]
        group += [replace(base, operation=name, elements=size, packing="base3") for name in PACKED]
        yield group
        if size == 1 << 20 or (size == LARGE and not quick):
            typed = ("scales", "encode", "decode") if quick else TYPED
            dtypes = ["float32", "float16", "float64"]
            if importlib.util.find_spec("ml_dtypes") or device == "cuda":
                dtypes.insert(2, "bfloat16")
            for dtype in dtypes:
                yield [replace(base, section="dtypes", operation=name, elements=size, dtype=dtype) for name in typed]
    several = threads if device == "cpu" else threads[:1]
    if device == "cpu":
        shared = ("scales", "encode", "decode", "decode_sum") if quick else tuple(OPERATIONS)
        for size in (LARGE,) if quick else (1 << 20, LARGE, 1 << 27):
            for count in several:
                if 20 * size <= free:
                    yield [
                        replace(base, section="threads", operation=name, elements=size, threads=count)
                        for name in shared
                    ]
    for layers in (1, 16, 256, 4096):
        yield [
            replace(base, section="layers", operation=name, elements=LAYERED, layers=layers)
            for name in ("encode", "decode")
        ]
    for model, shapes in MODELS.items():
        table = shapes()
        size = sum(map(math.prod, table))
        layered = ("encode", "decode") if quick else ("scales", "encode", "decode", "decode_sum")
        for count in (several[0], several[-1]) if len(several) > 1 else several:
            if 20 * size <= free:
                yield [
                    replace(
                        base,
                        section="models",
                        operation=name,
                        elements=size,
                        layers=len(table),
                        model=model,
                        threads=count,
                    )
                    for name in layered
                ]


def bounded_rows(
    cases: Sequence[Case],
    place: Place,
    effort: Effort,
    done: Callable[[str], None] = lambda _: None,
) -> Iterator[dict[str, Any]]:
    """Measure a group of cases in alternation, with the reads and fills that bound them.

    Parameters
    ----------
    cases : sequence of Case
        Of one size or network, and one number of threads.
    place : Place
        Where.
    effort : Effort
        How long.
    done : callable
        Told the operation of a case that has been measured.

    Yields
    ------
    dict
        A row for each case and clock of the place.
    """
    cases = [replace(case, framework=place.name) for case in cases]
    threads = cases[0].threads
    before = tk.get_num_threads()
    if place.device == "cpu":
        tk.set_num_threads(threads)
    try:
        inputs: dict[str, Inputs] = {}
        prepared: list[Prepared] = []
        wanted: list[tuple[Part, ...]] = []
        for case in cases:
            given = inputs.setdefault(case.dtype, Inputs(case, place))
            ready = prepare(case, given)
            prepared.append(ready)
            if case.elements * 4 < place.small:
                wanted.append((Part("add_one", case.elements),))
            else:
                wanted.append(ready.parts)
        parts = list(dict.fromkeys(part for each in wanted for part in each))
        if parts[0].what != "add_one":
            parts += [Part("copy", max(part.amount for part in parts)), *place.empty_parts]
        most = max(part.amount * (4 if part.what == "add_one" else 1) for part in parts)
        with place.memory(most, threads) as call_of:
            calls = [ready.call for ready in prepared] + [call_of(part) for part in parts]
            for clock in place.clocks():
                names = [case.operation for case in cases] + [part.what for part in parts]
                timings = alternate(calls, clock, effort, lambda i: done(names[i]))  # noqa: B023
                of_part = dict(zip(parts, timings[len(cases) :], strict=True))
                overhead = min((of_part[part].fastest for part in place.empty_parts if part in of_part), default=0.0)
                for case, ready, bound, timing in zip(cases, prepared, wanted, timings, strict=False):
                    measured = [(part, of_part[part].less(overhead)) for part in bound]
                    yield row(case, timing, ready, measured, clock.cache)
                if cases[0].section == "operations" or (cases[0].section == "threads" and threads > 1):
                    for part in parts:
                        if part.what in ("read", "fill", "copy") and part.amount == most:
                            memory = replace(cases[0], section="memory", operation=part.what, packing="")
                            moved = Prepared(lambda: None, (most,) * (2 if part.what == "copy" else 1), 0)
                            yield row(memory, of_part[part], moved, cache=clock.cache)
    finally:
        tk.set_num_threads(before)


def row(
    case: Case,
    timing: Timing,
    prepared: Prepared | None = None,
    bound: Sequence[tuple[Part, Timing]] = (),
    cache: str = "warm",
) -> dict[str, Any]:
    """Lay out one result.

    Parameters
    ----------
    case : Case
        What was measured.
    timing : Timing
        What came out.
    prepared : Prepared, optional
        For the bytes.
    bound : sequence of (Part, Timing)
        Whose sum is the bound.
    cache : str
        ``warm`` or ``flushed``.

    Returns
    -------
    dict
        Ready for JSON.
    """
    made: dict[str, Any] = {**asdict(case), "cache": cache, "seconds": timing._asdict()}
    made["ns_per_element"] = timing.median / case.elements * 1e9
    if prepared is not None:
        made["bytes"] = prepared.moved
    if bound:
        seconds = sum(part.median for _, part in bound)
        made["bound"] = {
            "what": " + ".join(_spelled([part for part, _ in bound])),
            "seconds": seconds,
            "iqr": math.hypot(*(part.q3 - part.q1 for _, part in bound)),
        }
        made["ratio"] = timing.median / seconds
    return made


def _spelled(parts: Sequence[Part]) -> Iterator[str]:
    for part in dict.fromkeys(parts):
        times = f"{parts.count(part)} x " if parts.count(part) > 1 else ""
        if part.what == "add_one":
            yield "the framework's x + 1"
        else:
            yield f"{times}{part.what} of {part.amount / 1e6:.3g} MB"


# ---- what a call costs in each framework

#: How each makes an array of NumPy's.
_FRAMEWORKS: dict[str, Callable[[Any, Any], Any]] = {
    "numpy": lambda _, values: values,
    "torch": lambda torch, values: torch.from_numpy(values),
    "jax": lambda jax, values: jax.numpy.asarray(values),
    "paddle": lambda paddle, values: paddle.to_tensor(values),
    "tensorflow": lambda tensorflow, values: tensorflow.constant(values),
    "array_api_strict": lambda strict, values: strict.asarray(values),
}
_WRITABLE = ("numpy", "torch", "paddle", "array_api_strict")
SMALL = 1024


def frameworks(effort: Effort, note: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Measure a small call in each installed framework, compared with the framework's own ``x + 1``.

    Each in a process of its own: some pairs of frameworks end a process that they share.

    Parameters
    ----------
    effort : Effort
        How long.
    note : callable
        Told what was left out, and why.

    Yields
    ------
    dict
        A row for each framework and operation.
    """
    for name in _FRAMEWORKS:
        if importlib.util.find_spec(name) is None:
            note(f"framework {name}: not installed")
            continue
        command = [sys.executable, "-c", f"from {__name__} import _alone; _alone({name!r}, {tuple(effort)!r})"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = done.stderr.strip().rpartition("\n")[2] or f"ended with {done.returncode}"
            note(f"framework {name}: {last}")
            continue
        yield from json.loads(done.stdout.splitlines()[-1])


def _alone(name: str, effort: tuple[float, float, int, int]) -> None:
    """Print the rows of one framework, as JSON in the last line."""
    values = np.random.default_rng(0).standard_normal(SMALL, dtype=np.float32)
    tk.set_num_threads(1)
    module = importlib.import_module(name)
    print(json.dumps(list(_framework_rows(name, module, _FRAMEWORKS[name](module, values), Effort(*effort)))))


def _framework_rows(name: str, module: Any, x: Any, effort: Effort) -> Iterator[dict[str, Any]]:
    packed = tk.encode(x)
    if name == "jax":
        jitted = module.jit(lambda x, offset: tk.encode(x, seed=1, offset=offset).data)
        floor: Call = lambda: (x + 1).block_until_ready()  # noqa: E731
    else:
        floor = lambda: x + 1  # noqa: E731
    calls: dict[str, Call] = {
        "encode": lambda: tk.encode(x, seed=1),
        "decode": lambda: tk.decode(packed),
    }
    if name in _WRITABLE:
        out = tk.encode(x).data
        calls["encode, out="] = lambda: tk.encode(x, seed=1, out=out)
    if name == "jax":
        calls["encode, jitted"] = lambda: jitted(x, 7).block_until_ready()
    *timings, least = alternate([*calls.values(), floor], Clock(), effort)
    for operation, timing in zip(calls, timings, strict=True):
        case = Case("frameworks", operation, SMALL, framework=name)
        yield row(case, timing, None, [(Part("add_one", SMALL), least)])
