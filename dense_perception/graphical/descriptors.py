"""What nonparametric scene parsing compares: descriptors of images and of superpixels."""

from dataclasses import dataclass

from dense_perception.arrays import Image
from dense_perception.graphical.superpixels import boxes, Superpixels
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter1d
import torch
from torch import Tensor
import torch.nn.functional as F

Floats = NDArray[np.float32]
Words = NDArray[np.int64]  # (H, W) index of each pixel's nearest visual word

SCENE_WORDS = 200  # visual words of the spatial pyramid
WORDS = 100  # visual words, and textons, of superpixels
FILTERS = 26  # texton filters
PYRAMID = (1, 2, 4)  # cells along each side of the three levels
# Tighe and Lazebnik (2010), section 2.1: three descriptors of a scene and their numbers.
SCENE_FEATURES = {'pyramid': SCENE_WORDS * 21, 'gist': 3 * 320, 'color': 24}
# Tighe and Lazebnik (2010), table 1: the twenty features of a superpixel and their numbers.
SUPERPIXEL_FEATURES = {
    'mask': 64,
    'box': 2,
    'area': 1,
    'place': 64,
    'top': 1,
    'textons': WORDS,
    'textons_dilated': WORDS,
    'words': WORDS,
    'words_dilated': WORDS,
    'words_left': WORDS,
    'words_right': WORDS,
    'words_top': WORDS,
    'words_bottom': WORDS,
    'color_mean': 3,
    'color_deviation': 3,
    'colors': 33,
    'colors_dilated': 33,
    'thumbnail': 192,
    'thumbnail_masked': 192,
    'gist': 320,
}
DILATION = 10  # pixels around a superpixel that count as its surroundings

_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green, blue
_SIDE = 8  # cells along each side of masks and thumbnails
_PATCH = 32  # pixels along each side of a superpixel's box when its thumbnail and GIST are taken
_SCENE = 128  # pixels along each side of an image when its GIST is taken
_ORIENTATIONS = (8, 8, 4)  # of GIST, from fine to coarse; Oliva and Torralba (2001)
_CELL = 4  # pixels; SIFT has 4 x 4 cells
_TINY = 1e-6  # keeps what is divided by above 0
_ROUNDS = 20  # of k-means
_FLAT = 8.0  # grey levels; a gradient weaker than this over a whole window is noise


@dataclass(frozen=True)
class Vocabulary:
    """Visual words and textons, as k-means finds them."""

    scene_words: Tensor  # (SCENE_WORDS, 128) SIFT
    words: Tensor  # (WORDS, 128) SIFT
    textons: Tensor  # (WORDS, filters)


@dataclass(frozen=True)
class WordMaps:
    """Which word each pixel is nearest to."""

    scene_words: Words
    words: Words
    textons: Words


def grey(image: Image) -> Tensor:
    """Return the luminance of an image, (H, W) float32 from 0 to 255."""
    return torch.from_numpy(image.astype(np.float32) @ _LUMINANCE)


def dense_sift(luminance: Tensor) -> Tensor:
    """
    Return the SIFT descriptor around every pixel, upright and at one scale.

    Lowe (2004), section 6: 4 x 4 cells of 4 pixels, 8 orientations, pixels shared linearly between
    cells and between orientations. Without the Gaussian window over the cells, as in dense SIFT.

    :param luminance: (H, W) float32.
    :returns: (H, W, 128) of length 1; shorter where the image is flat.
    """
    padded = F.pad(luminance[None, None], (1, 1, 1, 1), mode='replicate')[0, 0]
    right = (padded[1:-1, 2:] - padded[1:-1, :-2]) / 2
    down = (padded[2:, 1:-1] - padded[:-2, 1:-1]) / 2
    turn = torch.atan2(down, right) * (8 / (2 * torch.pi))  # in eighths of a circle
    away = (turn - torch.arange(8)[:, None, None]).remainder(8)
    shares = (1 - torch.minimum(away, 8 - away)).clamp_min(0)  # (8, H, W)
    line = 1 - torch.arange(1 - _CELL, _CELL).abs() / _CELL
    kernel = torch.outer(line, line).expand(8, 1, -1, -1)
    reach = 3 * _CELL // 2  # to the middle of the outermost cell
    cells = F.conv2d(
        F.pad((shares * torch.hypot(right, down))[None], (reach + _CELL - 1,) * 4),
        kernel,
        groups=8,
    )[0]  # (8, H + 2 reach, W + 2 reach)
    height, width = luminance.shape
    starts = range(0, 4 * _CELL, _CELL)
    stacked = torch.cat([
        cells[:, top : top + height, left : left + width] for top in starts for left in starts
    ])  # fmt: skip
    descriptors = stacked.permute(1, 2, 0)
    length = descriptors.norm(dim=2, keepdim=True)
    clipped = (descriptors / length.clamp_min(_TINY)).clamp_max(0.2)
    direction = clipped / clipped.norm(dim=2, keepdim=True).clamp_min(_TINY)
    return direction * (length / _FLAT).clamp_max(1)


