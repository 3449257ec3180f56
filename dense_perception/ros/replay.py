"""A bag played to the launched node, and what came out of it when, as a report."""

from bisect import bisect_right
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
import math
from pathlib import Path
import sys
from tempfile import TemporaryDirectory
import time

from dense_perception.arrays import Flow, Labels
from dense_perception.errors import InputError
from dense_perception.evaluation.examples import Results, StreamExamples
from dense_perception.evaluation.report import Report
from dense_perception.evaluation.report_pictures import FrameReader
from dense_perception.evaluation.report_records import Delivery, RobotRecord
from dense_perception.evaluation.scoring import Result, Sample, Scorer
from dense_perception.metrics.segmentation import ConfusionMatrix
from dense_perception.ros.bag_evaluation import BagEvaluation, ResultCopy, with_source
from dense_perception.ros.bags import Bag, stamp_of
from dense_perception.ros.labelled_bag import BagImages, camera_topic
from dense_perception.ros.messages import message_to_labels
from dense_perception.ros.recorder import Recorder, Recording
from dense_perception.ros.running import (
    launch_command,
    listening,
    Running,
    running,
    spin_once,
)
from dense_perception.settings import PerceptionSettings
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.time import Time
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image
import yaml

READY_S = 120.0  # longest wait for the node; loading the networks alone takes seconds
PLAYER_S = 60.0  # longest wait for the clock of the player
QUIET_S = 10.0  # without results after the bag, when the last image's do not come
NODE = '/dense_perception'
_STEP_S = 0.1


@dataclass(frozen=True)
class Arrival:
    """Labels, or flow where nothing is labelled, as they came in."""

    stamp_ns: int  # of their image
    robot_ns: int  # time of the recording at which they came


@dataclass
class Received:
    """What the node has published in a replay."""

    recording: Recording
    arrivals: list[Arrival] = field(default_factory=list)
    confidence_ns: set[int] = field(default_factory=set)


class ReplayRecorder(Recorder):
    """Records the outputs of the node with the time of the recording at which each came."""

    def __init__(self, folder: Path, image_topic: str, rate: float, *, labels: bool) -> None:
        """
        Begin to record.

        :param rate: of the player; 1 is that of the recording.
        :param labels: whether a result is labels; else it is flow.
        """
        super().__init__(folder, image_topic, NODE)
        self.received = Received(self.recording)
        self._rate, self._labels = rate, labels
        # Monotonic time at which the recording's time was 0. The clock's messages come late, none
        # comes early: the earliest is nearest.
        self._origin_s = math.inf
        reliable = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
        self.create_subscription(Clock, '/clock', self._on_clock, reliable)
        self.create_subscription(Image, f'{NODE}/confidence', self._on_confidence, reliable)
        self.output = f'{NODE}/labels' if labels else f'{NODE}/flow'

    @property
    def hears_clock(self) -> bool:
        """Whether the time of the recording is known."""
        return math.isfinite(self._origin_s)

    def _on_clock(self, message: Clock) -> None:
        recorded_s = Time.from_msg(message.clock).nanoseconds * 1e-9
        self._origin_s = min(self._origin_s, time.monotonic() - recorded_s / self._rate)

    def _on_labels(self, message: Image) -> None:
        if self._labels:
            self._note(message)
        super()._on_labels(message)

    def _on_flow(self, message: Image) -> None:
        if not self._labels:
            self._note(message)
        super()._on_flow(message)
        self.last_arrival = time.monotonic()

    def _on_confidence(self, message: Image) -> None:
        stamp_ns = Time.from_msg(message.header.stamp).nanoseconds
        self.recording.save(f'confidence_{stamp_ns}', message_to_labels(message))
        self.received.confidence_ns.add(stamp_ns)

    def _note(self, message: Image) -> None:
        passed_s = time.monotonic() - self._origin_s
        robot_ns = round(passed_s * self._rate * 1e9) if self.hears_clock else 0
        stamp_ns = Time.from_msg(message.header.stamp).nanoseconds
        self.received.arrivals.append(Arrival(stamp_ns, robot_ns))


@dataclass(frozen=True)
class Replayed:
    """What a replay found, and pictures of what came out."""

    report: Report
    reader: FrameReader


