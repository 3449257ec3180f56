"""How the node is, told on `/diagnostics` once a second."""

from collections.abc import Sequence
import time

from dense_perception.predictors.flow_estimator import FlowEstimator
from dense_perception.predictors.latency import Deadline
from dense_perception.predictors.segmenter import Segmenter
from dense_perception.ros.camera import Camera
from dense_perception.ros.diagnostics import status
from dense_perception.ros.inference import Inference
from dense_perception.ros.pipeline import Pipeline
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType  # type: ignore[attr-defined]  # there in every version
from rclpy.node import Node

_PERIOD_S = 1.0
_CLOCK_STANDS_S = 2.0  # seconds after which a simulated clock counts as stopped


class Health:
    """What is wrong with the node and its cameras; the node sets the fields."""

    def __init__(self, node: Node, cameras: Sequence[Camera]) -> None:
        """
        Begin to tell, with one status for each camera.

        :param cameras: at least one.
        """
        self.failure = ''  # why the last attempt to change the state came to nothing
        self.pipeline: Pipeline | None = None
        self.inference: Inference | None = None  # while active
        self.cameras = cameras
        self._trouble = ''  # of the node as a whole, since the last diagnostics
        # What the node's clock said last, and since when, in seconds of a clock that runs.
        self._clock = node.get_clock().now(), time.monotonic()
        self._node = node
        self._publisher = node.create_publisher(DiagnosticArray, '/diagnostics', 10)
        # Not the node's own clock: without /clock, simulated time stands still.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        node.create_timer(_PERIOD_S, self._publish, clock=steady)

    def note(self, error: str) -> None:
        """Tell of an error that concerns the node as a whole and has cost no image."""
        self._trouble = error
        for camera in self.cameras:
            camera.statistics.note_error(error)

    def _publish(self) -> None:
        trouble, self._trouble = self._trouble, ''
        now = self._node.get_clock().now()
        if now != self._clock[0]:
            self._clock = now, time.monotonic()
        array = DiagnosticArray(status=[self._of(camera, trouble) for camera in self.cameras])
        array.header.stamp = now.to_msg()
        self._publisher.publish(array)
        if self.inference is not None:
            self.inference.worker.check()

    def _of(self, camera: Camera, trouble: str) -> DiagnosticStatus:
        """Return the status of a camera."""
        summary = camera.statistics.summarise()
        bad = f'{summary.new_bad} bad image(s): {summary.last_error}' if summary.new_bad else ''
        level, text = self._judged(camera, trouble or bad)
        name = f'{self._node.get_fully_qualified_name()}: stream {camera.name}'.rstrip()
        return status(level, name, text, summary.values() + self._description())

    def _judged(self, camera: Camera, trouble: str) -> tuple[bytes, str]:
        """Say in a word how a stream is."""
        if self.failure:
            return DiagnosticStatus.ERROR, self.failure
        if self.pipeline is None:
            return DiagnosticStatus.STALE, 'not configured'
        if not camera.topic:
            return DiagnosticStatus.STALE, 'configured, not active'
        if waits := self.pipeline.waits_for_engine:  # which may take long, and is no hanging
            return DiagnosticStatus.WARN, f'images wait until an engine is built: {waits}'
        if self.inference is not None and (stopped := self.inference.worker.trouble):
            return DiagnosticStatus.ERROR, stopped
        if camera.statistics.silence_s > self.pipeline.settings.silence_warning_s:
            return self._silence(camera)
        deadline = self.pipeline.deadline
        if deadline and deadline.starved:
            return DiagnosticStatus.ERROR, f'no results: {deadline.reason}'
        if trouble:
            return DiagnosticStatus.WARN, trouble
        stands_s = time.monotonic() - self._clock[1]
        if stands_s > _CLOCK_STANDS_S:
            return DiagnosticStatus.WARN, (
                f'use_sim_time is set, and /clock has stood still for {stands_s:.0f} s: ages of '
                'results are wrong'
            )
        if self.pipeline.late:
            return DiagnosticStatus.WARN, f'results come too late: {self.pipeline.late}'
        if deadline and deadline.short:
            return DiagnosticStatus.WARN, f'images are made smaller: {deadline.reason}'
        if self.pipeline.untrained():
            return DiagnosticStatus.WARN, untrained_warning(self.pipeline)
        return DiagnosticStatus.OK, 'running'

    def _silence(self, camera: Camera) -> tuple[bytes, str]:
        """Say why no image arrives."""
        publishers = self._node.count_publishers(camera.topic)
        if publishers == 0:
            return DiagnosticStatus.WARN, f'nobody publishes {camera.topic}'
        return DiagnosticStatus.ERROR, (
            f'{publishers} publisher(s) of {camera.topic}, but no image arrives. '
            + (
                camera.other_quality
                or 'Stopped camera, other message type, or images too large for the middleware: '
                'its shared memory must hold several (see fastdds_large_images.xml)'
            )
        )

    def _description(self) -> list[KeyValue]:
        """Networks, weights, device and precision, as names and values."""
        pipeline = self.pipeline
        if pipeline is None:
            return []
        rows = {
            'refinement': pipeline.settings.refinement,
            'flow refinement': pipeline.settings.flow_refinement,
            'keyframe interval': str(pipeline.keyframe_interval),
            'labelling width': str(pipeline.labelling_width),
            'latency limit': pipeline.deadline.reason if pipeline.deadline else 'none',
        }
        if pipeline.deadline:
            rows |= _rungs(pipeline.deadline)
        predictors = pipeline.predictors()
        for name in ('segmentation', 'flow', 'proposal'):
            choice, predictor = pipeline.choices.get(name), predictors.get(name)
            rows[f'{name} network'] = choice.card.network if choice else 'off'
            rows[f'{name} weights'] = (choice.weights or 'untrained') if choice else ''
            rows[f'{name} device'] = str(predictor.placement) if predictor else 'off'
            if isinstance(predictor, Segmenter | FlowEstimator):
                rows[f'{name} engine'] = predictor.running
                rows[f'{name} engine note'] = predictor.engine_note
        return [KeyValue(key=key, value=value) for key, value in rows.items()]


def _rungs(deadline: Deadline) -> dict[str, str]:
    """Return the rung at present and what labels take on each, as warming up measured it."""
    times = zip(deadline.ladder, deadline.measured_s, strict=False)  # none for short memory
    rows = {f'labels with {rung} (ms)': f'{1e3 * time_s:.1f}' for rung, time_s in times}
    return {'latency rung': str(deadline.rung), **rows}


def untrained_warning(pipeline: Pipeline) -> str:
    """Say which networks have random weights."""
    return (
        f'untrained: {", ".join(pipeline.untrained())}; no weights were given, so weights are '
        'random and results mean nothing'
    )
