"""atheris target: `from_bytes` refuses a buffer as corrupt, or reads one that is written as the same bytes.

Run it over a seed corpus:

    python fuzz/make_corpus.py build/corpus
    python fuzz/fuzz_from_bytes.py build/corpus -max_len=4096 -runs=1000000
"""

from __future__ import annotations

import random
import sys

import atheris

with atheris.instrument_imports(include=["terngrad_kernels"]):
    import harness


def test_one_input(blob: bytes) -> None:
    harness.check(blob)


def mutator(blob: bytes, max_size: int, seed: int) -> bytes:
    return harness.mutate(blob, random.Random(seed), max_size, atheris.Mutate)


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input, custom_mutator=mutator)
    atheris.Fuzz()
