from dataclasses import replace
import struct

from dense_perception.errors import WeightsError
from dense_perception.labels import CAMVID
from dense_perception.networks import NETWORKS
from dense_perception.networks.context import FrontEndContext
from dense_perception.networks.vgg16 import SHAPES, STAGES
from dense_perception.weights.checkpoint import load_weights
from dense_perception.weights.importing import import_file, recognise
from dense_perception.weights.sources import PASCAL_VOC, SOURCES
import pytest
import torch
import torchvision

# FlowNetPytorch's encoder: channels in and out, and kernel; the decoder: channels in and out.
ENCODER = {
    'conv1': (6, 64, 7),
    'conv2': (64, 128, 5),
    'conv3': (128, 256, 5),
    'conv3_1': (256, 256, 3),
    'conv4': (256, 512, 3),
    'conv4_1': (512, 512, 3),
    'conv5': (512, 512, 3),
    'conv5_1': (512, 512, 3),
    'conv6': (512, 1024, 3),
    'conv6_1': (1024, 1024, 3),
}
CORRELATED = {**ENCODER, 'conv1': (3, 64, 7), 'conv_redir': (256, 32, 1)}
DECONVOLUTIONS = {
    'deconv5': (1024, 512),
    'deconv4': (1026, 256),
    'deconv3': (770, 128),
    'deconv2': (386, 64),
}
PREDICTIONS = {6: 1024, 5: 1026, 4: 770, 3: 386, 2: 194}


def flownet_shapes(*, corr=False, batch_norm=False, head_biases='', width=1.0):
    """Return the names and shapes of FlowNetPytorch, or of flownet2-pytorch with head biases."""

    def narrow(channels):
        plain = channels - channels % 32  # the rest is flow
        return channels if channels < 32 else round(plain * width) + channels % 32

    shapes = {}
    for name, (inputs, outputs, kernel) in (CORRELATED if corr else ENCODER).items():
        out = narrow(outputs)
        matches = 441 + narrow(32) if corr and name == 'conv3_1' else narrow(inputs)
        shapes[f'{name}.0.weight'] = (out, matches, kernel, kernel)
        if batch_norm:
            parts = ('weight', 'bias', 'running_mean', 'running_var')
            shapes |= {f'{name}.1.{part}': (out,) for part in parts}
            shapes[f'{name}.1.num_batches_tracked'] = ()
        else:
            shapes[f'{name}.0.bias'] = (out,)
    for name, (inputs, outputs) in DECONVOLUTIONS.items():
        shapes[f'{name}.0.weight'] = (narrow(inputs), narrow(outputs), 4, 4)
        if head_biases:
            shapes[f'{name}.0.bias'] = (narrow(outputs),)
    for level, inputs in PREDICTIONS.items():
        shapes[f'predict_flow{level}.weight'] = (2, narrow(inputs), 3, 3)
        if head_biases:
            shapes[f'predict_flow{level}.bias'] = (2,)
    for level in (6, 5, 4, 3):
        shapes[f'upsampled_flow{level}_to_{level - 1}.weight'] = (2, 2, 4, 4)
        if head_biases == 'all':
            shapes[f'upsampled_flow{level}_to_{level - 1}.bias'] = (2,)
    return shapes


def filled(shapes):
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.rand(shape, generator=generator) if shape else torch.tensor(3)
        for name, shape in shapes.items()
    }


FLOWS = [
    ('flownets_epe1.951', {}, 33, 38_675_536),
    ('flownetc_epe1.766', {'corr': True}, 35, 39_174_320),
    ('flownets_bn_epe2.459', {'batch_norm': True}, 73, 38_680_336),
    ('flownetc_bn', {'corr': True, 'batch_norm': True}, 79, 39_179_152),
    ('flownet2_s', {'head_biases': 'most'}, 42, 38_676_506),
    ('flownet2_c', {'head_biases': 'all', 'corr': True}, 48, 39_175_298),
]


