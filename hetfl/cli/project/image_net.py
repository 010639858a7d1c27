"""Your own net for images. project.yaml names it as net.Net; hetfl calls it with the width of each level."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hetfl.models import Scaler, StaticBatchNorm2d, scaled


class Net(nn.Module):
    """Two blocks of convolution, norm, ReLU and pooling, the mean over all positions, and a linear layer.

    A sub-model of width 0.5 is the first half of the channels. So `width` scales the hidden channels, but not the
    inputs and the classes, and every layer takes the first channels of its input. hetfl checks this at start.

    Args:
        in_channels: number of channels of the images.
        num_classes: number of classes.
        hidden: channels of the two blocks at width 1.
        width: share of the hidden channels, in (0, 1].
    """

    def __init__(self, in_channels: int, num_classes: int, hidden: Sequence[int], width: float = 1.0) -> None:
        super().__init__()
        first, second = (scaled(channels, width) for channels in hidden)
        self.blocks = nn.Sequential(_block(in_channels, first, width), _block(first, second, width))
        self.classifier = nn.Linear(second, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, classes) of images (N, channels, height, width)."""
        logits: Tensor = self.classifier(self.blocks(images).mean(dim=(2, 3)))
        return logits


def _block(incoming: int, outgoing: int, width: float) -> nn.Module:
    """Return a block; in training, the Scaler compensates for the channels that a narrow net lacks (HeteroFL)."""
    conv = nn.Conv2d(incoming, outgoing, kernel_size=3, padding=1)
    return nn.Sequential(conv, Scaler(width), StaticBatchNorm2d(outgoing), nn.ReLU(), nn.MaxPool2d(2))
