"""Image messages to and from arrays, and the messages that explain them."""

from dataclasses import dataclass
import json
import sys
from typing import Any

import cv2
from dense_perception.arrays import Flow, Image, Labels
from dense_perception.data.picture_files import MAX_PIXELS
from dense_perception.errors import InputError
from dense_perception.labels import LabelSet, UNLABELLED
from dense_perception.predictors.compression import decode_picture
import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import CameraInfo, CompressedImage, RegionOfInterest
from sensor_msgs.msg import Image as ImageMessage
from std_msgs.msg import Header

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Encoding:
    """How the pixels of one `sensor_msgs/Image` encoding lie in its data."""

    channels: int
    depth: int = 1  # bytes per sample; of 16 bits only the upper 8 are read
    conversion: int | None = None  # OpenCV colour conversion to RGB; None where it is RGB
    even_width: bool = False
    semi_planar: bool = False  # a chroma plane of half the height follows the luma plane


# OpenCV names a Bayer pattern by columns two and three of row two, ROS by columns one and two of
# rows one and two: rggb is BG.
_BAYER = {
    'rggb': cv2.COLOR_BayerBG2RGB,
    'bggr': cv2.COLOR_BayerRG2RGB,
    'gbrg': cv2.COLOR_BayerGR2RGB,
    'grbg': cv2.COLOR_BayerGB2RGB,
}

# sensor_msgs/image_encodings.hpp. The untyped ones have the order that OpenCV gives them.
ENCODINGS = {
    'rgb8': Encoding(3),
    'rgb16': Encoding(3, 2),
    'bgr8': Encoding(3, 1, cv2.COLOR_BGR2RGB),
    'bgr16': Encoding(3, 2, cv2.COLOR_BGR2RGB),
    'rgba8': Encoding(4, 1, cv2.COLOR_RGBA2RGB),
    'rgba16': Encoding(4, 2, cv2.COLOR_RGBA2RGB),
    'bgra8': Encoding(4, 1, cv2.COLOR_BGRA2RGB),
    'bgra16': Encoding(4, 2, cv2.COLOR_BGRA2RGB),
    'mono8': Encoding(1, 1, cv2.COLOR_GRAY2RGB),
    'mono16': Encoding(1, 2, cv2.COLOR_GRAY2RGB),
    '8UC1': Encoding(1, 1, cv2.COLOR_GRAY2RGB),
    '8UC3': Encoding(3, 1, cv2.COLOR_BGR2RGB),
    '8UC4': Encoding(4, 1, cv2.COLOR_BGRA2RGB),
    '16UC1': Encoding(1, 2, cv2.COLOR_GRAY2RGB),
    '16UC3': Encoding(3, 2, cv2.COLOR_BGR2RGB),
    '16UC4': Encoding(4, 2, cv2.COLOR_BGRA2RGB),
    'yuv422': Encoding(2, 1, cv2.COLOR_YUV2RGB_UYVY, even_width=True),
    'uyvy': Encoding(2, 1, cv2.COLOR_YUV2RGB_UYVY, even_width=True),
    'yuv422_yuy2': Encoding(2, 1, cv2.COLOR_YUV2RGB_YUY2, even_width=True),
    'yuyv': Encoding(2, 1, cv2.COLOR_YUV2RGB_YUY2, even_width=True),
    'nv12': Encoding(1, 1, cv2.COLOR_YUV2RGB_NV12, even_width=True, semi_planar=True),
    'nv21': Encoding(1, 1, cv2.COLOR_YUV2RGB_NV21, even_width=True, semi_planar=True),
    **{f'bayer_{pattern}8': Encoding(1, 1, code) for pattern, code in _BAYER.items()},
    **{f'bayer_{pattern}16': Encoding(1, 2, code) for pattern, code in _BAYER.items()},
}

# Of the encodings that this package writes, the type and number of channels.
_OUTPUTS = {'mono8': ('uint8', 1), 'rgb8': ('uint8', 3), '32FC2': ('float32', 2)}


def to_array(message: ImageMessage | CompressedImage) -> Image:
    """
    Convert either kind of image message to RGB; see the function of each kind.

    :raises InputError: as they do; or the stamp is before 0, which no clock of ROS 2 knows.
    """
    if message.header.stamp.sec < 0:
        raise InputError(f'image stamp is {message.header.stamp.sec} s; it must be 0 or later')
    if isinstance(message, CompressedImage):
        return compressed_to_array(message)
    return image_to_array(message)


