"""The backend protocol and its document, the seeds of callers who pass none, and the programs in examples/."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arrays import Array, assert_all_same, assert_same, bucket

import reference as ref
import terngrad_kernels as tk
from terngrad_kernels.frontends import Backend, _draws, manual_seed, terngrad

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"

# ---- the protocol


class ReferenceBackend:
    """Another backend, of NumPy arrays: the reference of the contract under the protocol's names."""

    def scales(self, x: Any, *, clip: Any = 2.5, center: bool = False, layout: Any = None) -> tk.Scales:
        return tk.Scales(*ref.scales(x, clip=clip, center=center))

    def clip(self, x: Any, *, clip: Any = 2.5, center: bool = False, scales: Any = None) -> Any:
        return ref.clip(x, clip=clip, center=center, scales=scales)

    def ternarize(
        self, x: Any, *, clip: Any = 2.5, seed: Any = 0, offset: Any = 0, layer: int = 0, scales: Any = None
    ) -> tuple[Any, Any]:
        return ref.ternarize(x, clip=clip, seed=seed, offset=offset, layer=layer, scales=scales)

    def encode(
        self,
        x: Any,
        *,
        clip: Any = 2.5,
        seed: Any = 0,
        offset: Any = 0,
        layer: int = 0,
        scales: Any = None,
        layout: Any = None,
    ) -> tk.Packed:
        data = ref.encode(x, clip=clip, seed=seed, offset=offset, layer=layer, scales=scales)
        return tk.Packed(layout or tk.Layout([a.shape for a in x], form="list"), data)

    def decode(self, packed: Any, *, out: Any = None, dtype: Any = None, weight: float = 1.0) -> Any:
        return self.decode_sum([packed], weights=[weight])

    def decode_sum(self, messages: Any, *, weights: Any = None, dtype: Any = None) -> Any:
        layout = messages[0].layout
        decoded = ref.decode_sum([message.data for message in messages], layout.sizes, weights=weights)
        return [x.reshape(shape) for x, shape in zip(decoded, layout.shapes, strict=True)]


def test_the_package_is_a_backend() -> None:
    """Statically too: `frontends/__init__.py` assigns the module to a variable of this type."""
    assert isinstance(tk, Backend)
    assert isinstance(ReferenceBackend(), Backend)
    assert not isinstance(np, Backend)


def codec() -> Any:
    return runpy.run_path(str(EXAMPLES / "frontend.py"))["Codec"]


def test_the_example_runs_on_any_backend() -> None:
    """The same bytes from the kernels and from the reference, and decoded on the other side the same mean."""
    shapes = [(30, 70), (9,), ()]
    layers = [[x.reshape(s) for x, s in zip(bucket([2100, 9, 1], seed=w), shapes, strict=True)] for w in (0, 10)]
    means, sent = [], []
    for backend in (tk, ReferenceBackend()):
        workers = [codec()(shapes, rank, backend) for rank in range(2)]
        own = [worker.measure(x) for worker, x in zip(workers, layers, strict=True)]
        shared = np.maximum(own[0].scale, own[1].scale)
        data = [
            worker.encode(x, scales._replace(scale=shared), 7)
            for worker, x, scales in zip(workers, layers, own, strict=True)
        ]
        sent.append(data)
        means.append(workers[1].mean(data))
    assert_all_same(*sent)
    assert_all_same(*means)
    assert [mean.shape for mean in means[0]] == shapes


def test_the_document_shows_the_example_whole() -> None:
    code = (EXAMPLES / "frontend.py").read_text()
    assert len(code.splitlines()) <= 40
    assert f"```python\n{code}```" in (ROOT / "docs" / "backends.md").read_text()


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*frontend.py")), ids=lambda path: path.name)
def test_examples_run(path: Path) -> None:
    if path.name.startswith(("grace", "ddp")):
        pytest.importorskip("torch")
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout


# ---- seeds


@pytest.fixture(autouse=True)
def _restart() -> Iterator[None]:
    manual_seed(None)
    yield
    manual_seed(None)


X = np.linspace(-1, 1, 4096, dtype=np.float32)


def drawn(**words: Any) -> bytes:
    codes: Array = terngrad.stochastical_binarize_gradients([(X, 0)], [1.0], **words)[0][0]
    return codes.tobytes()


def test_no_two_draws_are_alike_by_default() -> None:
    assert len({drawn() for _ in range(20)}) == 20


def test_a_seed_repeats_what_was_drawn() -> None:
    manual_seed(3)
    first = [drawn() for _ in range(3)]
    manual_seed(3)
    assert [drawn() for _ in range(3)] == first
    manual_seed(4)
    assert drawn() not in first
    assert [drawn(seed=3, offset=step) for step in range(3)] == first
    assert drawn(seed=np.array([3, 0], np.uint32), offset=np.array(1)) == first[1]
    manual_seed(None)
    assert drawn() not in first
    # One of the two: the other is the process's.
    manual_seed(3)
    assert drawn(seed=3) == first[0]
    assert drawn(offset=1) == first[1]
    assert drawn() == first[2]


def test_seeds_come_from_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "urandom", lambda n: b"\x01\x02\x03\x04\x05\x06\x07\x88"[:n])
    manual_seed(None)
    assert _draws.process_draws().next() == (0x8807060504030201, 0, 0)


def test_names_are_counted_by_themselves() -> None:
    draws = _draws.Draws(9)
    words = [draws.next(name) for name in ("a", "b", "a", "a", "b")]
    assert [offset for _, offset, _ in words] == [0, 0, 1, 2, 1]
    assert {seed for seed, _, _ in words} == {9}
    assert len({layer for _, _, layer in words}) == 2
    assert all(0 <= layer < 2**31 for _, _, layer in words)


def test_threads_share_the_count() -> None:
    draws = _draws.Draws(9)
    with ThreadPoolExecutor(8) as pool:
        words = list(pool.map(lambda _: draws.next("w"), range(4000)))
    assert sorted(offset for _, offset, _ in words) == list(range(4000))


@pytest.mark.parametrize("seed", [1.0, "1", True, 2**64, -(2**63) - 1])
def test_seeds_are_checked(seed: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="seed: expected"):
        manual_seed(seed)
    assert_same(*(np.frombuffer(drawn(seed=1, offset=2), np.float32) for _ in range(2)))


def test_forked_children_draw_bits_of_their_own() -> None:
    """Even where a thread of the parent holds the lock at that moment."""
    code = """
        import os, threading
        import numpy as np
        from terngrad_kernels.frontends import _draws, manual_seed
        manual_seed(5)
        held, release = threading.Event(), threading.Event()
        def hold():
            with _draws._lock:
                held.set()
                release.wait()
        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        read, write = os.pipe()
        children = []
        for _ in range(2):
            child = os.fork()
            if not child:
                os.write(write, b"%d\\n" % _draws.process_draws().next()[0])
                os._exit(0)
            children.append(child)
        for child in children:
            assert os.waitpid(child, 0)[1] == 0
        release.set()
        thread.join()
        seeds = [int(line) for line in os.read(read, 1000).split()]
        print(len({5, *seeds}), _draws.process_draws().next())
    """
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "3 (5, 0, 0)"), done.stderr
