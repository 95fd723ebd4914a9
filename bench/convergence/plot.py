"""Pictures of docs/convergence.md out of the results: ``cd bench && python -m convergence.plot results/NAME FOLDER``"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from . import plan
from .__main__ import read
from .tables import Line, by_seed, compare, diverged, of

COLOURS = {
    "float32": "#202124",
    "gather": "#d9722a",
    "gather, no clipping": "#b3261e",
    "gather, clip 1.5": "#e3a857",
    "sum": "#2e7d5b",
    "requantize": "#3b6ea8",
    "gather, feedback (clip 1.5)": "#8e5ea2",
    "requantize, feedback (clip 1.5)": "#5bb0c9",
    "GRACE's rule": "#8a8d91",
    "HiPress's rule": "#c08497",
}
GREY = "#5f6368"


def band(axes: Any, x: Sequence[float], curves: Sequence[Sequence[float | None]], name: str) -> None:
    """The mean over seeds, and from the least to the largest of them."""
    values = np.array(curves, float)
    axes.plot(x, values.mean(0), color=COLOURS[name], linewidth=1.6, label=name)
    axes.fill_between(x, values.min(0), values.max(0), color=COLOURS[name], alpha=0.15, linewidth=0)


def losses(axes: Any, lines: Sequence[Line], names: Sequence[str], tests: bool = False) -> None:
    """Training losses, or those on the test text, by step."""
    for name in names:
        found = [line for line in of(lines, variant=name) if not diverged(line)]
        if found and tests:
            band(axes, [step for step, _ in found[0]["tests"]], [[loss for _, loss in x["tests"]] for x in found], name)
        elif found:
            curves = [line["curve"] for line in found]
            x = (np.arange(len(curves[0])) + 0.5) * found[0]["steps"] / len(curves[0])
            band(axes, x.tolist(), curves, name)
    axes.set(xlabel="step", yscale="linear" if tests else "log")
    axes.legend(frameon=False, fontsize=7.5)


def differences(axes: Any, lines: Sequence[Line], metric: str, scale: float, shown: tuple[float, float]) -> None:
    """Each exchange's difference to float32: every seed, the mean and its 95 % interval where no run diverged."""
    names = [name for name in plan.VARIANTS if name != "float32" and of(lines, variant=name)]
    base = by_seed(of(lines, variant="float32"), metric)
    for place, name in enumerate(reversed(names)):
        found = of(lines, variant=name)
        own = {seed: value for seed, value in by_seed(found, metric).items() if seed in base}
        colour = COLOURS.get(name, GREY)
        points = [scale * (own[seed] - base[seed]) for seed in own]
        axes.plot(points, [place] * len(points), "o", color=colour, alpha=0.35, ms=4)
        lost = sum(map(diverged, found))
        beyond = sum(not shown[0] < point < shown[1] for point in points) - lost
        notes = [f"{count} of {len(found)} {what}" for count, what in ((lost, "diverged"), (beyond, "beyond")) if count]
        if notes:
            axes.annotate(", ".join(notes), (shown[0], place), (4, -3), textcoords="offset points", fontsize=7.5)
        if points and not lost:
            mean, low, high = (scale * x for x in compare(own, base)[1:4])
            axes.plot([low, high], [place, place], color=colour, linewidth=2.2)
            axes.plot([mean], [place], "D", color=colour, ms=5)
    axes.axvline(0, color=COLOURS["float32"], linewidth=1)
    axes.set_xlim(*shown)
    axes.set_yticks(range(len(names)), list(reversed(names)), fontsize=8)


def by_setting(
    axes: Any, points: Sequence[tuple[str, Sequence[Line]]], names: Sequence[str], metric: str = "accuracy"
) -> None:
    """Mean and deviation of each exchange at each setting, side by side; a cross marks that runs diverged."""
    for at, name in enumerate(names):
        shift = (at - (len(names) - 1) / 2) * 0.7 / len(names)
        for place, (_, lines) in enumerate(points):
            found = of(lines, variant=name)
            kept = [100 * line[metric] for line in found if not diverged(line)]
            label = name if place == 0 else None
            if kept:
                error = np.std(kept, ddof=1) if len(kept) > 1 else 0.0
                axes.errorbar(place + shift, np.mean(kept), error, fmt="o", ms=4, color=COLOURS[name], label=label)
            if len(kept) < len(found):
                axes.plot(place + shift, axes.get_ylim()[0], "x", color=COLOURS[name], clip_on=False)
    axes.set_xticks(range(len(points)), [name for name, _ in points])
    axes.legend(frameon=False, fontsize=7, loc="lower left")


def figure(columns: int, width: float, height: float) -> tuple[Figure, Sequence[Any]]:
    """An empty one."""
    made = Figure(figsize=(width, height), layout="constrained")
    return made, made.subplots(1, columns, squeeze=False)[0]


