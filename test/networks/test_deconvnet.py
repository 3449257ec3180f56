import re

from dense_perception.errors import InputError
from dense_perception.networks import NETWORKS
from dense_perception.networks.deconvnet import DeconvNet, pool, unpool
from dense_perception.predictors.device import choose_placement
from dense_perception.predictors.segmenter import Segmenter
from dense_perception.weights.checkpoint import Card, load_weights, Preprocessing, save_weights
import numpy as np
import pytest
import torch
from torch import nn


def on_meta(classes=21, width='full'):
    """Build a network that has shapes but no numbers."""
    with torch.device('meta'):
        return DeconvNet(classes, width).eval()


def image_on_meta(rows=224, columns=224):
    return torch.empty(1, 3, rows, columns, device='meta')


def record_sizes(network, kinds):
    """Return a dict that fills with (channels, rows, columns) of each layer as it runs."""
    sizes = {}
    for name, layer in network.named_modules():
        if isinstance(layer, kinds):
            layer.register_forward_hook(
                lambda _, __, out, name=name: sizes.update({name: tuple(out.shape[1:])})
            )
    return sizes


def test_network_has_the_published_parameters():
    assert sum(value.numel() for value in on_meta().parameters()) == 251_805_653


def test_all_layers_but_the_last_are_normalised():
    norms = [layer for layer in on_meta().modules() if isinstance(layer, nn.BatchNorm2d)]
    assert len(norms) == 29
    assert sum(value.numel() for norm in norms for value in norm.parameters()) == 33_408


def test_scores_of_224_pixels_are_224_pixels():
    assert on_meta()(image_on_meta()).shape == (1, 21, 224, 224)


def test_one_image_of_224_pixels_takes_32_75_billion_multiplications():
    network = on_meta()
    total = 0

    def add(layer, inputs, output):
        nonlocal total
        grid = inputs[0] if isinstance(layer, nn.ConvTranspose2d) else output
        total += layer.weight.numel() * grid.shape[2] * grid.shape[3]

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(add)
    network(image_on_meta())
    assert total / 1e9 == pytest.approx(32.75, abs=0.005)


def test_encoder_ends_in_one_vector_and_the_decoder_starts_with_7_by_7():
    network = on_meta()
    sizes = record_sizes(network, nn.Conv2d | nn.ConvTranspose2d)
    network(image_on_meta())
    assert sizes['fc6'] == sizes['fc7'] == (4096, 1, 1)
    assert sizes['fc6-deconv'] == (512, 7, 7)


def test_decoder_has_the_released_names_channels_and_sizes():
    network = on_meta()
    sizes = record_sizes(network, nn.ConvTranspose2d)
    network(image_on_meta())
    assert list(sizes.items())[1:] == [
        ('deconv5_1', (512, 14, 14)),
        ('deconv5_2', (512, 14, 14)),
        ('deconv5_3', (512, 14, 14)),
        ('deconv4_1', (512, 28, 28)),
        ('deconv4_2', (512, 28, 28)),
        ('deconv4_3', (256, 28, 28)),
        ('deconv3_1', (256, 56, 56)),
        ('deconv3_2', (256, 56, 56)),
        ('deconv3_3', (128, 56, 56)),
        ('deconv2_1', (128, 112, 112)),
        ('deconv2_2', (64, 112, 112)),
        ('deconv1_1', (64, 224, 224)),
        ('deconv1_2', (64, 224, 224)),
    ]


def test_normalisations_have_the_released_names():
    norms = [n for n, layer in on_meta().named_modules() if isinstance(layer, nn.BatchNorm2d)]
    assert norms[:3] == ['bn1_1', 'bn1_2', 'bn2_1']
    assert norms[13:18] == ['bnfc6', 'bnfc7', 'fc6-deconv-bn', 'debn5_1', 'debn5_2']
    assert norms[-1] == 'debn1_2'


def test_normalisation_starts_with_scale_1_and_shift_a_thousandth():
    network = DeconvNet(2, 'compact')
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert all((norm.weight == 1).all() and (norm.bias == 0.001).all() for norm in norms)


