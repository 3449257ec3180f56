"""Labels and flow as `sensor_msgs/CompressedImage`, and back."""

from dense_perception.arrays import Flow, Labels, Mask
from dense_perception.errors import InputError
from dense_perception.predictors.compression import (
    decode_flow,
    decode_labels,
    encode_flow,
    encode_labels,
)
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Header

# `format` of the compressed outputs, as image_transport writes it: encoding, and how it is packed.
LABELS_FORMAT = 'mono8; png compressed'
# KITTI's coding: red u * 64 + 2^15, green v * 64 + 2^15, blue 1 where known.
FLOW_FORMAT = 'bgr16; png compressed bgr16; kitti flow'


def compressed_labels_message(labels: Labels, header: Header) -> CompressedImage:
    """
    Make the message of a label image as a grey PNG, which loses nothing.

    :param labels: (H, W) uint8.
    :param header: carried over as it is.
    """
    return _compressed_message(encode_labels(labels), header, LABELS_FORMAT)


def compressed_flow_message(flow: Flow, header: Header) -> CompressedImage:
    """
    Make the message of a flow field as KITTI's 16-bit PNG, in steps of 1/64 pixel.

    :param flow: (H, W, 2) float32, pixels; unknown where it is not finite, or not within -512 to
        511.98.
    :param header: carried over as it is.
    """
    return _compressed_message(encode_flow(flow), header, FLOW_FORMAT)


def compressed_to_labels(message: CompressedImage) -> Labels:
    """
    Read a label message such as `~/labels/compressed`.

    :returns: (H, W) uint8, as they were before.
    :raises InputError: not a grey 8-bit PNG, too large, cut short or damaged.
    """
    try:
        return decode_labels(bytes(message.data))
    except InputError as error:
        raise InputError(f'compressed labels {message.format[:60]!r}: {error}') from error


def compressed_to_flow(message: CompressedImage) -> tuple[Flow, Mask]:
    """
    Read a flow message such as `~/flow/compressed`.

    :returns: flow (H, W, 2) float32 in steps of 1/64 pixel, zero where unknown; known (H, W) bool.
    :raises InputError: no PNG with three 16-bit channels, too large, cut short or damaged.
    """
    try:
        return decode_flow(bytes(message.data))
    except InputError as error:
        raise InputError(f'compressed flow {message.format[:60]!r}: {error}') from error


def _compressed_message(data: bytes, header: Header, form: str) -> CompressedImage:
    """Copy bytes once into a new message; its own setter would check them one by one."""
    message = CompressedImage(header=header, format=form)
    message.data.frombytes(data)
    return message
