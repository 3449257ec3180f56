from dense_perception.networks.input_colors import InputColors
from dense_perception.predictors.tensors import images_to_tensor, preprocess
from dense_perception.weights.checkpoint import Preprocessing
import numpy as np
import pytest

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    'colors',
    [None, {'order': 'bgr', 'mean': [104.0, 117.0, 123.0], 'scale': 1.0}, {'scale': 255.0}],
)
def test_colours_come_back_exactly(colors):
    values = preprocess(images_to_tensor(IMAGES), Preprocessing(**(colors or {})))
    restored = InputColors.of(colors).restore(values)
    assert np.array_equal(np.stack(restored), IMAGES)


def test_defaults_are_those_of_the_card():
    colors, card = InputColors(), Preprocessing()
    assert (colors.order, colors.mean, colors.scale) == (card.order, card.mean, card.scale)


def test_unknown_orders_are_refused():
    with pytest.raises(ValueError, match="channel order is 'grb'; it must be rgb or bgr"):
        InputColors.of({'order': 'grb'})
