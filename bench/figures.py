"""Figures of README.md and docs/, from bench/results: ``python bench/figures.py`` writes them, a test checks them.

A table or sentence between ``<!-- NAME -->`` and ``<!-- end of NAME -->`` is a block of `BLOCKS`, made from the JSON.
A figure elsewhere on a page stands in one of the page's `PHRASES`, which are made from the JSON, too, and must be found
on the page word by word. Any other number that looks measured (`MEASURED`) is an error.
"""

from __future__ import annotations

import functools
import importlib
import json
import pathlib
import re
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from terngrad_kernels.bench.report import bound_name, of, select, spread

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
SUITE = "2026-11-24-zen4-suite"
KERNELS = {"avx2": "2026-11-23-zen4-avx2", "avx512": "2026-11-23-zen4-avx512"}
DEMO = "2026-11-23-demo"
NETWORK = "2026-11-24-network"
EXAMPLES = "2026-11-24-examples"
CONVERGENCE = "2026-11-24-convergence"
#: A row whose quartiles are further apart than this share of its median is not shown: its rounds saw two machines.
STEADY = 0.5
LARGE = 25_600_000


@functools.cache
def load(path: str) -> Any:
    text = (RESULTS / path).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if path.endswith(".jsonl") else json.loads(text)


def suite(isa: str) -> Any:
    return load(f"{SUITE}/{isa}.json")


def kernel(isa: str, place: str, name: str) -> str:
    found = [row for row in load(f"{KERNELS[isa]}/kernels.json") if (row["place"], row["name"]) == (place, name)]
    (row,) = (row for row in found if row["isa"] in (isa, ""))
    return f"{row['ns_per_element']:.3f}"


#: What `shown` refused, for `main` to name.
refused: set[str] = set()


def shown(row: dict[str, Any], text: str) -> str:
    """Return the text of a row's figure, or that there is none."""
    if spread(row) <= STEADY:
        return text
    refused.add(f"{row['section']}, {row['framework']}, {row['operation']}, {row['threads']} threads: {text}")
    return "unsteady"


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ("---",) * len(header), *rows))


def kernels() -> str:
    rows = [
        ("`scales`", "scales", "a plain read", "read"),
        ("draw, ternarize and pack as `two_bit`", "encode two_bit", "Philox alone", "philox"),
        ("the same as `base3`", "encode base3", "Philox alone", "philox"),
        ("`decode` of `two_bit`", "decode two_bit", "a fill of the output", "memset"),
        ("`decode` of `base3`", "decode base3", "a fill of the output", "memset"),
    ]
    lines = []
    for label, name, bound, of_bound in rows:
        cells = [
            " / ".join(kernel(isa, place, what) for place in ("L2", "memory"))
            for isa in KERNELS
            for what in (name, of_bound)
        ]
        lines.append((label, *cells[:2], *cells[2:], bound))
    header = ("kernel, in L2 / from memory", "AVX2", "bound", "AVX-512", "bound", "the bound is")
    return _table(header, lines)


def speed() -> str:
    def cell(isa: str, section: str, **fields: Any) -> str:
        row = of(suite(isa), section, **fields)
        return shown(row, f"{row['ns_per_element']:.3f} ({row['ratio']:.2f} x)")

    def line(label: str, section: str, **fields: Any) -> tuple[str, ...]:
        bound = bound_name(of(suite("avx512"), section, threads=1, **fields))
        return (label, *(cell(isa, section, threads=n, **fields) for isa in KERNELS for n in (1, 2)), bound)

    rows = [
        line(f"`{name}` of 25.6 million elements", "threads", operation=name, elements=LARGE, packing="two_bit")
        for name in ("scales", "encode", "decode", "decode_sum")
    ]
    for model in dict.fromkeys(row["model"] for row in select(suite("avx512"), "models")):
        first = select(suite("avx512"), "models", model=model)[0]
        rows.append(line(f"`encode` of {model}, {first['layers']} layers", "models", operation="encode", model=model))
    header = ("ns per element (ratio to bound)", "AVX2", "2 threads", "AVX-512", "2 threads", "the bound is")
    return _table(header, rows)


