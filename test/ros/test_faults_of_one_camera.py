"""
Faults of docs/faults.md put into one of two cameras; every frame of the other comes out as usual.

The cases are those of test_faults.py, where a node with one camera gets them.
"""

from pathlib import Path
import runpy
from threading import Event

from dense_perception.labels import CITYSCAPES
from dense_perception.networks import NETWORKS, SEGMENTATION_NETWORKS
from dense_perception.predictors.segmenter import Segmenter
from dense_perception.ros.inference import Inference
from dense_perception.ros.messages import image_to_array, message_to_labels
from dense_perception.ros.predictions import Predictions
from dense_perception.weights.checkpoint import Card, Preprocessing, save_weights
from dense_perception.weights.published import find_weights
import numpy as np
import pytest
import rclpy
from rclpy.context import Context
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
import torch

pytestmark = pytest.mark.ros

faults = runpy.run_path(str(Path(__file__).with_name('test_faults.py')))
RIGHT_INFO = {'width': 64, 'height': 48, 'k': [50.0, 0, 31.5, 0, 50.0, 23.5, 0, 0, 1]}


class Pair:
    """A node of two cameras: `front` films on while something happens to `left`."""

    def __init__(self, running, frame, kind=Image, *, exact=True):
        self.running, self.frame, self.kind = running, frame, kind
        suffix = '' if kind is Image else '/compressed'
        self.images = {
            name: running.camera(kind, f'/{name}/image{suffix}') for name in ('front', 'left')
        }
        self.labels = {name: running.listen(f'{name}/labels') for name in ('front', 'left')}
        self.flow = running.listen('front/flow')
        self.numbers = {'front': 0, 'left': 0}
        self.segmenter = exact and Segmenter.from_file(
            find_weights('drive'), device='cpu', precision='float32', width=64
        )
        self.film('left')
        self.film()  # flow begins
        self.before = self.figures()

    def figures(self):
        """What may not change of the other camera, whatever happens to the one."""
        statistics = self.running.statistics('front')
        return statistics.bad, statistics.dropped

    def send(self, name, message):
        if self.kind is CompressedImage and isinstance(message, Image):
            data = faults['cv2'].imencode('.png', image_to_array(message)[:, :, ::-1])[1]
            message = CompressedImage(header=message.header, data=data.tobytes())
        self.images[name].publish(message)

    def film(self, name='front', beside=lambda: None):
        """Send the next good image of a camera, and something beside it; wait for its labels."""
        self.numbers[name] += 1
        message = self.frame(self.numbers[name])
        message.header.frame_id = name
        beside()
        self.send(name, message)
        heard = self.labels[name]
        self.running.spin(lambda: any(labels.header == message.header for labels in heard))
        (found,) = (labels for labels in heard if labels.header == message.header)
        labels = message_to_labels(found)
        assert labels.shape == (48, 64)
        if self.segmenter:
            expected = self.segmenter.segment(image_to_array(message)).labels
            np.testing.assert_array_equal(labels, expected)
        heard.clear()
        return message

    def check(self, case, happens, told):
        """Let something happen to `left` while `front` films, and see that nothing else does."""
        message = self.film(beside=happens)
        # Flow that began anew would not come of this frame.
        self.running.spin(lambda: any(flow.header == message.header for flow in self.flow))
        self.flow.clear()
        self.running.spin(told)
        assert self.figures() == self.before, case
        self.film('left')


@pytest.fixture
def pair(bench, frame):
    """Return the two cameras of an active node."""
    return Pair(bench(cameras=['front', 'left']), frame)


def tells(running, word):
    """Whether the node says a word of the camera that has the fault."""
    return lambda: word in running.statistics('left').last_error


def test_a_bad_image_of_one_camera_costs_no_frame_of_another(pair):
    for case, (changes, word) in faults['BAD_IMAGES'].items():
        bad = faults['spoiled'](pair.frame, **changes)
        pair.check(case, lambda bad=bad: pair.send('left', bad), tells(pair.running, word))
    assert pair.running.statistics('front').last_error == ''


def test_an_odd_image_of_one_camera_costs_no_frame_of_another(pair):
    for case, changes in faults['ODD_IMAGES'].items():
        odd = faults['spoiled'](pair.frame, **changes)
        heard = pair.labels['left']
        pair.check(case, lambda odd=odd: pair.send('left', odd), lambda: bool(heard))  # noqa: B023
        heard.clear()


