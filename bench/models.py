"""Parameter shapes of networks, in the order of their parameters."""

from __future__ import annotations

#: Blocks and channels of ResNet-50's four stages (He et al., 2015, table 1).
_STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))


def resnet50() -> list[tuple[int, ...]]:
    """Return the 161 shapes of torchvision's ``resnet50().parameters()``: 25,557,032 elements.

    A convolution (out, in, height, width) without bias is followed by its batch norm's weight and bias; a stage's first
    block has a 1 x 1 convolution on its shortcut, after its own three.
    """
    shapes: list[tuple[int, ...]] = []

    def convolution(outputs: int, inputs: int, size: int) -> None:
        shapes.extend([(outputs, inputs, size, size), (outputs,), (outputs,)])

    convolution(64, 3, 7)
    inputs = 64
    for blocks, width in _STAGES:
        for block in range(blocks):
            convolution(width, inputs, 1)
            convolution(width, width, 3)
            convolution(4 * width, width, 1)
            if block == 0:
                convolution(4 * width, inputs, 1)
            inputs = 4 * width
    shapes.extend([(1000, inputs), (1000,)])
    return shapes
