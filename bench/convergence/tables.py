"""The tables of docs/convergence.md out of the results: ``cd bench && python -m convergence.tables results/NAME PAGE``.

Each stands between two comments of the page, ``<!-- NAME -->`` and ``<!-- end of NAME -->``, and is written anew there.

Runs of one seed share weights, batches and test images, so differences are taken by pairs: mean, 95 % interval and
p-value are those of the paired t-test over seeds, and the p-values of one table are corrected after Holm. A run has
*diverged* if it ends above the loss of guessing; with one of them there is no test, since its deviations are no spread.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import plan
from .__main__ import read

Line = dict[str, Any]

#: Below it, after Holm's correction, a difference is taken for one.
LEVEL = 0.05
#: The loss of guessing one of ten digits is 2.30; no run that learnt anything ends above 2.
GUESSING = 2.0


class Difference(NamedTuple):
    """Of pairs: their number, the mean, the 95 % interval about it, the p-value of the paired t-test."""

    pairs: int
    mean: float
    low: float
    high: float
    p: float


def by_seed(lines: Iterable[Line], metric: str) -> dict[int, float]:
    """One value a seed; a run that has not a finite one has diverged, and counts as infinite."""
    return {line["seed"]: math.inf if line[metric] is None else line[metric] for line in lines}


def compare(values: dict[int, float], base: dict[int, float]) -> Difference:
    """The paired t-test over the seeds that both have."""
    from scipy import stats

    found = np.array([values[seed] - base[seed] for seed in sorted(values.keys() & base.keys())])
    mean, count = float(found.mean()), len(found)
    error = float(found.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan
    if not error > 0:
        return Difference(count, mean, mean, mean, 1.0 if mean == 0 else math.nan)
    half = float(stats.t.ppf(0.975, count - 1)) * error
    return Difference(count, mean, mean - half, mean + half, float(2 * stats.t.sf(abs(mean) / error, count - 1)))


def holm(ps: Sequence[float]) -> list[float]:
    """Corrected for their number; what is NaN stays so."""
    tested = sorted((p, at) for at, p in enumerate(ps) if not math.isnan(p))
    corrected, least = [math.nan] * len(ps), 0.0
    for place, (p, at) in enumerate(tested):
        least = corrected[at] = min(1.0, max(least, (len(tested) - place) * p))
    return corrected


def diverged(line: Line) -> bool:
    """Whether it ends no better than guessing (or, on text, with a loss that is not finite)."""
    loss = line["test_loss"]
    return loss is None or (line["network"] == "lenet" and loss > GUESSING)


class Metric(NamedTuple):
    """A column: of a line, as it is shown; ``ratio``: compared as the ratio to float32, by logarithms."""

    name: str
    title: str
    scale: float = 1.0
    digits: int = 3
    ratio: bool = False


ACCURACY = Metric("accuracy", "test accuracy, %", 100.0, 2)
TRAIN_LOSS = Metric("train_loss", "training loss", digits=4, ratio=True)
TEST_LOSS = Metric("test_loss", "test loss")
Row = tuple[list[str], list[Line], list[Line]]


def table(first: Sequence[str], rows: Sequence[Row], metrics: Sequence[Metric]) -> str:
    """Rows of (first cells, runs, float32's runs at the same setting; none for float32 itself)."""
    cells = [[*start, str(len(lines))] for start, lines, _ in rows]
    head = [*first, "seeds"]
    for metric in metrics:
        head += [metric.title, "against float32 [95 %]", "p"]
        compared: list[Difference | None] = []
        for _, lines, base in rows:
            tested = base and not any(map(diverged, lines))
            pair = [by_seed(of_two, metric.name) for of_two in (lines, base)]
            if metric.ratio:
                pair = [{seed: math.log(value) for seed, value in values.items()} for values in pair]
            compared.append(compare(*pair) if tested else None)
        ps = holm([difference.p if difference else math.nan for difference in compared])
        for row, (_, lines, _), difference, p in zip(cells, rows, compared, ps, strict=True):
            lost = sum(map(diverged, lines))
            row.append(spread([x[metric.name] for x in lines], metric.scale, metric.digits))
            row += [difference_of(difference, metric), short_p(p)] if difference else ["", ""]
            if lost:
                row[-2] = f"**{lost} of {len(lines)} diverged**"
    return markdown(head, cells)


def difference_of(difference: Difference, metric: Metric) -> str:
    """With its interval."""
    if difference.mean == difference.low == difference.high == 0:
        return "the same"
    values = (difference.mean, difference.low, difference.high)
    if metric.ratio:
        mean, low, high = (f"{math.exp(value):.2f}" for value in values)
        return f"x {mean} [{low}, {high}]"
    mean, low, high = (f"{metric.scale * value:+.{metric.digits}f}" for value in values)
    return f"{mean} [{low}, {high}]" if difference.pairs > 1 else mean


def spread(values: Sequence[float | None], scale: float = 1.0, digits: int = 3) -> str:
    """Mean and standard deviation of those that are finite."""
    finite = [scale * value for value in values if value is not None]
    if not finite:
        return "-"
    deviation = f" ± {np.std(finite, ddof=1):.{digits}f}" if len(finite) > 1 else ""
    return f"{np.mean(finite):.{digits}f}{deviation}"


def short_p(p: float) -> str:
    """Two figures, and no more zeros than needed; bold below `LEVEL`."""
    if math.isnan(p):
        return ""
    text = "< 0.001" if p < 0.001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"
    return f"**{text}**" if p < LEVEL else text


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def of(lines: Iterable[Line], **settings: Any) -> list[Line]:
    """Those with these settings."""
    return [line for line in lines if all(line[name] == value for name, value in settings.items())]


def sorted_of(lines: Iterable[Line], **settings: Any) -> list[Line]:
    """Those with these settings, by seed."""
    return sorted(of(lines, **settings), key=lambda line: line["seed"])


def strategies(folder: Path, experiment: str, metrics: Sequence[Metric]) -> str:
    """Every exchange beside float32."""
    lines = read(folder, experiment)
    base = of(lines, variant="float32")
    found = [(name, sorted_of(lines, variant=name)) for name in plan.VARIANTS]
    # Base-3 has the bits of two bits, and would be tested twice.
    untested = {"float32", *(name for name, options in plan.VARIANTS.items() if options.packing == "base3")}
    rows: list[Row] = [([name], own, [] if name in untested else base) for name, own in found if own]
    return table(["exchange"], rows, metrics)


def traffic(folder: Path) -> str:
    """What each exchange sends, with what it ends at."""
    found = [(name, of(read(folder, name), workers=4)) for name in ("strategies", "text")]
    rows = []
    for name in plan.VARIANTS:
        cells = [name]
        for _, lines in found:
            own = of(lines, variant=name)
            if own:
                cost = own[0]["traffic"]
                parts = [f"{cost[f'float32_{part}'] / cost[part]:.1f} x" for part in ("message", "sent")]
                cells += [f"{cost['message']:,}", parts[0], f"{cost['sent']:,}", parts[1]]
            else:
                cells += ["-"] * 4
        rows.append(cells)
    head = ["message, bytes", "against 4 bytes per element", "sent by each of 4", "against a ring"]
    return markdown(["exchange", *(f"{name}: {each}" for name in ("LeNet", "transformer") for each in head)], rows)


def swept(folder: Path, experiment: str) -> str:
    """A setting varied: every exchange beside float32 at the same setting."""
    own = read(folder, experiment)
    seeds = {line["seed"] for line in own}
    lines = own if experiment in ("constant", "half") else own + read(folder, "strategies")
    lines = [line for line in lines if line["seed"] in seeds]
    setting, values, variants = {
        "workers": ("workers", plan.WORKERS, ("float32", "gather", "sum", "requantize")),
        "batches": ("batch", plan.BATCHES, plan.SWEPT),
        "optimizers": ("optimizer", ("sgd", "momentum", "adam"), plan.VARIED),
        "constant": ("schedule", ("constant",), plan.VARIED),
        "half": ("rate", (plan.RATES["momentum"] / 2,), plan.VARIED),
    }[experiment]
    rows: list[Row] = []
    for value in values:
        here = of(lines, **{setting: value})
        # The average of 64 images is the same, but for rounding, however they were dealt to workers.
        base = of(here, variant="float32") or of(lines, variant="float32", workers=plan.DIGITS["workers"])
        for name in variants:
            found = sorted_of(here, variant=name)
            if found:
                rate = [f"{found[0]['rate']:g}"] if setting in ("batch", "optimizer") else []
                rows.append(([str(value), *rate, name], found, [] if name == "float32" else base))
    rate = ["rate"] if setting in ("batch", "optimizer") else []
    return table([setting, *rate, "exchange"], rows, (ACCURACY, TRAIN_LOSS))


def rates(folder: Path) -> str:
    """Mean test loss by rate: float32's least is in bold, and decides."""
    lines = read(folder, "rates")
    rows = []
    for network, optimizer in [("lenet", name) for name in plan.RATES] + [("transformer", "adam")]:
        plain = of(lines, network=network, optimizer=optimizer, variant="float32")
        tried = sorted({line["rate"] for line in plain})
        for rate in tried:
            cells = [network, optimizer, f"{rate:g}"]
            for name in plan.SWEPT:
                found = of(lines, network=network, optimizer=optimizer, rate=rate, variant=name)
                lost = sum(map(diverged, found))
                mean = spread([line["test_loss"] for line in found]).split(" ")[0] if found else "-"
                mean = f"{lost} of {len(found)} diverged" if lost else mean
                mean += " (one seed)" if len(found) == 1 and network == "lenet" else ""
                chosen = plan.TEXT_RATE if network == "transformer" else plan.RATES[optimizer]
                cells.append(f"**{mean}**" if rate == chosen and name == "float32" else mean)
            rows.append(cells)
    return markdown(["network", "optimizer", "rate", *plan.SWEPT], rows)


def best_rates(folder: Path) -> dict[tuple[str, str], float]:
    """The rate of the least mean test loss of float32, by network and optimizer."""
    found: dict[tuple[str, str], dict[float, list[float]]] = {}
    for line in of(read(folder, "rates"), variant="float32"):
        loss = math.inf if line["test_loss"] is None else line["test_loss"]
        found.setdefault((line["network"], line["optimizer"]), {}).setdefault(line["rate"], []).append(loss)
    best = {}
    for key, losses in found.items():
        most = max(map(len, losses.values()))
        best[key] = min((float(np.mean(each)), rate) for rate, each in losses.items() if len(each) == most)[1]
    return best


def layers(folder: Path) -> str:
    """What ternarizing one worker's gradient costs, layer by layer: median over seeds and moments of the training."""
    rows = []
    for experiment, network in (("strategies", "LeNet"), ("text", "transformer")):
        seen: dict[tuple[str, int], list[list[float]]] = {}
        for line in of(read(folder, experiment), variant="float32"):
            for moment in line.get("gradients", []):
                for name, elements, *numbers in moment["layers"]:
                    seen.setdefault((name, elements), []).append(numbers)
        for (name, elements), numbers in seen.items():
            top, clipped, error, plain = np.median(np.array(numbers, float), 0)
            if elements >= 512:
                cells = [network, f"`{name}`", f"{elements:,}", f"{top:.1f}", f"{clipped:.1%}"]
                rows.append([*cells, f"{error:.1f}", f"{plain:.1f}"])
    head = ["network", "layer", "elements", "largest / rms", "of the square clipped away", "error at 2.5"]
    return markdown([*head, "error without clipping"], rows)


def tables(folder: Path) -> dict[str, str]:
    """All tables of what was run, by name."""
    found = {
        "strategies": strategies(folder, "strategies", (ACCURACY,)),
        "losses": strategies(folder, "strategies", (TEST_LOSS, TRAIN_LOSS)),
        "text": strategies(folder, "text", (TEST_LOSS,)),
        "traffic": traffic(folder),
        "layers": layers(folder),
        "rates": rates(folder),
    }
    sweeps = ("workers", "batches", "optimizers", "constant", "half")
    return found | {name: swept(folder, name) for name in sweeps if read(folder, name)}


def rewrite(page: str, made: dict[str, str]) -> str:
    """The page with the tables in their places."""
    for name, table in made.items():
        first, last = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        if page.count(first) != 1 or page.count(last) != 1:
            raise ValueError(f"page: expected one place of the table {name!r}")
        before, rest = page.split(first)
        page = f"{before}{first}{table}\n{last}{rest.split(last)[1]}"
    return page


def main(folder: str, page: str) -> None:
    """Write the tables anew."""
    path = Path(page)
    path.write_text(rewrite(path.read_text(), tables(Path(folder))))


if __name__ == "__main__":
    main(*sys.argv[1:])
