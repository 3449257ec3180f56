"""How a node is that looks at the outputs of a perception node: `/diagnostics`, once a second."""

from collections.abc import Callable
import time

from dense_perception.ros.consuming import Consumer, ConsumerSettings, Input
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType  # type: ignore[attr-defined]  # there in every version

_PERIOD_S = 1.0


class ConsumerHealth:
    """Tells which input is missing and how images fare."""

    def __init__(self, node: Consumer, describe: Callable[[], tuple[str, dict[str, str]]]) -> None:
        """
        Begin to tell.

        :param describe: returns a warning, empty for none, and names and values of its own.
        """
        self._node, self._describe = node, describe
        self._publisher = node.create_publisher(DiagnosticArray, '/diagnostics', 10)
        # Not the node's own clock: without /clock, simulated time stands still.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        node.create_timer(_PERIOD_S, self._publish, clock=steady)

    def _publish(self) -> None:
        summary = self._node.statistics.summarise()
        warning, rows = self._describe()
        level, text = self._judged(summary.new_bad, summary.last_error, warning)
        p50, p95, p99 = summary.ages_ms
        values = {
            'input rate (Hz)': f'{summary.input_rate_hz:.2f}',
            'output rate (Hz)': f'{summary.output_rate_hz:.2f}',
            'age p50 (ms)': f'{p50:.1f}',
            'age p95 (ms)': f'{p95:.1f}',
            'age p99 (ms)': f'{p99:.1f}',
            'images received': str(summary.received),
            'images processed': str(summary.processed),
            'images dropped': str(self._node.dropped),
            'bad images': str(summary.bad),
            'last error': summary.last_error,
            'wanted': ', '.join(sorted(self._node.wanted())) or 'nothing',
            **rows,
        }
        status = DiagnosticStatus(
            level=level,
            name=f'{self._node.get_fully_qualified_name()}: images',
            message=text,
            hardware_id='none',  # that of a perception node tells its own
            values=[KeyValue(key=key, value=value) for key, value in values.items()],
        )
        array = DiagnosticArray(status=[status])
        array.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(array)
        self._node.worker.check()

    def _judged(self, new_bad: int, last_error: str, warning: str) -> tuple[bytes, str]:
        """Say in a word how it is."""
        if trouble := self._node.worker.trouble:
            return DiagnosticStatus.ERROR, trouble
        for entry in self._node.inputs.values():
            if entry.needed and self._silent(entry):
                return self._silence(entry)
        if new_bad:
            return DiagnosticStatus.WARN, f'{new_bad} bad image(s): {last_error}'
        if self._node.waiting:
            return DiagnosticStatus.WARN, f'waiting for {self._node.waiting}'
        if warning:
            return DiagnosticStatus.WARN, warning
        return DiagnosticStatus.OK, 'running'

    def _silent(self, entry: Input) -> bool:
        if entry.once and entry.heard:
            return False
        limit_s = self._node.settings(ConsumerSettings).silence_warning_s
        return time.monotonic() - entry.heard_s > limit_s

    def _silence(self, entry: Input) -> tuple[bytes, str]:
        """Say why nothing arrives."""
        publishers = self._node.count_publishers(entry.topic)
        if publishers == 0:
            return DiagnosticStatus.WARN, f'nobody publishes {entry.topic}'
        return DiagnosticStatus.ERROR, (
            f'{publishers} publisher(s) of {entry.topic}, but nothing arrives. '
            + (
                entry.other_quality
                or 'The perception node is inactive or gets no image, or images are too large for '
                'the middleware (see fastdds_large_images.xml)'
            )
        )
