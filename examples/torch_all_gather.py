"""Two processes fit a linear model and send each other packed.data. PyTorch, torch.distributed over gloo."""

import os

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import terngrad_kernels as tk

WORKERS, STEPS = 2, 200


def train(rank: int, port: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=WORKERS)
    torch.set_num_threads(1)
    truth = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    weights = torch.zeros_like(truth, requires_grad=True)
    data = torch.Generator().manual_seed(1 + rank)
    for step in range(STEPS):
        x = torch.randn((64, truth.numel()), generator=data)
        gradient = torch.autograd.grad((x @ (weights - truth)).square().mean() / 2, weights)[0]
        packed = tk.encode(gradient, seed=rank, offset=step)
        everyone = torch.empty((WORKERS, packed.layout.nbytes), dtype=torch.uint8)
        dist.all_gather(list(everyone), packed.data)
        mean = tk.decode_sum(tk.Packed(packed.layout, everyone), weights=[1 / WORKERS] * WORKERS)
        with torch.no_grad():
            weights -= 0.02 * mean
    if rank == 0:
        distance = (weights.detach() - truth).norm() / truth.norm()
        print(f"distance {float(distance):.3f}, {packed.layout.ratio:.1f} x smaller")
    dist.destroy_process_group()


if __name__ == "__main__":
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(train, (port,), WORKERS)