@pytest.mark.parametrize(('name', 'options', 'entries', 'parameters'), FLOWS)
def test_flownet_names_and_shapes_are_the_published_ones(name, options, entries, parameters):
    source = SOURCES[name]
    with torch.device('meta'):
        network = NETWORKS[source.network](**source.arguments)
    shapes = flownet_shapes(**options)
    assert len(shapes) == entries
    buffers = ('running_mean', 'running_var', 'num_batches_tracked')
    counted = [shape for name, shape in shapes.items() if not name.endswith(buffers)]
    assert sum(torch.Size(shape).numel() for shape in counted) == parameters
    ours = {
        source.layout.rename(name): tuple(value.shape)
        for name, value in network.state_dict().items()
    }
    optional = {name for name in ours if source.layout.is_optional(name)}
    assert {n: s for n, s in ours.items() if n in shapes or n not in optional} == shapes


@pytest.mark.parametrize(('name', 'options', 'entries', 'parameters'), FLOWS)
def test_flownet_of_pytorch_is_copied_by_name(tmp_path, name, options, entries, parameters):
    state = filled(flownet_shapes(**options, width=1 / 8))
    path = tmp_path / 'a.pth'
    wrapped = {f'module.{key}': value for key, value in state.items()}
    torch.save({'epoch': 1, 'arch': 'x', 'state_dict': wrapped, 'div_flow': 20}, path)
    card = import_file(path, tmp_path / 'a.safetensors', name=name)
    network, _ = load_weights(tmp_path / 'a.safetensors')
    assert card.notes['source'] == name
    assert card.arguments == {**SOURCES[name].arguments, 'width': 1 / 8}
    loaded = network.state_dict()
    for key, value in state.items():
        ours = key if key.startswith('conv') else f'refinement.{key}'
        assert torch.equal(loaded.pop(ours), value), key
    assert not any(value.any() for value in loaded.values())  # biases that the file has not


def test_batch_counts_may_be_missing(tmp_path):
    state = filled(flownet_shapes(batch_norm=True, width=1 / 16))
    old = {key: value for key, value in state.items() if not key.endswith('tracked')}
    torch.save(old, tmp_path / 'a.pth')
    import_file(tmp_path / 'a.pth', tmp_path / 'a.safetensors')
    network, _ = load_weights(tmp_path / 'a.safetensors')
    assert network.conv1[1].num_batches_tracked == 0


def test_names_of_two_published_files_are_told_apart_by_hash_or_by_choice(tmp_path, monkeypatch):
    path = tmp_path / 'a.pth'
    torch.save(filled(flownet_shapes(width=1 / 16)), path)
    with pytest.raises(WeightsError, match='one of flownets_epe1.951, flownets_from_caffe; say'):
        recognise(path)
    chosen = recognise(path, 'flownets_from_caffe')
    assert chosen.card.preprocessing.order == 'bgr'
    assert recognise(path, 'flownets_epe1.951').card.preprocessing.order == 'rgb'
    known = replace(SOURCES['flownets_from_caffe'], sha256=chosen.sha256)
    monkeypatch.setitem(SOURCES, 'flownets_from_caffe', known)
    assert recognise(path).source is known


def crf_rnn_state(suffixes=('.weight', '.bias')):
    """Return a narrow CRF-RNN as crfasrnn_pytorch has it."""
    shape, (weight, bias) = SHAPES['compact'], suffixes
    shapes, inputs = {}, 3
    for names, out in zip(STAGES, shape.widths, strict=True):
        for name in names:
            shapes |= {name + weight: (out, inputs, 3, 3), name + bias: (out,)}
            inputs = out
    wide = shape.fc_width
    for name, size in {
        'fc6': (wide, inputs, 7, 7),
        'fc7': (wide, wide, 1, 1),
        'score_fr': (21, wide, 1, 1),
        'score_pool3': (21, shape.widths[2], 1, 1),
        'score_pool4': (21, shape.widths[3], 1, 1),
        'upscore2': (21, 21, 4, 4),
    }.items():
        shapes |= {name + weight: size, name + bias: size[:1]}
    shapes |= {'upscore8' + weight: (21, 21, 16, 16), 'upscore_pool4' + weight: (21, 21, 4, 4)}
    names = ('spatial_ker_weights', 'bilateral_ker_weights', 'compatibility_matrix')
    return filled(shapes | {f'crfrnn.{name}': (21, 21) for name in names})


