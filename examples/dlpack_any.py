"""Any array that supports DLPack works: here one of array-api-strict, which knows nothing of this package."""

import array_api_strict as xp
import numpy as np

import terngrad_kernels as tk

gradient = xp.asarray(np.random.default_rng(0).standard_normal(100_000, dtype=np.float32))
packed = tk.encode(gradient, seed=1, clip=None)
decoded = xp.from_dlpack(tk.decode(packed))  # results support DLPack, too
bias = float(xp.mean(decoded - gradient))
print(f"mean error {bias:.4f}, {packed.layout.ratio:.1f} x smaller")
