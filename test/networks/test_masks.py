from dense_perception.errors import WeightsError
from dense_perception.networks.mask_trunks import (
    convert_resnet50,
    ResNet50Trunk,
    symmetric_pad,
    SymmetricConv2d,
)
from dense_perception.networks.masks import DeepMask, SharpMask
import numpy as np
import pytest
import torch
from torch import nn

BOTH = [DeepMask, SharpMask]
TRUNKS = ['resnet50', 'vgg_a']


def count(*modules):
    return sum(value.numel() for module in modules for value in module.parameters())


def compact(network, trunk='resnet50'):
    """Return a compact network whose residual blocks do something."""
    torch.manual_seed(0)
    built = network('compact', trunk=trunk).eval()
    for name, parameter in built.trunk.named_parameters():
        if name.endswith('bn3.weight'):
            nn.init.constant_(parameter, 0.3)
    return built


def test_parameters_are_those_of_the_released_networks():
    with torch.device('meta'):
        network = SharpMask()
        deep_mask = DeepMask()
    # In the release the trunk ends with the 512 numbers that describe a window.
    assert count(network.trunk, network.reduce, network.describe) == 15_228_608
    assert count(network.mask) == 1_608_768
    assert count(network.score) == 526_337
    assert count(network.horizontal) == 1_090_466
    assert count(network.vertical, network.start) == 1_660_050
    assert count(network.final) == 19
    assert count(deep_mask) == 17_363_713
    assert count(network) == 17_363_713 + 2_750_535
    assert count(*network.refinement()) == 2_750_535


@pytest.mark.parametrize(
    ('trunk', 'channels'),
    [('resnet50', (64, 256, 512, 1024)), ('vgg_a', (128, 256, 512, 512))],
)
def test_trunk_gives_maps_at_strides_2_to_16_of_a_patch(trunk, channels):
    with torch.device('meta'):
        maps = DeepMask(trunk=trunk).trunk(torch.empty(1, 3, 192, 192))
    sides = (96, 48, 24, 12)
    assert [tuple(values.shape) for values in maps] == [
        (1, width, side, side) for width, side in zip(channels, sides, strict=True)
    ]


@pytest.mark.parametrize('trunk', TRUNKS)
@pytest.mark.parametrize(('network', 'side'), [(DeepMask, 56), (SharpMask, 160)])
def test_each_patch_has_one_mask_and_one_score(network, side, trunk):
    with torch.device('meta'):
        masks, scores = network('compact', trunk=trunk).eval()(torch.empty(3, 3, 192, 192))
    assert masks.shape == (3, side, side)
    assert scores.shape == (3,)


def test_border_is_mirrored_with_the_outermost_pixel_included():
    values = torch.arange(30.0).reshape(1, 1, 5, 6)
    for margin in (1, 3):
        expected = np.pad(values[0, 0].numpy(), margin, mode='symmetric')
        np.testing.assert_array_equal(symmetric_pad(values, margin)[0, 0], expected)


def test_convolution_of_a_constant_image_is_constant_up_to_the_border():
    torch.manual_seed(0)
    mapped = SymmetricConv2d(1, 2, 7, 2)(torch.ones(1, 1, 12, 14))
    torch.testing.assert_close(mapped, mapped[:, :, :1, :1].expand_as(mapped))


@pytest.mark.parametrize('network', BOTH)
def test_windows_of_an_image_are_described_as_if_each_were_alone(network):
    built = compact(network)
    torch.manual_seed(1)
    image = torch.randn(1, 3, 224, 256)
    with torch.no_grad():
        windows = built.slide(image)
        assert windows.scores.shape == (5, 7)
        places = torch.tensor([[1, 1], [3, 2]])
        masks = built.window_masks(windows, places)
        # A window with the release's margin of 16 pixels around it. The image goes on where a
        # patch is mirrored, so the two differ near the border.
        patches = torch.cat(
            [image[:, :, 16 * r - 16 :, 16 * c - 16 :][:, :, :192, :192] for r, c in places]
        )
        alone = built(patches)
    for place, score in zip(places, alone.scores, strict=True):
        assert (windows.scores[tuple(place)] - score).abs() < 0.1 * windows.scores.std() + 0.02
    likeness = np.corrcoef(masks.flatten(1), alone.masks.flatten(1))[:2, 2:]
    assert likeness.diagonal().min() > 0.8
    assert likeness.argmax(1).tolist() == [0, 1]


