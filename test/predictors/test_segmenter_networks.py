from dense_perception.networks import SEGMENTATION_NETWORKS
from dense_perception.predictors.device import choose_placement
from dense_perception.predictors.segmenter import Segmenter
from dense_perception.weights.checkpoint import Card, Preprocessing
import numpy as np
import pytest
import torch

# Each superpixel of this one costs a pass of VGG-16.
FEWER = {'zoom_out': {'superpixels': 4}}
SMALLEST = {'deconvnet': (193, 193)}  # what it can take; the others are quicker on less


def random_segmenter(name, precision):
    arguments = {'classes': 19, 'width': 'compact', **FEWER.get(name, {})}
    card = Card(name, arguments, Preprocessing(), 'cityscapes')
    return Segmenter(card.build(), card, choose_placement('cpu', precision))


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
@pytest.mark.parametrize('name', SEGMENTATION_NETWORKS)
def test_every_segmentation_network_labels_the_grid_of_the_image(name, precision):
    labels = random_segmenter(name, precision).segment(noise(231, 250, 3)).labels
    assert labels.shape == (231, 250)
    assert labels.max() < 19


@pytest.mark.parametrize('name', SEGMENTATION_NETWORKS)
def test_every_segmentation_network_scores_images_together_as_each_alone(name):
    torch.manual_seed(0)
    segmenter = random_segmenter(name, 'float32')
    images = noise(2, *SMALLEST.get(name, (61, 70)), 3)
    alone = torch.cat([segmenter.scores(image) for image in images])
    torch.testing.assert_close(segmenter.scores(*images), alone, rtol=1e-4, atol=1e-5)
