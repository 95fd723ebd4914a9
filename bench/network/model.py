"""What an exchange and a training step should take, against what bench/network measured; and beyond, up to 512 workers.

    python bench/network/model.py bench/results/NAME/network.json

writes model.json, model.md, speedup.png and frontier.svg beside it. The formulas are terngrad_kernels._cost, on which
`terngrad_kernels.torch.recommend` stands too.
"""

from __future__ import annotations

import json
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from terngrad_kernels import _cost
from terngrad_kernels.bench.models import resnet50

#: Of the points claimed, the largest error.
WITHIN = 0.2
#: Faster links are not claimed: there, what sockets and memory take of two cores is most of an exchange.
CLAIMED_GBIT = 1.0
WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
GBITS = (1.0, 10.0, 100.0, 400.0)

#: Parameters, and multiplications and additions of a forward pass of one sample in units of 1e9 (torchvision's
#: documentation of its models; GPT-2 small of 124 M parameters: one of each a parameter and token, 1024 tokens), and
#: samples a worker and step.
NETWORKS = {
    "AlexNet": (61_100_840, 0.71, 128),
    "GoogLeNet": (6_624_904, 1.50, 128),
    "ResNet-50": (25_557_032, 4.09, 128),
    "VGG-16": (138_357_544, 15.47, 128),
    "GPT-2 small": (124_439_808, 127.43, 8),
}
#: An assumption: what an accelerator sustains, floating point operations a second; a backward pass costs two forward.
FLOPS = 1e14
#: An assumption: kernels of a GPU, of prototypes measured on an H100 (encode 65.5 us, decode 45 us, decode_sum of eight
#: 67.6 us for 25.6 million elements).
GPU = _cost.Kernels(65.5e-6 / 25.6e6, 45e-6 / 25.6e6, (67.6e-6 - 45e-6) / 7 / 25.6e6, call=1e-5, beside=True)
#: Left out: a ring's many messages one after the other would favour `gather`, and large clusters average over trees.
LATENCY = 0.0


# ---- the points that were measured


