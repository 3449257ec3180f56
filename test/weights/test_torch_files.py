from collections import OrderedDict
import io
import pickle
import struct
import tracemalloc
import zipfile

from dense_perception.errors import WeightsError
from dense_perception.weights.torch_files import LEGACY_START, read_checkpoint
import numpy as np
import pytest
import torch

STATE = OrderedDict(
    a=torch.arange(6.0).reshape(2, 3),
    b=torch.nn.Parameter(torch.tensor([1.0, 2.0])),
    half=torch.tensor([0.5], dtype=torch.float16),
    count=torch.tensor(3),
)


def save(path, content, legacy=False):
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.mark.parametrize('legacy', [False, True])
def test_state_dict_is_read(tmp_path, legacy):
    tensors = read_checkpoint(save(tmp_path / 'a.pth', STATE, legacy))
    assert list(tensors) == list(STATE)
    for name, value in STATE.items():
        assert torch.equal(tensors[name], value)


@pytest.mark.parametrize('legacy', [False, True])
def test_state_dict_within_a_checkpoint_is_found(tmp_path, legacy):
    content = {
        'epoch': 300,
        'arch': 'flownets',
        'state_dict': {f'module.{name}': value for name, value in STATE.items()},
        'best_EPE': 1.951,
        'div_flow': 20.0,
    }
    assert list(read_checkpoint(save(tmp_path / 'a.pth', content, legacy))) == list(STATE)


@pytest.mark.parametrize('legacy', [False, True])
def test_views_of_one_storage_are_read(tmp_path, legacy):
    base = torch.arange(12.0)
    content = {'all': base, 'part': base[3:7], 'turned': base.reshape(3, 4).t()}
    tensors = read_checkpoint(save(tmp_path / 'a.pth', content, legacy))
    assert torch.equal(tensors['part'], base[3:7])
    assert torch.equal(tensors['turned'], content['turned'])


