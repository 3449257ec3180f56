"""The published weights that can be imported: where they are and what they expect."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dense_perception.labels import CAMVID, CITYSCAPES, LabelClass, LabelSet
from dense_perception.weights.checkpoint import Card, own_label_set, Preprocessing
from dense_perception.weights.layouts import (
    CRF_RNN,
    CRF_RNN_PYTORCH,
    DECONVNET,
    dilation,
    FCN,
    FCN_AT_ONCE,
    FCN_FIRST_RELEASE,
    FLOWNET2,
    FLOWNET_CAFFE,
    FLOWNET_PYTORCH,
    Layout,
    torchvision_mean,
    vgg16,
)
from torch import Tensor

YU = 'Yu and Koltun (2016)'
LONG = 'Long et al. (2015)'
NOH = 'Noh et al. (2015)'
ZHENG = 'Zheng et al. (2015)'
DOSOVITSKIY = 'Dosovitskiy et al. (2015)'
ILG = 'Ilg et al. (2017)'
SIMONYAN = 'Simonyan and Zisserman (2015)'

_VOC_CLASSES = (
    'background', 'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair',
    'cow', 'dining table', 'dog', 'horse', 'motorbike', 'person', 'potted plant', 'sheep', 'sofa',
    'train', 'tv monitor',
)  # fmt: skip


def _voc_color(index: int) -> tuple[int, int, int]:
    """Return a class's colour; every third bit of its index belongs to one channel."""
    red, green, blue = (
        sum((index >> 3 * place + channel & 1) << 7 - place for place in range(3))
        for channel in range(3)
    )
    return red, green, blue


# The 20 classes and the background of Everingham et al. (2010), in the order of their names.
PASCAL_VOC = LabelSet(
    'pascal_voc',
    tuple(LabelClass(name, _voc_color(index)) for index, name in enumerate(_VOC_CLASSES)),
)


@dataclass(frozen=True)
class Source:
    """One published file."""

    name: str
    paper: str
    format: str  # caffe or pytorch
    network: str  # a name in NETWORKS
    arguments: Mapping[str, Any]  # for its constructor, at the published width
    layout: Layout
    preprocessing: Preprocessing
    label_set: LabelSet | None = None  # of a segmentation network
    upsampling: str = 'half_pixel'
    tile: tuple[int, int] | None = None
    page: str = ''  # where its authors offer it
    url: str = ''  # of the file, where it has an address of its own
    sha256: str = ''  # or its beginning, as far as it is published

    def card(self, tensors: Mapping[str, Tensor]) -> Card:
        """Return what the converted file says about itself; the width is that of the tensors."""
        return Card(
            self.network,
            {**self.arguments, **self.layout.width(tensors)},
            self.preprocessing,
            upsampling=self.upsampling,
            tile=self.tile,
            notes={'source': self.name, 'paper': self.paper},
            **(own_label_set(self.label_set) if self.label_set else {}),
        )


def _dilation(
    name: str,
    layers: int,
    label_set: LabelSet,
    mean: tuple[float, float, float],
    tile: tuple[int, int],
    *,
    large: bool = False,
) -> Source:
    """Describe a file of Yu and Koltun; means and tiles as in their predict.py and its data."""
    wider = {'large': True, 'pad_once': True} if large else {}
    names = {'prefix': 'ct', 'final': 'fc-final'} if large else {}
    return Source(
        name,
        YU,
        'caffe',
        'front_end_context',
        {'classes': len(label_set), 'layers': layers, **wider},
        dilation(layers, **names),
        Preprocessing('bgr', mean, 1.0),
        label_set,
        'half_pixel' if layers == 10 else 'zoom',
        tile,
        'https://github.com/fyu/dilation',
        f'http://dl.yf.io/dilation/models/{name}.caffemodel',
    )


def _fcn(file: str, network: str, layout: Layout = FCN, *, at_once: bool = False) -> Source:
    return Source(
        file.replace('-', '_').replace('_heavy', ''),
        LONG,
        'caffe',
        network,
        {'classes': 21, **({'at_once': True} if at_once else {})},
        layout,
        Preprocessing('bgr', (104.00699, 116.66877, 122.67892), 1.0),
        PASCAL_VOC,
        page='https://github.com/shelhamer/fcn.berkeleyvision.org',
        url=f'http://dl.caffe.berkeleyvision.org/{file}.caffemodel',
    )


def _crf_rnn(name: str, kind: str, layout: Layout, page: str, url: str = '') -> Source:
    arguments = {'classes': 21, 'network': 'fcn8s', 'color_scale': 1.0, 'learn_upsampling': True}
    mean = (103.939, 116.779, 123.68)
    preprocessing = Preprocessing('bgr', mean, 1.0)
    return Source(
        name,
        ZHENG,
        kind,
        'crf_rnn',
        arguments,
        layout,
        preprocessing,
        PASCAL_VOC,
        page=page,
        url=url,
    )


_CAFFE_FLOW_SCALE = 0.0039216  # by which the released networks multiply grey levels


def _flownet_caffe(name: str, network: str) -> Source:
    first, second = (
        (blue / _CAFFE_FLOW_SCALE, green / _CAFFE_FLOW_SCALE, red / _CAFFE_FLOW_SCALE)
        for blue, green, red in ((0.411451, 0.432060, 0.450141), (0.410602, 0.431021, 0.448553))
    )
    return Source(
        name,
        DOSOVITSKIY,
        'caffe',
        network,
        {'biases': True},
        FLOWNET_CAFFE,
        Preprocessing('bgr', first, 1 / _CAFFE_FLOW_SCALE, second),
        page='https://lmb.informatik.uni-freiburg.de/Publications/2015/DFIB15',
    )


