"""What is done with messages around the networks, as calls that can be timed."""

from collections.abc import Callable
from typing import Any

from dense_perception.arrays import Image
from dense_perception.evaluation.stages import Call, Calls
from dense_perception.ros.messages import color_message, flow_message, labels_message, to_array
import numpy as np
from rclpy.serialization import deserialize_message, serialize_message
from std_msgs.msg import Header

BAYER = 'bayer_rggb8'


def incoming(image: Image) -> Calls:
    """
    Return what the node does with an image until the networks take it.

    :param image: (H, W, 3) uint8 RGB, what the camera sees.
    :returns: receive, from the CDR bytes of its message to the message; decode, from there to
        RGB; for rgb8, which is only viewed, and for a Bayer pattern.
    """
    header = Header(frame_id='camera')
    mosaic = labels_message(_mosaic(image), header)
    mosaic.encoding = BAYER
    messages = {'rgb8': color_message(image, header), BAYER: mosaic}
    receive = {
        f'receive {encoding}': _always(
            deserialize_message, serialize_message(message), type(message)
        )
        for encoding, message in messages.items()
    }
    decode = {
        f'decode {encoding}': _always(to_array, message) for encoding, message in messages.items()
    }
    return {**receive, **decode}


def outgoing(image: Image) -> Calls:
    """
    Return what the node does with results on an image's grid.

    :param image: (H, W, 3) uint8; the results are made of its numbers.
    :returns: encode, from arrays to messages; serialise, from there to CDR bytes, which is what
        publishing costs before the network.
    """
    header = Header(frame_id='camera')
    labels = np.ascontiguousarray(image[:, :, 0])
    flow = image[:, :, :2].astype(np.float32)
    labelled, moved = labels_message(labels, header), flow_message(flow, header)
    return {
        'encode labels': _always(labels_message, labels, header),
        'encode flow': _always(flow_message, flow, header),
        'serialise labels': _always(serialize_message, labelled),
        'serialise flow': _always(serialize_message, moved),
    }


def _always(function: Callable[..., object], *arguments: Any) -> Call:
    """Return a call that does the same in each round."""
    return lambda _: function(*arguments)


def _mosaic(image: Image) -> Image:
    """Return what a camera with red, green / green, blue filters gives; (H, W) uint8."""
    mosaic = image[:, :, 1].copy()
    mosaic[::2, ::2] = image[::2, ::2, 0]
    mosaic[1::2, 1::2] = image[1::2, 1::2, 2]
    return mosaic
