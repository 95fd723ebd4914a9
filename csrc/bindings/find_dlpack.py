"""Print where dlpack.h of an installed package lies, without importing the package (which may load large libraries)."""

import importlib.util
import pathlib
import sys

PLACES = (("tvm_ffi", "include/dlpack/dlpack.h"), ("torch", "include/ATen/dlpack.h"))

for package, header in PLACES:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        continue
    path = pathlib.Path(spec.origin).parent / header
    if path.is_file():
        print(path.as_posix())
        sys.exit(0)
sys.exit(1)
