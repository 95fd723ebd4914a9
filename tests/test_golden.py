"""The golden vectors: every one on every instruction set, and that they are what the reference gives."""

from __future__ import annotations

import hashlib
import sys
from typing import Any

import make_golden
import numpy as np
import pytest

from terngrad_kernels import _core, selftest

GOLDEN = selftest.load()
CHUNK = 16
CHUNKS = [GOLDEN["cases"][k : k + CHUNK] for k in range(0, len(GOLDEN["cases"]), CHUNK)]


def _name(chunk: list[dict[str, Any]]) -> str:
    return f"{chunk[0]['id']}...{chunk[-1]['id']}"


@pytest.mark.parametrize("chunk", CHUNKS, ids=map(_name, CHUNKS))
def test_vectors(isa: str, chunk: list[dict[str, Any]]) -> None:
    assert [line for case in chunk if selftest.runnable(case) for line in selftest.check_case(case)] == []


SUMS = [case for case in GOLDEN["cases"] if "counts" in case]


@pytest.mark.usefixtures("isa", "threads")
def test_vectors_of_sums() -> None:
    assert [line for case in SUMS if selftest.runnable(case) for line in selftest.check_case(case)] == []


def test_philox(isa: str) -> None:
    assert selftest.check_philox(GOLDEN["philox"]) == []


def test_run_counts_and_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    good = GOLDEN["cases"][:3]
    wrong = good[2] | {"sha256": "0", "decode": "0"}
    for cases, failures in ((good, 0), ([*good, wrong], 2)):
        golden = {"philox": GOLDEN["philox"], "cases": cases}
        monkeypatch.setattr(selftest, "load", lambda golden=golden: golden)
        lines: list[str] = []
        before = _core.isa()
        assert selftest.run(["scalar"], lines.append) == failures
        assert _core.isa() == before
        assert lines[0].split() == ["isa", "vectors", "failures", "seconds"]
        assert lines[1].split()[:3] == ["scalar", str(67 + len(cases)), str(failures)]
        assert len(lines) == 2 + failures
        assert all(wrong["id"] in line for line in lines[2:])


@pytest.mark.parametrize("key", ["sha256", "decode", "nbytes"])
def test_a_wrong_vector_is_found(key: str) -> None:
    case = next(case for case in GOLDEN["cases"] if case["id"] == "size/two_bit/129")
    wrong = case | {key: 0}
    assert len(selftest.check_case(wrong)) >= 1


@pytest.mark.parametrize(("key", "at"), [("counts", k) for k in (0, 2, 3, 4, 5)] + [("repack", k) for k in (4, 5)])
def test_a_wrong_sum_is_found(key: str, at: int) -> None:
    case = next(case for case in SUMS if case["id"] == "sum/packings")
    assert selftest.check_case(case) == []
    values = list(case[key])
    values[at] = 2 if at == 0 else 0
    assert len(selftest.check_case(case | {key: values})) >= 1


def test_a_wrong_element_is_found() -> None:
    """Each recorded number matters, to the last bit."""
    case = next(case for case in GOLDEN["cases"] if case["id"] == "size/base3/129")
    assert selftest.check_case(case) == []
    group = case["groups"][0]
    e, x, T, u, t = group["at"][0]
    for at in ([e, x, T ^ 1, u, t], [e, x, T, u ^ 1, t], [e, x, T, u, 2]):
        assert selftest.check_case(case | {"groups": [group | {"at": [at]}]})
    for key in ("top", "inv", "B"):
        wrong = f"{int(group[key], 16) ^ 1:08x}"
        assert selftest.check_case(case | {"groups": [group | {key: wrong}]})
    below = float(np.nextafter(float.fromhex(group["Q"]), 0))
    assert selftest.check_case(case | {"groups": [group | {"Q": below.hex()}]})
    for k in range(2):
        own = list(group["own"])
        own[k] = f"{int(own[k], 16) ^ 1:08x}"
        assert selftest.check_case(case | {"groups": [group | {"own": own}]})


def test_the_file_is_what_the_reference_gives() -> None:
    """Every case's parameters, and a sample of the results; ``make_golden.py --check`` compares all."""
    lines = selftest.GOLDEN.read_text(encoding="ascii").splitlines()
    lines = [line.rstrip(",") for line in lines]
    specifications = make_golden.specifications()
    assert [case["id"] for case in GOLDEN["cases"]] == [case["id"] for case in specifications]
    assert len(specifications) >= 200
    first = lines.index('"cases":[') + 1
    for k, case in enumerate(specifications):
        if k % 5 == 0 and sum(n for _, n in case["layers"]) < 10**6:
            assert lines[first + k] == make_golden.line(make_golden.describe(case))
    assert GOLDEN["philox"] == make_golden.philox_vectors()


