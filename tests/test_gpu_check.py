"""`bench/gpu_check.sh` says what passed, with stand-ins for the GPU and for what it runs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "bench" / "gpu_check.sh"


def run(folder: Path, *stages: str, tests: str = "", status: int = 0, gpu: bool = True) -> tuple[int, str]:
    """Run the script with a python3 whose pytest prints `tests` and exits with `status`."""
    programs = folder / "bin"
    programs.mkdir()
    python = f"case \"$*\" in *'-m pytest'*) echo '{tests}'; exit {status};; esac"
    for name, text in {"nvidia-smi": "echo a card" if gpu else "exit 9", "nvcc": "", "python3": python}.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [SCRIPT, folder / "out", *stages], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    summary = folder / "out" / "summary.txt"
    return done.returncode, summary.read_text() if summary.exists() else done.stderr


def test_all_passed(tmp_path: Path) -> None:
    status, summary = run(tmp_path, "build", "test", tests="3 passed, 1 skipped in 2 s")
    assert (status, summary.splitlines()[-2:]) == (0, ["3 passed, 1 skipped in 2 s", "nothing failed, 0 skipped"])


@pytest.mark.parametrize(
    ("status", "tests", "text"),
    [
        (1, "1 failed, 2 passed in 2 s", "pytest -m cuda: FAILED (exit status 1): 1 failed, 2 passed in 2 s"),
        (3, "1 passed in 2 s", "pytest -m cuda: FAILED (exit status 3): 1 passed in 2 s"),  # pytest's own error
        (0, "9 skipped in 2 s", "9 skipped in 2 s"),  # no test ran
    ],
)
def test_what_failed(tmp_path: Path, status: int, tests: str, text: str) -> None:
    ended, summary = run(tmp_path, "test", tests=tests, status=status)
    assert ended == 1
    assert text in summary
    assert summary.endswith("something FAILED\n")


def test_nothing_to_run_on(tmp_path: Path) -> None:
    status, summary = run(tmp_path, gpu=False)
    assert status == 3
    assert summary.endswith("nothing was run\n")


def test_wrong_usage(tmp_path: Path) -> None:
    status, text = run(tmp_path, "tset")
    assert status == 2
    assert text.startswith("usage: bench/gpu_check.sh OUT ")
