from dense_perception.predictors.engines import in_openvino
from dense_perception.predictors.engines.engine import equal_labels, Task
import pytest
import torch
from torch import nn
import torch.nn.functional as F

openvino = pytest.importorskip('openvino')


class Pooled(nn.Module):
    """Two convolutions and a pooling between them."""

    def __init__(self, **options):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.options = options

    def forward(self, image):
        return self.last(F.max_pool2d(torch.relu(self.first(image)), **self.options))


class Unpooled(nn.Module):
    """A pooling whose places are used."""

    def forward(self, image):
        maxima, places = F.max_pool2d(image, 2, return_indices=True)
        return F.max_unpool2d(maxima, places, 2)


def task_of(network, size):
    torch.manual_seed(0)
    images = [(torch.rand(1, 3, *size),) for _ in range(4)]
    return Task(network.eval().requires_grad_(False), images, equal_labels, 0.5, images)


def outputs(network, size, folder):
    """Return what an engine gives, and what torch does."""
    task = task_of(network, size)
    in_openvino.build(task, folder)
    engine = in_openvino.load(task, folder, precision='f32')
    return engine(*task.inputs[0]), network(*task.inputs[0])


@pytest.mark.parametrize(
    ('options', 'size'),
    [
        ({'kernel_size': 2, 'ceil_mode': True}, (12, 16)),
        ({'kernel_size': 2, 'ceil_mode': True}, (11, 13)),
        ({'kernel_size': 2}, (11, 13)),
        ({'kernel_size': 3, 'stride': 2, 'padding': 1}, (11, 12)),
        ({'kernel_size': 2, 'stride': 3, 'ceil_mode': True}, (12, 12)),
        ({'kernel_size': 3, 'stride': 1, 'dilation': 2}, (11, 12)),
    ],
)
def test_poolings_of_every_form_give_what_torch_does(options, size, tmp_path):
    found, expected = outputs(Pooled(**options), size, tmp_path)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_pooling_whose_places_are_used_gives_what_torch_does(tmp_path):
    found, expected = outputs(Unpooled(), (8, 12), tmp_path)
    torch.testing.assert_close(found, expected)


def test_the_convolution_behind_a_pooling_is_computed_in_int8(tmp_path):
    pytest.importorskip('nncf')
    in_openvino.build_int8(task_of(Pooled(kernel_size=2, ceil_mode=True), (24, 32)), tmp_path)
    compiled = openvino.Core().compile_model(tmp_path / 'network.xml', 'CPU')
    layers = [layer.get_rt_info() for layer in compiled.get_runtime_model().get_ordered_ops()]
    ways = [
        layer['primitiveType'].astype(str)
        for layer in layers
        if layer['layerType'].astype(str) == 'Convolution'
    ]
    assert len(ways) == 2
    assert all(way.endswith('I8') for way in ways)
