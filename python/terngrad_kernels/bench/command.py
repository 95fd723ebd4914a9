"""The command ``python -m terngrad_kernels bench``."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import terngrad_kernels as tk

from . import cases, measure, peers, report

__all__ = ["dumps", "main", "run"]

FORMAT = "terngrad_kernels bench 1"
SECTIONS = ("operations", "dtypes", "threads", "layers", "models", "frameworks", "peers")


def argument_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m terngrad_kernels bench",
        description="Compare every operation with plain reads and fills of the same bytes on this machine, and with "
        "alternatives. On a shared machine only ratios within one run are meaningful.",
    )
    parser.add_argument("--quick", action="store_true", help="a choice of the cases: two minutes on two cores")
    parser.add_argument("--only", metavar="SECTION,...", help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--most", type=int, metavar="N", help="leave out sizes and networks of more elements")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the arrays lie (default: cpu)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one page with tables and plots")
    parser.add_argument("--compare", type=Path, metavar="OLD.json", help="show what has changed since another run")
    parser.add_argument("--fail-on-regression", action="store_true", help="exit with 1 if --compare finds a row slower")
    parser.add_argument("--show", type=Path, metavar="FILE.json", help="show this result, measure nothing")
    return parser


def _place(device: str) -> measure.Place:
    if device == "cpu":
        return measure.CpuPlace()
    if tk.build_info()["cuda"] is None:
        raise SystemExit("bench: --device cuda: this build has no CUDA kernels")
    for name in ("torch", "cupy"):
        if importlib.util.find_spec(name) is not None:
            place = measure.CudaPlace(name)
            if place.ready():
                return place
    raise SystemExit("bench: --device cuda needs PyTorch or CuPy with a CUDA device")


def _threads(cores: int) -> list[int]:
    return sorted({count for count in (1, 2, 4, 8, 16, 32, 64, cores) if count <= cores})


def run(
    quick: bool = False, only: Sequence[str] = SECTIONS, most: int | None = None, device: str = "cpu"
) -> dict[str, Any]:
    """Measure.

    Parameters
    ----------
    quick : bool
        A choice of the cases.
    only : sequence of str
        Sections.
    most : int, optional
        Elements of the largest size or network.
    device : {"cpu", "cuda"}
        Where the arrays lie.

    Returns
    -------
    dict
        format, machine, noise, warnings, options, left_out and rows, ready for JSON.
    """
    peers.set_up_frameworks()
    place = _place(device)
    effort = measure.QUICK if quick else measure.FULL
    machine = measure.machine()
    state = measure.noise()
    for warning in measure.noise_warnings(state):
        print(f"warning: {warning}", file=sys.stderr)
    plan = [
        group
        for group in cases.groups(quick, _threads(machine["cores"]), int(0.8 * place.free()), device)
        if group[0].section in only and (most is None or group[0].elements <= most)
    ]
    large = min(cases.LARGE, most or cases.LARGE) // 4 * 4
    left_out: list[str] = []
    rows: list[dict[str, Any]] = []
    before = tk.get_num_threads()
    total = sum(map(len, plan)) + ("peers" in only) * sum(device in peer.devices for peer in peers.PEERS)
    try:
        with report.progress(total) as step:
            for group in plan:
                where = group[0].model or report.size_name(group[0].elements)

                def done(name: str, where: str = where) -> None:
                    if name in cases.OPERATIONS:  # and not a bound
                        step(f"{name} {where}")

                rows += cases.bounded_rows(group, place, effort, done)
            if "frameworks" in only and device == "cpu":
                rows += cases.frameworks(effort, left_out.append)
            if "peers" in only:
                rows += peers.measure_peers(place, large, effort, left_out.append, step)
    finally:
        tk.set_num_threads(before)
    state = measure.noise(state)
    return {
        "format": FORMAT,
        "machine": machine,
        "noise": state,
        "warnings": measure.noise_warnings(state),
        "options": {"quick": quick, "only": list(only), "most": most, "device": device},
        "left_out": left_out,
        "rows": rows,
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SystemExit(f"bench: {path}: {error}") from error
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        raise SystemExit(f"bench: {path}: not a result of this command (format {FORMAT!r})")
    return result


def dumps(result: dict[str, Any]) -> str:
    """Return a result as JSON, a line a row.

    Parameters
    ----------
    result : dict
        Of `run`.

    Returns
    -------
    str
        Ends with a newline.
    """
    head = json.dumps({key: value for key, value in result.items() if key != "rows"}, indent=1).removesuffix("\n}")
    rows = ",\n".join(f"  {json.dumps(row)}" for row in result["rows"])
    return f'{head},\n "rows": [\n{rows}\n ]\n}}\n'


def _write(path: Path | None, text: str) -> None:
    if path is not None:
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, show and write.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; those of the process if None.

    Returns
    -------
    int
        0; 1 if asked to fail on a regression and there is one. Wrong usage exits with 2.
    """
    parser = argument_parser()
    arguments = parser.parse_args(argv)
    only = arguments.only.split(",") if arguments.only else SECTIONS
    unknown = sorted(set(only) - set(SECTIONS))
    if unknown:
        parser.error(f"--only: expected {', '.join(SECTIONS)}, got {', '.join(unknown)}")
    if arguments.most is not None and arguments.most < 4:
        parser.error(f"--most: expected at least 4, got {arguments.most}")
    if arguments.fail_on_regression and not arguments.compare:
        parser.error("--fail-on-regression: needs --compare")
    if arguments.html and importlib.util.find_spec("matplotlib") is None:
        parser.error("--html: needs matplotlib: pip install 'terngrad-kernels[bench]'")
    for path in filter(None, (arguments.json, arguments.markdown, arguments.html)):  # before minutes of work
        if not os.access(path.absolute().parent, os.W_OK):
            parser.error(f"{path}: cannot be written")
    old = _read(arguments.compare) if arguments.compare else None
    if arguments.show:
        result = _read(arguments.show)
    else:
        result = run(arguments.quick, only, arguments.most, arguments.device)
    _write(arguments.json, dumps(result))
    _write(arguments.markdown, report.markdown(result))
    shown = report.tables(result)
    lines = [*report.machine_lines(result), *(f"left out: {what}" for what in result["left_out"])]
    warnings = list(result["warnings"])
    slower = False
    if old is not None:
        changes, notes = report.compare(result, old)
        shown.append(report.change_table(changes))
        warnings += notes
        slower = any(change.verdict == "slower" for change in changes)
    if arguments.html:
        from . import page

        _write(arguments.html, page.render(result, shown))
    report.show(shown, lines, warnings)
    return 1 if slower and arguments.fail_on_regression else 0
