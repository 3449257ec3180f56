"""How the node is, told on `/diagnostics` once a second."""

from collections.abc import Callable

from dense_perception.ros.diagnostics import status, StreamStatistics
from dense_perception.ros.pipeline import Pipeline
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType  # type: ignore[attr-defined]  # there in every version
from rclpy.node import Node

_PERIOD_S = 1.0


class Health:
    """What is wrong with the node and its stream; the node sets the fields."""

    def __init__(
        self, node: Node, statistics: StreamStatistics, dropped: Callable[[], int]
    ) -> None:
        """
        Begin to tell.

        :param dropped: returns how many images newer ones have replaced so far.
        """
        self.failure = ''  # why the last attempt to configure or activate came to nothing
        self.other_quality = ''  # what a publisher of the image offers otherwise than asked
        self.topic = ''  # of the image; empty while the node is not active
        self.pipeline: Pipeline | None = None
        self._node, self._statistics, self._dropped = node, statistics, dropped
        self._publisher = node.create_publisher(DiagnosticArray, '/diagnostics', 10)
        # Not the node's own clock: without /clock, simulated time stands still.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        node.create_timer(_PERIOD_S, self._publish, clock=steady)

    def _publish(self) -> None:
        summary = self._statistics.summarise()
        level, text = self._judged(summary.new_bad, summary.last_error)
        values = summary.values(self._dropped()) + self._description()
        name = f'{self._node.get_fully_qualified_name()}: stream'
        array = DiagnosticArray(status=[status(level, name, text, values)])
        array.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(array)

    def _judged(self, new_bad: int, last_error: str) -> tuple[bytes, str]:
        """Say in a word how the stream is."""
        if self.failure:
            return DiagnosticStatus.ERROR, self.failure
        if self.pipeline is None:
            return DiagnosticStatus.STALE, 'not configured'
        if not self.topic:
            return DiagnosticStatus.STALE, 'configured, not active'
        if self._statistics.silence_s > self.pipeline.settings.silence_warning_s:
            return self._silence()
        if new_bad:
            return DiagnosticStatus.WARN, f'{new_bad} bad image(s): {last_error}'
        if self.pipeline.untrained():
            return DiagnosticStatus.WARN, untrained_warning(self.pipeline)
        return DiagnosticStatus.OK, 'running'

    def _silence(self) -> tuple[bytes, str]:
        """Say why no image arrives."""
        publishers = self._node.count_publishers(self.topic)
        if publishers == 0:
            return DiagnosticStatus.WARN, f'nobody publishes {self.topic}'
        return DiagnosticStatus.ERROR, (
            f'{publishers} publisher(s) of {self.topic}, but no image arrives. '
            + (
                self.other_quality
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
        }
        predictors = pipeline.predictors()
        for name in ('segmentation', 'flow', 'proposal'):
            choice, predictor = pipeline.choices.get(name), predictors.get(name)
            rows[f'{name} network'] = choice.card.network if choice else 'off'
            rows[f'{name} weights'] = (choice.weights or 'untrained') if choice else ''
            rows[f'{name} device'] = str(predictor.placement) if predictor else 'off'
        return [KeyValue(key=key, value=value) for key, value in rows.items()]


def untrained_warning(pipeline: Pipeline) -> str:
    """Say which networks have random weights."""
    return (
        f'untrained: {", ".join(pipeline.untrained())}; no weights were given, so weights are '
        'random and results mean nothing'
    )
