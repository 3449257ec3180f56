"""Runs the launched node on a drive, receives what it publishes and judges it."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
import math
from pathlib import Path
import subprocess
import time

from dense_perception.arrays import Flow, Image, Labels, Mask
from dense_perception.data.drives import Drive, DriveFrame
from dense_perception.data.pictures import (
    color_flow,
    color_labels,
    legend,
    overlay_labels,
    panel,
    save_picture,
    Video,
)
from dense_perception.errors import InputError
from dense_perception.labels import CITYSCAPES, conversion, LabelSet
from dense_perception.metrics.flow import EndPointError
from dense_perception.metrics.segmentation import ConfusionMatrix
from dense_perception.ros.bags import Bag, deserialize, write_drive
from dense_perception.ros.messages import message_to_labels, to_array
from dense_perception.ros.recorder import Recorder, Recording
from dense_perception.ros.running import launch_command, listening, RunError, running, spin_once
import numpy as np
from rclpy.executors import SingleThreadedExecutor
from rclpy.time import Time
from tqdm import tqdm

START_S = 60.0  # longest wait for the first labels; loading torch alone takes seconds
QUIET_S = 5.0  # without labels, the drive is over
QUIET_AFTER_PLAYER_S = 2.0  # the same once the player has gone: only the last image is under way
COMPLAINT_S = 5.0  # diagnostics that stay at ERROR this long, and no labels: it will not work
PICTURES = 8  # sampled frames that get a picture


@dataclass(frozen=True)
class Summary:
    """What a drive came to; every count is of messages that another process received."""

    frames_published: int
    labels_received: int
    flow_received: int
    dropped: int  # images that the node received and left for a newer one
    latency_ms: dict[str, float]  # arrival of labels minus the image's stamp
    mean_iou: float | None  # None where there is no truth
    iou: dict[str, float | None]
    end_point_error_px: float | None
    zero_flow_error_px: float | None
    label_set: str  # in which labels were compared
    device: dict[str, str]
    weights: dict[str, str]

    def as_dict(self) -> dict[str, object]:
        """Return the content of summary.json."""
        return asdict(self)


def playable_bag(bag: Path, copy: Path) -> Path:
    """
    Return a bag that can be watched: this one, or a copy of its images alone.

    A copy is made of a bag whose images have no stamps, or come long after its first message.

    :param bag: any bag.
    :param copy: where the copy goes.
    :raises InputError: it cannot be read, or holds no image.
    """
    with Bag(bag) as opened:
        topic = image_topic(opened)
        first = next(iter(opened.messages([topic])), None)
        if first is None:
            raise InputError(f'{bag}: no image on {topic}')
        image = deserialize(first.data, opened.topics[topic].type_name)
        late = first.stamp_ns - opened.start_ns > QUIET_S * 1e9
    if not late and Time.from_msg(image.header.stamp).nanoseconds:
        return bag
    write_drive(copy, _frames(bag))
    return copy


def run_drive(bag: Path, received: Path, arguments: list[str]) -> Recording:
    """
    Launch the node and the player of a bag, and record what comes out until the bag is over.

    :param bag: the bag to play.
    :param received: new folder for the received images.
    :param arguments: more `name:=value` for the launch file.
    :raises RunError: nothing comes out, or the launch ends early.
    """
    with Bag(bag) as opened:
        topic = image_topic(opened)
        count = opened.topics[topic].count
        compressed = opened.topics[topic].type_name.endswith('CompressedImage')
    received.mkdir(parents=True)
    transport = f'image_transport:={"compressed" if compressed else "raw"}'
    camera = topic.removesuffix('/compressed') if compressed else topic
    command = launch_command(camera, f'bag:={bag.resolve()}', transport, *arguments)
    with (
        listening(lambda: Recorder(received, topic)) as (recorder, executor),
        running(command, received.with_name('launch.log')) as launch,
    ):
        try:
            _receive(executor, recorder, launch.process, count)
        except RunError as error:
            raise launch.failure(error) from error
    return recorder.recording


def _receive(
    executor: SingleThreadedExecutor,
    recorder: Recorder,
    process: 'subprocess.Popen[bytes]',
    count: int,
) -> None:
    """
    Spin until labels have stopped coming; show how far the drive is.

    :raises RunError: something has ended early, or no labels come.
    """
    started = time.monotonic()
    recording = recorder.recording
    with tqdm(total=count, unit='frame', desc='drive', mininterval=1.0) as bar:
        while not _is_over(recorder, time.monotonic() - started):
            spin_once(executor, 0.2)
            bar.update(len(recording.labels_ns) - bar.n)
            if process.poll() is not None:
                raise RunError(
                    f'the launch ended with {process.returncode} after '
                    f'{len(recording.labels_ns)} label images'
                )


def _is_over(recorder: Recorder, waited_s: float) -> bool:
    """
    Return whether the last labels have come.

    :param waited_s: since the launch.
    :raises RunError: none have come, and none will.
    """
    quiet_s = time.monotonic() - recorder.last_arrival
    if recorder.recording.labels_ns:
        return quiet_s > (QUIET_AFTER_PLAYER_S if recorder.player_has_gone else QUIET_S)
    if recorder.complaint_s > COMPLAINT_S:
        raise RunError(f'no labels; the node says: {recorder.complaint}')
    if recorder.player_has_gone and quiet_s > QUIET_S:
        raise RunError('no labels, and the player has gone')
    if waited_s > START_S:
        raise RunError(f'no labels within {START_S:.0f} s')
    return False


@dataclass(frozen=True)
class _Seen:
    """One image of the bag with its truth and what was received for it."""

    stamp_ns: int  # in the bag
    image: Image
    truth: Labels | None
    labels: Labels
    flow: Flow | None
    true_flow: tuple[Flow, Mask] | None


def judge(bag: Path, drive: Drive | None, recording: Recording, out: Path) -> Summary:
    """
    Compare what was received with the truth, and draw it.

    :param bag: what was played.
    :param drive: where its truth comes from; None for a foreign bag.
    :param out: folder for pictures and video.
    """
    label_set = drive.label_set if drive is not None else CITYSCAPES
    table = conversion(CITYSCAPES, label_set)
    matrix = ConfusionMatrix(len(label_set))
    error, nothing = EndPointError(), EndPointError()
    labelled = set(recording.labels_ns)
    sampled = set(recording.labels_ns[:: max(1, len(labelled) // PICTURES)])
    frames = 0
    with Video(out / 'drive.mp4', _rate_hz(recording)) as video:
        for frame in _frames(bag):
            frames += 1
            stamp_ns = frame.stamp_ns + recording.offset_ns
            if stamp_ns not in labelled:
                continue
            labels = recording.labels(stamp_ns)
            if frame.labels is not None:
                matrix.add(table[labels], frame.labels)
            flow, truth = _flow(recording, drive, stamp_ns)
            if flow is not None and truth is not None:
                error.add(flow, *truth)
                nothing.add(np.zeros_like(flow), *truth)
            picture = _picture(frame, labels, flow, truth, label_set)
            video.add(picture)
            if stamp_ns in sampled:
                save_picture(out / f'frame_{frames - 1:05d}.png', picture)
    diagnostics = recording.diagnostics
    return Summary(
        frames_published=frames,
        labels_received=len(recording.labels_ns),
        flow_received=len(recording.flow_ns),
        dropped=int(diagnostics.get('images dropped', 0)),
        latency_ms=_percentiles(recording.latency_ms),
        mean_iou=_number(matrix.mean_iou),
        iou={
            name: _number(value)
            for name, value in zip(label_set.names, matrix.iou, strict=True)
            if matrix.counts.any()
        },
        end_point_error_px=_number(error.mean),
        zero_flow_error_px=_number(nothing.mean),
        label_set=label_set.name,
        device={name: diagnostics.get(f'{name} device', '') for name in ('segmentation', 'flow')},
        weights={
            name: diagnostics.get(f'{name} weights', '') for name in ('segmentation', 'flow')
        },
    )


def _frames(bag: Path) -> Iterator[DriveFrame]:
    """Read the images of a bag, each with the labels that stand beside it."""
    with Bag(bag) as opened:
        topic = image_topic(opened)
        truth_topic = f'{topic.rpartition("/")[0]}/labels_truth'
        labels: dict[int, Labels] = {}
        for message in opened.messages({topic, truth_topic} & set(opened.topics)):
            decoded = deserialize(message.data, opened.topics[message.topic].type_name)
            stamp_ns = Time.from_msg(decoded.header.stamp).nanoseconds or message.stamp_ns
            if message.topic == truth_topic:
                labels[stamp_ns] = message_to_labels(decoded)
                continue
            try:
                image = to_array(decoded)
            except InputError:
                continue  # the node has told about it
            yield DriveFrame(stamp_ns, image, labels.pop(stamp_ns, None))


def image_topic(bag: Bag) -> str:
    """
    Choose the camera topic of a bag: its first image topic that is no truth.

    :raises InputError: it has none.
    """
    topics = [topic for topic in bag.image_topics() if not topic.endswith('/labels_truth')]
    if not topics:
        raise InputError(f'{bag.path}: no image topic; its topics are {", ".join(bag.topics)}')
    return topics[0]


def _flow(
    recording: Recording, drive: Drive | None, stamp_ns: int
) -> tuple[Flow | None, tuple[Flow, Mask] | None]:
    """Return the flow that was received for a frame, and the true one where it is known."""
    previous_ns = recording.previous_ns.get(stamp_ns)
    if previous_ns is None or stamp_ns not in recording.flow_ns:
        return None, None
    flow = recording.flow(stamp_ns)
    if drive is None or drive.flow is None:
        return flow, None
    return flow, drive.flow(previous_ns - recording.offset_ns, stamp_ns - recording.offset_ns)


def _picture(
    frame: DriveFrame,
    labels: Labels,
    flow: Flow | None,
    truth: tuple[Flow, Mask] | None,
    label_set: LabelSet,
) -> Image:
    """Put image, labels and flow side by side, the truth below where there is any."""
    table = conversion(CITYSCAPES, label_set)
    nothing = np.full_like(frame.image, 255)
    largest = float(np.percentile(np.linalg.norm(flow, axis=-1), 99.5)) if flow is not None else 1
    range_px = max(largest, 1.0)
    flow_picture = nothing if flow is None else color_flow(flow, range_px)
    overlay = overlay_labels(frame.image, table[labels], label_set, 0.6)
    top = panel([('image', frame.image), ('labels', overlay), ('flow', flow_picture)])
    rows = [top]
    if frame.labels is not None or truth is not None:
        true_labels = nothing
        if frame.labels is not None:
            true_labels = color_labels(frame.labels, label_set)
        true_flow = nothing if truth is None else color_flow(truth[0], range_px)
        plain = color_labels(table[labels], label_set)
        rows.append(
            panel(
                [('labels alone', plain), ('true labels', true_labels), ('true flow', true_flow)]
            )
        )
    rows.append(legend(label_set, top.shape[1]))
    return np.vstack(rows)


def _rate_hz(recording: Recording) -> float:
    stamps = recording.labels_ns
    if len(stamps) < 2 or stamps[-1] <= stamps[0]:
        return 10.0
    return min(60.0, max(1.0, (len(stamps) - 1) * 1e9 / (stamps[-1] - stamps[0])))


def _percentiles(latency_ms: list[float]) -> dict[str, float]:
    p50, p95, p99 = np.percentile(latency_ms, (50, 95, 99))
    return {'p50': round(p50, 1), 'p95': round(p95, 1), 'p99': round(p99, 1)}


def _number(value: float) -> float | None:
    """Return a figure as JSON has it; what is undefined is null there."""
    return None if math.isnan(value) else round(float(value), 4)