def test_every_layer_but_the_first_sees_what_a_relu_has_passed():
    network = DeconvNet(2, 'compact')
    smallest = []
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_pre_hook(lambda _, given: smallest.append(given[0].min()))
    with torch.no_grad():
        network(torch.randn(2, 3, 224, 224))
    assert len(smallest) == 30
    assert min(smallest[1:]) >= 0


@pytest.mark.parametrize(('rows', 'columns'), [(193, 224), (255, 361), (360, 480), (225, 500)])
def test_scores_have_the_size_of_a_larger_or_odd_image_too(rows, columns):
    scores = on_meta()(image_on_meta(rows, columns))
    assert scores.shape == (1, 21, rows, columns)


@pytest.mark.parametrize(('rows', 'columns'), [(192, 640), (640, 192), (1, 1)])
def test_image_smaller_than_fc6_needs_is_refused(rows, columns):
    message = (
        f'{rows} x {columns} pixels is too small for DeconvNet; at least 193 rows and columns'
    )
    with pytest.raises(InputError, match=message):
        on_meta()(image_on_meta(rows, columns))


def test_segmenter_refuses_an_image_that_is_too_small_at_its_input_width():
    card = Card('deconvnet', {'classes': 19, 'width': 'compact'}, Preprocessing(), 'cityscapes')
    segmenter = Segmenter(
        DeconvNet(19, 'compact').eval(), card, choose_placement('cpu', 'float32'), width=256
    )
    with pytest.raises(InputError, match=re.escape('192 x 256 pixels is too small')):
        segmenter.segment(np.zeros((480, 640, 3), np.uint8))


def test_unpooling_puts_maxima_back_and_zeros_elsewhere():
    values = torch.tensor([[1.0, 5.0, 2.0, 0.5], [3.0, 4.0, 1.0, 7.0]])[None, None]
    maxima, switches = pool(values)
    assert maxima.flatten().tolist() == [5, 7]
    expected = [[0, 5, 0, 0], [0, 0, 0, 7]]
    assert unpool(maxima, switches)[0, 0].tolist() == expected


def test_unpooling_moves_other_values_to_where_the_maxima_were():
    _, switches = pool(torch.tensor([[1.0, 5.0], [3.0, 4.0]])[None, None])
    assert unpool(torch.tensor([[[[-2.0]]]]), switches)[0, 0].tolist() == [[0, -2], [0, 0]]


@pytest.mark.parametrize('size', [(8, 12), (7, 9), (1, 5)])
def test_pooling_what_was_unpooled_gives_the_pooled_values(size):
    values = torch.rand(2, 3, *size, generator=torch.manual_seed(0))
    pooled, switches = pool(values)
    unpooled = unpool(pooled, switches)
    assert unpooled.shape == values.shape
    assert torch.equal(pool(unpooled)[0], pooled)


def test_gradient_of_unpooling_is_that_of_finite_differences():
    generator = torch.manual_seed(0)
    _, switches = pool(torch.rand(2, 2, 5, 6, generator=generator))
    values = torch.rand(2, 2, 3, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda given: unpool(given, switches), values)


def test_gradient_through_pooling_and_unpooling_is_that_of_finite_differences():
    # Values a tenth apart: finite differences must not change which is the largest.
    order = torch.randperm(2 * 5 * 6, generator=torch.manual_seed(0)).double() / 10
    values = order.reshape(1, 2, 5, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda given: unpool(*pool(given)), values)


def test_network_is_saved_and_loaded_by_its_name(tmp_path):
    torch.manual_seed(0)
    network = NETWORKS['deconvnet'](classes=5, width='compact')
    with torch.no_grad():
        network(torch.randn(2, 3, 224, 224))  # now the normalisations have seen something
    network.eval()
    path = tmp_path / 'weights.safetensors'
    card = Card('deconvnet', {'classes': 5, 'width': 'compact'}, Preprocessing('bgr'))
    save_weights(path, network, card, torch.float32)
    loaded, _ = load_weights(path)
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(loaded(image), network(image))
