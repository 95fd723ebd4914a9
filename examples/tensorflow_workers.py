"""Four workers fit a linear model with ternary gradients. TensorFlow, eager."""

import tensorflow as tf

import terngrad_kernels as tk

WORKERS, STEPS = 4, 200
truth = tf.random.stateless_normal((1000,), seed=(0, 0))
weights = tf.Variable(tf.zeros_like(truth))

for step in range(STEPS):
    messages = []
    for worker in range(WORKERS):
        x = tf.random.stateless_normal((64, 1000), seed=(1 + worker, step))
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(tf.linalg.matvec(x, weights - truth))) / 2
        messages.append(tk.encode(tape.gradient(loss, weights), seed=worker, offset=step))
    weights.assign_sub(0.02 * tk.decode_sum(messages, weights=[1 / WORKERS] * WORKERS))

print(f"distance {float(tf.norm(weights - truth) / tf.norm(truth)):.3f}, {messages[0].layout.ratio:.1f} x smaller")
