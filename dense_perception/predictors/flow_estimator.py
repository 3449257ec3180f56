"""From two images to the optical flow between them."""

from collections.abc import Callable
from pathlib import Path

from dense_perception.arrays import Flow, Image
from dense_perception.errors import InputError, WeightsError
from dense_perception.networks import FLOW_NETWORKS
from dense_perception.networks.flownet import FLOW_SCALE, FlowNetCorr, STRIDE
from dense_perception.predictors.device import choose_placement, Placement
from dense_perception.predictors.engines.engine import close_flow
from dense_perception.predictors.engines.engined import Engined, EngineUser, LOG, Use
from dense_perception.predictors.engines.settings import EngineSettings, TORCH
from dense_perception.predictors.flow_features import KeptFeatures
from dense_perception.predictors.flow_refinement import check_flow_refinement, refine_flow
from dense_perception.predictors.tensors import (
    check_image,
    enlarge_flow,
    preprocess,
    resize,
    upload,
)
from dense_perception.weights.checkpoint import Card, load_weights
import torch
from torch import nn, Tensor


class FlowEstimator(EngineUser):
    """
    Flow network with its device, precision and preprocessing.

    An image belongs to two pairs, and is resized once; in torch, a correlating network also looks
    at it once. An engine takes such a network whole and looks at both images of each pair, and
    `auto` compares it with torch that does the same: `engine='torch'` may be the faster one.
    """

    def __init__(
        self,
        network: nn.Module,
        card: Card,
        placement: Placement,
        *,
        width: int = 0,
        refinement: str = 'none',
        engine: EngineSettings | str = TORCH,
        tell: Callable[[str], None] = LOG.info,
    ) -> None:
        """
        Take a network into use.

        :param network: takes two (N, 3, H, W) images, gives flow / 20 at a quarter of the size.
        :param card: its preprocessing.
        :param placement: where it runs.
        :param width: image columns at the network's input, rounded up to a multiple of 64; 0 for
            the image's own.
        :param refinement: none, or variational: flow of all pixels is refined on the CPU.
        :param engine: what the network runs in: torch; auto, for the fastest engine that agrees
            with torch; the name of one; or settings with the rest. See `Engined`.
        :param tell: receives what becomes of an engine, from any thread.
        :raises SettingError: there is no such engine or refinement.
        :raises InputError: the folder for an engine's calibration holds too few images.
        """
        check_flow_refinement(refinement)
        self.card, self.width = card, width
        self.refinement = refinement
        self.features = KeptFeatures()  # of images that a next pair may begin with
        self._use_network(network, placement, engine, Use(2, self.inputs, close_flow), tell)
        shares = isinstance(network, FlowNetCorr) and card.preprocessing.of_each
        if shares and isinstance(self.network, Engined):
            tell('an engine sees both images of each pair; engine: torch looks at each image once')

    @classmethod
    def from_file(
        cls,
        path: Path,
        *,
        device: str = 'auto',
        precision: str = 'auto',
        width: int = 0,
        refinement: str = 'none',
        engine: EngineSettings | str = TORCH,
        tell: Callable[[str], None] = LOG.info,
    ) -> 'FlowEstimator':
        """
        Load a weights file.

        :param engine: as for `FlowEstimator`, like all but the device and its precision.
        :raises WeightsError: the file is damaged, or holds no flow network.
        :raises SettingError: device, precision or refinement is not to be had.
        """
        network, card = load_weights(path)
        if card.network not in FLOW_NETWORKS:
            raise WeightsError(f'{path}: {card.network} is no flow network')
        placement = choose_placement(device, precision)
        return cls(
            network,
            card,
            placement,
            width=width,
            refinement=refinement,
            engine=engine,
            tell=tell,
        )

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
        flow = self._flow(first, second)[0].float() * FLOW_SCALE
        # The network saw resized images; its pixels are not the source's.
        change = flow.new_tensor([width / columns, height / rows])[:, None, None]
        estimate = enlarge_flow(flow * change, height, width)
        if self.refinement == 'variational':
            estimate = refine_flow(first, second, estimate)
        return estimate

    def _flow(self, first: Image, second: Image) -> Tensor:
        """Return what the network gives, from what is kept of the images where there is any."""
        if not self.card.preprocessing.of_each:
            return self.network(*self.inputs(first, second))
        if not isinstance(self.network, FlowNetCorr):
            pair = (self.features.of(image, self.inputs) for image in (first, second))
            return self.network(*(value for (value,) in pair))
        level2, level3 = self.features.of(first, self._tower)
        _, other = self.features.of(second, self._tower)
        return self.network.decode(level2, self.network.compare(level3, other))[-1]

    def _tower(self, image: Image) -> tuple[Tensor, ...]:
        """Run the part of a correlating network that sees one image alone."""
        assert isinstance(self.network, FlowNetCorr)
        return self.network.image_features(*self.inputs(image))

    @torch.inference_mode()
    def inputs(self, *images: Image) -> tuple[Tensor, ...]:
        """Return what the network takes for images of one size, (1, 3, rows, columns) each."""
        rows, columns = self._input_size(*images[0].shape[:2])
        values = upload(images, self.placement.device)
        values = preprocess(resize(values, rows, columns), self.card.preprocessing)
        values = values.to(self.input_dtype).contiguous(memory_format=torch.channels_last)
        return tuple(value[None] for value in values)

    def _input_size(self, height: int, width: int) -> tuple[int, int]:
        columns = self.width or width
        rows = height * columns / width
        return _multiple(rows), _multiple(columns)


def _multiple(pixels: float) -> int:
    """Round up to what the deepest level divides."""
    return max(1, -(-round(pixels) // STRIDE)) * STRIDE
