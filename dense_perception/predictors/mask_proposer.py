"""From an image to ranked masks of the objects in it."""

from dataclasses import dataclass
from pathlib import Path

from dense_perception.arrays import Image
from dense_perception.errors import WeightsError
from dense_perception.networks import PROPOSAL_NETWORKS
from dense_perception.networks.masks import DeepMask, STRIDE, WINDOW
from dense_perception.predictors.device import choose_placement, Placement
from dense_perception.predictors.tensors import check_image, preprocess, resize, upload
from dense_perception.settings import setting, Settings
from dense_perception.weights.checkpoint import Card, load_weights
import numpy as np
from numpy.typing import NDArray
import torch
from torch import nn, Tensor
import torch.nn.functional as F

# Enlargements of the image; released evaluation code of Pinheiro et al. (2016).
SCALES = tuple(2 ** (step / 2) for step in range(-5, 2))
PADDING = WINDOW // 2  # pixels around the image, so that windows stand over its border
GREY = 127.5  # of that padding
MOST_RANKS = 254  # that a picture of ranks tells apart
_CHUNK = 1 << 16  # pixels compared at a time


@dataclass(frozen=True)
class ProposalSettings(Settings):
    """Which windows become proposals."""

    candidates: int = setting(200, 'windows of the highest scores that are looked at', low=1)
    count: int = setting(100, 'most proposals of an image', low=1)
    threshold: float = setting(
        0.2, 'probability from which a pixel belongs to a mask; released code', low=0.0, high=1.0
    )
    overlap: float = setting(
        0.7, 'intersection over union above which the lower score goes', low=0.0, high=1.0
    )


@dataclass(frozen=True)
class Proposals:
    """Objects of one image, the likeliest first."""

    masks: NDArray[np.bool_]  # (K, H, W)
    scores: NDArray[np.float32]  # (K,) probability that the mask is of a whole object

    def ranks(self) -> NDArray[np.uint8]:
        """Return the rank of the best proposal on each pixel, (H, W): 1 is best, 0 is none."""
        picture = np.zeros(self.masks.shape[1:], np.uint8)
        for rank in range(min(len(self.masks), MOST_RANKS), 0, -1):
            picture[self.masks[rank - 1]] = rank
        return picture


@dataclass(frozen=True)
class _Candidates:
    """Windows of one enlargement of the image."""

    scores: Tensor  # (K,) before the sigmoid
    masks: Tensor  # (K, side, side) before the sigmoid
    places: Tensor  # (K, 2) row and column of the window's corner in the image, pixels
    sides: tuple[float, float]  # rows and columns of the image that a window covers


