"""Zoom-out features: each superpixel is classified by what lies ever farther around it."""

from collections.abc import Mapping
from typing import Any

from dense_perception.graphical.superpixels import boxes, neighbours, slic, Superpixels
from dense_perception.networks.feature_trunk import between, FeatureTrunk, paint
from dense_perception.networks.vgg16 import SHAPES, STAGES
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
import torch
from torch import nn, Tensor
import torch.nn.functional as F

# Superpixels of an image; Mostajabi et al. (2015), section 4. A quarter of them for CPUs.
COUNTS = {'full': 500, 'compact': 125}
RADIUS = 3  # superpixels from one to the next; reach of a sub-scene, section 3.1
WINDOW = 256  # pixels along each side of a sub-scene and of the scene, section 3.1
HIDDEN = {'full': 1024, 'compact': 256}  # width of the hidden layers; section 4
MOST_HIDDEN = 8  # hidden layers; the paper has two

# Sub-scenes that go through the network at once, by device: more no longer fit a CPU's cache.
_CROPS = {'cpu': 4, 'cuda': 16}


class ZoomOut(FeatureTrunk):
    """
    Describe superpixels on every level of VGG-16, then classify each by itself.

    Mostajabi et al. (2015), section 3. The levels are the thirteen convolutions, averaged inside
    the superpixel; fc7 of the sub-scene around it; and fc7 of the whole scene. VGG-16 takes 224
    pixels where a sub-scene has 256: fc6 and fc7 run as convolutions, and what they give is
    averaged.

    Takes (N, 3, H, W) and gives (N, classes, H, W) scores, the same all over a superpixel. Each
    superpixel costs one pass of VGG-16, so an image takes as long as hundreds in other networks.
    """

    stride = 1  # image pixels per score

    def __init__(
        self,
        classes: int,
        width: str = 'full',
        *,
        superpixels: int = 0,
        hidden_layers: int = 2,
        freeze_trunk: bool = True,
        colors: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Build the network.

        :param classes: channels of the scores.
        :param width: a name in `vgg16.SHAPES`.
        :param superpixels: of an image, about; 0 for those in COUNTS.
        :param hidden_layers: of the classifier, 0 to MOST_HIDDEN; 0 makes it linear.
        :param freeze_trunk: leave VGG-16 as it is, as the paper does.
        :param colors: order, mean and scale of the preprocessing; see `InputColors`.
        :raises ValueError: there are fewer or more hidden layers.
        """
        if not 0 <= hidden_layers <= MOST_HIDDEN:
            raise ValueError(f'hidden_layers is {hidden_layers}; it must be 0 to {MOST_HIDDEN}')
        super().__init__(classes, width, freeze_trunk=freeze_trunk, colors=colors)
        self.count = superpixels or COUNTS[width]
        shape = SHAPES[width]
        self.layers = [name for names in STAGES for name in names]
        channels = sum(wide * len(names) for wide, names in zip(shape.widths, STAGES, strict=True))
        self.features = channels + 2 * shape.fc_width
        # Standardises by the mean and deviation met in training; no parameters.
        self.standardize = nn.BatchNorm1d(self.features, affine=False)
        self.classifier = classifier(
            self.features, classes, [HIDDEN[width]] * hidden_layers, shape.dropout
        )

    def forward(self, image: Tensor) -> Tensor:
        """Return class scores, before softmax, one for each pixel."""
        superpixels = self.superpixels(image)
        scores = self.classify(
            [self.describe(one, owner) for one, owner in zip(image, superpixels, strict=True)]
        )
        return torch.stack([paint(*pair) for pair in zip(scores, superpixels, strict=True)])

    def superpixels(self, image: Tensor) -> list[Superpixels]:
        """Return the superpixels of each image of a batch."""
        return [slic(picture, count=self.count) for picture in self.colors.restore(image)]

    def classify(self, features: list[Tensor]) -> list[Tensor]:
        """Return the scores of each superpixel, (S, classes), from (S, features) of each image."""
        scores = self.classifier(self.standardize(torch.cat(features)))
        return list(torch.split(scores, [len(part) for part in features]))

    def describe(self, image: Tensor, superpixels: Superpixels) -> Tensor:
        """
        Return the features of each superpixel.

        :param image: (3, H, W).
        :returns: (S, features): local levels from conv1_1 on, sub-scene, scene.
        """
        with self.trunk_gradients():
            scene = self._fc7(image[None], [(0, 0, *image.shape[1:])])
            # Near corners of the image, several superpixels have the same sub-scene.
            found, of_superpixel = np.unique(sub_scenes(superpixels), axis=0, return_inverse=True)
            at_once = _CROPS.get(image.device.type, _CROPS['cpu'])
            around = torch.cat([
                self._fc7(image[None], [tuple(box) for box in found[start : start + at_once]])
                for start in range(0, len(found), at_once)
            ])[torch.from_numpy(of_superpixel.ravel()).to(image.device)]  # fmt: skip
            return torch.cat(
                [self._local(image, superpixels), around, scene.expand(len(around), -1)], 1
            )

    def _local(self, image: Tensor, superpixels: Superpixels) -> Tensor:
        maps = self.activations(image[None], self.layers)
        pools: dict[torch.Size, Tensor] = {}
        parts = []
        for name in self.layers:
            values = maps[name][0]
            size = values.shape[1:]
            if size not in pools:
                pools[size] = pooling_matrix(superpixels, (size[0], size[1])).to(values.device)
            # Sparse products know no half precision on CPUs.
            pooled = torch.sparse.mm(pools[size], values.flatten(1).T.float())
            parts.append(pooled.to(values.dtype))
        return torch.cat(parts, 1)

    def _fc7(self, image: Tensor, places: list[tuple[int, ...]]) -> Tensor:
        """Return mean fc7 of parts of an image, warped to a square, (boxes, fc7 channels)."""
        warped = torch.cat([
            F.interpolate(
                image[:, :, top:bottom, left:right].float(),  # half precision has no antialias
                (WINDOW, WINDOW),
                mode='bilinear',
                align_corners=False,
                antialias=True,
            )
            for top, left, bottom, right in places
        ])  # fmt: skip
        # Narrow convolutions and pooling take a third of the time where channels run fastest.
        warped = warped.to(image.dtype, memory_format=torch.channels_last)
        return self.activations(warped, ('fc7',))['fc7'].mean((2, 3))


def classifier(features: int, classes: int, hidden: list[int], dropout: float) -> nn.Sequential:
    """Return fully connected layers with ReLU and dropout between them; section 4."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(features, width), nn.ReLU(), nn.Dropout(dropout)]
        features = width
    return nn.Sequential(*layers, nn.Linear(features, classes))


def pooling_matrix(superpixels: Superpixels, size: tuple[int, int]) -> Tensor:
    """
    Return the matrix that enlarges a map to the image and averages it inside each superpixel.

    :param superpixels: (H, W).
    :param size: rows and columns of the map; enlarged bilinearly, centres of pixels half a pixel
        from the border.
    :returns: sparse (S, rows * columns) float32, whose rows sum to 1.
    """
    height, width = superpixels.shape
    rows, columns = between(height, size[0]), between(width, size[1])
    owners, cells, weights = [], [], []
    for row, row_share in rows:
        for column, column_share in columns:
            owners.append(superpixels.ravel())
            cells.append((row[:, None] * size[1] + column).ravel())
            weights.append(np.outer(row_share, column_share).ravel())
    count = int(superpixels.max()) + 1
    matrix = coo_array(
        (np.concatenate(weights), (np.concatenate(owners), np.concatenate(cells))),
        (count, size[0] * size[1]),
    ).tocsr()  # sums what falls in one place
    sizes = np.bincount(superpixels.ravel())
    found = matrix.tocoo()
    values = torch.from_numpy(found.data / sizes[found.row]).float()
    places = torch.from_numpy(np.stack([found.row, found.col]).astype(np.int64))
    return torch.sparse_coo_tensor(
        places, values, matrix.shape, is_coalesced=True, check_invariants=True
    )


def sub_scenes(superpixels: Superpixels, radius: int = RADIUS) -> NDArray[np.int64]:
    """
    Return the box around all superpixels within some steps of each; section 3.1.

    :returns: (S, 4) top, left, bottom, right; ends exclusive.
    """
    found = boxes(superpixels)
    first, second = neighbours(superpixels)[0].T
    for _ in range(radius):
        wider = found.copy()
        for one, other in ((first, second), (second, first)):
            np.minimum.at(wider[:, :2], one, found[other, :2])
            np.maximum.at(wider[:, 2:], one, found[other, 2:])
        found = wider
    return found


def superpixel_loss(scores: Tensor, labels: Tensor, frequencies: Tensor) -> Tensor:
    """
    Return the mean log-loss over superpixels, each weighted by how rare its class is; section 3.3.

    :param scores: (S, classes).
    :param labels: (S,) int64 majority class of each superpixel; -1 is ignored, none give 0.
    :param frequencies: (classes,) share of each class in the training set.
    """
    known = labels >= 0
    logs = F.log_softmax(scores[known], 1)
    own = logs.gather(1, labels[known, None])[:, 0]
    return -(own / frequencies[labels[known]]).sum() / known.sum().clamp_min(1)
