"""Training with ternary gradients beside training with float32, workers simulated: see docs/convergence.md."""
