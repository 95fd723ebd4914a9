"""Make the runs that are not there yet: ``cd bench && python -m convergence results/NAME``.

Each run is one line of NAME/EXPERIMENT.jsonl, so that this can be stopped and started at any time, and several may go
on side by side (``--part 0/2``, ``--part 1/2``). ``--seconds`` stops it after a while; it then ends with 75.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import terngrad_kernels as tk

from . import plan
from .networks import symbols, task, text
from .training import Run, train


def read(folder: Path, experiment: str) -> list[dict[str, Any]]:
    """Return the finished runs of an experiment."""
    file = folder / f"{experiment}.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line) for line in lines]


def key_of(line: dict[str, Any]) -> tuple[Any, ...]:
    """`Run.key` of a finished run."""
    names = ("variant", "optimizer", "workers", "batch", "steps", "schedule", "rate", "seed")
    return tuple(line[name] for name in names)


def pending(folder: Path, wanted: list[Run]) -> list[Run]:
    """Those of the runs that are not there."""
    there = {(name, key_of(line)) for name in plan.EXPERIMENTS for line in read(folder, name)}
    return [run for run in wanted if (run.experiment, run.key) not in there]


def machine() -> dict[str, Any]:
    """What the figures were made with."""
    info = tk.build_info()
    return {
        "terngrad_kernels": tk.__version__,
        "instruction_set": info["instruction_set"],
        "processor": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "threads": 1,
        "text": {"characters": len(text()[0]), "symbols": len(symbols()), "sha256": text()[1]},
        "experiments": plan.EXPERIMENTS,
    }


def append(file: Path, line: dict[str, Any]) -> None:
    """Add a line in one write, which no other process can come between."""
    data = (json.dumps(line, allow_nan=False, separators=(",", ":")) + "\n").encode()
    handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, data)
    finally:
        os.close(handle)


def main(arguments: list[str] | None = None) -> int:
    """Make runs; 0 when all are there."""
    parser = argparse.ArgumentParser(prog="python -m convergence", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="of the results")
    parser.add_argument("--quick", action="store_true", help="a few steps of each run: seconds in all")
    parser.add_argument("--only", choices=list(plan.EXPERIMENTS), nargs="+", help="some experiments")
    parser.add_argument("--seeds", type=int, default=1 << 31, help="only seeds below that")
    parser.add_argument("--part", default="0/1", help="I/N: every N-th run from the I-th")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no run after that time")
    options = parser.parse_args(arguments)
    place, parts = map(int, options.part.split("/"))
    only = options.only or list(plan.EXPERIMENTS)
    wanted = [run for run in (plan.quick() if options.quick else plan.runs()) if run.experiment in only]
    wanted = [run for run in wanted if run.seed < options.seeds]
    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / "machine.json").write_text(json.dumps(machine(), indent=1) + "\n")
    start = time.monotonic()
    for run in pending(options.folder, wanted[place::parts]):
        if time.monotonic() - start > options.seconds:
            return 75
        line = train(run, task(run.network, run.seed).first(256) if options.quick else None)
        append(options.folder / f"{run.experiment}.jsonl", line)
        where = f"{run.optimizer} {run.rate:g}, {run.workers} workers, batch {run.batch}"
        print(f"{run.experiment}: {run.variant}, {where}, seed {run.seed}: {line['accuracy']}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
