"""Write the seed corpus: `python fuzz/make_corpus.py DIRECTORY`."""

from __future__ import annotations

import sys
from pathlib import Path

import harness


def main(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, blob in harness.seeds():
        (directory / name).write_bytes(blob)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
