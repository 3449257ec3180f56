from pathlib import Path
import struct
import tracemalloc

from dense_perception.errors import WeightsError
from dense_perception.weights.caffe import net_parameter, read_caffemodel
import pytest
import torch

DATA = Path(__file__).parent.parent.parent.parent / 'shared' / 'data' / 'weights' / 'caffemodel'
LAYERS = {
    'conv': [torch.arange(24.0).reshape(2, 3, 2, 2), torch.tensor([1.0, -2.0])],
    'norm': [torch.tensor([0.5, 0.25])],
}


def field(number, content):
    """Return a field that holds bytes, as protobuf writes it."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value):
    parts = b''
    while value > 127:
        parts += bytes([value & 127 | 128])
        value >>= 7
    return parts + bytes([value])


@pytest.fixture
def file(tmp_path, write_caffemodel):
    return write_caffemodel(tmp_path / 'a.caffemodel', LAYERS)


@pytest.mark.parametrize(
    ('name', 'parameters', 'shapes'),
    [
        ('det1', 6_632, {'conv1.0': (10, 3, 3, 3), 'PReLU3.0': (32,), 'conv4-2.1': (4,)}),
        ('det2', 101_468, {'conv1.0': (28, 3, 3, 3), 'conv4.0': (128, 576), 'conv5-3.1': (10,)}),
    ],
)
def test_file_that_caffe_wrote_is_read(name, parameters, shapes):
    path = DATA / f'{name}.caffemodel'
    if not path.is_file():
        pytest.skip(f'{path} is not here')
    tensors = read_caffemodel(path)
    assert sum(value.numel() for value in tensors.values()) == parameters
    assert {name: tuple(tensors[name].shape) for name in shapes} == shapes
    assert all(value.isfinite().all() and value.abs().max() < 10 for value in tensors.values())
    assert tensors['conv1.0'].std() > 0.05


def test_blobs_are_named_by_layer_and_place(file):
    tensors = read_caffemodel(file)
    assert list(tensors) == ['conv.0', 'conv.1', 'norm.0']
    assert torch.equal(tensors['conv.0'], LAYERS['conv'][0])
    assert torch.equal(tensors['norm.0'], LAYERS['norm'][0])


def test_blobs_of_the_old_form_have_four_dimensions(tmp_path, write_caffemodel):
    tensors = read_caffemodel(write_caffemodel(tmp_path / 'a', LAYERS, v1=True))
    assert torch.equal(tensors['conv.0'], LAYERS['conv'][0])
    assert torch.equal(tensors['conv.1'], LAYERS['conv'][1].reshape(1, 1, 1, 2))


def test_doubles_are_read(tmp_path):
    net = net_parameter()()
    blob = net.layer.add(name=b'conv').blobs.add(double_data=struct.pack('<2d', 0.1, -3))
    blob.shape.dim.append(2)
    path = tmp_path / 'a.caffemodel'
    path.write_bytes(net.SerializeToString())
    assert torch.equal(read_caffemodel(path)['conv.0'], torch.tensor([0.1, -3.0]))


def test_layers_without_weights_may_share_a_name(tmp_path):
    crop = field(100, field(1, b'crop'))
    blob = field(7, field(7, field(1, b'\x01')) + field(5, struct.pack('<f', 3.0)))
    path = tmp_path / 'a.caffemodel'
    path.write_bytes(crop + crop + field(100, field(1, b'conv') + blob))
    assert read_caffemodel(path) == {'conv.0': torch.tensor([3.0])}


@pytest.mark.parametrize('keep', [0, 1, 2, 5, 30, 100, -1])
def test_truncated_file_is_refused_by_name(file, keep):
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(WeightsError, match='a.caffemodel: no'):
        read_caffemodel(file)


@pytest.mark.parametrize('seed', range(20))
def test_changed_bytes_never_raise_another_error(file, seed):
    content = bytearray(file.read_bytes())
    places = torch.randint(len(content), (3,), generator=torch.Generator().manual_seed(seed))
    for place in places.tolist():
        content[place] ^= 0xFF
    file.write_bytes(content)
    problem, numbers = '', 0
    try:
        numbers = sum(value.numel() for value in read_caffemodel(file).values())
    except WeightsError as error:
        problem = str(error)
    assert 'a.caffemodel' in problem or numbers == 28  # then numbers or names were hit


def layer_with(blob):
    return field(100, field(1, b'conv') + field(7, blob))


HUGE = varint(2**40)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (varint(100 << 3 | 2) + HUGE + b'abc', 'ends beyond what holds it'),
        (field(100, varint(7 << 3 | 2) + HUGE + b'abc'), 'ends beyond what holds it'),
        (layer_with(field(7, field(1, HUGE)) + field(5, b'abcd')), 'holds 1 numbers'),
        (layer_with(field(7, field(1, HUGE * 30))), r'its shape is \(1099511627776, '),
        (layer_with(field(7, field(1, b'\x00')) + field(5, b'')), r'its shape is \(0,\)'),
        (layer_with(varint(1 << 3) + varint(2**31 - 1)), 'its shape is'),
        (layer_with(field(7, field(1, b'\x02')) + field(5, b'abcdefg')), 'holds 1 numbers'),
        (field(100, b'') * 10_001, 'more than 10000'),
        (field(100, field(7, b'') * 10_001), 'more than 10000'),
        (field(2, field(6, b'') * 200) * 51, 'more than 10000'),
        (b'\xff' * 50, 'a number that does not end'),
        (field(100, field(1, b'crop')), 'no layer of this Caffe file has weights'),
        (field(100, field(7, b'')), 'a layer has no name'),
        (bytes(1000), 'ends beyond'),
        (b'\x0b\x0c', 'starts no field'),
    ],
)
def test_malicious_file_is_refused_before_it_is_believed(tmp_path, content, message):
    path = tmp_path / 'a.caffemodel'
    path.write_bytes(content)
    net_parameter()
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError, match=message):
            read_caffemodel(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_layers_with_weights_must_differ_in_name(tmp_path):
    path = tmp_path / 'a.caffemodel'
    blob = field(7, field(1, b'\x01')) + field(5, struct.pack('<f', 3.0))
    path.write_bytes(layer_with(blob) * 2)
    with pytest.raises(WeightsError, match='two layers are named conv'):
        read_caffemodel(path)


def test_file_larger_than_any_message_is_not_read(tmp_path):
    path = tmp_path / 'a.caffemodel'
    with path.open('wb') as file:
        file.truncate(2**31)  # takes no room on disk
    with pytest.raises(WeightsError, match='1 to 2147483647 bytes'):
        read_caffemodel(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match='none: cannot be read: No such file'):
        read_caffemodel(tmp_path / 'none')
