from dense_perception.data.road_world import RoadWorld
from dense_perception.predictors.tensors import (
    enlarge_flow,
    flow_to_tensor,
    images_to_tensor,
    preprocess,
    resize,
    tensor_to_flow,
)
from dense_perception.weights.checkpoint import Preprocessing
import numpy as np
import pytest
import torch
import torch.nn.functional as F


def test_images_become_a_batch_with_channels_before_rows():
    images = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    tensor = images_to_tensor(list(images))
    assert tensor.shape == (2, 3, 4, 5)
    assert tensor.dtype == torch.uint8
    assert tensor[1, 2, 3, 4] == images[1, 3, 4, 2]


def test_image_that_may_not_be_written_to_is_copied():
    image = np.zeros((4, 5, 3), np.uint8)
    image.flags.writeable = False
    images_to_tensor([image]).fill_(7)
    assert (image == 0).all()


@pytest.mark.parametrize(
    ('order', 'expected'), [('rgb', [4.5, 9.0, 13.5]), ('bgr', [14.5, 9.0, 3.5])]
)
def test_mean_is_subtracted_in_the_order_of_the_weights(order, expected):
    image = torch.tensor([10, 20, 30], dtype=torch.uint8).reshape(1, 3, 1, 1)
    values = preprocess(image, Preprocessing(order, (1.0, 2.0, 3.0), 2.0))
    assert values.flatten().tolist() == expected


def test_shrinking_averages():
    stripes = torch.tensor([0, 255], dtype=torch.uint8).repeat(32).expand(1, 3, 64, 64)
    smaller = resize(stripes, 8, 8)
    torch.testing.assert_close(smaller.float(), torch.full((1, 3, 8, 8), 127.5), atol=6.0, rtol=0)


def test_image_of_the_right_size_is_left_alone():
    image = torch.zeros(1, 3, 4, 5, dtype=torch.uint8)
    assert resize(image, 4, 5) is image


def test_flow_comes_back_from_a_tensor():
    flow = np.random.default_rng(0).normal(size=(4, 5, 2)).astype(np.float32)
    tensor = flow_to_tensor(flow)
    assert tensor.shape == (2, 4, 5)
    np.testing.assert_array_equal(tensor_to_flow(tensor), flow)


@pytest.mark.parametrize('size', [(7, 9), (48, 64), (90, 160)])
def test_bytes_are_resized_as_numbers_are_but_for_rounding(size):
    image = images_to_tensor([RoadWorld(0).frame(0).image[:60, :100]])
    found, expected = resize(image, *size), resize(image.float(), *size)
    assert found.dtype == torch.uint8
    assert (found.float() - expected).abs().max() < 1.01  # each axis is rounded


@pytest.mark.parametrize('size', [(6, 8), (24, 32), (25, 37), (3, 5)])
def test_flow_is_enlarged_by_bilinear_interpolation(size):
    flow = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(flow[None], size, mode='bilinear', align_corners=False)[0]
    found = enlarge_flow(flow, *size)
    assert found.shape == (*size, 2)
    np.testing.assert_allclose(found, expected.permute(1, 2, 0), atol=1e-3)
