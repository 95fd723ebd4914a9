"""tests/lost_device.py: with a stand-in for PyTorch whose device fails from some test on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = """
import sys
from types import SimpleNamespace
import pytest

def synchronize():
    if lost:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\\nmore")

lost = []
sys.modules["torch"] = SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: True, synchronize=synchronize))

@pytest.mark.cuda
@pytest.mark.parametrize("n", range(6))
def test_on_a_device(n):
    if n == 2:
        lost.append(n)
        assert not lost, "what the test found"
    synchronize()

def test_elsewhere():
    pass
"""


def run(folder: Path, *options: str) -> tuple[int, str]:
    (folder / "test_it.py").write_text(SOURCE)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = cuda\n")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "pytest", "-p", "lost_device", "-p", "no:cacheprovider", *options, folder]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout


def test_it_ends(tmp_path: Path) -> None:
    status, text = run(tmp_path)
    assert status == 1
    assert "what the test found" in text
    assert "test_on_a_device[2]: the device is lost: CUDA error: an illegal memory access was encountered" in text
    assert "1 failed, 2 passed" in text


def test_another_process_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("xdist")
    status, text = run(tmp_path, "-n", "1")
    assert status == 1
    assert "what the test found" in text
    assert "6 passed" in text.splitlines()[-1]