def texton_responses(luminance: Tensor) -> Tensor:
    """
    Return the answers of a bank of bar and edge filters, and of two centre-surround ones.

    After Malik et al. (2001), section 2.1: the second derivative of an elongated Gaussian and its
    odd partner, here the first derivative, at six orientations and two scales.

    :param luminance: (H, W) float32.
    :returns: (H, W, 26).
    """
    bank = _filter_bank()
    reach = bank.shape[2] // 2
    padded = F.pad(luminance[None, None], (reach,) * 4, mode='replicate')
    return F.conv2d(padded, bank[:, None])[0].permute(1, 2, 0)


def _filter_bank() -> Tensor:
    reach = 9
    line = torch.arange(-reach, reach + 1).float()
    rows, columns = torch.meshgrid(line, line, indexing='ij')
    filters = []
    for deviation in (1.0, 2.0):
        for step in range(6):
            angle = torch.tensor(step * torch.pi / 6)
            across = columns * angle.cos() + rows * angle.sin()
            along = rows * angle.cos() - columns * angle.sin()
            bell = torch.exp(-(across**2 + along**2 / 9) / (2 * deviation**2))
            filters += [across * bell, (across**2 / deviation**2 - 1) * bell]
        distance = (rows**2 + columns**2) / (2 * deviation**2)
        filters.append((1 - distance) * torch.exp(-distance))
    bank = torch.stack(filters)
    bank = bank - bank.mean((1, 2), keepdim=True)  # blind to brightness
    return bank / bank.abs().sum((1, 2), keepdim=True)


def find_words(samples: Tensor, count: int, random: np.random.Generator) -> Tensor:
    """
    Return the centres of k-means after 20 rounds, (count, D).

    A centre that is nearest to no sample stays where it is.

    :param samples: (P, D).
    :param random: draws the samples that centres start at.
    """
    starts = random.choice(len(samples), count, replace=len(samples) < count)
    words = samples[torch.from_numpy(starts)]
    for _ in range(_ROUNDS):
        nearest = torch.from_numpy(nearest_words(samples[None], words)[0])
        sums = torch.zeros_like(words).index_add_(0, nearest, samples)
        sizes = torch.bincount(nearest, minlength=count)[:, None]
        words = torch.where(sizes > 0, sums / sizes.clamp_min(1), words)
    return words


def nearest_words(descriptors: Tensor, words: Tensor) -> Words:
    """Return the index of the word nearest to each of (H, W, D) descriptors."""
    flat = descriptors.reshape(-1, descriptors.shape[2])
    half = words.square().sum(1) / 2
    parts = [(part @ words.T - half).argmax(1) for part in torch.split(flat, 32768)]
    return torch.cat(parts).reshape(descriptors.shape[:2]).numpy()


def word_maps(image: Image, vocabulary: Vocabulary) -> WordMaps:
    """Return the words of every pixel."""
    luminance = grey(image)
    sift = dense_sift(luminance)
    return WordMaps(
        nearest_words(sift, vocabulary.scene_words),
        nearest_words(sift, vocabulary.words),
        nearest_words(texton_responses(luminance), vocabulary.textons),
    )


def gist(images: Tensor) -> Tensor:
    """
    Return the energy of Gabor filters in a 4 x 4 grid.

    Oliva and Torralba (2001): three scales of 8, 8 and 4 orientations.

    :param images: (N, side, side) float32, 0 to 255.
    :returns: (N, 320).
    """
    side = images.shape[-1]
    values = torch.log1p(images)
    values = values - values.mean((1, 2), keepdim=True)
    values = values / values.std((1, 2), keepdim=True).clamp_min(0.02)
    margin = side // 8
    padded = F.pad(values[:, None], (margin,) * 4, mode='reflect')[:, 0]
    spectrum = torch.fft.fft2(padded)
    answers = []
    for gabor in _gabors(padded.shape[-1]):
        energy = torch.fft.ifft2(spectrum * gabor).abs()[:, margin:-margin, margin:-margin]
        answers.append(F.adaptive_avg_pool2d(energy[:, None], 4).flatten(1))
    return torch.cat(answers, 1)


