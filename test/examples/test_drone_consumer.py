import re

import numpy as np
import pytest
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Imu
from std_msgs.msg import Float32MultiArray

pytestmark = pytest.mark.ros

TOLD = re.compile(r'soonest (?:[\d.]+|inf) s; (\d+) measurements of the IMU')


def test_flow_becomes_a_time_for_each_sector_with_an_imu_and_without(stage):
    times = stage.listen(Float32MultiArray, '/drone_consumer/time_to_contact')
    output = stage.start('examples/drone_consumer.py')
    stage.play_until(lambda: times and TOLD.search(output.read_text()))
    assert set(TOLD.findall(output.read_text())) == {'0'}
    publisher = stage.node.create_publisher(Imu, '/imu', qos_profile_sensor_data)

    def measure(stamp_ns):
        message = Imu()
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 10**9)
        publisher.publish(message)

    stage.play_until(lambda: set(TOLD.findall(output.read_text())) - {'0'}, measure)
    for message in times:
        sides = [(side.label, side.size) for side in message.layout.dim]
        assert sides == [('rows', 3), ('columns', 5)]
        found = np.array(message.data)
        assert found.size == 15
        assert (np.isnan(found) | (found > 0)).all()
    # Driving on, something ahead is met within a minute.
    assert min(np.nanmin(message.data) for message in times) < 60
    assert stage.close() == [0, 0]
    assert 'Traceback' not in output.read_text()


@pytest.mark.parametrize('stage', [['flow_output_scale:=0.5']], indirect=True)
def test_flow_at_half_the_size_of_the_image_becomes_times_too(stage):
    times = stage.listen(Float32MultiArray, '/drone_consumer/time_to_contact')
    output = stage.start('examples/drone_consumer.py')
    stage.play_until(lambda: any(np.isfinite(message.data).any() for message in times))
    assert min(np.nanmin(message.data) for message in times) < 60
    assert stage.close() == [0, 0]
    assert 'sizes must match' not in output.read_text()
