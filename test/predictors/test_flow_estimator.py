from dataclasses import replace

from dense_perception.errors import InputError, SettingError, WeightsError
from dense_perception.networks.flownet import FlowNetCorr, FlowNetSimple
from dense_perception.predictors.device import choose_placement
from dense_perception.predictors.flow_estimator import FlowEstimator
from dense_perception.predictors.flow_refinement import refine_flow
from dense_perception.weights.checkpoint import Card, Preprocessing, save_weights
import numpy as np
import pytest
import torch
from torch import nn

CPU = choose_placement('cpu', 'float32')
CARD = Card('flownet_simple', {'width': 1 / 16}, Preprocessing('rgb', (100.0, 110, 120), 255.0))


class Steady(nn.Module):
    """Network that says every pixel of its input moves by (u, v), and keeps what it was given."""

    def __init__(self, u, v):
        super().__init__()
        self.register_buffer('flow', torch.tensor([u, v]).reshape(1, 2, 1, 1) / 20)

    def forward(self, first, second):
        self.inputs = first, second
        return self.flow.expand(1, 2, first.shape[2] // 4, first.shape[3] // 4)


class Ramp(nn.Module):
    """Network that says a pixel at column x of its input moves right by x."""

    def forward(self, first, second):
        x = torch.arange(first.shape[3] // 4) * 4 + 1.5  # centres of the quarter's pixels
        flow = torch.zeros(1, 2, first.shape[2] // 4, len(x))
        flow[:, 0] = x / 20
        return flow


def pair(height, width):
    return np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize('network', [FlowNetSimple, FlowNetCorr])
@pytest.mark.parametrize(('size', 'width'), [((64, 128), 0), ((37, 90), 0), ((50, 300), 128)])
def test_flow_has_the_size_of_the_images(network, size, width):
    torch.manual_seed(0)
    estimator = FlowEstimator(network(width=1 / 16), CARD, CPU, width=width)
    flow = estimator.estimate(*pair(*size))
    assert (flow.shape, flow.dtype) == ((*size, 2), np.float32)
    assert np.isfinite(flow).all()


@pytest.mark.parametrize(
    ('size', 'width', 'input_size'),
    [
        ((64, 128), 0, (64, 128)),
        ((65, 129), 0, (128, 192)),
        ((1, 1), 0, (64, 64)),
        ((100, 200), 128, (64, 128)),
        ((120, 160), 300, (256, 320)),
    ],
)
def test_images_are_resized_to_multiples_of_64(size, width, input_size):
    network = Steady(0.0, 0.0)
    FlowEstimator(network, CARD, CPU, width=width).estimate(*pair(*size))
    assert network.inputs[0].shape == network.inputs[1].shape == (1, 3, *input_size)


def test_flow_of_resized_images_is_given_in_pixels_of_the_source():
    flow = FlowEstimator(Steady(6.4, 3.2), CARD, CPU, width=128).estimate(*pair(100, 200))
    # The network saw 128 x 64 pixels.
    expected = np.full((100, 200, 2), (6.4 * 200 / 128, 3.2 * 100 / 64))
    np.testing.assert_allclose(flow, expected, rtol=1e-5)


def test_flow_lies_where_its_pixels_are():
    flow = FlowEstimator(Ramp(), CARD, CPU).estimate(*pair(64, 128))
    np.testing.assert_allclose(flow[30, 2:-2, 0], np.arange(2, 126), atol=1e-3)
    assert (flow[..., 1] == 0).all()


def test_images_are_preprocessed_as_the_card_says_and_given_in_their_order():
    network = Steady(0.0, 0.0)
    first, second = pair(64, 64)
    FlowEstimator(network, CARD, CPU).estimate(first, second)
    for image, values in zip((first, second), network.inputs, strict=True):
        expected = (image.astype(np.float32) - (100, 110, 120)) / 255
        np.testing.assert_allclose(values[0].permute(1, 2, 0), expected, atol=1e-6)


def test_bfloat16_flow_is_close_to_float32_flow():
    torch.manual_seed(0)
    network = FlowNetSimple(width=1 / 8)
    images = pair(64, 128)
    exact = FlowEstimator(network, CARD, CPU).estimate(*images)
    rough = FlowEstimator(network, CARD, choose_placement('cpu', 'bfloat16')).estimate(*images)
    assert (
        np.linalg.norm(rough - exact, axis=-1).mean()
        < 0.05 * np.linalg.norm(exact, axis=-1).mean()
    )


@pytest.mark.parametrize(
    'image',
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 1), np.uint8),
        np.zeros((8, 8, 3), np.int16),
        np.zeros((8, 0, 3), np.uint8),
    ],
)
def test_image_of_another_form_is_refused(image):
    estimator = FlowEstimator(Steady(0.0, 0.0), CARD, CPU)
    good = np.zeros((8, 8, 3), np.uint8)
    for images in ((image, good), (good, image)):
        with pytest.raises(InputError, match=r'\(H, W, 3\) uint8 is needed'):
            estimator.estimate(*images)


def test_images_of_two_sizes_are_refused():
    with pytest.raises(InputError, match='sizes must match'):
        FlowEstimator(Steady(0.0, 0.0), CARD, CPU).estimate(pair(8, 8)[0], pair(8, 9)[0])


def test_estimator_is_made_from_a_weights_file(tmp_path):
    torch.manual_seed(0)
    network = CARD.build()
    save_weights(tmp_path / 'a.safetensors', network, CARD, torch.float32)
    estimator = FlowEstimator.from_file(
        tmp_path / 'a.safetensors', device='cpu', precision='float32'
    )
    images = pair(64, 64)
    np.testing.assert_array_equal(
        estimator.estimate(*images), FlowEstimator(network, CARD, CPU).estimate(*images)
    )


def test_segmentation_weights_are_no_flow_network(tmp_path):
    card = Card('front_end', {'classes': 11, 'width': 'compact'}, Preprocessing(), 'camvid')
    save_weights(tmp_path / 'a.safetensors', card.build(), card)
    with pytest.raises(WeightsError, match='a.safetensors: front_end is no flow network'):
        FlowEstimator.from_file(tmp_path / 'a.safetensors', device='cpu')


@pytest.mark.parametrize('network', ['flownet_simple', 'flownet_corr'])
def test_flow_of_either_network_is_refined_where_that_is_asked_for(network):
    torch.manual_seed(0)
    card = replace(CARD, network=network)
    built = card.build()
    images = pair(64, 96)
    plain = FlowEstimator(built, card, CPU).estimate(*images)
    refined = FlowEstimator(built, card, CPU, refinement='variational').estimate(*images)
    np.testing.assert_array_equal(refined, refine_flow(*images, plain))
    assert (refined != plain).any()


def test_flow_refinement_that_does_not_exist_is_refused():
    with pytest.raises(SettingError, match='must be one of none, variational'):
        FlowEstimator(CARD.build(), CARD, CPU, refinement='median')


def test_mask_weights_are_no_flow_network(tmp_path):
    card = Card('deep_mask', {'width': 'compact'}, Preprocessing())
    save_weights(tmp_path / 'a.safetensors', card.build(), card)
    with pytest.raises(WeightsError, match='a.safetensors: deep_mask is no flow network'):
        FlowEstimator.from_file(tmp_path / 'a.safetensors', device='cpu')
