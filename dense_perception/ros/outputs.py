"""The topics on which the results of one camera go out."""

from typing import Any

from dense_perception.ros import messages
from dense_perception.ros.pipeline import Pipeline
from dense_perception.ros.quality import latched_quality, result_quality
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.lifecycle import LifecycleNode
from rclpy.lifecycle.publisher import LifecyclePublisher
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, TimeReference
from sensor_msgs.msg import Image as ImageMessage
from std_msgs.msg import Header, String

LABEL_OUTPUTS = ('labels', 'labels/compressed', 'confidence', 'labels_color')
FLOW_OUTPUTS = ('flow', 'flow/compressed', 'flow_reference', 'flow_color')
PROPOSAL_OUTPUTS = ('proposals',)
_OTHER_TYPES = {
    'labels/compressed': CompressedImage,
    'flow/compressed': CompressedImage,
    'flow_reference': TimeReference,
    'camera_info': CameraInfo,
}


class Outputs:
    """One lifecycle publisher for each result that the node's networks give of a camera."""

    def __init__(self, node: LifecycleNode, pipeline: Pipeline, camera: str = '') -> None:
        """
        Create the publishers.

        :param camera: its name, which is part of the topics; empty: they have none.
        """
        self._node, self._prefix = node, f'~/{camera}/' if camera else '~/'
        self._label_set = pipeline.segmenter.label_set if pipeline.segmenter else None
        self._publishers: dict[str, LifecyclePublisher[Any]] = {}
        self._group = MutuallyExclusiveCallbackGroup()  # the node's would keep a trace of each
        names = ['camera_info']
        names += LABEL_OUTPUTS if pipeline.segmenter else ()
        names += FLOW_OUTPUTS if pipeline.flow_estimator else ()
        names += PROPOSAL_OUTPUTS if pipeline.mask_proposer else ()
        for name in names:
            self._create(
                name,
                _OTHER_TYPES.get(name, ImageMessage),
                result_quality(),
                qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            )
        self._of_frames = frozenset(names)  # the others are published once
        if self._label_set is not None:
            self._create('label_info', String, latched_quality())
            vision = messages.label_info_message(self._label_set)
            if vision is not None:
                self._create('label_info/vision', type(vision), latched_quality())

    def _create(self, name: str, kind: type, quality: Any, **options: Any) -> None:
        topic = f'{self._prefix}{name}'
        self._publishers[name] = self._node.create_lifecycle_publisher(
            kind, topic, quality, callback_group=self._group, **options
        )

    def wanted(self) -> frozenset[str]:
        """Return the results, one message for an image each, that somebody subscribes to."""
        return frozenset(
            name for name in self._of_frames if self._publishers[name].get_subscription_count() > 0
        )

    def publish(self, name: str, message: Any) -> None:
        """Publish a result by the name of its topic."""
        self._publishers[name].publish(message)

    def publish_label_info(self) -> None:
        """Publish names and colours of the classes, for all who come later too."""
        if self._label_set is None:
            return
        self.publish('label_info', String(data=messages.label_info_json(self._label_set)))
        header = Header(stamp=self._node.get_clock().now().to_msg())
        vision = messages.label_info_message(self._label_set, header)
        if vision is not None:
            self.publish('label_info/vision', vision)


def destroy_outputs(node: LifecycleNode) -> None:
    """Destroy every lifecycle publisher of a node."""
    for publisher in list(node.publishers):
        if isinstance(publisher, LifecyclePublisher):
            node.destroy_lifecycle_publisher(publisher)
