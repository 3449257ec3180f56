from dataclasses import replace
import math

from dense_perception.networks.frontend import FrontEnd, receptive_field, score_size, SHAPES
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

MARGIN = 186  # Yu and Koltun's released predict.py pads by it


def on_meta(classes, width='full'):
    """Build a network that has shapes but no numbers."""
    with torch.device('meta'):
        return FrontEnd(classes, width).eval()


@pytest.fixture
def thin(monkeypatch):
    """Return a front end of the full shape in every respect but its channels."""
    shape = replace(SHAPES['full'], widths=(2, 2, 3, 3, 3), fc_width=4)
    monkeypatch.setitem(SHAPES, 'thin', shape)
    torch.manual_seed(0)
    return FrontEnd(3, 'thin').eval()


@pytest.mark.parametrize(
    ('classes', 'count'), [(11, 134_305_611), (19, 134_338_387), (21, 134_346_581)]
)
def test_full_front_end_has_the_published_parameters(classes, count):
    assert sum(value.numel() for value in on_meta(classes).parameters()) == count


def test_layers_before_the_classifier_have_the_published_names_and_shapes():
    shapes = {name: tuple(value.shape) for name, value in on_meta(21).state_dict().items()}
    assert shapes['conv1_1.weight'] == (64, 3, 3, 3)
    assert shapes['conv4_1.weight'] == (512, 256, 3, 3)
    assert shapes['conv5_3.weight'] == (512, 512, 3, 3)
    assert shapes['fc6.weight'] == (4096, 512, 7, 7)
    assert shapes['fc7.weight'] == (4096, 4096, 1, 1)
    assert len(shapes) == 2 * (13 + 3)


@pytest.mark.parametrize(
    ('pixels', 'scores'), [(500, 16), (628, 32), (852, 60), (900, 66), (1396, 128)]
)
def test_full_front_end_turns_the_published_input_sizes_into_the_published_score_sizes(
    pixels, scores
):
    image = torch.empty(1, 3, pixels, pixels, device='meta')
    assert on_meta(21)(image).shape == (1, 21, scores, scores)


@pytest.mark.parametrize('width', ['full', 'compact'])
def test_every_image_size_gives_an_eighth_of_it_rounded_up(width):
    network = on_meta(2, width)
    padding = 2 * network.margin
    sizes = [*range(1, 130), *range(130, 3000, 61)]
    for rows, columns in zip(sizes, reversed(sizes), strict=True):
        image = torch.empty(1, 3, rows + padding, columns + padding, device='meta')
        expected = (math.ceil(rows / 8), math.ceil(columns / 8))
        assert network(image).shape[2:] == expected
        assert (score_size(rows), score_size(columns)) == expected


@pytest.mark.slow
@pytest.mark.parametrize('width', ['full', 'compact'])
def test_every_size_up_to_2999_pixels_gives_an_eighth_of_it_rounded_up(width):
    network = on_meta(2, width)
    padding = 2 * network.margin
    sizes = range(1, 3000)
    for rows, columns in zip(sizes, reversed(sizes), strict=True):
        image = torch.empty(1, 3, rows + padding, columns + padding, device='meta')
        assert network(image).shape == (1, 2, math.ceil(rows / 8), math.ceil(columns / 8))


class Fields(TorchFunctionMode):
    """Receptive field and stride after each convolution and pooling that is carried out."""

    def __init__(self):
        self.found = [(1, 1)]

    def __torch_function__(self, function, types, args=(), kwargs=None):
        field, stride = self.found[-1]
        if function is torch.conv2d:
            weight, _, (step, _), _, (dilation, _) = args[1:6]
            reach = dilation * (weight.shape[2] - 1)
            self.found.append((field + stride * reach, stride * step))
        elif function is F.max_pool2d:
            self.found.append((field + stride * (args[1] - 1), stride * args[1]))
        return function(*args, **(kwargs or {}))


def test_each_layer_sees_as_many_pixels_as_published():
    network = on_meta(21)
    image = torch.empty(1, 3, 500, 500, device='meta')
    with Fields() as fields:
        network(image)
    assert fields.found[1:] == [
        *((3, 1), (5, 1), (6, 2)),
        *((10, 2), (14, 2), (16, 4)),
        *((24, 4), (32, 4), (40, 4), (44, 8)),
        *((60, 8), (76, 8), (92, 8)),
        *((124, 8), (156, 8), (188, 8)),
        *((380, 8), (380, 8), (380, 8)),  # fc6, fc7, final
    ]


def test_full_front_end_needs_186_reflected_pixels_and_the_compact_one_none():
    assert on_meta(2).margin == MARGIN
    assert on_meta(2, 'compact').margin == 0


def test_compact_front_end_sees_as_far_beyond_conv5_as_the_full_one():
    full, compact = on_meta(2), on_meta(2, 'compact')
    assert (full.fc6.kernel_size[0] - 1) * full.fc6.dilation[0] == 24
    assert (compact.fc6.kernel_size[0] - 1) * compact.fc6.dilation[0] == 24
    assert receptive_field(full) == 380


def test_gradient_of_one_score_touches_exactly_380_by_380_pixels(thin):
    for parameter in thin.parameters():
        torch.nn.init.constant_(parameter, 0.01)
    size = 2 * MARGIN + 24  # three rows of scores; the middle one sees pixels 8 to 387
    touched = torch.zeros(size, size, dtype=torch.bool)
    ramp = torch.linspace(1, 2, size)
    # Pooling passes gradient to the largest pixel only, so each image lights up one corner.
    for down in (ramp, ramp.flip(0)):
        for right in (ramp, ramp.flip(0)):
            image = (down[:, None] + right).expand(1, 3, size, size).clone().requires_grad_()
            thin(image)[0, 0, 1, 1].backward()
            touched |= (image.grad[0] != 0).any(0)
    expected = torch.zeros_like(touched)
    expected[8:388, 8:388] = True
    assert torch.equal(touched, expected)


def test_tile_at_an_offset_divisible_by_8_scores_as_the_whole_image_does(thin):
    torch.nn.init.normal_(thin.final.weight)
    image = torch.rand(1, 3, 2 * MARGIN + 96, 2 * MARGIN + 120)
    whole = thin(image)
    tile = thin(image[:, :, 16 : 16 + 2 * MARGIN + 40, 48 : 48 + 2 * MARGIN + 64])
    assert tile.shape[2:] == (5, 8)
    torch.testing.assert_close(tile, whole[:, :, 2:7, 6:14], rtol=1e-4, atol=1e-4)


def test_tile_at_another_offset_scores_differently(thin):
    torch.nn.init.normal_(thin.final.weight)
    image = torch.rand(1, 3, 2 * MARGIN + 48, 2 * MARGIN + 48)
    whole, tile = thin(image), thin(image[:, :, 4:, 4:])
    assert not torch.allclose(tile[:, :, :4, :4], whole[:, :, :4, :4], rtol=1e-3)


def test_features_drop_out_in_training_only():
    torch.manual_seed(0)
    network = FrontEnd(3, 'compact')
    image = torch.rand(1, 3, 16, 16)
    assert not torch.equal(network.features(image), network.features(image))
    network.eval()
    assert torch.equal(network.features(image), network.features(image))


def test_classifier_starts_near_zero_so_that_all_classes_are_alike(thin):
    scores = thin(torch.rand(1, 3, 2 * MARGIN + 8, 2 * MARGIN + 8))
    np.testing.assert_allclose(scores.softmax(1).detach(), 1 / 3, atol=0.05)
