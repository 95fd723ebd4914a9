"""bench/network: real bytes on shaped links between network namespaces, and the model of what an exchange costs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"
#: The exit status of a machine that cannot have such links.
SKIPPED = 77


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Rows of the short form, by their case."""
    dist = pytest.importorskip("torch.distributed")
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("this build of PyTorch has no gloo")
    path = tmp_path_factory.mktemp("network") / "network.json"
    command = [sys.executable, "-W", "ignore", BENCH / "network" / "run.py", "--quick", "--json", path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode == SKIPPED:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    (piece,) = json.loads(path.read_text())["pieces"]
    return {row["case"]: row for row in piece["rows"]}


@pytest.mark.parametrize(
    ("case", "ratio"),
    [("gather two_bit", 16.0), ("sum two_bit", 32 / 3), ("requantize two_bit", 16.0), ("requantize base3", 20.0)],
)
def test_the_bytes_on_the_wire(quick: dict[str, Any], case: str, ratio: float) -> None:
    """Between two workers, by the counters of their interfaces, TCP/IP and gloo's own messages included.

    Those are a part of a small gradient's messages: up to 4.6 % of headers where a frame carries one segment, and some
    kilobytes; a float32 ring's messages are cut later, after the counter.
    """
    row, plain = quick[case], quick["float32"]
    assert row["computed"] <= row["sent"] <= 1.07 * row["computed"] + 4096
    assert plain["computed"] <= plain["sent"] <= 1.07 * plain["computed"] + 4096
    assert 0.9 * ratio < plain["sent"] / row["sent"] < 1.07 * ratio


def test_nothing_was_lost(quick: dict[str, Any]) -> None:
    assert all(row["dropped"] == 0 for row in quick.values())