def buckets(shapes: Sequence[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """Return the shapes of DistributedDataParallel's buckets."""
    found: list[list[tuple[int, ...]]] = [[]]
    limits = [1 << 20, _cost.BUCKET_BYTES]
    for shape in reversed(shapes):
        if 4 * sum(map(math.prod, found[-1])) >= limits[min(len(found), len(limits)) - 1]:
            found.append([])
        found[-1].append(shape)
    return found


def points(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return measured and predicted seconds of what the model knows."""
    known = buckets(resnet50())
    sizes = [sum(map(math.prod, shapes)) for shapes in known]
    carried = [sum(math.prod(shape) for shape in shapes if len(shape) < 2) for shapes in known]
    rows = []
    for piece in found["pieces"]:
        if "rows" not in piece or "x" in piece["workers"] or "bandwidth" not in piece.get("link", {}):
            continue
        ranks = int(piece["workers"])
        share = max(1.0, ranks / found["machine"]["cores"])
        kernels = _cost.Kernels(**found["kernel_seconds"], share=share)
        link = _cost.Link(piece["link"]["bandwidth"], piece["link"]["latency"])
        for row in piece["rows"]:
            name, _, rest = row["case"].partition(" ")
            dtype = "float16" if row["case"] in ("fp16 hook", "bf16 re-stated") else "float32"
            strategy = "float32" if dtype == "float16" else name
            if "seconds" not in row or strategy not in _cost.STRATEGIES or "waiting" in rest:
                continue
            predicted = _cost.predict(
                strategy,
                sizes,
                ranks,
                link,
                kernels,
                compute=row.get("alone_seconds", 0.0),
                packing=rest if rest in ("two_bit", "base3") else "two_bit",
                dtype=dtype,
                carried=carried,
            )
            rows.append(
                {
                    "gbit": piece["gbit"],
                    "workers": ranks,
                    "what": row["what"],
                    "case": row["case"],
                    "measured": row["seconds"],
                    "predicted": predicted,
                    "error": predicted / row["seconds"] - 1,
                }
            )
    return rows


# ---- beyond


def step(network: str, ranks: int, gbit: float, strategy: str) -> float:
    """Return the predicted seconds of a training step on accelerators."""
    elements, giga, samples = NETWORKS[network]
    compute = 3 * 2 * giga * 1e9 * samples / FLOPS
    link = _cost.Link(gbit * 1e9, LATENCY)
    return _cost.predict(strategy, _cost.split(elements), ranks, link, GPU, compute=compute)


def speedups() -> list[dict[str, Any]]:
    """Return how many times one worker's throughput so many workers have."""
    return [
        {
            "network": network,
            "gbit": gbit,
            "strategy": strategy,
            "workers": list(WORKERS),
            "speedup": [
                ranks * step(network, 1, gbit, strategy) / step(network, ranks, gbit, strategy) for ranks in WORKERS
            ],
        }
        for network in NETWORKS
        for gbit in GBITS
        for strategy in _cost.STRATEGIES
    ]


def frontier(network: str, ranks: int, least: float = 1.05) -> float:
    """Return the Gbit/s above which no strategy makes a step `least` times as fast as plain averaging does."""

    def pays(gbit: float) -> bool:
        best = min(step(network, ranks, gbit, strategy) for strategy in _cost.STRATEGIES[1:])
        return step(network, ranks, gbit, "float32") > least * best

    low, high = 1e-3, 1e5
    if not pays(low):
        return 0.0
    while high / low > 1.01:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if pays(middle) else (low, middle)
    return low


# ---- table and figures


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| Gbit/s | workers | what | averaged by | measured, s | predicted, s | error | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        mark = "" if abs(row["error"]) <= WITHIN else "not claimed"
        lines.append(
            f"| {row['gbit']:g} | {row['workers']} | {row['what']} | {row['case']} | {row['measured']:.4f} | "
            f"{row['predicted']:.4f} | {100 * row['error']:+.0f} % | {mark} |"
        )
    return "\n".join(lines) + "\n"


def draw(found: Sequence[dict[str, Any]], folder: pathlib.Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "terngrad", "svg.fonttype": "none"}
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(GBITS), len(NETWORKS), figsize=(15, 11), sharex=True, sharey=True)
    for row in found:
        axis = axes[GBITS.index(row["gbit"])][list(NETWORKS).index(row["network"])]
        axis.plot(WORKERS, row["speedup"], ".-", label=row["strategy"])
        axis.set(xscale="log", yscale="log", title=f"{row['network']}, {row['gbit']:g} Gbit/s")
        axis.grid(alpha=0.3)
    for column in axes.T:
        column[-1].set_xlabel("workers")
    for line in axes:
        line[0].set_ylabel("speed-up")
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(folder / "speedup.png", dpi=75)

    figure, axis = plt.subplots(figsize=(7, 4.5))
    for network in NETWORKS:
        axis.plot(WORKERS[1:], [frontier(network, ranks) for ranks in WORKERS[1:]], "o-", label=network)
    axis.set(xscale="log", yscale="log", xlabel="workers", ylabel="Gbit/s a worker")
    axis.set_title("below its line, a step is at least 5 % faster with a ternary strategy")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(folder / "frontier.svg", metadata={"Date": None})


def main(path: pathlib.Path) -> None:
    rows = points(json.loads(path.read_text()))
    curves = speedups()
    lines = {network: [frontier(network, ranks) for ranks in WORKERS[1:]] for network in NETWORKS}
    found = {"within": WITHIN, "points": rows, "speedups": curves, "frontier_gbit": lines, "workers": list(WORKERS)}
    (path.parent / "model.json").write_text(json.dumps(found, indent=1) + "\n")
    (path.parent / "model.md").write_text("# Predicted and measured\n\n" + table(rows))
    draw(curves, path.parent)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
