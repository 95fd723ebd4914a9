"""PyTorch's operators and compilers: the same bytes as without them, nothing recorded anew for a new step."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from arrays import DTYPES, PACKINGS, TERNARY, Torch, bucket, layer

import terngrad_kernels as tk

torch = pytest.importorskip("torch")

from torch._dynamo.testing import CompileCounter  # noqa: E402

# What PyTorch says of its own code.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SHAPES = ((7, 100), (640,), (), (3, 0))


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """Nothing compiled before, so that what is recorded can be counted."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def tensor(n: int, dtype: str = "float32", seed: int = 0) -> Any:
    return Torch().make(layer("normal", n, dtype, seed))


def tensors(dtype: str = "float32") -> list[Any]:
    sizes = [int(torch.Size(shape).numel()) for shape in SHAPES]
    return [Torch().make(x).reshape(shape) for x, shape in zip(bucket(sizes, dtype), SHAPES, strict=True)]


def compiled(function: Callable[..., Any], backend: Any = "aot_eager") -> Callable[..., Any]:
    made: Callable[..., Any] = torch.compile(function, fullgraph=True, backend=backend)
    return made


def bits(x: Any) -> Any:
    return x.contiguous().reshape(-1).view(torch.uint8) if x.numel() else x.reshape(-1).to(torch.uint8)


def assert_same(got: Any, want: Any) -> None:
    """Assert the same structure, layouts included, and in it tensors of the same dtypes, shapes and bits."""
    leaves, structure = torch.utils._pytree.tree_flatten(got)
    wanted, wanted_structure = torch.utils._pytree.tree_flatten(want)
    assert structure == wanted_structure
    for a, b in zip(leaves, wanted, strict=True):
        assert type(a) is type(b)
        if isinstance(b, torch.Tensor):
            assert a.dtype == b.dtype
            assert a.shape == b.shape
            assert torch.equal(bits(a), bits(b))
        else:
            assert a == b


def assert_compiles(function: Callable[..., Any], *arguments: Any, backend: Any = "aot_eager") -> None:
    assert_same(compiled(function, backend)(*arguments), function(*arguments))


# ---- the public functions, compiled


