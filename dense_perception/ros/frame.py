"""One image of a camera on its way through the networks."""

from dataclasses import dataclass

from dense_perception.arrays import Flow, Image
from dense_perception.data.pictures import color_flow, overlay_labels, write_legend
from dense_perception.errors import InputError
from dense_perception.labels import LabelSet
from dense_perception.predictors.compression import scaled_flow
from dense_perception.predictors.mask_proposer import Proposals
from dense_perception.predictors.segmenter import Segmentation
from dense_perception.ros import compressed, messages
from dense_perception.ros.camera import Camera, Previous
from dense_perception.ros.consuming import nanoseconds
from dense_perception.ros.outputs import Outputs
from dense_perception.settings import PerceptionSettings
from rclpy.clock import Clock
from sensor_msgs.msg import TimeReference
from std_msgs.msg import Header


@dataclass(frozen=True)
class Motion:
    """Flow to a frame from the one before."""

    flow: Flow
    previous: Previous


@dataclass(eq=False)
class Frame:
    """An image, whose it is, and what is wanted of it; publishes results with its header."""

    camera: Camera
    outputs: Outputs  # the camera's
    header: Header
    image: Image
    wanted: frozenset[str]  # names of outputs
    motion: Motion | None = None  # once it was estimated, unless flow begins anew here
    followed: bool = False  # whether the camera's `previous` is this one already

    def wants(self, *outputs: str) -> bool:
        """Whether one of these outputs is wanted."""
        return not self.wanted.isdisjoint(outputs)

    def publish_labels(
        self,
        result: Segmentation,
        label_set: LabelSet,
        settings: PerceptionSettings,
        clock: Clock | None = None,
    ) -> None:
        """
        Publish the wanted ones of `LABEL_OUTPUTS`.

        :param clock: the node's, by which the overlay tells the age of the image; None: it does
            not.
        """
        if self.wants('labels'):
            self.outputs.publish('labels', messages.labels_message(result.labels, self.header))
        if self.wants('labels/compressed'):
            packed = compressed.compressed_labels_message(result.labels, self.header)
            self.outputs.publish('labels/compressed', packed)
        if self.wants('confidence') and result.confidence is not None:
            message = messages.labels_message(result.confidence, self.header)
            self.outputs.publish('confidence', message)
        if self.wants('labels_color'):
            picture = overlay_labels(
                self.image, result.labels, label_set, settings.overlay_opacity
            )
            if settings.overlay_legend:
                write_legend(picture, result.labels, label_set, self._times(clock))
            self.outputs.publish('labels_color', messages.color_message(picture, self.header))

    def _times(self, clock: Clock | None) -> list[str]:
        """Return the stamp in seconds and, by a clock, how old it is, for people."""
        stamp = self.header.stamp
        times = [f'{stamp.sec}.{stamp.nanosec // 10**6:03d}']
        if clock is not None:
            times.append(f'age {(clock.now().nanoseconds - nanoseconds(stamp)) / 1e6:.0f} ms')
        return times

    def publish_flow(self, motion: Motion, settings: PerceptionSettings) -> None:
        """Publish the wanted ones of `FLOW_OUTPUTS`."""
        flow, previous = motion.flow, motion.previous
        scale = settings.flow_output_scale
        small = flow
        if scale < 1 and self.wants('flow', 'flow/compressed'):
            small = scaled_flow(flow, scale)
        if self.wants('flow'):
            self.outputs.publish('flow', messages.flow_message(small, self.header))
        if self.wants('flow/compressed'):
            packed = compressed.compressed_flow_message(small, self.header)
            self.outputs.publish('flow/compressed', packed)
        if self.wants('flow_reference'):
            reference = TimeReference(
                header=self.header, time_ref=previous.stamp, source='previous frame'
            )
            self.outputs.publish('flow_reference', reference)
        if self.wants('flow_color'):
            picture = color_flow(flow, settings.flow_color_range_px)
            self.outputs.publish('flow_color', messages.color_message(picture, self.header))

    def publish_proposals(self, proposals: Proposals) -> None:
        """Publish `~/proposals`, one byte for each pixel, as labels are."""
        message = messages.labels_message(proposals.ranks(), self.header)
        self.outputs.publish('proposals', message)

    def publish_camera_info(self) -> None:
        """
        Publish the camera's newest calibration for this image's size; nothing where it has none.

        :raises InputError: the calibration cannot be used.
        """
        if self.camera.info is None:
            return
        height, width = self.image.shape[:2]
        try:
            info = messages.scale_camera_info(self.camera.info, width, height)
        except InputError as error:
            raise InputError(f'camera_info not used: {error}') from error
        info.header = self.header
        self.outputs.publish('camera_info', info)
