"""Golden vectors: whether this machine gives the bits of the numerical contract, on every instruction set.

``golden/vectors.json`` was made from the NumPy statement of the contract alone (``tests/make_golden.py``),
and the package is compared with it through its public functions. Bytes of messages are a weak check,
because a wrong last bit of a threshold hardly ever moves one; so the file also holds statistics, thresholds
and random bits of chosen elements, which internals of ``_core`` expose.

Of the package itself this module imports nothing before it is asked to check, so that the vectors can be
made without a compiled core.
"""

from __future__ import annotations

import hashlib
import json
import time
from base64 import b64decode
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import terngrad_kernels as tk

Array = NDArray[Any]
Case = dict[str, Any]

__all__ = [
    "KINDS",
    "check_case",
    "check_philox",
    "check_value",
    "load",
    "pattern",
    "run",
    "runnable",
    "splitmix64",
]

GOLDEN = Path(__file__).parent / "golden" / "vectors.json"

# --------------------------------------------------------------------------------------------------- inputs

# name: (unsigned type of the bits, bits of the significand, exponent bias, canonical NaN)
_FORMATS: dict[str, tuple[Any, int, int, int]] = {
    "float16": (np.uint16, 10, 15, 0x7E00),
    "bfloat16": (np.uint16, 7, 127, 0x7FC0),
    "float32": (np.uint32, 23, 127, 0x7FC00000),
    "float64": (np.uint64, 52, 1023, 0x7FF8000000000000),
}

# Powers of two that a kind's magnitudes go through evenly, the first and one past the last. -1100 is below
# every format: such elements are zero or subnormal.
_EXPONENTS = {
    "uniform": (-12, 0),
    "heavy": (-130, 4),
    "spike": (-12, -8),
    "subnormal": (-149, -126),
    "tiny": (-75, -60),
    "border": (-62, -57),
    "stripes": (-28, 1),
    "bins": (-16, -15),
    "large": (4, 16),
    "huge": (57, 128),
    "overflow": (120, 130),
    "mean": (0, 1),
    "constant": (-1, 0),
    "fma_value": (-1, 0),
    "fma_start": (24, 25),
    "ternary": (-3, -2),
    "zero": (-1100, -1099),
    "normal": (0, 1),
    "nan": (-12, 0),
    "inf": (-12, 0),
    "nans": (-12, 0),
}

KINDS: tuple[str, ...] = tuple(_EXPONENTS)

# Fractions, of 52 bits, of the kinds whose elements are all equal. fma_value is 1 - 2^-23, fma_start is
# 2^24 + 2: fma(1 + 2^-23, fma_value, fma_start) is 2^24 + 2, but 2^24 + 4 if a float64 sum is rounded again.
_CONSTANTS = {"constant": 0x6666666000000, "fma_value": 0x7FFFFE << 29, "fma_start": 1 << 29}


#: The messages of a sum take turns: every second one has the other ternary packing.
OTHER = {"two_bit": "base3", "base3": "two_bit"}


