"""What the tests share: operations whose arrays are moved somewhere and back do as those on the arrays themselves."""

from __future__ import annotations

import numpy as np
import pytest
from arrays import Framework, assert_all_same, assert_same, bucket, moved

import terngrad_kernels as tk


def test_outputs_come_back_as_what_was_passed() -> None:
    layers = bucket((700, 0, 33))
    want = tk.clip(layers)
    for kind in (list, tuple):
        out = kind(np.zeros_like(x) for x in layers)
        assert moved(Framework(), tk.clip, layers, out=out) is out
        assert_all_same(out, want)
    assert moved(Framework(), tk.clip, layers, out=layers) is layers
    assert_all_same(layers, want)


def test_what_a_copy_would_not_show_is_refused() -> None:
    x = bucket((700,))[0]
    message = tk.encode(x)
    memory = np.zeros(2 * message.data.size, np.uint8)
    part = memory[: message.data.size]
    part[:] = message.data
    packed = tk.Packed(message.layout, part)
    with pytest.raises(ValueError, match=r"^out: "):
        moved(Framework(), tk.repack, [packed, packed], seed=0, offset=0, out=memory[16 : 16 + part.size])
    assert_same(part, message.data)
    with pytest.raises(ValueError, match=r"^stream: "):
        moved(Framework(), tk.encode, x, stream=3)