class Harmful:
    """Writes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), 'w'))


@pytest.mark.parametrize('legacy', [False, True])
def test_code_in_a_checkpoint_is_never_run(tmp_path, legacy):
    path = save(tmp_path / 'a.pth', {'a': STATE['a'], 'b': Harmful(tmp_path / 'ran')}, legacy)
    with pytest.raises(WeightsError, match=r'a.pth: not loaded: it names .*io.open'):
        read_checkpoint(path)
    assert not (tmp_path / 'ran').exists()


def test_plain_pickle_is_not_opened(tmp_path):
    path = tmp_path / 'a.pth'
    path.write_bytes(pickle.dumps(Harmful(tmp_path / 'ran')))
    with pytest.raises(WeightsError, match='does not start as a file of torch.save does'):
        read_checkpoint(path)
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize(
    'content', [[STATE['a']], 5, {}, {'a': 5}, {'state_dict': {'a': 'x'}}, {'state_dict': 3}]
)
def test_what_is_no_state_dict_is_refused(tmp_path, content):
    with pytest.raises(WeightsError, match='a.pth: .*(state dict|only plain)'):
        read_checkpoint(save(tmp_path / 'a.pth', content))


def test_arrays_of_numpy_are_refused_by_name(tmp_path):
    with pytest.raises(WeightsError, match='it names numpy'):
        read_checkpoint(save(tmp_path / 'a.pth', {'a': np.zeros(3)}))


@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize('keep', [0.01, 0.3, 0.6, 0.9, 0.999])
def test_truncated_file_is_refused_by_name(tmp_path, legacy, keep):
    path = save(tmp_path / 'a.pth', STATE, legacy)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(WeightsError, match='a.pth: '):
        read_checkpoint(path)


@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize('seed', range(10))
def test_changed_bytes_never_raise_another_error(tmp_path, legacy, seed):
    path = save(tmp_path / 'a.pth', STATE, legacy)
    content = bytearray(path.read_bytes())
    places = torch.randint(len(content), (4,), generator=torch.Generator().manual_seed(seed))
    for place in places.tolist():
        content[place] ^= 0xFF
    path.write_bytes(content)
    problem = 'a.pth'
    try:
        read_checkpoint(path)
    except WeightsError as error:
        problem = str(error)
    assert 'a.pth' in problem


def with_larger_storage(path, legacy, number):
    """Make the first storage claim `number` items where it had six."""
    content = path.read_bytes()
    old = b'K\x06tq' if legacy is None else b'K\x06'
    new = b'J' + struct.pack('<i', number)
    if legacy:
        assert old in content
        path.write_bytes(content.replace(old, new))
        return
    source = zipfile.ZipFile(io.BytesIO(content))
    with zipfile.ZipFile(path, 'w') as target:
        for entry in source.infolist():
            data = source.read(entry)
            if entry.filename.endswith('data.pkl'):
                assert old in data
                data = data.replace(old, new)
            target.writestr(entry.filename, data)


@pytest.mark.parametrize('legacy', [False, True])
def test_storage_larger_than_its_file_is_not_allocated(tmp_path, legacy):
    path = save(tmp_path / 'a.pth', {'a': torch.arange(6.0)}, legacy)
    with_larger_storage(path, legacy, 2_000_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError, match='it speaks of 2000000000, but has only'):
            read_checkpoint(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


# Operations of a pickle that say how much follows: 2 GiB, of which the file has nothing.
LARGER_THAN_THE_FILE = {
    'BINUNICODE': b'X' + struct.pack('<I', 2**31),
    'BINUNICODE8': b'\x8d' + struct.pack('<Q', 2**31),
    'LONG4': b'\x8b' + struct.pack('<i', 2**31 - 1),  # the most that it can say
    'BINBYTES': b'B' + struct.pack('<I', 2**31),
}


def refused_within_a_megabyte(path):
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError, match='a.pth: no PyTorch file, or a damaged one'):
            read_checkpoint(path)
        return tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize('operation', LARGER_THAN_THE_FILE)
def test_text_or_number_larger_than_its_file_is_not_allocated(tmp_path, operation):
    path = tmp_path / 'a.pth'
    path.write_bytes(LEGACY_START + b'\x80\x02' + LARGER_THAN_THE_FILE[operation])
    assert refused_within_a_megabyte(path)


def test_archive_may_not_claim_a_part_larger_than_itself(tmp_path):
    path = tmp_path / 'a.pth'
    with zipfile.ZipFile(path, 'w') as target:
        many = b'N0' * 4096  # more than an archive's reader takes in advance
        pickled = b'\x80\x02' + LARGER_THAN_THE_FILE['BINUNICODE8'] + many
        target.writestr('archive/data.pkl', pickled[:2] + many + pickled[2:])
        target.filelist[0].compress_size = 2**31
    assert refused_within_a_megabyte(path)


def test_storages_may_not_claim_more_than_the_file_together(tmp_path):
    path = save(tmp_path / 'a.pth', {str(place): torch.arange(6.0) for place in range(50)}, True)
    with_larger_storage(path, True, path.stat().st_size)
    with pytest.raises(WeightsError, match='its tensors have .* numbers or more in'):
        read_checkpoint(path)


def test_number_under_a_name_is_refused(tmp_path):
    path = save(tmp_path / 'a.pth', {'a': torch.arange(6.0)}, True)
    content = path.read_bytes()
    assert b'K\x06' in content
    path.write_bytes(content.replace(b'K\x06', b'K\x06q\x50', 1))
    with pytest.raises(WeightsError, match='stores a number under a name'):
        read_checkpoint(path)


def test_compressed_archive_is_refused_unread(tmp_path):
    path = save(tmp_path / 'a.pth', {'a': torch.arange(6.0)})
    source = zipfile.ZipFile(io.BytesIO(path.read_bytes()))
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
        target.writestr('archive/data/9', bytes(50_000_000))
    assert path.stat().st_size < 100_000
    with pytest.raises(WeightsError, match='parts of it are compressed'):
        read_checkpoint(path)


def test_archive_of_another_kind_is_refused(tmp_path):
    path = tmp_path / 'a.pth'
    with zipfile.ZipFile(path, 'w') as target:
        target.writestr('readme', 'x')
    with pytest.raises(WeightsError, match='it has 0 data.pkl'):
        read_checkpoint(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match='none.pth: .*No such file'):
        read_checkpoint(tmp_path / 'none.pth')
