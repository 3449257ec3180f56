from dense_perception.networks import SEGMENTATION_NETWORKS
from dense_perception.predictors.device import choose_placement
from dense_perception.predictors.segmenter import Segmenter
from dense_perception.weights.checkpoint import Card, Preprocessing
import numpy as np
import pytest

# Each superpixel of this one costs a pass of VGG-16.
FEWER = {'zoom_out': {'superpixels': 4}}


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
@pytest.mark.parametrize('name', SEGMENTATION_NETWORKS)
def test_every_segmentation_network_labels_the_grid_of_the_image(name, precision):
    arguments = {'classes': 19, 'width': 'compact', **FEWER.get(name, {})}
    card = Card(name, arguments, Preprocessing(), 'cityscapes')
    segmenter = Segmenter(card.build(), card, choose_placement('cpu', precision))
    image = np.random.default_rng(0).integers(0, 256, (231, 250, 3), dtype=np.uint8)
    labels = segmenter.segment(image).labels
    assert labels.shape == (231, 250)
    assert labels.max() < 19
