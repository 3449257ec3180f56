from dense_perception.networks import NETWORKS
from dense_perception.networks.context import FrontEndContext
from dense_perception.networks.fcn import FCN8s
from dense_perception.networks.flownet import FlowNetCorr, FlowNetSimple
from dense_perception.networks.frontend import FrontEnd
from dense_perception.weights.listing import gigamacs, rows
from dense_perception.weights.published import PUBLISHED
from dense_perception.weights.sources import SOURCES
import pytest
import torch


def test_every_network_and_all_weights_are_listed_once():
    listed = rows()
    assert [*dict.fromkeys(row.network for row in listed)] == list(NETWORKS)
    names = [name for row in listed for name in row.weights]
    assert sorted(names) == sorted([*SOURCES, *(f'*{name}' for name in PUBLISHED)])
    sizes = {name: row.parameters for row in listed for name in row.weights}
    assert sizes['dilation10_cityscapes'] == 134_368_179
    assert sizes['dilation8_pascal_voc'] == 141_149_720
    assert sizes['fcn16s_pascal'] == 134_815_994
    assert sizes['deconvnet_pascal'] == 251_805_653
    assert sizes['flownet_c_caffe'] == 39_175_298
    assert sizes['vgg16_imagenet'] == 138_357_544


@pytest.mark.parametrize(
    ('network', 'arguments', 'size', 'expected'),
    [
        (FrontEnd, {'classes': 19}, (1024, 2048), 5135.4),
        (FrontEnd, {'classes': 19}, (360, 480), 526.7),
        (FCN8s, {'classes': 19}, (512, 1024), 334.8),
        (FlowNetSimple, {}, (384, 512), 15.787782912),
        (FlowNetCorr, {}, (384, 512), 22.382015232 + 0.346816512),
        (FlowNetCorr, {}, (1024, 2048), 242.44),
    ],
)
def test_operations_are_those_of_the_published_shapes(network, arguments, size, expected):
    with torch.device('meta'):
        built = network(**arguments).eval()
    assert gigamacs(built, *size) == pytest.approx(expected, abs=0.05)


def test_context_is_cheap_beside_its_front_end():
    with torch.device('meta'):
        built = FrontEndContext(19, layers=10).eval()
    operations = gigamacs(built.context, 128, 256)
    assert operations is None  # it takes scores, not an image
    assert gigamacs(built, 1024, 2048) - gigamacs(built.front_end, 1024, 2048) == pytest.approx(
        0.970, abs=0.001
    )