def test_strange_stamps_of_one_camera_do_not_interrupt_the_flow_of_another(pair):
    heard = pair.labels['left']
    for case, stamps in faults['STAMPS'].items():
        for seconds, nanoseconds in stamps:
            message = pair.frame(5)
            message.header.stamp.sec, message.header.stamp.nanosec = seconds, nanoseconds
            pair.check(
                case,
                lambda message=message: pair.send('left', message),
                lambda: bool(heard),
            )


def test_an_encoding_that_changes_in_one_camera_costs_no_frame_of_another(pair):
    heard = pair.labels['left']
    for encoding, step in (('mono8', 64), ('bgra8', 256), ('mono16', 128), ('rgb8', 192)):
        changes = {'encoding': encoding, 'step': step, 'data': bytes(48 * step)}
        image = faults['spoiled'](pair.frame, **changes)
        pair.check(encoding, lambda image=image: pair.send('left', image), lambda: bool(heard))
        heard.clear()


def test_bytes_that_are_no_message_of_one_camera_cost_no_frame_of_another(pair):
    for data in (b'', b'\0\1\0\0garbage', b'\xff' * 100, b'\0\1\0\0' + b'\xff' * 99):
        pair.check(data, lambda data=data: pair.images['left'].publish(data), lambda: True)
    assert pair.running.statistics('left').bad == 0


def test_another_type_on_the_topic_of_one_camera_costs_no_frame_of_another(pair):
    context = Context()  # one participant gives a topic one type
    rclpy.init(context=context)
    stranger = rclpy.create_node('stranger', context=context)
    other = stranger.create_publisher(CompressedImage, '/left/image', 1)
    pair.running.spin(lambda: pair.running.node.count_publishers('/left/image') == 2)
    packet = CompressedImage(format='jpeg', data=b'abc')
    pair.check('another type', lambda: other.publish(packet), lambda: True)
    stranger.destroy_node()
    context.try_shutdown()


def test_subscribers_of_one_camera_come_and_go_without_a_frame_of_another_lost(pair):
    peer = pair.running.peer
    (labels,) = (
        output
        for output in pair.running.node.publishers
        if output.topic_name == '/dense_perception/left/labels'
    )
    for _ in range(3):
        visitors: list = []

        def come(visitors=visitors):
            visitors += [
                peer.create_subscription(
                    Image, f'/dense_perception/left/{name}', lambda _: None, 1
                )
                for name in faults['OUTPUTS']
            ]

        def go(visitors=visitors):
            while visitors:
                peer.destroy_subscription(visitors.pop())

        pair.check('come', come, lambda: labels.get_subscription_count() == 2)
        pair.check('go', go, lambda: labels.get_subscription_count() == 1)


class Round:
    """The next images of both cameras, taken together while something goes wrong."""

    def __init__(self, pair, monkeypatch):
        self.pair, self.monkeypatch = pair, monkeypatch

    def check(self, fail):
        """Let something fail once the networks are busy; two images wait for the next round."""
        pair, entered, opened = self.pair, Event(), Event()
        labels = Predictions.labels

        def waits(predictions, frames):
            entered.set()
            assert opened.wait(20)
            return labels(predictions, frames)

        with self.monkeypatch.context() as patch:
            patch.setattr(Predictions, 'labels', waits)
            pair.send('front', self.next('front'))
            pair.running.spin(entered.is_set)
        fail()
        counts = [pair.running.statistics(name) for name in ('front', 'left')]
        before = [statistics.received for statistics in counts]
        for name in ('front', 'left'):
            pair.send(name, self.next(name))
        pair.running.spin(
            lambda: (
                [statistics.received for statistics in counts]
                == [received + 1 for received in before]
            )
        )
        done = sum(statistics.processed + statistics.bad for statistics in counts)
        opened.set()
        pair.running.spin(
            lambda: sum(statistics.processed + statistics.bad for statistics in counts) == done + 3
        )

    def next(self, name):
        self.pair.numbers[name] += 1
        return self.pair.frame(self.pair.numbers[name])


