"""From two images to the optical flow between them."""

from pathlib import Path

from dense_perception.arrays import Flow, Image
from dense_perception.errors import InputError, WeightsError
from dense_perception.networks import FLOW_NETWORKS
from dense_perception.networks.flownet import FLOW_SCALE, STRIDE
from dense_perception.predictors.device import choose_placement, Placement
from dense_perception.predictors.flow_refinement import check_flow_refinement, refine_flow
from dense_perception.predictors.tensors import (
    check_image,
    images_to_tensor,
    preprocess,
    resize,
    tensor_to_flow,
)
from dense_perception.weights.checkpoint import Card, load_weights
import torch
from torch import nn
import torch.nn.functional as F


class FlowEstimator:
    """Flow network with its device, precision and preprocessing."""

    def __init__(
        self,
        network: nn.Module,
        card: Card,
        placement: Placement,
        *,
        width: int = 0,
        refinement: str = 'none',
    ) -> None:
        """
        Take a network into use.

        :param network: takes two (N, 3, H, W) images, gives flow / 20 at a quarter of the size.
        :param card: its preprocessing.
        :param placement: where it runs.
        :param width: image columns at the network's input, rounded up to a multiple of 64; 0 for
            the image's own.
        :param refinement: none, or variational: flow of all pixels is refined on the CPU.
        :raises SettingError: there is no such refinement.
        """
        check_flow_refinement(refinement)
        self.card, self.placement, self.width = card, placement, width
        self.refinement = refinement
        self.network = placement.place(network)

    @classmethod
    def from_file(
        cls,
        path: Path,
        *,
        device: str = 'auto',
        precision: str = 'auto',
        width: int = 0,
        refinement: str = 'none',
    ) -> 'FlowEstimator':
        """
        Load a weights file.

        :raises WeightsError: the file is damaged, or holds no flow network.
        :raises SettingError: device, precision or refinement is not to be had.
        """
        network, card = load_weights(path)
        if card.network not in FLOW_NETWORKS:
            raise WeightsError(f'{path}: {card.network} is no flow network')
        placement = choose_placement(device, precision)
        return cls(network, card, placement, width=width, refinement=refinement)

    @torch.inference_mode()
    def estimate(self, first: Image, second: Image) -> Flow:
        """
        Estimate where each pixel of one image went in another.

        :param first: (H, W, 3) uint8 RGB.
        :param second: the same shape.
        :returns: (H, W, 2) float32 on the grid of `first`: x right, y down, in pixels.
        :raises InputError: an image has another form, or the two differ in size.
        """
        for image in (first, second):
            check_image(image)
        if first.shape != second.shape:
            raise InputError(f'images are {first.shape} and {second.shape}; sizes must match')
        height, width = first.shape[:2]
        rows, columns = self._input_size(height, width)
        images = images_to_tensor([first, second]).to(self.placement.device)
        images = preprocess(resize(images, rows, columns), self.card.preprocessing)
        images = images.to(self.placement.dtype).contiguous(memory_format=torch.channels_last)
        flow = self.network(images[:1], images[1:]).float() * FLOW_SCALE
        flow = F.interpolate(flow, (height, width), mode='bilinear', align_corners=False)
        # The network saw resized images; its pixels are not the source's.
        change = flow.new_tensor([width / columns, height / rows])[:, None, None]
        estimate = tensor_to_flow(flow[0] * change)
        if self.refinement == 'variational':
            estimate = refine_flow(first, second, estimate)
        return estimate

    def _input_size(self, height: int, width: int) -> tuple[int, int]:
        columns = self.width or width
        rows = height * columns / width
        return _multiple(rows), _multiple(columns)


def _multiple(pixels: float) -> int:
    """Round up to what the deepest level divides."""
    return max(1, -(-round(pixels) // STRIDE)) * STRIDE
