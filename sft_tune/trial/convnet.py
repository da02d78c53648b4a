"""`builtin:convnet`: a residual network of 56,000 parameters for images of 8x8 to 64x64."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTHS = (16, 32, 48)


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2016, in its batch-norm form)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """Map ``inputs`` channels to ``outputs``, height and width divided by ``stride``."""
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
        # The block begins as its shortcut, which trains faster (Goyal et al. 2017, section 5.1).
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map [b, inputs, h, w] to [b, outputs, h/stride, w/stride]."""
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.shortcut(x) + self.norm2(self.conv2(y)))


class ConvNet(nn.Module):
    """A stem, three residual blocks at falling resolution, a mean over positions, a head."""

    def __init__(self, classes: int) -> None:
        """Build the network with a head of ``classes`` outputs."""
        super().__init__()
        first, second, third = WIDTHS
        self.stem = nn.Conv2d(3, first, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(first)
        self.blocks = nn.Sequential(
            Residual(first, first, 1), Residual(first, second, 2), Residual(second, third, 2)
        )
        self.head = nn.Linear(third, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels [b, 3, h, w] to logits [b, classes]."""
        x = self.blocks(functional.relu(self.norm(self.stem(pixels))))
        logits: Tensor = self.head(torch.mean(x, dim=(2, 3)))
        return logits
