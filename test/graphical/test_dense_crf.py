import math
from pathlib import Path
import re

from dense_perception.data.segmentation import camvid
from dense_perception.errors import InputError, SettingError
from dense_perception.graphical.dense_crf import (
    BilateralKernel,
    DenseCrf,
    DenseCrfSettings,
    mean_field,
    NORMALIZATIONS,
    NormalizedKernel,
    SpatialKernel,
    unary_from_probabilities,
)
from dense_perception.graphical.permutohedral import PermutohedralLattice
import numpy as np
import pytest
import torch

CAMVID = Path(__file__).parents[2].parent / 'shared' / 'data' / 'camvid'
SIZE = (8, 10)


class ExactKernel:
    """All pairs of points, from the formula."""

    def __init__(self, features):
        distances = (features[:, None] - features[None]).pow(2).sum(2)
        self.matrix = torch.exp(-distances / 2)

    def filter(self, values):
        return (values.flatten(1) @ self.matrix.T).reshape(values.shape)

    def diagonal(self):
        return self.matrix.diagonal().reshape(SIZE)


def positions(rows, columns):
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing='ij')
    return torch.stack([column, row]).double()


def small_image():
    c, r = positions(*SIZE).long()
    green = 15 * c + 5 * r
    return torch.stack([20 * r + 90 * (c > 5), green, 7 * r * c % 50 + 100 * (r > 3)]).byte()


def small_unary(classes=3):
    c, r = positions(*SIZE)
    return torch.stack([1 + torch.sin(r * (k + 1) + c * (k + 2)) for k in range(classes)])


def exact_bilateral(deviation, color_deviation):
    colors = small_image().double() / color_deviation
    features = torch.cat([positions(*SIZE) / deviation, colors])
    return ExactKernel(features.flatten(1).T)


@pytest.mark.parametrize(
    'settings',
    [
        DenseCrfSettings(spatial_weight=0, bilateral_weight=0),
        DenseCrfSettings(iterations=0),
    ],
)
def test_without_neighbours_the_marginals_are_the_softmax_of_the_unary(settings):
    unary = small_unary()
    marginals = DenseCrf(small_image(), settings).infer(unary)
    torch.testing.assert_close(marginals, torch.softmax(-unary, 0))


@pytest.mark.parametrize('normalization', NORMALIZATIONS)
def test_uniform_unaries_stay_uniform(normalization):
    crf = DenseCrf(small_image(), DenseCrfSettings(normalization=normalization))
    marginals = crf.infer(torch.full((4, *SIZE), 2.0))
    torch.testing.assert_close(marginals, torch.full((4, *SIZE), 0.25))


def test_permuting_the_labels_permutes_the_marginals():
    crf = DenseCrf(small_image())
    unary, order = small_unary(4), [2, 0, 3, 1]
    torch.testing.assert_close(crf.infer(unary[order]), crf.infer(unary)[order])


@pytest.mark.parametrize('normalization', NORMALIZATIONS)
def test_marginals_of_each_pixel_sum_to_one(normalization):
    crf = DenseCrf(small_image(), DenseCrfSettings(normalization=normalization))
    marginals = crf.infer(small_unary().float())
    torch.testing.assert_close(marginals.sum(0), torch.ones(SIZE))
    assert (marginals >= 0).all()


# Printed by pydensecrf2 1.1, inference() on the same image and unary, at these pixels. Its spatial
# kernel goes through the lattice too, ours is exact: therefore the wider tolerance with one.
PIXELS = ((0, 0), (2, 7), (5, 3), (7, 9))
PYDENSECRF = [
    ('symmetric', 0, 3, 2e-6, [
        [0.302816, 0.335537, 0.361648], [0.410301, 0.394592, 0.195108],
        [0.685752, 0.218416, 0.095832], [0.434343, 0.362781, 0.202876],
    ]),
    ('after', 0, 3, 2e-6, [
        [0.303136, 0.335751, 0.361112], [0.418774, 0.386945, 0.194281],
        [0.686043, 0.217084, 0.096873], [0.435241, 0.36055, 0.204208],
    ]),
    ('before', 0, 3, 2e-6, [
        [0.302359, 0.335548, 0.362094], [0.400444, 0.403591, 0.195966],
        [0.684793, 0.22073, 0.094476], [0.432725, 0.365275, 0.201999],
    ]),
    ('symmetric', 3, 5, 0.02, [
        [0.271858, 0.325919, 0.402223], [0.430105, 0.372282, 0.197613],
        [0.685711, 0.215049, 0.09924], [0.513873, 0.303735, 0.182392],
    ]),
]  # fmt: skip


