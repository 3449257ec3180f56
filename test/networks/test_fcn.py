import math

from dense_perception.labels import UNLABELLED
from dense_perception.networks import NETWORKS
from dense_perception.networks.fcn import FCN8s, FCN16s, FCN32s
from dense_perception.networks.layers import bilinear_kernel
from dense_perception.networks.vgg16 import STAGES
from dense_perception.weights.checkpoint import Card, load_weights, Preprocessing, save_weights
import pytest
import torch
from torch import nn
import torch.nn.functional as F

ALL = [FCN32s, FCN16s, FCN8s]
EVERY_PLACE = range(1, 65)  # sizes repeat their remainders modulo 32, the coarsest stride
EVERY_SIZE = range(1, 2100)


def on_meta(network, classes=21, width='full', **arguments):
    """Build a network that has shapes but no numbers."""
    with torch.device('meta'):
        return network(classes, width, **arguments).eval()


def image_on_meta(rows, columns):
    return torch.empty(1, 3, rows, columns, device='meta')


def randomised(network):
    """Fill all layers, the score layers too, so that every wire shows in the scores."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        if parameter.dim() == 4 and parameter.requires_grad:
            nn.init.kaiming_normal_(parameter)
        elif parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    return network.eval()


def reach(layer):
    """Rows beside the one that a layer stands on."""
    return layer.dilation[0] * (layer.kernel_size[0] - 1)


def count(parameters):
    return sum(parameter.numel() for parameter in parameters)


@pytest.mark.parametrize(
    ('network', 'classes', 'total'),
    [
        (FCN32s, 21, 136_152_917),
        (FCN16s, 21, 134_815_994),
        (FCN8s, 21, 134_489_759),
        (FCN8s, 19, 134_456_985),
        (FCN8s, 11, 134_348_929),
    ],
)
def test_network_has_the_published_parameters(network, classes, total):
    assert count(on_meta(network, classes).parameters()) == total


@pytest.mark.parametrize(
    ('network', 'learnt'),
    [(FCN32s, 134_346_581), (FCN16s, 134_357_354), (FCN8s, 134_362_751)],
)
def test_upsampling_is_frozen_unless_asked_for(network, learnt):
    assert count(p for p in on_meta(network).parameters() if p.requires_grad) == learnt


def test_learning_to_upsample_frees_the_doubling_layers_but_not_the_last():
    network = on_meta(FCN8s, learn_upsampling=True)
    frozen = [name for name, value in network.named_parameters() if not value.requires_grad]
    assert frozen == ['upscore8.weight']


def test_layers_after_vgg16_have_the_released_names_and_shapes():
    shapes = {name: tuple(value.shape) for name, value in on_meta(FCN8s).state_dict().items()}
    names = [name for name in shapes if not name.startswith(('conv', 'fc'))]
    assert {name: shapes[name] for name in names} == {
        'score_fr.weight': (21, 4096, 1, 1),
        'score_fr.bias': (21,),
        'score_pool4.weight': (21, 512, 1, 1),
        'score_pool4.bias': (21,),
        'score_pool3.weight': (21, 256, 1, 1),
        'score_pool3.bias': (21,),
        'upscore2.weight': (21, 21, 4, 4),
        'upscore_pool4.weight': (21, 21, 4, 4),
        'upscore8.weight': (21, 21, 16, 16),
    }
    assert 'upscore.weight' in on_meta(FCN32s).state_dict()
    assert 'upscore16.weight' in on_meta(FCN16s).state_dict()


def test_layer_sizes_for_500_pixels_are_those_of_the_released_model():
    network = on_meta(FCN8s)
    pools = [f'pool{stage}' for stage in range(1, 6)]
    maps = network.activations(image_on_meta(500, 500), [*pools, 'fc6'])
    assert [maps[name].shape[2] for name in pools] == [349, 175, 88, 44, 22]
    assert maps['fc6'].shape[2] == 16
    sizes = {}
    for name in ('upscore2', 'upscore_pool4', 'upscore8'):
        layer = network.get_submodule(name)
        layer.register_forward_hook(
            lambda _, __, out, name=name: sizes.update({name: out.shape[2]})
        )
    network(image_on_meta(500, 500))
    assert sizes == {'upscore2': 34, 'upscore_pool4': 70, 'upscore8': 568}


@pytest.mark.parametrize('network', ALL)
def test_scores_have_the_size_of_the_image_whatever_it_is(network):
    built = on_meta(network)
    sizes = [(size, 65 - size) for size in EVERY_PLACE] + [(1024, 2048), (360, 480), (2099, 1)]
    for rows, columns in sizes:
        assert built(image_on_meta(rows, columns)).shape == (1, 21, rows, columns)


@pytest.mark.parametrize(('network', 'slack'), [(FCN32s, 19), (FCN16s, 27), (FCN8s, 31)])
def test_scores_reach_beyond_the_crop_by_at_least_its_offset(network, slack):
    built = on_meta(network)
    enlarged = []
    last = built.get_submodule(network.last.name)
    last.register_forward_hook(lambda _, __, out: enlarged.append(out.shape[2]))
    for size in EVERY_PLACE:
        built(image_on_meta(size, 1))
    beyond = [
        rows - network.last.offset - size for rows, size in zip(enlarged, EVERY_PLACE, strict=True)
    ]
    assert min(beyond) == slack


@pytest.mark.slow
@pytest.mark.parametrize(('network', 'slack'), [(FCN32s, 19), (FCN16s, 27), (FCN8s, 31)])
def test_scores_have_the_size_of_every_image_up_to_2099_pixels_and_reach_beyond_it(network, slack):
    built = on_meta(network)
    enlarged = []
    last = built.get_submodule(network.last.name)
    last.register_forward_hook(lambda _, __, out: enlarged.append(out.shape[2:]))
    beyond = set()
    for rows, columns in zip(EVERY_SIZE, reversed(EVERY_SIZE), strict=True):
        assert built(image_on_meta(rows, columns)).shape == (1, 21, rows, columns)
        for larger, size in zip(enlarged.pop(), (rows, columns), strict=True):
            beyond.add(larger - network.last.offset - size)
    assert min(beyond) == slack


@pytest.mark.parametrize('network', ALL)
def test_fc6_sees_404_pixels_and_moves_by_32(network):
    built = on_meta(network)
    field, stride = 1, 1
    for names in STAGES:
        for name in names:
            field += stride * reach(built.get_submodule(name))
        field, stride = field + stride, 2 * stride  # pooling of 2 x 2
    assert (field + stride * reach(built.fc6), stride) == (404, 32)


@pytest.mark.parametrize('network', ALL)
def test_crops_lay_each_score_over_the_pixels_it_stands_for(network):
    # Position j of a map is centred on pixel stride * j + start. Padding by 100 moves everything
    # by 99, for a 3x3 layer needs one of them; fc6 is centred on the fourth of its seven rows.
    stride, start = 32, 32 * 3 + 15.5 - 99
    for fusion in network.fusions:
        stride, start = stride // 2, start - stride / 2 * 1.5
        pool_start = (stride - 1) / 2 - 99
        assert pool_start + stride * fusion.offset == start
    factor = network.last.factor
    assert stride == factor
    assert start - (factor - 0.5) + network.last.offset == 0


@pytest.mark.parametrize('network', ALL)
def test_summed_loss_starts_at_the_logarithm_of_the_classes_for_each_labelled_pixel(network):
    labels = torch.zeros(1, 20, 30, dtype=torch.int64)
    labels[:, :5] = UNLABELLED
    scores = network(19, 'compact')(torch.randn(1, 3, 20, 30))
    loss = F.cross_entropy(scores, labels, ignore_index=UNLABELLED, reduction='sum')
    assert loss.item() == pytest.approx(15 * 30 * math.log(19), rel=1e-5)


@pytest.mark.parametrize('name', ['upscore2', 'upscore_pool4', 'upscore8'])
def test_upsampling_interpolates_each_class_and_mixes_none(name):
    layer = FCN8s(3, 'compact').get_submodule(name)
    scores = torch.zeros(1, 3, 6, 6)
    scores[0, 1] = 2.0
    larger = layer(scores)
    factor = layer.stride[0]
    inside = larger[0, :, factor:-factor, factor:-factor]
    torch.testing.assert_close(inside[1], torch.full_like(inside[1], 2.0))
    assert not larger[0, [0, 2]].any()


@pytest.mark.parametrize('at_once', [False, True])
def test_fcn8s_computes_what_the_released_layer_list_says(at_once):
    network = randomised(FCN8s(4, 'compact', at_once=at_once))
    image = torch.randn(1, 3, 45, 70)
    tensors = network.state_dict()

    def convolution(values, name, padding=0):
        return F.conv2d(
            values, tensors[f'{name}.weight'], tensors[f'{name}.bias'], padding=padding
        )

    def enlarged(values, factor):
        kernel = bilinear_kernel(factor).expand(4, 1, -1, -1)
        return F.conv_transpose2d(values, kernel, stride=factor, groups=4)

    def pooled(values):
        return F.max_pool2d(values, 2, 2, ceil_mode=True)

    x = convolution(image, 'conv1_1', 100).relu()
    x = pooled(convolution(x, 'conv1_2', 1).relu())
    x = convolution(x, 'conv2_1', 1).relu()
    x = pooled(convolution(x, 'conv2_2', 1).relu())
    for name in ('conv3_1', 'conv3_2', 'conv3_3'):
        x = convolution(x, name, 1).relu()
    pool3 = x = pooled(x)
    for name in ('conv4_1', 'conv4_2', 'conv4_3'):
        x = convolution(x, name, 1).relu()
    pool4 = x = pooled(x)
    for name in ('conv5_1', 'conv5_2', 'conv5_3'):
        x = convolution(x, name, 1).relu()
    x = convolution(pooled(x), 'fc6').relu()
    x = convolution(convolution(x, 'fc7').relu(), 'score_fr')
    x = enlarged(x, 2)
    skip = convolution(pool4 * 0.01 if at_once else pool4, 'score_pool4')
    x = x + skip[:, :, 5 : 5 + x.shape[2], 5 : 5 + x.shape[3]]
    x = enlarged(x, 2)
    skip = convolution(pool3 * 0.0001 if at_once else pool3, 'score_pool3')
    x = x + skip[:, :, 9 : 9 + x.shape[2], 9 : 9 + x.shape[3]]
    x = enlarged(x, 8)[:, :, 31 : 31 + 45, 31 : 31 + 70]
    with torch.no_grad():
        torch.testing.assert_close(network(image), x, rtol=1e-4, atol=1e-4 * float(x.abs().max()))


def test_weights_of_fcn32s_fit_fcn8s_but_for_the_layers_that_it_adds():
    coarse = {name for name in on_meta(FCN32s).state_dict() if name != 'upscore.weight'}
    added = set(on_meta(FCN8s).state_dict()) - coarse
    assert coarse < set(on_meta(FCN8s).state_dict())
    assert {name.split('.')[0] for name in added} == {
        'score_pool4',
        'score_pool3',
        'upscore2',
        'upscore_pool4',
        'upscore8',
    }


def test_one_image_of_1024_by_2048_takes_1102_billion_multiplications():
    network = on_meta(FCN8s, 19)
    total = 0

    def add(layer, inputs, output):
        nonlocal total
        grid = inputs[0] if isinstance(layer, nn.ConvTranspose2d) else output
        total += layer.weight.numel() * grid.shape[2] * grid.shape[3]

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(add)
    network(image_on_meta(1024, 2048))
    assert total / 1e9 == pytest.approx(1102.0, abs=0.05)


def test_dropout_follows_fc6_and_fc7_in_training_only():
    network = randomised(FCN8s(3, 'compact'))
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(image), network(image))
        network.train()
        assert not torch.equal(network(image), network(image))


@pytest.mark.parametrize('name', ['fcn32s', 'fcn16s', 'fcn8s'])
def test_network_is_saved_and_loaded_by_its_name(name, tmp_path):
    arguments = {'classes': 11, 'width': 'compact', 'at_once': True}
    network = randomised(NETWORKS[name](**arguments))
    path = tmp_path / 'weights.safetensors'
    card = Card(name, arguments, Preprocessing('bgr', (104.00699, 116.66877, 122.67892), 1.0))
    save_weights(path, network, card, torch.float32)
    loaded, _ = load_weights(path)
    image = torch.randn(1, 3, 24, 40)
    with torch.no_grad():
        assert torch.equal(loaded(image), network(image))
