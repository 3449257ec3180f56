"""
Quality of service of the topics.

Profiles are made anew for each topic, because rclpy writes its overrides into them.
"""

from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy


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