def _flownet_pytorch(file: str, network: str, sha256: str = '', order: str = 'rgb') -> Source:
    mean = (0.45 * 255, 0.432 * 255, 0.411 * 255)  # red, green, blue
    return Source(
        file.lower(),
        DOSOVITSKIY,
        'pytorch',
        network,
        {'batch_norm': True} if '_bn' in file else {},
        FLOWNET_PYTORCH,
        Preprocessing(order, mean if order == 'rgb' else mean[::-1], 255.0),
        page='https://github.com/ClementPinard/FlowNetPytorch',
        url=f'https://github.com/ClementPinard/FlowNetPytorch/raw/master/weights/{file}.pth'
        if sha256
        else '',
        sha256=sha256,
    )


def _flownet2(name: str, network: str) -> Source:
    return Source(
        name,
        ILG,
        'pytorch',
        network,
        {'biases': True},
        FLOWNET2,
        Preprocessing('rgb', scale=255.0, own_mean=True),
        page='https://github.com/NVIDIA/flownet2-pytorch',
    )


def _vgg16(name: str, weights: str, network: str, file: str, sha256: str) -> Source:
    classes = {'classes': 1000} if network == 'vgg16' else {}
    preprocessing = Preprocessing('bgr', torchvision_mean(weights), 1.0)
    return Source(
        name,
        SIMONYAN,
        'pytorch',
        network,
        classes,
        vgg16(weights),
        preprocessing,
        page='https://docs.pytorch.org/vision/stable/models/vgg.html',
        url=f'https://download.pytorch.org/models/{file}',
        sha256=sha256,
    )


SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        _dilation(
            'dilation8_pascal_voc', 8, PASCAL_VOC, (102.93, 111.36, 116.52), (900, 900), large=True
        ),
        _dilation(
            'dilation8_camvid', 8, CAMVID, (110.70313206, 108.77808759, 105.41212523),
            (900, 1100),
        ),
        _dilation(
            'dilation7_kitti', 7, CAMVID, (96.19429688, 95.55136972, 91.34692262), (852, 1640)
        ),
        _dilation('dilation10_cityscapes', 10, CITYSCAPES, (72.39, 82.91, 73.16), (1396, 1396)),
        _fcn('fcn32s-heavy-pascal', 'fcn32s'),
        _fcn('fcn16s-heavy-pascal', 'fcn16s'),
        _fcn('fcn8s-heavy-pascal', 'fcn8s'),
        _fcn('fcn8s-atonce-pascal', 'fcn8s', FCN_AT_ONCE, at_once=True),
        _fcn('fcn-8s-pascal', 'fcn8s', FCN_FIRST_RELEASE),
        Source(
            'deconvnet_pascal',
            NOH,
            'caffe',
            'deconvnet',
            {'classes': 21},
            DECONVNET,
            Preprocessing('bgr', (104.00698793, 116.66876762, 122.67891434), 1.0),
            PASCAL_VOC,
            page='https://github.com/HyeonwooNoh/DeconvNet',
            url='http://cvlab.postech.ac.kr/research/deconvnet/model/DeconvNet/'
            'DeconvNet_trainval_inference.caffemodel',
        ),
        _crf_rnn('crfrnn_pascal', 'caffe', CRF_RNN, 'https://github.com/torrvision/crfasrnn'),
        _crf_rnn(
            'crfasrnn_pytorch',
            'pytorch',
            CRF_RNN_PYTORCH,
            'https://github.com/sadeepj/crfasrnn_pytorch',
            'https://github.com/sadeepj/crfasrnn_pytorch/releases/download/0.0.1/'
            'crfasrnn_weights.pth',
        ),
        _flownet_caffe('flownet_s_caffe', 'flownet_simple'),
        _flownet_caffe('flownet_c_caffe', 'flownet_corr'),
        _flownet_pytorch(
            'flownets_EPE1.951',
            'flownet_simple',
            'd98505dc749c35f0d4b4ce0536b4f64797ec22ea194a5f743af97dc3f778447d',
        ),
        _flownet_pytorch(
            'flownetc_EPE1.766',
            'flownet_corr',
            'b375584e3fb6f0208bf659c72e588803999ec038bc5ea42ecd023ace7be6ffc4',
        ),
        _flownet_pytorch(
            'flownets_bn_EPE2.459',
            'flownet_simple',
            '77bbee0e7023c0d5b3f64bd9a55bdd71a87426616c2f4924379b2fd648e0c9c8',
        ),
        _flownet_pytorch('flownetc_bn', 'flownet_corr'),
        _flownet_pytorch(
            'flownets_from_caffe',
            'flownet_simple',
            '0cfadc4e9b4b05807519f5d7472068e799bb587c7b23c3c8a5e94ed20a38ea51',
            'bgr',
        ),
        _flownet2('flownet2_s', 'flownet_simple'),
        _flownet2('flownet2_c', 'flownet_corr'),
        _vgg16('vgg16_imagenet', 'IMAGENET1K_V1', 'vgg16', 'vgg16-397923af.pth', '397923af'),
        _vgg16(
            'vgg16_features',
            'IMAGENET1K_FEATURES',
            'vgg16_convolutions',
            'vgg16_features-amdegroot-88682ab5.pth',
            '88682ab5',
        ),
    )
}  # fmt: skip