def replay_bag(path: Path, evaluation: BagEvaluation, out: Path, *, rate: float = 1.0) -> Replayed:
    """
    Play a bag to the node that `drive.launch.py` starts, and compare what came out.

    The node runs on the time of the recording. At a rate below 1 it is as on a computer so many
    times faster: ages are in the time of the recording.

    :param out: folder for the logs of node and player.
    :param rate: speed; 1 is that of the recording.
    :raises InputError: the bag cannot be read, has no images, or these have no stamps.
    :raises RunError: node or player failed; the message has the end of the log.
    """
    name = str(path)
    images = evaluation.images(path, name)
    scorer = evaluation.scorer(images)
    with Bag(path, mend=True) as bag, TemporaryDirectory(prefix='dense_perception_') as folder:
        topic = evaluation.choice.image_topic or camera_topic(bag)
        seen = _seen(bag, topic)
        replay = _Replay(path, bag, topic, rate, out, evaluation.settings)
        received = replay.run(Path(folder), seen)
        copy = evaluation.copy(name, bag)
        with copy or nullcontext():
            judge = _Judge(scorer, received, seen, ResultCopy(copy, images))
            for sample in images.samples(bag, copy):
                judge.add(sample)
        robot = judge.robot(images, first_has_none=evaluation.predictors().segmenter is None)
        report = replace(
            with_source(scorer.report(), images, copy),
            models=evaluation.predictors().models,
            robot=robot,
        )
        examples = StreamExamples(report)
        evaluation.gather(examples, bag, name, judge.results())
    return Replayed(report, examples.reader())


@dataclass(frozen=True)
class _SeenImages:
    """When the images of a bag come."""

    recorded_ns: list[int]
    stamps_ns: list[int]

    def current(self, robot_ns: int) -> int:
        """Return the stamp of the newest image at a moment."""
        return self.stamps_ns[max(0, bisect_right(self.recorded_ns, robot_ns) - 1)]


def _seen(bag: Bag, topic: str) -> _SeenImages:
    seen = _SeenImages([], [])
    try:
        for message in bag.messages([topic]):
            seen.recorded_ns.append(message.stamp_ns)
            seen.stamps_ns.append(stamp_of(message.data))
    except InputError:
        if not seen.stamps_ns:
            raise
        # Told when the images are read.
    if not seen.stamps_ns:
        raise InputError(f'{bag.path}: no image on {topic}')
    if min(seen.stamps_ns) <= 0 or len(set(seen.stamps_ns)) < len(seen.stamps_ns):
        raise InputError(
            f'{bag.path}: images on {topic} have no stamps, or several have one; results of a '
            'replay are told apart by them (offline does without)'
        )
    return seen


@dataclass(frozen=True)
class _Replay:
    """One run of node and player."""

    path: Path
    bag: Bag
    topic: str
    rate: float
    out: Path
    settings: PerceptionSettings

    def run(self, folder: Path, seen: _SeenImages) -> Received:
        """Play the bag, and return what was published; images of results go to the folder."""
        self.out.mkdir(parents=True, exist_ok=True)
        params = folder / 'params.yaml'
        params.write_text(yaml.safe_dump({'/**': {'ros__parameters': self._parameters()}}))
        labels = bool(self.settings.segmentation_weights)
        camera = self.topic.removesuffix('/compressed')
        launch = launch_command(camera, f'params_file:={params}', 'use_sim_time:=true')
        with (
            listening(lambda: ReplayRecorder(folder, self.topic, self.rate, labels=labels)) as (
                recorder,
                executor,
            ),
            running(launch, self.out / 'launch.log') as node,
        ):
            _spin(executor, lambda: _is_ready(recorder), READY_S, 'the node', node)
            with running(self._player(), self.out / 'player.log') as player:
                self._receive(executor, recorder, node, player, seen)
        return recorder.received

    def _receive(
        self,
        executor: SingleThreadedExecutor,
        recorder: ReplayRecorder,
        node: Running,
        player: Running,
        seen: _SeenImages,
    ) -> None:
        """Spin until the player has ended and the results of the last image have come."""
        clock = f'{PLAYER_S:.0f} s'
        _spin(executor, lambda: recorder.hears_clock, PLAYER_S, f'/clock within {clock}', player)
        while player.process.poll() is None:
            spin_once(executor, _STEP_S)
            node.check()
        if player.process.returncode:
            player.check()
        last_ns = seen.stamps_ns[-1]
        recorder.last_arrival = time.monotonic()
        while not _has(recorder, last_ns, self.settings):
            spin_once(executor, _STEP_S)
            node.check()
            if time.monotonic() - recorder.last_arrival > QUIET_S:
                break
        if not recorder.received.arrivals:
            raise node.failure(f'{self.path}: no results; {recorder.complaint}')

    def _parameters(self) -> dict[str, object]:
        """Return the parameters of the node: all settings."""
        compressed = self.bag.topics[self.topic].type_name.endswith('CompressedImage')
        transport = 'compressed' if compressed else 'raw'
        return asdict(replace(self.settings, image_transport=transport))

    def _player(self) -> list[str]:
        info = f'{self.topic.removesuffix("/compressed").rpartition("/")[0]}/camera_info'
        topics = [self.topic, *(name for name in self.bag.topics if name == info)]
        values = {
            'bag': str(self.path.resolve()),
            'topics': ','.join(topics),
            'rate': float(self.rate),
            'clock': 'true',
            'wait_for_subscribers': len(topics),
        }
        # Text in quotes, so that a path that looks like a number stays one.
        words = [
            f'{key}:="{value}"' if key in ('bag', 'topics') else f'{key}:={value}'
            for key, value in values.items()
        ]
        parameters = [word for pair in words for word in ('-p', pair)]
        return [sys.executable, '-m', 'dense_perception.ros.player', '--ros-args', *parameters]