@pytest.mark.parametrize(
    ("kind", "dtype", "digest"),
    [
        ("uniform", "float32", "3d628ec49f2086ed"),
        ("heavy", "float16", "199c25cf02510071"),
        ("spike", "bfloat16", "5f125bc1f5dbcee9"),
        ("subnormal", "float64", "c3b707be2e7ec6de"),
        ("tiny", "float32", "538dfcc28292b4c5"),
        ("border", "float16", "5ca987fbcee857d5"),
        ("stripes", "bfloat16", "f528e83320335629"),
        ("bins", "float64", "7d10bd68e1b9cf06"),
        ("large", "float32", "00ea9b9f203c2d0e"),
        ("huge", "float16", "c1ce37a97fcec2c8"),
        ("overflow", "bfloat16", "a8a2c7e98d11cd1c"),
        ("mean", "float64", "1c40ec06cb23b443"),
        ("constant", "float32", "3104c73a0b552380"),
        ("fma_value", "float16", "b09714fcbff83031"),
        ("fma_start", "bfloat16", "7508a86769f9d384"),
        ("ternary", "float64", "30c4fb2eeb29cf53"),
        ("zero", "float32", "c298be9fb3730d4d"),
        ("normal", "float16", "ebf316b6c222e4f3"),
        ("nan", "bfloat16", "3fa500d9b5cbb03d"),
        ("inf", "float64", "7000483e88aca40d"),
        ("nans", "float32", "6cf96f434b5670a6"),
    ],
)
def test_patterns_are_the_same_everywhere(kind: str, dtype: str, digest: str) -> None:
    """The inputs themselves, so that a failing vector is not searched for in the kernels."""
    x = selftest.pattern(kind, 3000, 7, dtype)
    assert x.dtype.name == dtype
    assert x.shape == (3000,)
    assert hashlib.sha256(x.tobytes()).hexdigest()[:16] == digest


def test_patterns_are_what_they_say() -> None:
    def values(kind: str, dtype: str = "float32") -> Any:
        with np.errstate(over="ignore", invalid="ignore"):
            return selftest.pattern(kind, 5000, 3, dtype).astype(np.float32)

    sizes = {kind: np.abs(values(kind)) for kind in selftest.KINDS}
    assert sizes["uniform"].min() >= 2.0**-12
    assert sizes["uniform"].max() < 1
    assert sizes["heavy"].min() < 2.0**-126
    assert sizes["heavy"].max() > 1
    assert 0 < sizes["subnormal"].max() < 2.0**-126
    assert sizes["tiny"].min() > 0
    assert sizes["tiny"].max() < 2.0**-60
    assert sizes["border"].min() < 2.0**-60 < sizes["border"].max()
    assert sizes["huge"].min() >= 2.0**57
    assert not sizes["zero"].any()
    assert np.signbit(values("zero")).any()
    assert np.unique(sizes["constant"]).size == 1
    assert np.unique(values("ternary")).size == 3
    assert np.isnan(sizes["nan"]).sum() == 1
    assert np.isnan(sizes["nans"]).all()
    assert np.isinf(sizes["inf"]).sum() == 1
    assert np.isinf(values("overflow", "float64")).any()
    assert values("mean").mean() > 20 * values("mean").std()
    assert abs(values("normal").mean()) < 0.1
    assert abs(np.median(sizes["normal"]) / values("normal").std() - 0.68) < 0.1
    bits = selftest.pattern("uniform", 4000, 3, "float64").view(np.uint64) & np.uint64(2**29 - 1)
    assert 800 < (bits == 2**28).sum() < 1200
    assert np.unique(bits).size > 2400
    # Other seeds, other values; the same elements whatever the length.
    assert (selftest.pattern("normal", 9, 3, "float32") == values("normal")[:9]).all()
    assert (selftest.pattern("normal", 9, 4, "float32") != values("normal")[:9]).any()


def test_every_vector_that_needs_ml_dtypes_is_left_out_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)  # an import of it raises ImportError
    lines: list[str] = []
    assert selftest.run(report=lines.append) == 0
    assert lines[-1].endswith("bfloat16 vectors not run: ml_dtypes is not installed")
