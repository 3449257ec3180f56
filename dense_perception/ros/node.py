"""
The perception node: a camera topic in, label and flow images out.

Subscription callbacks only store the newest image; one worker thread runs the networks, so a slow
network costs images, never latency.
"""

from collections.abc import Callable
import sys
from threading import Thread
import time
import traceback
from typing import Any, TypeAlias, TypeVar

from dense_perception.arrays import Image
from dense_perception.data.pictures import color_flow, overlay_labels
from dense_perception.errors import DensePerceptionError, InputError, SettingError
from dense_perception.ros import messages
from dense_perception.ros.diagnostics import status, StreamStatistics
from dense_perception.ros.latest import Latest
from dense_perception.ros.parameters import (
    change_settings,
    check_parameters,
    declare_parameters,
    read_parameters,
    rejected,
)
from dense_perception.ros.pipeline import continues, load_networks, Pipeline, Previous, warm_up
from dense_perception.ros.process import keep_memory, quiet_interrupts
from dense_perception.ros.quality import camera_quality, latched_quality, result_quality
from dense_perception.settings import PerceptionSettings
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rcl_interfaces.msg import ParameterDescriptor, SetParametersResult
import rclpy
from rclpy.clock import Clock, ClockType  # type: ignore[attr-defined]  # there in every version
from rclpy.exceptions import (
    InvalidParameterTypeException,
    InvalidParameterValueException,
    ParameterException,
)
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.lifecycle.publisher import LifecyclePublisher
from rclpy.logging import get_logger
from rclpy.parameter import Parameter
from rclpy.qos import (
    qos_policy_name_from_kind,
)
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, CompressedImage, TimeReference
from sensor_msgs.msg import Image as ImageMessage
from std_msgs.msg import Header, String

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

_LABEL_OUTPUTS = ('labels', 'confidence', 'labels_color')
_FLOW_OUTPUTS = ('flow', 'flow_reference', 'flow_color')
_FRAME_OUTPUTS = (*_LABEL_OUTPUTS, *_FLOW_OUTPUTS, 'camera_info')  # one message for an image
_OTHER_TYPES = {'flow_reference': TimeReference, 'camera_info': CameraInfo}

CameraMessage: TypeAlias = ImageMessage | CompressedImage
Result = TypeVar('Result')


