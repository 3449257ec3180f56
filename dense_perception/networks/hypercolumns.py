"""Hypercolumns: each pixel is classified by the activations above it, by a grid of classifiers."""

from collections.abc import Mapping, Sequence
from typing import Any

from dense_perception.graphical.superpixels import slic
from dense_perception.networks.feature_trunk import between, FeatureTrunk, paint
from dense_perception.networks.layers import crop_to, rectified
from dense_perception.networks.vgg16 import SHAPES
import numpy as np
import torch
from torch import nn, Tensor
import torch.nn.functional as F

GRID = 5  # cells along each side, each with a classifier of its own; Hariharan et al., section 3.1
MASK_SIDE = 50  # rows and columns of a box's scores
# What pool3 and pool4 are multiplied by before they are scored, in the released models.
MAP_SCALES = (0.0027, 0.063)
BOX_AREA = 224**2  # pixels; a smaller box counts less in the loss

_FINE = 8  # pixels for each value of pool3, the finest map
_CERTAIN = 1e-6  # averaged probabilities stay this far from 0 and 1


class Hypercolumns(FeatureTrunk):
    """
    Score pool3, pool4 and fc7, enlarge the scores and add them up.

    Hariharan et al. (2015), sections 3 and 4; VGG-16 layers of the released models. A linear
    classifier of the stacked activations is the sum of one convolution for each map, so the stack
    itself is never made. Each cell of a grid has classifiers of its own; a pixel's probability is
    interpolated between those of the cells around it.

    Takes (N, 3, H, W) and gives (N, classes, H, W) scores, the log-odds of each class. The grid
    lies over the whole image there, as it does over a box in `box_scores`, which the paper uses;
    fc6 looks at the 7 x 7 values of pool5 around each place instead of those of a box. In
    inference, probabilities are averaged over superpixels.
    """

    stride = 1  # image pixels per score

    def __init__(
        self,
        classes: int,
        width: str = 'full',
        *,
        grid: int = GRID,
        map_scales: Sequence[float] = MAP_SCALES,
        superpixels: int = 500,
        freeze_trunk: bool = True,
        colors: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Build the network.

        :param classes: channels of the scores.
        :param width: a name in `vgg16.SHAPES`.
        :param grid: cells along each side; 1 for one classifier everywhere.
        :param map_scales: of pool3 and pool4. The published ones suit the activations of the
            published VGG-16; (1, 1) suits one that is trained from the start.
        :param superpixels: of an image, over which probabilities are averaged; 0 for no averaging.
        :param freeze_trunk: leave VGG-16 as it is, as the released models do.
        :param colors: order, mean and scale of the preprocessing; see `InputColors`.
        :raises ValueError: grid is below 1, or there are not two scales.
        """
        super().__init__(classes, width, freeze_trunk=freeze_trunk, colors=colors)
        if grid < 1:
            raise ValueError(f'grid is {grid}; it must be at least 1')
        if len(map_scales) != 2:
            raise ValueError(f'map_scales are {len(map_scales)}; pool3 and pool4 need one each')
        self.grid, self.count = grid, superpixels
        self.map_scales = tuple(map_scales)
        shape = SHAPES[width]
        scores = classes * grid**2
        self.score_pool3 = nn.Conv2d(shape.widths[2], scores, 3, padding=1)
        self.score_pool4 = nn.Conv2d(shape.widths[3], scores, 1)
        self.score_fc7 = nn.Conv2d(shape.fc_width, scores, 1)
        for layer in (self.score_pool3, self.score_pool4, self.score_fc7):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, image: Tensor) -> Tensor:
        """Return class scores, the log-odds of each class, one for each pixel."""
        scores = self.pixel_scores(image)
        return self._averaged(scores, image) if self.count and not self.training else scores

    def pixel_scores(self, image: Tensor) -> Tensor:
        """Return what `forward` does, without averaging."""
        maps = self._trunk(image, ('pool3', 'pool4', 'pool5'))
        # Padded, so that there is a value of fc7 for each of pool5.
        fc7 = self._fc7(F.pad(maps['pool5'], (3, 3, 3, 3)))
        scores = self.score_pool3(maps['pool3'] * self.map_scales[0])
        scores = scores + enlarge(self._score_pool4(maps['pool4']), 2, scores)
        scores = scores + enlarge(self.score_fc7(fc7), 4, scores)
        return enlarge(between_cells(scores, self.grid), _FINE, image)

    def box_scores(self, image: Tensor, boxes: Tensor, categories: Tensor) -> Tensor:
        """
        Return the log-odds that the places of a box belong to its object, (boxes, 50, 50).

        :param image: (1, 3, H, W).
        :param boxes: (boxes, 4) pixels: left, top, right, bottom.
        :param categories: (boxes,) int64 class of each box.
        """
        maps = self._trunk(image, ('pool3', 'pool4', 'conv5_3'))
        fine = sample_boxes(self.score_pool3(maps['pool3'] * self.map_scales[0]), boxes, _FINE)
        coarse = sample_boxes(self._score_pool4(maps['pool4']), boxes, 2 * _FINE)
        pooled = torch.cat([pool_box(maps['conv5_3'], box, 2 * _FINE) for box in boxes])
        summed = fine + coarse + self.score_fc7(self._fc7(pooled))  # (boxes, C K K, 50, 50)
        own = torch.arange(len(boxes), device=categories.device)
        return between_cells(summed, self.grid)[own, categories]

    def _trunk(self, image: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        with self.trunk_gradients():
            return self.activations(image, names)

    def _fc7(self, pooled: Tensor) -> Tensor:
        """Return fc7 of each 7 x 7 window of values like those of pool5."""
        with self.trunk_gradients():
            fc6 = self.dropout(rectified(self.fc6, pooled))
            return self.dropout(rectified(self.fc7, fc6))

    def _score_pool4(self, pool4: Tensor) -> Tensor:
        return self.score_pool4(pool4 * self.map_scales[1])

    @torch.no_grad()
    def _averaged(self, scores: Tensor, image: Tensor) -> Tensor:
        """Return scores whose probabilities are averaged over superpixels."""
        painted = []
        for probabilities, picture in zip(
            scores.float().sigmoid(), self.colors.restore(image), strict=True
        ):
            superpixels = slic(picture, count=self.count)
            owner = torch.from_numpy(superpixels).to(scores.device).flatten()
            sizes = torch.bincount(owner)
            sums = probabilities.new_zeros(len(sizes), self.classes)
            sums.index_add_(0, owner, probabilities.flatten(1).T)
            mean = (sums / sizes[:, None]).clamp(_CERTAIN, 1 - _CERTAIN)
            painted.append(paint(mean.logit(), superpixels))
        return torch.stack(painted).to(scores.dtype)


def hypercolumns(maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """
    Return the stacked activations above every place; section 3.

    :param maps: (N, C, rows, columns) each, of any sizes.
    :param size: rows and columns to which each is enlarged bilinearly.
    :returns: (N, sum of C, rows, columns).
    """
    return torch.cat(
        [F.interpolate(values, size, mode='bilinear', align_corners=False) for values in maps], 1
    )


def enlarge(values: Tensor, factor: int, reference: Tensor) -> Tensor:
    """Enlarge bilinearly by a whole factor, and cut to the rows and columns of `reference`."""
    larger = F.interpolate(values, scale_factor=factor, mode='bilinear', align_corners=False)
    return crop_to(larger, reference)


def cell_weights(size: tuple[int, int], grid: int) -> Tensor:
    """
    Return how much each cell of a grid counts at each place; section 3.1.

    :param size: rows and columns over which the grid lies.
    :returns: (grid * grid, rows, columns) float32, bilinear between the centres of the cells and
        constant beyond them; they sum to 1 everywhere.
    """
    lines = []
    for length in size:
        weights = np.zeros((grid, length))
        for cell, share in between(length, grid):
            weights[cell, np.arange(length)] += share
        lines.append(torch.from_numpy(weights).float())
    return torch.einsum('ih,jw->ijhw', *lines).flatten(0, 1)


def between_cells(scores: Tensor, grid: int) -> Tensor:
    """
    Return the log-odds of probabilities interpolated between the cells of a grid; section 3.1.

    :param scores: (N, classes * grid * grid, rows, columns) log-odds; cells run fastest, row by
        row.
    :returns: (N, classes, rows, columns).
    """
    batch, channels, rows, columns = scores.shape
    cells = scores.reshape(batch, channels // grid**2, grid**2, rows, columns)
    weights = cell_weights((rows, columns), grid).to(scores).log()
    # Logarithms throughout: probabilities near 0 and 1 keep their odds and their gradient.
    yes = torch.logsumexp(F.logsigmoid(cells) + weights, 2)
    return yes - torch.logsumexp(F.logsigmoid(-cells) + weights, 2)


def sample_boxes(values: Tensor, boxes: Tensor, stride: int) -> Tensor:
    """
    Read a map at 50 x 50 places of each box, each in the middle of its part of the box.

    :param values: (1, C, rows, columns); at the border it goes on as it ends.
    :param boxes: (boxes, 4) pixels: left, top, right, bottom.
    :param stride: pixels for each value.
    :returns: (boxes, C, 50, 50).
    """
    along = (torch.arange(MASK_SIDE, device=boxes.device) + 0.5) / MASK_SIDE
    left, top, right, bottom = boxes.to(values)[:, :, None].unbind(1)  # (boxes, 1) each
    x = (left + along * (right - left)) / (stride * values.shape[3]) * 2 - 1
    y = (top + along * (bottom - top)) / (stride * values.shape[2]) * 2 - 1
    places = torch.stack(
        [x[:, None].expand(-1, MASK_SIDE, -1), y[:, :, None].expand(-1, -1, MASK_SIDE)], 3
    )
    return F.grid_sample(
        values.expand(len(boxes), -1, -1, -1),
        places.to(values.dtype),
        padding_mode='border',
        align_corners=False,
    )


def pool_box(values: Tensor, box: Tensor, stride: int) -> Tensor:
    """
    Return the maxima of a 7 x 7 grid over a box; Girshick (2015), section 2.1.

    :param values: (1, C, rows, columns).
    :param box: (4,) pixels: left, top, right, bottom.
    :returns: (1, C, 7, 7).
    """
    rows, columns = values.shape[2:]
    left, top, right, bottom = (box.float() / stride).round().long().tolist()
    left, top = min(max(left, 0), columns - 1), min(max(top, 0), rows - 1)
    part = values[:, :, top : max(bottom, top) + 1, left : max(right, left) + 1]
    return F.adaptive_max_pool2d(part, 7)


def box_loss(scores: Tensor, masks: Tensor, areas: Tensor) -> Tensor:
    """
    Return the log-loss of all places, summed, over the number of boxes; section 4 and release.

    :param scores: (boxes, 50, 50) log-odds.
    :param masks: (boxes, 50, 50), 1 where the object is and 0 elsewhere.
    :param areas: (boxes,) pixels of each box; those below 224 x 224 weigh less.
    """
    loss = F.binary_cross_entropy_with_logits(scores, masks.to(scores), reduction='none')
    weights = (areas / BOX_AREA).clamp_max(1)
    return (loss.sum((1, 2)) * weights).sum() / len(scores)
