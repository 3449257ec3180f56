from dense_perception.predictors.device import choose_placement
from dense_perception.predictors.segmenter import Segmenter
from dense_perception.weights.checkpoint import Card, Preprocessing
import numpy as np
import pytest

NETWORKS = ('front_end', 'front_end_context', 'fcn_32s', 'fcn_16s', 'fcn_8s', 'deconvnet')


@pytest.mark.parametrize('name', NETWORKS)
def test_every_segmentation_network_labels_the_grid_of_the_image(name):
    card = Card(name, {'classes': 19, 'width': 'compact'}, Preprocessing(), 'cityscapes')
    segmenter = Segmenter(card.build(), card, choose_placement('cpu', 'float32'))
    image = np.random.default_rng(0).integers(0, 256, (231, 250, 3), dtype=np.uint8)
    labels = segmenter.segment(image).labels
    assert labels.shape == (231, 250)
    assert labels.max() < 19
