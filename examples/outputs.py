"""How the examples receive what a perception node publishes."""

from collections.abc import Callable, Sequence
import json
from typing import Any

from builtin_interfaces.msg import Time as TimeMessage
import cv2
from dense_perception.arrays import Flow, Labels
from dense_perception.errors import InputError
from dense_perception.geometry.camera import Camera
from dense_perception.labels import LabelClass, LabelSet
from dense_perception.ros.messages import message_to_flow, message_to_labels, scale_camera_info
from dense_perception.ros.quality import latched_quality, result_quality
from message_filters import Subscriber, TimeSynchronizer
import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, Image, TimeReference
from std_msgs.msg import String

SOURCE = 'dense_perception'  # name of the perception node
OTHER_TYPES = {'camera_info': CameraInfo, 'flow_reference': TimeReference}
QUEUE = 5  # images whose outputs are still coming


def receive(node: Node, names: Sequence[str], callback: Callable[..., None]) -> TimeSynchronizer:
    """
    Call back with one message of each output, all of the same image.

    The outputs of one image have one stamp. Large images need the Fast DDS profile of the README.

    :returns: what must be kept for as long as messages shall come.
    """
    quality = result_quality()
    quality.depth = QUEUE
    subscribers = [
        Subscriber(node, OTHER_TYPES.get(name, Image), f'{SOURCE}/{name}', qos_profile=quality)
        for name in names
    ]

    def serve(*messages: Any) -> None:
        try:
            callback(*messages)
        except InputError as error:  # costs this image only
            node.get_logger().warning(str(error), throttle_duration_sec=1.0)

    together = TimeSynchronizer(subscribers, QUEUE)
    together.registerCallback(serve)
    return together


def receive_label_set(node: Node, callback: Callable[[LabelSet], None]) -> None:
    """
    Call back with the names of the classes: latched, so that it comes however late one asks.

    Where vision_msgs is installed, `label_info/vision` tells the same as vision_msgs/LabelInfo,
    which is what Nav2's semantic segmentation layer reads.
    """

    def read(message: String) -> None:
        content = json.loads(message.data)
        classes = (LabelClass(row['name'], tuple(row['color'])) for row in content['classes'])
        callback(LabelSet(content['name'], tuple(classes)))

    node.create_subscription(String, f'{SOURCE}/label_info', read, latched_quality())


def on_grid_of_flow(flow: Image, labels: Image, info: CameraInfo) -> tuple[Flow, Labels, Camera]:
    """
    Return flow, the labels of where it begins, and their camera, without distortion.

    With `flow_output_scale` below 1 flow is smaller than labels and camera info, and its vectors
    are in pixels of its own size.
    """
    vectors = message_to_flow(flow)
    size = flow.width, flow.height
    camera = Camera.from_info(scale_camera_info(info, *size))
    classes = cv2.resize(message_to_labels(labels), size, interpolation=cv2.INTER_NEAREST_EXACT)
    return camera.rectify_flow(vectors), camera.rectify_labels(classes), camera.rectified()


def seconds(stamp: TimeMessage) -> float:
    """Return a stamp in seconds."""
    return Time.from_msg(stamp).nanoseconds / 1e9


def run(kind: Callable[[], Any]) -> None:
    """Serve a node until it is interrupted."""
    rclpy.init()
    try:
        rclpy.spin(kind())
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        rclpy.try_shutdown()
