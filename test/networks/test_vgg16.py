from dataclasses import replace

from dense_perception.errors import WeightsError
from dense_perception.networks.vgg16 import (
    convert_torchvision,
    SHAPES,
    Vgg16,
    Vgg16Trunk,
)
import pytest
import torch
from torch import nn
import torch.nn.functional as F
from torchvision.models import vgg16

CITYSCAPES_MEAN = (72.39, 82.91, 73.16)  # BGR, far from torchvision's
IMAGENET_MEAN = (0.485, 0.456, 0.406)  # RGB, 0 to 1
IMAGENET_STD = (0.229, 0.224, 0.225)


def on_meta(network, *arguments):
    """Build a network that has shapes but no numbers."""
    with torch.device('meta'):
        return network(*arguments).eval()


@pytest.fixture(scope='module')
def original():
    """Return torchvision's network with random weights."""
    torch.manual_seed(0)
    network = vgg16(weights=None, init_weights=False).eval()
    for layer in network.features:
        if isinstance(layer, nn.Conv2d):  # else the activations fade from layer to layer
            nn.init.kaiming_normal_(layer.weight, nonlinearity='relu')
    return network


@pytest.fixture
def image():
    """Return one RGB image of 0 to 255."""
    return torch.randint(0, 256, (1, 3, 224, 224), generator=torch.manual_seed(1)).float()


def standardised(image):
    """Do what torchvision's documentation asks for."""
    mean, std = (torch.tensor(value)[:, None, None] for value in (IMAGENET_MEAN, IMAGENET_STD))
    return (image / 255 - mean) / std


def blue_green_red(image, mean):
    return image.flip(1) - torch.tensor(mean)[:, None, None]


