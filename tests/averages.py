"""What averages over workers are compared with, in PyTorch and JAX: one process, and NumPy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

import terngrad_kernels as tk

#: With error feedback.
CLIP = 1.5


class Alone:
    """The averages of all workers in one process, by the public functions on NumPy arrays."""

    shapes: Sequence[tuple[int, ...]]

    def __init__(self, strategy: str, packing: str, world: int, error_feedback: bool = False) -> None:
        self.strategy, self.packing, self.world = strategy, packing, world
        self.error_feedback = error_feedback
        self.clip = CLIP if error_feedback else 2.5
        self.lost: dict[Any, Any] = {}

    def packings(self, layers: Sequence[int]) -> list[str]:
        shapes = [self.shapes[layer] for layer in layers]
        return ["float32" if len(s) < 2 or math.prod(s) < 512 else self.packing for s in shapes]

    def compensated(self, key: Any, x: Any) -> Any:
        if not self.error_feedback:
            return x
        return x + self.lost.get(key, np.zeros_like(x))

    def keep(self, key: Any, x: Any, packed: tk.Packed) -> None:
        if self.error_feedback:
            self.lost[key] = tk.decode(packed, out=x.copy(), weight=-1.0, accumulate=True)

    def average(self, layers: Sequence[int], step: int, first: int, xs: Sequence[Any]) -> Any:
        """Of a bucket: one flat array a rank."""
        world, weights = self.world, [1 / self.world] * self.world
        sizes = [(math.prod(self.shapes[layer]),) for layer in layers]
        shards = world if self.strategy == "requantize" else 1
        layout = tk.Layout(sizes, xs[0].dtype, self.packings(layers), shards=shards)
        bucket = tuple(layers)
        xs = [self.compensated((bucket, rank), x) for rank, x in enumerate(xs)]
        scales: list[Any] = [None] * world
        if self.strategy == "sum":
            own = [tk.scales(x, clip=self.clip, layout=layout) for x in xs]
            shared = np.maximum.reduce([each.scale for each in own])
            scales = [each._replace(scale=shared) for each in own]
        draw = {"offset": step, "layer": first}
        messages = [
            tk.encode(x, clip=self.clip, seed=rank, scales=scales[rank], layout=layout, **draw)
            for rank, x in enumerate(xs)
        ]
        for rank, (x, message) in enumerate(zip(xs, messages, strict=True)):
            self.keep((bucket, rank), x, message)
        if self.strategy == "gather":
            return tk.decode_sum(messages, weights=weights)
        if self.strategy == "sum":
            return tk.decode(tk.sum_trits(messages), weight=1 / world)
        seconds = []
        for rank, part in enumerate(zip(*(np.split(message.data, world) for message in messages), strict=True)):
            own_part = [tk.Packed(layout.shard(rank), data) for data in part]
            if not self.error_feedback:
                seconds.append(tk.repack(own_part, seed=rank, weights=weights, **draw).data)
                continue
            key = (bucket, rank, "second")
            mean = self.compensated(key, tk.decode_sum(own_part, weights=weights))
            packed = tk.encode(mean, clip=CLIP, seed=rank + world, layout=layout.shard(rank), **draw)
            self.keep(key, mean, packed)
            seconds.append(packed.data)
        return tk.decode(tk.Packed(layout, np.concatenate(seconds)))
