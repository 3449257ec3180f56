"""Superpixels: connected pieces of an image, most of which lie in one object."""

from collections.abc import Iterator
from typing import Any

from dense_perception.arrays import Image, Labels
from dense_perception.errors import InputError
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects, gaussian_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Superpixels = NDArray[np.int32]  # (H, W) index of each pixel's superpixel, from 0 without gaps
Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


def felzenszwalb(
    image: Image, *, scale: float = 200.0, deviation: float = 0.8, smallest: int = 100
) -> Superpixels:
    """
    Merge pixels along weak edges first, as long as an edge is no stronger than those inside.

    Felzenszwalb and Huttenlocher (2004), section 4, over the grid of eight neighbours as in the
    authors' code.

    :param image: (H, W, 3) uint8 RGB.
    :param scale: k of equation 4, in grey levels times pixels; larger gives larger superpixels.
    :param deviation: pixels, of the Gaussian that smooths the image first.
    :param smallest: pixels; a smaller superpixel joins the neighbour with the weakest edge.
    :returns: (H, W) int32.
    :raises InputError: the image has another form.
    """
    _check(image)
    smooth = gaussian_filter(
        image.astype(np.float32), (deviation, deviation, 0), mode='nearest', truncate=4.0
    )
    first, second, weights = _grid_edges(smooth)
    order = np.argsort(weights, kind='stable')
    first, second = first[order], second[order]
    forest = _Forest(image.shape[0] * image.shape[1], scale)
    forest.merge_similar(first.tolist(), second.tolist(), weights[order].tolist())
    roots = forest.roots()
    border = roots[first] != roots[second]
    forest.merge_small(roots[first[border]].tolist(), roots[second[border]].tolist(), smallest)
    return _numbered(forest.roots()).reshape(image.shape[:2])


class _Forest:
    """Disjoint sets of pixels; lists, for single numbers in arrays are slow."""

    def __init__(self, pixels: int, scale: float) -> None:
        self.scale = scale
        self.parent = list(range(pixels))
        self.size = [1] * pixels
        self.limit = [scale] * pixels  # strongest edge inside + scale / size

    def merge_similar(self, first: list[int], second: list[int], weights: list[float]) -> None:
        """Merge along edges, given in rising order, that neither side finds too strong."""
        limit = self.limit
        for one, other, weight in zip(first, second, weights, strict=True):
            a, b = self._root(one), self._root(other)
            if a != b and weight <= limit[a] and weight <= limit[b]:
                root = self._join(a, b)
                limit[root] = weight + self.scale / self.size[root]

    def merge_small(self, first: list[int], second: list[int], smallest: int) -> None:
        """Merge along edges, given in rising order, of which one side is too small."""
        for one, other in zip(first, second, strict=True):
            a, b = self._root(one), self._root(other)
            if a != b and min(self.size[a], self.size[b]) < smallest:
                self._join(a, b)

    def roots(self) -> Indices:
        """Root of every pixel, (P,)."""
        parent = np.array(self.parent)
        while not np.array_equal(parent, above := parent[parent]):
            parent = above
        return parent

    def _root(self, pixel: int) -> int:
        parent = self.parent
        while parent[pixel] != pixel:
            parent[pixel] = pixel = parent[parent[pixel]]
        return pixel

    def _join(self, a: int, b: int) -> int:
        if self.size[a] < self.size[b]:
            a, b = b, a
        self.parent[b] = a
        self.size[a] += self.size[b]
        return a


