"""
Labels and confidence from scores on a CUDA device, compiled by Triton; see `labelling`.

Each program reads the scores around a row of pixels, class by class, and writes two bytes a pixel.
Compared with the reference on an H100, benchmark/gpu_*.csv, and in Triton's interpreter.
"""

from typing import TYPE_CHECKING

from dense_perception.arrays import Confidence, Labels
from dense_perception.predictors.tensors import fetch
import torch
from torch import Tensor
import triton
import triton.language as tl

if TYPE_CHECKING:
    from dense_perception.predictors.labelling import Axis

_BLOCK = 256  # pixels of a row that one program labels


# Triton reads annotations as its own: a kernel has none but `constexpr`.
@triton.jit  # type: ignore[untyped-decorator]
def _label_row(  # type: ignore[no-untyped-def]
    scores,
    lower_row,
    weight_row,
    lower_column,
    weight_column,
    labels,
    confidence,
    classes,
    rows,
    columns,
    width,
    EXPONENTIAL: tl.constexpr,
    CONFIDENCE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    y = tl.program_id(0)
    x = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = x < width
    above = tl.load(lower_row + y)
    down = tl.load(weight_row + y)
    below = tl.minimum(above + 1, rows - 1)
    left = tl.load(lower_column + x, mask=inside, other=0)
    across = tl.load(weight_column + x, mask=inside, other=0.0)
    right = tl.minimum(left + 1, columns - 1)
    best = tl.full([BLOCK], float('-inf'), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)  # of exp(score - best)
    label = tl.zeros([BLOCK], tl.int32)
    for index in range(classes):
        plane = scores + index * rows * columns
        a = tl.load(plane + above * columns + left)
        b = tl.load(plane + above * columns + right)
        c = tl.load(plane + below * columns + left)
        d = tl.load(plane + below * columns + right)
        top = a + across * (b - a)
        low = c + across * (d - c)
        value = top + down * (low - top)
        larger = tl.maximum(best, value)
        if CONFIDENCE and EXPONENTIAL:
            total = total * tl.exp(best - larger) + tl.exp(value - larger)
        label = tl.where(value > best, index, label)
        best = larger
    place = y * width + x
    tl.store(labels + place, label.to(tl.uint8), mask=inside)
    if CONFIDENCE:
        share = 1.0 / total if EXPONENTIAL else best
        tl.store(confidence + place, (share * 255.0 + 0.5).to(tl.uint8), mask=inside)


def label(
    scores: Tensor, vertical: 'Axis', horizontal: 'Axis', exponential: bool, confidence: bool
) -> tuple[Labels, Confidence | None]:
    """
    Label every pixel.

    :param scores: (C, rows, columns) float32.
    :param vertical: places of the pixel rows, `horizontal`: of the pixel columns.
    :param exponential: whether softmax makes probabilities of scores; else they are such.
    """
    classes, rows, columns = scores.shape
    height, width = vertical.lower.size, horizontal.lower.size
    places = [
        torch.from_numpy(values).to(scores.device) for axis in (vertical, horizontal)
        for values in axis
    ]  # fmt: skip
    shape = 1 + confidence, height, width  # of both in one, which one copy fetches
    pixels = torch.empty(shape, dtype=torch.uint8, device=scores.device)
    _label_row[(height, triton.cdiv(width, _BLOCK))](
        scores.contiguous(),
        *places,
        pixels[0],
        pixels[-1],
        classes,
        rows,
        columns,
        width,
        EXPONENTIAL=exponential,
        CONFIDENCE=confidence,
        BLOCK=_BLOCK,
    )
    fetched = fetch(pixels)
    return fetched[0], fetched[1] if confidence else None
