"""Make ``golden/vectors.json`` from the NumPy statement of the contract alone.

``python tests/make_golden.py`` writes the file, ``--check`` only compares. One line a case, so that a
changed rule shows as the lines it changes. What a case holds is told at `describe`;
``terngrad_kernels.selftest`` reads it.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import zlib
from base64 import b64encode
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import reference as ref

PACKAGE = Path(__file__).parents[1] / "python" / "terngrad_kernels"
LONGEST_MESSAGE = 512
DTYPES = ("float32", "float16", "bfloat16", "float64")

Case = dict[str, Any]
Layers = Sequence[tuple[str, int]]


def _selftest() -> Any:
    """Load the module of the input patterns by its file: vectors can be made where nothing is compiled."""
    spec = importlib.util.spec_from_file_location("golden_patterns", PACKAGE / "selftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


selftest = _selftest()

# ---------------------------------------------------------------------------------------------------- cases


def _case(name: str, layers: Layers, dtype: str = "float32", **settings: Any) -> Case:
    """Return the parameters of a case; its draws go by its name, so that cases can be added anywhere."""
    number = zlib.crc32(name.encode())
    case: Case = {
        "id": name,
        "layers": [list(layer) for layer in layers],
        "dtype": dtype,
        "input": number % 10**6,
    }
    drawn = {"clip": 2.5, "seed": number, "offset": number % 1009, "layer": number % 53}
    return case | drawn | settings


def _sizes() -> Iterator[Case]:
    """Every edge of a word, block, row, tile, unit and stripe."""
    sizes = [0, 1, 2, 3, 4, 5, 6, 16, 127, 128, 129, 511, 512, 513, 639, 640, 641]
    sizes += [2559, 2560, 2561, 8191, 8192, 8193, 16384, 100003]
    kinds = ("uniform", "normal", "spike")
    for k, n in enumerate(sizes):
        for p, packing in enumerate(("two_bit", "base3")):
            dtype = DTYPES[(k + p) % 4]
            yield _case(f"size/{packing}/{n}", [(kinds[(k + p) % 3], n)], dtype, packing=packing)
    for k, n in enumerate([0, 1, 3, 4, 5, 127, 1000]):
        yield _case(f"size/float32/{n}", [("heavy", n)], DTYPES[k % 4], packing="float32")


def _large() -> Iterator[Case]:
    """Make layers of a million, and such where stripes wrap round the 256 bins."""
    wrap = 256 * 8192
    sizes = {"float32": [10**6, wrap - 1, wrap, wrap + 1], "float16": [10**6, wrap + 8191]}
    sizes |= {"bfloat16": [10**6, wrap + 8193], "float64": [10**6]}
    for dtype, numbers in sizes.items():
        for k, n in enumerate(numbers):
            packing = ("two_bit", "base3")[k % 2]
            yield _case(f"large/{packing}/{dtype}/{n}", [("normal", n)], dtype, packing=packing)
    # With this input 128 bins, or a running sum, give another Q.
    yield _case("large/bins", [("bins", wrap + 8192)], input=259355)
    yield _case("large/stripes", [("stripes", 163841)], packing="base3")
    yield _case("large/stripes/center", [("stripes", 163841)], "float64", center=True)
    yield _case("large/center", [("mean", wrap + 70000)], center=True)
    yield _case("large/block", [("normal", 700001)], block=25600, packing="base3")


def _kinds() -> Iterator[Case]:
    """Every kind of layer in every dtype that has it, with the default clip; and carried as it is."""
    missing = {("tiny", "float16"), ("border", "float16"), ("huge", "float16")}
    missing |= {("overflow", d) for d in ("float16", "bfloat16", "float32")}
    for kind in selftest.KINDS:
        if kind.startswith("fma") or kind in ("stripes", "bins"):
            continue
        for k, dtype in enumerate(DTYPES):
            if (kind, dtype) not in missing:
                packing = ("two_bit", "base3")[k % 2]
                yield _case(f"kind/{kind}/{dtype}", [(kind, 700 + 40 * k)], dtype, packing=packing)
    for kind in ("nans", "nan", "inf", "zero", "subnormal", "huge"):
        for dtype in DTYPES:
            if (kind, dtype) not in missing:
                yield _case(f"carried/{kind}/{dtype}", [(kind, 33)], dtype, packing="float32")
    # A layer, a weight and a start whose fma a double rounding gets wrong (see the patterns).
    exact = ["fma_start", 1 + 2.0**-23, "float32"]
    yield _case("carried/fma", [("fma_value", 33)], packing="float32", accumulate=exact)


def _clips() -> Iterator[Case]:
    for clip in (None, 1e-45, 1e-20, 1e-3, 0.5, 1.0, 2.0, 100.0, 1e38, 1e300):
        yield _case(f"clip/normal/{clip}", [("normal", 3000)], clip=clip)
    for kind, dtype in (
        ("spike", "float16"),
        ("heavy", "float64"),
        ("ternary", "bfloat16"),
        ("mean", "float32"),
    ):
        yield _case(f"clip/{kind}/None", [(kind, 1500)], dtype, clip=None)
        yield _case(f"clip/{kind}/1.5", [(kind, 1500)], dtype, clip=1.5)
    yield _case("clip/border/0.25", [("border", 1000)], clip=0.25)


def _centers() -> Iterator[Case]:
    kinds = ("mean", "constant", "normal", "nan", "inf", "huge", "zero", "tiny", "spike")
    for k, kind in enumerate(kinds):
        dtype = DTYPES[0 if kind in ("huge", "tiny") else k % 4]
        yield _case(f"center/{kind}/{dtype}", [(kind, 900 + 9000 * (k % 2))], dtype, center=True)
    yield _case("center/one", [("normal", 1)], center=True)
    yield _case("center/none", [("normal", 0)], center=True)
    yield _case("center/bucket", [("mean", 700), ("zero", 0), ("normal", 130)], "bfloat16", center=True, clip=1.0)
    yield _case("center/block", [("mean", 6000), ("normal", 10)], center=True, block=2560)
    mixed = ("two_bit", "float32", "base3")
    layers = [("mean", 6000), ("nan", 300), ("mean", 9000)]
    yield _case("center/shards", layers, center=True, packing=mixed, shards=3)
    yield _case("center/shard", layers, center=True, packing=mixed, shards=3, index=2)


def _shared() -> Iterator[Case]:
    """Pass scales and limits, here as floats."""
    inf, nan, least, most = np.inf, np.nan, 2.0**-60, float(np.finfo(np.float32).max)
    below = float(np.nextafter(np.float32(least), np.float32(0)))
    pairs = [
        ("own-like", 1.0, 0.75), ("bigger", 4.0, inf), ("bigger-clipped", 3.7, 0.9),
        ("limit-far-below", 7.0, 1e-6), ("limit-tiny", 1.0, 1e-44), ("limit-equal", 0.3, 0.3),
        ("limit-above", 0.3, 0.31), ("smaller", 0.01, inf), ("smaller-clipped", 0.01, 0.001),
        ("largest", most, most), ("largest-open", most, inf), ("least", least, inf),
        ("least-clipped", least, 1e-30), ("below-least", below, 1.0), ("subnormal", 1e-45, inf),
        ("zero", 0.0, 1.0), ("minus-zero", -0.0, inf), ("negative", -1.0, 1.0),
        ("negative-tiny", -1e-30, 1.0), ("nan", nan, 1.0), ("infinite", inf, inf),
        ("infinite-clipped", inf, 1.0),
        ("minus-infinite", -inf, 1.0),
        ("limit-nan", 1.0, nan), ("limit-zero", 1.0, 0.0), ("limit-minus-zero", 1.0, -0.0),
        ("limit-negative", 1.0, -1.0), ("limit-minus-infinite", 1.0, -inf), ("both-bad", nan, nan),
        ("zeros", 0.0, 0.0),
    ]  # fmt: skip
    for k, (name, scale, limit) in enumerate(pairs):
        dtype = DTYPES[k % 4]
        packing = ("two_bit", "base3")[k % 2]
        yield _case(f"shared/{name}", [("normal", 400)], dtype, packing=packing, scales=[(scale, limit)])
    for kind in ("nan", "nans", "inf", "zero", "heavy", "huge"):
        for k, dtype in enumerate(("float32",) if kind == "huge" else DTYPES):
            pair = ((2.0, inf), (2.0, 0.5), (0.7, inf), (1.9, 0.1))[k]
            yield _case(f"shared/{kind}-input/{dtype}", [(kind, 260)], dtype, scales=[pair])
    layers = [("normal", 5000), ("uniform", 0), ("spike", 77), ("heavy", 2000)]
    given = [(3.0, 0.5), (2.0, inf), (nan, 1.0), (0.5, 0.25)]
    mixed = ("two_bit", "base3", "float32", "base3")
    yield _case("shared/bucket", layers, packing=mixed, scales=given)
    by_block = [*[(3.0, 0.5 + k) for k in range(2)], *given[1:]]
    yield _case("shared/block", layers, packing=mixed, scales=by_block, block=2560)
    yield _case("shared/shards", layers, packing=mixed, scales=given, shards=3)


def _buckets() -> Iterator[Case]:
    kinds = (
        "normal",
        "uniform",
        "zero",
        "spike",
        "mean",
        "ternary",
        "nan",
        "heavy",
        "constant",
        "inf",
        "tiny",
        "border",
    )
    sizes = (300, 0, 17, 2560, 1, 0, 513, 5000, 64, 3, 129, 0)
    packings = ("two_bit", "base3", "float32", "two_bit", "base3")
    yield _case("bucket/0", [])
    for count in range(1, 13):
        layers = [(kinds[(k + count) % 12], sizes[(k * 5 + count) % 12]) for k in range(count)]
        dtype = DTYPES[count % 4]
        if dtype == "float16":
            layers = [("large" if kind in ("tiny", "border") else kind, n) for kind, n in layers]
        mixed = [packings[(k + count) % 5] for k in range(count)]
        yield _case(f"bucket/{count}", layers, dtype, packing=mixed)
        if count in (2, 3, 5, 12):
            yield _case(f"bucket/{count}/two_bit", layers, dtype)
            yield _case(f"bucket/{count}/base3", layers, dtype, packing="base3", clip=None)
    yield _case("bucket/empties", [("zero", 0)] * 5)
    yield _case("bucket/scale-fields-past-16-bytes", [("normal", 1)] * 7, packing="base3")


_LAYERS = [
    ("normal", 6000),
    ("mean", 0),
    ("uniform", 20),
    ("spike", 12801),
    ("normal", 2560),
    ("normal", 7000),
]
_MIXED = ("two_bit", "base3", "float32", "base3", "float32", "two_bit")


def _blocks() -> Iterator[Case]:
    for block in (2560, 5120, 12800, 128000):
        yield _case(f"block/{block}", _LAYERS, block=block, packing=_MIXED)
    for k, n in enumerate([0, 1, 2559, 2560, 2561, 5120, 12801]):
        yield _case(f"block/size/{n}", [("normal", n)], DTYPES[k % 4], block=2560)
    yield _case("block/poisoned-part", [("nan", 9000)], block=2560)


def _shards() -> Iterator[Case]:
    for shards in (2, 3, 4, 7, 50):
        yield _case(f"shards/{shards}/two_bit", _LAYERS, shards=shards)
        yield _case(f"shards/{shards}/mixed", _LAYERS, DTYPES[shards % 4], shards=shards, packing=_MIXED)
        yield _case(f"shards/{shards}/block", _LAYERS, shards=shards, packing=_MIXED, block=5120)
    yield _case("shards/2/one-layer", [("normal", 5121)], "float16", shards=2, packing="base3")
    yield _case("shards/3/nothing", [], shards=3)
    yield _case("shards/3/empties", [("zero", 0)] * 4, shards=3)
    yield _case("shards/2/empty-last", [("normal", 100), ("zero", 0)], shards=2)
    yield _case("shards/4/poisoned", [("nan", 20000), ("normal", 5)], shards=4)


def _shard_layouts() -> Iterator[Case]:
    for shards, indices in ((1, (0,)), (2, (0, 1)), (3, (0, 2)), (7, (0, 3, 6)), (50, (1, 49))):
        for index in indices:
            name = f"shard/{index}-of-{shards}/mixed"
            yield _case(name, _LAYERS, packing=_MIXED, shards=shards, index=index)
    yield _case("shard/1-of-3/block", _LAYERS, packing=_MIXED, block=2560, shards=3, index=1)
    yield _case("shard/1-of-4/two_bit", _LAYERS, "bfloat16", shards=4, index=1)
    given = [(2.0, np.inf), (np.nan, 1.0)]
    yield _case(
        "shard/1-of-2/shared",
        [("normal", 9000), ("spike", 12000), ("normal", 300)],
        shards=2,
        index=1,
        scales=given,
    )


def _draws() -> Iterator[Case]:
    """Seeds, steps and layer words at their ends: the input stays, the bits change."""
    ends = {"0": 0, "1": 1, "-1": -1, "least": -(2**63), "most": 2**64 - 1, "middle": 2**63, "word": 2**32}
    for name, value in ends.items():
        yield _case(f"draw/seed/{name}", [("normal", 600)], seed=value, offset=0, layer=0)
        yield _case(f"draw/offset/{name}", [("normal", 600)], seed=0, offset=value, layer=0)
    for layer in (1, 255, 65536, 2**31 - 3):
        yield _case(f"draw/layer/{layer}", [("normal", 300)] * 3, seed=0, offset=0, layer=layer)
    yield _case("draw/all", [("normal", 300)], seed=-(2**63) + 5, offset=2**64 - 9, layer=2**31 - 1)


#: Both sides of the tiles of all packings, of a unit, and of a word, a row and a register.
_EDGES = (0, 1, 2, 3, 5, 15, 16, 17, 127, 128, 129, 255, 256, 257, 383, 511, 512, 513, 640, 641, 2559, 2560, 2561)


def _sums() -> Iterator[Case]:
    """Sums of trits and second hops. `counts` = [workers, clips]: see `_messages`; for `repack` see `_repack`."""
    inf = np.inf
    bucket = [("normal", 300), ("uniform", 0), ("heavy", 33), ("spike", 257)]
    mixed = ("two_bit", "base3", "float32", "base3")
    hops = (
        [None, None, None, None],
        [[1.0, -0.5, 0.25, 1 / 3], 2.5, None, "base3"],
        [None, 1.0, [(9.0, 0.75), (1.0, inf), (np.nan, 1.0), (0.5, 0.25)], "two_bit"],
    )
    for k, workers in enumerate((1, 2, 7, 8, 127, 128, 300)):
        dtype = DTYPES[k % 4]
        layers = [(kind if dtype != "float16" else "normal", n) for kind, n in bucket]
        yield _case(f"sum/workers/{workers}", layers, dtype, packing=mixed, counts=[workers, None])
    for k, workers in enumerate((3, 20, 130)):
        packing = ("two_bit", "base3")[k % 2]
        edges = [("normal", n) for n in _EDGES]
        yield _case(f"sum/sizes/{workers}", edges, packing=packing, counts=[workers, None], repack=hops[k % 2])
    special = [("zero", 50), ("nan", 60), ("normal", 70), ("zero", 0), ("inf", 513)]
    for packing in ("two_bit", "base3"):
        yield _case(f"sum/special/{packing}", special, packing=packing, counts=[5, None], repack=hops[1])
    given = [(1.0, 1.0), (1.0, 1.0), (0.0, 1.0), (1.0, 1.0), (2.0, inf)]
    yield _case("sum/special/passed", special, counts=[4, None], repack=[None, None, given, "base3"])
    # Layers of one magnitude have the same scale under both clips, those of a spike have not.
    unequal = [("spike", 700), ("ternary", 700), ("constant", 5), ("spike", 9000)]
    yield _case("sum/unequal", unequal, counts=[9, [2.5, 100.0]], repack=hops[0])
    yield _case("sum/unequal/block", unequal, counts=[3, [2.5, 100.0]], block=2560, repack=hops[1])
    yield _case("sum/none", [], counts=[3, None], repack=hops[0])
    yield _case("sum/empties", [("zero", 0)] * 4, counts=[200, None], repack=hops[1])
    yield _case("sum/float32", [("normal", 100), ("heavy", 3)], packing="float32", counts=[9, None], repack=hops[1])
    layers = [("normal", 9000), ("spike", 20), ("heavy", 40), ("normal", 5121)]
    for block in (None, 2560, 5120):
        name = f"sum/block/{block or 'none'}"
        yield _case(name, layers, packing=mixed, block=block, counts=[10, None], repack=hops[1])
    for shards in (2, 3, 50):
        cut = {"packing": mixed, "shards": shards, "counts": [9, None]}
        yield _case(f"sum/shards/{shards}", layers, **cut, repack=hops[1])
        yield _case(f"sum/shards/{shards}/passed", layers, "bfloat16", **cut, repack=hops[2])
        yield _case(f"sum/shards/{shards}/block", layers, "float64", **cut, block=5120, repack=hops[0])
    for index in (0, 1, 2):
        cut = {"packing": mixed, "shards": 3, "index": index, "counts": [7, None]}
        yield _case(f"sum/shard/{index}-of-3", layers, **cut, repack=[None, 2.0, None, ("two_bit", "base3")[index % 2]])
        yield _case(f"sum/shard/{index}-of-3/block", layers, **cut, block=2560, repack=hops[0])
    choice = ("base3", "two_bit", "float32", "two_bit")
    yield _case("sum/packings", layers, packing=mixed, counts=[3, None], repack=[None, None, None, choice])
    for name, draw in (("most", {"seed": 2**64 - 9, "offset": 2**64 - 1, "layer": 2**31 - 2}), ("zero", {"seed": 0})):
        two = [("normal", 2000)] * 2
        yield _case(f"sum/draw/{name}", two, counts=[2, None], repack=hops[0], **draw)
    # Several threads share these.
    yield _case("sum/large", [("normal", 200003), ("uniform", 65000)], counts=[3, None], repack=hops[1])
    yield _case("sum/large/base3", [("normal", 270001)], packing="base3", counts=[9, None], repack=hops[0])


def specifications() -> list[Case]:
    """Return the parameters of every case, without what they lead to."""
    parts = (
        _sizes,
        _large,
        _kinds,
        _clips,
        _centers,
        _shared,
        _buckets,
        _blocks,
        _shards,
        _shard_layouts,
        _draws,
        _sums,
    )
    cases = [case for part in parts for case in part()]
    assert len({case["id"] for case in cases}) == len(cases)
    return cases


# -------------------------------------------------------------------------------------------------- results


def _hex(value: Any) -> str:
    return f"{int(np.float32(value).view(np.uint32)):08x}"


def _sha256(arrays: Sequence[ref.Array]) -> str:
    return hashlib.sha256(b"".join(x.tobytes() for x in arrays)).hexdigest()


class _Bucket:
    """The bucket of a case as the reference sees it."""

    def __init__(self, case: Case) -> None:
        self.case = case
        layers = [
            selftest.pattern(kind, n, case["input"] + k, case["dtype"]) for k, (kind, n) in enumerate(case["layers"])
        ]
        self.sizes = [x.size for x in layers]
        self.packing = case.get("packing", "two_bit")
        self.layout = {key: case[key] for key in ("block", "shards", "index") if key in case}
        self.plan, self.groups, self.nbytes = ref.pieces(self.sizes, self.packing, **self.layout)
        self.runs = ref.cut(layers, self.packing, **self.layout)
        # The layers that encode sees: for a shard its pieces.
        self.layers = self.runs if "index" in case else layers
        self.names = [p.packing for p in self.plan] if "index" in case else self.packing
        self.block = None if "index" in case else case.get("block")

    def encode(self, seed: int, **changed: Any) -> ref.Bytes:
        case = self.case
        drawn = {key: case[key] for key in ("clip", "offset", "layer")} | {"packing": self.packing} | changed
        center = case.get("center", False)
        return ref.encode(
            self.layers, sizes=self.sizes, seed=seed, scales=self.passed(), center_scales=center,
            **drawn, **self.layout,
        )  # fmt: skip

    def own(self) -> tuple[ref.Float32s, ref.Float32s]:
        center = self.case.get("center", False)
        return ref.scales(self.layers, clip=self.case["clip"], center=center, block=self.block, packing=self.names)

    def passed(self) -> tuple[list[float], list[float]] | None:
        if "scales" not in self.case:
            return None
        return [pair[0] for pair in self.case["scales"]], [pair[1] for pair in self.case["scales"]]


def _chosen(n: int, closest: int, most: int) -> list[int]:
    """First, last, middle elements, the one whose u and T are closest, and some right behind an edge."""
    candidates = [0, n - 1, closest, n // 2, 128, 513, 2560, 8192]
    return list(dict.fromkeys(e for e in candidates if 0 <= e < n))[:most]


def _group(bucket: _Bucket, group: int, own: ref.Pair, most: int) -> dict[str, Any]:
    """One scale group: see `describe`."""
    case = bucket.case
    members = [k for k, p in enumerate(bucket.plan) if p.group == group]
    piece = bucket.plan[members[0]]
    found: dict[str, Any] = {"own": [_hex(v) for v in own]}
    if piece.packing == "float32":
        return found
    x32 = ref.widen(np.concatenate([bucket.runs[k] for k in members]), case["dtype"], signed_nan=True)
    center = case.get("center", False)
    top, Q, S = ref.statistics(x32, center=center)
    found["top"] = f"{top:08x}"
    if top < 0x7F800000:
        found["Q"] = Q.hex()
        if center:
            found["S"] = S.hex()
    pair = own
    if "scales" in case:
        pair = ref.passed_scale_and_limit(*case["scales"][group])
        found["pair"] = [_hex(v) for v in pair]
    if pair[0] != 0 and np.isfinite(pair[0]):
        inv, B = ref.inv_and_bound(*pair)
        found |= {"inv": _hex(inv), "B": _hex(B)}
    T = ref.thresholds(x32, *pair)
    u = ref.uniforms(
        x32.size,
        seed=case["seed"],
        offset=case["offset"],
        layer=case["layer"] + piece.layer,
        first=piece.first,
    )
    t = ref.trits(x32, *pair, u)
    closest = int(np.abs(u.astype(np.int64) - T).argmin()) if u.size else 0
    chosen = _chosen(x32.size, closest, most)
    found["at"] = [[e, _hex(x32[e]), int(T[e]), int(u[e]), int(t[e])] for e in chosen]
    return found


def _accumulate(bucket: _Bucket, data: ref.Bytes, kind: str, weight: float, dtype: str) -> list[Any]:
    number = bucket.case["input"] + 100
    start = [selftest.pattern(kind, x.size, number + k, dtype) for k, x in enumerate(bucket.layers)]
    total = ref.decode(data, bucket.sizes, bucket.packing, **bucket.layout, weight=weight, out=start)
    return [kind, weight, dtype, _values(total, dtype)]


def _sum(bucket: _Bucket, seeds: list[int], weights: list[float] | None, dtype: str) -> list[Any]:
    messages = [bucket.encode(seed) for seed in seeds]
    total = ref.decode_sum(messages, bucket.sizes, bucket.packing, **bucket.layout, weights=weights, dtype=dtype)
    return [seeds, weights, dtype, _values(total, dtype)]


def _messages(bucket: _Bucket, workers: int, clips: list[float] | None, turns: bool) -> list[ref.Message]:
    """Messages of the seeds from the case's own on, of `clips` in turn; with `turns` every second one exchanges
    two_bit and base3."""
    case = bucket.case
    names = [bucket.packing] * len(bucket.sizes) if isinstance(bucket.packing, str) else list(bucket.packing)
    others = [selftest.OTHER.get(name, name) for name in names]
    messages = []
    for k in range(workers):
        packing = others if turns and k % 2 else names
        clip = case["clip"] if clips is None else clips[k % len(clips)]
        data = bucket.encode((case["seed"] + k) % 2**64, clip=clip, packing=packing)
        messages.append(ref.Message(data, packing))
    return messages


def _counts(bucket: _Bucket, workers: int, clips: list[float] | None) -> tuple[ref.Message, list[Any]]:
    case = bucket.case
    total = ref.sum_trits(_messages(bucket, workers, clips, True), bucket.sizes, **bucket.layout)
    assert total.workers == workers
    assert ref.validate(total.data, bucket.sizes, total.packing, **bucket.layout, workers=workers)
    decoded = ref.decode(total.data, bucket.sizes, total.packing, dtype=case["dtype"], **bucket.layout)
    name = ref.counts_packing(workers)
    return total, [workers, clips, name, total.data.size, _sha256([total.data]), _sha256(decoded)]


def _repack(bucket: _Bucket, total: ref.Message, given: Sequence[Any]) -> list[Any]:
    """`given` = [weights, clip, scales, packing]: weights in turn, and scales (those of one group in turn)."""
    case = bucket.case
    weights, clip, pairs, to = given
    workers, clips = case["counts"]
    messages = [m.data for m in _messages(bucket, workers, clips, False)]
    scales = None
    if pairs is not None:
        pairs = [pairs[k % len(pairs)] for k in range(bucket.groups)]
        scales = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    drawn = {"seed": case["seed"], "offset": case["offset"], "layer": case["layer"]}
    digests = []
    for data, packing in ((messages, bucket.packing), ([total.data], total.packing)):
        again = ref.repack(
            data, bucket.sizes, packing, weights=weights and [weights[k % len(weights)] for k in range(len(data))],
            clip=clip, scales=scales, to=to, **drawn, **bucket.layout,
        )  # fmt: skip
        digests.append(_sha256([again]))
    words = None if pairs is None else [[_hex(value) for value in pair] for pair in pairs]
    return [weights, clip, words, to, *digests]


def _values(arrays: Sequence[ref.Array], dtype: str) -> str:
    joined = np.concatenate([*arrays, np.empty(0, ref.DTYPES[dtype])])
    return str(selftest.check_value(joined, dtype))


def describe(case: Case) -> Case:
    """
    Return a case with all it leads to.

    ``nbytes``, ``sha256`` and for short messages ``data`` (base64) are those of the message; ``decode`` is
    the SHA-256 of what it decodes to in the input dtype; ``clipped`` that of `clip`, where every layer is
    ternary. ``groups``: for each scale group its ``own`` scale and limit, with passed ones the ``pair``
    they stand for, ``top``, ``Q`` (and ``S``; neither for a poisoned group), ``inv`` and ``B`` (where codes
    can be other than 0), and ``at``: [index in the group, x, T, u, t] of chosen elements. float32 values
    are written as their bits, float64 as hex. ``accumulate``: [kind, weight, dtype, SHA-256] of
    weight * message + a pattern of that kind, seeds from ``input`` + 100 on. ``sum``: [seeds, weights, dtype,
    SHA-256] of the `decode_sum` of messages that differ in their seeds. In these two a NaN counts as the
    canonical one. ``counts``: [workers, clips, counts packing, bytes, SHA-256, SHA-256 of what it decodes to]
    of the `sum_trits` of `_messages`; ``repack``: [weights, clip, scales by group, packing, SHA-256 of the
    `repack` of these messages, SHA-256 of that of their counts].
    """
    bucket = _Bucket(case)
    data = bucket.encode(case["seed"])
    assert ref.validate(data, bucket.sizes, bucket.packing, **bucket.layout)
    result = {key: value for key, value in case.items() if key != "scales"}
    if "scales" in case:
        result["scales"] = [[_hex(scale), _hex(limit)] for scale, limit in case["scales"]]
    result |= {"nbytes": data.size, "sha256": _sha256([data])}
    if data.size <= LONGEST_MESSAGE:
        result["data"] = b64encode(data.tobytes()).decode()
    decoded = ref.decode(data, bucket.sizes, bucket.packing, dtype=case["dtype"], **bucket.layout)
    result["decode"] = _sha256(decoded)
    whole_layers = not {"block", "shards", "index"} & case.keys()
    if whole_layers and "float32" not in bucket.packing and case["layers"]:
        clip = ref.clip(bucket.layers, clip=case["clip"], center=case.get("center", False), scales=bucket.passed())
        result["clipped"] = _sha256(clip)
    number = case["input"]
    if "accumulate" in case:
        result["accumulate"] = _accumulate(bucket, data, *case["accumulate"])
    elif number % 3 == 0 and sum(bucket.sizes) < 10**5:
        # What is added to what goes by the case's number; the first seed is that of its own message.
        weight, weights = (1.0, -0.25, 1 / 3, 1e-3)[number // 4 % 4], (None, [0.5, -1.5, 0.1], [1 / 3] * 3)
        result["accumulate"] = _accumulate(bucket, data, "normal", weight, DTYPES[number % 4])
        seeds = [case["seed"], number + 1, number + 2]
        result["sum"] = _sum(bucket, seeds, weights[number // 64 % 3], DTYPES[number // 16 % 4])
    if "counts" in case:
        total, result["counts"] = _counts(bucket, *case["counts"])
        if "repack" in case:
            result["repack"] = _repack(bucket, total, case["repack"])
    most = 1 if "counts" in case else 8 if bucket.groups <= 2 else 3 if bucket.groups <= 20 else 1
    pairs = zip(*bucket.own(), strict=True)
    result["groups"] = [_group(bucket, k, own, most) for k, own in enumerate(pairs)]
    return result


def philox_vectors() -> list[str]:
    """Return known answers: Random123's three, then 64 of counters and keys from a hash."""
    words = selftest.splitmix64(np.arange(64 * 3, dtype=np.uint64)).view(np.uint32)
    inputs = np.concatenate(
        [
            np.array([[0] * 6, [0xFFFFFFFF] * 6], np.uint32),
            np.array([[0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0]], np.uint32),
            words.reshape(64, 6),
        ]
    )
    answers = ref.philox4x32_10(inputs[:, :4], inputs[:, 4:])

    def text(values: ref.Words) -> str:
        return " ".join(f"{int(v):08x}" for v in values)

    return [f"{text(given)} -> {text(answer)}" for given, answer in zip(inputs, answers, strict=True)]


# ----------------------------------------------------------------------------------------------------- file


def line(value: Any) -> str:
    """Return a value as it stands on its line of the file."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def text() -> str:
    """Return the whole file."""
    philox = ",\n".join(line(vector) for vector in philox_vectors())
    cases = ",\n".join(line(describe(case)) for case in specifications())
    return f'{{"contract":1,\n"philox":[\n{philox}\n],\n"cases":[\n{cases}\n]}}\n'


def main() -> int:
    """Write or check the file."""
    parser = argparse.ArgumentParser(description="Make the golden vectors from tests/reference.py.")
    parser.add_argument("--check", action="store_true", help="compare with the file instead of writing it")
    path = PACKAGE / "golden" / "vectors.json"
    made = text()
    if parser.parse_args().check:
        same = path.read_text(encoding="ascii") == made
        print("golden vectors are up to date" if same else "golden vectors differ")
        return 0 if same else 1
    path.write_text(made, encoding="ascii")
    print(f"{len(specifications())} cases, {len(made)} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