class PerceptionNode(LifecycleNode):
    """Lifecycle node that labels a camera stream and estimates its optical flow."""

    def __init__(self, **options: Any) -> None:
        super().__init__('dense_perception', **options)
        declare_parameters(self, PerceptionSettings)
        automatic = 'configure and activate when the process starts; false: wait to be told'
        self.declare_parameter('autostart', False, ParameterDescriptor(description=automatic))
        self.statistics = StreamStatistics()
        self._latest: Latest[CameraMessage] = Latest()
        self._dropped_before = 0  # by hand-overs that are closed
        self._pipeline: Pipeline | None = None
        self._worker: Thread | None = None
        self._subscriptions_while_active: list[Any] = []
        self._camera_info: CameraInfo | None = None
        self._active = False
        self._failure = ''  # why the last attempt to configure or activate came to nothing
        self._other_quality = ''  # what a publisher of the image offers otherwise than asked
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        # Not the node's own clock: without /clock, simulated time stands still.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(1.0, self._publish_diagnostics, clock=steady)
        self.add_on_set_parameters_callback(self._on_parameters)

    def start(self) -> None:
        """Configure and activate at once; a failure is logged, and leaves the state before it."""
        configured = self.trigger_configure() == TransitionCallbackReturn.SUCCESS
        if configured and self.context.ok():  # loading takes long enough to be interrupted
            self.trigger_activate()

    def close(self) -> None:
        """Stop the worker without a transition; the context may have ended already."""
        self._stop()

    # Lifecycle. rclpy turns an exception in a transition into ERROR without a word, so each
    # transition logs its own failure.

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the networks, warm them up and make the outputs."""
        try:
            self._configure()
        except Exception as error:  # noqa: BLE001 - out of GPU memory, for example
            self._destroy_outputs()
            return self._fail('cannot be configured', error)
        self._failure = ''
        return TransitionCallbackReturn.SUCCESS

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Listen to the camera and start the worker."""
        try:
            self._activate(state)
        except Exception as error:  # noqa: BLE001 - a bad QoS override, for example
            self._stop()
            super().on_deactivate(state)
            return self._fail('cannot be activated', error)
        self._failure = ''
        return TransitionCallbackReturn.SUCCESS

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop listening, let the worker finish its frame."""
        self._stop()
        result: TransitionCallbackReturn = super().on_deactivate(state)
        return result

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Let go of networks and outputs."""
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop and let go of everything."""
        self._stop()
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Go back to unconfigured, so that the node can be configured again."""
        self.get_logger().error('a transition failed; everything is let go')
        self._stop()
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def _fail(self, what: str, error: Exception) -> TransitionCallbackReturn:
        """Tell why a transition does not come about; the node stays in the state before it."""
        if not self.context.ok():  # interrupted in the middle
            return TransitionCallbackReturn.FAILURE
        self._failure = f'{what}: {_explain(error)}'
        details = '' if isinstance(error, DensePerceptionError) else f'\n{traceback.format_exc()}'
        self.get_logger().error(self._failure + details)
        self.statistics.note_error(self._failure)
        return TransitionCallbackReturn.FAILURE

    def _configure(self) -> None:
        settings = read_parameters(self, PerceptionSettings)
        pipeline = Pipeline(settings, *load_networks(settings))
        self._create_outputs(pipeline)
        started = time.monotonic()
        warm_up(pipeline)
        for name, predictor in pipeline.predictors().items():
            self.get_logger().info(f'{name}: {predictor.card.network} on {predictor.placement}')
        self.get_logger().info(f'warm after {time.monotonic() - started:.1f} s')
        self._pipeline = pipeline

    def _activate(self, state: LifecycleState) -> None:
        pipeline = self._pipeline
        assert pipeline is not None
        super().on_activate(state)
        self._publish_label_info(pipeline)
        pipeline.previous = None
        self._camera_info = None
        self._other_quality = ''
        self._latest = Latest()
        self._worker = Thread(target=self._work, args=(self._latest,), name='inference')
        self._worker.start()
        self._subscribe(pipeline.settings)
        self.statistics.restart_clock()
        self._active = True
        self.get_logger().info(f'active; listening to {self._image_topic()}')

    def _stop(self) -> None:
        self._active = False
        for subscription in self._subscriptions_while_active:
            self.destroy_subscription(subscription)
        self._subscriptions_while_active = []
        self._latest.close()
        if self._worker is not None:
            self._worker.join()
            self._worker = None
        self._dropped_before += self._latest.dropped
        self._latest = Latest()

    def _release(self) -> None:
        self._pipeline = None
        self._destroy_outputs()

    # Topics.

    def _create_outputs(self, pipeline: Pipeline) -> None:
        names = ['camera_info']
        names += _LABEL_OUTPUTS if pipeline.segmenter is not None else ()
        names += _FLOW_OUTPUTS if pipeline.flow_estimator is not None else ()
        for name in names:
            pipeline.outputs[name] = self.create_lifecycle_publisher(
                _OTHER_TYPES.get(name, ImageMessage),
                f'~/{name}',
                result_quality(),
                qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            )
        if pipeline.segmenter is None:
            return
        pipeline.outputs['label_info'] = self.create_lifecycle_publisher(
            String, '~/label_info', latched_quality()
        )
        vision = messages.label_info_message(pipeline.segmenter.label_set)
        if vision is not None:
            pipeline.outputs['label_info_vision'] = self.create_lifecycle_publisher(
                type(vision), '~/label_info/vision', latched_quality()
            )

    def _destroy_outputs(self) -> None:
        for publisher in list(self.publishers):
            if isinstance(publisher, LifecyclePublisher):
                self.destroy_lifecycle_publisher(publisher)

    def _publish_label_info(self, pipeline: Pipeline) -> None:
        if pipeline.segmenter is None:
            return
        label_set = pipeline.segmenter.label_set
        pipeline.outputs['label_info'].publish(String(data=messages.label_info_json(label_set)))
        header = Header(stamp=self.get_clock().now().to_msg())
        vision = messages.label_info_message(label_set, header)
        if vision is not None:
            pipeline.outputs['label_info_vision'].publish(vision)

    def _subscribe(self, settings: PerceptionSettings) -> None:
        compressed = settings.image_transport == 'compressed'
        image = self.create_subscription(
            CompressedImage if compressed else ImageMessage,
            'image/compressed' if compressed else 'image',
            self._on_image,
            camera_quality(),
            event_callbacks=SubscriptionEventCallbacks(incompatible_qos=self._on_other_quality),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )
        self._subscriptions_while_active = [image]
        info = self.create_subscription(
            CameraInfo,
            'camera_info',
            self._on_camera_info,
            camera_quality(),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )
        self._subscriptions_while_active.append(info)

    def _image_topic(self) -> str:
        """Full name of the topic that is listened to."""
        name: str = self._subscriptions_while_active[0].topic_name
        return name

    def _on_image(self, message: CameraMessage) -> None:
        self.statistics.count_received()
        self._latest.put(message)

    def _on_camera_info(self, message: CameraInfo) -> None:
        self._camera_info = message

    def _on_other_quality(self, event: Any) -> None:
        policy = qos_policy_name_from_kind(event.last_policy_kind)
        topic = self._image_topic()
        self._other_quality = (
            f'a publisher of {topic} offers another {policy} than is asked for; '
            f'set qos_overrides.{topic}.subscription.{policy.split("_")[0].lower()}'
        )
        self.get_logger().warning(self._other_quality)
        self.statistics.note_error(self._other_quality)

    # The worker.

    def _work(self, latest: Latest[CameraMessage]) -> None:
        while not latest.closed:
            message = latest.take()
            if message is None:
                continue
            try:
                self._process(message)
            except InputError as error:
                self._count_bad(str(error))
            # Whatever a frame brings, the next one is served: out of GPU memory, for example.
            except Exception as error:  # noqa: BLE001
                if not self.context.ok():  # interrupted while publishing
                    return
                self._count_bad(_explain(error))
                self.get_logger().error(traceback.format_exc(), throttle_duration_sec=10.0)

    def _count_bad(self, error: str) -> None:
        self.statistics.count_bad(error)
        self.get_logger().warning(f'image not used: {error}', throttle_duration_sec=1.0)

    def _process(self, message: CameraMessage) -> None:
        """Run the networks whose results somebody wants, and publish them."""
        pipeline = self._pipeline
        assert pipeline is not None
        wanted = pipeline.wanted() & {*_FRAME_OUTPUTS}
        if not wanted.intersection(_FLOW_OUTPUTS):
            pipeline.previous = None  # flow of the next one who wants it begins anew
        if not wanted:
            return
        image = messages.to_array(message)
        if wanted.intersection(_LABEL_OUTPUTS):
            self._publish_labels(pipeline, message.header, image, wanted)
        if wanted.intersection(_FLOW_OUTPUTS):
            self._publish_flow(pipeline, message.header, image, wanted)
        if 'camera_info' in wanted:
            self._publish_camera_info(pipeline, message.header, image)
        age = self.get_clock().now() - Time.from_msg(message.header.stamp)
        self.statistics.count_processed(age.nanoseconds / 1e9)

    def _publish_labels(
        self, pipeline: Pipeline, header: Header, image: Image, wanted: set[str]
    ) -> None:
        segmenter = pipeline.segmenter
        assert segmenter is not None
        confidence = 'confidence' in wanted
        result = self._timed(
            'segmentation', lambda: segmenter.segment(image, confidence=confidence)
        )
        if 'labels' in wanted:
            pipeline.outputs['labels'].publish(messages.labels_message(result.labels, header))
        if result.confidence is not None:
            message = messages.labels_message(result.confidence, header)
            pipeline.outputs['confidence'].publish(message)
        if 'labels_color' in wanted:
            opacity = pipeline.settings.overlay_opacity
            picture = overlay_labels(image, result.labels, segmenter.label_set, opacity)
            pipeline.outputs['labels_color'].publish(messages.color_message(picture, header))

    def _publish_flow(
        self, pipeline: Pipeline, header: Header, image: Image, wanted: set[str]
    ) -> None:
        estimator = pipeline.flow_estimator
        assert estimator is not None
        previous = pipeline.previous
        pipeline.previous = Previous(image, header.stamp)
        if previous is None or not continues(previous, pipeline.previous, pipeline.settings):
            self.statistics.count_flow_restart()
            return
        flow = self._timed('flow', lambda: estimator.estimate(previous.image, image))
        if 'flow' in wanted:
            pipeline.outputs['flow'].publish(messages.flow_message(flow, header))
        if 'flow_reference' in wanted:
            pipeline.outputs['flow_reference'].publish(
                TimeReference(header=header, time_ref=previous.stamp, source='previous frame')
            )
        if 'flow_color' in wanted:
            picture = color_flow(flow, pipeline.settings.flow_color_range_px)
            pipeline.outputs['flow_color'].publish(messages.color_message(picture, header))

    def _timed(self, network: str, run: Callable[[], Result]) -> Result:
        """Run a network and count the run and its time."""
        started = time.monotonic()
        result = run()
        self.statistics.count_run(network, time.monotonic() - started)
        return result

    def _publish_camera_info(self, pipeline: Pipeline, header: Header, image: Image) -> None:
        if self._camera_info is None:
            return
        height, width = image.shape[:2]
        try:
            info = messages.scale_camera_info(self._camera_info, width, height)
        except InputError as error:
            self.statistics.note_error(str(error))
            self.get_logger().warning(f'camera_info not used: {error}', throttle_duration_sec=5.0)
            return
        info.header = header
        pipeline.outputs['camera_info'].publish(info)

    # Parameters and diagnostics.

    def _on_parameters(self, parameters: 'list[Parameter[Any]]') -> SetParametersResult:
        pipeline = self._pipeline
        try:
            if pipeline is None:
                check_parameters(PerceptionSettings, parameters)
            else:
                pipeline.settings = change_settings(pipeline.settings, parameters)
        except SettingError as error:
            return rejected(error)
        return SetParametersResult(successful=True)

    def _publish_diagnostics(self) -> None:
        summary = self.statistics.summarise()
        dropped = self._dropped_before + self._latest.dropped
        level, text = self._health(summary.new_bad, summary.last_error)
        values = summary.values(dropped) + self._description()
        array = DiagnosticArray(
            status=[status(level, f'{self.get_fully_qualified_name()}: stream', text, values)]
        )
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array)

    def _health(self, new_bad: int, last_error: str) -> tuple[bytes, str]:
        """Say in a word how the stream is."""
        if self._failure:
            return DiagnosticStatus.ERROR, self._failure
        if self._pipeline is None:
            return DiagnosticStatus.STALE, 'not configured'
        if not self._active:
            return DiagnosticStatus.STALE, 'configured, not active'
        if self.statistics.silence_s > self._pipeline.settings.silence_warning_s:
            return self._silence()
        if new_bad:
            return DiagnosticStatus.WARN, f'{new_bad} bad image(s): {last_error}'
        return DiagnosticStatus.OK, 'running'

    def _silence(self) -> tuple[bytes, str]:
        """Say why no image arrives."""
        topic = self._image_topic()
        publishers = self.count_publishers(topic)
        if publishers == 0:
            return DiagnosticStatus.WARN, f'nobody publishes {topic}'
        return DiagnosticStatus.ERROR, (
            f'{publishers} publisher(s) of {topic}, but no image arrives. '
            + (
                self._other_quality
                or 'Stopped camera, other message type, or images too large for the middleware: '
                'its shared memory must hold several (see fastdds_large_images.xml)'
            )
        )

    def _description(self) -> list[KeyValue]:
        """Device, precision and weights, as names and values."""
        pipeline = self._pipeline
        if pipeline is None:
            return []
        rows = {
            'segmentation weights': pipeline.settings.segmentation_weights,
            'flow weights': pipeline.settings.flow_weights,
        }
        rows |= {'segmentation device': 'off', 'flow device': 'off'}
        for name, predictor in pipeline.predictors().items():
            rows[f'{name} device'] = str(predictor.placement)
        return [KeyValue(key=key, value=value) for key, value in rows.items()]