def image_to_array(message: ImageMessage) -> Image:
    """
    Convert an image message to RGB.

    Padded rows and both byte orders are read. Of 16-bit samples the upper 8 bits are kept. Data
    beyond the last row is ignored. An rgb8 message without padding is not copied: the result is a
    read-only view of its data.

    :param message: any encoding of `ENCODINGS`; height and width are those of the picture, also
        for nv12 and nv21.
    :returns: (H, W, 3) uint8 RGB, contiguous.
    :raises InputError: an unknown encoding, an empty or absurd size, or data that is too short.
    """
    encoding = ENCODINGS.get(message.encoding)
    if encoding is None:
        raise InputError(
            f'image encoding is {message.encoding[:40]!r}; it must be one of '
            f'{", ".join(ENCODINGS)}'
        )
    rows = _rows(message, encoding)
    view = _samples(message, rows, encoding)
    if encoding.conversion is None:
        return np.ascontiguousarray(view)
    return _uint8(cv2.cvtColor(np.ascontiguousarray(view), encoding.conversion))


def compressed_to_array(message: CompressedImage) -> Image:
    """
    Decode a JPEG, PNG or WebP message to RGB, on the grid of the file.

    The size is read from the file's own header and bounded before anything is decoded; a file
    that was cut short is refused.

    :returns: (H, W, 3) uint8 RGB, contiguous.
    :raises InputError: neither JPEG nor PNG nor WebP, too large, cut short or damaged.
    """
    try:
        return decode_picture(bytes(message.data))
    except InputError as error:
        raise InputError(f'compressed image {message.format[:60]!r}: {error}') from error


def message_to_labels(message: ImageMessage) -> Labels:
    """
    Read a label message such as `~/labels`.

    :param message: mono8 or 8UC1.
    :returns: (H, W) uint8; a read-only view of the data where rows are not padded.
    :raises InputError: another encoding, or sizes that contradict each other.
    """
    if message.encoding not in ('mono8', '8UC1'):
        raise InputError(f'label encoding is {message.encoding[:40]!r}; it must be mono8')
    encoding = Encoding(1)
    rows = _rows(message, encoding)
    return np.ascontiguousarray(_samples(message, rows, encoding))


def message_to_flow(message: ImageMessage) -> Flow:
    """
    Read a flow message such as `~/flow`.

    :param message: 32FC2, either byte order.
    :returns: (H, W, 2) float32; a read-only view of the data where rows are not padded.
    :raises InputError: another encoding, or sizes that contradict each other.
    """
    if message.encoding != '32FC2':
        raise InputError(f'flow encoding is {message.encoding[:40]!r}; it must be 32FC2')
    encoding = Encoding(2, 4)
    _rows(message, encoding)
    order = '>' if message.is_bigendian else '<'
    view = np.ndarray(
        (message.height, message.width, 2),
        np.dtype(f'{order}f4'),
        _buffer(message),
        strides=(message.step, 8, 4),
    )
    view.flags.writeable = False
    return np.ascontiguousarray(view, np.float32)


def labels_message(labels: Labels, header: Header) -> ImageMessage:
    """
    Make the mono8 message of a label or confidence image.

    :param labels: (H, W) uint8.
    :param header: carried over as it is.
    """
    return _image_message(labels, header, 'mono8')


def color_message(image: Image, header: Header) -> ImageMessage:
    """
    Make the rgb8 message of an image.

    :param image: (H, W, 3) uint8 RGB.
    :param header: carried over as it is.
    """
    return _image_message(image, header, 'rgb8')


def flow_message(flow: Flow, header: Header) -> ImageMessage:
    """
    Make the 32FC2 message of a flow field.

    :param flow: (H, W, 2) float32, pixels.
    :param header: carried over as it is.
    """
    return _image_message(flow, header, '32FC2')


def scale_camera_info(info: CameraInfo, width: int, height: int) -> CameraInfo:
    """
    Describe the same camera on an image of another size.

    Binning and region of interest are folded into K and P, so the result describes a whole image
    without either. The centre of a pixel has whole coordinates, as in OpenCV: the principal point
    moves by half a pixel as well as by the factor. D and R do not depend on the size. A P of zeros
    stays one.

    :param info: the source camera's, for its full resolution as the message defines it.
    :param width: of the described image, pixels.
    :param height: of the described image, pixels.
    :raises InputError: a size of zero, a number that is not finite, or an uncalibrated camera.
    """
    _check_camera(info)
    if width <= 0 or height <= 0:
        raise InputError(f'camera info for an image of {width} x {height}; both must be over 0')
    scale_x = width / (info.roi.width or info.width)
    scale_y = height / (info.roi.height or info.height)
    transform = np.array(
        [
            [scale_x, 0, (0.5 - info.roi.x_offset) * scale_x - 0.5],
            [0, scale_y, (0.5 - info.roi.y_offset) * scale_y - 0.5],
            [0, 0, 1],
        ]
    )
    with np.errstate(over='ignore', invalid='ignore'):  # checked below
        k = transform @ np.reshape(info.k, (3, 3))
        p = transform @ np.reshape(info.p, (3, 4))
    if not (np.isfinite(k).all() and np.isfinite(p).all()):
        raise InputError(
            f'camera info for an image of {width} x {height} is not finite; '
            f'k is {info.k.tolist()}, p {info.p.tolist()}'
        )
    return CameraInfo(
        header=info.header,
        width=width,
        height=height,
        distortion_model=info.distortion_model,
        d=info.d,
        k=k.ravel(),
        r=info.r,
        p=p.ravel(),
        roi=RegionOfInterest(do_rectify=info.roi.do_rectify),
    )


