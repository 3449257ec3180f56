"""Damaged files: every reader gives a result or an error of this package, soon."""

from pathlib import Path
import random
import shutil
import time

import cv2
from dense_perception.data.drives import DriveFrame
from dense_perception.data.flow_files import read_flo, read_kitti_flow, write_flo, write_kitti_flow
from dense_perception.data.frames import read_picture
from dense_perception.errors import DensePerceptionError
from dense_perception.networks.flownet import FlowNetSimple
from dense_perception.ros.bags import Bag, deserialize, write_drive
from dense_perception.ros.messages import compressed_to_array
from dense_perception.weights.checkpoint import Card, load_weights, Preprocessing, save_weights
import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import get_typestore, Stores
from sensor_msgs.msg import CompressedImage

pytestmark = pytest.mark.ros

SECONDS = 1.0  # that each reader is fed damaged files
LEAST = 20  # of them, however slow the machine is
LONGEST_S = 5.0  # of processor time, for one file
NUMBERS = (b'\0', b'\xff', b'\x7f', b'\x80', b'\0\0\0\0', b'\xff\xff\xff\xff', b'\xff' * 8)


def damaged(content: bytes, generator: random.Random) -> bytes:
    """Damage a file in one to four places, more often near its start, where the sizes stand."""
    data = bytearray(content)
    for _ in range(generator.randint(1, 4)):
        span = generator.choice((16, 128, 1024, len(data))) or 1
        place = generator.randrange(max(1, min(span, len(data))))
        kind = generator.randrange(6)
        if kind == 0:  # a bit
            data[place : place + 1] = bytes([data[place] ^ 1 << generator.randrange(8)])
        elif kind == 1:  # a number that sizes are mistaken for
            number = generator.choice(NUMBERS)
            data[place : place + len(number)] = number
        elif kind == 2:  # the end is missing
            del data[generator.randrange(len(data) + 1) :]
        elif kind == 3:  # a piece is missing
            del data[place : place + generator.randint(1, 64)]
        elif kind == 4:  # a piece comes twice
            data[place:place] = data[place : place + generator.randint(1, 64)]
        else:  # noise
            data[place : place + 8] = generator.randbytes(8)
        if not data:
            break
    return bytes(data)


def flow():
    return np.random.default_rng(1).normal(size=(12, 16, 2)).astype(np.float32)


def flo(path):
    write_flo(path, flow())
    return read_flo


def kitti_png(path):
    write_kitti_flow(path, flow(), np.ones((12, 16), bool))
    return read_kitti_flow


def picture(suffix):
    def write(path):
        pixels = np.random.default_rng(1).integers(0, 256, (24, 32, 3), np.uint8)
        path.write_bytes(cv2.imencode(suffix, pixels)[1].tobytes())
        return read_picture

    return write


def packet(suffix):
    def write(path):
        picture(suffix)(path)
        return lambda path: compressed_to_array(CompressedImage(data=path.read_bytes()))

    return write


def weights(path):
    card = Card('flownet_simple', {'width': 1 / 32}, Preprocessing())
    network = card.build()
    assert isinstance(network, FlowNetSimple)
    save_weights(path, network, card)
    return load_weights


def read_bag(path):
    with Bag(path) as bag:
        types = {name: topic.type_name for name, topic in bag.topics.items()}
        for count, message in enumerate(bag.messages()):
            deserialize(message.data, types[message.topic])
            if count > 100:
                break


def frames():
    generator = np.random.default_rng(1)
    for number in range(3):
        yield DriveFrame(number * 10**8, generator.integers(0, 256, (8, 8, 3), np.uint8), None)


def mcap(path):
    write_drive(path.with_name('drive'), frames())
    shutil.copy(next(path.with_name('drive').glob('*.mcap')), path)
    return read_bag


def sqlite(path):
    folder, types = path.with_name('recorded'), get_typestore(Stores.ROS2_HUMBLE)
    text = types.types['std_msgs/msg/String']
    with Writer(folder, version=8, storage_plugin=StoragePlugin.SQLITE3) as writer:
        topic = writer.add_connection('/text', text.__msgtype__, typestore=types)
        for number in range(5):
            data = types.serialize_cdr(text(data=f'number {number}'), text.__msgtype__)
            writer.write(topic, number, data)
    shutil.copy(next(folder.glob('*.db3')), path)
    return read_bag


READERS = {
    'flow.flo': flo,
    'flow.png': kitti_png,
    'picture.png': picture('.png'),
    'picture.jpg': picture('.jpg'),
    'packet.png': packet('.png'),
    'packet.jpg': packet('.jpg'),
    'weights.safetensors': weights,
    'bag.mcap': mcap,
    'bag.db3': sqlite,
}


@pytest.mark.parametrize('name', READERS)
def test_a_damaged_file_is_read_or_refused_soon(tmp_path, name):
    good, bad = tmp_path / 'good' / name, tmp_path / name
    good.parent.mkdir()
    read = READERS[name](good)
    read(good)
    content = good.read_bytes()
    end, refused, count = time.monotonic() + SECONDS, 0, 0
    while time.monotonic() < end or count < LEAST:
        bad.write_bytes(damaged(content, random.Random(count)))
        started = time.process_time()
        try:
            read(bad)
        except DensePerceptionError:
            refused += 1
        except Exception as error:
            error.add_note(f'seed {count}')
            raise
        assert time.process_time() - started < LONGEST_S, f'seed {count}'
        count += 1
    assert refused > count / 10  # else the damage does not reach what the reader checks


def test_damaged_metadata_of_a_bag_is_read_or_refused(tmp_path):
    write_drive(tmp_path / 'bag', frames())
    file = tmp_path / 'bag' / 'metadata.yaml'
    content = file.read_bytes()
    refused = 0
    for seed in range(100):
        file.write_bytes(damaged(content, random.Random(seed)))
        try:
            read_bag(tmp_path / 'bag')
        except DensePerceptionError:
            refused += 1
    assert refused > 10


def test_a_bag_reads_no_file_outside_of_its_folder(tmp_path):
    write_drive(tmp_path / 'other', frames())
    write_drive(tmp_path / 'bag', frames())
    inside = next((tmp_path / 'bag').glob('*.mcap'))
    file = tmp_path / 'bag' / 'metadata.yaml'
    outside = Path('..') / 'other' / next((tmp_path / 'other').glob('*.mcap')).name
    file.write_text(file.read_text().replace(inside.name, str(outside)))
    with pytest.raises(DensePerceptionError, match='not a readable ROS 2 bag|no such bag'):
        read_bag(tmp_path / 'bag')