def _is_ready(recorder: ReplayRecorder) -> bool:
    """Whether the node publishes; that it listens to the camera is what the player waits for."""
    return recorder.count_publishers(recorder.output) > 0


def _has(recorder: ReplayRecorder, stamp_ns: int, settings: PerceptionSettings) -> bool:
    recording = recorder.recording
    labels = not settings.segmentation_weights or (
        stamp_ns in recording.labels_ns and stamp_ns in recorder.received.confidence_ns
    )
    # There is no flow where the image before is too long ago.
    several = len(recording.labels_ns) > 1 or not settings.segmentation_weights
    flow = not settings.flow_weights or not several or stamp_ns in recording.flow_ns
    return labels and flow


def _spin(
    executor: SingleThreadedExecutor,
    condition: Callable[[], bool],
    timeout_s: float,
    what: str,
    process: Running,
) -> None:
    """
    Spin until a condition holds.

    :raises RunError: it does not in time, or the process has ended.
    """
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        spin_once(executor, _STEP_S)
        process.check()
        if time.monotonic() > deadline_s:
            raise process.failure(f'no {what}')


class _Judge:
    """Compares what the node has published with the truth, in one pass over the bag."""

    def __init__(
        self, scorer: Scorer, received: Received, seen: _SeenImages, copy: ResultCopy
    ) -> None:
        self._scorer, self._received, self._copy = scorer, received, copy
        self._labels = set(received.recording.labels_ns)
        self._flow = set(received.recording.flow_ns)
        self._robot_ns = {entry.stamp_ns: entry.robot_ns for entry in received.arrivals}
        self._at: dict[int, list[int]] = {}  # labels by the image that was newest as they came
        for entry in received.arrivals:
            self._at.setdefault(seen.current(entry.robot_ns), []).append(entry.stamp_ns)
        self._delivered: ConfusionMatrix | None = None

    def add(self, sample: Sample) -> None:
        """Count one image, and the labels that came while it was the newest."""
        assert sample.stamp_ns is not None
        result = self._result(sample.stamp_ns)
        self._scorer.add(sample, result)
        if result is not None:
            self._copy.add(sample, result, self._robot_ns.get(sample.stamp_ns))
        label_set = self._scorer.label_set
        if sample.labels is None or label_set is None:
            return
        for stamp_ns in self._at.get(sample.stamp_ns, ()):
            labels = self._received.recording.labels(stamp_ns)
            if stamp_ns in self._labels and labels.shape == sample.labels.shape:
                self._delivered = self._delivered or ConfusionMatrix(len(label_set))
                self._delivered.add(self._scorer.converted(labels), sample.labels)

    def _result(self, stamp_ns: int) -> Result | None:
        """Read what came for an image; None where nothing came."""
        recording = self._received.recording
        labels = recording.labels(stamp_ns) if stamp_ns in self._labels else None
        flow = recording.flow(stamp_ns) if stamp_ns in self._flow else None
        if labels is None and flow is None:
            return None
        confidence = None
        if stamp_ns in self._received.confidence_ns:
            confidence = recording.confidence(stamp_ns)
        previous = str(recording.previous_ns.get(stamp_ns, ''))
        return Result(labels, confidence, flow, previous)

    def results(self) -> Results:
        """Return how the results that came are found again."""
        recording = self._received.recording

        def labels(sample: Sample) -> Labels:
            assert sample.stamp_ns is not None
            return self._scorer.converted(recording.labels(sample.stamp_ns))

        def flow(previous: Sample, sample: Sample) -> Flow:
            assert sample.stamp_ns is not None
            return recording.flow(sample.stamp_ns)

        return Results(labels, flow)

    def robot(self, images: BagImages, *, first_has_none: bool) -> RobotRecord:
        """
        Return what became of the images.

        :param first_has_none: a result needs two images, so that the first has none.
        """
        deliveries = tuple(
            Delivery(images.name, entry.stamp_ns, (entry.robot_ns - entry.stamp_ns) / 1e6)
            for entry in self._received.arrivals
        )
        used = images.images - images.bad - int(first_has_none)
        return RobotRecord(
            images.images,
            max(0, used - len(deliveries)),
            images.bad,
            tuple(sorted(deliveries)),
            self._delivered,
        )