def peers() -> str:
    ours = {isa: of(suite(isa), "peers", operation="terngrad_kernels")["seconds"]["median"] for isa in KERNELS}
    rows = []
    for row in sorted(select(suite("avx512"), "peers"), key=lambda row: float(row["seconds"]["median"])):
        name = row["operation"]
        cells = []
        for isa in KERNELS:
            mine = of(suite(isa), "peers", operation=name)
            times = "" if name == "terngrad_kernels" else f" ({mine['seconds']['median'] / ours[isa]:.1f} x)"
            cells.append(shown(mine, f"{mine['ns_per_element']:.2f}{times}"))
        check = row["check"] or {"unbiased": "no draw", "independent": "no draw"}
        draws = " and ".join(word.lower() for word in (check["unbiased"], check["independent"]) if word.isupper())
        right = f"**{draws}**" if draws else "right" if check["unbiased"] == "yes" else "none"
        rows.append((name, *cells, f"{row['bits']:g}", right, row["says"]))
    header = ("", "ns per element, AVX2", "AVX-512", "bits", "draws", "what it does")
    return _table(header, rows)


_NAMES = {
    "numpy": "NumPy",
    "torch": "PyTorch",
    "jax": "JAX",
    "paddle": "Paddle",
    "tensorflow": "TensorFlow",
    "array_api_strict": "array-api-strict, through `__dlpack__`",
}


def calls() -> str:
    rows = []
    for framework, name in _NAMES.items():
        mine = {row["operation"]: row for row in select(suite("avx512"), "frameworks", framework=framework)}
        us = {operation: shown(row, f"{row['seconds']['median'] * 1e6:.1f}") for operation, row in mine.items()}
        encode = us["encode"] + (f"; {us['encode, jitted']} under `jax.jit`" if "encode, jitted" in us else "")
        floor = f"{mine['encode']['bound']['seconds'] * 1e6:.1f}"
        rows.append((name, encode, us.get("encode, out=", "-"), us["decode"], floor))
    return _table(("us per call", "`encode`", "`encode(out=)`", "`decode`", "`x + 1`"), rows)


def demo() -> str:
    runs = [load(f"{DEMO}/{packing}-seed{seed}.json") for packing in ("two_bit", "base3") for seed in range(5)]
    plain = [run["accuracy"]["float32"] for run in runs[:5]]
    ternary = [run["accuracy"]["terngrad"] for run in runs[:5]]
    assert ternary == [run["accuracy"]["terngrad"] for run in runs[5:]]
    ratios = [run["traffic"]["ratio"] for run in runs]
    return (
        "Mean accuracy over five seeds (600 steps, 4 workers, LeNet-300-100, 1,000 test images): "
        f"float32 {statistics.mean(plain):.1%}, TernGrad {statistics.mean(ternary):.1%},\n"
        f"with {ratios[0]:.2f} times less traffic for `two_bit` and {ratios[5]:.2f} times less for `base3` "
        "(same trits, same accuracy).\n"
        f"The default seed gives {plain[0]:.1%} and {ternary[0]:.1%} "
        f"([bench/results/{DEMO}](bench/results/{DEMO}))."
    ).replace("%", " %")


def call() -> str:
    def us(framework: str) -> str:
        row = of(suite("avx512"), "frameworks", framework=framework, operation="encode")
        return shown(row, f"{row['seconds']['median'] * 1e6:.1f} us")

    return (
        f"`tk.encode` of 1,024 elements takes {us('numpy')} with NumPy and {us('torch')} with PyTorch "
        "(all frameworks: [docs/frameworks.md](docs/frameworks.md#what-a-call-costs))."
    )


def pays() -> str:
    ours, hook = [], []
    for piece in load(f"{NETWORK}/network.json")["pieces"]:
        steps = (row for row in piece.get("rows", ()) if row["what"] == "step" and "seconds" in row)
        rows = {row["case"]: row["seconds"] for row in steps}
        if piece["gbit"] != 1.0 or piece["delay_ms"] or "float32" not in rows:
            continue
        for case, seconds in rows.items():
            strategy, _, packing = case.partition(" ")
            if strategy in ("gather", "sum", "requantize") and packing in ("two_bit", "base3"):
                ours.append(rows["float32"] / seconds)
            elif case == "fp16 hook":
                hook.append(rows["float32"] / seconds)
    return (
        "**Does it pay?** Over links of 1 Gbit/s, training steps with ResNet-50's gradients were "
        f"{min(ours):.1f} to {max(ours):.1f} times as fast as with float32\n"
        f"(PyTorch's fp16 hook: {min(hook):.1f} to {max(hook):.1f} times; 2 and 4 workers, 0.2 s of computing, "
        "[measured here](docs/distributed.md#measured)).\n"
        "On fast networks plain averaging wins: [When does it pay?](docs/performance-model.md) has a model of it."
    )