def _gabors(side: int) -> Tensor:
    """Gains over frequencies, (20, side, side), in the order of the fast Fourier transform."""
    frequency = torch.fft.fftfreq(side)  # cycles per pixel
    rows, columns = torch.meshgrid(frequency, frequency, indexing='ij')
    radius, angle = torch.hypot(rows, columns), torch.atan2(rows, columns)
    gains = []
    for scale, orientations in enumerate(_ORIENTATIONS):
        center = 0.3 / 1.85**scale
        for step in range(orientations):
            turn = angle - torch.pi * step / orientations
            turn = torch.atan2(turn.sin(), turn.cos())  # -pi to pi: one half of the plane only
            tuned = -10 * 0.35 * (radius / center - 1) ** 2
            gains.append(torch.exp(tuned - 2 * torch.pi * (orientations / 8 * turn) ** 2))
    return torch.stack(gains)


def describe_scene(image: Image, maps: WordMaps) -> Floats:
    """
    Return the three descriptors of a scene one after the other; see `SCENE_FEATURES`.

    The spatial pyramid is that of Lazebnik et al. (2006), section 3: a histogram in each cell of
    three grids, whose finest counts most.
    """
    height, width = image.shape[:2]
    parts = []
    for cells, weight in zip(PYRAMID, (0.25, 0.25, 0.5), strict=True):
        histogram = _histograms(_grid(height, width, cells), maps.scene_words, SCENE_WORDS, cells)
        parts.append(weight * histogram.ravel() / (height * width))
    colors = torch.from_numpy(image).permute(2, 0, 1).float()
    small = F.interpolate(
        colors[None], (_SCENE, _SCENE), mode='bilinear', align_corners=False, antialias=True
    )[0]
    parts.append(gist(small).numpy().ravel())
    bins = [np.bincount(image[..., channel].ravel() // 32, minlength=8) for channel in range(3)]
    parts.append(np.concatenate(bins) / (height * width))
    return _rounded(np.concatenate(parts))


def describe_superpixels(image: Image, superpixels: Superpixels, maps: WordMaps) -> Floats:
    """
    Return the twenty features of each superpixel one after the other, (S, 1708).

    Order and numbers are those of `SUPERPIXEL_FEATURES`.
    """
    height, width = superpixels.shape
    found = boxes(superpixels)
    sizes = np.bincount(superpixels.ravel())[:, None]
    extent = np.stack([found[:, 3] - found[:, 1], found[:, 2] - found[:, 0]], 1)
    patches, inside = _patches(image, superpixels, found)
    parts = {
        'mask': _thumbnails(inside[..., None]),
        'box': extent / (width, height),
        'area': sizes / (height * width),
        'place': _places(superpixels),
        'top': found[:, :1] / height,
        'thumbnail': _thumbnails(patches),
        'thumbnail_masked': _thumbnails(patches * inside[..., None]),
        'gist': gist(torch.from_numpy(patches @ _LUMINANCE)).numpy(),
        **_color_moments(image, superpixels, sizes),
        **_surroundings(image, superpixels, maps, found),
    }
    return _rounded(np.concatenate([parts[name] for name in SUPERPIXEL_FEATURES], 1))


def _rounded(values: NDArray[np.floating]) -> Floats:
    """Round to the 16 bits of a weights file, so that a saved descriptor equals a new one."""
    return values.astype(np.float16).astype(np.float32)


def _grid(height: int, width: int, cells: int) -> NDArray[np.int64]:
    """Index of the cell of each pixel, (H, W)."""
    rows, columns = np.arange(height) * cells // height, np.arange(width) * cells // width
    return rows[:, None] * cells + columns


def _histograms(
    groups: NDArray[np.integer], values: NDArray[np.int64], bins: int, side: int
) -> NDArray[np.int64]:
    keys = groups.ravel() * bins + values.ravel()
    return np.bincount(keys, minlength=side * side * bins).reshape(-1, bins)


def _patches(
    image: Image, superpixels: Superpixels, found: NDArray[np.int64]
) -> tuple[Floats, Floats]:
    """
    Sample each box at 32 x 32 places.

    :returns: colours (S, 32, 32, 3), and 1 inside the superpixel, (S, 32, 32).
    """
    along = (np.arange(_PATCH) + 0.5) / _PATCH
    top, left, bottom, right = (found[:, [side]] for side in range(4))
    rows = (top + along * (bottom - top)).astype(int)[:, :, None]
    columns = (left + along * (right - left)).astype(int)[:, None]
    inside = superpixels[rows, columns] == np.arange(len(found))[:, None, None]
    return image[rows, columns].astype(np.float32), inside.astype(np.float32)


def _thumbnails(patches: Floats) -> Floats:
    """Return means over 8 x 8 cells of (S, 32, 32, C), flat."""
    count, side, _, channels = patches.shape
    cell = side // _SIDE
    means = patches.reshape(count, _SIDE, cell, _SIDE, cell, channels).mean((2, 4))
    return means.reshape(count, -1)


def _places(superpixels: Superpixels) -> NDArray[np.float64]:
    """Share of each cell of an 8 x 8 grid over the image that a superpixel covers, (S, 64)."""
    height, width = superpixels.shape
    grid = _grid(height, width, _SIDE)
    cells = _SIDE * _SIDE
    count = int(superpixels.max()) + 1
    keys = superpixels.ravel().astype(np.int64) * cells + grid.ravel()
    covered = np.bincount(keys, minlength=count * cells).reshape(count, cells)
    return covered / np.maximum(np.bincount(grid.ravel(), minlength=cells), 1)


def _color_moments(
    image: Image, superpixels: Superpixels, sizes: NDArray[np.int64]
) -> dict[str, NDArray[np.float64]]:
    owner = superpixels.ravel()
    channels = image.reshape(-1, 3).astype(np.float64).T
    mean = np.stack([np.bincount(owner, values) for values in channels], 1) / sizes
    square = np.stack([np.bincount(owner, values**2) for values in channels], 1) / sizes
    return {
        'color_mean': mean,
        'color_deviation': np.sqrt(np.maximum(square - mean**2, 0)),
    }


def _surroundings(
    image: Image, superpixels: Superpixels, maps: WordMaps, found: NDArray[np.int64]
) -> dict[str, NDArray[np.float64]]:
    """
    Return the histograms inside each superpixel, around it, and along its four borders.

    A superpixel is dilated by a square; a border is what the superpixel covers if it is moved by
    up to `DILATION` pixels to that side, without itself.
    """
    colors = (image.astype(np.int64) * 11 // 256) + np.array([0, 11, 22])  # (H, W, 3)
    rows = []
    for index, (top, left, bottom, right) in enumerate(found):
        window = (
            slice(max(top - DILATION, 0), bottom + DILATION),
            slice(max(left - DILATION, 0), right + DILATION),
        )
        inside = superpixels[window] == index
        across = maximum_filter1d(inside, 2 * DILATION + 1, axis=1, mode='constant')
        dilated = maximum_filter1d(across, 2 * DILATION + 1, axis=0, mode='constant')
        words, textons = maps.words[window], maps.textons[window]
        row = {
            'textons': _histogram(textons[inside], WORDS),
            'textons_dilated': _histogram(textons[dilated], WORDS),
            'words': _histogram(words[inside], WORDS),
            'words_dilated': _histogram(words[dilated], WORDS),
            'colors': _histogram(colors[window][inside].ravel(), 33),
            'colors_dilated': _histogram(colors[window][dilated].ravel(), 33),
        }
        for name, axis, origin in (
            ('left', 1, -(DILATION // 2)),
            ('right', 1, DILATION // 2),
            ('top', 0, -(DILATION // 2)),
            ('bottom', 0, DILATION // 2),
        ):
            moved = maximum_filter1d(
                inside, DILATION + 1, axis=axis, mode='constant', origin=origin
            )
            row[f'words_{name}'] = _histogram(words[moved & ~inside], WORDS)
        rows.append(row)
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _histogram(values: NDArray[np.int64], bins: int) -> NDArray[np.float64]:
    return np.bincount(values, minlength=bins) / max(1, len(values))
