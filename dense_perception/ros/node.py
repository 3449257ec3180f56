"""
The perception node: a camera topic in; label, flow and proposal images out.

Subscription callbacks only store the newest image; one thread runs the networks, so a slow network
costs images, never latency.
"""

import sys
import time
import traceback
from typing import Any

from dense_perception.errors import DensePerceptionError, SettingError
from dense_perception.ros.diagnostics import StreamStatistics
from dense_perception.ros.health import Health, untrained_warning
from dense_perception.ros.inference import CameraMessage, explain, Inference
from dense_perception.ros.outputs import destroy_outputs, Outputs
from dense_perception.ros.parameters import (
    change_settings,
    check_parameters,
    declare_parameters,
    read_parameters,
    rejected,
)
from dense_perception.ros.pipeline import load_pipeline, Pipeline, warm_up
from dense_perception.ros.process import keep_memory, quiet_interrupts
from dense_perception.ros.quality import camera_quality
from dense_perception.settings import PerceptionSettings
from rcl_interfaces.msg import ParameterDescriptor, SetParametersResult
import rclpy
from rclpy.exceptions import (
    InvalidParameterTypeException,
    InvalidParameterValueException,
    ParameterException,
)
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.logging import get_logger
from rclpy.parameter import Parameter
from rclpy.qos import qos_policy_name_from_kind
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage
from sensor_msgs.msg import Image as ImageMessage

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks


class PerceptionNode(LifecycleNode):
    """Lifecycle node that labels a camera stream and estimates its optical flow."""

    def __init__(self, **options: Any) -> None:
        super().__init__('dense_perception', **options)
        declare_parameters(self, PerceptionSettings)
        automatic = 'configure and activate when the process starts; false: wait to be told'
        self.declare_parameter('autostart', False, ParameterDescriptor(description=automatic))
        self.statistics = StreamStatistics()
        self._dropped_before = 0  # images, while the node was active before
        self._pipeline: Pipeline | None = None  # while configured
        self._outputs: Outputs | None = None
        self._inference: Inference | None = None  # while active
        self._subscriptions_while_active: list[Any] = []
        self._health = Health(self, self.statistics, self._dropped)
        self.add_on_set_parameters_callback(self._on_parameters)

    def start(self) -> None:
        """Configure and activate at once; a failure is logged, and leaves the state before it."""
        configured = self.trigger_configure() == TransitionCallbackReturn.SUCCESS
        if configured and self.context.ok():  # loading takes long enough to be interrupted
            self.trigger_activate()

    def close(self) -> None:
        """Stop the inference without a transition; the context may have ended already."""
        self._stop()

    # Lifecycle. rclpy turns an exception in a transition into ERROR without a word, so each
    # transition logs its own failure.

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the networks, warm them up and make the outputs."""
        try:
            self._configure()
        except Exception as error:  # noqa: BLE001 - out of GPU memory, for example
            destroy_outputs(self)
            return self._fail('cannot be configured', error)
        self._health.failure = ''
        return TransitionCallbackReturn.SUCCESS

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Listen to the camera and start the inference."""
        try:
            self._activate(state)
        except Exception as error:  # noqa: BLE001 - a bad QoS override, for example
            self._stop()
            super().on_deactivate(state)
            return self._fail('cannot be activated', error)
        self._health.failure = ''
        return TransitionCallbackReturn.SUCCESS

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop listening, let the image in work be finished."""
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
        failure = f'{what}: {explain(error)}'
        details = '' if isinstance(error, DensePerceptionError) else f'\n{traceback.format_exc()}'
        self.get_logger().error(failure + details)
        self.statistics.note_error(failure)
        self._health.failure = failure
        return TransitionCallbackReturn.FAILURE

    def _configure(self) -> None:
        settings = read_parameters(self, PerceptionSettings)
        pipeline = load_pipeline(settings)
        outputs = Outputs(self, pipeline)
        started = time.monotonic()
        warm_up(pipeline)
        for name, predictor in pipeline.predictors().items():
            self.get_logger().info(f'{name}: {predictor.card.network} on {predictor.placement}')
        self.get_logger().info(f'warm after {time.monotonic() - started:.1f} s')
        if pipeline.untrained():
            self.get_logger().warning(untrained_warning(pipeline))
        self._pipeline = self._health.pipeline = pipeline
        self._outputs = outputs

    def _activate(self, state: LifecycleState) -> None:
        assert self._pipeline is not None
        assert self._outputs is not None
        super().on_activate(state)
        self._outputs.publish_label_info()
        self._health.other_quality = ''
        self._inference = Inference(self, self._pipeline, self._outputs, self.statistics)
        self._inference.start()
        topic = self._subscribe(self._pipeline.settings)
        self.statistics.restart_clock()
        self._health.topic = topic
        self.get_logger().info(f'active; listening to {topic}')

    def _stop(self) -> None:
        self._health.topic = ''
        for subscription in self._subscriptions_while_active:
            self.destroy_subscription(subscription)
        self._subscriptions_while_active = []
        if self._inference is not None:
            self._inference.stop()
            self._dropped_before += self._inference.dropped
            self._inference = None

    def _release(self) -> None:
        self._pipeline = self._health.pipeline = None
        self._outputs = None
        destroy_outputs(self)

    def _dropped(self) -> int:
        """Images that newer ones replaced, since the node began."""
        return self._dropped_before + (self._inference.dropped if self._inference else 0)

    # The camera.

    def _subscribe(self, settings: PerceptionSettings) -> str:
        """Listen to the camera; return the full name of the image's topic."""
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
        topic: str = image.topic_name
        return topic

    def _on_image(self, message: CameraMessage) -> None:
        self.statistics.count_received()
        if self._inference is not None:
            self._inference.put(message)

    def _on_camera_info(self, message: CameraInfo) -> None:
        if self._inference is not None:
            self._inference.camera_info = message

    def _on_other_quality(self, event: Any) -> None:
        policy = qos_policy_name_from_kind(event.last_policy_kind)
        topic = self._subscriptions_while_active[0].topic_name
        warning = (
            f'a publisher of {topic} offers another {policy} than is asked for; '
            f'set qos_overrides.{topic}.subscription.{policy.split("_")[0].lower()}'
        )
        self._health.other_quality = warning
        self.get_logger().warning(warning)
        self.statistics.note_error(warning)

    # Parameters.

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
