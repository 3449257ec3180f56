"""
What the semantic segmentation layer of Nav2 asks of its topics, asked by a subscriber like it.

The layer (kiwicampus/semantic_segmentation_layer, src/semantic_segmentation_layer.cpp) subscribes
to mask and confidence with the profile of sensor data, fifty deep, and brings them together by
equal stamps; to the class names reliably and transient local, five deep.
"""

import json

from dense_perception.labels import CITYSCAPES, UNLABELLED
from dense_perception.ros.messages import message_to_labels
import numpy as np
import pytest
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import String

pytestmark = pytest.mark.ros

SENSOR_DATA = {
    'history': HistoryPolicy.KEEP_LAST,
    'reliability': ReliabilityPolicy.BEST_EFFORT,
    'durability': DurabilityPolicy.VOLATILE,
}
OF_PICTURES = QoSProfile(depth=50, **SENSOR_DATA)
OF_CLASSES = QoSProfile(
    depth=5,
    history=HistoryPolicy.KEEP_LAST,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)


@pytest.fixture
def running(bench):
    """An active node that only labels."""
    return bench(flow_weights='')


def subscribe(running, name, kind, quality):
    """Listen as the layer does; return what comes, once the node knows of it."""
    heard = []
    topic = f'/dense_perception/{name}'
    output = next(output for output in running.node.publishers if output.topic_name == topic)
    before = output.get_subscription_count()
    running.peer.create_subscription(kind, topic, heard.append, quality)
    running.spin(lambda: output.get_subscription_count() > before)
    return heard


def test_mask_and_confidence_of_an_image_come_as_mono8_of_one_size_and_header(running, frame):
    masks, confidences = (
        subscribe(running, name, Image, OF_PICTURES) for name in ('labels', 'confidence')
    )
    camera, message = running.camera(), frame(3)

    def sent():  # best effort, so that one may be lost
        camera.publish(message)
        return masks and confidences

    running.spin(sent)
    mask, confidence = masks[0], confidences[0]
    for picture in (mask, confidence):
        assert (picture.encoding, picture.height, picture.width) == ('mono8', 48, 64)
        assert len(picture.data) == picture.step * picture.height
    assert mask.header == confidence.header == message.header
    classes = set(np.unique(message_to_labels(mask)))
    assert classes <= {*range(len(CITYSCAPES)), UNLABELLED}
    assert UNLABELLED == 255


def test_every_class_of_a_mask_has_a_name_for_a_layer_that_comes_after_the_image(running, frame):
    masks = running.listen('labels')
    running.camera().publish(frame(3))
    running.spin(lambda: bool(masks))
    heard = subscribe(running, 'label_info', String, OF_CLASSES)
    running.spin(lambda: bool(heard))
    info = json.loads(heard[0].data)
    names = {entry['id']: entry['name'] for entry in info['classes']}
    assert set(np.unique(message_to_labels(masks[0]))) - {info['ignored']} <= set(names)
    assert names[CITYSCAPES.index('road')] == 'road'


def test_class_names_are_of_the_type_of_the_layer_where_that_is_installed(running):
    vision_msgs = pytest.importorskip('vision_msgs.msg')
    heard = subscribe(running, 'label_info/vision', vision_msgs.LabelInfo, OF_CLASSES)
    running.spin(lambda: bool(heard))
    names = {entry.class_id: entry.class_name for entry in heard[0].class_map}
    assert names == dict(enumerate(CITYSCAPES.names))


def test_the_camera_info_beside_a_mask_has_its_header_and_size(running, frame):
    masks = subscribe(running, 'labels', Image, OF_PICTURES)
    infos = subscribe(running, 'camera_info', CameraInfo, OF_PICTURES)
    images, cameras = running.camera(), running.camera(CameraInfo, '/camera_info')
    k = [100.0, 0, 63.5, 0, 100.0, 47.5, 0, 0, 1]  # of the camera's own, twice the image
    message = frame(3)

    def sent():
        cameras.publish(CameraInfo(width=128, height=96, k=k))
        images.publish(message)
        return masks and infos

    running.spin(sent)
    assert infos[0].header == masks[0].header == message.header
    assert (infos[0].width, infos[0].height) == (masks[0].width, masks[0].height)
    assert infos[0].k[0] == 50.0
