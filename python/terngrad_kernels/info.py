"""Facts about this build and the machine that it runs on."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np

from . import _core

__all__ = ["WIRE_FORMAT_VERSION", "build_info", "get_cmake_dir", "get_include", "get_library"]

#: Version of the bytes: contract section 7, docs/format.md.
WIRE_FORMAT_VERSION = 1


def build_info() -> dict[str, Any]:
    """Describe the build and the machine.

    Returns
    -------
    dict
        version, compiler, instruction_sets (built), instruction_sets_here (those that run here), instruction_set (in
        use), cuda (toolkit, architectures, driver and its error; None in a build without CUDA), devices (found),
        threads, wire_format_version, python and numpy.
    """
    cuda = _core.cuda_info()
    names = [
        f"cuda:{i} {device['name']} ({device['compute_capability']}, {device['memory'] / 2**30:.0f} GiB)"
        for i, device in enumerate(cuda["devices"])
    ]
    return {
        "version": _core.VERSION,
        "wire_format_version": WIRE_FORMAT_VERSION,
        "compiler": _core.COMPILER,
        "instruction_sets": _core.built_isas(),
        "instruction_sets_here": _core.isas(),
        "instruction_set": _core.isa(),
        "cuda": {name: cuda[name] for name in ("toolkit", "architectures", "driver", "error")}
        if cuda["built"]
        else None,
        "devices": ["cpu", *names],
        "threads": _core.get_num_threads(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


# In the folder of the compiled module, which in an editable install is not that of the sources.
_INSTALLED = Path(_core.__file__).resolve().parent


def _installed(*parts: str) -> str:
    path = _INSTALLED.joinpath(*parts)
    if not path.exists():
        raise FileNotFoundError(f"{path}: not part of this installation")
    return str(path)


def get_include() -> str:
    """Return the folder of terngrad_kernels.h, the C interface (docs/c_api.md).

    Returns
    -------
    str
        Folder to pass to the compiler by ``-I``.
    """
    return _installed("include")


def get_library() -> str:
    """Return the path of the shared library that terngrad_kernels.h declares and that the Python module uses.

    Returns
    -------
    str
        Path of the file to link with or to load. Programs that link with it by path need its folder in their rpath.
    """
    return _installed("libterngrad_kernels.so")


def get_cmake_dir() -> str:
    """Return the folder of the CMake package, which has the target ``terngrad_kernels::terngrad_kernels``.

    Returns
    -------
    str
        Folder to pass by ``-Dterngrad_kernels_DIR=``, so that ``find_package(terngrad_kernels CONFIG)`` finds the
        package.
    """
    return _installed("cmake")
