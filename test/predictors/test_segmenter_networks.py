from copy import deepcopy
from functools import cache

from dense_perception.graphical.dense_crf import DenseCrf, unary_from_probabilities
from dense_perception.networks import SEGMENTATION_NETWORKS
from dense_perception.networks.crfrnn import CrfRnn
from dense_perception.networks.super_parsing import SuperParsing
from dense_perception.predictors.device import choose_placement
from dense_perception.predictors.labelling import enlarge, Enlargement
from dense_perception.predictors.segmenter import Segmenter
from dense_perception.predictors.tensors import images_to_tensor, preprocess
from dense_perception.weights.checkpoint import Card, Preprocessing
import numpy as np
import pytest
import torch
from torch import nn

CLASSES = 19
# Each superpixel of zoom-out costs a pass of VGG-16.
FEWER = {'zoom_out': {'superpixels': 12}, 'hypercolumns': {'superpixels': 40}}
SMALLEST = {'deconvnet': (193, 197)}  # what it can take; the others are quicker on less
REFINEMENTS = ('dense_crf', 'crf_rnn')
PATCH = 16  # pixels along each side of what has one colour


def scene(rows, columns, seed=0):
    """Return an image of noisy patches, each of the colour of a class, and these classes."""
    random = np.random.default_rng(seed)
    colors = np.random.default_rng(99).integers(0, 256, (CLASSES, 3))
    patches = random.integers(0, CLASSES, (-(-rows // PATCH), -(-columns // PATCH)))
    classes = patches.repeat(PATCH, 0).repeat(PATCH, 1)[:rows, :columns]
    image = colors[classes] + random.normal(0, 5, (rows, columns, 3))
    return image.clip(0, 255).astype(np.uint8), classes.astype(np.uint8)


def image_for(name):
    return scene(*SMALLEST.get(name, (61, 70)))[0]


def network_input(image):
    return preprocess(images_to_tensor([image]), Preprocessing())


@cache
def fitted():
    """Return SuperParsing that knows two scenes."""
    network = SuperParsing(CLASSES, 'compact', settings={'smallest': 30, 'added': 0.01})
    images, labels = zip(*(scene(48, 64, seed) for seed in (1, 2)), strict=True)
    network.fit(images, labels, np.random.default_rng(0))
    return network


@torch.no_grad()
def balance(network, image):
    """
    Move the scores so that each class has a mean of 0 over an image.

    Then none is the best everywhere: it would be above the others' mean at each pixel.
    """
    network = getattr(network, 'network', network).eval()  # below a CRF-RNN
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    if len(layers[-1].bias) == CLASSES:  # hypercolumns' layers score the cells of a grid
        layers[-1].bias -= network(network_input(image)).mean((0, 2, 3))


@cache
def random_network(name):
    """Return a network whose every layer passes on what it sees, and its card."""
    arguments = {'classes': CLASSES, 'width': 'compact', **FEWER.get(name, {})}
    card = Card(name, arguments, Preprocessing(), 'cityscapes')
    if name == 'super_parsing':
        return fitted(), card
    torch.manual_seed(0)
    network = card.build()
    for layer in network.modules():
        # Bilinear upsampling is frozen, and stays as it is.
        frozen = isinstance(layer, nn.ConvTranspose2d) and not layer.weight.requires_grad
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear) and not frozen:
            nn.init.kaiming_normal_(layer.weight)
    balance(network, image_for(name))
    return network, card


def random_segmenter(name, precision='float32', **arguments):
    network, card = random_network(name)
    placement = choose_placement('cpu', precision)
    return Segmenter(deepcopy(network), card, placement, **arguments)


def pixel_scores(segmenter, image):
    """Return the segmenter's scores enlarged to the image, (1, C, H, W)."""
    scores = segmenter.scores(image)
    rows, columns = (size * segmenter.stride for size in scores.shape[2:])
    return enlarge(scores, Enlargement(rows, columns, *image.shape[:2]))


@cache
def known_scores(name):
    """Return the scores of a network in float32, for each pixel of its image."""
    return pixel_scores(random_segmenter(name), image_for(name))


def assert_best(labels, scores):
    """Labels are the best of the scores, or as good as that but for rounding."""
    assert labels.shape == scores.shape[2:]
    assert labels.max() < CLASSES
    chosen = scores[0].gather(0, torch.from_numpy(labels)[None].long())[0]
    assert (scores[0].amax(0) - chosen).max() <= 1e-5 * scores.abs().max()


@pytest.mark.parametrize('name', SEGMENTATION_NETWORKS)
def test_every_segmentation_network_gives_the_segmenter_its_own_scores(name):
    image = image_for(name)
    network, _ = random_network(name)
    with torch.no_grad():
        expected = network.eval()(network_input(image))
    assert (expected.amax((2, 3)) > expected.amin((2, 3))).any()
    scores = random_segmenter(name).scores(image)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4 * float(expected.std()))


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
@pytest.mark.parametrize('name', SEGMENTATION_NETWORKS)
def test_every_segmentation_network_labels_each_pixel_by_the_best_of_its_enlarged_scores(
    name, precision
):
    image = image_for(name)
    segmenter = random_segmenter(name, precision)
    labels = segmenter.segment(image).labels
    assert len(np.unique(labels)) > 1
    assert_best(labels, pixel_scores(segmenter, image))


@pytest.mark.parametrize('name', SEGMENTATION_NETWORKS)
def test_every_segmentation_network_scores_images_together_as_each_alone(name):
    segmenter = random_segmenter(name)
    images = [image_for(name), image_for(name)[::-1].copy()]
    alone = torch.cat([segmenter.scores(image) for image in images])
    assert not torch.allclose(*alone, rtol=1e-2)
    torch.testing.assert_close(
        segmenter.scores(*images), alone, rtol=1e-4, atol=1e-4 * float(alone.std())
    )


def refined(scores, image, refinement):
    """Apply the stage to scores of pixels by itself."""
    pixels = images_to_tensor([image]).float()
    if refinement == 'crf_rnn':
        with torch.no_grad():
            return CrfRnn(CLASSES).eval()(scores, pixels)
    unary = unary_from_probabilities(scores[0].softmax(0))
    return DenseCrf(pixels[0]).infer(unary)[None]


@pytest.mark.parametrize(
    ('name', 'refinement'),
    [
        (name, refinement)
        for name in SEGMENTATION_NETWORKS
        for refinement in REFINEMENTS
        if name != refinement  # the network that ends with that stage itself
    ],
)
def test_labels_of_every_segmentation_network_are_the_best_of_its_refined_scores(name, refinement):
    image, scores = image_for(name), known_scores(name)
    labels = random_segmenter(name, refinement=refinement).segment(image).labels
    assert_best(labels, refined(scores, image, refinement))
    assert (labels != scores[0].argmax(0).numpy()).any()
    assert len(np.unique(labels)) > 1


class ByColor(nn.Module):
    """Score classes 0 to 2 by red, green and blue; a little more blue makes the last the best."""

    stride = 1

    def __init__(self, sureness):
        super().__init__()
        self.score = nn.Conv2d(3, CLASSES, 1)
        nn.init.zeros_(self.score.weight)
        nn.init.constant_(self.score.bias, -10 * sureness)
        for index, (weight, threshold) in enumerate([(0.01, 150), (0.01, 150), (0.6, 102)]):
            self.score.weight.data[index, index] = sureness * weight
            self.score.bias.data[index] = -sureness * weight * threshold

    def forward(self, image):
        return self.score(image)


def label_by_color(image, sureness, refinement):
    card = Card('front_end', {}, Preprocessing('rgb', (0.0, 0.0, 0.0), 1.0), 'cityscapes')
    placement = choose_placement('cpu', 'float32')
    segmenter = Segmenter(ByColor(sureness), card, placement, refinement=refinement)
    return segmenter.segment(image).labels


def two_halves():
    """Return an image, red at the left and green at the right, and the labels of these."""
    labels = np.zeros((24, 32), np.uint8)
    labels[:, 16:] = 1
    return np.array([[200, 100, 100], [100, 200, 100]], np.uint8)[labels], labels


@pytest.mark.parametrize('refinement', REFINEMENTS)
def test_refinement_removes_single_pixels_of_another_label_where_the_network_is_unsure(refinement):
    image, halves = two_halves()
    image[3::7, 4::8, 2] += 3
    speckled = halves.copy()
    speckled[3::7, 4::8] = 2
    np.testing.assert_array_equal(label_by_color(image, 1, 'none'), speckled)
    np.testing.assert_array_equal(label_by_color(image, 1, refinement), halves)


@pytest.mark.parametrize('refinement', REFINEMENTS)
def test_refinement_changes_no_label_of_uniform_areas_of_which_the_network_is_sure(refinement):
    image, halves = two_halves()
    np.testing.assert_array_equal(label_by_color(image, 20, 'none'), halves)
    np.testing.assert_array_equal(label_by_color(image, 20, refinement), halves)
