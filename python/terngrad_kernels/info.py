"""What this build is and what it runs on."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np

from . import _core

__all__ = ["WIRE_FORMAT_VERSION", "build_info"]

#: Version of the bytes: contract section 7, docs/format.md.
WIRE_FORMAT_VERSION = 1


def build_info() -> dict[str, Any]:
    """Describe the build and the machine.

    Returns
    -------
    dict
        version, compiler, instruction_sets (built), instruction_sets_here (those that run here), instruction_set (in
        use), cuda (toolkit and architectures, None in a build without), devices (seen), threads, wire_format_version,
        python and numpy.
    """
    return {
        "version": _core.VERSION,
        "wire_format_version": WIRE_FORMAT_VERSION,
        "compiler": _core.COMPILER,
        "instruction_sets": _core.built_isas(),
        "instruction_sets_here": _core.isas(),
        "instruction_set": _core.isa(),
        "cuda": None,
        "devices": ["cpu"],
        "threads": _core.get_num_threads(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
