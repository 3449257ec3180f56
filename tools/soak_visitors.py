"""Subscribers that come and go, in a process of their own: one that hangs is replaced."""

import os
import random
import subprocess
import sys
import time
from typing import Any

import rclpy
from rclpy.node import Node
from sensor_msgs.msg import Image
from soak_faults import NODE

OUTPUTS = ('labels', 'confidence', 'labels_color', 'flow', 'flow_color')
ALL_S = 110.0  # at first, in which each output has one: what it takes is taken in the warm-up
SILENT_S = 20.0  # after which the process is taken to hang


class Visitors:
    """The process, as the soak sees it."""

    def __init__(self, seed: int) -> None:
        self.count = 0  # subscriptions at present, beside the one of labels that stays
        self.labels = 0  # images with labels that came between the last two looks
        self.replaced = 0  # processes that hung or died
        self._seed = seed
        self._begin()

    def _begin(self) -> None:
        self._heard_s = time.monotonic()
        command = [sys.executable, __file__, str(self._seed + self.replaced)]
        self._process: subprocess.Popen[bytes] = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)

    def look(self) -> None:
        """Read how many there are, and replace a process that says nothing any more."""
        assert self._process.stdout is not None
        self.labels = 0
        if lines := self._process.stdout.read():
            for line in lines.splitlines():
                self.count, labels = map(int, line.split())
                self.labels += labels
            self._heard_s = time.monotonic()
        elif self._process.poll() is not None or time.monotonic() - self._heard_s > SILENT_S:
            self.close()
            self.replaced += 1
            self._begin()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


class Subscribers(Node):
    """Subscribes to labels, and now here, now there."""

    def __init__(self, seed: int) -> None:
        super().__init__('soak_visitors')
        self._random = random.Random(seed)
        self._visitors: list[Any] = []
        self._labels = 0
        self._all_until_s = time.monotonic() + ALL_S
        self.create_subscription(Image, f'{NODE}/labels', self._on_labels, 1)
        for output in OUTPUTS:
            self._come(output)
        self.create_timer(1.0, self._change)

    def _on_labels(self, message: Image) -> None:
        self._labels += 1

    def _come(self, output: str) -> None:
        topic = f'{NODE}/{output}'
        self._visitors.append(self.create_subscription(Image, topic, lambda _: None, 1))

    def _change(self) -> None:
        """Let one subscriber come or go; tell how many there are, and how many labels came."""
        if time.monotonic() < self._all_until_s:
            pass
        elif self._visitors and self._random.random() < len(self._visitors) / 10:
            place = self._random.randrange(len(self._visitors))
            self.destroy_subscription(self._visitors.pop(place))
        else:
            self._come(self._random.choice(OUTPUTS))
        print(len(self._visitors), self._labels, flush=True)
        self._labels = 0


if __name__ == '__main__':
    rclpy.init()
    rclpy.spin(Subscribers(int(sys.argv[1])))
