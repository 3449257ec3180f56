"""
Publish the time to contact of each sector of a drone's image.

With an IMU on `imu`, the turn of the camera is taken from it; otherwise it is found in the flow.
`python examples/drone_consumer.py --ros-args -r imu:=/imu/data`
"""

from dense_perception.geometry.approach import sector_motion
from dense_perception.geometry.camera import Camera, OPTICAL_IN_BODY
from dense_perception.geometry.ego_motion import estimate_ego_motion, rotation_from_rate
from dense_perception.ros.messages import message_to_flow, scale_camera_info
import numpy as np
from outputs import receive, run, seconds
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Imu
from std_msgs.msg import Float32MultiArray, MultiArrayDimension

BODY_TO_OPTICAL = OPTICAL_IN_BODY.T  # of an IMU whose axes are those of the camera's body
KEPT_S = 1.0  # of what the IMU has measured


class DroneConsumer(Node):
    """Node that publishes `~/time_to_contact`, rows by columns, in seconds."""

    def __init__(self):
        super().__init__('drone_consumer')
        self.rates = {}  # stamp in seconds -> rad/s about x, y, z
        self.publisher = self.create_publisher(Float32MultiArray, '~/time_to_contact', 5)
        self.create_subscription(Imu, 'imu', self.on_imu, qos_profile_sensor_data)
        self.inputs = receive(self, ('flow', 'flow_reference', 'camera_info'), self.on_flow)

    def on_imu(self, message):
        """Keep what has been measured lately."""
        rate, now = message.angular_velocity, seconds(message.header.stamp)
        self.rates = {at: kept for at, kept in self.rates.items() if now - at < KEPT_S}
        self.rates[now] = (rate.x, rate.y, rate.z)

    def on_flow(self, flow, reference, info):
        """Tell how soon each sector is met."""
        camera = Camera.from_info(scale_camera_info(info, flow.width, flow.height))
        vectors, camera = camera.rectify_flow(message_to_flow(flow)), camera.rectified()
        end, start = seconds(flow.header.stamp), seconds(reference.time_ref)
        rates = [rate for at, rate in self.rates.items() if start <= at <= end]
        turn = None
        if rates:
            turn = rotation_from_rate(np.mean(rates, 0), end - start, BODY_TO_OPTICAL)
        motion = estimate_ego_motion(vectors, camera, rotation=turn)
        times = sector_motion(vectors, camera, motion, end - start).time_to_contact_s
        message = Float32MultiArray(data=times.ravel().tolist())
        for label, size in zip(('rows', 'columns'), times.shape, strict=True):
            message.layout.dim.append(MultiArrayDimension(label=label, size=size))
        self.publisher.publish(message)
        soonest = np.nanmin(times, initial=np.inf)
        self.get_logger().info(f'soonest {soonest:.1f} s; {len(rates)} measurements of the IMU')


if __name__ == '__main__':
    run(DroneConsumer)
