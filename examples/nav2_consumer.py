"""
Publish an occupancy grid for Nav2, from labels, confidence, class names and camera info.

`python examples/nav2_consumer.py --ros-args -p camera_height:=1.2 -p drivable:=road,terrain`
"""

from dense_perception.geometry import free_space
from dense_perception.geometry.camera import Camera, mounted
from dense_perception.ros.messages import message_to_labels
from dense_perception.ros.quality import latched_quality
import numpy as np
from outputs import receive, receive_label_set, run
from rclpy.node import Node

try:
    from nav_msgs.msg import OccupancyGrid
except ImportError:
    OccupancyGrid = None  # the grid is told in the log only


class Nav2Consumer(Node):
    """Node that publishes `~/grid` in the frame of the robot's base."""

    def __init__(self):
        super().__init__('nav2_consumer')
        height = self.declare_parameter('camera_height', 1.5).value  # metres
        pitch = self.declare_parameter('camera_pitch', 0.0).value  # radians, down is positive
        self.pose = mounted((0.0, 0.0, height), pitch=pitch)  # tf2 knows it on a robot
        drivable = self.declare_parameter('drivable', 'road').value
        self.settings = free_space.FreeSpaceSettings(drivable=drivable, least_confidence=64)
        self.grid, self.label_set = free_space.GridSettings(), None
        if OccupancyGrid:
            self.publisher = self.create_publisher(OccupancyGrid, '~/grid', latched_quality())
        receive_label_set(self, lambda label_set: setattr(self, 'label_set', label_set))
        self.inputs = receive(self, ('labels', 'confidence', 'camera_info'), self.on_image)

    def on_image(self, labels, confidence, info):
        """Draw what is free in one image."""
        if self.label_set is None:
            return
        view = free_space.GroundView(Camera.from_info(info), self.pose)
        labelled = message_to_labels(labels), view, self.label_set, self.settings
        space = free_space.find_free_space(*labelled, confidence=message_to_labels(confidence))
        cells = free_space.occupancy_grid(space, view, self.grid)
        free, occupied = (int((cells == v).sum()) for v in (free_space.FREE, free_space.OCCUPIED))
        nearest = np.min(space.distance[space.blocked], initial=self.settings.range_m)
        self.get_logger().info(f'{free} cells free, {occupied} occupied; nearest {nearest:.1f} m')
        if OccupancyGrid:
            message = OccupancyGrid(header=labels.header, data=cells.ravel().tolist())
            message.header.frame_id = 'base_footprint'
            message.info.resolution = self.grid.resolution_m
            message.info.width, message.info.height = self.grid.width, self.grid.height
            message.info.origin.position.x = self.grid.origin_x_m
            message.info.origin.position.y = self.grid.origin_y_m
            self.publisher.publish(message)


if __name__ == '__main__':
    run(Nav2Consumer)