@pytest.mark.parametrize("several", [False, True], ids=["array", "list"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_messages(dtype: str, several: bool) -> None:
    x = tensors(dtype) if several else tensors(dtype)[0]

    def there(x: Any) -> Any:
        packed = [tk.encode(x, seed=3, offset=9, packing=packing) for packing in PACKINGS]
        return packed, [tk.decode(p) for p in packed]

    def back(packed: Any) -> Any:
        return tk.decode(packed), tk.decode_sum([packed, packed], weights=[0.5, 0.25]), tk.decode(packed, weight=-0.5)

    assert_compiles(there, x)
    assert_compiles(back, tk.encode(x, packing="base3"))


def test_layouts() -> None:
    mixed = ["two_bit", "base3", "float32", "two_bit"]
    cut = tk.Layout([(5200,), (0,), (33,)], "float32", ["two_bit", "float32", "base3"], 2560, 3, "list")

    def function(x: Any, flat: Any) -> Any:
        packed = tk.encode(x, packing=mixed), tk.encode(x, block=2560), tk.encode(flat, layout=cut)
        return packed, [tk.decode(p) for p in packed], tk.scales(flat, layout=cut)

    assert_compiles(function, tensors(), tensor(5233))
    shard = cut.shard(1)
    assert_compiles(lambda x: tk.decode(tk.encode(x, layout=shard)), tensor(shard.size))


@pytest.mark.parametrize("several", [False, True], ids=["array", "list"])
def test_what_encode_is_made_of(several: bool) -> None:
    def function(x: Any) -> Any:
        own = tk.scales(x)
        shared = own._replace(scale=2 * own.scale)
        parts = [tk.clip(x), tk.clip(x, scales=own), tk.ternarize(x, seed=5, layer=2), tk.ternarize(x, scales=shared)]
        return own, tk.scales(x, clip=None, center=True), parts, tk.encode(x, scales=shared)

    assert_compiles(function, tensors() if several else tensors()[0])


@pytest.mark.parametrize("packing", TERNARY)
def test_pack_and_unpack(packing: str) -> None:
    trits, _ = tk.ternarize(tensors()[0])

    def function(trits: Any) -> Any:
        payload = tk.pack(trits, packing=packing)
        return (
            payload,
            tk.unpack(payload, shape=trits.shape, packing=packing),
            tk.unpack(payload, shape=700, packing=packing),
        )

    assert_compiles(function, trits)


def test_dtypes_of_results() -> None:
    packed = tk.encode(tensors())
    for dtype in ("bfloat16", torch.float64):
        assert_compiles(lambda p, dtype=dtype: (tk.decode(p, dtype=dtype), tk.decode_sum(p, dtype=dtype)), packed)


def test_messages_in_one_tensor() -> None:
    def function(p: Any) -> Any:
        return tk.decode_sum(tk.Packed(p.layout, torch.stack([p.data, p.data, p.data])), weights=[1, 2, 3])

    assert_compiles(function, tk.encode(tensors()))


def test_messages_of_one_program() -> None:
    def function(x: Any, y: Any, packed: Any) -> Any:
        return tk.decode_sum([packed, tk.encode(x), tk.encode(y, seed=1)], weights=[0.5, 0.25, 0.25])

    x, y = tensor(700), tensor(700, seed=1)
    assert_compiles(function, x, y, tk.encode(y, seed=2))


def test_counts_and_second_hops() -> None:
    names = ["two_bit", "base3", "float32", "two_bit"]
    own = tk.scales(tensors())

    def function(x: Any, own: Any, given: Any) -> Any:
        packed = [tk.encode(x, scales=own, seed=i, packing=names) for i in range(3)]
        counts = tk.sum_trits(
            [*packed, tk.encode(x, scales=own, seed=3, packing=["base3", "base3", "float32", "base3"])]
        )
        more = tk.sum_trits([counts, packed[0], given, given])
        rows = tk.Packed(packed[0].layout, torch.stack([p.data for p in packed]))
        again = [
            tk.repack(packed, seed=1, offset=2, weights=[0.25, 0.25, 0.5]),
            tk.repack(packed, seed=2**64 - 1, offset=2, layer=4, packing="base3", clip=2.5),
            tk.repack(more, seed=1, offset=2, weights=[0.125], scales=own),
        ]
        return counts, more, tk.sum_trits(rows), tk.decode(more, weight=1 / more.workers), again

    x = tensors()
    given = tk.sum_trits([tk.encode(x, scales=own, seed=i, packing=names) for i in (7, 8)])
    assert function(x, own, given)[1].layout.counts == {"counts8"}
    assert_compiles(function, x, own, given)


def test_empty_lists() -> None:
    """They have no framework, which is NumPy elsewhere; a compiled function has tensors only."""

    def function(x: Any) -> Any:
        packed = tk.encode([])
        return packed.data, tk.decode(packed), tk.scales([]), tk.clip([]), tk.ternarize([]), x + 1

    data, decoded, scales, clipped, (trits, scale), _ = compiled(function)(torch.ones(3))
    assert (data.dtype, data.shape) == (torch.uint8, (0,))
    assert decoded == clipped == trits == []
    assert scales.scale.shape == scales.limit.shape == scale.shape == (0,)


def test_outputs() -> None:
    x = tensors()
    packed = tk.encode(x)

    def function(x: Any, packed: Any) -> Any:
        message = torch.zeros_like(packed.data)
        sums = [torch.ones(y.shape) for y in x]
        added = [torch.ones(y.shape, dtype=torch.float64) for y in x]
        own = tk.Scales(torch.zeros(4), torch.zeros(4))
        clipped = [torch.zeros_like(y) for y in x]
        trits = [torch.zeros(y.shape, dtype=torch.int8) for y in x], torch.zeros(4)
        flat = torch.zeros(60, dtype=torch.int8)
        results = [
            tk.encode(x, out=message).data is message,
            tk.decode_sum([packed, packed], weights=[0.5, 2], out=sums) is sums,
            tk.decode(packed, out=added, accumulate=True, weight=0.25) is added,
            tk.scales(x, out=own).scale is own.scale,
            tk.clip(x, out=clipped) is clipped,
            tk.ternarize(x, out=trits)[0] is trits[0],
            tk.unpack(tk.pack(torch.ones(60, dtype=torch.int8)), shape=60, out=flat) is flat,
        ]
        return results, message, sums, added, own, clipped, trits, flat

    assert_compiles(function, x, packed)
    assert all(function(x, packed)[0])


def test_outputs_that_are_the_callers() -> None:
    """An accumulating step: its own buffer is written, which may be a parameter or be clipped in place."""

    def step(x: Any, total: Any, offset: int) -> None:
        tk.decode(tk.encode(x, offset=offset), out=total, accumulate=True, weight=0.5)
        tk.clip(x, out=x)

    made = compiled(step)
    x, y = tensor(700), tensor(700)
    total, want = torch.nn.Parameter(torch.ones(700)), torch.ones(700)
    for offset in range(3):
        assert made(x, total, offset) is None
        step(y, want, offset)
        assert_same([x, total.detach()], [y, want])
    assert total.requires_grad


def test_tensors_that_require_grad() -> None:
    """They are data, and what is around them is differentiated as if nothing were there."""
    w = torch.nn.Parameter(tensor(700))

    def step(w: Any) -> Any:
        y = 2 * w
        return tk.encode(y).data, tk.decode(tk.encode(y)), tk.scales(y), tk.clip(w), (y * y).sum()

    *results, loss = compiled(step)(w)
    assert_same(results, list(step(w.detach())[:-1]))
    assert not any(leaf.requires_grad for leaf in torch.utils._pytree.tree_leaves(results))
    loss.backward()
    assert torch.equal(w.grad, 8 * w.detach())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_other_strides(dtype: str) -> None:
    def function(x: Any, z: Any) -> Any:
        return tk.encode(x.T).data, tk.encode([x[::2], x[:, 1:]]).data, tk.encode(z.conj().imag).data

    assert_compiles(function, tensor(700, dtype).reshape(7, 100), torch.complex(tensor(64), tensor(64, seed=1)))


def test_inductor() -> None:
    """What the compiler generates for the CPU, in one program with what is before and after."""

    def step(x: list[Any], out: list[Any], offset: int) -> Any:
        packed = tk.encode([2 * y.T for y in x], seed=2**64 - 1, offset=offset, packing="base3")
        tk.decode(packed, out=out, accumulate=True, weight=0.5)
        return packed, [y + 1 for y in tk.decode(packed)]

    made = compiled(step, "inductor")
    x = [tensor(2100).reshape(70, 30), tensor(165).reshape(33, 5)]
    got, want = ([torch.ones(y.T.shape) for y in x] for _ in range(2))
    for offset in (0, 1, 2):
        assert_same(made(x, got, offset), step(x, want, offset))
        assert_same(got, want)


# ---- what is recorded anew


def recordings(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[int]:
    """Return how often the function was recorded after each call."""
    counter = CompileCounter()
    made = compiled(function, counter)
    counts = []
    for arguments in calls:
        assert_same(made(*arguments), function(*arguments))
        counts.append(counter.frame_count)
    return counts


def test_a_new_step_of_a_second_hop_is_not_a_new_program() -> None:
    packed = tk.encode(tensor(700))
    calls = [(packed, step) for step in range(4)]
    assert recordings(lambda p, step: tk.repack(p, seed=1, offset=step), calls) == [1, 2, 2, 2]


def test_a_new_step_is_not_a_new_program() -> None:
    """The second value of an integer makes it symbolic; after that, no value is new below 2^63."""
    x = tensor(700)

    def encode(x: Any, seed: int, offset: int, layer: int) -> Any:
        return tk.encode(x, seed=seed, offset=offset, layer=layer), tk.ternarize(
            x, seed=seed, offset=offset, layer=layer
        )

    calls = [(x, 7, 0, 3), (x, 7, 1, 3), (x, 7, 2, 3), (x, 7, 0, 3), (x, 7, 2**62, 3), (x, 7, 2**63 - 1, 3)]
    assert recordings(encode, calls) == [1, 2, 2, 2, 2, 2]
    torch._dynamo.reset()
    calls = [(x, 5, 1000, 3), (x, 6, 1001, 4), (x, 9, 1002, 5), (x, 8, 1003, 17)]
    assert recordings(encode, calls) == [1, 2, 2, 2]


def test_words_of_64_bits() -> None:
    """From 2^63 on they are another program, once: what an operator takes has a sign."""
    x = tensor(700)
    calls = [(x, 2**63 - 1), (x, 2**63), (x, 2**64 - 1), (x, 2**63 + 5), (x, 5)]
    assert recordings(lambda x, seed: tk.encode(x, seed=seed), calls)[-1] <= 3
    torch._dynamo.reset()
    made = compiled(lambda x, seed: tk.encode(x, seed=seed, offset=-1))
    for _, seed in calls:
        assert_same(made(x, seed), tk.encode(x, seed=seed, offset=2**64 - 1))


def test_words_as_tensors_are_one_program() -> None:
    x = tensor(700)
    words = [torch.tensor(word) for word in (5, -1, 2**62)]
    halves = [torch.tensor([word, 1], dtype=torch.uint32) for word in (5, 7)]
    assert recordings(lambda x, seed: tk.encode(x, seed=seed, offset=3), [(x, word) for word in words]) == [1, 1, 1]
    torch._dynamo.reset()
    assert recordings(lambda x, word: tk.encode(x, seed=3, offset=word), [(x, word) for word in halves]) == [1, 1]


def test_layouts_are_static() -> None:
    """Another shape is another program, and the first one is kept."""
    x = [torch.ones(rows, 100) for rows in (5, 6, 7, 5, 6, 7)]
    assert recordings(tk.encode, [(y,) for y in x]) == [1, 2, 3, 3, 3, 3]
    torch._dynamo.reset()
    assert recordings(tk.decode, [(tk.encode(y),) for y in x]) == [1, 2, 3, 3, 3, 3]


# ---- errors

COUNTS = tk.Layout([(700,)], packing="counts8")
ERRORS: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "dtype": (lambda x: tk.encode(x.int()), TypeError, "x: expected float32, float16, bfloat16, float64"),
    "dtypes": (lambda x: tk.encode([x, x.half()]), TypeError, r"x\[1\]: expected float32 as x\[0\] is, got float16"),
    "packing": (
        lambda x: tk.encode(x, packing="trits"),
        ValueError,
        "packing: expected one of two_bit, base3, float32, got 'trits'",
    ),
    "packings": (
        lambda x: tk.encode(x, packing=["base3"] * 2),
        ValueError,
        r"packing: expected one name, or 1 \(one per layer\), got 2",
    ),
    "block": (lambda x: tk.encode(x, block=2.5), TypeError, "block: expected an int, got float"),
    "both": (lambda x: tk.encode(x, layout=tk.Layout([(3,)]), block=2560), ValueError, "block: expected None where a"),
    "layout": (lambda x: tk.encode(x, layout=5), TypeError, "layout: expected a Layout, got int"),
    "seed": (lambda x: tk.encode(x, seed="7"), TypeError, "seed: expected an int.* got str"),
    "offset": (lambda x: tk.encode(x, offset=2**64), ValueError, r"offset: expected an int from -2\*\*63"),
    "clip": (lambda x: tk.encode(x, clip=-1.0), ValueError, "clip: expected a number > 0 or None"),
    "scales": (lambda x: tk.encode(x, scales=x), TypeError, r"scales: expected a Scales \(scale, limit\)"),
    "stream": (lambda x: tk.encode(x, stream=3), ValueError, "stream: "),
    "out": (lambda x: tk.encode(x, out=x), TypeError, "out: expected uint8, got float32"),
    "out's size": (lambda x: tk.clip(x, out=x[1:]), ValueError, "out: expected 700 elements, got 699"),
    "out's strides": (lambda x: tk.clip(x[:350], out=x[::2]), ValueError, "out: expected a dense row-major array"),
    "outs": (lambda x: tk.clip([x], out=[x, x]), ValueError, "out: expected 1 arrays, got 2"),
    "list": (lambda x: tk.clip([x], out=x), TypeError, "out: expected a list of 1 arrays"),
    "message": (
        lambda x: tk.decode(tk.Packed(tk.encode(x).layout, tk.encode(x).data[1:])),
        ValueError,
        "packed.data: ",
    ),
    "rows": (
        lambda x: tk.decode(tk.Packed(tk.encode(x).layout, tk.encode(x).data.reshape(1, -1))),
        ValueError,
        "packed.data: expected one message",
    ),
    "accumulate": (lambda x: tk.decode(tk.encode(x), accumulate=True), ValueError, "out: expected what acc"),
    "decoded": (lambda x: tk.decode(tk.encode(x), dtype="int8"), TypeError, "dtype: expected one of float32"),
    "weights": (lambda x: tk.decode_sum([tk.encode(x)], weights=[1, 2]), ValueError, "weights: expected 1, one per m"),
    "messages": (
        lambda x: tk.decode_sum([tk.encode(x), tk.encode(x[1:])]),
        ValueError,
        r"messages\[1\].layout.shapes\[0\]: expected \(700,\) as messages\[0\] has, got \(699,\)",
    ),
    "summands": (
        lambda x: tk.sum_trits([tk.encode(x), tk.encode(x, packing="float32")]),
        ValueError,
        r"messages\[1\].layout.packing: expected 'two_bit' as messages\[0\] has, got 'float32'",
    ),
    "repacked": (
        lambda x: tk.repack([tk.encode(x)], seed=0, offset=0, packing="float32"),
        ValueError,
        "packing: expected one of two_bit, base3, got 'float32'",
    ),
    "trits": (lambda x: tk.pack(x), TypeError, "trits: expected int8"),
    "codes": (lambda x: tk.pack(x.to(torch.int8), packing="float32"), ValueError, "packing: expected one of two"),
    "counts": (lambda x: tk.encode(x, packing="counts8"), ValueError, "packing: expected one of two_bit, base3, fl"),
    "layout of counts": (
        lambda x: tk.encode(x, layout=COUNTS),
        ValueError,
        "layout.packing: expected two_bit, base3, float32, got counts8",
    ),
    "payload": (lambda x: tk.unpack(tk.encode(x).data, shape=5), ValueError, "payload: expected 2 bytes"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    """Those of the functions themselves: as they are where the graph may break, else within PyTorch's own."""
    function, kind, text = ERRORS[name]
    x = tensor(700)
    with pytest.raises(kind, match=text):
        function(x)
    with pytest.raises(Exception, match=text):
        compiled(function, "eager")(x)


def test_errors_without_fullgraph() -> None:
    with pytest.raises(TypeError, match=r"^x: expected float32, float16, bfloat16, float64"):
        torch.compile(lambda x: tk.encode(x.int()), backend="eager")(tensor(700))


def test_validate_is_not_compiled() -> None:
    """What it raises depends on values: it is run where the graph breaks, and refused where it must not."""
    with pytest.raises(Exception, match="packed: expected a message outside compiled functions"):
        compiled(tk.validate, "eager")(tk.encode(tensor(700)))


def test_fake_tensors_elsewhere() -> None:
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode() as mode:
        fake = mode.from_tensor(tensor(700))
        with pytest.raises(TypeError, match="x: expected a tensor with memory of its own, got a FakeTensor"):
            tk.encode(fake)


# ---- torch.export


class Encoder(torch.nn.Module):  # type: ignore[misc]
    def forward(self, x: Any, offset: Any) -> Any:
        return tk.encode(x, seed=3, offset=offset)


class Decoder(torch.nn.Module):  # type: ignore[misc]
    def forward(self, packed: Any) -> Any:
        return tk.decode(packed)


class RoundTrip(torch.nn.Module):  # type: ignore[misc]
    def forward(self, x: Any) -> Any:
        return tk.decode(tk.encode(x, packing="base3"))


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict: bool) -> None:
    x = tensors()
    program = torch.export.export(RoundTrip(), (x,), strict=strict)
    assert_same(program.module()(x), RoundTrip()(x))
    targets = {str(node.target) for node in program.graph.nodes}
    assert {"terngrad_kernels.encode.default", "terngrad_kernels.decode.default"} <= targets


def test_exported_programs_take_and_give_messages() -> None:
    """Also once saved and loaded: layouts are part of the program."""
    x = tensors()
    program = torch.export.export(Encoder(), (x, torch.tensor(5)), strict=False)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    for made in (program, torch.export.load(file)):
        packed = made.module()(x, torch.tensor(9))
        assert_same(packed, tk.encode(x, seed=3, offset=9))
    for message in (packed, tk.sum_trits([packed])):
        decoder = torch.export.export(Decoder(), (message,), strict=False)
        file = io.BytesIO()
        torch.export.save(decoder, file)
        file.seek(0)
        assert_same(torch.export.load(file).module()(message), tk.decode(message))


# ---- the operators


def operators() -> Any:
    tk.encode(torch.ones(1))
    return torch.ops.terngrad_kernels


def calls() -> dict[str, tuple[str, tuple[Any, ...]]]:
    """Return calls that stand for all, by what they show."""
    x, y = tensor(700).reshape(7, 100), tensor(5200)
    both = ([700, 5200], ["two_bit", "base3"], 2560, 2, None)
    one = ([700], ["two_bit"], None, 1, None)
    message, messages = tk.encode(x).data, tk.encode([x, y]).data
    pair = ([700, 5200], ["two_bit"], None, 1, None)
    words = (3, -1, None, None, 0)
    own = torch.ones(1), torch.ones(1)
    float32 = torch.float32
    counts = tk.sum_trits([tk.encode([x, y], scales=tk.scales([x, y])) for _ in range(2)]).data
    names = ["counts4", "counts4", "two_bit", "two_bit"]
    added = ([700, 5200], names, None, 1, None, [2, 0])
    return {
        "one array": ("encode", ([x], *one, 2.5, None, None, *words)),
        "a list": ("encode", ([x, y], *both, None, None, None, 3, 0, torch.tensor(3), None, 1)),
        "one shard of a flat tensor": ("encode", ([y[:5160]], [5160], ["base3"], None, 1, 0, 2.5, None, None, *words)),
        "scales": ("encode", ([x], *one, None, *own, 3, 0, None, torch.tensor([1, 2], dtype=torch.uint32), 1)),
        "grad": ("encode", ([x.clone().requires_grad_()], *one, 2.5, None, None, *words)),
        "strides": ("encode", ([x.T], *one, 2.5, None, None, *words)),
        "decode": ("decode", (message, *one, 1.0, float32)),
        "decode to half": ("decode", (messages, *pair, 0.5, torch.bfloat16)),
        "accumulate": ("decode_out", (message, *one, 1.0, True, [torch.ones(700)])),
        "outputs": ("decode_out", (messages, *pair, 1.0, False, [torch.ones(7, 100), torch.ones(5200)])),
        "sum": ("decode_sum", ([message, message], *one, None, float32)),
        "sum of rows": ("decode_sum", ([torch.stack([message, message])], *one, [0.5, 0.5], torch.float16)),
        "sum to outputs": ("decode_sum_out", ([messages, messages], *pair, None, [torch.ones(700), torch.ones(5200)])),
        "decode counts": ("decode", (counts, [700, 5200], ["counts4"], None, 1, None, 0.5, float32)),
        "sum of trits": ("sum_trits", ([counts, messages], *added)),
        "rows of trits": ("sum_trits", ([torch.stack([message] * 8)], *one, [0])),
        "second hop": ("repack", ([messages, messages], *pair, [0.5, 0.5], ["base3"], 2.5, None, None, *words)),
        "own scales": ("scales", ([x, y], *both, 2.5, True)),
        "scales of grad": ("scales", ([x.clone().requires_grad_()], *one, 2.5, False)),
        "clip": ("clip", ([x, y], 2.5, None, None, False)),
        "clip to scales": ("clip", ([x.clone().requires_grad_()], None, *own, False)),
        "ternarize": ("ternarize", ([x, y], 2.5, None, None, *words)),
        "pack": ("pack", (torch.ones(33, dtype=torch.int8), "base3")),
        "unpack": ("unpack", (torch.ones(7, dtype=torch.uint8), 33, "base3")),
    }


@pytest.mark.parametrize("name", calls())
def test_opcheck(name: str) -> None:
    """PyTorch's own checks: what is written is what the schema says, fakes are like results, programs like calls."""
    operator, arguments = calls()[name]
    results = torch.library.opcheck(getattr(operators(), operator).default, arguments)
    assert set(results.values()) == {"SUCCESS"}


def test_every_operator_is_checked() -> None:
    operators()
    names = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("terngrad_kernels::")}
    assert names == {f"terngrad_kernels::{operator}" for operator, _ in calls().values()}


# ---- loading


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_the_first_call_may_be_compiled() -> None:
    """Operators and adapter are loaded while the call is recorded."""
    code = """
import torch, terngrad_kernels as tk
f = torch.compile(lambda x: tk.encode(x, seed=1).data, fullgraph=True, backend="aot_eager")
x = torch.linspace(-1, 1, 700)
print(torch.equal(f(x), tk.encode(x, seed=1).data))
"""
    assert run_python(code) == "True"


def test_calls_that_are_run_load_no_compiler() -> None:
    """It takes PyTorch seconds."""
    code = """
import sys, torch, terngrad_kernels as tk
before = set(sys.modules)
tk.decode(tk.encode(torch.ones(9)))
print([name for name in set(sys.modules) - before if name.startswith(("torch._dynamo", "sympy"))])
"""
    assert run_python(code) == "[]"


def test_calls_while_another_thread_compiles() -> None:
    """A flag says that some thread compiles; tensors that have values are worked on all the same."""
    x = tensor(700)
    want = tk.encode(x).data
    results = []

    def backend(graph: Any, inputs: Any) -> Any:
        thread = threading.Thread(target=lambda: results.append(tk.encode(x).data))
        thread.start()
        thread.join()
        return graph.forward

    torch.compile(lambda y: y + 1, backend=backend)(torch.ones(3))
    assert len(results) == 1
    assert torch.equal(results[0], want)