@pytest.mark.parametrize(
    ('normalization', 'spatial_weight', 'iterations', 'tolerance', 'expected'), PYDENSECRF
)
def test_marginals_are_those_of_pydensecrf(
    normalization, spatial_weight, iterations, tolerance, expected
):
    settings = DenseCrfSettings(
        spatial_weight=spatial_weight,
        bilateral_weight=2,
        bilateral_deviation=4,
        color_deviation=40,
        iterations=iterations,
        normalization=normalization,
    )
    marginals = DenseCrf(small_image(), settings).infer(small_unary().float())
    found = [marginals[:, row, column].tolist() for row, column in PIXELS]
    np.testing.assert_allclose(found, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize('size', [(1, 1), (1, 7), (8, 10), (25, 4)])
def test_spatial_kernel_is_the_gaussian_of_all_pairs(size):
    values = torch.randn(2, *size, generator=torch.Generator().manual_seed(1)).double()
    kernel = SpatialKernel(size, 1.5, values)
    exact = ExactKernel((positions(*size) / 1.5).flatten(1).T)
    torch.testing.assert_close(kernel.filter(values), exact.filter(values), atol=1e-7, rtol=0)


@pytest.mark.parametrize('normalization', ['symmetric', 'after', 'before'])
def test_lattice_filters_to_within_a_tenth_of_all_pairs(normalization):
    marginals = torch.softmax(-small_unary(), 0)
    lattice = BilateralKernel(small_image().double(), 4, 40)
    filtered = [
        NormalizedKernel(kernel, marginals, normalization).filter(marginals)
        for kernel in (lattice, exact_bilateral(4, 40))
    ]
    error = (filtered[0] - filtered[1]).abs()
    assert error.max() < 0.1
    assert error.mean() < 0.02


def test_marginals_are_close_to_those_of_all_pairs():
    settings = DenseCrfSettings(bilateral_weight=2, bilateral_deviation=4, color_deviation=40)
    unary = small_unary()
    approximate = DenseCrf(small_image().double(), settings).infer(unary)
    exact_spatial = ExactKernel((positions(*SIZE) / 3).flatten(1).T)
    exact = mean_field(
        unary,
        [
            (3, NormalizedKernel(exact_spatial, unary, 'symmetric')),
            (2, NormalizedKernel(exact_bilateral(4, 40), unary, 'symmetric')),
        ],
        iterations=5,
    )
    assert (approximate - exact).abs().max() < 0.1
    assert (approximate - exact).abs().mean() < 0.02


def field_by_loops(unary, image, settings):
    """
    Krähenbühl and Koltun (2011), algorithm 1, in numpy: a loop over pairs of pixels and labels.

    The self term is included or not and the kernels are normalised as `settings` say.
    """
    classes, rows, columns = unary.shape
    places = [(row, column) for row in range(rows) for column in range(columns)]
    # Python's numbers: differences of uint8 would wrap.
    colors = [[float(value) for value in image[:, row, column]] for row, column in places]
    spatial, bilateral = np.zeros((2, len(places), len(places)))
    for i, (row, column) in enumerate(places):
        for j, (other_row, other_column) in enumerate(places):
            if i == j and not settings.self_term:
                continue
            distance = (row - other_row) ** 2 + (column - other_column) ** 2
            difference = sum((a - b) ** 2 for a, b in zip(colors[i], colors[j], strict=True))
            spatial[i, j] = math.exp(-distance / (2 * settings.spatial_deviation**2))
            bilateral[i, j] = math.exp(
                -distance / (2 * settings.bilateral_deviation**2)
                - difference / (2 * settings.color_deviation**2)
            )
    weights = settings.spatial_weight * normalized(spatial, settings.normalization)
    weights += settings.bilateral_weight * normalized(bilateral, settings.normalization)
    costs = unary.numpy().reshape(classes, -1)
    marginals = np.exp(-costs) / np.exp(-costs).sum(0)
    for _ in range(settings.iterations):
        energy = costs.copy()
        for label in range(classes):
            for other in range(classes):
                if other != label:  # Potts: a pixel pays for what others do not agree on
                    energy[label] += weights @ marginals[other]
        marginals = np.exp(-energy) / np.exp(-energy).sum(0)
    return torch.from_numpy(marginals.reshape(classes, rows, columns))


def normalized(matrix, how):
    sums = matrix.sum(1)
    return {
        'none': matrix,
        'after': matrix / sums[:, None],
        'before': matrix / sums[None],
        'symmetric': matrix / np.sqrt(sums[:, None] * sums[None]),
    }[how]


def exact_settings(**changes):
    fields = {'bilateral_weight': 2, 'bilateral_deviation': 4, 'color_deviation': 40}
    return DenseCrfSettings(**{**fields, **changes})


@pytest.mark.parametrize('self_term', [True, False])
@pytest.mark.parametrize('normalization', NORMALIZATIONS)
def test_mean_field_with_exact_kernels_is_that_of_loops_over_pairs(normalization, self_term):
    settings = exact_settings(normalization=normalization, self_term=self_term)
    unary = small_unary()
    spatial = SpatialKernel(SIZE, settings.spatial_deviation, unary)
    bilateral = exact_bilateral(settings.bilateral_deviation, settings.color_deviation)
    kernels = [
        (weight, NormalizedKernel(kernel, unary, normalization, self_term=self_term))
        for weight, kernel in (
            (settings.spatial_weight, spatial),
            (settings.bilateral_weight, bilateral),
        )
    ]
    found = mean_field(unary, kernels, settings.iterations)
    expected = field_by_loops(unary, small_image(), settings)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (found - torch.softmax(-unary, 0)).abs().max() > 0.1


@pytest.mark.parametrize('self_term', [True, False])
@pytest.mark.parametrize('normalization', NORMALIZATIONS)
def test_field_without_colours_is_that_of_loops_over_pairs(normalization, self_term):
    settings = exact_settings(bilateral_weight=0, normalization=normalization, self_term=self_term)
    unary = small_unary()
    found = DenseCrf(small_image().double(), settings).infer(unary)
    expected = field_by_loops(unary, small_image(), settings)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_lattice_approaches_a_gaussian_over_points_that_lie_densely():
    generator = torch.Generator().manual_seed(2)
    points = torch.rand(4000, 2, generator=generator, dtype=torch.float64) * 8
    values = torch.sin(points)
    ones = torch.ones_like(values[:, :1])
    lattice, matrix = PermutohedralLattice(points), ExactKernel(points).matrix
    found = lattice.filter(values) / lattice.filter(ones)
    torch.testing.assert_close(found, matrix @ values / (matrix @ ones), atol=0.07, rtol=0)


@pytest.mark.parametrize(('dimensions', 'count'), [(1, 30), (2, 60), (5, 80)])
def test_own_weights_and_transposed_filter_belong_to_the_matrix_of_the_lattice(dimensions, count):
    generator = torch.Generator().manual_seed(3)
    points = torch.rand(count, dimensions, generator=generator, dtype=torch.float64) * 3
    lattice = PermutohedralLattice(points)
    unit = torch.eye(count, dtype=torch.float64)
    matrix = lattice.filter(unit)
    torch.testing.assert_close(lattice.diagonal(), matrix.diagonal())
    torch.testing.assert_close(lattice.filter(unit, transposed=True), matrix.T)


def test_lattice_passes_gradients_to_the_values():
    generator = torch.Generator().manual_seed(4)
    points = torch.rand(12, 3, generator=generator, dtype=torch.float64) * 2
    values = torch.rand(12, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    lattice = PermutohedralLattice(points)
    assert torch.autograd.gradcheck(lattice.filter, values)
    assert torch.autograd.gradgradcheck(lattice.filter, values)


@pytest.mark.parametrize('kernel', ['spatial', 'bilateral'])
def test_a_pixel_without_self_term_does_not_hear_itself(kernel):
    kernels = {
        'spatial': SpatialKernel(SIZE, 3, small_unary()),
        'bilateral': BilateralKernel(small_image().double(), 4, 40),
    }
    filtered = NormalizedKernel(kernels[kernel], small_unary(), 'after', self_term=False)
    alone = torch.zeros(1, *SIZE, dtype=torch.float64)
    alone[0, 4, 4] = 1
    message = filtered.filter(alone)[0]
    assert abs(message[4, 4]) < 1e-9
    assert message[4, 5] > 0


def test_a_pixel_of_unique_colour_without_self_term_keeps_its_unary():
    image = torch.zeros(3, *SIZE)
    image[:, 4, 4] = 255
    unary = small_unary().float()
    settings = DenseCrfSettings(spatial_weight=0, self_term=False)
    marginals = DenseCrf(image, settings).infer(unary)
    torch.testing.assert_close(marginals[:, 4, 4], torch.softmax(-unary[:, 4, 4], 0))


def test_probabilities_of_zero_and_one_have_finite_unaries():
    unary = unary_from_probabilities(torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(unary, torch.tensor([11.512925, 0.693147, 0.0]))


def one_hot(labels, classes, certainty=0.5):
    """Probabilities (C, H, W): `certainty` for the label, the rest for all."""
    known = torch.nn.functional.one_hot(labels, classes).permute(2, 0, 1).float()
    return certainty * known + (1 - certainty) / classes


def with_wrong_labels(labels, classes, share):
    generator = torch.Generator().manual_seed(5)
    wrong = torch.rand(labels.shape, generator=generator) < share
    others = torch.randint(0, classes, labels.shape, generator=generator)
    return torch.where(wrong, others, labels)


def accuracy(labels, truth):
    valid = truth != 255
    return float((labels == truth)[valid].float().mean())


def test_noisy_labels_of_a_two_coloured_image_are_cleaned():
    column, row = positions(40, 50)
    truth = ((column - 25) ** 2 + (row - 20) ** 2 < 144).long()  # a disc
    noise = torch.randn(3, 40, 50, generator=torch.Generator().manual_seed(6)) * 8
    image = torch.where(truth == 1, 180.0, 60.0) + noise
    noisy = with_wrong_labels(truth, 2, 0.5)
    marginals = DenseCrf(image).infer(unary_from_probabilities(one_hot(noisy, 2)))
    assert accuracy(noisy, truth) < 0.8
    assert accuracy(marginals.argmax(0), truth) > 0.98


@pytest.mark.skipif(not CAMVID.is_dir(), reason='needs CamVid')
def test_labels_of_a_street_survive_and_noise_in_them_is_cleaned():
    sample = camvid(CAMVID, 'val')[5]
    image = torch.from_numpy(sample.image).permute(2, 0, 1)
    truth = torch.from_numpy(sample.labels).long()
    filled = truth.clamp_max(10)
    crf = DenseCrf(image)
    kept = crf.infer(unary_from_probabilities(one_hot(filled, 11, 0.9))).argmax(0)
    assert accuracy(kept, truth) > 0.95
    noisy = with_wrong_labels(filled, 11, 0.3)
    cleaned = crf.infer(unary_from_probabilities(one_hot(noisy, 11))).argmax(0)
    assert accuracy(cleaned, truth) > accuracy(noisy, truth) + 0.1


def test_unary_of_another_size_is_refused():
    crf = DenseCrf(small_image())
    with pytest.raises(InputError, match=re.escape('unary is (3, 10, 8); (C, 8, 10) is needed')):
        crf.infer(torch.zeros(3, 10, 8))


def test_features_that_are_not_finite_are_refused():
    with pytest.raises(InputError, match='nan'):
        PermutohedralLattice(torch.full((4, 2), torch.nan))


def test_features_spread_too_far_to_be_numbered_are_refused():
    with pytest.raises(InputError, match='spread'):
        PermutohedralLattice(torch.eye(6)[:, :5] * 1e6)


def test_unknown_normalization_is_refused():
    with pytest.raises(SettingError, match='symmetric, after, before, none'):
        DenseCrfSettings(normalization='both')