def parameter_server() -> str:
    rows = []
    for down in ("counts", "trits", "float32"):
        run = load(f"{EXAMPLES}/parameter_server-{down}-seed1.json")
        cells = []
        for way in ("bytes_up", "bytes_down"):
            ratio = run["bytes_float32"] / run[way]
            cells.append(f"{run[way]:,}" + (f" ({ratio:.1f} x fewer)" if ratio > 1 else ""))
        rows.append((f"`{down}`", f"{run['accuracy']:.1%}".replace("%", " %"), *cells))
    return _table(("`--down`", "accuracy", "bytes up", "bytes down"), rows)


def local_sgd() -> str:
    runs = load(f"{EXAMPLES}/local_sgd-adamw-seed1.json")["runs"]
    names = {
        "trits": "pseudo-gradients as trits, `gather`, error feedback",
        "float32": "pseudo-gradients in float32",
        "every step": "gradients in float32 at every step, no outer steps",
    }
    rows = []
    for key, name in names.items():
        ratio = runs["every step"]["bytes_sent"] / runs[key]["bytes_sent"]
        fewer = f" ({ratio:.0f} x fewer)" if ratio > 1 else ""
        rows.append((name, f"{runs[key]['accuracy']:.1%}".replace("%", " %"), f"{runs[key]['bytes_sent']:,}{fewer}"))
    return _table(("what is sent", "accuracy", "bytes"), rows)


def _network(name: str) -> Any:
    folder = str(ROOT / "bench" / "network")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(folder)


def exchanges(what: str) -> str:
    return str(_network("network_table").summary(load(f"{NETWORK}/network.json"), what)).rstrip()


def predictions() -> str:
    model = _network("model")
    return str(model.table(model.points(load(f"{NETWORK}/network.json")))).rstrip()


#: By page and name, what stands between the comments.
BLOCKS: dict[tuple[str, str], Callable[[], str]] = {
    ("README.md", "demo"): demo,
    ("README.md", "pays"): pays,
    ("README.md", "kernels"): kernels,
    ("README.md", "speed"): speed,
    ("README.md", "peers"): peers,
    ("README.md", "call"): call,
    ("docs/frameworks.md", "calls"): calls,
    ("docs/parameter_server.md", "parameter-server"): parameter_server,
    ("docs/parameter_server.md", "local-sgd"): local_sgd,
    ("docs/distributed.md", "exchange"): lambda: exchanges("exchange"),
    ("docs/distributed.md", "step"): lambda: exchanges("step"),
    ("docs/performance-model.md", "points"): predictions,
}


def rendered(page: str, text: str) -> str:
    """Return the page with its blocks written anew."""
    for (where, name), make in BLOCKS.items():
        if where == page:
            start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
            before, found, rest = text.partition(start)
            assert found, f"{page}: no {start.strip()}"
            _, found, after = rest.partition(end)
            assert found, f"{page}: no {end}"
            text = f"{before}{start}{make()}\n{end}{after}"
    return text


# ---- figures in sentences


def _gained(folder: str, field: str, place: str, isa: str, name: str) -> str:
    """Return "before -> after" of a kernel, ns per element; two figures where the two runs of a state differ."""

    def state(state: str) -> str:
        rows = [row for number in (1, 2) for row in load(f"{folder}/{state}-{number}.json")]
        key = (place, isa, name)
        found = sorted(f"{row[field]:.3f}" for row in rows if (row["place"], row["isa"], row["name"]) == key)
        assert len(found) == 2, key
        return "-".join(dict.fromkeys(found))

    return f"{state('before')} -> {state('after')}"


NVCC = "2026-11-30-nvcc/kernels.json"
FOUR_ROWS = "two_bit and base3: four rows"


def _integers(loop: str) -> str:
    before, after = (load(NVCC)[key][loop]["integer"] for key in ("instructions_before", "instructions"))
    return f"{before} -> {after}"


