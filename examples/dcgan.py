"""
DCGAN: pictures from noise by transposed convolutions (Radford et al., 2016).

`python examples/dcgan.py PICTURES out.png` trains for a while on squares of a folder's pictures
and draws 64 new ones. Each transposed convolution doubles the size: 4, 8, 16, 32, 64.
"""

import argparse
from pathlib import Path

import cv2
from dense_perception.data.frames import pictures, read_picture
import numpy as np
import torch
from torch import nn, Tensor
import torch.nn.functional as F

NOISE = 100  # numbers that a picture is made from
SIDE = 64  # pixels
FULL = (1024, 512, 256, 128)  # channels at sides 4, 8, 16 and 32; figure 1


class Generator(nn.Sequential):
    """Turn noise (N, 100) into pictures (N, 3, 64, 64) of -1 to 1; section 3, figure 1."""

    def __init__(self, widths: tuple[int, ...] = FULL) -> None:
        layers: list[nn.Module] = [nn.Unflatten(1, (NOISE, 1, 1))]
        # The first layer is the projection of figure 1 written as a transposed convolution.
        layers.append(nn.ConvTranspose2d(NOISE, widths[0], 4, bias=False))
        for channels, out in zip(widths, (*widths[1:], 3), strict=True):
            layers += [nn.BatchNorm2d(channels), nn.ReLU()]
            layers.append(nn.ConvTranspose2d(channels, out, 5, 2, 2, 1, bias=False))
        super().__init__(*layers, nn.Tanh())
        initialise(self)


class Discriminator(nn.Sequential):
    """Score pictures (N, 3, 64, 64): positive for real ones, (N,) before the sigmoid."""

    def __init__(self, widths: tuple[int, ...] = FULL) -> None:
        layers: list[nn.Module] = []
        channels = 3
        for out in reversed(widths):
            layers.append(nn.Conv2d(channels, out, 5, 2, 2, bias=False))
            layers += [nn.BatchNorm2d(out)] if channels != 3 else []
            layers.append(nn.LeakyReLU(0.2))
            channels = out
        super().__init__(*layers, nn.Conv2d(channels, 1, 4, bias=False), nn.Flatten(0))
        initialise(self)


def initialise(network: nn.Module) -> None:
    """Start from small random weights; section 4."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, std=0.02)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, 0.02)


class Trainer:
    """Let the two networks compete; section 4 for optimiser and rates."""

    def __init__(self, generator: Generator, discriminator: Discriminator) -> None:
        self.networks = generator, discriminator
        self.optimizers = [
            torch.optim.Adam(network.parameters(), 2e-4, (0.5, 0.999)) for network in self.networks
        ]

    def step(self, real: Tensor) -> tuple[float, float]:
        """Take one step on real pictures; return the losses of generator and discriminator."""
        generator, discriminator = self.networks
        made = generator(torch.randn(len(real), NOISE))
        losses = (
            F.softplus(-discriminator(made)).mean(),
            F.softplus(-discriminator(real)).mean()
            + F.softplus(discriminator(made.detach())).mean(),
        )
        for loss, network, optimizer in zip(losses, self.networks, self.optimizers, strict=True):
            gradients = torch.autograd.grad(loss, list(network.parameters()))
            for value, gradient in zip(network.parameters(), gradients, strict=True):
                value.grad = gradient
            optimizer.step()
        return losses[0].item(), losses[1].item()


def squares(folder: Path) -> Tensor:
    """Return the middle of each picture of a folder, (N, 3, 64, 64) of -1 to 1."""
    found = []
    for path in pictures(folder):
        picture = read_picture(path)
        side = min(picture.shape[:2])
        top, left = ((size - side) // 2 for size in picture.shape[:2])
        square = picture[top : top + side, left : left + side]
        found.append(cv2.resize(square, (SIDE, SIDE), interpolation=cv2.INTER_AREA))
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2) / 127.5 - 1


def main() -> None:
    """Train on a folder of pictures and draw new ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('pictures', type=Path)
    parser.add_argument('out', type=Path)
    parser.add_argument('--steps', type=int, default=500)
    options = parser.parse_args()
    torch.manual_seed(0)
    real = squares(options.pictures)
    widths = tuple(width // 4 for width in FULL)
    generator = Generator(widths)
    trainer = Trainer(generator, Discriminator(widths))
    for _ in range(options.steps):
        trainer.step(real[torch.randint(len(real), (32,))])
    with torch.no_grad():
        made = ((generator.eval()(torch.randn(64, NOISE)) + 1) * 127.5).byte()
    sheet = made.reshape(8, 8, 3, SIDE, SIDE).permute(0, 3, 1, 4, 2).reshape(8 * SIDE, -1, 3)
    cv2.imwrite(str(options.out), sheet.numpy()[..., ::-1])


if __name__ == '__main__':
    main()
