"""Imported Caffe networks against OpenCV, which reads the same files by itself."""

from dataclasses import dataclass, field
import math
from typing import NamedTuple

import cv2
from dense_perception.labels import CAMVID
from dense_perception.networks.context import ContextModule
from dense_perception.networks.deconvnet import DeconvNet, pool
from dense_perception.networks.fcn import FCN8s, FCN16s, FCN32s
from dense_perception.networks.flownet import FLOW_SCALE, FlowNetCorr
from dense_perception.networks.frontend import FrontEnd
from dense_perception.weights.checkpoint import load_weights
from dense_perception.weights.importing import import_file
import numpy as np
import pytest
import torch
from torch import nn, Tensor
import torch.nn.functional as F

WIDTHS = ['compact', pytest.param('full', marks=pytest.mark.slow)]


class Row(NamedTuple):
    """A layer of a published network; a pooling or unpooling has no outputs of its own."""

    name: str
    outputs: int
    kernel: int
    pad: int
    stride: int
    dilation: int

    @property
    def transposed(self):
        return self.outputs, self.kernel, self.stride, self.pad


def table(text):
    rows = [line.split() for line in text.strip().splitlines()]
    return tuple(Row(name, *map(int, numbers)) for name, *numbers in rows)


# Name, outputs, kernel, pad, stride and dilation of each layer, as published. Typed here, so that
# they share no constant with the networks.
FRONT_END = table("""
    conv1_1   64 3 0 1 1
    conv1_2   64 3 0 1 1
    pool1      0 2 0 2 1
    conv2_1  128 3 0 1 1
    conv2_2  128 3 0 1 1
    pool2      0 2 0 2 1
    conv3_1  256 3 0 1 1
    conv3_2  256 3 0 1 1
    conv3_3  256 3 0 1 1
    pool3      0 2 0 2 1
    conv4_1  512 3 0 1 1
    conv4_2  512 3 0 1 1
    conv4_3  512 3 0 1 1
    conv5_1  512 3 0 1 2
    conv5_2  512 3 0 1 2
    conv5_3  512 3 0 1 2
    fc6     4096 7 0 1 4
    fc7     4096 1 0 1 1
""")
# Outputs in multiples of the classes.
CONTEXT_10 = table("""
    conv1_1 1 3  1 1  1
    conv1_2 1 3  1 1  1
    conv2_1 1 3  2 1  2
    conv3_1 1 3  4 1  4
    conv4_1 1 3  8 1  8
    conv5_1 1 3 16 1 16
    conv6_1 1 3 32 1 32
    conv7_1 1 3 64 1 64
    fc1     1 3  1 1  1
    final   1 1  0 1  1
""")
CONTEXTS = {
    '7': (*CONTEXT_10[:5], *CONTEXT_10[8:]),
    '8': (*CONTEXT_10[:6], *CONTEXT_10[8:]),
    '10': CONTEXT_10,
    'large': table("""
        conv1_1  2 3 33 1  1
        conv1_2  2 3  0 1  1
        conv2_1  4 3  0 1  2
        conv3_1  8 3  0 1  4
        conv4_1 16 3  0 1  8
        conv5_1 32 3  0 1 16
        fc1     32 3  0 1  1
        final    1 1  0 1  1
    """),
}
VGG_16 = table("""
    conv1_1   64 3 1 1 1
    conv1_2   64 3 1 1 1
    pool1      0 2 0 2 1
    conv2_1  128 3 1 1 1
    conv2_2  128 3 1 1 1
    pool2      0 2 0 2 1
    conv3_1  256 3 1 1 1
    conv3_2  256 3 1 1 1
    conv3_3  256 3 1 1 1
    pool3      0 2 0 2 1
    conv4_1  512 3 1 1 1
    conv4_2  512 3 1 1 1
    conv4_3  512 3 1 1 1
    pool4      0 2 0 2 1
    conv5_1  512 3 1 1 1
    conv5_2  512 3 1 1 1
    conv5_3  512 3 1 1 1
    pool5      0 2 0 2 1
    fc6     4096 7 0 1 1
    fc7     4096 1 0 1 1
""")
FCN = (VGG_16[0]._replace(pad=100), *VGG_16[1:])
FCN_HEADS = {
    32: table("""
        score_fr      21  1 0  1 1
        upscore       21 64 0 32 1
    """),
    16: table("""
        score_fr      21  1 0  1 1
        score_pool4   21  1 0  1 1
        upscore2      21  4 0  2 1
        upscore16     21 32 0 16 1
    """),
    8: table("""
        score_fr      21  1 0  1 1
        score_pool4   21  1 0  1 1
        upscore2      21  4 0  2 1
        score_pool3   21  1 0  1 1
        upscore_pool4 21  4 0  2 1
        upscore8      21 16 0  8 1
    """),
}
DECODER = table("""
    fc6-deconv 512 7 0 1 1
    unpool5      0 2 0 2 1
    deconv5_1  512 3 1 1 1
    deconv5_2  512 3 1 1 1
    deconv5_3  512 3 1 1 1
    unpool4      0 2 0 2 1
    deconv4_1  512 3 1 1 1
    deconv4_2  512 3 1 1 1
    deconv4_3  256 3 1 1 1
    unpool3      0 2 0 2 1
    deconv3_1  256 3 1 1 1
    deconv3_2  256 3 1 1 1
    deconv3_3  128 3 1 1 1
    unpool2      0 2 0 2 1
    deconv2_1  128 3 1 1 1
    deconv2_2   64 3 1 1 1
    unpool1      0 2 0 2 1
    deconv1_1   64 3 1 1 1
    deconv1_2   64 3 1 1 1
""")