def strategies(folder: Path) -> Figure:
    """LeNet's curves, and what each exchange costs in accuracy."""
    lines = read(folder, "strategies")
    made, (left, right) = figure(2, 11.5, 4.6)
    losses(left, lines, ("float32", "gather", "gather, no clipping", "sum", "requantize", "HiPress's rule"))
    left.set_title("LeNet on digits, 4 workers: training loss", loc="left", fontsize=10)
    differences(right, lines, "accuracy", 100, (-6, 2))
    right.set_title("Test accuracy, points against float32", loc="left", fontsize=10)
    return made


def text(folder: Path) -> Figure:
    """The transformer's."""
    lines = read(folder, "text")
    made, (left, right) = figure(2, 11.5, 4.6)
    losses(left, lines, list(COLOURS), tests=True)
    left.set_title("Transformer on text, 4 workers: test loss (nats a character)", loc="left", fontsize=10)
    differences(right, lines, "test_loss", 1, (-0.1, 0.7))
    right.set_title("Test loss against float32 (right of 0 is worse)", loc="left", fontsize=10)
    return made


def sweeps(folder: Path) -> Figure:
    """Accuracy against workers, batch and optimizer."""
    lines = {name: read(folder, name) for name in ("strategies", "workers", "batches", "optimizers")}
    made, (workers, batches, optimizers) = figure(3, 11.5, 4.2)
    plain = of(lines["strategies"], variant="float32")
    seeds = {line["seed"] for line in lines["workers"]}
    shared = [line for line in lines["strategies"] if line["seed"] in seeds]
    dealt = shared + lines["workers"]
    points = [
        (str(count), of(dealt, workers=count) + ([] if of(dealt, workers=count, variant="float32") else plain))
        for count in plan.WORKERS
    ]
    by_setting(workers, points, ("float32", "gather", "sum", "requantize"))
    workers.set(xlabel="workers (64 images in all)", ylabel="test accuracy, %")
    points = [(str(batch), of(shared + lines["batches"], batch=batch)) for batch in plan.BATCHES]
    by_setting(batches, points, plan.SWEPT)
    batches.set(xlabel="images a step")
    both = shared + lines["optimizers"]
    points = [(name, of(both, optimizer=name)) for name in ("sgd", "momentum", "adam")]
    by_setting(optimizers, points, plan.VARIED)
    return made


def constant(folder: Path) -> Figure:
    """Without a falling rate noise does not fade."""
    made, (left, right) = figure(2, 11.5, 4.2)
    for axes, name, title in ((left, "constant", "constant rate"), (right, "half", "half the rate, falling to 0")):
        losses(axes, read(folder, name), plan.VARIED)
        axes.set_title(f"LeNet on digits, {title}: training loss", loc="left", fontsize=10)
    return made


def traffic(folder: Path) -> Figure:
    """What is saved beside what it costs."""
    made, axes = figure(2, 11.5, 4.2)
    for each, name, metric, scale in zip(
        axes, ("strategies", "text"), ("accuracy", "test_loss"), (100, 1), strict=True
    ):
        lines = read(folder, name)
        base = of(lines, variant="float32")
        for variant in COLOURS:
            found = of(lines, variant=variant)
            if variant == "float32" or not found or any(map(diverged, found)):
                continue
            cost = found[0]["traffic"]
            difference = compare(by_seed(found, metric), by_seed(base, metric))
            mean, low, high = (scale * x for x in difference[1:4])
            x = cost["float32_sent"] / cost["sent"]
            each.errorbar(x, mean, [[mean - low], [high - mean]], fmt="o", color=COLOURS[variant], label=variant)
        each.axhline(0, color=COLOURS["float32"], linewidth=1)
        each.set(xlabel="times fewer bytes sent than a float32 ring all-reduce, 4 workers")
        each.legend(frameon=False, fontsize=7)
    axes[0].set_title("Digits: accuracy, points against float32", loc="left", fontsize=10)
    axes[1].set_title("Text: test loss against float32", loc="left", fontsize=10)
    return made


PICTURES = {"strategies": strategies, "text": text, "sweeps": sweeps, "constant": constant, "traffic": traffic}

NEEDS = {
    "sweeps": ("workers", "batches", "optimizers"),
    "constant": ("constant", "half"),
    "traffic": ("strategies", "text"),
}


def main(folder: str, into: str) -> None:
    """Draw all."""
    # Nothing of the day or the machine in the files.
    mpl.rcParams["svg.hashsalt"] = "terngrad"
    for name, draw in PICTURES.items():
        if not all(read(Path(folder), experiment) for experiment in NEEDS.get(name, (name,))):
            continue
        made = draw(Path(folder))
        for axes in made.axes:
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(True, color="#e3e5e8", linewidth=0.6)
            axes.set_axisbelow(True)
            axes.tick_params(colors=GREY)
        made.savefig(Path(into) / f"convergence-{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
