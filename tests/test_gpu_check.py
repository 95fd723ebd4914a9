"""`bench/gpu_check.sh` says what passed, with stand-ins for the GPU and for what it runs."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "bench" / "gpu_check.sh"
#: Of python3's arguments, and what it then does.
Programs = dict[str, str]


def run(folder: Path, *stages: str, python: Programs | None = None, gpu: bool = True) -> tuple[int, str, str]:
    """Run the script with a python3 that does `python`; return its status, the summary and what was run."""
    programs, ran = folder / "bin", folder / "ran"
    programs.mkdir()
    cases = "".join(f"*'{arguments}'*) {does};; " for arguments, does in (python or {}).items())
    card = 'case "$*" in *compute_cap*) echo 9.0;; *) echo a card;; esac'
    for name, text in {
        "nvidia-smi": card if gpu else "exit 9",
        "nvcc": "",
        "compute-sanitizer": f'echo "sanitizer $*" >>{ran}; echo "no errors"',
        "ncu": f'echo "ncu $*" >>{ran}',
        "python3": f'echo "$*" >>{ran}; case "$*" in {cases} esac',
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [SCRIPT, folder / "out", *stages], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    summary = folder / "out" / "summary.txt"
    return (
        done.returncode,
        summary.read_text() if summary.exists() else done.stderr,
        ran.read_text() if ran.exists() else "",
    )


def test_all_passed(tmp_path: Path) -> None:
    status, summary, ran = run(tmp_path, "build", "test", python={"-m pytest": "echo '3 passed, 1 skipped in 2 s'"})
    assert status == 0
    assert "pytest -m cuda: passed: 3 passed, 1 skipped in 2 s" in summary
    assert summary.endswith("nothing failed, 0 skipped\n")
    assert "TERNGRAD_KERNELS_CUDA_ARCHITECTURES=90-real" in ran


@pytest.mark.parametrize(
    ("does", "text"),
    [
        ("echo '1 failed, 2 passed in 2 s'; exit 1", "FAILED (exit status 1): 1 failed, 2 passed in 2 s"),
        ("echo '1 passed in 2 s'; exit 3", "FAILED (exit status 3): 1 passed in 2 s"),  # pytest's own error
        ("echo '9 skipped in 2 s'", "FAILED: no test passed"),
    ],
)
def test_what_failed(tmp_path: Path, does: str, text: str) -> None:
    status, summary, _ = run(tmp_path, "test", python={"-m pytest": does})
    assert status == 1
    assert f"pytest -m cuda: {text}" in summary
    assert summary.endswith("something FAILED\n")


def test_a_failure_keeps_nothing_else_from_being_run(tmp_path: Path) -> None:
    python = {"-m pytest": "echo '1 failed in 2 s'; exit 1", "gpu_check.py short": "exit 1", "gpu_bench.py": "exit 77"}
    status, summary, ran = run(tmp_path, python=python)
    assert status == 1
    assert "short: FAILED" in summary
    assert "bench: skipped" in summary
    for tool in ("memcheck", "racecheck", "initcheck", "synccheck"):
        assert f"{tool}: passed: no errors" in summary
        assert f"--tool {tool}" in ran


def test_no_stage_without_a_build(tmp_path: Path) -> None:
    status, summary, ran = run(tmp_path, "build", "short", python={"-m pip": "exit 1"})
    assert status == 1
    assert "build: FAILED (exit status 1)" in summary
    assert "gpu_check.py" not in ran


def test_stages_of_bits_run_beside_each_other_and_others_alone(tmp_path: Path) -> None:
    python = {stage: f"sleep 1; echo {stage} ended" for stage in ("exhaustive", "gloo", "gpu_check.py ddp")}
    start = time.monotonic()
    status, summary, _ = run(tmp_path, "exhaustive", "gloo", "ddp", "profile", python={"-m pip": "", **python})
    assert status == 0
    assert time.monotonic() - start >= 2
    names = [line.partition(":")[0] for line in summary.splitlines()]
    assert names.index("one process, NCCL") > max(
        names.index("2^32 float32 patterns"), names.index("two processes on one card, gloo")
    )
    assert names[-2] == "ncu"
    log = (tmp_path / "out" / "checks.log").read_text()
    assert "[2^32 float32 patterns] exhaustive ended\n" in log
    assert "[two processes on one card, gloo] gloo ended\n" in log


def test_what_comes_back_is_limited(tmp_path: Path) -> None:
    """All stages together leave 8 files at the most (gpu_bench.py has two of its own), and none is large."""
    stages = ("build", "short", "test", "sanitize", "bench", "profile", "exhaustive", "gloo", "ddp")
    long = "seq 900000; echo '1 passed'"
    _, summary, _ = run(tmp_path, *stages, python={"-m pytest": long})
    assert summary.endswith("nothing failed, 0 skipped\n")
    files = list((tmp_path / "out").iterdir())
    assert len(files) <= 8 - 2
    assert max(file.stat().st_size for file in files) < 2_100_000
    assert (tmp_path / "out" / "test.log").read_text().endswith("1 passed\n")


def test_nothing_to_run_on(tmp_path: Path) -> None:
    status, summary, _ = run(tmp_path, gpu=False)
    assert status == 3
    assert summary.endswith("nothing was run\n")


def test_wrong_usage(tmp_path: Path) -> None:
    status, text, _ = run(tmp_path, "tset")
    assert status == 2
    assert text.startswith("usage: bench/gpu_check.sh OUT ")
