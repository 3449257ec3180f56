import struct

from dense_perception.errors import InputError
from dense_perception.ros import bag_unpacking
from dense_perception.ros.bag_unpacking import unpacked, zstd
from dense_perception.ros.bags import Bag
import pytest
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import get_typestore, Stores

pytestmark = pytest.mark.ros

ZEROS = bytes(2_000_000)


def write(path, mode, storage=StoragePlugin.SQLITE3, contents=(ZEROS, b'end')):
    store = get_typestore(Stores.ROS2_HUMBLE)
    writer = Writer(path, version=8, storage_plugin=storage)
    writer.set_compression(mode, CompressionFormat.ZSTD)
    with writer:
        topic = writer.add_connection('/a', 'std_msgs/msg/String', typestore=store)
        for number, content in enumerate(contents):
            writer.write(topic, 10**9 + number, content)
    return path


def read(path, **options):
    with Bag(path, **options) as bag:
        return [message.data for message in bag.messages()]


@pytest.mark.parametrize('storage', list(StoragePlugin))
def test_files_compressed_as_a_whole_are_read(tmp_path, storage):
    write(tmp_path / 'bag', CompressionMode.FILE, storage)
    assert read(tmp_path / 'bag') == [ZEROS, b'end']


def test_files_that_unpack_to_more_than_is_taken_are_refused(tmp_path, monkeypatch):
    path = write(tmp_path / 'bag', CompressionMode.FILE)
    assert sum(file.stat().st_size for file in path.iterdir()) < 10_000
    monkeypatch.setattr(bag_unpacking, 'MOST_UNPACKED', 1_000_000)
    with pytest.raises(InputError, match=r'bag.db3.zstd: unpacks to more than the 1000000 bytes'):
        read(path)


def test_no_more_is_unpacked_than_the_disk_has(tmp_path, monkeypatch):
    path = write(tmp_path / 'bag', CompressionMode.FILE)
    monkeypatch.setattr(bag_unpacking, '_LEFT_FREE', 2**62)
    with pytest.raises(InputError, match=r'more than the 0 bytes that are left to it'):
        read(path)


def test_a_compressed_file_that_is_cut_is_read_up_to_there(tmp_path):
    contents = [struct.pack('>I', number) * 30_000 for number in range(50)]
    path = write(tmp_path / 'bag', CompressionMode.FILE, contents=contents)
    (file,) = path.glob('*.zstd')
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(InputError, match=r'bag.db3.zstd: ends early'):
        read(path)
    found = read(path, mend=True)
    assert 0 < len(found) < 50
    assert found == contents[: len(found)]


def test_messages_compressed_each_are_read(tmp_path):
    assert read(write(tmp_path / 'bag', CompressionMode.MESSAGE)) == [ZEROS, b'end']


@pytest.mark.parametrize('size', [999, 1000])
def test_what_unpacks_to_more_than_is_taken_at_once_is_refused(size):
    data = zstd.compress(bytes(600)) + zstd.compress(bytes(400))
    if size == 1000:
        assert unpacked(data, size) == bytes(1000)
        return
    with pytest.raises(InputError, match='unpack to more than is taken at once'):
        unpacked(data, size)


def test_a_message_that_unpacks_to_more_than_is_taken_at_once_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path / 'bag', CompressionMode.MESSAGE)
    monkeypatch.setattr(bag_unpacking, 'MOST_AT_ONCE', 1_000_000)
    with pytest.raises(InputError, match='unpack to more than is taken at once'):
        read(path)


def test_a_chunk_that_unpacks_to_more_than_is_taken_at_once_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path / 'bag', CompressionMode.STORAGE, StoragePlugin.MCAP)
    assert read(path) == [ZEROS, b'end']
    monkeypatch.setattr(bag_unpacking, 'MOST_AT_ONCE', 1_000_000)
    with pytest.raises(InputError, match='at most 1000000 are taken at once'):
        read(path)


def test_a_chunk_that_is_larger_than_it_says_is_refused():
    data = zstd.compress(bytes(1000))
    with pytest.raises(InputError, match='unpack to more than is taken at once'):
        bag_unpacking.DECOMPRESSORS['zstd'](data, 999)
