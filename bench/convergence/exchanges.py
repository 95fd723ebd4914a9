"""What the ranks of a job would have after an exchange, computed in one process from all workers' gradients.

The strategies are those of `terngrad_kernels.torch`, whose ranks end with the bits that the public functions give
(``tests/test_torch_distributed.py``); options and the choice of layers that are carried as float32 are read from a
`TernGradState`. Bytes are counted on the messages, in the way `TernGradState.report` does. GRACE's and HiPress's rules
are re-stated from what they do, not from their sources.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import terngrad_kernels as tk
from terngrad_kernels._cost import MOST_DIRECT
from terngrad_kernels.torch import TernGradState

STRATEGIES = ("gather", "sum", "requantize")
RULES = ("float32", *STRATEGIES, "grace", "hipress", "hipress_independent")


@dataclass(frozen=True)
class Options:
    """How gradients are averaged; ``carried`` names the layers that go as float32.

    ``default``: as `TernGradState` chooses; ``none``: every layer is ternary; ``ends``: those of the default, and
    embeddings and the last linear layer whatever their share of the elements.
    """

    rule: str
    clip: float | None = 2.5
    packing: str = "two_bit"
    block: int | None = None
    error_feedback: bool = False
    carried: str = "default"


@dataclass(frozen=True)
class Traffic:
    """Bytes of one step: of a worker's message, and sent by each worker altogether; the same in float32."""

    message: int
    sent: int
    float32_message: int
    float32_sent: int


