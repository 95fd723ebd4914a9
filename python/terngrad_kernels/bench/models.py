"""Parameter shapes of networks, in the order of their parameters: the layers that a training step exchanges."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["MODELS"]

Shapes = list[tuple[int, ...]]


def _biased(outputs: int, *inputs: int) -> Shapes:
    return [(outputs, *inputs), (outputs,)]


def _normalised(outputs: int, inputs: int, size: int) -> Shapes:
    """A convolution (out, in, height, width) without bias, then its batch norm's weight and bias."""
    return [(outputs, inputs, size, size), (outputs,), (outputs,)]


def alexnet() -> Shapes:
    """Krizhevsky, 2014 (arXiv:1404.5997, one column), as torchvision's ``alexnet``."""
    shapes: Shapes = []
    for outputs, inputs, size in ((64, 3, 11), (192, 64, 5), (384, 192, 3), (256, 384, 3), (256, 256, 3)):
        shapes += _biased(outputs, inputs, size, size)
    return shapes + _biased(4096, 256 * 6 * 6) + _biased(4096, 4096) + _biased(1000, 4096)


def vgg16() -> Shapes:
    """Simonyan and Zisserman, 2014 (arXiv:1409.1556, table 1, column D), as torchvision's ``vgg16``."""
    shapes: Shapes = []
    inputs = 3
    for outputs in (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512):
        shapes += _biased(outputs, inputs, 3, 3)
        inputs = outputs
    return shapes + _biased(4096, 512 * 7 * 7) + _biased(4096, 4096) + _biased(1000, 4096)


#: Inputs, then the channels of 1 x 1, 3 x 3 reduced, 3 x 3, 5 x 5 reduced, 5 x 5 and pool (table 1 of the paper).
_INCEPTIONS = (
    (192, 64, 96, 128, 16, 32, 32),
    (256, 128, 128, 192, 32, 96, 64),
    (480, 192, 96, 208, 16, 48, 64),
    (512, 160, 112, 224, 24, 64, 64),
    (512, 128, 128, 256, 24, 64, 64),
    (512, 112, 144, 288, 32, 64, 64),
    (528, 256, 160, 320, 32, 128, 128),
    (832, 256, 160, 320, 32, 128, 128),
    (832, 384, 192, 384, 48, 128, 128),
)


def googlenet() -> Shapes:
    """Szegedy et al., 2014 (arXiv:1409.4842), as torchvision's ``googlenet`` without the auxiliary classifiers.

    Which has batch norms in place of biases, and 3 x 3 convolutions where the paper has 5 x 5.
    """
    shapes = _normalised(64, 3, 7) + _normalised(64, 64, 1) + _normalised(192, 64, 3)
    for inputs, one, three_reduced, three, five_reduced, five, pool in _INCEPTIONS:
        shapes += _normalised(one, inputs, 1)
        shapes += _normalised(three_reduced, inputs, 1) + _normalised(three, three_reduced, 3)
        shapes += _normalised(five_reduced, inputs, 1) + _normalised(five, five_reduced, 3)
        shapes += _normalised(pool, inputs, 1)
    return shapes + _biased(1000, 1024)


#: Blocks and channels of ResNet-50's four stages (He et al., 2015, table 1).
_STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))


def resnet50() -> Shapes:
    """He et al., 2015 (arXiv:1512.03385), as torchvision's ``resnet50``.

    A stage's first block has a 1 x 1 convolution on its shortcut, after its own three.
    """
    shapes = _normalised(64, 3, 7)
    inputs = 64
    for blocks, width in _STAGES:
        for block in range(blocks):
            shapes += _normalised(width, inputs, 1) + _normalised(width, width, 3) + _normalised(4 * width, width, 1)
            if block == 0:
                shapes += _normalised(4 * width, inputs, 1)
            inputs = 4 * width
    return shapes + _biased(1000, inputs)


def bert_base() -> Shapes:
    """Devlin et al., 2018 (arXiv:1810.04805), ``bert-base-uncased``: embeddings, 12 layers and the pooler."""
    width = 768
    norm: Shapes = [(width,), (width,)]
    shapes: Shapes = [(30522, width), (512, width), (2, width), *norm]
    for _ in range(12):
        shapes += 4 * _biased(width, width) + norm  # query, key, value, output
        shapes += _biased(4 * width, width) + _biased(width, 4 * width) + norm
    return shapes + _biased(width, width)


def gpt2() -> Shapes:
    """Radford et al., 2019, the smallest GPT-2: the output layer is the embedding; matrices are (in, out)."""
    width = 768
    norm: Shapes = [(width,), (width,)]
    shapes: Shapes = [(50257, width), (1024, width)]
    for _ in range(12):
        shapes += norm + [(width, 3 * width), (3 * width,), (width, width), (width,)]
        shapes += norm + [(width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return shapes + norm


#: By the name that tables show.
MODELS: dict[str, Callable[[], Shapes]] = {
    "GoogLeNet": googlenet,
    "ResNet-50": resnet50,
    "AlexNet": alexnet,
    "BERT-base": bert_base,
    "GPT-2 small": gpt2,
    "VGG-16": vgg16,
}