def test_crf_rnn_of_pytorch_subtracts_what_it_added(tmp_path):
    state = crf_rnn_state()
    torch.save(state, tmp_path / 'a.pth')
    card = import_file(tmp_path / 'a.pth', tmp_path / 'a.safetensors')
    assert card.notes['source'] == 'crfasrnn_pytorch'
    network, _ = load_weights(tmp_path / 'a.safetensors')
    loaded = network.state_dict()
    assert torch.equal(
        loaded['crfrnn.compatibility_matrix'], -state['crfrnn.compatibility_matrix']
    )
    assert torch.equal(
        loaded['network.score_pool4.bias'], state['score_pool4.bias'] + state['upscore2.bias']
    )
    for name in ('conv1_1.weight', 'fc7.bias', 'upscore2.weight', 'score_pool3.bias'):
        assert torch.equal(loaded[f'network.{name}'], state[name])
    assert network.color_scale == 1


def compact_dilation(layers):
    """Return a narrow dilated network's layers as its Caffe file has them."""
    state = FrontEndContext(11, width='compact', layers=layers).state_dict()
    blobs = {}
    last = layers - 2  # of the 3x3 layers, counted from 0
    for name, value in state.items():
        layer = name.removeprefix('front_end.').rpartition('.')[0]
        if layer.startswith('context.layers.'):
            index = int(layer.rpartition('.')[2])
            number = ('conv1_1', 'conv1_2')[index] if index < 2 else f'conv{index}_1'
            layer = 'ctx_fc1' if index == last else f'ctx_{number}'
        layer = layer.replace('context.final', 'ctx_final')
        blobs.setdefault(layer, []).append(value)
    return blobs


@pytest.fixture
def dilation(tmp_path, write_caffemodel):
    """Return a function that changes a dilated network's layers and writes them."""

    def write(change=None, layers=8):
        blobs = compact_dilation(layers)
        if change:
            change(blobs)
        return write_caffemodel(tmp_path / 'a.caffemodel', blobs)

    return write


def test_preprocessing_and_tiles_are_chosen_with_the_weights(dilation):
    card = recognise(dilation()).card
    assert card.notes['source'] == 'dilation8_camvid'
    assert card.preprocessing.order == 'bgr'
    assert card.preprocessing.mean == (110.70313206, 108.77808759, 105.41212523)
    assert card.preprocessing.scale == 1
    assert (card.upsampling, card.tile, card.label_set) == ('zoom', (900, 1100), 'camvid')
    assert recognise(dilation(layers=7)).card.tile == (852, 1640)


def test_every_missing_extra_and_misshapen_name_is_told_at_once(dilation):
    def change(blobs):
        del blobs['conv3_2'], blobs['ctx_final'][1]
        blobs['conv9'] = [torch.zeros(3)]
        blobs['fc7'][0] = torch.zeros(256, 256, 3, 3)

    with pytest.raises(WeightsError) as caught:
        recognise(dilation(change))
    assert str(caught.value).partition('.caffemodel: ')[2] == (
        'not dilation8_camvid of Yu and Koltun (2016): missing conv3_2.0; missing conv3_2.1; '
        'missing ctx_final.1; extra conv9.0; fc7.0 is (256, 256, 3, 3), not (256, 256, 1, 1)'
    )


def test_unknown_file_is_refused_with_what_was_recognised(dilation):
    def change(blobs):
        for name in list(blobs):
            if not name.startswith('conv1'):
                blobs[f'res_{name}'] = blobs.pop(name)

    with pytest.raises(WeightsError, match='a caffe file of 52 tensors that fits no known') as e:
        recognise(dilation(change))
    assert '4 names are those of dilation8_' in str(e.value)
    assert ': conv1_1.0, conv1_1.1, conv1_2.0, conv1_2.1; known are dilation8_' in str(e.value)


def test_file_of_nothing_known_is_refused_with_its_names(tmp_path):
    torch.save({'a.weight': torch.zeros(3)}, tmp_path / 'a.pth')
    with pytest.raises(WeightsError, match='none of its names is known; they are a.weight; known'):
        recognise(tmp_path / 'a.pth')


def test_named_source_must_fit(dilation):
    with pytest.raises(
        WeightsError, match='not dilation7_kitti of Yu and Koltun.*extra ctx_conv5_1.1'
    ):
        recognise(dilation(), 'dilation7_kitti')
    with pytest.raises(WeightsError, match='caffe file; flownet2_s is a pytorch one'):
        recognise(dilation(), 'flownet2_s')
    with pytest.raises(WeightsError, match="no weights are known as 'vgg'; known are dilation8_"):
        recognise(dilation(), 'vgg')