def label_info_json(label_set: LabelSet) -> str:
    """Describe a label set as JSON, the content of the String on `~/label_info`."""
    return json.dumps(
        {
            'schema': 1,
            'name': label_set.name,
            'ignored': UNLABELLED,
            'classes': [
                {'id': index, 'name': entry.name, 'color': list(entry.color)}
                for index, entry in enumerate(label_set.classes)
            ],
        }
    )


def label_info_message(label_set: LabelSet, header: Header | None = None) -> Any:
    """
    Describe a label set as `vision_msgs/LabelInfo`.

    :returns: the message, or None where vision_msgs is not installed.
    """
    try:
        from vision_msgs.msg import LabelInfo, VisionClass
    except ImportError:
        return None
    message = LabelInfo(header=header or Header())
    message.class_map = [
        VisionClass(class_id=index, class_name=name) for index, name in enumerate(label_set.names)
    ]
    return message


def _rows(message: ImageMessage, encoding: Encoding) -> int:
    """Check every size that the message claims and return its number of data rows."""
    width, height, step = message.width, message.height, message.step
    name = message.encoding
    _check_size(width, height, f'{name} image')
    if encoding.even_width and (width % 2 or (encoding.semi_planar and height % 2)):
        raise InputError(f'{name} image is {width} x {height}; colour pairs need even sizes')
    row = width * encoding.channels * encoding.depth
    if step < row:
        raise InputError(f'{name} image {width} wide has step {step}; it must be {row} or more')
    rows: int = height + height // 2 if encoding.semi_planar else height
    if len(message.data) < step * rows:
        raise InputError(
            f'{name} image of {width} x {height} and step {step} has {len(message.data)} bytes '
            f'of data; it must have {step * rows}'
        )
    return rows


def _check_size(width: int, height: int, name: str) -> None:
    if width == 0 or height == 0:
        raise InputError(f'{name} is {width} x {height}; both sizes must be over 0')
    if width * height > MAX_PIXELS:
        raise InputError(f'{name} is {width} x {height}; at most {MAX_PIXELS} pixels are taken')


def _samples(message: ImageMessage, rows: int, encoding: Encoding) -> Bytes:
    """View the data as (rows, W) or (rows, W, channels) bytes, the upper byte of each sample."""
    upper = 0 if message.is_bigendian else encoding.depth - 1
    pixel = encoding.channels * encoding.depth
    view: Bytes = np.ndarray(
        (rows, message.width, encoding.channels),
        np.uint8,
        _buffer(message),
        offset=upper,
        strides=(message.step, pixel, encoding.depth),
    )
    view.flags.writeable = False
    return view[:, :, 0] if encoding.channels == 1 else view


def _buffer(message: ImageMessage) -> memoryview:
    return memoryview(message.data).cast('B')


def _uint8(picture: Any) -> Image:
    """Give an OpenCV result, typed as any number, the type that its conversion has."""
    assert picture.dtype == np.uint8
    image: Image = picture
    return image


def _image_message(pixels: NDArray[Any], header: Header, encoding: str) -> ImageMessage:
    """Copy pixels once into a new message; its own setter would check them one by one."""
    kind, channels = _OUTPUTS[encoding]
    shape = pixels.shape if pixels.ndim == 3 else (*pixels.shape, 1)
    if pixels.dtype != kind or len(shape) != 3 or shape[2] != channels or pixels.size == 0:
        raise InputError(
            f'{encoding} message from {pixels.shape} {pixels.dtype}; '
            f'it must be {channels} channel(s) of {kind}, not empty'
        )
    message = ImageMessage(header=header, encoding=encoding)
    message.height, message.width = shape[:2]
    message.step = shape[1] * channels * pixels.itemsize
    message.is_bigendian = sys.byteorder == 'big'
    message.data.frombytes(np.ascontiguousarray(pixels).data.cast('B'))
    return message


def _check_camera(info: CameraInfo) -> None:
    if info.width == 0 or info.height == 0:
        raise InputError(
            f'camera info is for {info.width} x {info.height}; both sizes must be over 0'
        )
    for name in ('d', 'k', 'r', 'p'):
        values = np.asarray(getattr(info, name), np.float64)
        if not np.isfinite(values).all():
            raise InputError(f'camera info {name} is {values.tolist()}; all must be finite')
    if info.k[0] <= 0 or info.k[4] <= 0:
        raise InputError(
            f'camera info has focal lengths {info.k[0]} and {info.k[4]}; '
            'both must be over 0, is the camera calibrated?'
        )
