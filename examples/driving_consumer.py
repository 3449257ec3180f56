"""
Publish how far a car can drive, and which pixels of the flow move by themselves.

`python examples/driving_consumer.py --ros-args -p camera_height:=1.5 -p camera_pitch:=0.02`
"""

from dense_perception.geometry import free_space, moving
from dense_perception.geometry.camera import Camera, mounted
from dense_perception.geometry.ego_motion import estimate_ego_motion
from dense_perception.ros.messages import labels_message, message_to_labels
import numpy as np
from outputs import on_grid_of_flow, receive, receive_label_set, run
from rclpy.node import Node
from sensor_msgs.msg import Image
from std_msgs.msg import Float32


class DrivingConsumer(Node):
    """Node that publishes `~/free_distance` in metres, and the mask `~/moving`."""

    def __init__(self):
        super().__init__('driving_consumer')
        height = self.declare_parameter('camera_height', 1.5).value  # metres
        pitch = self.declare_parameter('camera_pitch', 0.0).value  # radians, down is positive
        self.pose = mounted((0.0, 0.0, height), pitch=pitch)  # tf2 knows it on a robot
        self.label_set, self.before = None, None
        self.free_distance = self.create_publisher(Float32, '~/free_distance', 5)
        self.moving = self.create_publisher(Image, '~/moving', 5)
        receive_label_set(self, lambda label_set: setattr(self, 'label_set', label_set))
        names = ('labels', 'flow', 'flow_reference', 'camera_info')
        self.inputs = receive(self, names, self.on_image)

    def on_image(self, labels, flow, reference, info):
        """Look at one image, and at the motion since the one before."""
        before, self.before = self.before, labels
        if self.label_set is None:
            return
        camera = Camera.from_info(info)
        view = free_space.GroundView(camera, self.pose)
        space = free_space.find_free_space(message_to_labels(labels), view, self.label_set)
        middle = space.distance[camera.width * 2 // 5 : camera.width * 3 // 5]
        distance = float(np.nan_to_num(np.median(middle)))
        self.free_distance.publish(Float32(data=distance))
        # Flow lies on the grid of the image before, and so must its labels.
        if before is None or before.header.stamp != reference.time_ref:
            return
        settings = moving.MovingSettings(threshold_px=2.0 * flow.width / camera.width)
        vectors, classes, straight = on_grid_of_flow(flow, before, info)
        static = moving.static_mask(classes, self.label_set, settings)
        motion = estimate_ego_motion(vectors, straight, static=static)
        found = moving.find_moving(vectors, classes, straight, motion, self.label_set, settings)
        self.moving.publish(labels_message(found.mask.astype(np.uint8) * 255, before.header))
        self.get_logger().info(f'free for {distance:.1f} m; {found.mask.mean():.1%} moves')


if __name__ == '__main__':
    run(DrivingConsumer)
