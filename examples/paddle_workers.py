"""Four workers fit a linear model with ternary gradients. Paddle, dynamic mode."""

import paddle

import terngrad_kernels as tk

WORKERS, STEPS = 4, 200
paddle.seed(0)
truth = paddle.randn([1000])
weights = paddle.zeros([1000])
weights.stop_gradient = False

for step in range(STEPS):
    messages = []
    for worker in range(WORKERS):
        x = paddle.randn([64, 1000])
        loss = ((x @ (weights - truth)) ** 2).mean() / 2
        (gradient,) = paddle.grad(loss, [weights])
        messages.append(tk.encode(gradient, seed=worker, offset=step))
    mean = tk.decode_sum(messages, weights=[1 / WORKERS] * WORKERS)
    with paddle.no_grad():
        weights.set_value(weights - 0.02 * mean)

print(f"distance {float((weights - truth).norm() / truth.norm()):.3f}, {messages[0].layout.ratio:.1f} x smaller")
