"""The only crossing between image arrays and tensors."""

from collections.abc import Sequence
from typing import Any

import cv2
from dense_perception.arrays import Flow, Image
from dense_perception.errors import InputError
from dense_perception.weights.checkpoint import Preprocessing
import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor
import torch.nn.functional as F


def check_image(image: Image) -> None:
    """
    Refuse an array that is no RGB image.

    :raises InputError: it is not (H, W, 3) uint8, or has no pixels.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise InputError(f'image is {image.shape} {image.dtype}; (H, W, 3) uint8 is needed')


def images_to_tensor(images: Sequence[Image]) -> Tensor:
    """Return images of one size as (N, 3, H, W) uint8, RGB, channels last in memory."""
    batch = np.stack(images) if len(images) > 1 else np.ascontiguousarray(images[0])[None]
    with_copy = batch if batch.flags.writeable else batch.copy()
    return torch.from_numpy(with_copy).permute(0, 3, 1, 2)


def upload(images: Sequence[Image], device: torch.device) -> Tensor:
    """
    Return images of one size on a device, as `images_to_tensor` does.

    To a CUDA device they go by way of pinned memory, and nobody waits for their arrival: what is
    queued on the same stream finds them there.
    """
    batch = images_to_tensor(images)
    if device.type != 'cuda':
        return batch.to(device)
    return batch.pin_memory().to(device, non_blocking=True)


def fetch(values: Tensor) -> NDArray[Any]:
    """
    Return a tensor's values as an array, in memory of its own unless they are a CPU's.

    From a CUDA device they come by way of pinned memory, which is used again once the array is
    gone: fresh pages cost more than the way.
    """
    if values.device.type != 'cuda':
        return values.cpu().numpy()
    there = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    there.copy_(values, non_blocking=True)
    torch.cuda.current_stream(values.device).synchronize()
    return there.numpy()


def preprocess(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """
    Turn RGB images into what a network takes.

    :param images: (N, 3, H, W) of 0 to 255, uint8 or float.
    :returns: the same shape, float32.
    """
    values = images.float()
    if preprocessing.order == 'bgr':
        values = values.flip(1)
    return (values - preprocessing.mean_of(values)) / preprocessing.scale


def resize(images: Tensor, height: int, width: int) -> Tensor:
    """
    Return images resized by half-pixel bilinear interpolation, averaged where they shrink.

    Bytes are rounded to whole numbers again, on a CPU as bytes: that takes a fifth of the time
    that numbers take.
    """
    if images.shape[2:] == (height, width):
        return images
    there = images.dtype == torch.uint8 and images.device.type != 'cpu'
    resized = F.interpolate(
        images.float() if there else images,
        (height, width),
        mode='bilinear',
        align_corners=False,
        antialias=True,
    )
    return resized.round() if there else resized


def flow_to_tensor(flow: Flow) -> Tensor:
    """Return a (H, W, 2) flow as (2, H, W) float32."""
    return torch.from_numpy(np.ascontiguousarray(flow)).permute(2, 0, 1)


def enlarge_flow(flow: Tensor, height: int, width: int) -> Flow:
    """
    Return a (2, h, w) tensor as a (height, width, 2) float32 array, by bilinear interpolation.

    The vectors stay as they are; centres of pixels lie half a pixel from the border.
    """
    if flow.device.type == 'cpu':  # OpenCV takes a tenth of torch's time
        return np.asarray(cv2.resize(tensor_to_flow(flow), (width, height)), np.float32)
    larger = F.interpolate(flow[None], (height, width), mode='bilinear', align_corners=False)
    return tensor_to_flow(larger[0])


def tensor_to_flow(flow: Tensor) -> Flow:
    """Return a (2, H, W) tensor as a (H, W, 2) float32 array."""
    return fetch(flow.permute(1, 2, 0).float().contiguous())