class Exchange:
    """Averages stacked gradients, float32 (workers, elements), into one of (elements,)."""

    def __init__(self, options: Options, model: torch.nn.Module, workers: int, seed: int) -> None:
        self.options, self.workers, self.seed = options, workers, seed
        self.sizes = [parameter.numel() for parameter in model.parameters()]
        self._lost: torch.Tensor | None = None
        self._lost_again: list[torch.Tensor] | None = None
        if options.rule in STRATEGIES:
            state = TernGradState(
                strategy=options.rule,
                clip=options.clip,
                packing=options.packing,
                block=options.block,
                error_feedback=options.error_feedback,
                seed=seed,
                **_carried(options.carried, model),
            )
            packing = ["float32" if state._is_float32(p) else options.packing for p in model.parameters()]
            shards = 1 if options.rule == "gather" else workers
            shapes = [(size,) for size in self.sizes]
            self.layout = tk.Layout(shapes, "float32", packing, options.block, shards)
        self._average: Callable[[torch.Tensor, int], torch.Tensor] = getattr(self, f"_{options.rule}")

    def __call__(self, gradients: torch.Tensor, step: int) -> torch.Tensor:
        """Average one step's gradients."""
        return self._average(gradients, step)

    @property
    def traffic(self) -> Traffic:
        """What a step costs, whatever is in the gradients."""
        elements, workers, others = sum(self.sizes), self.workers, self.workers - 1
        rule, plain = self.options.rule, _ring(4 * elements, workers)
        if rule == "float32":
            message, sent = 4 * elements, plain
        elif rule in STRATEGIES:
            message = self.layout.nbytes
            sent = others * message
            if rule == "sum":
                counts = tk.sum_trits([tk.encode(torch.zeros(elements), layout=self.layout)] * workers).data.nbytes
                scales = 4 * self.layout.groups
                sent = others * scales if workers <= MOST_DIRECT else _ring(scales, workers)
                sent += others * (message + counts) // workers
            elif rule == "requantize":
                sent = 2 * others * message // workers
        elif rule == "grace":
            message = elements + 4 * len(self.sizes)
            sent = others * message
        else:
            message = sum(-(-size // 4) + 8 for size in self.sizes)
            sent = others * message
        return Traffic(message, sent, 4 * elements, plain)

    # ---- the package's strategies

    def _float32(self, gradients: torch.Tensor, _step: int) -> torch.Tensor:
        return gradients.mean(0)

    def _with_lost(self, gradients: torch.Tensor) -> torch.Tensor:
        if not self.options.error_feedback:
            return gradients
        if self._lost is None:
            self._lost = torch.zeros_like(gradients)
        return self._lost + gradients

    def _messages(self, gradients: torch.Tensor, step: int, shared: bool = False) -> torch.Tensor:
        """Every worker's message, (workers, nbytes); residuals are those of what was lost in them."""
        layout, clip = self.layout, self.options.clip
        total = self._with_lost(gradients)
        scales: list[Any] = [None] * self.workers
        if shared:
            own = [tk.scales(x, clip=clip, layout=layout) for x in total]
            largest = torch.stack([each.scale for each in own]).amax(0)
            scales = [each._replace(scale=largest) for each in own]
        messages = torch.empty((self.workers, layout.nbytes), dtype=torch.uint8)
        for rank, x in enumerate(total):
            draw = {"seed": self.seed + rank, "offset": step, "scales": scales[rank]}
            packed = tk.encode(x, clip=clip, layout=layout, out=messages[rank], **draw)
            if self._lost is not None:
                _keep_lost(self._lost[rank], x, packed)
        return messages

    @property
    def _weights(self) -> list[float]:
        return [1 / self.workers] * self.workers

    def _gather(self, gradients: torch.Tensor, step: int) -> torch.Tensor:
        messages = self._messages(gradients, step)
        return tk.decode_sum(tk.Packed(self.layout, messages), weights=self._weights)

    def _sum(self, gradients: torch.Tensor, step: int) -> torch.Tensor:
        messages = self._messages(gradients, step, shared=True)
        return tk.decode(tk.sum_trits(tk.Packed(self.layout, messages)), weight=1 / self.workers)

    def _requantize(self, gradients: torch.Tensor, step: int) -> torch.Tensor:
        messages = self._messages(gradients, step).view(self.workers, self.workers, -1)
        if self.options.error_feedback and self._lost_again is None:
            self._lost_again = [torch.zeros(self.layout.shard(rank).size) for rank in range(self.workers)]
        second = torch.empty(messages.shape[1:], dtype=torch.uint8)
        for rank in range(self.workers):
            own = self.layout.shard(rank)
            received = tk.Packed(own, messages[:, rank].contiguous())
            if self._lost_again is None:
                draw = {"seed": self.seed + rank, "offset": step}
                tk.repack(received, weights=self._weights, out=second[rank], **draw)
                continue
            draw = {"seed": self.seed + rank + self.workers, "offset": step}
            mean = tk.decode_sum(received, weights=self._weights) + self._lost_again[rank]
            packed = tk.encode(mean, clip=self.options.clip, layout=own, out=second[rank], **draw)
            _keep_lost(self._lost_again[rank], mean, packed)
        return tk.decode(tk.Packed(self.layout, second.view(-1)))

    # ---- other people's rules, every layer quantised

    def _generator(self, step: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed << 32 | step)

    def _grace(self, gradients: torch.Tensor, step: int) -> torch.Tensor:
        """GRACE: clip at 2.5 standard deviations about the mean; the scale is the largest magnitude left."""
        generator, means = self._generator(step), []
        for x in gradients.split(self.sizes, 1):
            limit = 2.5 * x.std(1, unbiased=False, keepdim=True)
            magnitude = x.abs().minimum(limit)
            scale = magnitude.amax(1, keepdim=True)
            fires = torch.rand(x.shape, generator=generator) * scale < magnitude
            means.append((x.sign() * fires * scale).mean(0))
        return torch.cat(means)

    def _hipress(self, gradients: torch.Tensor, step: int, alike: bool = True) -> torch.Tensor:
        """HiPress: four levels from the least to the largest element, rounded at random.

        The generator of every byte starts alike, so that the four elements of every byte meet the same four draws.
        Here these four are new for each step, worker and layer.
        """
        generator, means = self._generator(step), []
        for x in gradients.split(self.sizes, 1):
            least = x.amin(1, keepdim=True)
            gap = (x.amax(1, keepdim=True) - least) / 3
            draws = torch.rand((len(x), 4 if alike else x.shape[1]), generator=generator)
            if alike:
                draws = draws.repeat(1, -(-x.shape[1] // 4))[:, : x.shape[1]]
            levels = torch.where(gap > 0, (x - least) / gap + draws, 0).floor().clamp(0, 3)
            means.append((least + levels * gap).mean(0))
        return torch.cat(means)

    def _hipress_independent(self, gradients: torch.Tensor, step: int) -> torch.Tensor:
        return self._hipress(gradients, step, alike=False)


def _carried(which: str, model: torch.nn.Module) -> dict[str, Any]:
    """The arguments of `TernGradState` that choose the layers carried as float32."""
    if which == "default":
        return {"model": model}
    if which == "none":
        return {"float32": lambda _: False}
    if which != "ends":
        raise ValueError(f"carried: expected 'default', 'none' or 'ends', got {which!r}")
    chooses = TernGradState()._is_float32
    ends = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1:]
    ends += [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    weights = {id(module.weight) for module in ends}
    return {"float32": lambda parameter: id(parameter) in weights or chooses(parameter)}


def _keep_lost(residual: torch.Tensor, x: torch.Tensor, packed: tk.Packed) -> None:
    residual.copy_(x)
    tk.decode(packed, out=residual, weight=-1.0, accumulate=True)
    torch.nan_to_num_(residual, nan=0.0, posinf=0.0, neginf=0.0)


def _ring(nbytes: int, workers: int) -> int:
    """Bytes that each worker sends in a ring all-reduce."""
    return 2 * (workers - 1) * nbytes // workers


def quantisation(x: torch.Tensor, clip: float | None) -> tuple[float, float]:
    """What ternarizing one layer costs by the formulas: the share of |x|^2 that clipping takes, E|q - x|^2 / |x|^2."""
    x = x.double().abs()
    top, rms = x.max().item(), x.square().mean().sqrt().item()
    scale = min(top, math.inf if clip is None or rms == 0 else clip * rms)
    inside = x.clamp(max=scale)
    power = x.square().sum().item() or 1.0
    error = (x.square() - 2 * x * inside + scale * inside).sum().item()
    return (x - inside).square().sum().item() / power, error / power
