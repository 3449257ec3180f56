from dense_perception.networks import NETWORKS
from dense_perception.networks.context import FrontEndContext
from dense_perception.networks.deconvnet import DeconvNet
from dense_perception.networks.fcn import FCN8s
from dense_perception.networks.flownet import FlowNetCorr, FlowNetSimple
from dense_perception.networks.frontend import FrontEnd
from dense_perception.networks.hypercolumns import Hypercolumns
from dense_perception.networks.masks import DeepMask, SharpMask
from dense_perception.networks.super_parsing import SuperParsing
from dense_perception.networks.vgg16 import Vgg16
from dense_perception.networks.zoom_out import ZoomOut
from dense_perception.weights.listing import gigamacs, rows
from dense_perception.weights.published import PUBLISHED
from dense_perception.weights.sources import SOURCES
import pytest
import torch
from torch import nn
import torchvision


@pytest.fixture(scope='module')
def listed():
    return rows()


def test_every_network_and_all_weights_are_listed_once(listed):
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
        (FrontEnd, {'classes': 19}, (512, 1024), 1402.6),
        (FrontEnd, {'classes': 19}, (480, 640), 863.3),
        (FrontEnd, {'classes': 19}, (360, 480), 526.7),
        (FCN8s, {'classes': 19}, (1024, 2048), 1102.0),
        (FCN8s, {'classes': 19}, (512, 1024), 334.8),
        (FCN8s, {'classes': 19}, (480, 640), 215.6),
        (FCN8s, {'classes': 19}, (360, 480), 139.7),
        (DeconvNet, {'classes': 21}, (224, 224), 32.75),
        (Vgg16, {}, (224, 224), 15.47),
        (FlowNetSimple, {}, (384, 512), 15.787782912),
        (FlowNetSimple, {}, (512, 640), 26.31),
        (FlowNetSimple, {}, (480, 640), 24.78),
        (FlowNetSimple, {}, (360, 480), 14.18),
        (FlowNetSimple, {}, (1024, 2048), 168.40),
        (FlowNetCorr, {}, (384, 512), 22.382015232 + 0.346816512),
        (FlowNetCorr, {}, (512, 640), 37.88),
        (FlowNetCorr, {}, (1024, 2048), 242.44),
    ],
)
def test_operations_are_those_of_the_published_shapes(network, arguments, size, expected):
    with torch.device('meta'):
        built = network(**arguments).eval()
    assert gigamacs(built, *size) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(
    ('arguments', 'expected'),
    [({'layers': 10}, 0.970), ({'layers': 8}, 0.757), ({'large': True}, 182.4)],
)
def test_context_costs_what_it_adds_to_its_front_end(arguments, expected):
    built = on_meta(FrontEndContext, classes=19, **arguments)
    assert gigamacs(built.context, 128, 256) is None  # it takes scores, not an image
    added = gigamacs(built, 1024, 2048) - gigamacs(built.front_end, 1024, 2048)
    assert added == pytest.approx(expected, rel=1e-3)


def on_meta(network, **arguments):
    with torch.device('meta'):
        return network(**arguments).eval()


def convolutions(rows, columns):
    """10^9 multiply-accumulates of VGG-16's convolutions; 15.35 at 224 x 224."""
    return 15.346630656 * rows * columns / 224**2


def test_every_sub_scene_of_zoom_out_costs_a_pass_of_vgg16():
    window = convolutions(256, 256) + 4 * (49 * 512 * 4096 + 4096**2) / 1e9  # fc6 gives 2 x 2
    for superpixels in (500, 7):
        network = on_meta(ZoomOut, classes=19, superpixels=superpixels)
        expected = convolutions(512, 1024) + (superpixels + 1) * window
        assert gigamacs(network, 512, 1024) == pytest.approx(expected, rel=1e-6)


def test_hypercolumns_cost_vgg16_once_and_a_classifier_per_map():
    heads = 475 * (64 * 128 * 9 * 256 + 32 * 64 * 512 + 16 * 32 * 4096)
    expected = convolutions(512, 1024) + (16 * 32 * (49 * 512 * 4096 + 4096**2) + heads) / 1e9
    network = on_meta(Hypercolumns, classes=19)
    assert gigamacs(network, 512, 1024) == pytest.approx(expected, rel=1e-6)


def test_mask_networks_cost_their_resnet50_and_a_description_of_every_window():
    total = 0

    def add(layer, _, output):
        nonlocal total
        total += layer.weight.numel() * output.shape[2] * output.shape[3]

    with torch.device('meta'):
        resnet = torchvision.models.resnet50()
        image = torch.empty(1, 3, 512 + 160, 1024 + 160)
    resnet.layer4 = nn.Sequential()
    resnet.fc = nn.Identity()
    for layer in resnet.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(add)
    resnet(image)
    windows = 33 * 65  # one at every 16th pixel
    head = 42 * 74 * 1024 * 128 + windows * (100 * 128 * 512 + 512 * 1024 + 1024)
    deep = on_meta(DeepMask)
    assert gigamacs(deep, 512, 1024) == pytest.approx((total + head) / 1e9, rel=1e-6)
    places = 42 * 74  # of the trunk's last map; each finer one has four times as many
    horizontal = 9 * places * (
        (1024 * 64 + 64 * 32 + 32 * 16)
        + 4 * (512 * 64 + 64 * 16 + 16 * 8)
        + 16 * (256 * 64 + 64 * 8 + 8 * 4)
        + 64 * (64 * 32 + 32 * 4 + 4 * 2)
    )  # fmt: skip
    sharp = gigamacs(on_meta(SharpMask), 512, 1024) - gigamacs(deep, 512, 1024)
    assert sharp == pytest.approx(horizontal / 1e9, rel=1e-6)


def test_super_parsing_has_no_convolutions_to_count():
    assert gigamacs(SuperParsing(19), 512, 1024) is None


def test_every_row_names_a_paper_and_all_but_super_parsing_have_operations(listed):
    assert all(row.paper for row in listed)
    assert {row.network for row in listed if row.gigamacs is None} == {'super_parsing'}
    where = {row.network: row.runs_in for row in listed}
    assert where['zoom_out'] == 'Segmenter, node'
    assert where['sharp_mask'] == 'MaskProposer, node'
    assert where['vgg16'] == 'Python'
