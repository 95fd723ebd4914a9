"""What one would use instead, under pytest-benchmark."""

from typing import Any

import numpy as np
import pytest

from terngrad_kernels.bench.cases import LARGE
from terngrad_kernels.bench.measure import CpuPlace
from terngrad_kernels.bench.peers import PEERS, Peer, built


@pytest.mark.parametrize("peer", [peer for peer in PEERS if "cpu" in peer.devices], ids=lambda peer: peer.name)
def test_peer(benchmark: Any, peer: Peer) -> None:
    reasons: list[str] = []
    for _, drawing in built(CpuPlace(), reasons.append, [peer]):
        some = np.random.default_rng(0).standard_normal(1 << 22, dtype=np.float32)
        x = drawing.array(np.resize(some, LARGE))
        benchmark.extra_info.update(elements=LARGE, says=peer.says)
        benchmark(drawing.encode, x)
        return
    pytest.skip(reasons[0])
