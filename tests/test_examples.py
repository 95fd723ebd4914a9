"""The programs in examples/ run as they stand, and come to where they should."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

#: What each program that trains needs, beside this package. Those of the frontends and of C have tests of their own.
NEEDS = {
    "numpy_workers": "numpy",
    "torch_all_gather": "torch",
    "jax_jit": "jax",
    "tensorflow_workers": "tensorflow",
    "paddle_workers": "paddle",
    "dlpack_any": "array_api_strict",
}


#: The same of programs that train on digits for longer than tests do.
ON_DIGITS = {
    "jax_data_parallel": "jax",
    "local_sgd": "torch",
    "parameter_server": "torch",
    "tensorflow_data_parallel": "tensorflow",
}


def run(name: str, *arguments: str) -> str:
    need = {**NEEDS, **ON_DIGITS}[name]
    if importlib.util.find_spec(need) is None:
        pytest.skip(f"{need} is not installed")
    command = [sys.executable, "-W", "ignore", EXAMPLES / f"{name}.py", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", [name for name in NEEDS if name != "dlpack_any"])
def test_training_comes_near(name: str) -> None:
    """From a distance of 1. Gradients that say nothing would leave it there, or take it further away."""
    found = re.search(r"distance (\d\.\d+)", run(name))
    assert found
    assert float(found[1]) < 0.2


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("jax_data_parallel", "--strategy sum --steps 50 --error-feedback"),
        ("parameter_server", "--down counts --workers 2 --steps 50"),
        ("parameter_server", "--down trits --workers 2 --steps 50"),
        ("local_sgd", "--workers 2 --rounds 8 --inner-steps 5"),
        ("tensorflow_data_parallel", "--replicas 2 --steps 50"),
    ],
)
def test_digits_are_learnt(name: str, arguments: str, tmp_path: Path) -> None:
    """Shorter than the programs do by themselves. They compare the workers' parameters bit by bit."""
    pytest.importorskip("mlxtend")
    found = re.search(r"accuracy (\d+\.\d)%", run(name, *arguments.split(), "--json", str(tmp_path / "result.json")))
    assert found
    assert float(found[1]) > 50  # of 10 classes
    assert json.loads((tmp_path / "result.json").read_text())["accuracy"] > 0.5


def test_any_array_that_speaks_dlpack() -> None:
    """The mean of 100,000 errors, each of a deviation below sqrt(4.5 * 0.8) = 1.9: 0.04 is 6.6 deviations."""
    found = re.search(r"mean error (-?\d\.\d+), 16\.0 x", run("dlpack_any"))
    assert found
    assert abs(float(found[1])) < 0.04


def test_no_program_is_forgotten() -> None:
    elsewhere = {"frontend", "terngrad_frontend", "grace_frontend", "ddp_mnist", "fsdp_transformer"}
    elsewhere |= {"cupy_workers"}  # which needs a GPU
    assert {path.stem for path in EXAMPLES.glob("*.py")} - elsewhere == {*NEEDS, *ON_DIGITS}
