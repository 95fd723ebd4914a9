"""The command line: ``python -m terngrad_kernels {info,selftest,demo,bench}``.

Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import terngrad_kernels as tk


def info_lines(info: Mapping[str, Any]) -> list[str]:
    """Lay out nested build information as aligned lines, the parts of a mapping indented below its name."""
    rows: list[tuple[str, str]] = []

    def add(name: str, value: Any, indent: str) -> None:
        label = indent + name.replace("_", " ")
        if isinstance(value, Mapping) and value:
            rows.append((label, ""))
            for key, part in value.items():
                add(str(key), part, indent + "  ")
        elif isinstance(value, (list, tuple)) and any(isinstance(part, Mapping) for part in value):
            rows.append((label, ""))
            for number, part in enumerate(value):
                add(str(number), part, indent + "  ")
        elif isinstance(value, (list, tuple)):
            rows.append((label, ", ".join(map(str, value)) or "none"))
        else:
            rows.append((label, "none" if value is None or value == {} else str(value)))

    for key, value in info.items():
        add(str(key), value, "")
    width = max((len(label) for label, _ in rows), default=0)
    return [f"{label:<{width}}  {text}".rstrip() for label, text in rows]


def info(as_json: bool) -> int:
    """Print what this build is and what it runs on."""
    build = tk.build_info()
    print(json.dumps(build, indent=2, default=str) if as_json else "\n".join(info_lines(build)))
    return 0


def selftest() -> int:
    """Check the kernels of every instruction set present against the golden vectors."""
    from . import selftest as module

    return 1 if module.run() else 0


def demo(arguments: Sequence[str]) -> int:
    """Train with ternary gradients and compare; the demo reads its own arguments."""
    from . import demo as module

    return module.main(arguments)


def bench(arguments: Sequence[str]) -> int:
    """Compare the kernels with their bounds and peers; the command reads its own arguments."""
    from .bench import command

    return command.main(arguments)


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line, without the options of demo and bench, which their modules read."""
    parser = argparse.ArgumentParser(
        prog="python -m terngrad_kernels",
        description="TernGrad encode and decode kernels: information and checks.",
    )
    parser.add_argument("--version", action="version", version=f"terngrad_kernels {tk.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    about = "show version, compiler, instruction sets and devices"
    commands.add_parser("info", help=about, description=about).add_argument(
        "--json", action="store_true", help="as JSON"
    )
    about = "check the kernels of every instruction set present against golden vectors"
    commands.add_parser("selftest", help=about, description=about)
    commands.add_parser("demo", add_help=False, help="train on MNIST digits with ternary gradients")
    commands.add_parser("bench", add_help=False, help="compare the kernels with their bounds and their peers")
    return parser


def run(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    parser = argument_parser()
    arguments, rest = parser.parse_known_args(argv)
    if arguments.command in ("demo", "bench"):
        return (demo if arguments.command == "demo" else bench)(rest)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return info(arguments.json) if arguments.command == "info" else selftest()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; an interrupt or a reader that went away ends it without a traceback.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; those of the process if None.

    Returns
    -------
    int
        Exit status: 0, 1 (failed, or nobody read the output) or 130 (interrupted). Wrong usage exits with 2.
    """
    try:
        status = run(argv)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The interpreter flushes once more at exit: give it a place that takes everything.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
