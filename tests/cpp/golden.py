"""Write the golden vectors for ``golden.cpp``: ``python tests/cpp/golden.py FILE``.

A case is a line of settings, the last of them the size and packing of each layer, and then as bytes: the elements,
the passed scales and limits if there are any, the message, and what it decodes to. Message and values come from
the reference and are those that ``golden/vectors.json`` has the SHA-256 of.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import make_golden

import reference as ref

LARGEST = 200_000
PACKINGS = ("two_bit", "base3", "float32")


def main(path: str) -> None:
    recorded = {case["id"]: case for case in make_golden.selftest.load()["cases"]}
    cases = [case for case in make_golden.specifications() if sum(n for _, n in case["layers"]) <= LARGEST]
    with open(path, "wb") as file:
        for case in cases:
            bucket = make_golden._Bucket(case)
            message = bucket.encode(case["seed"])
            values = ref.decode(message, bucket.sizes, bucket.packing, dtype=case["dtype"], **bucket.layout)
            x, decoded = (b"".join(part.tobytes() for part in parts) for parts in (bucket.layers, values))
            passed = b"".join(np.array(part, np.float32).tobytes() for part in bucket.passed() or ())
            for got, want in ((message.tobytes(), "sha256"), (decoded, "decode")):
                assert hashlib.sha256(got).hexdigest() == recorded[case["id"]][want], case["id"]
            settings = [case["id"], make_golden.DTYPES.index(case["dtype"]), case["clip"] or 0]
            settings += [int(case.get("center", False)), case.get("block", 0), case.get("shards", 1)]
            settings += [case.get("index", -1), case["seed"] % 2**64, case["offset"] % 2**64, case["layer"]]
            settings += [len(x), len(passed), message.nbytes, len(decoded), len(bucket.sizes)]
            packing = bucket.packing
            packings = [packing] * len(bucket.sizes) if isinstance(packing, str) else packing
            for n, name in zip(bucket.sizes, packings, strict=True):
                settings += [n, PACKINGS.index(name)]
            file.write(f"{' '.join(map(str, settings))}\n".encode() + x + passed + message.tobytes() + decoded)


if __name__ == "__main__":
    main(sys.argv[1])
