"""Run a network on tiles of an image, as the released dilated networks are run."""

import torch
from torch import nn, Tensor
import torch.nn.functional as F


def reflect(values: Tensor, before: tuple[int, int], after: tuple[int, int]) -> Tensor:
    """
    Reflect an image outwards about its outermost pixels; back and forth where it is too small.

    :param values: (N, C, H, W).
    :param before: rows above, and columns on the left.
    :param after: rows below, and columns on the right.
    """
    for axis, first, last in zip((2, 3), before, after, strict=True):
        size = values.shape[axis]
        places = torch.arange(-first, size + last, device=values.device)
        period = max(1, 2 * (size - 1))
        places = places % period
        places = torch.minimum(places, period - places)
        values = values.index_select(axis, places)
    return values


class Tiled(nn.Module):
    """
    A network that sees its image in tiles of one size, each with reflected or true surroundings.

    Yu and Koltun (2016), `predict.py` of the release. The image is reflected outwards by the
    network's margin and cut into tiles that overlap by twice the margin; the last of a row or
    column is filled by reflection. The scores of the tiles are set side by side. Seams show: the
    context module pads each tile's scores with zeros, and enlargement stops at the tile's border.
    Where the part of a tile inside the margins is no multiple of 8 (KITTI, 1268 columns), the
    scores of a second tile lie up to 7 pixels too far; the release has that, too.

    Takes (N, 3, H, W) without margin and gives (N, C, rows, columns) scores of `stride` x `stride`
    pixels each, of all tiles, so also beyond the image at the bottom and on the right.
    """

    margin = 0  # what the image must bring; the tiles' margins are made here

    def __init__(self, network: nn.Module, tile: tuple[int, int], *, enlarge: bool) -> None:
        """
        Wrap a network.

        :param network: has `margin` and `stride`; gives ceil(size / stride) scores for the pixels
            inside the margin.
        :param tile: rows and columns of what the network sees, margins included.
        :param enlarge: interpolate each tile's scores to pixels before they are joined, as the
            release does where the network ends with an enlarging layer; the stride is 1 then.
        :raises ValueError: the margins leave nothing of a tile.
        """
        super().__init__()
        self.network = network
        self.tile_margin = int(getattr(network, 'margin', 0))
        if min(tile) <= 2 * self.tile_margin:
            raise ValueError(
                f'tile is {tile[0]} x {tile[1]}; it must have more than twice the margin of '
                f'{self.tile_margin} pixels each way'
            )
        self.tile = tile
        self.factor = int(getattr(network, 'stride', 1)) if enlarge else 1
        self.stride = int(getattr(network, 'stride', 1)) // self.factor

    def forward(self, image: Tensor) -> Tensor:
        """Return the joined scores of all tiles, before softmax."""
        margin = self.tile_margin
        inside = [side - 2 * margin for side in self.tile]
        surrounded = reflect(image, (margin, margin), (margin, margin))
        return torch.cat(
            [
                torch.cat(
                    [
                        self._scores(surrounded[:, :, top:, left:])
                        for left in range(0, image.shape[3], inside[1])
                    ],
                    3,
                )
                for top in range(0, image.shape[2], inside[0])
            ],
            2,
        )

    def _scores(self, corner: Tensor) -> Tensor:
        """Return the scores of the tile in the upper left corner."""
        rows, columns = self.tile
        tile = corner[:, :, :rows, :columns]
        tile = reflect(tile, (0, 0), (rows - tile.shape[2], columns - tile.shape[3]))
        scores: Tensor = self.network(tile)
        if self.factor > 1:
            scores = F.interpolate(
                scores, scale_factor=float(self.factor), mode='bilinear', align_corners=False
            )
        return scores