def _design() -> list[str]:
    first = functools.partial(_gained, "2026-11-23-zen4-variants", "ns_per_element")
    second = functools.partial(_gained, "2026-11-24-zen4-variants", "fastest")
    third = functools.partial(_gained, "2026-11-24-zen4-sum_trits", "fastest", "L2", "avx512")
    return [
        f"Philox alone {first('L2', 'avx2', 'philox')} ns per element",
        f"pass 2 in cache {first('L2', 'avx2', 'encode two_bit')}",
        f"base-3 from memory {first('memory', 'avx2', 'encode base3')}",
        f"pass 1 from memory {first('memory', 'avx2', 'scales')}",
        f"base-3 in L2 {second('L2', 'avx2', 'encode base3')} with AVX2",
        f"{second('L2', 'avx512', 'encode base3')} with AVX-512",
        f"decoding base-3 in L2 {second('L2', 'avx2', 'decode base3')}",
        f"two-bit {second('L2', 'avx2', 'decode two_bit')}",
        f"two-bit in L2 {second('L2', 'avx512', 'encode two_bit')}, "
        f"against {second('L2', 'avx2', 'encode two_bit').split()[-1]} with AVX2",
        f"two-bit sums {third('sum_trits 4 two_bit')}, base-3 sums {third('sum_trits 4 base3')}",
        f"130 cycles per 256 elements, {130 / 256 / 3.6:.2f} ns at 3.6 GHz",
        f"{sum(load(NVCC)['seconds'].values()):.0f} s of one core",
        f"needed {load(NVCC)['instructions_before'][f'encode bfloat16, {FOUR_ROWS}']['integer'] / 16:.0f}.",
        f"float32: {_integers(f'encode float32, {FOUR_ROWS}')}; bfloat16 {_integers(f'encode bfloat16, {FOUR_ROWS}')}",
        f"two_bit {_integers('decode float32, two_bit: 19 rows')}",
        f"base3 {_integers('decode float32, base3: 19 rows')}",
    ]


def _distributed() -> list[str]:
    pieces = load(f"{NETWORK}/network.json")["pieces"]
    (piece,) = (piece for piece in pieces if (piece["workers"], piece["gbit"]) == ("2", 0.1))
    sent = {row["case"]: row["sent"] for row in piece["rows"] if row["what"] == "exchange" and "sent" in row}
    fewer = {case: sent["float32"] / sent[f"requantize {case}"] for case in ("two_bit", "base3")}
    (piece,) = (piece for piece in pieces if (piece["workers"], piece["gbit"]) == ("2", 1.0))
    rows = {row["case"]: row for row in piece["rows"] if row["what"] == "exchange" and "seconds" in row}
    counted = {"gather": 16, "requantize": 16, "sum": 2 * 4 / (1 / 4 + 4 / 8)}
    gather, requantize, summed = (
        rows["float32"]["seconds"] / rows[f"{strategy} two_bit"]["seconds"] / ratio
        for strategy, ratio in counted.items()
    )
    whole, kernels = (1e3 * rows["gather two_bit"][name] for name in ("seconds", "kernel_seconds"))
    return [
        f"`gather`, `requantize` and `sum` reach {gather:.2f}, {requantize:.2f} and {summed:.2f} of the ratio",
        f"of the {whole:.0f} ms of a `gather` exchange, {kernels:.0f} ms pass in a worker's kernels",
        f"{fewer['two_bit']:.1f} times fewer than float32's with `requantize`, {fewer['base3']:.1f} with `base3`",
        # By counting: `sum` with counts of 4 and 8 bits, base-3, and FSDP's 4 + 4 and 8 + 4 bytes. A setting: 0.2 s.
        "| {0} | {0} | {1} | {1} |".format(*(f"{2 * 4 / (1 / 4 + bits / 8):.1f} x" for bits in (4, 8))),
        f"{(1 / 4) / (1 / 5):.2f} times smaller",
        f"{8 / (4 + 1 / 4):.1f} times fewer",
        f"{12 / (8 + 1 / 4):.1f} times fewer",
        "0.2 s of computing",
    ]


def _performance_model() -> list[str]:
    points = load(f"{NETWORK}/model.json")["points"]
    far = [point for point in points if abs(point["error"]) > 0.2]
    strategies = ("gather", "sum", "requantize")
    ours = [point for point in far if point["gbit"] <= 1 and point["case"].startswith(strategies)]
    assert not ours
    at_ten = sum(point["gbit"] == 10 for point in far)
    return [f"{len(far)} of {len(points)} points are further off, {at_ten} of them at 10 Gbit/s"]


