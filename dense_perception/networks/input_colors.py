"""The colours behind a network's input, for what looks at the picture itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dense_perception.arrays import Image
import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class InputColors:
    """
    How RGB colours of 0 to 255 became the input: (image[order] - mean) / scale.

    Names and defaults are those of the preprocessing on a weights file's card, which must say the
    same.
    """

    order: str = 'rgb'  # or 'bgr'
    mean: tuple[float, float, float] = (123.68, 116.779, 103.939)  # in `order`, 0 to 255
    scale: float = 57.375  # grey levels

    @classmethod
    def of(cls, colors: Mapping[str, Any] | None) -> 'InputColors':
        """
        Build from the argument `colors` of a network.

        :raises ValueError: the order is unknown.
        """
        built = cls(**(colors or {}))
        if built.order not in ('rgb', 'bgr'):
            raise ValueError(f'channel order is {built.order!r}; it must be rgb or bgr')
        return built

    def restore(self, image: Tensor) -> list[Image]:
        """
        Return the images behind a batch.

        :param image: (N, 3, H, W), on any device.
        :returns: N times (H, W, 3) uint8 RGB.
        """
        values = image.detach().float()
        mean = torch.tensor(self.mean, device=values.device)[:, None, None]
        values = (values * self.scale + mean).round().clamp(0, 255).to(torch.uint8)
        if self.order == 'bgr':
            values = values.flip(1)
        return [np.ascontiguousarray(one) for one in values.permute(0, 2, 3, 1).cpu().numpy()]