def slic(
    image: Image, *, count: int = 500, compactness: float = 10.0, iterations: int = 10
) -> Superpixels:
    """
    Cluster pixels by colour and place, each cluster within reach of where it lies.

    Achanta et al. (2012), section 3, algorithm 1. Pieces that are cut off, and clusters below a
    quarter of the mean size, join the neighbour with the longest common border.

    :param image: (H, W, 3) uint8 RGB.
    :param count: superpixels wanted; about as many are made.
    :param compactness: m of equation 3, in units of CIELAB; larger gives rounder superpixels.
    :returns: (H, W) int32.
    :raises InputError: the image has another form, or count is below 1.
    """
    _check(image)
    if count < 1:
        raise InputError(f'count of superpixels is {count}; it must be at least 1')
    height, width = image.shape[:2]
    step = max(1.0, (height * width / count) ** 0.5)  # pixels; S of the paper
    grid = max(1, round(height / step)), max(1, round(width / step))
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    scale = np.float32(compactness / step)
    # Coordinates scaled so that plain distance in all five is that of the paper.
    features = np.concatenate([lab(image), np.stack([rows * scale, columns * scale])])
    centers = _seeds(features, grid)
    cells = rows.astype(np.int64) * grid[0] // height * grid[1]
    owner = cells + columns.astype(np.int64) * grid[1] // width  # until a cluster claims a pixel
    for _ in range(iterations):
        owner = _nearest(features, centers, owner, step, scale)
        sizes = np.bincount(owner.ravel(), minlength=len(centers))
        for axis, values in enumerate(features):
            sums = np.bincount(owner.ravel(), values.ravel(), minlength=len(centers))
            centers[sizes > 0, axis] = sums[sizes > 0] / sizes[sizes > 0]
    return _join_small(_pieces(owner), step**2 / 4)


def _seeds(features: NDArray[np.float32], grid: tuple[int, int]) -> NDArray[np.float32]:
    """Features of a grid of pixels, each moved to the flattest place of the 3 x 3 around it."""
    height, width = features.shape[1:]
    flat = np.zeros((height, width), np.float32)
    for axis, size in enumerate((height, width)):
        if size > 2:
            flat += np.square(np.gradient(features[:3], axis=axis + 1)).sum(0)
    places = []
    for row in ((np.arange(grid[0]) + 0.5) * height / grid[0]).astype(int):
        for column in ((np.arange(grid[1]) + 0.5) * width / grid[1]).astype(int):
            top, left = max(row - 1, 0), max(column - 1, 0)
            around = flat[top : row + 2, left : column + 2]
            down, right = np.unravel_index(around.argmin(), around.shape)
            places.append((top + down, left + right))
    at_row, at_column = np.array(places).T
    return features[:, at_row, at_column].T.copy()  # (K, 5)


def _nearest(
    features: NDArray[np.float32],
    centers: NDArray[np.float32],
    owner: Indices,
    step: float,
    scale: np.float32,
) -> Indices:
    """Index of the nearest center among those at most `step` rows and columns away."""
    owner = owner.copy()
    best = np.full(owner.shape, np.inf, np.float32)
    reach = int(np.ceil(step))
    for index, center in enumerate(centers):
        row, column = (int(round(float(place / scale))) if scale else 0 for place in center[3:])
        window = (
            slice(max(row - reach, 0), row + reach + 1),
            slice(max(column - reach, 0), column + reach + 1),
        )
        distance = np.square(features[:, window[0], window[1]] - center[:, None, None]).sum(0)
        closer = distance < best[window]
        best[window][closer] = distance[closer]
        owner[window][closer] = index
    return owner


def lab(image: Image) -> NDArray[np.float32]:
    """
    Return an sRGB image in CIELAB, white point D65.

    :param image: (H, W, 3) uint8 RGB.
    :returns: (3, H, W) float32; L from 0 to 100, a and b about -100 to 100.
    """
    levels = np.arange(256) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    # IEC 61966-2-1; rows divided by the white point.
    matrix = np.array(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.0721750],
            [0.0193339, 0.1191920, 0.9503041],
        ]
    )
    matrix /= matrix.sum(1, keepdims=True)
    xyz = linear.astype(np.float32)[image] @ matrix.T.astype(np.float32)
    root = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)]).astype(np.float32)


