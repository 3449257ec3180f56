"""
The perception node: camera topics in; label, flow and proposal images out.

Subscription callbacks only store the newest image; one thread runs the networks, so a slow network
costs images, never latency.
"""

from collections.abc import Callable, Sequence
from functools import partial
import gc
import sys
import time
import traceback
from typing import Any

from dense_perception.errors import DensePerceptionError, SettingError
from dense_perception.ros.camera import Camera
from dense_perception.ros.diagnostics import explain
from dense_perception.ros.health import Health, untrained_warning
from dense_perception.ros.inference import Inference
from dense_perception.ros.outputs import destroy_outputs, Outputs
from dense_perception.ros.parameters import (
    change_settings,
    check_parameters,
    declare_parameters,
    read_parameters,
    rejected,
)
from dense_perception.ros.pipeline import load_pipeline, Pipeline, prepare_engines, warm_up
from dense_perception.ros.serving import run, serve
from dense_perception.settings import PerceptionSettings
from rcl_interfaces.msg import ParameterDescriptor, SetParametersResult
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter


class PerceptionNode(LifecycleNode):
    """Lifecycle node that labels camera streams and estimates their optical flow."""

    def __init__(self, **options: Any) -> None:
        super().__init__('dense_perception', **options)
        declare_parameters(self, PerceptionSettings)
        automatic = 'configure and activate when the process starts; false: wait to be told'
        self.declare_parameter('autostart', False, ParameterDescriptor(description=automatic))
        self.cameras: list[Camera] = []
        self._pipeline: Pipeline | None = None  # while configured
        self._inference: Inference | None = None  # while active
        self._name_cameras(self._first_names())
        self._health = Health(self, self.cameras)
        self.add_on_set_parameters_callback(self._on_parameters)

    def start(self) -> None:
        """Configure and activate at once; a failure is logged, and leaves the state before it."""
        configured = self.trigger_configure() == TransitionCallbackReturn.SUCCESS
        if configured and self.context.ok():  # loading takes long enough to be interrupted
            self.trigger_activate()

    def serve(self, executor: SingleThreadedExecutor) -> None:
        """Serve until the context ends; an error in a callback is told and is no end."""
        serve(self, executor, self._health.note)

    def close(self) -> None:
        """Stop the inference without a transition; the context may have ended already."""
        self._stop()

    def _first_names(self) -> Sequence[str]:
        """Return the names that diagnostics begin with; what is wrong is told on configuring."""
        try:
            return read_parameters(self, PerceptionSettings).cameras
        except SettingError:
            return ()

    def _name_cameras(self, names: Sequence[str]) -> None:
        """Have cameras of these names; the counts of those that there were go on."""
        known = {camera.name: camera for camera in self.cameras}
        self.cameras[:] = [known.get(name) or Camera(self, name) for name in names or ('',)]

    # Lifecycle. rclpy turns an exception in a transition into ERROR without a word, so each
    # transition tells its own failure.

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the networks, build engines, warm all up and make the outputs."""
        return self._change('configured', self._configure, self._release)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Listen to the cameras and start the inference."""
        deactivate = partial(self._deactivate, state)
        return self._change('activated', partial(self._activate, state), deactivate)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop listening, let the images in work be finished."""
        return self._change('deactivated', partial(self._deactivate, state))

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Let go of networks and outputs."""
        return self._change('cleaned up', self._release)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop and let go of everything."""
        return self._change('shut down', self._let_go)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Go back to unconfigured, so that the node can be configured again."""
        if self.context.ok():  # else interrupted in the middle
            failure = self._health.failure
            self.get_logger().error(f'a transition failed; everything is let go: {failure}')
        if self._tried('cannot be let go; the process must be started again', self._let_go):
            return TransitionCallbackReturn.SUCCESS
        return TransitionCallbackReturn.FAILURE

    def _change(
        self, what: str, act: Callable[[], None], undo: Callable[[], None] | None = None
    ) -> TransitionCallbackReturn:
        """
        Go through a transition; where that fails, tell why.

        :param undo: leads back to the state before; None: there is no way back, and rclpy calls
            `on_error`.
        """
        if self._tried(f'cannot be {what}', act):
            self._health.failure = ''
            return TransitionCallbackReturn.SUCCESS
        if undo is not None and self._tried(f'cannot be {what}, nor left as it was', undo):
            return TransitionCallbackReturn.FAILURE
        return TransitionCallbackReturn.ERROR

    def _tried(self, complaint: str, act: Callable[[], None]) -> bool:
        """Do something and return whether it went well; tell what it raises."""
        try:
            act()
        # Out of GPU memory, for example, or a bad QoS override.
        except Exception as error:  # noqa: BLE001
            if self.context.ok():  # else interrupted in the middle
                ours = isinstance(error, DensePerceptionError)
                self._health.failure = f'{complaint}: {explain(error)}'
                self._health.note(self._health.failure)
                details = '' if ours else f'\n{traceback.format_exc()}'
                self.get_logger().error(self._health.failure + details)
            return False
        return True

    def _configure(self) -> None:
        settings = read_parameters(self, PerceptionSettings)
        self._name_cameras(settings.cameras)
        pipeline = load_pipeline(settings, self._tell_of_engine)
        for camera in self.cameras:
            camera.outputs = Outputs(self, pipeline, camera.name)
        prepare_engines(pipeline)
        started = time.monotonic()
        warm_up(pipeline)
        for name, predictor in pipeline.predictors().items():
            self._say(f'{name}: {predictor.card.network} on {predictor.placement}')
        self._say(f'warm after {time.monotonic() - started:.1f} s')
        if pipeline.untrained():
            self.get_logger().warning(untrained_warning(pipeline))
        self._pipeline = self._health.pipeline = pipeline

    def _say(self, text: str) -> None:
        self.get_logger().info(text)

    def _tell_of_engine(self, note: str) -> None:
        """Log a note; told in the thread of the inference, it says that this gets on."""
        self._say(note)
        inference = self._inference
        if inference is not None:
            inference.worker.progress()

    def _activate(self, state: LifecycleState) -> None:
        assert self._pipeline is not None
        super().on_activate(state)
        self._inference = self._health.inference = Inference(self, self._pipeline)
        self._inference.start()
        compressed = self._pipeline.settings.image_transport == 'compressed'
        for camera in self.cameras:
            assert camera.outputs is not None
            camera.outputs.publish_label_info()
            camera.listen(compressed=compressed, put=partial(self._inference.put, camera))
        topics = ', '.join(camera.topic for camera in self.cameras)
        self._say(f'active; listening to {topics}')

    def _deactivate(self, state: LifecycleState) -> None:
        self._stop()
        super().on_deactivate(state)

    def _stop(self) -> None:
        try:
            for camera in self.cameras:
                camera.stop()
        finally:
            if self._inference is not None:
                self._inference.stop()
                self._inference = self._health.inference = None

    def _release(self) -> None:
        self._pipeline = self._health.pipeline = None
        for camera in self.cameras:
            camera.outputs = None
        destroy_outputs(self)
        gc.collect()  # networks stand in cycles, and the collector may not look for hours

    def _let_go(self) -> None:
        self._stop()
        self._release()

    def _on_parameters(self, parameters: 'list[Parameter[Any]]') -> SetParametersResult:
        pipeline = self._pipeline
        try:
            if pipeline is None:
                check_parameters(PerceptionSettings, parameters)
            else:
                pipeline.settings = change_settings(pipeline.settings, parameters)
        except SettingError as error:
            return rejected(error)
        # Our own bug; raised further, it would leave the service without an answer.
        except Exception as error:  # noqa: BLE001
            self._health.note(f'parameters cannot be checked: {explain(error)}')
            self.get_logger().error(traceback.format_exc())
            return rejected(error)
        return SetParametersResult(successful=True)


def main(arguments: list[str] | None = None) -> int:
    """
    Run the node until it is told to stop; returns the exit status.

    The parameter `autostart` configures and activates it at once; otherwise a lifecycle manager
    or `ros2 lifecycle` does that.
    """
    return run(PerceptionNode, arguments, _begin)


def _begin(node: PerceptionNode) -> None:
    if node.get_parameter('autostart').value:
        node.start()


if __name__ == '__main__':
    sys.exit(main())
