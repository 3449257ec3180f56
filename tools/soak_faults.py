"""The node that disturbs in a long run, and the faults that it puts in."""

from collections.abc import Callable
from contextlib import suppress
import random
import time
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
import numpy as np
import psutil  # type: ignore[import-untyped]  # has no stubs
from rcl_interfaces.srv import SetParameters
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import CameraInfo, Image

IMAGE, INFO = '/camera/image_raw', '/camera/camera_info'
NODE = '/dense_perception'
LOST_S = 3.0  # that a camera stays away; longer than the node's silence_warning_s
STOPPED_S = 5.0  # that the node's process is stopped
INACTIVE_S = 2.0
TRANSITION_S = 30.0  # longest wait for the answer to a transition


class Soak(Node):
    """Puts faults in, and hears what the node says of itself."""

    def __init__(self, seed: int) -> None:
        super().__init__('soak')
        self.figures: dict[str, str] = {}
        self._random = random.Random(seed)
        self._images = self.create_publisher(Image, IMAGE, 1)
        self._infos = self.create_publisher(CameraInfo, INFO, 1)
        service = f'{NODE}/set_parameters'
        self._parameter_client: Any = self.create_client(SetParameters, service)
        self._state_client: Any = self.create_client(ChangeState, f'{NODE}/change_state')
        self.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, 10)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.hardware_id == 'dense_perception':
                self.figures = {pair.key: pair.value for pair in status.values}

    def _image(self, **changes: Any) -> Image:
        """Make a small good image of now, or one with other values in some fields."""
        message = Image(height=48, width=64, encoding='rgb8', step=192, data=bytes(48 * 192))
        message.header.stamp = self.get_clock().now().to_msg()
        for name, value in changes.items():
            setattr(message, name, value)
        return message

    def change_state(self, label: str) -> Any:
        """Ask for a transition; returns the future of the answer."""
        request = ChangeState.Request(transition=Transition(label=label))
        return self._state_client.call_async(request)

    # The faults that are one message; the name of each is that of its method.

    def unknown_encoding(self) -> None:
        """Publish an image in an encoding that does not exist."""
        self._images.publish(self._image(encoding='rgb565'))

    def short_data(self) -> None:
        """Publish an image with fewer bytes than its size needs."""
        self._images.publish(self._image(data=b'abc'))

    def absurd_size(self) -> None:
        """Publish an image that claims to have a billion pixels."""
        self._images.publish(self._image(width=2**31, height=2**31))

    def other_size(self) -> None:
        """Publish a good image of another size in mid-stream."""
        self._images.publish(self._image())

    def no_message(self) -> None:
        """Publish bytes that are no message."""
        self._images.publish(b'\0\1\0\0' + bytes(self._random.randrange(256) for _ in range(99)))

    def no_camera(self) -> None:
        """Publish a camera description of numbers that are none."""
        self._infos.publish(CameraInfo(width=64, height=48, k=[np.nan] * 9))

    def wrong_parameter(self) -> None:
        """Ask for a parameter out of its range, and for one that does not exist."""
        values: dict[str, Any] = {'overlay_opacity': 99.0, 'no_such_parameter': 'x'}
        request = SetParameters.Request(
            parameters=[
                Parameter(name, value=value).to_parameter_msg() for name, value in values.items()
            ]
        )
        self._parameter_client.call_async(request)

    def wrong_transition(self) -> None:
        """Ask for a transition that does not exist from here."""
        self.change_state('configure')

    def odd_image(self) -> None:
        """Publish a good image that looks wrong: padded rows, and a flag of the other order."""
        self._images.publish(self._image(step=200, data=bytes(48 * 200), is_bigendian=1))

    def long_frame_id(self) -> None:
        """Publish an image with a frame_id of 100 kilobytes."""
        message = self._image()
        message.header.frame_id = 'x' * 100_000
        self._images.publish(message)

    def strange_stamps(self) -> None:
        """Publish images of the beginning of time, of before it, of tomorrow, and of its end."""
        now = self.get_clock().now().to_msg().sec
        for second in (0, -5, now + 86_400, 2**31 - 1):
            message = self._image()
            message.header.stamp.sec = second
            self._images.publish(message)

    def burst(self) -> None:
        """Publish thirty images as fast as that goes."""
        for _ in range(30):
            self._images.publish(self._image())


# Those that begin and end.
LASTING = ('camera_loss', 'node_stopped', 'node_inactive', 'node_reconfigured')
FAULTS = (
    *('unknown_encoding', 'short_data', 'absurd_size', 'other_size', 'no_message', 'no_camera'),
    *('wrong_parameter', 'wrong_transition', 'odd_image', 'long_frame_id', 'strange_stamps'),
    *('burst', *LASTING),
)


def put_in(name: str, soak: Soak, launch: psutil.Popen, spin: Callable[[float], None]) -> None:
    """Put one fault in, and take one that lasts out again."""
    if name not in LASTING:
        getattr(soak, name)()
    elif name == 'node_inactive':
        _change(soak, spin, 'deactivate')
        spin(INACTIVE_S)
        _change(soak, spin, 'activate')
    elif name == 'node_reconfigured':
        _change(soak, spin, 'deactivate', 'cleanup', 'configure', 'activate')
    else:
        lost = name == 'camera_loss'
        process = child(launch, 'player_node' if lost else 'perception_node')
        if process is not None:
            process.suspend()
            spin(LOST_S if lost else STOPPED_S)
            resume(process)


def _change(soak: Soak, spin: Callable[[float], None], *labels: str) -> None:
    """
    Ask for transitions one after the other, each once the one before is over.

    An answer can be lost on a busy machine. Then the same is asked once more: of a transition that
    has happened the node says that it cannot happen again.
    """
    for label in labels:
        for _ in range(2):
            answer = soak.change_state(label)
            deadline = time.monotonic() + TRANSITION_S
            while not answer.done() and time.monotonic() < deadline:
                spin(0.05)
            if answer.done():
                break


def child(launch: psutil.Popen, name: str) -> psutil.Process | None:
    """Find the process of an executable that launch has started."""
    with suppress(psutil.Error):
        for child in launch.children():
            if any(name in word for word in child.cmdline()):
                return child
    return None


def resume(process: psutil.Process | None) -> None:
    """Let a stopped process go on."""
    if process is not None:
        with suppress(psutil.NoSuchProcess):
            process.resume()