def test_values_that_are_not_finite_are_refused_and_nothing_is_written(dilation, tmp_path):
    def change(blobs):
        blobs['conv4_2'][0][3, 2, 1, 1] = float('nan')
        blobs['fc6'][1][5] = float('inf')

    out = tmp_path / 'out' / 'a.safetensors'
    with pytest.raises(
        WeightsError, match=r'not every .* front_end.conv4_2.weight, front_end.fc6'
    ):
        import_file(dilation(change), out)
    assert not out.parent.exists()


def test_enlargement_that_does_not_interpolate_is_refused(tmp_path, write_caffemodel):
    blobs = compact_dilation(10)
    for name in ('final', 'ctx_final'):
        weight = blobs[name][0]
        blobs[name] = [torch.zeros(19, weight.shape[1], 1, 1), torch.zeros(19)]
    for name in list(blobs):
        if name.startswith('ctx_'):
            blobs[name] = [torch.zeros(19, 19, *blobs[name][0].shape[2:]), torch.zeros(19)]
    blobs['ctx_upsample'] = [torch.rand(19, 1, 16, 16)]
    path = write_caffemodel(tmp_path / 'a.caffemodel', blobs)
    with pytest.raises(WeightsError, match='a.caffemodel: ctx_upsample does not enlarge by bilin'):
        import_file(path, tmp_path / 'a.safetensors')


def test_float16_halves_the_file(dilation, tmp_path):
    path = dilation()
    sizes = []
    for dtype in (torch.float32, torch.float16):
        out = tmp_path / f'{dtype}.safetensors'
        import_file(path, out, dtype=dtype)
        sizes.append(out.stat().st_size)
    assert sizes[0] == pytest.approx(2 * sizes[1], rel=0.02)


def test_card_of_the_new_file_names_source_and_hash(dilation, tmp_path):
    path = dilation()
    import_file(path, tmp_path / 'a.safetensors')
    _, card = load_weights(tmp_path / 'a.safetensors')
    assert card.notes['source'] == 'dilation8_camvid'
    assert card.notes['sha256'] == recognise(path).sha256
    assert card.labels() == CAMVID


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'\x89HDF\r\n\x1a\n', 'an HDF5 file'),
        (b'\x80\x04N.', 'a pickle that torch.save did not write'),
        (b'<!DOCTYPE html>', 'a web page'),
        (b'\x1f\x8b\x08', 'gzip'),
        (b'', 'no Caffe file'),
        (struct.pack('<Q', 2**40), 'no Caffe file'),
    ],
)
def test_file_of_another_kind_is_named(tmp_path, content, message):
    path = tmp_path / 'a.bin'
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=f'a.bin: .*{message}'):
        recognise(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match='none: cannot be read: No such file'):
        recognise(tmp_path / 'none')


def test_classes_of_pascal_voc_have_the_colours_of_its_label_pictures():
    assert len(PASCAL_VOC) == 21
    assert PASCAL_VOC.classes[15].name == 'person'
    palette = PASCAL_VOC.palette()[:21].tolist()
    assert palette[:5] == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    assert palette[15:21] == [
        [192, 128, 128], [0, 64, 0], [128, 64, 0], [0, 192, 0], [128, 192, 0], [0, 64, 128],
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize('name', ['vgg16_imagenet', 'vgg16_features'])
def test_vgg16_of_torchvision_scores_bgr_as_it_scored_standardised_rgb(scratch, name):
    torch.manual_seed(0)
    theirs = torchvision.models.vgg16().eval()
    features = name == 'vgg16_features'
    if features:
        for parameter in theirs.classifier.parameters():
            torch.nn.init.constant_(parameter, float('nan'))
    torch.save(theirs.state_dict(), scratch / 'a.pth')
    assert import_file(scratch / 'a.pth', scratch / 'a.safetensors').notes['source'] == name
    ours, card = load_weights(scratch / 'a.safetensors')
    image = torch.randint(256, (1, 3, 224, 224)).float()
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    if features:
        mean, std = (0.48235, 0.45882, 0.40784), (1 / 255,) * 3
    standard = torchvision.transforms.functional.normalize(image / 255, mean, std)
    own = card.preprocessing
    prepared = (image.flip(1) - own.mean_of(image)) / own.scale
    with torch.inference_mode():
        expected = theirs.features(standard) if features else theirs(standard)[..., None, None]
        assert (ours(prepared) - expected).abs().max() < 1e-4 * expected.abs().max()
