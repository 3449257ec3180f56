"""Imported Caffe networks against OpenCV, which reads the same files by itself."""

from dataclasses import dataclass, field
import math

import cv2
from dense_perception.labels import CAMVID
from dense_perception.networks.context import DILATIONS
from dense_perception.networks.deconvnet import MIRRORED_STAGES
from dense_perception.networks.flownet import FLOW_SCALE, FlowNetCorr
from dense_perception.networks.frontend import SHAPES as FRONT_END_SHAPES
from dense_perception.networks.vgg16 import SHAPES, STAGES
from dense_perception.weights.checkpoint import load_weights
from dense_perception.weights.importing import import_file
import numpy as np
import pytest
import torch
from torch import Tensor
import torch.nn.functional as F

WIDTHS = ['compact', pytest.param('full', marks=pytest.mark.slow)]


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


def random_image(rows, columns, channels=3):
    generator = torch.Generator().manual_seed(1)
    return 100 * torch.randn(1, channels, rows, columns, generator=generator)


def assert_close(ours, theirs, *, share=0.0):
    """Allow a share of the values to differ."""
    assert ours.shape == theirs.shape
    differ = (ours - theirs).abs() >= 1e-4 * theirs.abs().max()
    assert differ.float().mean() <= share
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
    shape = FRONT_END_SHAPES[width]
    blob = image
    for stage, (out, depth) in enumerate(zip(shape.widths, shape.depths, strict=True), 1):
        dilation = 2 if stage == 5 else 1
        for index in range(1, depth + 1):
            pad = dilation if shape.padded else 0
            blob = net.convolution(
                f'conv{stage}_{index}', blob, out, 3, dilation=dilation, pad=pad
            )
            net.relu(blob)
        if stage <= 3:
            blob = net.pool(f'pool{stage}', blob)
    reach = shape.fc_dilation * (shape.fc_kernel // 2) if shape.padded else 0
    blob = net.convolution(
        'fc6', blob, shape.fc_width, shape.fc_kernel, dilation=shape.fc_dilation, pad=reach
    )
    blob = net.relu(blob)
    blob = net.relu(net.convolution('fc7', blob, shape.fc_width, 1))
    return net.convolution(final, blob, classes, 1)


def context(net, blob, prefix, dilations, widths, pad_once):
    names = ['conv1_1', 'conv1_2', *(f'conv{i}_1' for i in range(2, len(dilations) - 1)), 'fc1']
    for index, (name, dilation, out) in enumerate(zip(names, dilations, widths, strict=True)):
        once = sum(dilations) if index == 0 else 0
        pad = once if pad_once else dilation
        blob = net.convolution(f'{prefix}_{name}', blob, out, 3, dilation=dilation, pad=pad)
        net.relu(blob)
    return net.convolution(f'{prefix}_final', blob, net.channels['fc7-scores'], 1)


@pytest.mark.parametrize('width', WIDTHS)
@pytest.mark.parametrize(
    ('name', 'layers', 'classes'),
    [
        ('dilation8_pascal_voc', 8, 21),
        ('dilation8_camvid', 8, 11),
        ('dilation7_kitti', 7, 11),
        ('dilation10_cityscapes', 10, 19),
    ],
)
def test_dilated_network_scores_as_its_file_does_in_opencv(
    imported, scratch, name, layers, classes, width
):
    voc = name == 'dilation8_pascal_voc'
    net = Prototxt()
    side = (40, 56) if width == 'compact' else (372 + 24, 372 + 40)
    image = net.input('data', 3, *side)
    scores = front_end(net, image, classes, width, 'fc-final' if voc else 'final')
    net.channels['fc7-scores'] = classes
    dilations = DILATIONS[layers]
    multiples = (2, 2, 4, 8, 16, 32, 32) if voc else (1,) * len(dilations)
    widths = [classes * multiple for multiple in multiples]
    last = context(net, scores, 'ct' if voc else 'ctx', dilations, widths, pad_once=voc)
    if layers == 10:
        line = 1 - (torch.arange(16) - 7.5).abs() / 8
        net.blobs['ctx_upsample'] = [torch.outer(line, line).expand(classes, 1, 16, 16).clone()]
        options = _parameters(classes, 16, stride=8, pad=4, group=classes, bias_term='false')
        net.layer('ctx_upsample', 'Deconvolution', last, options)
    network = imported(net, name)
    values = random_image(*side)
    outputs = [last, *(['ctx_upsample'] if layers == 10 else [])]
    theirs = net.run(scratch, {'data': values}, outputs)
    with torch.inference_mode():
        ours = network(values)
    if classes == 11:
        released = 'building tree sky car sign road pedestrian fence pole pavement bicyclist'
        theirs[0] = theirs[0][:, [released.split().index(name) for name in CAMVID.names]]
    assert_close(ours, theirs[0])
    if layers == 10:
        larger = F.interpolate(ours, scale_factor=8, mode='bilinear')
        inside = (..., slice(4, -4), slice(4, -4))  # the deconvolution fades at the border ...
        assert_close(larger[inside], theirs[1][inside])
        assert torch.equal(larger.argmax(1), theirs[1].argmax(1))  # ... in all classes alike


# Long et al.


def vgg16(net, image, width):
    shape = SHAPES[width]
    blob = image
    for stage, (names, out) in enumerate(zip(STAGES, shape.widths, strict=True), 1):
        for name in names:
            blob = net.convolution(name, blob, out, 3, pad=100 if name == 'conv1_1' else 1)
            net.relu(blob)
        blob = net.pool(f'pool{stage}', blob)
    blob = net.relu(net.convolution('fc6', blob, shape.fc_width, 7))
    return net.relu(net.convolution('fc7', blob, shape.fc_width, 1))


def crop(net, blob, reference, offset):
    return net.layer(
        f'{blob}c', 'Crop', [blob, reference], f'crop_param {{ axis: 2 offset: {offset} }}'
    )


def fcn(net, image, width, strides, names, *, scales=None, bias=False):
    """Add the layers of an FCN whose finest scores are for `strides` pixels."""
    blob = net.convolution(names['score_fr'], vgg16(net, image, width), 21, 1)
    fusions = [('upscore2', 'pool4', 5), ('upscore_pool4', 'pool3', 9)]
    for up, pool, offset in fusions[: {32: 0, 16: 1, 8: 2}[strides]]:
        blob = net.deconvolution(names[up], blob, 21, 4, 2, bias=bias and up == 'upscore2')
        source = pool
        if scales:
            net.blobs[f'scale_{pool}'] = [torch.full((net.channels[pool],), scales[pool])]
            source = net.layer(f'scale_{pool}', 'Scale', pool)
        finer = net.convolution(names[f'score_{pool}'], source, 21, 1)
        if scales:
            net.blobs[finer][0] /= scales[pool]
        cropped = crop(net, finer, blob, offset)
        blob = net.layer(f'fuse_{pool}', 'Eltwise', [blob, cropped], channels=21)
    up = {32: 'upscore', 16: 'upscore16', 8: 'upscore8'}[strides]
    blob = net.deconvolution(names[up], blob, 21, 2 * strides, strides, bias=False)
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


@pytest.mark.parametrize('width', WIDTHS)
def test_deconvnet_scores_as_its_file_does_in_opencv(imported, scratch, unpooling, width):
    shape = SHAPES[width]
    net = Prototxt()
    blob = net.input('data', 3, 224, 224)
    pooled = []
    for stage, (names, out) in enumerate(zip(STAGES, shape.widths, strict=True), 1):
        for name in names:
            blob = net.convolution(name, blob, out, 3, pad=1)
            normalised(net, blob, name.replace('conv', 'bn'))
        pooled.append((f'pool{stage}_mask', blob))
        blob = net.pool(f'pool{stage}', blob, top=f'pool{stage} pool{stage}_mask')
    blob = normalised(net, net.convolution('fc6', blob, shape.fc_width, 7), 'bnfc6')
    blob = normalised(net, net.convolution('fc7', blob, shape.fc_width, 1), 'bnfc7')
    blob = net.deconvolution('fc6-deconv', blob, shape.widths[-1], 7)
    normalised(net, blob, 'fc6-deconv-bn')
    narrower = (*reversed(shape.widths[:-1]), shape.widths[0])
    for names, last in zip(MIRRORED_STAGES, narrower, strict=True):
        blob = net.layer(f'un{names[0]}', 'Unpooling', [blob, *pooled.pop()])
        for name in names:
            out = last if name == names[-1] else net.channels[blob]
            blob = net.deconvolution(name, blob, out, 3, pad=1)
            normalised(net, blob, name.replace('conv', 'bn'))
    last = net.convolution('seg-score-voc', blob, 21, 1, top='seg-score')
    network = imported(net, 'deconvnet_pascal', v1=True)
    values = random_image(224, 224)
    (theirs,) = net.run(scratch, {'data': values}, [last])
    # Where two values of a pooling window are equal but for rounding, either may be the largest,
    # and what is unpooled goes to another pixel. Among millions of windows there are some.
    with torch.inference_mode():
        assert_close(network(values), theirs, share=0.1 if width == 'full' else 0)


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
