"""Messages of what sectors of an image do."""

from array import array
import math
import sys

from dense_perception.geometry.approach import SectorMotion
from dense_perception.geometry.camera import Camera
import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import Image
from std_msgs.msg import Float32MultiArray, Header, MultiArrayDimension


def flow_rate(sectors: SectorMotion, camera: Camera, seconds: float) -> NDArray[np.float64]:
    """
    Return the mean flow of each sector without rotation, free of the camera's numbers.

    :param camera: that the flow was found with.
    :param seconds: between its images.
    :returns: (rows, columns, 2), 1 / s: change of x and y at z = 1, right and down. Near the
        middle of the image that is rad/s, and speed across the view by distance.
    """
    return sectors.flow_px / np.diag(camera.matrix)[:2] / seconds


def sectors_message(sectors: SectorMotion, rate: NDArray[np.float64], header: Header) -> Image:
    """
    Put all that is known of the sectors into one small 32FC4 image, with a header.

    :param rate: of `flow_rate`.
    :returns: rows by columns; flow right and down in 1 / s, divergence in 1 / s, time to contact
        in s.
    """
    parts = (rate, sectors.divergence_per_s[..., None], sectors.time_to_contact_s[..., None])
    values = np.concatenate(parts, axis=-1, dtype=np.float32, casting='same_kind')
    message = Image(header=header, encoding='32FC4')
    message.height, message.width = values.shape[:2]
    message.step = message.width * 16
    message.is_bigendian = sys.byteorder == 'big'
    message.data = array('B', values.tobytes())
    return message


def array_message(values: NDArray[np.float64]) -> Float32MultiArray:
    """
    Make the message of one value, or two, for each sector.

    :param values: (rows, columns) or (rows, columns, axes).
    """
    message = Float32MultiArray(data=array('f', values.astype(np.float32).tobytes()))
    for place, size in enumerate(values.shape):
        # Of std_msgs/MultiArrayLayout: elements from here on, this dimension's own among them.
        stride = math.prod(values.shape[place:])
        label = ('rows', 'columns', 'axes')[place]
        message.layout.dim.append(MultiArrayDimension(label=label, size=size, stride=stride))
    return message
