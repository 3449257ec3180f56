"""The whole path of docs/training.md: a labelled folder, fine-tuned weights, a node with them."""

import json

import cv2
from dense_perception.cli.train import main
from dense_perception.ros.messages import message_to_labels
import numpy as np
import pytest
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import Image
from std_msgs.msg import String

pytestmark = pytest.mark.ros

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
MAPPING = """
label_set: yard
classes: {path: '#804080', hedge: '0, 200, 0', sky: '#4682b4'}
labels: {1: path, 2: hedge, 3: sky, 0: ignore}
"""
COLORS = {1: (110, 105, 100), 2: (60, 120, 40), 3: (150, 180, 220)}  # of the labels, RGB


@pytest.fixture
def folder(tmp_path):
    """Return a folder of 20 images with labels: a path between hedges, and sky above."""
    random = np.random.default_rng(0)
    for kind in ('images', 'labels'):
        (tmp_path / kind).mkdir()
    (tmp_path / 'labels.yaml').write_text(MAPPING)
    rows, columns = np.mgrid[:120, :160]
    for index in range(20):
        horizon, middle = random.integers(40, 60), random.integers(60, 100)
        on_path = np.abs(columns - middle) < (rows - horizon) * 0.8 + 10
        labels = np.where(rows < horizon, 3, np.where(on_path, 1, 2)).astype(np.uint8)
        labels[-4:] = 0
        image = np.zeros((120, 160, 3))
        for value, color in COLORS.items():
            image[labels == value] = color
        image += random.normal(0, 12, image.shape)
        image = np.clip(image, 0, 255).astype(np.uint8)
        assert cv2.imwrite(str(tmp_path / 'images' / f'{index:02}.png'), image[:, :, ::-1])
        assert cv2.imwrite(str(tmp_path / 'labels' / f'{index:02}.png'), labels)
    return tmp_path


def test_a_folder_of_images_becomes_labels_of_its_own_classes_on_a_topic(
    folder, launched, peer, parameters, pytestconfig
):
    run = folder / 'run'
    recipe = pytestconfig.rootpath / 'config' / 'training_fine_tune.yaml'
    few = ('--steps', '4', '--warmup-steps', '0', '--batch', '2')
    small = ('--crop-height', '64', '--crop-width', '96', '--device', 'cpu')
    source = ('segmentation', '--data', str(folder), '--initial', 'drive')
    assert main([*source, '--recipe', str(recipe), '--out', str(run), *few, *small]) == 0

    labels = peer.listen('/dense_perception/labels')
    infos = peer.listen('/dense_perception/label_info', String, LATCHED)
    launched('drive.launch.py', f'weights:={run}/weights.safetensors', parameters)
    camera = peer.node.create_publisher(Image, '/camera/image_raw', 10)
    pixels = cv2.imread(str(folder / 'images' / '00.png'))
    message = Image(height=120, width=160, encoding='bgr8', step=480, data=pixels.tobytes())

    def labelled():
        camera.publish(message)
        return labels and infos

    peer.spin(labelled, 90.0)
    info = json.loads(infos[0].data)
    assert info['name'] == 'yard'
    assert [entry['name'] for entry in info['classes']] == ['path', 'hedge', 'sky']
    assert info['classes'][1]['color'] == [0, 200, 0]
    found = message_to_labels(labels[0])
    assert found.shape == (120, 160)
    assert found.max() < 3
    assert len(np.unique(found)) > 1
