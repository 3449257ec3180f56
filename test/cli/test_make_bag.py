from pathlib import Path

import cv2
from dense_perception.cli.make_bag import main
from dense_perception.ros.bags import Bag, deserialize
from dense_perception.ros.messages import image_to_array, message_to_labels
import numpy as np
import pytest

pytestmark = pytest.mark.ros

CAMVID = Path(__file__).parents[2].parent / 'shared' / 'data' / 'camvid'


def write_frames(folder, count=3):
    (folder / 'frames').mkdir()
    (folder / 'truth').mkdir()
    for number in range(count):
        image = np.full((8, 12, 3), [10, 20, 30 + number], np.uint8)
        labels = np.full((8, 12), number, np.uint8)
        labels[0] = 11
        cv2.imwrite(str(folder / 'frames' / f'{number}.png'), image[..., ::-1])
        cv2.imwrite(str(folder / 'truth' / f'{number}.png'), labels)


def read(path, topic):
    with Bag(path) as bag:
        return [
            (stamp_ns, deserialize(data, bag.topics[topic].type_name))
            for _, stamp_ns, data in bag.messages([topic])
        ]


def test_a_folder_becomes_a_bag_at_the_rate_that_is_asked_for(tmp_path):
    write_frames(tmp_path)
    assert main([f'{tmp_path}/frames', '--out', f'{tmp_path}/bag', '--rate', '10']) == 0
    messages = read(tmp_path / 'bag', '/camera/image_raw')
    assert [stamp - messages[0][0] for stamp, _ in messages] == [0, 10**8, 2 * 10**8]
    assert image_to_array(messages[2][1])[0, 0].tolist() == [10, 20, 32]


def test_labels_are_written_with_the_ignored_value_as_255(tmp_path):
    write_frames(tmp_path)
    options = ['--labels', f'{tmp_path}/truth', '--ignore', '11', '--out', f'{tmp_path}/bag']
    assert main([f'{tmp_path}/frames', *options]) == 0
    labels = message_to_labels(read(tmp_path / 'bag', '/camera/labels_truth')[2][1])
    assert np.unique(labels[0]).tolist() == [255]
    assert np.unique(labels[1:]).tolist() == [2]


def test_a_frame_without_labels_is_written_without_truth(tmp_path):
    write_frames(tmp_path)
    (tmp_path / 'truth' / '1.png').unlink()
    main([f'{tmp_path}/frames', '--labels', f'{tmp_path}/truth', '--out', f'{tmp_path}/bag'])
    assert len(read(tmp_path / 'bag', '/camera/image_raw')) == 3
    assert len(read(tmp_path / 'bag', '/camera/labels_truth')) == 2


def test_labels_of_other_names_are_an_error(tmp_path, capsys):
    write_frames(tmp_path)
    for path in (tmp_path / 'truth').iterdir():
        path.rename(path.with_stem(f'other_{path.stem}'))
    options = ['--labels', f'{tmp_path}/truth', '--out', f'{tmp_path}/bag']
    assert main([f'{tmp_path}/frames', *options]) == 1
    assert 'no label picture has the name of a frame' in capsys.readouterr().err


def test_the_topic_can_be_chosen(tmp_path):
    write_frames(tmp_path)
    main([f'{tmp_path}/frames', '--out', f'{tmp_path}/bag', '--topic', '/front/image'])
    assert len(read(tmp_path / 'bag', '/front/image')) == 3


def test_an_error_is_told_and_leaves_no_bag(tmp_path, capsys):
    assert main([f'{tmp_path}/nowhere', '--out', f'{tmp_path}/bag']) == 1
    assert f'make_bag: {tmp_path}/nowhere: no such' in capsys.readouterr().err
    assert not (tmp_path / 'bag').exists()


@pytest.mark.skipif(not CAMVID.is_dir(), reason=f'{CAMVID} is not there')
def test_camvid_becomes_a_bag_with_its_truth(tmp_path):
    few = tmp_path / 'few'
    few.mkdir()
    for path in sorted((CAMVID / 'val').iterdir())[:3]:
        (few / path.name).symlink_to(path)
    options = ['--labels', f'{CAMVID}/valannot', '--ignore', '11', '--out', f'{tmp_path}/bag']
    assert main([str(few), *options]) == 0
    labels = [
        message_to_labels(message) for _, message in read(tmp_path / 'bag', '/camera/labels_truth')
    ]
    assert np.shape(labels) == (3, 360, 480)
    assert set(np.unique(labels)) <= {*range(11), 255}