def of_width(rows, width):
    """Return a published table, or with a quarter of the channels."""
    if width == 'full':
        return rows
    return tuple(
        row._replace(outputs={4096: 256}.get(row.outputs, row.outputs // 4)) for row in rows
    )


def front_end_rows(width):
    """Return the published table, or that of the compact front end, which is deeper and padded."""
    rows = []
    for row in of_width(FRONT_END, width):
        if width == 'compact' and row.name == 'fc6':
            row = row._replace(kernel=3, pad=12, dilation=12)
        elif width == 'compact' and row.kernel == 3:
            row = row._replace(pad=row.dilation)
        rows.append(row)
        if width == 'compact' and row.name in ('conv3_3', 'conv4_3'):
            rows.append(row._replace(name=f'{row.name[:-1]}4'))
    return tuple(rows)


def layers(network):
    """Return the convolutions of a network, transposed or not, in the order of its modules."""
    return [
        Row(
            name,
            layer.out_channels,
            layer.kernel_size[0],
            layer.padding[0],
            layer.stride[0],
            layer.dilation[0],
        )
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    ]


def convolutions(*tables):
    return [row for rows in tables for row in rows if row.outputs]


@pytest.mark.parametrize('width', ['full', 'compact'])
def test_networks_have_the_layers_of_the_published_tables(width):
    final = Row('final', 19, 1, 0, 1, 1)
    voc = Row('seg-score-voc', 21, 1, 0, 1, 1)
    with torch.device('meta'):  # shapes without numbers
        front = layers(FrontEnd(19, width))
        deconvnet = layers(DeconvNet(21, width))
        fcns = {32: FCN32s(21, width), 16: FCN16s(21, width), 8: FCN8s(21, width)}
    assert front == [*convolutions(front_end_rows(width)), final]
    assert deconvnet == convolutions(of_width(VGG_16, width), of_width(DECODER, width), [voc])
    for strides, network in fcns.items():
        assert layers(network) == convolutions(of_width(FCN, width), FCN_HEADS[strides])


@pytest.mark.parametrize(
    ('module', 'classes', 'arguments'),
    [
        ('7', 11, {'layers': 7}),
        ('8', 11, {'layers': 8}),
        ('10', 19, {'layers': 10}),
        ('large', 21, {'layers': 8, 'large': True, 'pad_once': True}),
    ],
)
def test_context_modules_have_the_layers_of_the_published_tables(module, classes, arguments):
    ours = layers(ContextModule(classes, **arguments))
    expected = [row._replace(outputs=row.outputs * classes) for row in CONTEXTS[module]]
    assert [row[1:] for row in ours] == [row[1:] for row in expected]  # ours have other names


@dataclass
class Prototxt:
    """A Caffe network as text, with random weights."""

    text: str = ''
    blobs: dict[str, list[Tensor]] = field(default_factory=dict)
    channels: dict[str, int] = field(default_factory=dict)  # of each blob
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def input(self, name, channels, rows, columns):
        self.text += f'input: "{name}"\n' + ''.join(
            f'input_dim: {size}\n' for size in (1, channels, rows, columns)
        )
        self.channels[name] = channels
        return name

    def layer(self, name, kind, bottoms, parameters='', *, top='', channels=0):
        bottoms = [bottoms] if isinstance(bottoms, str) else bottoms
        top = top or name
        tops = top.split()
        self.text += (
            f'layer {{ name: "{name}" type: "{kind}" '
            + ' '.join(f'bottom: "{bottom}"' for bottom in bottoms)
            + ' '
            + ' '.join(f'top: "{one}"' for one in tops)
            + f' {parameters} }}\n'
        )
        for one in tops:
            self.channels[one] = channels or self.channels[bottoms[0]]
        return tops[0]

    def random(self, *shape):
        return torch.randn(shape, generator=self.generator)

    def convolution(self, name, bottom, outputs, kernel, *, top='', **options):
        inputs = self.channels[bottom]
        weight = self.random(outputs, inputs, kernel, kernel)
        self.blobs[name] = [
            weight * math.sqrt(2 / (inputs * kernel * kernel)),
            0.1 * self.random(outputs),
        ]
        return self.layer(
            name,
            'Convolution',
            bottom,
            _parameters(outputs, kernel, **options),
            top=top,
            channels=outputs,
        )

    def row(self, row, bottom):
        """Add a convolution or a pooling of a table."""
        if not row.outputs:
            return self.pool(row.name, bottom)
        options = {'pad': row.pad, 'stride': row.stride, 'dilation': row.dilation}
        return self.convolution(row.name, bottom, row.outputs, row.kernel, **options)

    def deconvolution(self, name, bottom, outputs, kernel, stride=1, pad=0, *, bias=True, top=''):
        inputs = self.channels[bottom]
        weight = self.random(inputs, outputs, kernel, kernel)
        self.blobs[name] = [weight * math.sqrt(2 * stride**2 / (inputs * kernel * kernel))]
        if bias:
            self.blobs[name].append(0.1 * self.random(outputs))
        options = _parameters(outputs, kernel, stride=stride, pad=pad, bias_term=str(bias).lower())
        return self.layer(name, 'Deconvolution', bottom, options, top=top, channels=outputs)

    def relu(self, bottom, slope=0.0):
        return self.layer(
            f'relu_{bottom}', 'ReLU', bottom, f'relu_param {{ negative_slope: {slope} }}',
            top=bottom,
        )  # fmt: skip

    def pool(self, name, bottom, *, top=''):
        return self.layer(
            name, 'Pooling', bottom, 'pooling_param { pool: MAX kernel_size: 2 stride: 2 }',
            top=top,
        )  # fmt: skip

    def run(self, folder, inputs, outputs):
        """Return what OpenCV computes for the named blobs."""
        prototxt = folder / 'network.prototxt'
        prototxt.write_text(self.text)
        network = cv2.dnn.readNetFromCaffe(str(prototxt), str(folder / 'network.caffemodel'))
        network.setPreferableBackend(cv2.dnn.DNN_BACKEND_OPENCV)
        network.enableFusion(False)  # else the blobs between layers may be gone
        for name, values in inputs.items():
            network.setInput(values.numpy(), name)
        return [torch.from_numpy(np.array(blob)) for blob in network.forward(outputs)]


def _parameters(outputs, kernel, **options):
    text = ''.join(f' {name}: {value}' for name, value in options.items())
    return f'convolution_param {{ num_output: {outputs} kernel_size: {kernel}{text} }}'


def encoder(net, blob, rows):
    """Add the layers of a table, with ReLUs after the convolutions."""
    for row in rows:
        blob = net.row(row, blob)
        if row.outputs:
            net.relu(blob)
    return blob


def random_image(rows, columns, channels=3):
    generator = torch.Generator().manual_seed(1)
    return 100 * torch.randn(1, channels, rows, columns, generator=generator)


def assert_close(ours, theirs):
    assert ours.shape == theirs.shape
    assert ((ours - theirs).abs() < 1e-4 * theirs.abs().max()).all()
    assert theirs.std() > 0.01 * theirs.abs().max()  # they tell places and classes apart


@pytest.fixture
def imported(scratch, write_caffemodel):
    """Return a function that imports a network's file, as the named source."""

    def load(net, name, *, v1=False, blobs=None):
        path = write_caffemodel(scratch / 'network.caffemodel', net.blobs, v1=v1)
        if blobs is not None:  # the same network as another file, for our import
            path = write_caffemodel(scratch / 'other.caffemodel', blobs, v1=v1)
        out = scratch / 'network.safetensors'
        card = import_file(path, out)
        assert card.notes['source'] == name
        network, _ = load_weights(out)
        return network

    return load


# Yu and Koltun


def front_end(net, image, classes, width, final):
    return net.convolution(final, encoder(net, image, front_end_rows(width)), classes, 1)


def context(net, blob, prefix, classes, rows):
    for name, multiple, *numbers in rows:
        name = f'{prefix}_{name}'
        blob = net.row(Row(name, multiple * classes, *numbers), blob)
        if name != f'{prefix}_final':
            net.relu(blob)
    return blob


@pytest.mark.parametrize('width', WIDTHS)
@pytest.mark.parametrize(
    ('name', 'module', 'classes'),
    [
        ('dilation8_pascal_voc', 'large', 21),
        ('dilation8_camvid', '8', 11),
        ('dilation7_kitti', '7', 11),
        ('dilation10_cityscapes', '10', 19),
    ],
)
def test_dilated_network_scores_as_its_file_does_in_opencv(
    imported, scratch, name, module, classes, width
):
    voc = name == 'dilation8_pascal_voc'
    net = Prototxt()
    side = (40, 56) if width == 'compact' else (372 + 24, 372 + 40)
    image = net.input('data', 3, *side)
    scores = front_end(net, image, classes, width, 'fc-final' if voc else 'final')
    last = context(net, scores, 'ct' if voc else 'ctx', classes, CONTEXTS[module])
    enlarged = name == 'dilation10_cityscapes'
    if enlarged:
        line = 1 - (torch.arange(16) - 7.5).abs() / 8
        net.blobs['ctx_upsample'] = [torch.outer(line, line).expand(classes, 1, 16, 16).clone()]
        options = _parameters(classes, 16, stride=8, pad=4, group=classes, bias_term='false')
        net.layer('ctx_upsample', 'Deconvolution', last, options)
    network = imported(net, name)
    values = random_image(*side)
    outputs = [last, *(['ctx_upsample'] if enlarged else [])]
    theirs = net.run(scratch, {'data': values}, outputs)
    with torch.inference_mode():
        ours = network(values)
    if classes == 11:
        released = 'building tree sky car sign road pedestrian fence pole pavement bicyclist'
        theirs[0] = theirs[0][:, [released.split().index(name) for name in CAMVID.names]]
    assert_close(ours, theirs[0])
    if enlarged:
        larger = F.interpolate(ours, scale_factor=8, mode='bilinear')
        inside = (..., slice(4, -4), slice(4, -4))  # the deconvolution fades at the border ...
        assert_close(larger[inside], theirs[1][inside])
        assert torch.equal(larger.argmax(1), theirs[1].argmax(1))  # ... in all classes alike


# Long et al.


def crop(net, blob, reference, offset):
    return net.layer(
        f'{blob}c', 'Crop', [blob, reference], f'crop_param {{ axis: 2 offset: {offset} }}'
    )


def fcn(net, image, width, strides, names, *, scales=None, bias=False):
    """Add the layers of an FCN whose finest scores are for `strides` pixels."""
    blob = encoder(net, image, of_width(FCN, width))
    blob = net.convolution(names['score_fr'], blob, 21, 1)
    heads = {row.name: row for row in FCN_HEADS[strides]}
    fusions = [('upscore2', 'pool4', 5), ('upscore_pool4', 'pool3', 9)]
    for up, pooled, offset in fusions[: {32: 0, 16: 1, 8: 2}[strides]]:
        blob = net.deconvolution(
            names[up], blob, *heads[up].transposed, bias=bias and up == 'upscore2'
        )
        source = pooled
        if scales:
            net.blobs[f'scale_{pooled}'] = [torch.full((net.channels[pooled],), scales[pooled])]
            source = net.layer(f'scale_{pooled}', 'Scale', pooled)
        finer = net.convolution(names[f'score_{pooled}'], source, 21, 1)
        if scales:
            net.blobs[finer][0] /= scales[pooled]
        cropped = crop(net, finer, blob, offset)
        blob = net.layer(f'fuse_{pooled}', 'Eltwise', [blob, cropped], channels=21)
    up = {32: 'upscore', 16: 'upscore16', 8: 'upscore8'}[strides]
    blob = net.deconvolution(names[up], blob, *heads[up].transposed, bias=False)
    return crop(net, blob, image, {32: 19, 16: 27, 8: 31}[strides])


class SameNames(dict):
    def __missing__(self, name):
        return name


@pytest.mark.parametrize('width', WIDTHS)
@pytest.mark.parametrize(
    ('name', 'strides', 'scales'),
    [
        ('fcn32s_pascal', 32, None),
        ('fcn16s_pascal', 16, None),
        ('fcn8s_pascal', 8, None),
        ('fcn8s_atonce_pascal', 8, {'pool4': 0.01, 'pool3': 0.0001}),
    ],
)
def test_fcn_scores_as_its_file_does_in_opencv(imported, scratch, name, strides, scales, width):
    net = Prototxt()
    image = net.input('data', 3, 33, 50)
    last = fcn(net, image, width, strides, SameNames(), scales=scales)
    network = imported(net, name)
    values = random_image(33, 50)
    (theirs,) = net.run(scratch, {'data': values}, [last])
    with torch.inference_mode():
        assert_close(network(values), theirs)


FIRST_RELEASE = SameNames(
    score_fr='score-fr',
    upscore2='score2',
    score_pool4='score-pool4',
    upscore_pool4='score4',
    score_pool3='score-pool3',
    upscore8='upsample',
)


@pytest.mark.parametrize('width', WIDTHS)
@pytest.mark.parametrize('field', [False, True])
def test_first_release_and_the_unary_part_of_crf_rnn_score_as_their_files_do_in_opencv(
    imported, scratch, field, width
):
    net = Prototxt()
    image = net.input('data', 3, 33, 50)
    last = fcn(net, image, width, 8, FIRST_RELEASE, bias=True)
    matrices = [net.random(1, 1, 21, 21) for _ in range(3)]
    blobs = {**net.blobs, **({'inference1': matrices} if field else {})}
    network = imported(net, 'crfrnn_pascal' if field else 'fcn_8s_pascal', v1=True, blobs=blobs)
    values = random_image(33, 50)
    (theirs,) = net.run(scratch, {'data': values}, [last])
    with torch.inference_mode():
        assert_close((network.network if field else network)(values), theirs)
    if field:
        state = network.crfrnn.state_dict()
        names = ('spatial_ker_weights', 'bilateral_ker_weights', 'compatibility_matrix')
        for name, matrix in zip(names, matrices, strict=True):
            assert torch.equal(state[name], matrix[0, 0])


# Noh et al.


class Unpooling:
    """Caffe's layer, which OpenCV does not have, for its Python interface."""

    def __init__(self, parameters, blobs):
        pass

    def getMemoryShapes(self, inputs):
        batch, channels, *_ = inputs[0]
        return [[batch, channels, *inputs[2][2:]]]

    def forward(self, inputs):
        values, places, like = inputs
        flat = np.zeros((*like.shape[:2], like.shape[2] * like.shape[3]), np.float32)
        index = places.reshape(*places.shape[:2], -1).astype(np.int64)
        np.put_along_axis(flat, index, values.reshape(index.shape), 2)
        return [flat.reshape(like.shape)]


@pytest.fixture
def unpooling():
    cv2.dnn_registerLayer('Unpooling', Unpooling)
    yield
    cv2.dnn_unregisterLayer('Unpooling')


def normalised(net, blob, name):
    """Add the folded normalisation, for OpenCV as a layer that scales and shifts."""
    channels = net.channels[blob]
    net.blobs[name] = [1 + 0.3 * net.random(channels), 0.1 * net.random(channels)]
    net.layer(name, 'Scale', blob, 'scale_param { bias_term: true }', top=blob)
    return net.relu(blob)


def deconvnet(net, width):
    """Add the layers; each unpooling takes its switches from an input, whose names come second."""
    blob = net.input('data', 3, 224, 224)
    pooled, switches = [], []
    for row in of_width(VGG_16, width):
        if row.outputs:
            normalised(net, net.row(row, blob), norm_name(row.name))
            blob = row.name
            continue
        places = f'{row.name}_mask'
        side = 224 >> len(pooled)
        pooled.append(blob)
        net.pool(row.name, blob, top=f'{row.name} {places}')
        net.layer(f'{places}_kept', 'Power', places, channels=net.channels[blob])
        switches.append(
            net.input(f'{row.name}_switches', net.channels[blob], side // 2, side // 2)
        )
        blob = row.name
    unused = list(zip(switches, pooled, strict=True))
    for row in of_width(DECODER, width):
        if row.outputs:
            net.deconvolution(row.name, blob, *row.transposed)
            normalised(net, row.name, norm_name(row.name))
        else:
            net.layer(row.name, 'Unpooling', [blob, *unused.pop()])
        blob = row.name
    return net.convolution('seg-score-voc', blob, 21, 1, top='seg-score'), switches


def norm_name(layer):
    if layer == 'fc6-deconv':
        return 'fc6-deconv-bn'
    return f'bn{layer}' if layer.startswith('fc') else layer.replace('conv', 'bn')


def watched(network, names):
    """Return a dictionary that will hold what the named layers give, after ReLU."""
    seen = {}
    for name in names:
        network.get_submodule(norm_name(name)).register_forward_hook(
            lambda layer, inputs, output, name=name: seen.update({name: torch.relu(output)})
        )
    return seen


def assert_same_maxima(values, ours, theirs):
    """
    Allow another place of a pooling window whose value is as large but for rounding.

    :param values: (N, C, H, W) what was pooled.
    :param ours: (N, C, H / 2, W / 2) place of each maximum; `theirs` likewise.
    """
    width = values.shape[3]
    for places in (ours, theirs):
        rows, columns = places // width // 2, places % width // 2
        assert torch.equal(rows, torch.arange(rows.shape[2])[:, None].expand_as(rows))
        assert torch.equal(columns, torch.arange(rows.shape[3]).expand_as(columns))
    found = [values.flatten(2).gather(2, places.flatten(2)) for places in (ours, theirs)]
    assert_close(*found)
    assert (ours == theirs).float().mean() > 0.999


@pytest.mark.parametrize('width', WIDTHS)
def test_deconvnet_scores_as_its_file_does_in_opencv(imported, scratch, unpooling, width):
    net = Prototxt()
    last, inputs = deconvnet(net, width)
    network = imported(net, 'deconvnet_pascal', v1=True)
    ends = ['conv1_2', 'conv2_2', 'conv3_3', 'conv4_3', 'conv5_3']
    seen = watched(network, [*ends, 'fc7'])
    image = random_image(224, 224)
    with torch.inference_mode():
        scores = network(image)
    pooled = [pool(seen[name]) for name in ends]
    # Where two values of a window are equal but for rounding, either may be the largest, and what
    # is unpooled goes to another pixel. OpenCV therefore unpools by our switches; its own differ
    # in such windows alone.
    places = [switches.places for _, switches in pooled]
    given = {name: values.float() for name, values in zip(inputs, places, strict=True)}
    kept = [f'pool{stage}_mask_kept' for stage in range(1, 6)]
    outputs = [last, 'relu_fc7', 'pool5', *kept]
    theirs = net.run(scratch, {'data': image, **given}, outputs)
    assert_close(pooled[-1][0], theirs[2])
    assert_close(seen['fc7'], theirs[1])
    for name, ours, their in zip(ends, places, theirs[3:], strict=True):
        assert_same_maxima(seen[name], ours, their.long())
    assert_close(scores, theirs[0])


# Dosovitskiy et al.


def flow_convolution(net, name, blob, out, kernel, stride=2):
    blob = net.convolution(name, blob, out, kernel, stride=stride, pad=kernel // 2)
    return net.relu(blob, 0.1)


def refine(net, blob, width, level2):
    """Add what both networks have above level 3, from conv3_1 on."""
    skips = {2: level2}
    blob = skips[3] = flow_convolution(net, 'conv3_1', blob, int(256 * width), 3, 1)
    for level, out in ((4, 512), (5, 512), (6, 1024)):
        blob = flow_convolution(net, f'conv{level}', blob, int(out * width), 3)
        blob = skips[level] = flow_convolution(net, f'conv{level}_1', blob, int(out * width), 3, 1)
    for level, out in ((5, 512), (4, 256), (3, 128), (2, 64)):
        flow = f'predict_flow{level + 1}'
        net.convolution(f'Convolution{6 - level}', blob, 2, 3, pad=1, top=flow)
        larger = net.deconvolution(f'deconv{level}', blob, int(out * width), 4, 2, 1)
        net.relu(larger, 0.1)
        up = net.deconvolution(f'upsample_flow{level + 1}to{level}', flow, 2, 4, 2, 1)
        joined = [skips[level], larger, up]
        total = sum(net.channels[one] for one in joined)
        blob = net.layer(f'concat{level}', 'Concat', joined, channels=total)
    return net.convolution('Convolution5', blob, 2, 3, pad=1, top='predict_flow2')


FLOW_WIDTHS = [1 / 8, pytest.param(1.0, marks=pytest.mark.slow)]


@pytest.mark.parametrize('width', FLOW_WIDTHS)
def test_flownet_simple_gives_the_flow_that_its_file_gives_in_opencv(imported, scratch, width):
    net = Prototxt()
    net.input('img0', 3, 128, 192)
    net.input('img1', 3, 128, 192)
    blob = net.layer('input', 'Concat', ['img0', 'img1'], channels=6)
    blob = flow_convolution(net, 'conv1', blob, int(64 * width), 7)
    level2 = flow_convolution(net, 'conv2', blob, int(128 * width), 5)
    level3 = flow_convolution(net, 'conv3', level2, int(256 * width), 5)
    last = refine(net, level3, width, level2)
    network = imported(net, 'flownet_s_caffe')
    images = random_image(128, 192, 6) / 100
    inputs = {'img0': images[:, :3].contiguous(), 'img1': images[:, 3:].contiguous()}
    (theirs,) = net.run(scratch, inputs, [last])
    with torch.inference_mode():
        ours = network(images[:, :3], images[:, 3:])
    assert FLOW_SCALE == 20  # by which the file's last layer multiplies
    assert_close(ours, theirs)


@pytest.mark.parametrize('width', FLOW_WIDTHS)
def test_flownet_corr_gives_the_flow_that_its_file_gives_in_opencv_but_for_the_correlation(
    imported, scratch, width
):
    # OpenCV has no correlation layer: it computes what comes before, and what comes after.
    net = Prototxt()
    image = net.input('img0', 3, 128, 192)
    blob = flow_convolution(net, 'conv1', image, int(64 * width), 7)
    level2 = flow_convolution(net, 'conv2', blob, int(128 * width), 5)
    level3 = flow_convolution(net, 'conv3', level2, int(256 * width), 5)
    redirected = flow_convolution(net, 'conv_redir', level3, int(32 * width), 1, 1)
    matches = net.input('corr', 441, 16, 24)
    channels = net.channels[redirected] + 441
    joined = net.layer('blob20', 'Concat', [redirected, matches], channels=channels)
    last = refine(net, joined, width, level2)
    network = imported(net, 'flownet_c_caffe')
    assert isinstance(network, FlowNetCorr)
    first, second = random_image(128, 192, 6).div(100).split(3, 1)
    with torch.inference_mode():
        features, other = (network.image_features(one)[1] for one in (first, second))
        compared = network.compare(features, other)
        ours = network(first, second)
    inputs = {'img0': first.contiguous(), 'corr': compared[:, -441:].contiguous()}
    outputs = [f'relu_{level3}', f'relu_{redirected}', last]
    theirs = net.run(scratch, inputs, outputs)
    assert_close(features, theirs[0])
    assert_close(compared[:, :-441], theirs[1])
    assert_close(ours, theirs[2])
