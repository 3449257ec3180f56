from functools import partial

import cv2
from dense_perception.data.road_world import RoadWorld
from dense_perception.errors import InputError
from dense_perception.graphical.superpixels import (
    boxes,
    felzenszwalb,
    lab,
    majority_labels,
    neighbours,
    slic,
)
import numpy as np
import pytest
from scipy.ndimage import label
from scipy.sparse import coo_array
from scipy.sparse.csgraph import minimum_spanning_tree

BOTH = [felzenszwalb, slic]
# Three superpixels: 0 above, 1 left below, 2 right below.
SMALL = np.array([[0, 0, 0, 0], [1, 1, 2, 2], [1, 1, 1, 2]], np.int32)


def noise(rows, columns, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), dtype=np.uint8)


def by_the_definition(image, scale):
    """Segments of equation 4, the inner difference measured anew on each spanning tree."""
    height, width = image.shape[:2]
    values = image.reshape(-1, 3).astype(np.float32)
    places = [(row, column) for row in range(height) for column in range(width)]
    edges = sorted(
        (float(np.linalg.norm(values[a] - values[b])), a, b)
        for a, (row, column) in enumerate(places)
        for b, (other_row, other_column) in enumerate(places)
        if a < b and max(abs(row - other_row), abs(column - other_column)) == 1
    )
    segment = np.arange(height * width)

    def limit(index):
        inside = [edge for edge in edges if segment[edge[1]] == segment[edge[2]] == index]
        weights, first, second = zip(*inside, strict=True) if inside else ((), (), ())
        # A weight of 0 is no edge to scipy; ours are all positive.
        tree = minimum_spanning_tree(coo_array((weights, (first, second)), (len(values),) * 2))
        return tree.data.max(initial=0.0) + scale / (segment == index).sum()

    for weight, a, b in edges:
        one, other = segment[a], segment[b]
        if one != other and weight <= min(limit(one), limit(other)):
            segment[segment == other] = one
    return segment.reshape(height, width)


def same_pieces(one, other):
    pairs = np.unique(np.stack([one.ravel(), other.ravel()]), axis=1)
    return pairs.shape[1] == len(np.unique(one)) == len(np.unique(other))


@pytest.mark.parametrize(('scale', 'pieces'), [(60.0, 27), (150.0, 9), (300.0, 3)])
def test_graph_segmentation_is_that_of_its_definition(scale, pieces):
    image = noise(5, 6, seed=3)
    found = felzenszwalb(image, scale=scale, deviation=1e-3, smallest=1)
    assert same_pieces(found, by_the_definition(image, scale))
    assert found.max() + 1 == pieces


@pytest.mark.parametrize('make', BOTH)
@pytest.mark.parametrize('size', [(1, 1), (1, 9), (7, 2), (33, 47)])
def test_superpixels_cover_the_image_and_are_numbered_without_gaps(make, size):
    superpixels = make(noise(*size))
    assert superpixels.shape == size
    assert superpixels.dtype == np.int32
    assert np.array_equal(np.unique(superpixels), np.arange(superpixels.max() + 1))


# The graph joins pixels that touch by a corner, as the authors' does.
@pytest.mark.parametrize(('make', 'around'), [(felzenszwalb, np.ones((3, 3))), (slic, None)])
@pytest.mark.parametrize('image', [noise(40, 60), RoadWorld(0).frame(0).image[60:180, 50:200]])
def test_superpixels_are_connected(make, around, image):
    superpixels = make(image)
    for index in range(superpixels.max() + 1):
        assert label(superpixels == index, around)[1] == 1


@pytest.mark.parametrize('make', [partial(felzenszwalb, deviation=0.01), slic])
def test_superpixels_do_not_cross_a_strong_edge(make):
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, 23:] = (200, 180, 40)
    image[17:, 23:] = (20, 60, 220)
    superpixels = make(image)
    regions = np.zeros((40, 60), np.uint8)
    regions[:, 23:] = 1
    regions[17:, 23:] = 2
    _, share = majority_labels(superpixels, regions, 3)
    assert (share == 1).all()


def test_graph_segmentation_leaves_flat_regions_whole():
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, 23:] = 255
    assert felzenszwalb(image).max() == 1


def test_graph_segmentation_keeps_none_below_the_smallest_size():
    superpixels = felzenszwalb(noise(40, 60), scale=10, smallest=50)
    assert np.bincount(superpixels.ravel()).min() >= 50


@pytest.mark.parametrize('count', [20, 100, 500])
def test_slic_makes_about_as_many_as_wanted(count):
    superpixels = slic(RoadWorld(0).frame(0).image, count=count)
    assert superpixels.max() + 1 == pytest.approx(count, rel=0.2)
    # None is a fragment; a quarter of the mean size is the least.
    assert np.bincount(superpixels.ravel()).min() >= superpixels.size / count / 4 * 0.99


def test_slic_of_a_flat_image_is_a_grid():
    superpixels = slic(np.full((40, 60, 3), 90, np.uint8), count=6)
    rows, columns = np.mgrid[:40, :60]
    assert same_pieces(superpixels, rows // 20 * 3 + columns // 20)


def test_lab_is_that_of_opencv():
    image = noise(16, 16)
    expected = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    np.testing.assert_allclose(np.moveaxis(lab(image), 0, -1), expected, atol=0.3)


def test_neighbours_share_sides_of_pixels_not_corners():
    pairs, sides = neighbours(SMALL)
    assert pairs.tolist() == [[0, 1], [0, 2], [1, 2]]
    assert sides.tolist() == [2, 2, 3]
    corners = np.array([[0, 1], [2, 3]], np.int32)
    assert neighbours(corners)[0].tolist() == [[0, 1], [0, 2], [1, 3], [2, 3]]


def test_boxes_end_behind_the_last_pixel():
    assert boxes(SMALL).tolist() == [[0, 0, 1, 4], [1, 0, 3, 3], [1, 2, 3, 4]]


def test_majority_counts_labelled_pixels_and_tells_their_share_of_all():
    labels = np.array([[2, 2, 0, 255], [255] * 4, [255, 1, 255, 255]], np.uint8)
    found, share = majority_labels(SMALL, labels, 3)
    assert found.tolist() == [2, 1, -1]
    assert share.tolist() == [2 / 4, 1 / 5, 0]


@pytest.mark.parametrize('make', BOTH)
@pytest.mark.parametrize(
    'image', [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)]
)
def test_other_images_are_refused(make, image):
    with pytest.raises(InputError, match=r'\(H, W, 3\) uint8 is needed'):
        make(image)


def test_slic_wants_a_superpixel_at_least():
    with pytest.raises(InputError, match='count of superpixels is 0; it must be at least 1'):
        slic(noise(4, 4), count=0)


def test_labels_of_another_size_are_refused():
    with pytest.raises(InputError, match=r'superpixels are \(3, 4\), labels are \(4, 4\)'):
        majority_labels(SMALL, np.zeros((4, 4), np.uint8), 2)
