"""The functions of wenwei202/terngrad on our kernels: least squares with four workers. Only the first import is new."""

import numpy as np

from terngrad_kernels.frontends import terngrad as bingrad_common

WORKERS, STEPS, RATE = 4, 300, 0.05

bingrad_common.manual_seed(1)  # without it each run draws different bits; in a cluster: base + rank
rng = np.random.default_rng(0)
truth = {"weights": rng.standard_normal((64, 8)).astype(np.float32), "bias": np.ones(8, np.float32)}
model = {name: np.zeros_like(value) for name, value in truth.items()}
sent = 0

for _ in range(STEPS):
    towers = []
    for _ in range(WORKERS):
        x = rng.standard_normal((32, 64)).astype(np.float32)
        error = x @ (model["weights"] - truth["weights"]) + (model["bias"] - truth["bias"])
        grads_and_vars = [(x.T @ error / len(x), "weights"), (error.mean(axis=0), "bias"), (None, "frozen")]
        towers.append(bingrad_common.clip_gradients_by_stddev(grads_and_vars, clip_factor=2.5))
    scalers = bingrad_common.max_scalers([bingrad_common.gradient_binarizing_scalers(tower, 0.0) for tower in towers])
    received = []
    for tower in towers:
        codes = bingrad_common.stochastical_binarize_gradients(tower, scalers)
        message, shapes = bingrad_common.encode_to_ternary_gradients(codes, get_shape=True)
        sent += sum(encoded.nbytes for encoded, _ in message if encoded is not None)
        received.append(bingrad_common.decode_from_ternary_gradients(message, scalers, shapes))
    for gradient, name in bingrad_common.average_gradients(received):
        if gradient is not None:
            model[name] -= RATE * gradient

distance = np.abs(model["weights"] - truth["weights"]).max()
print(f"largest error of a weight {distance:.3f}; sent {sent} bytes, {4 * 520 * WORKERS * STEPS} as float32")
assert distance < 0.2