@pytest.mark.parametrize('network', BOTH)
def test_masks_of_windows_come_in_the_order_of_their_places(network):
    built = compact(network)
    with torch.no_grad():
        windows = built.slide(torch.randn(1, 3, 192, 192))
        one, two = torch.tensor([[0, 2]]), torch.tensor([[1, 0]])
        both = built.window_masks(windows, torch.cat([one, two]))
        torch.testing.assert_close(both[:1], built.window_masks(windows, one))
        torch.testing.assert_close(both[1:], built.window_masks(windows, two))


def test_weights_of_deep_mask_fit_sharp_mask_but_for_the_refinement():
    with torch.device('meta'):
        theirs, ours = DeepMask('compact').state_dict(), SharpMask('compact').state_dict()
    added = {name.partition('.')[0] for name in ours if name not in theirs}
    assert added == {'start', 'horizontal', 'vertical', 'final'}
    assert all(ours[name].shape == value.shape for name, value in theirs.items())


@pytest.mark.parametrize('trunk', TRUNKS)
@pytest.mark.parametrize('network', BOTH)
def test_every_parameter_that_makes_the_masks_and_scores_learns(network, trunk):
    built = compact(network, trunk)
    masks, scores = built(torch.randn(1, 3, 192, 192))
    (masks.square().mean() + scores.square().mean()).backward()
    still = {name for name, value in built.named_parameters() if value.grad is None}
    # SharpMask carries DeepMask's mask layer along without using it.
    assert still == ({'mask.weight', 'mask.bias'} if network is SharpMask else set())


class Residual(nn.Module):
    """Bottleneck block with batch normalisation and zero padding, as torchvision has it."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        inner = outputs // 4
        self.conv1, self.bn1 = nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False, padding_mode='replicate')
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample = None
        if inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, values):
        inner = self.bn1(self.conv1(values)).relu()
        inner = self.bn3(self.conv3(self.bn2(self.conv2(inner)).relu()))
        return (inner + (values if self.downsample is None else self.downsample(values))).relu()


class BatchNormResNet(nn.Module):
    """ResNet-50 up to conv4 with the names of torchvision."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, bias=False), nn.BatchNorm2d(64)
        channels = 64
        for stage, (blocks, out) in enumerate(((3, 256), (4, 512), (6, 1024)), 1):
            layers = []
            for block in range(blocks):
                layers.append(Residual(channels, out, 2 if block == 0 and stage > 1 else 1))
                channels = out
            self.add_module(f'layer{stage}', nn.Sequential(*layers))

    def forward(self, image):
        padded = torch.from_numpy(
            np.pad(image.numpy(), ((0, 0), (0, 0), (3, 3), (3, 3)), mode='symmetric')
        )
        values = self.bn1(self.conv1(padded)).relu()
        values = nn.functional.max_pool2d(values, 3, 2, 1)
        return self.layer3(self.layer2(self.layer1(values)))


def test_statistics_of_batch_normalisation_are_folded_into_scale_and_shift():
    torch.manual_seed(0)
    source = BatchNormResNet().eval()
    for layer in source.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 2)
            layer.weight.data.uniform_(0.3, 0.7)
            layer.bias.data.normal_(0, 0.1)
    trunk = ResNet50Trunk()
    trunk.load_state_dict(convert_resnet50(source.state_dict()))
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(trunk(image)[-1], source(image), rtol=1e-4, atol=1e-5)


def test_tensors_that_are_no_resnet50_are_refused_with_what_is_missing():
    with pytest.raises(WeightsError, match='missing conv1.weight, .*bn1.running_var'):
        convert_resnet50({'features.0.weight': torch.zeros(1)})


def test_half_of_the_last_channels_of_sharp_mask_begin_by_lowering_the_mask():
    weight = SharpMask('compact').final.weight
    assert (weight[:, ::2] < 0).all()
    assert (weight[:, 1::2] > 0).all()
