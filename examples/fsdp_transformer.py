"""A fully sharded transformer (FSDP2), with gradients averaged as trits.

    torchrun --standalone --nproc-per-node 2 examples/fsdp_transformer.py

trains a small language model on the help texts that come with Python, with one process per worker. Each block is an
FSDP module; parameters are gathered in bfloat16, gradients averaged in float32. It prints the loss on held-out text, in
nats per character, and the cost of the averaging; ``--strategy float32`` leaves the averaging to FSDP. ``--nodes 2``
treats 4 workers as two nodes of two: FSDP works inside a node, and trits are sent between nodes. Needs PyTorch 2.13
(``pip install ".[torch]"``). Your own program needs only the two lines marked below.
"""

import argparse
from pydoc_data.topics import topics

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from terngrad_kernels.torch import TernGradState
from terngrad_kernels.torch_fsdp import apply_terngrad

CONTEXT, WIDTH, HEADS, BLOCKS = 64, 128, 4, 2


class Model(torch.nn.Module):
    """Predicts each character from the ones before it."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.characters = torch.nn.Embedding(characters, WIDTH)
        self.places = torch.nn.Embedding(CONTEXT, WIDTH)
        self.blocks = torch.nn.ModuleList(
            torch.nn.TransformerEncoderLayer(
                WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(BLOCKS)
        )
        self.norm = torch.nn.LayerNorm(WIDTH)
        self.head = torch.nn.Linear(WIDTH, characters)

    def forward(self, text: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Return the loss, in nats per character."""
        x = self.characters(text) + self.places.weight
        mask = torch.nn.Transformer.generate_square_subsequent_mask(CONTEXT, dtype=x.dtype)
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
        return torch.nn.functional.cross_entropy(self.head(self.norm(x)).float().flatten(0, 1), wanted.flatten())


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train a fully sharded transformer, gradients averaged as trits.")
    parser.add_argument("--strategy", choices=["float32", "trits"], default="trits")
    parser.add_argument("--packing", choices=["two_bit", "base3"], default="two_bit")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16, help="of each worker")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    """Train and report."""
    options = arguments()
    dist.init_process_group("gloo")
    rank, workers = dist.get_rank(), dist.get_world_size()
    torch.set_num_threads(1)  # the model is small
    torch.manual_seed(options.seed)

    text = "".join(topics[name] for name in sorted(topics))
    characters = sorted(set(text))
    places = {character: i for i, character in enumerate(characters)}
    data = torch.tensor([places[character] for character in text])
    training, held_back = data[: len(data) * 9 // 10], data[len(data) * 9 // 10 :]

    def batch(source: torch.Tensor, size: int, draw: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        starts = torch.randint(len(source) - CONTEXT, (size,), generator=draw)
        rows = torch.stack([source[start : start + CONTEXT + 1] for start in starts])
        return rows[:, :-1], rows[:, 1:]

    model = Model(len(characters))
    mesh = init_device_mesh("cpu", (options.nodes, workers // options.nodes), mesh_dim_names=("nodes", "inside"))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)  # trits are sent
    for block in model.blocks:
        fully_shard(block, mesh=mesh["inside"], mp_policy=policy)
    fully_shard(model, mesh=mesh["inside"], mp_policy=policy)
    state = None
    if options.strategy == "trits":
        groups = {"strategy": "hierarchical", "process_group": mesh["nodes"].get_group()}
        groups["local_group"] = mesh["inside"].get_group()
        state = TernGradState(  # line 1
            packing=options.packing, seed=options.seed, **(groups if options.nodes > 1 else {})
        )
        apply_terngrad(model, state)  # line 2
    elif options.nodes > 1:
        raise SystemExit("--nodes: with trits alone; FSDP itself takes a mesh of two dimensions")

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    draw = torch.Generator().manual_seed(1000 * options.seed + rank)
    for _ in range(options.steps):
        optimizer.zero_grad()
        model(*batch(training, options.batch, draw)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()

    with torch.no_grad():  # on all ranks, since parameters are gathered
        loss = model(*batch(held_back, 64, torch.Generator().manual_seed(0))).item()
    if rank == 0:
        print(f"{options.strategy}, {workers} workers: loss {loss:.3f} after {options.steps} steps")
        if state is not None:
            print(state.report())
    # No destroy_process_group: with gloo in PyTorch 2.13, a process whose mesh still has the groups may abort when
    # it exits (seen with FSDP alone, in 2 of some 20 runs).


if __name__ == "__main__":
    main()