class MaskProposer:
    """DeepMask or SharpMask with its device, precision and preprocessing."""

    def __init__(
        self,
        network: nn.Module,
        card: Card,
        placement: Placement,
        *,
        width: int = 0,
        settings: ProposalSettings | None = None,
    ) -> None:
        """
        Take a network into use.

        :param network: a DeepMask or SharpMask.
        :param card: its preprocessing.
        :param placement: where it runs.
        :param width: columns that the image is resized to first; 0 for its own.
        """
        assert isinstance(network, DeepMask)
        placement.place(network)
        self.network, self.card, self.placement, self.width = network, card, placement, width
        self.settings = settings or ProposalSettings()

    @classmethod
    def from_file(
        cls, path: Path, *, device: str = 'auto', precision: str = 'auto', width: int = 0
    ) -> 'MaskProposer':
        """
        Load a weights file.

        :raises WeightsError: the file is damaged, or holds no network for proposals.
        :raises SettingError: device or precision is not to be had.
        """
        network, card = load_weights(path)
        if card.network not in PROPOSAL_NETWORKS:
            raise WeightsError(f'{path}: {card.network} is no network for mask proposals')
        return cls(network, card, choose_placement(device, precision), width=width)

    @torch.inference_mode()
    def propose(self, image: Image) -> Proposals:
        """
        Find objects: windows at seven scales, the best of them kept, near copies left out.

        Pinheiro et al. (2015), section 4.

        :param image: (H, W, 3) uint8 RGB.
        :raises InputError: the image has another form.
        """
        check_image(image)
        height, width = image.shape[:2]
        columns = self.width or width
        rows = max(1, round(height * columns / width))
        pixels = upload([image], self.placement.device).float()
        pixels = resize(pixels, rows, columns)
        found = self._candidates(pixels)
        scores = torch.cat([part.scores for part in found]).float().sigmoid()
        masks = torch.cat([self._pasted(part, rows, columns) for part in found])
        best = scores.argsort(descending=True)
        best = best[masks[best].any(2).any(1)]
        kept = distinct(masks[best], self.settings.overlap)[: self.settings.count]
        best = best[kept]
        # A channel in front, for there may be no masks.
        larger = F.interpolate(masks[best, None].float(), (height, width), mode='nearest-exact')
        return Proposals(larger[:, 0].bool().cpu().numpy(), scores[best].cpu().numpy())

    def _candidates(self, pixels: Tensor) -> list[_Candidates]:
        """Return the windows of the highest scores, by scale."""
        seen = []
        for scale in SCALES:
            rows, columns = (max(1, round(size * scale)) for size in pixels.shape[2:])
            change = (pixels.shape[2] / rows, pixels.shape[3] / columns)
            windows = self.network.slide(self._padded(resize(pixels, rows, columns)))
            seen.append((windows, change))
        every = torch.cat([windows.scores.flatten() for windows, _ in seen])
        best = every.topk(min(self.settings.candidates, len(every))).indices
        chosen = torch.zeros_like(every, dtype=torch.bool).index_fill(0, best, True)
        shares = torch.split(chosen, [windows.scores.numel() for windows, _ in seen])
        found = []
        for (windows, change), share in zip(seen, shares, strict=True):
            places = share.reshape(windows.scores.shape).nonzero()
            if not len(places):
                continue
            corner = places * STRIDE - PADDING  # in the enlarged image
            found.append(
                _Candidates(
                    windows.scores[places[:, 0], places[:, 1]],
                    self.network.window_masks(windows, places),
                    corner * corner.new_tensor(change, dtype=torch.float32),
                    (WINDOW * change[0], WINDOW * change[1]),
                )
            )
        return found

    def _padded(self, pixels: Tensor) -> Tensor:
        """Return the network's input: the image in grey, its size a multiple of the stride."""
        below, right = (PADDING + -size % STRIDE for size in pixels.shape[2:])
        padded = F.pad(pixels.float(), (PADDING, right, PADDING, below), value=GREY)
        values = preprocess(padded, self.card.preprocessing).to(self.placement.dtype)
        return values.contiguous(memory_format=torch.channels_last)

    def _pasted(self, found: _Candidates, rows: int, columns: int) -> Tensor:
        """Return the masks on the grid of the image, (K, rows, columns) bool."""
        pasted = torch.zeros(len(found.scores), rows, columns, dtype=torch.bool)
        pasted = pasted.to(found.scores.device)
        threshold = torch.tensor(self.settings.threshold).logit().item()
        sides = round(found.sides[0]), round(found.sides[1])
        for mask, target, place in zip(found.masks, pasted, found.places.tolist(), strict=True):
            larger = F.interpolate(
                mask[None, None].float(), sides, mode='bilinear', align_corners=False
            )[0, 0]
            top, left = round(place[0]), round(place[1])
            inside = larger[max(0, -top) :, max(0, -left) :] > threshold
            part = target[max(0, top) :, max(0, left) :]
            size = min(inside.shape[0], part.shape[0]), min(inside.shape[1], part.shape[1])
            part[: size[0], : size[1]] = inside[: size[0], : size[1]]
        return pasted


def distinct(masks: Tensor, overlap: float) -> list[int]:
    """
    Suppress masks that are nearly copies of one before them.

    :param masks: (K, H, W) bool, the best first, none empty.
    :param overlap: intersection over union above which a mask goes.
    :returns: places of the masks that stay, in order.
    """
    flat = masks.flatten(1)
    common = flat.new_zeros((len(flat), len(flat)), dtype=torch.float32)
    for pixels in torch.split(flat, _CHUNK, 1):
        common += pixels.float() @ pixels.float().T
    areas = common.diagonal()
    shares = common / (areas[:, None] + areas[None] - common)
    copies = (shares > overlap).cpu().numpy()
    kept: list[int] = []
    for place in range(len(copies)):
        if not copies[place, kept].any():
            kept.append(place)
    return kept
