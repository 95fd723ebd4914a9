"""Four workers fit a linear model; a whole step with encoding and decoding is one compiled function. JAX."""

import jax
import jax.numpy as jnp

import terngrad_kernels as tk

WORKERS, STEPS = 4, 200
truth = jax.random.normal(jax.random.key(0), (1000,))


def loss(weights: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.mean((x @ (weights - truth)) ** 2) / 2


@jax.jit
def train(weights: jax.Array, step: int) -> jax.Array:
    messages = []
    for worker in range(WORKERS):
        x = jax.random.normal(jax.random.fold_in(jax.random.key(1 + worker), step), (64, truth.size))
        messages.append(tk.encode(jax.grad(loss)(weights, x), seed=worker, offset=step))
    return weights - 0.02 * tk.decode_sum(messages, weights=[1 / WORKERS] * WORKERS)


weights = jnp.zeros_like(truth)
for step in range(STEPS):
    weights = train(weights, step)  # a traced value: a new step does not compile again
print(f"distance {jnp.linalg.norm(weights - truth) / jnp.linalg.norm(truth):.3f}")
