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


def verdict(lines: Sequence[Line], difference: Difference, p: float, better: int) -> str:
    """In words; ``better``: the sign of a difference that is one for the better."""
    lost = sum(map(diverged, lines))
    if lost:
        return f"**{lost} of {len(lines)} diverged**"
    if difference.mean == difference.low == difference.high == 0:
        return "the same bits"
    if math.isnan(p):
        return ""
    if p >= LEVEL:
        return "within the spread"
    return "better" if difference.mean * better > 0 else "**worse**"


class Rows:
    """Rows of one table, each compared with a baseline; p-values are corrected over all of them."""

    def __init__(self, metric: str, scale: float, digits: int, better: int) -> None:
        self.metric, self.scale, self.digits, self.better = metric, scale, digits, better
        self._rows: list[tuple[list[str], list[Line], Difference | None]] = []

    def add(self, first: list[str], lines: Sequence[Line], base: Sequence[Line] | None) -> None:
        """A row that starts with ``first``; ``base`` None: of the baseline itself."""
        kept = sorted(lines, key=lambda line: line["seed"])
        if kept:
            own = by_seed(kept, self.metric)
            self._rows.append((first, kept, compare(own, by_seed(base, self.metric)) if base else None))

    def cells(self) -> list[list[str]]:
        """Each row's: ``first``, the runs, mean and deviation, difference and interval, p, verdict."""
        asked = [row[2].p if row[2] and not any(map(diverged, row[1])) else math.nan for row in self._rows]
        rows = []
        for (first, lines, difference), p in zip(self._rows, holm(asked), strict=True):
            cells = [*first, str(len(lines)), self.spread(lines)]
            if difference is None:
                cells += ["", "", ""]
            elif any(map(diverged, lines)):
                cells += ["", "", verdict(lines, difference, p, self.better)]
            else:
                low, mean, high = (
                    f"{self.scale * value:+.{self.digits}f}"
                    for value in (difference.low, difference.mean, difference.high)
                )
                cells += [f"{mean} [{low}, {high}]", "" if math.isnan(p) else short_p(p)]
                cells.append(verdict(lines, difference, p, self.better))
            rows.append(cells)
        return rows

    def spread(self, lines: Sequence[Line]) -> str:
        """Mean and standard deviation over seeds."""
        return spread([line[self.metric] for line in lines], self.scale, self.digits)


def spread(values: Sequence[float | None], scale: float = 1.0, digits: int = 3) -> str:
    """Mean and standard deviation of those that are finite."""
    finite = [scale * value for value in values if value is not None]
    if not finite:
        return "-"
    deviation = f" ± {np.std(finite, ddof=1):.{digits}f}" if len(finite) > 1 else ""
    return f"{np.mean(finite):.{digits}f}{deviation}"


def short_p(p: float) -> str:
    """Two figures, and no more zeros than needed."""
    return "< 0.001" if p < 0.001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def ratio(line: Line, part: str) -> str:
    """Bytes of float32 over those of this exchange."""
    traffic = line["traffic"]
    return f"{traffic[f'float32_{part}'] / traffic[part]:.1f} x"


def of(lines: Iterable[Line], **settings: Any) -> list[Line]:
    """Those with these settings."""
    return [line for line in lines if all(line[name] == value for name, value in settings.items())]


def strategies(folder: Path, experiment: str) -> str:
    """Every exchange beside float32, with what it sends."""
    lines = read(folder, experiment)
    on_text = experiment == "text"
    rows = Rows("test_loss", 1.0, 3, -1) if on_text else Rows("accuracy", 100.0, 2, 1)
    base = of(lines, variant="float32")
    names = [name for name in plan.VARIANTS if of(lines, variant=name)]
    for name in names:
        rows.add([name], of(lines, variant=name), base if name != "float32" else None)
    cells = rows.cells()
    for row, name in zip(cells, names, strict=True):
        found = of(lines, variant=name)
        row[3:3] = [] if on_text else [spread([line["test_loss"] for line in found])]
        row[4 - on_text : 4 - on_text] = [
            spread([line["curve"][-1] if on_text else line["train_loss"] for line in found], digits=3 if on_text else 4)
        ]
        row += [f"{found[0]['traffic']['message']:,}", ratio(found[0], "message"), ratio(found[0], "sent")]
    metrics = ["test loss"] if on_text else ["test accuracy, %", "test loss"]
    head = ["exchange", "seeds", *metrics, "training loss", "against float32 [95 %]", "p", "", "message, bytes"]
    return markdown([*head, "against 4 bytes", "sent, against a ring"], cells)


def swept(folder: Path, experiment: str) -> str:
    """A setting varied: every exchange beside float32 at the same setting."""
    lines = read(folder, "strategies") + read(folder, experiment)
    if experiment in ("constant", "half"):
        lines = read(folder, experiment)
    seeds = {line["seed"] for line in read(folder, experiment)}
    setting = {
        "workers": "workers",
        "batches": "batch",
        "optimizers": "optimizer",
        "constant": "schedule",
        "half": "rate",
    }[experiment]
    rows = Rows("accuracy", 100.0, 2, 1)
    order = {"workers": plan.WORKERS, "batches": plan.BATCHES, "optimizers": ("sgd", "momentum", "adam")}
    names = {"workers": ("float32", "gather", "sum", "requantize"), "batches": plan.SWEPT}
    variants = names.get(experiment, plan.OPTIMIZER_VARIANTS if experiment == "optimizers" else plan.CONSTANT_VARIANTS)
    losses = []
    for value in order.get(experiment, sorted({line[setting] for line in lines})):
        here = [line for line in of(lines, **{setting: value}) if line["seed"] in seeds]
        # The average of 64 images is the same, but for rounding, however they were dealt.
        base = of(here, variant="float32") or of(lines, variant="float32", workers=plan.DIGITS["workers"])
        for name in variants:
            found = of(here, variant=name)
            if found:
                rate = [f"{found[0]['rate']:g}"] if experiment in ("batches", "optimizers") else []
                rows.add([str(value), *rate, name], found, base if name != "float32" else None)
                losses.append(spread([line["train_loss"] for line in found], digits=4))
    cells = rows.cells()
    for row, loss in zip(cells, losses, strict=True):
        row.insert(-3, loss)
    rate = ["rate"] if experiment in ("batches", "optimizers") else []
    head = [setting, *rate, "exchange", "seeds", "test accuracy, %", "training loss", "against float32 [95 %]", "p", ""]
    return markdown(head, cells)


def rates(folder: Path) -> str:
    """Mean test loss by rate: float32's least is in bold, and decides."""
    lines = read(folder, "rates")
    rows = []
    for network, optimizer in [("lenet", name) for name in plan.RATES] + [("transformer", "adam")]:
        tried = sorted({line["rate"] for line in of(lines, network=network, optimizer=optimizer, variant="float32")})
        tried = [rate for rate in tried if len(of(lines, network=network, optimizer=optimizer, rate=rate)) > 1]
        for rate in tried:
            cells = [network, optimizer, f"{rate:g}"]
            for name in plan.SWEPT:
                found = of(lines, network=network, optimizer=optimizer, rate=rate, variant=name)
                lost = sum(map(diverged, found))
                mean = spread([line["test_loss"] for line in found]).split(" ")[0] if found else "-"
                mean = f"{lost} of {len(found)} diverged" if lost else mean
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
    """All tables by name."""
    found = {"strategies": strategies(folder, "strategies"), "text": strategies(folder, "text")}
    found |= {name: swept(folder, name) for name in ("workers", "batches", "optimizers", "constant", "half")}
    return found | {"rates": rates(folder), "layers": layers(folder)}


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