def _convergence() -> list[str]:
    def accuracy(path: str, **fields: Any) -> dict[int, float]:
        rows = [row for row in load(f"{CONVERGENCE}/{path}.jsonl") if all(row[key] == fields[key] for key in fields)]
        return {row["seed"]: row["accuracy"] for row in rows}

    plain = accuracy("strategies", variant="float32")

    def lower(path: str, **fields: Any) -> float:
        theirs = accuracy(path, **fields)
        assert theirs.keys() == plain.keys()
        return 100 * statistics.mean(plain[seed] - theirs[seed] for seed in plain)

    means = [lower("strategies", variant=name) for name in ("gather", "sum", "requantize")]
    return [
        f"means {min(means):.1f} to {max(means):.1f} points lower",
        f"{lower('workers', variant='gather', workers=2):.1f} points behind",
    ]


#: By page, the sentences' parts that have figures. They are made from the JSON, or counted.
PHRASES: dict[str, Callable[[], list[str]]] = {
    "docs/design.md": _design,
    "docs/distributed.md": _distributed,
    "docs/performance-model.md": _performance_model,
    "docs/convergence.md": _convergence,
    "docs/parameter_server.md": lambda: [f"a difference of {100 / 1000:.1f} points is one digit"],
}

_NUMBER = r"(?<![\w.^-])\d[\d,]*(?:\.\d+)?"
#: What looks measured: a number with a unit of time or rate, how many times as fast something is, a decimal before a
#: per cent sign, s, points or times, and a decimal of three places or more.
MEASURED = re.compile(
    rf"{_NUMBER}(?= ?(?:ns|us|ms|GB/s|TB/s)\b| (?:x|times) (?:as|faster|slower)\b)"
    r"|(?<![\w.])\d[\d,]*\.\d+(?= ?%| (?:s|x|points?|times)\b)"
    r"|(?<![\w.])\d{1,3}\.\d{3,}(?!\w|\.\d)"
)
#: In a table with such a unit in its header or in the paragraph above it, every decimal is.
UNIT = re.compile(r"\b(?:ns|us|ms|GB/s|TB/s)\b")
DECIMAL = re.compile(r"(?<![\w.])\d+\.\d+(?!\w|\.\d)")
#: Pages of mathematics and of bytes.
UNMEASURED = ("docs/contract.md", "docs/format.md")
#: Pages with blocks between such comments that another script writes, which has a test of its own.
ELSEWHERE = {"docs/convergence.md": "bench/convergence/tables.py"}


def pages() -> list[str]:
    """Every page whose figures are held to this."""
    found = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
    return [page for page in found if page not in UNMEASURED]


def _figures(text: str) -> Iterator[str]:
    """Yield the figures that look measured."""
    yield from (found[0] for found in MEASURED.finditer(text))
    for table in re.finditer(r"([^\n]+\n)?\n?((?:\|[^\n]*\n)+)", text):
        header, _, rows = table[2].partition("\n")
        if UNIT.search((table[1] or "") + header):
            yield from DECIMAL.findall(rows)


def unknown(page: str, text: str) -> list[str]:
    """Return what is wrong with a page outside its blocks: figures of no JSON, and phrases that it lacks."""
    names = [name for where, name in BLOCKS if where == page] + [r"[\w -]+"] * (page in ELSEWHERE)
    for name in names:
        text = re.sub(rf"<!-- ({name}) -->.*?<!-- end of \1 -->", "", text, flags=re.DOTALL)
    missing = []
    for phrase in PHRASES.get(page, list)():
        text, found = re.subn(r"\s+".join(map(re.escape, phrase.split())), "", text)
        if not found:
            missing.append(phrase)
    return missing + list(_figures(re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)))


def main() -> None:
    """Write the blocks of every page anew, and name what is left to a person."""
    for page in pages():
        path = ROOT / page
        before = path.read_text(encoding="utf-8")
        after = rendered(page, before)
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(f"{page}: written anew")
        for figure in unknown(page, after):
            print(f"{page}: {figure!r} is of no JSON, or is not on the page although a phrase has it")
    for row in sorted(refused):
        print(f"{SUITE}: too unsteady to show: {row}")


if __name__ == "__main__":
    main()