def assert_same(ours, theirs):
    """Compare to a ten-thousandth of the largest value."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * float(theirs.abs().max()))


def test_classifier_has_the_published_parameters():
    assert sum(value.numel() for value in on_meta(Vgg16).parameters()) == 138_357_544


def test_convolutions_have_the_published_parameters():
    layers = on_meta(Vgg16).named_parameters()
    assert sum(value.numel() for name, value in layers if name.startswith('conv')) == 14_714_688


def test_layers_have_the_published_names_and_shapes():
    shapes = {name: tuple(value.shape) for name, value in on_meta(Vgg16).state_dict().items()}
    assert len(shapes) == 2 * 16
    assert shapes['conv1_1.weight'] == (64, 3, 3, 3)
    assert shapes['conv4_1.weight'] == (512, 256, 3, 3)
    assert shapes['conv5_3.weight'] == (512, 512, 3, 3)
    assert shapes['fc6.weight'] == (4096, 512, 7, 7)
    assert shapes['fc7.weight'] == (4096, 4096, 1, 1)
    assert shapes['fc8.weight'] == (1000, 4096, 1, 1)


@pytest.mark.parametrize(('pixels', 'windows'), [(224, 1), (256, 2), (257, 3), (480, 9)])
def test_classifier_scores_every_window_of_224_pixels(pixels, windows):
    scores = on_meta(Vgg16)(torch.empty(2, 3, pixels, 224, device='meta'))
    assert scores.shape == (2, 1000, windows, 1)


def test_zoom_out_features_of_all_convolutions_are_4224_channels():
    names = [
        f'conv{s}_{n}' for s, depth in enumerate((2, 2, 3, 3, 3), 1) for n in range(1, depth + 1)
    ]
    maps = on_meta(Vgg16Trunk).activations(torch.empty(1, 3, 64, 64, device='meta'), names)
    assert list(maps) == names
    assert sum(values.shape[1] for values in maps.values()) == 4224


def test_activations_are_those_after_relu():
    torch.manual_seed(0)
    maps = Vgg16Trunk('compact').activations(torch.randn(1, 3, 16, 16), ['conv1_1', 'conv3_3'])
    assert all(values.min() == 0 for values in maps.values())


def test_layers_beyond_the_wanted_ones_are_not_run():
    network = on_meta(Vgg16Trunk)
    run = []
    network.conv2_1.register_forward_hook(lambda *_: run.append('conv2_1'))
    network.conv2_2.register_forward_hook(lambda *_: run.append('conv2_2'))
    network.activations(torch.empty(1, 3, 32, 32, device='meta'), ['conv2_1', 'pool1'])
    assert run == ['conv2_1']


def test_fc6_sees_404_pixels_and_moves_by_32(monkeypatch):
    # Average pooling reaches as far as max pooling, and gives every pixel its share of gradient.
    monkeypatch.setattr(F, 'max_pool2d', F.avg_pool2d)
    shape = replace(SHAPES['full'], widths=(1, 1, 1, 1, 1), fc_width=1)
    monkeypatch.setitem(SHAPES, 'one', shape)
    network = Vgg16Trunk('one').double().eval()
    for parameter in network.parameters():
        nn.init.ones_(parameter)
    seen = []
    for column in (6, 7):
        image = torch.ones(1, 3, 224, 640, dtype=torch.float64, requires_grad=True)
        network.activations(image, ['fc6'])['fc6'][0, 0, 0, column].backward()
        seen.append(torch.nonzero(image.grad[0, 0, 112])[:, 0])
    assert [len(columns) for columns in seen] == [404, 404]
    assert seen[1][0] - seen[0][0] == 32


@torch.no_grad()
def test_fc6_as_a_convolution_is_the_linear_layer(original):
    tensors = convert_torchvision(original.state_dict(), 'IMAGENET1K_V1', CITYSCAPES_MEAN)
    values = torch.randn(1, 512, 7, 7, generator=torch.manual_seed(2))
    ours = F.conv2d(values, tensors['fc6.weight'], tensors['fc6.bias'])
    assert_same(ours.flatten(1), original.classifier[0](values.flatten(1)))


@torch.no_grad()
def test_converted_classifier_scores_as_the_original_does(original, image):
    mean = tuple(255 * value for value in reversed(IMAGENET_MEAN))
    network = on_meta(Vgg16)
    tensors = convert_torchvision(original.state_dict(), 'IMAGENET1K_V1', mean)
    network.load_state_dict(tensors, assign=True)
    scores = network(blue_green_red(image, mean))
    assert_same(scores[:, :, 0, 0], original(standardised(image)))


@torch.no_grad()
def test_with_another_mean_features_away_from_the_border_are_those_of_the_original(
    original, image
):
    network = on_meta(Vgg16)
    tensors = convert_torchvision(original.state_dict(), 'IMAGENET1K_V1', CITYSCAPES_MEAN)
    network.load_state_dict(tensors, assign=True)
    ours = network.activations(blue_green_red(image, CITYSCAPES_MEAN), ['conv3_3'])['conv3_3']
    theirs = original.features[:16](standardised(image))
    # conv3_3 sees 40 pixels, so the border reaches five positions of four pixels inwards.
    assert_same(ours[:, :, 5:-5, 5:-5], theirs[:, :, 5:-5, 5:-5])


@torch.no_grad()
def test_weights_without_a_classifier_take_the_means_they_were_trained_with(original, image):
    mean = tuple(255 * value for value in (0.40784, 0.45882, 0.48235))
    features = {name: value for name, value in original.state_dict().items() if 'fea' in name}
    tensors = convert_torchvision(features, 'IMAGENET1K_FEATURES', mean)
    assert len(tensors) == 2 * 13
    torch.testing.assert_close(tensors['conv1_1.weight'], features['features.0.weight'].flip(1))
    torch.testing.assert_close(tensors['conv1_1.bias'], features['features.0.bias'])


def test_every_tensor_that_is_missing_is_named(original):
    tensors = dict(original.state_dict())
    del tensors['features.5.bias'], tensors['classifier.6.weight']
    with pytest.raises(WeightsError, match=r'missing features\.5\.bias, classifier\.6\.weight'):
        convert_torchvision(tensors, 'IMAGENET1K_V1', CITYSCAPES_MEAN)