def once(error):
    """Return a function that raises on the first call, and the calls so far."""
    calls: list = []

    def raises(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise error

    return raises, calls


def test_an_error_with_the_labels_of_one_camera_costs_no_frame_of_the_same_round(
    pair, monkeypatch
):
    left = next(camera for camera in pair.running.node.cameras if camera.name == 'left')
    raises, calls = once(RuntimeError('thrown while kept'))
    Round(pair, monkeypatch).check(lambda: monkeypatch.setattr(left.keyframes, 'set', raises))
    assert len(calls) == 1
    assert 'thrown while kept' in pair.running.statistics('left').last_error
    assert pair.running.statistics('left').bad == 1
    assert pair.running.statistics('front').last_error == ''
    assert pair.figures() == pair.before
    pair.film()
    pair.film('left')


@pytest.mark.parametrize(('owner', 'step'), [(Inference, '_resize_flow'), (Predictions, 'labels')])
def test_where_a_step_fails_for_all_cameras_each_is_served_alone(pair, monkeypatch, owner, step):
    original = getattr(owner, step)
    raises, calls = once(RuntimeError('thrown for all'))

    def fails(*arguments):
        raises(*arguments)
        return original(*arguments)

    Round(pair, monkeypatch).check(lambda: monkeypatch.setattr(owner, step, fails))
    assert len(calls) == 3  # together, and each alone
    for name in ('front', 'left'):
        assert pair.running.statistics(name).bad == 0
        assert 'thrown for all' in pair.running.statistics(name).last_error
    pair.film()
    pair.film('left')


def test_a_bad_camera_info_of_one_camera_leaves_that_of_another(pair):
    running = pair.running
    infos = {
        name: running.camera(CameraInfo, f'/{name}/camera_info') for name in ('front', 'left')
    }
    heard = running.listen('front/camera_info', CameraInfo)
    running.listen('left/camera_info', CameraInfo)
    for case, (changes, word) in faults['BAD_CAMERAS'].items():
        bad = CameraInfo(**{**RIGHT_INFO, **changes})

        def happens(bad=bad):
            infos['left'].publish(bad)
            infos['front'].publish(CameraInfo(**RIGHT_INFO))

        def told(bad=bad, word=word):
            happens(bad)
            pair.film('left')
            return tells(running, word)()

        pair.check(case, happens, told)
        heard.clear()
        message = pair.film()
        running.spin(lambda: bool(heard))
        assert [info.header for info in heard] == [message.header]
    assert running.statistics('front').last_error == ''


def test_a_bad_packet_of_one_camera_costs_no_frame_of_another(bench, frame):
    running = bench(cameras=['front', 'left'], image_transport='compressed')
    pair = Pair(running, frame, CompressedImage)
    for case, (data, word) in faults['BAD_PACKETS'].items():
        packet = CompressedImage(format='jpeg', data=data)
        pair.check(case, lambda packet=packet: pair.send('left', packet), tells(running, word))
    assert running.statistics('front').last_error == ''


class Picky(torch.nn.Module):
    """A network that scores 19 classes by three numbers, and fails on an image of one colour."""

    error: BaseException | None = None

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.score = torch.nn.Conv2d(3, classes, 8, stride=8, padding=4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if Picky.error is not None and (images.flatten(2).std(2) < 1e-6).any():
            raise Picky.error
        return self.score(images)


def test_an_error_of_the_network_on_one_camera_costs_no_frame_of_another(
    bench, frame, monkeypatch, tmp_path
):
    monkeypatch.setitem(NETWORKS, 'picky', Picky)
    monkeypatch.setitem(SEGMENTATION_NETWORKS, 'picky', Picky)
    path = tmp_path / 'picky.safetensors'
    card = Card('picky', {'classes': len(CITYSCAPES)}, Preprocessing(), CITYSCAPES.name)
    save_weights(path, card.build(), card)
    running = bench(cameras=['front', 'left'], segmentation_weights=str(path))
    # Out of memory, a smaller input may label from then on.
    pair = Pair(running, frame, exact=False)
    errors = {**faults['ERRORS'], 'exit': (lambda: SystemExit('killed'), 'SystemExit')}
    for case, (make, word) in errors.items():
        Picky.error = make()
        grey = faults['spoiled'](frame, data=bytes(9216))
        bad = running.statistics('left').bad
        pair.check(case, lambda grey=grey: pair.send('left', grey), tells(running, word))
        assert running.statistics('left').bad == bad + 1, case