def _explain(error: Exception) -> str:
    """Say what went wrong; the type of an error that is not ours says more than its text."""
    ours = isinstance(error, DensePerceptionError)
    return str(error) if ours else f'{type(error).__name__}: {error}'


def main(arguments: list[str] | None = None) -> int:
    """
    Run the node until it is told to stop; returns the exit status.

    The parameter `autostart` configures and activates it at once; otherwise a lifecycle manager
    or `ros2 lifecycle` does that.
    """
    keep_memory()
    with quiet_interrupts():
        return _main(arguments)


def _main(arguments: list[str] | None) -> int:
    rclpy.init(args=arguments)
    node: PerceptionNode | None = None
    try:
        node = PerceptionNode()
        _run(node)
    except (
        InvalidParameterTypeException,
        InvalidParameterValueException,
        ParameterException,
    ) as error:
        get_logger('dense_perception').fatal(str(error))
        return 1
    except ExternalShutdownException:
        pass
    except Exception:
        if rclpy.ok():  # else interrupted in the middle of something
            raise
    finally:
        if node is not None:
            node.close()
            node.destroy_node()
        rclpy.try_shutdown()
    return 0


def _run(node: PerceptionNode) -> None:
    """Serve until the context ends."""
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    if node.get_parameter('autostart').value:
        node.start()
    executor.spin()


if __name__ == '__main__':
    sys.exit(main())
