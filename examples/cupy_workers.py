"""Four workers fit a linear model with ternary gradients. CuPy, on a GPU."""

import cupy as cp

import terngrad_kernels as tk

WORKERS, STEPS = 4, 200
cp.random.seed(0)
truth = cp.random.standard_normal(1000, dtype=cp.float32)
weights = cp.zeros_like(truth)

for step in range(STEPS):
    messages = []
    for worker in range(WORKERS):
        x = cp.random.standard_normal((64, truth.size), dtype=cp.float32)
        gradient = x.T @ (x @ (weights - truth)) / len(x)
        messages.append(tk.encode(gradient, seed=worker, offset=step))
    weights -= 0.02 * tk.decode_sum(messages, weights=[1 / WORKERS] * WORKERS)

distance = float(cp.linalg.norm(weights - truth) / cp.linalg.norm(truth))
print(f"distance {distance:.3f}, {messages[0].layout.ratio:.1f} x smaller")
