"""A frontend in 40 lines: gradients to bytes and back, with shared scales as in the paper, on any backend."""

from typing import Any

import numpy as np

import terngrad_kernels
from terngrad_kernels import Layout, Packed, Scales
from terngrad_kernels.frontends import Backend


class Codec:
    """One worker's encoder: `rank` is its seed, so that its random bits are its own."""

    def __init__(self, shapes: list[tuple[int, ...]], rank: int, backend: Backend = terngrad_kernels) -> None:
        self.layout = Layout(shapes, form="list")  # the same on all workers, so no message needs to carry it
        self.rank, self.backend = rank, backend

    def measure(self, gradients: list[Any]) -> Scales:
        """Scale and limit of each layer; `scale` goes through an all-reduce with max."""
        return self.backend.scales(gradients, layout=self.layout)

    def encode(self, gradients: list[Any], scales: Scales, step: int) -> Any:
        """One uint8 array, for any collective."""
        return self.backend.encode(gradients, seed=self.rank, offset=step, scales=scales, layout=self.layout).data

    def mean(self, received: list[Any]) -> list[Any]:
        """The mean of all workers' arrays, in one pass: the same bits on every worker."""
        messages = [Packed(self.layout, data) for data in received]
        return list(self.backend.decode_sum(messages, weights=[1 / len(messages)] * len(messages)))


if __name__ == "__main__":
    workers = [Codec([(300, 100), (100,)], rank) for rank in range(4)]
    own = [[np.full(shape, w.rank, np.float32) for shape in w.layout.shapes] for w in workers]
    scales = [w.measure(gradients) for w, gradients in zip(workers, own, strict=True)]
    shared = np.max([s.scale for s in scales], axis=0)  # the all-reduce
    sent = [w.encode(g, s._replace(scale=shared), 0) for w, g, s in zip(workers, own, scales, strict=True)]
    print(*(layer.mean() for layer in workers[0].mean(sent)), sum(data.nbytes for data in sent), "bytes")
