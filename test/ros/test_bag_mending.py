from dense_perception.errors import InputError
from dense_perception.ros.bags import Bag
import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import get_typestore, Stores

pytestmark = pytest.mark.ros

# Sizes in bytes: within a page of 4096, over a few, over so many that index pages lie between.
SIZES = (100, 5000, 300, 60_000, 4096, 9000, 20, 250_000, 700, 30_000, 12_288)


def contents():
    generator = np.random.default_rng(0)
    return [generator.bytes(size) for size in SIZES * 2]


def write(path):
    store = get_typestore(Stores.ROS2_HUMBLE)
    with Writer(path, version=8, storage_plugin=StoragePlugin.SQLITE3) as writer:
        topic = writer.add_connection('/a', 'std_msgs/msg/String', typestore=store)
        for number, content in enumerate(contents()):
            writer.write(topic, 10**9 + number, content)
    (file,) = path.glob('*.db3')
    return file


@pytest.mark.parametrize('single', [False, True])
def test_every_message_before_a_cut_is_whole_and_none_is_made_up(tmp_path, single):
    file = write(tmp_path / 'bag')
    whole = file.read_bytes()
    path = file if single else tmp_path / 'bag'
    kept = []
    for size in np.linspace(32_768, len(whole) - 1, 15).astype(int):
        file.write_bytes(whole[:size])
        with Bag(path, mend=True) as bag:
            found = [message.data for message in bag.messages()]
            (damage,) = bag.damage
        assert found == contents()[: len(found)]
        assert damage == f'{file}: cut short; the {len(found)} messages before the cut are read'
        kept.append(len(found))
    assert kept == sorted(kept)
    assert kept[0] < len(contents()) // 4 < len(contents()) - 2 <= kept[-1]


def test_a_cut_file_is_refused_where_it_is_not_to_be_mended(tmp_path):
    file = write(tmp_path / 'bag')
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(InputError, match='bag: not a readable ROS 2 bag'), Bag(tmp_path / 'bag'):
        pass


@pytest.mark.parametrize('size', [50, 3000, 4096, 9000, 16_000])
def test_a_file_without_its_list_of_topics_is_named(tmp_path, size):
    file = write(tmp_path / 'bag')
    file.write_bytes(file.read_bytes()[:size])
    with (
        pytest.raises(InputError, match='bag: not a readable ROS 2 bag'),
        Bag(tmp_path / 'bag', mend=True),
    ):
        pass


def test_mending_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path / 'temporary'))
    (tmp_path / 'temporary').mkdir()
    file = write(tmp_path / 'bag')
    whole = file.read_bytes()
    for size in (4096, len(whole) // 2):
        file.write_bytes(whole[:size])
        try:
            with Bag(tmp_path / 'bag', mend=True) as bag:
                assert list(bag.messages())
        except InputError:
            assert size == 4096
    assert not [*(tmp_path / 'temporary').iterdir()]
