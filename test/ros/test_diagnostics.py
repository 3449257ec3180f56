import math
from pathlib import Path
import re
import runpy
from threading import Event
import traceback

from dense_perception.ros.consumer_health import ConsumerHealth
from dense_perception.ros.consuming import Consumer
from dense_perception.ros.diagnostics import StreamStatistics
from dense_perception.ros.latest import Ended, LatestOfEach
from dense_perception.ros.predictions import Predictions
import pytest
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image

pytestmark = pytest.mark.ros

bench_parts = runpy.run_path(str(Path(__file__).with_name('consumer_bench.py')))


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
    labels, camera = running.listen('labels'), running.camera()
    running.next_diagnostics()  # from here to the next is a second, whenever the node was started
    camera.publish(frame())
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


def test_a_clock_that_stands_still_while_images_come_is_a_warning_until_it_runs(bench, frame):
    running = bench(use_sim_time=True, flow_weights='')
    clock = running.peer.create_publisher(Clock, '/clock', 10)
    camera = running.camera()
    running.peer.create_timer(0.1, lambda: camera.publish(frame()))
    status, _ = running.diagnostics(lambda status, _: 'stood still' in status.message)
    assert status.level == status.WARN
    assert re.fullmatch(
        r'use_sim_time is set, and /clock has stood still for \d+ s: ages of results are wrong',
        status.message,
    )
    time = Clock()

    def tick():
        time.clock.sec += 1
        clock.publish(time)

    running.peer.create_timer(0.1, tick)
    running.diagnostics(lambda status, _: status.message == 'running')


# The thread that works.


def killed(*arguments):
    """Raise what would end a thread without a word."""
    raise SystemExit('killed')


@pytest.fixture
def raised(monkeypatch):
    """What ends threads, in place of its print."""
    caught: list = []
    monkeypatch.setattr('threading.excepthook', lambda end: caught.append(end.exc_value))
    return caught


def test_an_inference_that_hangs_is_an_error_that_says_where(bench, frame, monkeypatch):
    monkeypatch.setattr('dense_perception.ros.latest.HANGS_AFTER_S', 0.2)
    running, opened = bench(flow_weights=''), Event()
    labels = running.listen('labels')
    camera = running.camera()
    with monkeypatch.context() as patch:
        patch.setattr(Predictions, 'labels', lambda *_: opened.wait(30) and {})
        camera.publish(frame())
        try:
            status, _ = running.diagnostics(lambda status, _: 'hangs' in status.message)
        finally:
            opened.set()
    assert status.level == status.ERROR
    assert re.fullmatch(r'inference hangs in wait \(threading\.py:\d+\) for \d+ s', status.message)
    camera.publish(frame(1))
    running.spin(lambda: bool(labels))


def test_an_inference_whose_thread_is_gone_is_an_error_and_ends_the_node(
    bench, frame, monkeypatch, raised
):
    running = bench(flow_weights='')
    running.listen('labels')
    camera = running.camera()
    monkeypatch.setattr(LatestOfEach, 'take', killed)  # after the image that it waits for
    camera.publish(frame())
    status, _ = running.diagnostics(lambda status, _: 'stopped' in status.message)
    assert status.level == status.ERROR
    assert status.message == 'inference has stopped: SystemExit: killed'
    running.thread.join(20)
    assert not running.thread.is_alive()
    assert isinstance(raised[-1], Ended)
    assert str(raised[-1]) == status.message


def test_an_error_that_cannot_be_told_does_not_end_the_inference(bench, frame, monkeypatch):
    running = bench(flow_weights='')
    labels = running.listen('labels')
    camera = running.camera()

    def fails(*arguments):
        raise RuntimeError('thrown')

    def short(*arguments):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Predictions, 'labels', fails)
        patch.setattr(traceback, 'format_exception', short)
        camera.publish(frame())
        running.spin(lambda: running.statistics().bad == 1)
    assert running.statistics().last_error == 'RuntimeError: thrown'
    camera.publish(frame(1))
    running.spin(lambda: bool(labels))


class Caller(Consumer):
    """Calls what it is handed."""

    def __init__(self, **options):
        super().__init__('caller', (), **options)
        self.health = ConsumerHealth(self, lambda: ('', {}))
        self.start()

    def process(self, job):
        job()


@pytest.fixture
def caller(ros_environment):
    """Return a node that calls what it is handed, in a thread of its own."""
    running = bench_parts['ConsumerBench'](Caller)
    yield running
    running.close()


def test_the_thread_of_a_consumer_outlives_a_call_to_exit(caller):
    caller.node.put(killed)
    caller.bad('SystemExit: killed')
    done = Event()
    caller.node.put(done.set)
    caller.spin(done.is_set)
    assert caller.node.statistics.bad == 1


def test_an_error_that_cannot_be_told_does_not_end_the_thread_of_a_consumer(caller, monkeypatch):
    def short(*arguments):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(traceback, 'format_exception', short)
        caller.node.put(killed)
        caller.bad('SystemExit: killed')
        done = Event()
        caller.node.put(done.set)
        caller.spin(done.is_set)


def test_a_consumer_that_hangs_is_an_error_that_says_where(caller, monkeypatch):
    monkeypatch.setattr('dense_perception.ros.latest.HANGS_AFTER_S', 0.2)
    opened = Event()
    caller.node.put(lambda: opened.wait(30))
    try:
        status, _ = caller.diagnostics(lambda status, _: 'hangs' in status.message)
    finally:
        opened.set()
    assert status.level == status.ERROR
    assert status.message.startswith('caller hangs in wait (threading.py:')


def test_a_consumer_whose_thread_is_gone_is_an_error_and_ends_the_node(
    caller, monkeypatch, raised
):
    monkeypatch.setattr(LatestOfEach, 'take', killed)
    caller.node.put(lambda: None)
    status, _ = caller.diagnostics(lambda status, _: 'stopped' in status.message)
    assert status.level == status.ERROR
    assert status.message == 'caller has stopped: SystemExit: killed'
    caller.thread.join(20)
    assert not caller.thread.is_alive()
    assert isinstance(raised[-1], Ended)
