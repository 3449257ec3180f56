"""Array types that pass between the parts of the package."""

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]  # (H, W, 3) RGB
Labels = NDArray[np.uint8]  # (H, W) class indices, 255 = unlabelled
Confidence = NDArray[np.uint8]  # (H, W) probability of the label, 0 to 255
Flow = NDArray[np.float32]  # (H, W, 2) x right then y down, pixels from first frame to second
Mask = NDArray[np.bool_]  # (H, W)
