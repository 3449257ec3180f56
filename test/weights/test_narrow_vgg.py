from io import BytesIO
import tracemalloc
from zipfile import ZIP_DEFLATED, ZipFile

from dense_perception.errors import WeightsError
from dense_perception.networks.frontend import FrontEnd
from dense_perception.weights.checkpoint import Preprocessing
from dense_perception.weights.narrow_vgg import read_narrow_vgg
import numpy as np
import pytest
import torch
import torch.nn.functional as F

STAGES = ((1, 2, 16), (2, 2, 32), (3, 4, 64), (4, 4, 128), (5, 1, 128))  # stage, depth, channels


@pytest.fixture
def arrays():
    """Return random weights in the shape of the published narrow VGG-19."""
    random = np.random.default_rng(0)

    def layer(outputs, inputs, kernel):
        deviation = (2 / (inputs * kernel**2)) ** 0.5
        weight = random.normal(0, deviation, (outputs, inputs, kernel, kernel))
        return weight.astype(np.float32), random.normal(0, 0.1, outputs).astype(np.float32)

    layers = {}
    # From RGB of 0 to 1 to BGR of 0 to 255 minus the mean, as the published one has it.
    color = 255 * np.eye(3, dtype=np.float32)[::-1, :, None, None]
    layers['conv0'] = color, np.array([-103.939, -116.779, -123.68], np.float32)
    channels = 3
    for stage, depth, width in STAGES:
        for place in range(1, depth + 1):
            layers[f'conv{stage}{place}'] = layer(width, channels, 3)
            channels = width
    return {
        f'{name}.{part}': value
        for name, pair in layers.items()
        for part, value in zip(('weight', 'bias'), pair, strict=True)
    }


def vgg_features(arrays, image):
    """Run conv0 to conv44 as published: padded 3x3 layers, pooling between the stages."""
    tensors = {name: torch.from_numpy(value.copy()) for name, value in arrays.items()}
    values = F.conv2d(image, tensors['conv0.weight'], tensors['conv0.bias'])
    for stage, depth, _ in STAGES[:4]:
        for place in range(1, depth + 1):
            name = f'conv{stage}{place}'
            layer = F.conv2d(values, tensors[f'{name}.weight'], tensors[f'{name}.bias'], padding=1)
            values = torch.relu(layer)
        if stage < 4:
            values = F.max_pool2d(values, 2)
    return values


@pytest.mark.parametrize(
    'preprocessing',
    [Preprocessing(), Preprocessing('rgb', (0.0, 0.0, 0.0), 1.0)],
)
def test_imported_layers_compute_what_the_published_network_computes(
    tmp_path, arrays, preprocessing
):
    np.savez(tmp_path / 'vgg.npz', **arrays)
    network = FrontEnd(3, 'compact').eval()
    tensors = read_narrow_vgg(tmp_path / 'vgg.npz', preprocessing)
    assert network.load_state_dict(tensors, strict=False).unexpected_keys == []
    torch.manual_seed(0)
    image = torch.rand(1, 3, 160, 176)  # RGB, 0 to 1
    seen = []
    network.conv4_4.register_forward_hook(lambda _, __, output: seen.append(torch.relu(output)))
    mean = torch.tensor(preprocessing.mean)[:, None, None]
    network((image * 255 - mean) / preprocessing.scale)
    expected = vgg_features(arrays, image)
    # Zero padding means another colour in each, so the border differs as far as it is seen.
    inner = (..., slice(7, -7), slice(7, -7))
    torch.testing.assert_close(
        seen[0][inner], expected[inner], rtol=1e-3, atol=1e-3 * float(expected.max())
    )


def test_conv1_1_to_conv5_1_are_imported_and_nothing_else(tmp_path, arrays):
    np.savez(tmp_path / 'vgg.npz', **arrays)
    tensors = read_narrow_vgg(tmp_path / 'vgg.npz', Preprocessing())
    layers = [
        f'conv{stage}_{place}' for stage, depth, _ in STAGES for place in range(1, depth + 1)
    ]
    assert set(tensors) == {f'{name}.{part}' for name in layers for part in ('weight', 'bias')}
    np.testing.assert_array_equal(tensors['conv5_1.weight'], arrays['conv51.weight'])


def test_file_without_a_layer_is_refused_by_name(tmp_path, arrays):
    del arrays['conv33.bias']
    np.savez(tmp_path / 'vgg.npz', **arrays)
    with pytest.raises(WeightsError, match='vgg.npz: no narrow VGG-19: .*conv33.bias'):
        read_narrow_vgg(tmp_path / 'vgg.npz', Preprocessing())


