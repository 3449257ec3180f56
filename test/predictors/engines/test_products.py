from dense_perception.networks.context import FrontEndContext
from dense_perception.networks.flownet import FlowNetCorr
from dense_perception.networks.layers import is_plain
from dense_perception.predictors.engines.products import (
    choose_convolutions,
    PlainConvolution,
    ProductConvolution,
)
import pytest
import torch
from torch import nn


@pytest.mark.parametrize('rectify', [False, True])
@pytest.mark.parametrize(
    ('kernel', 'dilation', 'padding'), [(3, 1, 0), (3, 2, 2), (7, 4, 0), (1, 1, 0)]
)
def test_matrix_product_is_the_convolution(kernel, dilation, padding, rectify):
    torch.manual_seed(0)
    layer = nn.Conv2d(5, 6, kernel, dilation=dilation, padding=padding)
    values = torch.randn(2, 5, 29, 31)
    with torch.inference_mode():
        wanted = PlainConvolution(layer, rectify=rectify)(values)
        torch.testing.assert_close(ProductConvolution(layer, rectify=rectify)(values), wanted)


def test_rows_are_gathered_some_at_a_time(monkeypatch):
    layer = nn.Conv2d(4, 3, 3, padding=1)
    values = torch.randn(1, 4, 10, 8)
    product = ProductConvolution(layer, rectify=False)
    monkeypatch.setattr('dense_perception.predictors.engines.products._MOST_GATHERED', 3000)
    with torch.inference_mode():
        torch.testing.assert_close(product(values), layer(values))


@pytest.mark.parametrize(
    'layer',
    [
        nn.Conv2d(4, 4, 3, stride=2),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, bias=False),
        nn.Conv2d(4, 4, 3, padding='same'),
        nn.Linear(4, 4),
    ],
    ids=['stride', 'groups', 'no bias', 'padding', 'no convolution'],
)
def test_other_layers_stay_what_they_are(layer):
    assert not is_plain(layer)


@pytest.mark.parametrize('favourite', [PlainConvolution, ProductConvolution])
def test_network_computes_the_same_whichever_way_is_chosen(favourite):
    torch.manual_seed(0)
    network = FrontEndContext(7, width='compact').eval()
    images = torch.randn(1, 3, 64, 72)
    with torch.inference_mode():
        chosen = choose_convolutions(
            network, images, time_of=lambda layer, _: float(not isinstance(layer, favourite))
        )
        torch.testing.assert_close(chosen(images), network(images), rtol=1e-4, atol=1e-4)
    kinds = {type(layer) for layer in chosen.modules()}
    assert favourite in kinds
    assert not kinds & {PlainConvolution, ProductConvolution} - {favourite}


def test_fastest_way_is_measured():
    network = FrontEndContext(3, width='compact').eval()
    images = torch.randn(1, 3, 32, 32)
    chosen = choose_convolutions(network, images)
    with torch.inference_mode():
        torch.testing.assert_close(chosen(images), network(images), rtol=1e-4, atol=1e-4)


def test_network_of_two_images_is_one_too():
    network = FlowNetCorr(width=0.1).eval()
    pair = torch.randn(2, 1, 3, 64, 128).unbind()
    chosen = choose_convolutions(network, *pair, time_of=lambda *_: 0.0)
    with torch.inference_mode():
        torch.testing.assert_close(chosen(*pair), network(*pair), rtol=1e-4, atol=1e-4)


def test_layer_that_is_called_twice_is_rectified_where_it_was():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, images):
            return self.layer(torch.relu(self.layer(images)))

    network, images = Twice().eval(), torch.randn(1, 3, 8, 8)
    chosen = choose_convolutions(network, images, time_of=lambda *_: 0.0)
    with torch.inference_mode():
        torch.testing.assert_close(chosen(images), network(images))
