"""
Quality of service of the topics.

Profiles are made anew for each topic, because rclpy writes its overrides into them.
"""

from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from rclpy.qos import (
    DurabilityPolicy,
    qos_policy_name_from_kind,
    QoSProfile,
    ReliabilityPolicy,
)

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks


def camera_quality() -> QoSProfile:
    """Best effort and one deep: an older image is never wanted."""
    return QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)


def result_quality() -> QoSProfile:
    """Reliable, so that subscribers of either kind are served."""
    return QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)


def latched_quality() -> QoSProfile:
    """Kept for those who come later."""
    return QoSProfile(
        depth=1,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL,
    )


def other_quality(
    node: Node, topic: str, tell: Callable[[str], None]
) -> SubscriptionEventCallbacks:
    """
    Return callbacks of a subscription that log a publisher whose offer does not satisfy it.

    :param topic: as the node names it.
    :param tell: takes what is offered otherwise than asked, and what to set, in words.
    """
    name = node.resolve_topic_name(topic)

    def on_other_quality(event: Any) -> None:
        policy = qos_policy_name_from_kind(event.last_policy_kind)
        text = (
            f'a publisher of {name} offers another {policy} than is asked for; '
            f'set qos_overrides.{name}.subscription.{policy.split("_")[0].lower()}'
        )
        node.get_logger().warning(text)
        tell(text)

    return SubscriptionEventCallbacks(incompatible_qos=on_other_quality)
