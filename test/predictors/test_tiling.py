import cv2
from dense_perception.networks.context import FrontEndContext
from dense_perception.networks.frontend import FrontEnd
from dense_perception.predictors.tiling import reflect, Tiled
import numpy as np
import pytest
import torch
from torch import nn
import torch.nn.functional as F


@pytest.mark.parametrize('size', [(1, 1), (2, 3), (7, 5), (40, 30)])
@pytest.mark.parametrize('sides', [((0, 0), (0, 0)), ((3, 1), (2, 9)), ((50, 60), (70, 80))])
def test_reflection_is_that_of_opencv(size, sides):
    image = np.random.default_rng(0).random((*size, 3), np.float32)
    (top, left), (bottom, right) = sides
    expected = cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_REFLECT_101)
    values = torch.from_numpy(image).permute(2, 0, 1)[None]
    result = reflect(values, *sides)[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(result, expected)


class Corner(nn.Module):
    """Scores of 8 x 8 pixels: the upper left one of them; the margin is looked at by nobody."""

    margin = 16
    stride = 8

    def forward(self, image):
        assert image.shape[2:] == (96, 112)
        return image[:, :, 16:-16, 16:-16][:, :, ::8, ::8]


def published_scores(image, network, tile, margin):
    """Score an image as predict.py of the release does, with OpenCV's arrays."""
    rows, columns = (size - 2 * margin for size in tile)
    padded = cv2.copyMakeBorder(image, *(margin,) * 4, cv2.BORDER_REFLECT_101)
    bands = []
    for top in range(0, image.shape[0], rows):
        band = []
        for left in range(0, image.shape[1], columns):
            part = padded[top : top + tile[0], left : left + tile[1]]
            missing = (tile[0] - part.shape[0], tile[1] - part.shape[1])
            part = cv2.copyMakeBorder(part, 0, missing[0], 0, missing[1], cv2.BORDER_REFLECT_101)
            values = torch.from_numpy(part).permute(2, 0, 1)[None]
            band.append(network(values)[0].numpy())
        bands.append(np.concatenate(band, axis=2))
    return np.concatenate(bands, axis=1)


@pytest.mark.parametrize('size', [(64, 80), (65, 81), (1, 1), (30, 200), (190, 7), (129, 161)])
def test_scores_of_tiles_are_joined_as_in_the_release(size):
    image = np.random.default_rng(0).random((*size, 3), np.float32)
    tiled = Tiled(Corner(), (96, 112), enlarge=False)
    result = tiled(torch.from_numpy(image).permute(2, 0, 1)[None])
    expected = published_scores(image, Corner(), (96, 112), 16)
    np.testing.assert_array_equal(result[0], expected)
    assert all(8 * scores >= pixels for scores, pixels in zip(result.shape[2:], size, strict=True))
    assert (tiled.margin, tiled.stride) == (0, 8)


def test_tiles_may_be_enlarged_before_they_are_joined():
    image = torch.rand(1, 3, 100, 120)
    coarse = Tiled(Corner(), (96, 112), enlarge=False)
    fine = Tiled(Corner(), (96, 112), enlarge=True)
    scores = fine(image)
    assert scores.shape == (1, 3, 128, 160)
    assert fine.stride == 1
    first = F.interpolate(coarse(image)[:, :, :8, :10], scale_factor=8.0, mode='bilinear')
    assert torch.equal(scores[:, :, :64, :80], first)
    joined = F.interpolate(coarse(image), scale_factor=8.0, mode='bilinear')
    assert not torch.equal(scores[:, :, 60:68], joined[:, :, 60:68])  # the seam shows


class NarrowFrontEnd(FrontEnd):
    """The published layers, without padding, and few channels."""

    def __init__(self):
        super().__init__(3)
        for name, layer in list(self.named_modules()):
            if isinstance(layer, nn.Conv2d):
                inputs = 3 if layer.in_channels == 3 else 4
                outputs = 3 if name == 'final' else 4
                narrow = nn.Conv2d(
                    inputs, outputs, layer.kernel_size, layer.stride, 0, layer.dilation
                )
                self.add_module(name, narrow)


@pytest.mark.parametrize('tile', [(372 + 32, 372 + 40), (372 + 8, 372 + 16)])
def test_front_end_in_aligned_tiles_scores_as_on_the_whole_image(tile):
    torch.manual_seed(0)
    network = NarrowFrontEnd().eval()
    image = torch.rand(1, 3, 100, 96)
    with torch.inference_mode():
        whole = network(reflect(image, (186, 186), (186, 186)))
        tiles = Tiled(network, tile, enlarge=False)(image)
    assert whole.shape == (1, 3, 13, 12)
    # The last row of tiles is reflected at the edge of its surroundings, not of the image.
    inside = tiles[:, :, :8, :10]
    torch.testing.assert_close(inside, whole[:, :, :8, :10], atol=1e-6, rtol=1e-4)


def test_tile_must_be_larger_than_its_margins():
    with pytest.raises(ValueError, match='tile is 32 x 90; it must have more than twice the'):
        Tiled(Corner(), (32, 90), enlarge=False)


def test_network_without_margin_is_tiled_too():
    network = FrontEndContext(3, width='compact', layers=7).eval()
    with torch.inference_mode():
        assert Tiled(network, (64, 64), enlarge=True)(torch.rand(1, 3, 70, 30)).shape == (
            1, 3, 128, 64,
        )  # fmt: skip