@pytest.mark.parametrize('content', [b'', b'PK\x03\x04', b'no archive', b'\x93NUMPY'])
def test_file_that_is_no_archive_is_refused_by_name(tmp_path, content):
    (tmp_path / 'vgg.npz').write_bytes(content)
    with pytest.raises(WeightsError, match='vgg.npz: no narrow VGG-19'):
        read_narrow_vgg(tmp_path / 'vgg.npz', Preprocessing())


def test_truncated_archive_is_refused_by_name(tmp_path, arrays):
    path = tmp_path / 'vgg.npz'
    np.savez(path, **arrays)
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(WeightsError, match='vgg.npz: no narrow VGG-19'):
        read_narrow_vgg(path, Preprocessing())


def test_missing_archive_is_named(tmp_path):
    with pytest.raises(WeightsError, match='none.npz: no narrow VGG-19'):
        read_narrow_vgg(tmp_path / 'none.npz', Preprocessing())


def test_preprocessing_in_bgr_is_refused(tmp_path, arrays):
    np.savez(tmp_path / 'vgg.npz', **arrays)
    with pytest.raises(WeightsError, match='rgb'):
        read_narrow_vgg(tmp_path / 'vgg.npz', Preprocessing('bgr'))


def npy(shape, kind='<f4', content=b'', version=(1, 0)):
    """Return an array file whose header says what it likes."""
    file = BytesIO()
    header = {'descr': kind, 'fortran_order': False, 'shape': shape}
    write = {(1, 0): np.lib.format.write_array_header_1_0,
             (2, 0): np.lib.format.write_array_header_2_0}[version]  # fmt: skip
    write(file, header)
    return file.getvalue() + content


def replaced(path, arrays, name, content):
    """Write an archive of which one array is something else."""
    np.savez(path, **{key: value for key, value in arrays.items() if key != name})
    with ZipFile(path, 'a', ZIP_DEFLATED) as archive:
        archive.writestr(f'{name}.npy', content)
    return path


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (npy((2**40, 1, 3, 3)), 'but has 0 bytes'),
        (npy((-1, 1, 3, 3), content=bytes(36)), 'but has 36 bytes'),
        (npy((1, 1, 3, 3), '|O', b'cos\nsystem\n'), 'floats are needed'),
        (npy((1, 1, 3, 3), '<i4', bytes(36)), 'floats are needed'),
        (npy((9,), content=bytes(36)), 'is (9,) float32; 4 dimensions'),
        (npy((1, 1, 3, 3), content=bytes(35)), 'but has 35 bytes'),
        (b'\x93NUMPY\x03\x00' + bytes(20), 'has the format (3, 0)'),
        (bytes(20_000_000), 'has 20000000 bytes; 16000000 at most'),
        (b'no array', 'magic'),
    ],
    ids=['enormous', 'negative', 'objects', 'integers', 'flat', 'short', 'format', 'long', 'text'],
)
def test_malicious_array_is_refused_before_it_is_believed(tmp_path, arrays, content, message):
    path = replaced(tmp_path / 'vgg.npz', arrays, 'conv33.weight', content)
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError) as caught:
            read_narrow_vgg(path, Preprocessing())
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(f'{path}: no narrow VGG-19: ')
    assert message in str(caught.value)


def test_pickle_in_an_array_is_never_run(tmp_path, arrays):
    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / 'ran'), 'w'))

    arrays['conv33.weight'] = np.array([[[[Harmful()]]]], object)
    np.savez(tmp_path / 'vgg.npz', **arrays)
    with pytest.raises(WeightsError, match='conv33.weight is .* object; 4 dimensions of floats'):
        read_narrow_vgg(tmp_path / 'vgg.npz', Preprocessing())
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize('name', ['conv0.weight', 'conv0.bias', 'conv11.weight'])
def test_layers_that_are_folded_must_take_colours(tmp_path, arrays, name):
    arrays[name] = np.concatenate([arrays[name]] * 2, min(1, arrays[name].ndim - 1))
    np.savez(tmp_path / 'vgg.npz', **arrays)
    with pytest.raises(WeightsError, match='vgg.npz: no narrow VGG-19: conv0 is .* not 3'):
        read_narrow_vgg(tmp_path / 'vgg.npz', Preprocessing())


@pytest.mark.parametrize('seed', range(20))
def test_changed_bytes_never_raise_another_error(tmp_path, arrays, seed):
    path = tmp_path / 'vgg.npz'
    np.savez_compressed(path, **arrays)
    content = bytearray(path.read_bytes())
    random = np.random.default_rng(seed)
    # The directory at the end as often as what lies before it.
    for place in (*random.integers(len(content), size=3), *random.integers(-2000, 0, size=3)):
        content[place] ^= 0xFF
    path.write_bytes(content)
    problem, layers = '', 0
    try:
        layers = len(read_narrow_vgg(path, Preprocessing()))
    except WeightsError as error:
        problem = str(error)
    assert 'vgg.npz: no narrow VGG-19' in problem or layers == 26