def neighbours(superpixels: Superpixels) -> tuple[Indices, Indices]:
    """
    Return which superpixels touch, by a common side of two pixels.

    :returns: (E, 2) int64, each pair once, smaller index first, and the (E,) sides they share.
    """
    count = int(superpixels.max()) + 1
    pairs = []
    for one, other in _sides(superpixels):
        apart = one != other
        low = np.minimum(one[apart], other[apart]).astype(np.int64)
        pairs.append(low * count + np.maximum(one[apart], other[apart]))
    keys, sides = np.unique(np.concatenate(pairs), return_counts=True)
    return np.stack([keys // count, keys % count], 1), sides


def boxes(superpixels: Superpixels) -> Indices:
    """Return the bounding box of each, (S, 4) int64: top, left, bottom, right; ends exclusive."""
    found = find_objects(superpixels + 1)
    assert all(place is not None for place in found)  # indices have no gaps
    return np.array(
        [[rows.start, columns.start, rows.stop, columns.stop] for rows, columns in found]
    )


def majority_labels(
    superpixels: Superpixels, labels: Labels, classes: int
) -> tuple[Indices, Floats]:
    """
    Return the commonest class of each superpixel.

    :param labels: (H, W) uint8; values of no class do not count.
    :returns: (S,) int64, -1 where no pixel is labelled, and the (S,) share of the superpixel's
        pixels, labelled or not, that have this class.
    :raises InputError: the two differ in shape.
    """
    if superpixels.shape != labels.shape:
        raise InputError(f'superpixels are {superpixels.shape}, labels are {labels.shape}')
    sizes = np.bincount(superpixels.ravel())
    known = labels < classes
    keys = superpixels[known].astype(np.int64) * classes + labels[known]
    counts = np.bincount(keys, minlength=len(sizes) * classes).reshape(-1, classes)
    best = counts.max(1)
    return np.where(best > 0, counts.argmax(1), -1), best / sizes


def _check(image: Image) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise InputError(f'image is {image.shape} {image.dtype}; (H, W, 3) uint8 is needed')


def _grid_edges(image: NDArray[np.float32]) -> tuple[Indices, Indices, Floats]:
    """Edges between the eight neighbours of each pixel, and their difference in colour."""
    height, width = image.shape[:2]
    places = np.arange(height * width).reshape(height, width)
    first, second, weights = [], [], []
    for (top, left), (down, right) in (
        ((0, 0), (0, 1)),
        ((0, 0), (1, 0)),
        ((0, 0), (1, 1)),
        ((1, 0), (0, 1)),
    ):
        rows, columns = height - max(top, down), width - max(left, right)
        one = slice(top, top + rows), slice(left, left + columns)
        other = slice(down, down + rows), slice(right, right + columns)
        first.append(places[one].ravel())
        second.append(places[other].ravel())
        weights.append(np.linalg.norm(image[one] - image[other], axis=-1).ravel())
    return np.concatenate(first), np.concatenate(second), np.concatenate(weights)


def _sides(values: NDArray[np.int32]) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32]]]:
    """Values on either side of every border between two pixels: left and right, upper, lower."""
    yield values[:, :-1].ravel(), values[:, 1:].ravel()
    yield values[:-1].ravel(), values[1:].ravel()


def _pieces(owner: Indices) -> Superpixels:
    """Give every connected piece of equal values an index of its own."""
    places = np.arange(owner.size, dtype=np.int32).reshape(owner.shape)
    joined = [
        np.stack([one[same], other[same]])
        for (one, other), same in zip(
            _sides(places), (a == b for a, b in _sides(owner.astype(np.int32))), strict=True
        )
    ]
    return _connected(np.concatenate(joined, 1), owner.size).reshape(owner.shape)


def _connected(edges: NDArray[Any], count: int) -> NDArray[np.int32]:
    """Index of the connected component of each of `count` nodes; edges are (2, E)."""
    graph = coo_array((np.ones(edges.shape[1], bool), (edges[0], edges[1])), (count, count))
    return _numbered(connected_components(graph, directed=False)[1])


def _numbered(values: NDArray[Any]) -> NDArray[np.int32]:
    """Replace equal values by equal indices, in the order in which they appear."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int32)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


def _join_small(superpixels: Superpixels, smallest: float) -> Superpixels:
    while True:
        sizes = np.bincount(superpixels.ravel())
        if len(sizes) == 1 or sizes.min() >= smallest:
            return superpixels
        pairs, sides = neighbours(superpixels)
        both = np.concatenate([pairs, pairs[:, ::-1]])
        longest_first = np.argsort(-np.concatenate([sides, sides]), kind='stable')
        both = both[longest_first]
        small, choice = np.unique(both[:, 0], return_index=True)
        chosen = both[choice][sizes[small] < smallest]
        superpixels = _connected(chosen.T, len(sizes))[superpixels]
