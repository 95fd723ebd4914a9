"""Four workers fit a linear model with ternary gradients. NumPy only."""

import numpy as np

import terngrad_kernels as tk

WORKERS, STEPS = 4, 200
rng = np.random.default_rng(0)
truth = rng.standard_normal(1000, dtype=np.float32)
weights = np.zeros_like(truth)

for step in range(STEPS):
    messages = []
    for worker in range(WORKERS):
        x = rng.standard_normal((64, truth.size), dtype=np.float32)
        gradient = x.T @ (x @ (weights - truth)) / len(x)
        messages.append(tk.encode(gradient, seed=worker, offset=step))  # what the worker would send
    weights -= 0.02 * tk.decode_sum(messages, weights=[1 / WORKERS] * WORKERS)

print(
    f"distance {np.linalg.norm(weights - truth) / np.linalg.norm(truth):.3f}, {messages[0].layout.ratio:.1f} x smaller"
)
