import math

from dense_perception.ros.diagnostics import StreamStatistics
import pytest
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

pytestmark = pytest.mark.ros


def values(statistics):
    return {pair.key: pair.value for pair in statistics.summarise().values()}


def test_ages_are_told_as_percentiles_in_milliseconds():
    statistics = StreamStatistics()
    for age_ms in range(1, 101):
        statistics.count_processed(age_ms / 1000)
    told = values(statistics)
    # Of 1 to 100, interpolated between neighbours.
    assert told['age p50 (ms)'] == '50.5'
    assert told['age p95 (ms)'] == '95.0'  # 95.05
    assert told['age p99 (ms)'] == '99.0'


def test_what_never_happened_is_zero_or_nan():
    told = values(StreamStatistics())
    assert told['images received'] == told['bad images'] == told['flow runs'] == '0'
    assert math.isnan(float(told['age p50 (ms)']))
    assert math.isnan(float(told['flow time p50 (ms)']))
    assert told['last error'] == ''


def test_new_bad_images_are_those_since_the_last_summary():
    statistics = StreamStatistics()
    statistics.count_bad('first')
    statistics.count_bad('second')
    assert statistics.summarise().new_bad == 2
    assert statistics.summarise().new_bad == 0
    assert statistics.summarise().bad == 2
    assert statistics.summarise().last_error == 'second'


def test_diagnostics_tell_rates_device_and_weights_once_a_second(bench, frame):
    running = bench()
    labels = running.listen('labels')
    running.camera().publish(frame())
    running.spin(lambda: bool(labels))
    status, told = running.diagnostics(lambda _, told: told['images processed'] == '1')
    assert status.level == status.OK
    assert status.name == '/dense_perception: stream'
    assert status.hardware_id == 'dense_perception'
    assert float(told['input rate (Hz)']) == pytest.approx(1, abs=0.5)
    assert float(told['output rate (Hz)']) == pytest.approx(1, abs=0.5)
    assert told['images received'] == '1'
    assert told['images dropped'] == told['bad images'] == '0'
    assert told['segmentation device'] == told['flow device'] == 'cpu float32'
    assert told['segmentation weights'] == 'drive'
    assert told['flow weights'] == 'flow'


def test_diagnostics_tell_the_states_before_active(bench):
    running = bench('unconfigured')
    assert running.next_diagnostics()[0].message == 'not configured'
    running.change('configure')
    assert running.next_diagnostics()[0].message == 'configured, not active'


def test_a_topic_that_nobody_publishes_is_a_warning(bench):
    running = bench(silence_warning_s=0.1)
    status, _ = running.diagnostics(lambda status, _: status.level != status.OK)
    assert status.level == status.WARN
    assert status.message == 'nobody publishes /image'


def test_a_publisher_that_sends_nothing_is_an_error(bench):
    running = bench(silence_warning_s=0.1)
    running.camera()
    status, _ = running.diagnostics(lambda status, _: status.level == status.ERROR)
    assert status.message.startswith('1 publisher(s) of /image, but no image arrives')
    assert 'too large for the middleware' in status.message


def test_a_publisher_of_another_quality_is_told_with_what_to_set(bench):
    override = 'qos_overrides./image.subscription.reliability'
    running = bench(silence_warning_s=0.1, **{override: 'reliable'})
    best_effort = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    running.peer.create_publisher(Image, '/image', best_effort)
    status, told = running.diagnostics(lambda status, _: status.level == status.ERROR)
    assert 'RELIABILITY' in status.message
    assert override in status.message
    assert override in told['last error']


def test_diagnostics_come_without_a_clock_under_simulated_time(bench):
    running = bench('unconfigured', use_sim_time=True)
    running.next_diagnostics()