def splitmix64(x: Array) -> Array:
    """Return the splitmix64 hash of each 64-bit word."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Array = x ^ (x >> np.uint64(31))
    return mixed


def _dtype(name: str) -> Any:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def pattern(kind: str, n: int, seed: int, dtype: str) -> Array:
    """
    Make a layer from integer arithmetic alone, hence with the same bits on every machine.

    Parameters
    ----------
    kind : str
        One of `KINDS`: how signs, exponents and significands are drawn, and what single element stands out.
    n : int
        Number of elements.
    seed : int
        Which layer of this kind, in [0, 2^32).
    dtype : str
        ``float32``, ``float16``, ``bfloat16`` (needs ml_dtypes) or ``float64``.

    Returns
    -------
    numpy.ndarray
        Shape (n,). float64 values have bits below float32's, a quarter of them exact ties.
    """
    unsigned, significand, bias, _ = _FORMATS[dtype]
    start = splitmix64(np.array([seed], np.uint64))
    h = splitmix64(start + np.arange(n, dtype=np.uint64))
    g = splitmix64(h)
    sign = h >> np.uint64(63)
    low, high = _EXPONENTS[kind]
    exponent = low + (h & np.uint64(0xFFFFFFFF)).astype(np.int64) % (high - low)
    fraction = g >> np.uint64(12)
    below_float32, tie = np.uint64(2**29 - 1), np.uint64(2**28)
    fraction = np.where(g & np.uint64(3) == 0, fraction & ~below_float32 | tie, fraction)

    if kind == "stripes":
        # One power of two for each 8192 elements, so that the order in which float64 adds these shows.
        by_stripe = splitmix64(start + (np.arange(n, dtype=np.uint64) >> np.uint64(13)))
        exponent = low + (by_stripe % np.uint64(high - low)).astype(np.int64)
    elif kind == "bins":
        # Stripes 0, 128 and 256, which meet in one of 128 bins but not of 256; and zeros.
        stripe = np.arange(n, dtype=np.uint64) >> np.uint64(13)
        exponent[:8192] = 0
        exponent[stripe % np.uint64(128) != 0] = -1100
        fraction[stripe % np.uint64(128) != 0] = 0
    elif kind == "normal":
        # Four 16-bit integers: a bell, with values that floats of 18 bits and more hold exactly.
        parts = [g >> np.uint64(16 * k) & np.uint64(0xFFFF) for k in range(4)]
        total = np.stack(parts).sum(axis=0).astype(np.int64) - 131070
        bits = (total * 2.0**-15).view(np.uint64)
        sign, fraction = bits >> np.uint64(63), bits & np.uint64(2**52 - 1)
        exponent = (bits >> np.uint64(52) & np.uint64(0x7FF)).astype(np.int64) - 1023
    elif kind == "mean":
        sign, fraction = sign * np.uint64(0), fraction >> np.uint64(4)
    elif kind in _CONSTANTS:
        sign, fraction = sign * np.uint64(0), np.full(n, _CONSTANTS[kind], np.uint64)
    elif kind == "ternary":
        zero = g % np.uint64(3) == 0
        fraction = np.where(zero, 0, start >> np.uint64(12) & ~below_float32)
        exponent = np.where(zero, -1100, exponent)
    elif kind == "zero":
        fraction = fraction * np.uint64(0)

    field = np.clip(exponent + bias, 0, 2 * bias).astype(np.uint64)
    fraction = fraction >> np.uint64(52 - significand)
    if n and kind in ("spike", "nan", "inf", "nans"):
        at = slice(None) if kind == "nans" else slice(seed % n, seed % n + 1)
        field[at] = bias + 3 if kind == "spike" else 2 * bias + 1
        if kind != "spike":
            fraction[at] = 0 if kind == "inf" else fraction[at] | np.uint64(1)
    width = np.uint64(np.dtype(unsigned).itemsize * 8 - 1)
    bits = sign << width | field << np.uint64(significand) | fraction
    elements: Array = bits.astype(unsigned).view(_dtype(dtype))
    return elements


# -------------------------------------------------------------------------------------------------- vectors


def load() -> dict[str, Any]:
    """Read the golden vectors: a dict with the lists ``philox`` and ``cases``."""
    with GOLDEN.open(encoding="ascii") as file:
        golden: dict[str, Any] = json.load(file)
    return golden


def runnable(case: Case) -> bool:
    """Return whether the case can run here: bfloat16 arrays need ml_dtypes, which the package does not require."""
    dtypes = [case["dtype"], *(case[part][2] for part in ("accumulate", "sum") if part in case)]
    try:
        for dtype in dtypes:
            _dtype(dtype)
    except ImportError:
        return False
    return True


def check_value(array: Array, name: str) -> str:
    """Return the SHA-256 of values: their bytes, every NaN made the canonical one of its dtype."""
    unsigned, _, _, nan = _FORMATS[name]
    bits = np.ascontiguousarray(array).view(unsigned).copy()
    bits[np.isnan(array)] = nan
    return hashlib.sha256(bits).hexdigest()


def _words(bits: Sequence[str]) -> NDArray[np.float32]:
    return np.array([int(b, 16) for b in bits], np.uint32).view(np.float32)


def _hex(value: Any) -> str:
    return f"{int(np.float32(value).view(np.uint32)):08x}"


def _flat(result: Any, dtype: Any) -> Array:
    """Join a list of arrays, or the array that stands in its place, to one flat array."""
    parts = [np.ravel(x) for x in result] if isinstance(result, list) else [np.ravel(result)]
    return np.concatenate([*parts, np.empty(0, dtype)])


class _Check:
    """One case under the instruction set in use; `failures` tells what differs."""

    def __init__(self, case: Case) -> None:
        import terngrad_kernels as tk

        self.case = case
        self.failures: list[str] = []
        dtype = case["dtype"]
        self.dtype = _dtype(dtype)
        whole = [pattern(kind, n, case["input"] + k, dtype) for k, (kind, n) in enumerate(case["layers"])]
        block, shards, index = case.get("block"), case.get("shards", 1), case.get("index")
        packing = case.get("packing", "two_bit")
        packing = packing if isinstance(packing, str) else tuple(packing)
        # One layer goes in as an array, several as a list; shards only exist in a flat layout.
        self.form = "flat" if shards > 1 or index is not None else "array" if len(whole) == 1 else "list"
        layout = tk.Layout([x.shape for x in whole], dtype, packing, block, shards, self.form)
        self.layout = layout if index is None else layout.shard(index)
        self.runs = [whole[p.layer][p.first : p.first + p.size] for p in self.layout.pieces]
        self.layers = whole if index is None else self.runs
        self.arguments: dict[str, Any] = {}
        if self.form == "flat":
            self.x: Any = _flat(self.layers, self.dtype)
            self.arguments["layout"] = self.layout
        else:
            self.x = whole[0] if self.form == "array" else whole
            self.arguments |= {"packing": packing, "block": block}
        self.passed = None
        if "scales" in case:
            self.passed = tk.Scales(*(_words([pair[k] for pair in case["scales"]]) for k in range(2)))

    def expect(self, what: str, got: Any, want: Any) -> None:
        if got != want:
            self.failures.append(f"{self.case['id']}: {what}: {got!s:.120}, expected {want!s:.120}")

    def encode(self, seed: int | None = None) -> tk.Packed:
        import terngrad_kernels as tk

        case = self.case
        scales = self.passed
        if case.get("center"):
            where = {key: self.arguments[key] for key in ("block", "layout") if key in self.arguments}
            scales = tk.scales(self.x, clip=case["clip"], center=True, **where)
        return tk.encode(
            self.x,
            clip=case["clip"],
            seed=case["seed"] if seed is None else seed,
            offset=case["offset"],
            layer=case["layer"],
            scales=scales,
            **self.arguments,
        )

    def run(self) -> None:
        import terngrad_kernels as tk

        case = self.case
        packed = self.encode()
        data = np.asarray(packed.data)
        self.expect("Layout.nbytes", self.layout.nbytes, case["nbytes"])
        self.expect("layout of the result", packed.layout, self.layout)
        self.expect("nbytes", data.nbytes, case["nbytes"])
        if "data" in case:
            self.expect("data", data.tobytes().hex(), b64decode(case["data"]).hex())
        self.expect("sha256 of data", hashlib.sha256(data.tobytes()).hexdigest(), case["sha256"])
        tk.validate(packed)
        decoded = _flat(tk.decode(packed), self.dtype)
        self.expect("dtype of decode", decoded.dtype.name, case["dtype"])
        self.expect("sha256 of decode", hashlib.sha256(decoded.tobytes()).hexdigest(), case["decode"])
        self._scales()
        self._elements()
        if "clipped" in case:
            self._unpacked(data)
        if "accumulate" in case:
            self._accumulate(packed)
        if "sum" in case:
            self._sum()
        if "counts" in case:
            self._counts()

    def _scales(self) -> None:
        """Compare the layers' own scales and limits, in the form of the input and as a flat buffer."""
        import terngrad_kernels as tk

        case = self.case
        own = [list(g["own"]) for g in case["groups"]]
        measured = {"clip": case["clip"], "center": case.get("center", False)}
        flat = tk.scales(_flat(self.layers, self.dtype), layout=self.layout, **measured)
        self.expect("scales", [[_hex(s), _hex(m)] for s, m in zip(*flat, strict=True)], own)
        if self.form != "flat" and "float32" not in self.layout.packing:
            same = tk.scales(self.x, block=self.layout.block, **measured)
            self.expect("scales of layers", [[_hex(s), _hex(m)] for s, m in zip(*same, strict=True)], own)

    def _elements(self) -> None:
        """Compare what messages hardly show: statistics, inv, B, and x, T, u of chosen elements."""
        from . import _core

        case = self.case
        for group, want in enumerate(case["groups"]):
            members = [k for k, p in enumerate(self.layout.pieces) if p.group == group]
            piece = self.layout.pieces[members[0]]
            if piece.packing == "float32":
                continue
            x = _flat([self.runs[k] for k in members], self.dtype)
            if "Q" in want:
                top, Q, S = _core.statistics(x, case.get("center", False))
                self.expect("top", f"{top:08x}", want["top"])
                self.expect("Q", Q.hex(), want["Q"])
                if "S" in want:
                    self.expect("S", S.hex(), want["S"])
            scale, limit = _words(want.get("pair", want["own"]))
            if "inv" in want:
                inv, B = _core.inverse(float(scale), float(limit))
                self.expect("inv and B", [_hex(inv), _hex(B)], [want["inv"], want["B"]])
            for e, bits, T, u, _ in want["at"]:
                value = _words([bits])
                if not np.isnan(value[0]):
                    with np.errstate(over="ignore"):
                        self.expect(f"x[{e}]", _hex(np.float32(x[e])), bits)
                if "inv" in want:
                    got = _core.thresholds(value, float(scale), float(limit))
                    self.expect(f"T[{e}]", int(got[0]), T)
                word = case["layer"] + piece.layer
                drawn = _core.uniforms(1, case["seed"] % 2**64, case["offset"] % 2**64, word, piece.first + e)
                self.expect(f"u[{e}]", int(drawn[0]), u)

    def _unpacked(self, data: Array) -> None:
        """Clip, ternarize, pack and unpack a bucket whose layers are all ternary."""
        import terngrad_kernels as tk

        case = self.case
        clipped = tk.clip(self.x, clip=case["clip"], center=case.get("center", False), scales=self.passed)
        hashed = hashlib.sha256(_flat(clipped, self.dtype).tobytes()).hexdigest()
        self.expect("sha256 of clip", hashed, case["clipped"])
        scales = self.passed
        if case.get("center"):
            scales = tk.scales(self.x, clip=case["clip"], center=True)
        options = {key: case[key] for key in ("clip", "seed", "offset", "layer")}
        trits, scale = tk.ternarize(self.x, scales=scales, **options)
        arrays: list[Array] = trits if isinstance(trits, list) else [trits]
        for t, s, piece, want in zip(arrays, scale, self.layout.pieces, case["groups"], strict=True):
            self.expect("scale of ternarize", _hex(s), want.get("pair", want["own"])[0])
            self.expect("trits", [int(t[at[0]]) for at in want["at"]], [at[4] for at in want["at"]])
            payload = data[piece.payload_at : piece.payload_at + piece.nbytes]
            packed = np.asarray(tk.pack(t, packing=piece.packing))
            self.expect("pack", packed.tobytes().hex(), payload.tobytes().hex())
            unpacked = np.asarray(tk.unpack(payload, shape=t.shape, packing=piece.packing))
            self.expect("unpack", bool((unpacked == t).all()), True)

    def _accumulate(self, packed: tk.Packed) -> None:
        import terngrad_kernels as tk

        kind, weight, dtype, want = self.case["accumulate"]
        seed = self.case["input"] + 100
        start = [pattern(kind, x.size, seed + k, dtype) for k, x in enumerate(self.layers)]
        out: Any = start
        if self.form != "list":
            out = start[0] if self.form == "array" else _flat(start, _dtype(dtype))
        tk.decode(packed, out=out, weight=weight, accumulate=True)
        self.expect("sha256 of accumulate", check_value(_flat(out, _dtype(dtype)), dtype), want)

    def _sum(self) -> None:
        import terngrad_kernels as tk

        seeds, weights, dtype, want = self.case["sum"]
        messages = [self.encode(seed) for seed in seeds]
        total = tk.decode_sum(messages, weights=weights, dtype=dtype)
        self.expect("sha256 of decode_sum", check_value(_flat(total, _dtype(dtype)), dtype), want)

    def _messages(self, turns: bool) -> list[tk.Packed]:
        """Return messages of the seeds from the case's own on, of its clips and, with `turns`, packings in turn."""
        import terngrad_kernels as tk

        case = self.case
        workers, clips = case["counts"][:2]
        whole = self.layout
        names = [whole.packing] * len(whole.shapes) if isinstance(whole.packing, str) else whole.packing
        other = replace(whole, packing=tuple(OTHER.get(name, name) for name in names))
        options = {key: case[key] for key in ("offset", "layer")} | {"scales": self.passed}
        return [
            tk.encode(
                self.x,
                clip=clips[k % len(clips)] if clips else case["clip"],
                seed=(case["seed"] + k) % 2**64,
                layout=other if turns and k % 2 else whole,
                **options,
            )
            for k in range(workers)
        ]

    def _counts(self) -> None:
        """Sum messages at once and one after the other, and repack them and their sum."""
        import terngrad_kernels as tk

        workers, _, packing, nbytes, digest, decoded = self.case["counts"]
        messages = self._messages(True)
        head = tk.sum_trits(messages[: (workers + 1) // 2])
        for total in (tk.sum_trits(messages), tk.sum_trits([head, *messages[(workers + 1) // 2 :]])):
            data = np.asarray(total.data)
            names = {name for name in (p.packing for p in total.layout.pieces) if name != "float32"}
            self.expect("packing of counts", names <= {packing}, True)
            self.expect("workers", total.workers, workers)
            self.expect("nbytes of counts", data.nbytes, nbytes)
            self.expect("sha256 of counts", hashlib.sha256(data.tobytes()).hexdigest(), digest)
            tk.validate(total)
            values = _flat(tk.decode(total), self.dtype)
            self.expect("sha256 of decoded counts", hashlib.sha256(values.tobytes()).hexdigest(), decoded)
        if "repack" in self.case:
            self._repack(self._messages(False), total)

    def _repack(self, messages: list[tk.Packed], total: tk.Counts) -> None:
        import terngrad_kernels as tk

        case = self.case
        weights, clip, pairs, packing, *digests = case["repack"]
        options = {key: case[key] for key in ("seed", "offset", "layer")} | {"clip": clip}
        if pairs is not None:
            options["scales"] = tk.Scales(*(_words([pair[k] for pair in pairs]) for k in range(2)))
        if packing is not None:
            options["packing"] = packing if isinstance(packing, str) else tuple(packing)
        parts: list[tuple[str, Any]] = [("messages", messages), ("counts", [total])]
        for (what, given), digest in zip(parts, digests, strict=True):
            in_turn = weights and [weights[k % len(weights)] for k in range(len(given))]
            again = tk.repack(given, weights=in_turn, **options)
            tk.validate(again)
            data = np.asarray(again.data)
            self.expect(f"sha256 of repacked {what}", hashlib.sha256(data.tobytes()).hexdigest(), digest)


def check_case(case: Case) -> list[str]:
    """Compare a case with what the instruction set in use gives; return what differs."""
    check = _Check(case)
    check.run()
    return check.failures


def check_philox(vectors: Sequence[str]) -> list[str]:
    """Compare Philox4x32-10 with its known answers; return what differs."""
    from . import _core

    failures = []
    for line in vectors:
        given, answer = line.split(" -> ")
        words = [int(word, 16) for word in given.split()]
        got = " ".join(f"{word:08x}" for word in _core.philox(*words))
        if got != answer:
            failures.append(f"philox {given}: {got}, expected {answer}")
    return failures


def run(isas: Sequence[str] | None = None, report: Callable[[str], object] = print) -> int:
    """
    Check every golden vector on every instruction set.

    Parameters
    ----------
    isas : sequence of str, optional
        Instruction sets by name; all that can run here by default.
    report : callable
        Takes the lines of the report, one by one.

    Returns
    -------
    int
        Number of failed comparisons.
    """
    from . import _core

    golden = load()
    cases = [case for case in golden["cases"] if runnable(case)]
    in_use = _core.isa()
    total = 0
    report(f"{'isa':<8} {'vectors':>8} {'failures':>9} {'seconds':>8}")
    for isa in _core.isas() if isas is None else isas:
        begin = time.perf_counter()
        _core.set_isa(isa)
        try:
            failures = check_philox(golden["philox"])
            for case in cases:
                failures += check_case(case)
        finally:
            _core.set_isa(in_use)
        vectors = len(golden["philox"]) + len(cases)
        report(f"{isa:<8} {vectors:>8} {len(failures):>9} {time.perf_counter() - begin:>8.2f}")
        for line in failures[:10]:
            report(f"  {line}")
        total += len(failures)
    skipped = len(golden["cases"]) - len(cases)
    if skipped:
        report(f"{skipped} bfloat16 vectors not run: ml_dtypes is not installed")
    return total
