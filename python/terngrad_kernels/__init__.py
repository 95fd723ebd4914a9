"""Native kernels that quantise gradients to {-1, 0, +1} for distributed training: TernGrad, the same bits everywhere.

::

    import terngrad_kernels as tk

    packed = tk.encode(grad, seed=rank, offset=step)   # NumPy, PyTorch, JAX, CuPy, TensorFlow, Paddle
    packed.data                                        # one uint8 array: send it with any collective
    grad_hat = tk.decode(packed)                       # E[grad_hat] = clipped grad
    mean = tk.decode_sum(from_all_workers, weights=[1 / n] * n)

W. Wen, C. Xu, F. Yan, C. Wu, Y. Wang, Y. Chen, H. Li: TernGrad: Ternary Gradients to Reduce Communication in
Distributed Deep Learning. NIPS 2017, arXiv:1705.07878.
"""

import logging

from ._core import VERSION as __version__
from ._core import get_num_threads, set_num_threads
from .info import build_info, get_cmake_dir, get_include, get_library
from .layout import Layout
from .operations import (
    clip,
    decode,
    decode_sum,
    encode,
    pack,
    repack,
    scales,
    sum_trits,
    ternarize,
    unpack,
    validate,
)
from .packed import CorruptMessage, Counts, Packed, Scales
from .serialization import from_bytes, to_bytes

__all__ = [
    "CorruptMessage",
    "Counts",
    "Layout",
    "Packed",
    "Scales",
    "__version__",
    "build_info",
    "clip",
    "decode",
    "decode_sum",
    "encode",
    "from_bytes",
    "get_cmake_dir",
    "get_include",
    "get_library",
    "get_num_threads",
    "pack",
    "repack",
    "scales",
    "set_num_threads",
    "sum_trits",
    "ternarize",
    "to_bytes",
    "unpack",
    "validate",
]

logging.getLogger("terngrad_kernels").addHandler(logging.NullHandler())
