"""The mutator and the property without a fuzzer: `python fuzz/run_plain.py EXECUTIONS [SEED]`.

For builds with sanitizers, and for Pythons that atheris has no wheels for. Inputs that are read become seeds.
"""

from __future__ import annotations

import random
import sys
import time

import harness

POOL = 4096


def main(executions: int, seed: int) -> None:
    rng = random.Random(seed)
    pool = [blob for _, blob in harness.seeds()]
    seeds = len(pool)
    read = 0
    start = time.monotonic()
    for _ in range(executions):
        blob = harness.mutate(rng.choice(pool), rng, 4096)
        try:
            accepted = harness.check(blob)
        except BaseException:
            print(f"finding: {blob.hex()}", file=sys.stderr)
            raise
        if accepted:
            read += 1
            if len(pool) < POOL:
                pool.append(blob)
            else:
                pool[rng.randrange(seeds, POOL)] = blob
    print(f"{executions} executions, {read} read and written again, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) == 3 else 0)
