"""What averaging a gradient costs: the model behind `terngrad_kernels.torch.recommend` and ``bench/network/model.py``.

Of each bucket, kernels and link work in turn, in `stages`; of several buckets, one is on the link while kernels work on
another (`seconds`). Formulas and what they leave out are in ``docs/performance-model.md``.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

from .averaging import ring_bytes
from .layout import COUNTS, DTYPES, Layout
from .packed import counts_for

#: DistributedDataParallel's buckets, in bytes.
BUCKET_BYTES = 25 << 20
#: Ranks up to which `terngrad_kernels.torch` sends to each other rank itself over gloo, a Python call each.
MOST_DIRECT = 16

STRATEGIES = ("float32", "gather", "sum", "requantize")

#: Of a step's computing, the forward pass.
FORWARD = 1 / 3


@dataclass(frozen=True)
class Kernels:
    """Seconds an element: to encode, to decode one message, to add one more to it; to round to half and back.

    A rank whose cores work for `share` ranks takes so many times as long. `call`: seconds that a stage takes whatever
    its length. `beside`: whether they run beside what the link needs of a processor; where they use all cores that a
    rank has, the threads that send and receive wait for them.
    """

    encode: float
    decode: float
    add: float
    cast: float = 0.0
    share: float = 1.0
    call: float = 0.0
    beside: bool = False


@dataclass(frozen=True)
class Link:
    """Bits a second that each rank sends, and seconds until a message of no length is there."""

    bandwidth: float
    latency: float = 0.0

    def seconds(self, nbytes: float, messages: int) -> float:
        """Of so many bytes sent, in messages of which each is waited for before the next."""
        return 8 * nbytes / self.bandwidth + messages * self.latency


@dataclass(frozen=True)
class Stage:
    """A part of an exchange that needs the link, or the kernels."""

    on_link: bool
    seconds: float
    sent: float = 0.0


def stages(
    strategy: str,
    elements: int,
    ranks: int,
    link: Link,
    kernels: Kernels,
    *,
    packing: str = "two_bit",
    dtype: str = "float32",
    carried: int = 0,
) -> list[Stage]:
    """Return what one bucket goes through.

    Parameters
    ----------
    strategy : str
        One of `STRATEGIES`; "float32": plain averaging, in `dtype`. With dtype "float16", the gradients are of
        float32 and rounded on the way.
    elements, ranks : int
        Of the bucket; of the group.
    link, kernels : Link, Kernels
        What each rank has.
    packing : str
        Of the ternary elements.
    carried : int
        Of the elements, those that ride along as float32.
    """
    others = ranks - 1
    trits = Layout([(elements - carried,)], packing=packing).nbytes + 4 * carried
    packed = min(ranks, COUNTS["counts16"])
    counts = Layout([(elements - carried,)], packing=counts_for(packed)).nbytes + 4 * carried
    # A direct exchange waits once, a ring for each other rank.
    waits = min(others, 1) if ranks <= MOST_DIRECT else others

    def over(nbytes: float, messages: int) -> Stage:
        return Stage(True, link.seconds(nbytes, messages), nbytes)

    def work(seconds_an_element: float) -> Stage:
        return Stage(False, seconds_an_element * elements * kernels.share + kernels.call)

    summed = kernels.decode + others * kernels.add
    if strategy == "float32":
        cast = [work(kernels.cast / 2)] if dtype == "float16" and kernels.cast else []
        return [*cast, over(ring_bytes(DTYPES[dtype] * elements, ranks), 2 * others), *cast]
    if strategy == "gather":
        return [work(kernels.encode), over(others * trits, waits), work(summed)]
    shards = over(others * trits / ranks, waits)
    if strategy == "requantize":
        return [work(kernels.encode), shards, work((summed + kernels.encode) / ranks), shards, work(kernels.decode)]
    # The scales are about half of an encoding. They go as messages do, or in an all-reduce.
    scales = waits if ranks <= MOST_DIRECT else 2 * others
    half = work(kernels.encode / 2)
    back = over(others * counts / ranks, waits)
    return [half, over(0, scales), half, shards, work(kernels.add), back, work(kernels.decode)]


def seconds(
    buckets: Sequence[Sequence[Stage]], computing: Sequence[float], forward: float = 0.0, *, beside: bool = False
) -> float:
    """Return when the last bucket's last stage ends, and the computing.

    Parameters
    ----------
    buckets : sequence of sequence of Stage
        In the order in which they come.
    computing : sequence of float
        Seconds of the backward pass before each bucket is there. Its first stage, where that is one of kernels, holds
        the backward pass up.
    forward : float
        Seconds before that.
    beside : bool
        Whether kernels run beside the link.
    """
    free = {True: 0.0, False: 0.0}  # when the link, and the kernels, are
    last = forward
    # Ready at, bucket, stage; the bucket's first stage follows the backward pass that made it.
    waiting = [(forward + computing[0], 0, 0)] if buckets else []
    while waiting:
        ready, bucket, at = heapq.heappop(waiting)
        row = buckets[bucket]
        backward = ready
        if at < len(row):
            stage = row[at]
            end = max(ready, free[stage.on_link]) + stage.seconds
            free[stage.on_link] = end
            if not beside:
                free[not stage.on_link] = end
            last = max(last, end)
            heapq.heappush(waiting, (end, bucket, at + 1))
            backward = ready if stage.on_link else end
        if at == 0 and bucket + 1 < len(buckets):
            heapq.heappush(waiting, (backward + computing[bucket + 1], bucket + 1, 0))
        last = max(last, ready)
    return last


def predict(
    strategy: str,
    sizes: Sequence[int],
    ranks: int,
    link: Link,
    kernels: Kernels,
    *,
    compute: float = 0.0,
    packing: str = "two_bit",
    dtype: str = "float32",
    carried: Sequence[int] | None = None,
) -> float:
    """Return the seconds of a training step, or with no `compute` of an exchange that nothing hides.

    Parameters
    ----------
    sizes, carried : sequence of int
        Elements of each bucket; of these, those that ride along as float32.
    compute : float
        Seconds of the computing of a step, of which the buckets share the backward pass by their elements.

    The rest as in `stages`.
    """
    known = [0] * len(sizes) if carried is None else carried
    rows = [
        stages(strategy, size, ranks, link, kernels, packing=packing, dtype=dtype, carried=its)
        for size, its in zip(sizes, known, strict=True)
    ]
    backward = compute * (1 - FORWARD) / max(sum(sizes), 1)
    if ranks == 1:
        rows = [[] for _ in rows]
    return seconds(rows, [backward * size for size in sizes], compute * FORWARD, beside=kernels.beside)


def split(elements: int, element_bytes: int = 4) -> list[int]:
    """Return the elements of DistributedDataParallel's buckets, where layers may end anywhere."""
    most = BUCKET_BYTES // element_bytes
    many = max(1, math.ceil(elements / most))
    return [elements // many + (i < elements % many) for i in range(many)]
