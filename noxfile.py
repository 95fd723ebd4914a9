"""An entry for each habit (CONTRIBUTING.md). What a habit does is in its script in .ci; here it gets an environment."""

import sys
from pathlib import Path

import nox

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["lint", "tests"]
nox.options.reuse_existing_virtualenvs = True

BUILD = nox.project.load_toml("pyproject.toml")["build-system"]["requires"] + ["cmake>=3.24", "ninja>=1.10"]


def with_package(session: nox.Session, *extras: str) -> None:
    """Install the package as users do, with extras."""
    session.install(f".[{','.join(extras)}]" if extras else ".")


@nox.session(venv_backend="none")
def dev(session: nox.Session) -> None:
    """Make .venv, with the package in place: the set-up for working on it."""
    python = ".venv/bin/python"
    if not Path(python).exists():
        session.run(sys.executable, "-m", "venv", ".venv")
    session.run(python, "-m", "pip", "install", "--quiet", *BUILD, "pre-commit", "nox")
    session.run(python, "-m", "pip", "install", "--no-build-isolation", "-e", ".[test,docs]")
    session.run(python, "-m", "pre_commit", "install")


@nox.session(python=["3.10", "3.11", "3.12", "3.13", "3.14"], tags=["tests"])
def tests(session: nox.Session) -> None:
    """The tests; arguments go to pytest."""
    with_package(session, "test")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session(python=["3.14t"])
def threads(session: nox.Session) -> None:
    """The tests of threads without a global interpreter lock."""
    session.install(".", "pytest", "pytest-benchmark", "ml_dtypes", "hypothesis")
    session.run("python", "-X", "gil=0", "-m", "pytest", "tests/test_threads.py", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Formatters and linters."""
    session.run(".ci/lint", external=True)


@nox.session
def types(session: nox.Session) -> None:
    """The strict checks of mypy, and the stub of the compiled module against the module."""
    with_package(session, "test")
    session.run(".ci/typecheck", external=True)


@nox.session
def sanitize(session: nox.Session) -> None:
    """The tests of the compiled core, built with sanitizers; arguments go to pytest."""
    with_package(session, "test")
    session.run(".ci/sanitize", *session.posargs, external=True)


@nox.session
def neon(session: nox.Session) -> None:
    """The NEON kernels, cross-compiled, under qemu."""
    with_package(session, "test")
    session.run(".ci/neon", external=True)


@nox.session
def simde(session: nox.Session) -> None:
    """The AVX-512 kernels on a processor that need not have it."""
    with_package(session, "test")
    session.run(".ci/simde", external=True)


@nox.session
def cuda(session: nox.Session) -> None:
    """The CUDA kernels, compiled, and run on the host."""
    with_package(session, "test")
    session.run(".ci/cuda", external=True)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation, into build/site; --links also follows links to other sites."""
    with_package(session)
    session.run(".ci/docs", *session.posargs, "build/site", external=True)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Mutated messages in a loop; arguments are executions and seed."""
    with_package(session, "test")
    session.run("python", "fuzz/run_plain.py", *(session.posargs or ["200000"]))


@nox.session
def bench(session: nox.Session) -> None:
    """All benchmarks, into the folder that the argument names."""
    session.install(*BUILD)
    with_package(session, "bench")
    session.run("bench/run", *session.posargs, external=True)


@nox.session
def wheel(session: nox.Session) -> None:
    """A wheel and an sdist, tested in a clean environment without a compiler; arguments go to pytest."""
    session.run(".ci/wheel", *session.posargs, external=True)


@nox.session
def wheels(session: nox.Session) -> None:
    """All wheels of a release for this machine's architecture, in containers; needs Docker."""
    session.install("cibuildwheel~=4.3")
    session.run("cibuildwheel", "--output-dir", "dist", *session.posargs)
