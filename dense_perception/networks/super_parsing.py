"""SuperParsing: superpixels take the labels of those that look alike in similar scenes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dense_perception.arrays import Image, Labels
from dense_perception.errors import InputError
from dense_perception.graphical.descriptors import (
    dense_sift,
    describe_scene,
    describe_superpixels,
    FILTERS,
    find_words,
    grey,
    SCENE_FEATURES,
    SCENE_WORDS,
    SUPERPIXEL_FEATURES,
    texton_responses,
    Vocabulary,
    word_maps,
    WORDS,
)
from dense_perception.graphical.mrf import alpha_beta_swap, joint_costs
from dense_perception.graphical.superpixels import (
    felzenszwalb,
    majority_labels,
    neighbours,
    Superpixels,
)
from dense_perception.networks.input_colors import InputColors
from dense_perception.settings import setting, Settings
import numpy as np
from numpy.typing import NDArray
import torch
from torch import nn, Tensor
import torch.nn.functional as F

# Training images that a scene is compared with; Tighe and Lazebnik (2010), section 2.1. A quarter
# of them for CPUs.
RETRIEVED = {'full': 200, 'compact': 50}
NEIGHBOUR = 20  # of a training superpixel; its distance tells how near is near
COVERED = 0.5  # share of a training superpixel that its label must cover
UNSEEN = -1e4  # ratio of a class that no training superpixel has
MARGIN = 0.01  # by which a class that the field chose passes the likeliest one

_SAMPLES = 20_000  # pixels from which words are found
_MEASURED = 2_000  # superpixels whose neighbours are measured; the median hardly needs more
_SMALLEST_CHANCE = 1e-4  # of a label beside another; never seen is not impossible


@dataclass(frozen=True)
class SuperParsingSettings(Settings):
    """What superpixels are, and how much the field smooths."""

    segment_scale: float = setting(200.0, 'of `felzenszwalb`; larger is coarser', low=0.0)
    smallest: int = setting(100, 'pixels of a superpixel, at least', low=1)
    # With few training images, 1 lets rare classes win wherever little is near: fitted to 110 of
    # CamVid, the likeliest class is right for 9 % of validation pixels with 1, 77 % with 0.001.
    added: float = setting(1.0, 'added to both counts of neighbours; 1 in the paper', low=1e-9)
    smoothing: float = setting(0.02, 'lambda of equation 6; 0: the likeliest class', low=0.0)
    slope: float = setting(0.1, 'gamma, of the logistic function of the ratio', low=1e-6)
    compatibility: float = setting(1.0, 'mu of equation 8', low=0.0)


class SuperParsing(nn.Module):
    """
    Label superpixels by comparing them with those of labelled images.

    Tighe and Lazebnik (2010), sections 2.1 to 2.4. Nothing is trained: `fit` describes labelled
    images and counts. What it finds are buffers, so it is saved and loaded as weights are; their
    sizes are among `arguments`. Before that, all scores are 0. Buffers keep their number types
    when the network is moved, for counts and bins of histograms are compared.

    Takes (N, 3, H, W) and gives (N, classes, H, W) scores: the logarithm of the likelihood ratio
    of each class, the same all over a superpixel. Where the field chooses another class than the
    likeliest, that class is raised just above it: the best score is always the field's choice, and
    its probability says that there was a rival.
    """

    stride = 1  # image pixels per score
    scene_words: Tensor
    words: Tensor
    textons: Tensor
    scenes: Tensor
    scene_of: Tensor
    descriptors: Tensor
    truth: Tensor
    thresholds: Tensor
    adjacent: Tensor

    def __init__(
        self,
        classes: int,
        width: str = 'full',
        *,
        images: int = 0,
        superpixels: int = 0,
        geometry: Sequence[int] = (),
        colors: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Reserve the buffers.

        :param classes: channels of the scores.
        :param width: a name in RETRIEVED.
        :param images: labelled images that it holds.
        :param superpixels: labelled superpixels that it holds.
        :param geometry: geometric class of each semantic class. If given, geometric labels are
            inferred together with the semantic ones; section 2.4, equation 8.
        :param colors: order, mean and scale of the preprocessing; see `InputColors`.
        :param settings: names and values of `SuperParsingSettings`.
        :raises ValueError: geometry names another number of classes.
        :raises SettingError: a setting is unknown or out of range.
        """
        super().__init__()
        if geometry and len(geometry) != classes:
            raise ValueError(f'geometry names {len(geometry)} classes; there are {classes}')
        self.classes, self.width, self.geometry = classes, width, tuple(geometry)
        self.retrieved = RETRIEVED[width]
        self.colors = InputColors.of(colors)
        self.settings = SuperParsingSettings.from_mapping(settings or {})
        for name, shape, dtype in (
            ('scene_words', (SCENE_WORDS, 128), torch.float32),
            ('words', (WORDS, 128), torch.float32),
            ('textons', (WORDS, FILTERS), torch.float32),
            ('scenes', (images, sum(SCENE_FEATURES.values())), torch.float16),
            ('scene_of', (superpixels,), torch.int64),  # index of the image
            ('descriptors', (superpixels, sum(SUPERPIXEL_FEATURES.values())), torch.float16),
            ('truth', (superpixels,), torch.int64),  # class
            ('thresholds', (len(SUPERPIXEL_FEATURES),), torch.float32),
            # How often a neighbour of each class has each class.
            ('adjacent', (classes, classes), torch.int64),
        ):
            self.register_buffer(name, torch.zeros(shape, dtype=dtype))

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments that build a network which these buffers fit; for the card."""
        return {
            'classes': self.classes,
            'width': self.width,
            'images': len(self.scenes),
            'superpixels': len(self.truth),
            'geometry': list(self.geometry),
            'colors': asdict(self.colors),
            'settings': asdict(self.settings),
        }

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> 'SuperParsing':
        """Move to another device, but keep the number types."""
        for name, value in self._buffers.items():
            assert value is not None
            self._buffers[name] = value.to(fn(value[:0]).device)
        return self

    def fit(
        self, images: Sequence[Image], labels: Sequence[Labels], random: np.random.Generator
    ) -> None:
        """
        Learn labelled images by heart, in place of those known before.

        Each image is read twice, so sequences that read from disk are welcome.

        :param images: (H, W, 3) uint8 RGB each.
        :param labels: (H, W) uint8 each; 255 is ignored.
        :param random: draws the pixels from which words are found.
        :raises InputError: no images, not as many labels, or no superpixel with a label.
        """
        if not len(images) or len(images) != len(labels):
            raise InputError(f'{len(images)} images and {len(labels)} labels; one each is needed')
        vocabulary = find_vocabulary(images, random)
        known = [
            self._learn(images[index], labels[index], vocabulary) for index in range(len(images))
        ]
        truth = torch.cat([scene.truth for scene in known])
        if not len(truth):
            raise InputError('no superpixel has a label that covers half of it')
        descriptors = torch.cat([scene.descriptors for scene in known])
        of_image = torch.arange(len(known))
        values = {
            **asdict(vocabulary),
            'scenes': torch.stack([scene.scene for scene in known]),
            'scene_of': of_image.repeat_interleave(
                torch.tensor([len(scene.truth) for scene in known])
            ),
            'descriptors': descriptors,
            'truth': truth,
            'thresholds': neighbour_distances(descriptors),
            'adjacent': torch.stack([scene.adjacent for scene in known]).sum(0),
        }
        for name, value in values.items():
            setattr(self, name, value.to(getattr(self, name)))

    def _learn(self, image: Image, labels: Labels, vocabulary: Vocabulary) -> '_Scene':
        superpixels = self.superpixels(image)
        found, share = majority_labels(superpixels, labels, self.classes)
        found[share < COVERED] = -1
        maps = word_maps(image, vocabulary)
        described = describe_superpixels(image, superpixels, maps)[found >= 0]
        ends = found[neighbours(superpixels)[0]]
        ends = ends[(ends >= 0).all(1)]
        adjacent = np.zeros((self.classes, self.classes), np.int64)
        np.add.at(adjacent, (ends[:, 0], ends[:, 1]), 1)
        return _Scene(
            torch.from_numpy(describe_scene(image, maps)),
            torch.from_numpy(described).half(),
            torch.from_numpy(found[found >= 0]),
            torch.from_numpy(adjacent + adjacent.T),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Return class scores, one for each pixel."""
        painted = []
        for picture in self.colors.restore(image):
            superpixels = self.superpixels(picture)
            scores = self.superpixel_scores(picture, superpixels).T  # (classes, S)
            painted.append(scores[:, torch.from_numpy(superpixels).to(scores.device).long()])
        return torch.stack(painted)

    def superpixels(self, image: Image) -> Superpixels:
        """Return the superpixels of an image."""
        settings = self.settings
        return felzenszwalb(image, scale=settings.segment_scale, smallest=settings.smallest)

    def superpixel_scores(self, image: Image, superpixels: Superpixels) -> Tensor:
        """Return the scores of each superpixel, (S, classes)."""
        nearby = self.nearby(image, superpixels)
        ratios = log_ratios(nearby, self._totals(), self.settings.added)
        chosen = torch.from_numpy(self.field(nearby, superpixels)).to(ratios.device)
        best, likeliest = ratios.max(1)
        raised = torch.where(chosen == likeliest, best, best + MARGIN)
        return ratios.scatter(1, chosen[:, None], raised[:, None])

    def nearby(self, image: Image, superpixels: Superpixels) -> Tensor:
        """
        Count the superpixels of similar scenes that are near in each feature, by their class.

        :returns: (features, S, classes) float32; N_k of equation 1.
        """
        vocabulary = Vocabulary(self.scene_words.cpu(), self.words.cpu(), self.textons.cpu())
        maps = word_maps(image, vocabulary)
        scene = torch.from_numpy(describe_scene(image, maps)).to(self.scenes.device)
        ranks = combined_ranks(scene_distances(scene, self.scenes))
        near = torch.isin(self.scene_of, ranks.argsort(stable=True)[: self.retrieved])
        described = torch.from_numpy(describe_superpixels(image, superpixels, maps))
        truth = F.one_hot(self.truth[near], self.classes).float()  # (R, classes)
        counts = [
            (distances <= threshold).float() @ truth
            for distances, threshold in zip(
                feature_distances(described.to(self.descriptors), self.descriptors[near]),
                self.thresholds,
                strict=True,
            )
        ]
        return torch.stack(counts)

    def field(self, nearby: Tensor, superpixels: Superpixels) -> NDArray[np.int64]:
        """Return the label of each superpixel that the field prefers; section 2.4."""
        edges, _ = neighbours(superpixels)
        sizes = np.bincount(superpixels.ravel())
        start, *costs = self._costs(nearby, torch.eye(self.classes), sizes)
        if not self.geometry:
            return alpha_beta_swap(costs[0], edges, costs[1], start)
        table = F.one_hot(torch.tensor(self.geometry)).float()  # (classes, kinds)
        other_start, *other_costs = self._costs(nearby, table, sizes)
        unary, pairwise = joint_costs(
            (costs[0], costs[1]),
            (other_costs[0], other_costs[1]),
            table.numpy() == 0,
            self.settings.compatibility,
        )
        kinds = table.shape[1]
        return alpha_beta_swap(unary, edges, pairwise, start * kinds + other_start) // kinds

    def _totals(self) -> Tensor:
        return torch.bincount(self.truth, minlength=self.classes)

    def _costs(
        self, nearby: Tensor, table: Tensor, sizes: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """
        Return the likeliest labels, the unary and the pairwise costs.

        :param table: (classes, labels) 1 where a class counts as a label.
        """
        table = table.to(nearby.device)
        totals = self._totals().float() @ table
        ratios = log_ratios(nearby @ table, totals, self.settings.added).double().cpu().numpy()
        weights = sizes / sizes.mean()
        unary = -weights[:, None] / (1 + np.exp(-np.clip(self.settings.slope * ratios, -500, 500)))
        adjacent = (table.T @ self.adjacent.float() @ table).double().cpu().numpy()
        return ratios.argmax(1), unary, self.settings.smoothing * smoothing_costs(adjacent)


@dataclass(frozen=True)
class _Scene:
    """What is kept of one labelled image."""

    scene: Tensor  # (5184,)
    descriptors: Tensor  # (superpixels, 1708)
    truth: Tensor  # (superpixels,)
    adjacent: Tensor  # (classes, classes)


def find_vocabulary(images: Sequence[Image], random: np.random.Generator) -> Vocabulary:
    """Return the words and textons that k-means finds in pixels drawn from all images."""
    sift, textons = [], []
    for index in range(len(images)):
        luminance = grey(images[index])
        drawn = torch.from_numpy(
            random.integers(luminance.numel(), size=max(1, _SAMPLES // len(images)))
        )
        sift.append(dense_sift(luminance).flatten(0, 1)[drawn])
        textons.append(texton_responses(luminance).flatten(0, 1)[drawn])
    words = torch.cat(sift)
    found = (
        find_words(words, SCENE_WORDS, random),
        find_words(words, WORDS, random),
        find_words(torch.cat(textons), WORDS, random),
    )
    # The precision of a weights file, so that a saved network finds the same words.
    return Vocabulary(*(centres.half().float() for centres in found))


def scene_distances(scene: Tensor, scenes: Tensor) -> Tensor:
    """Return how far each of (images, 5184) scenes is in each descriptor, (3, images)."""
    sizes = list(SCENE_FEATURES.values())
    parts = zip(torch.split(scene, sizes), torch.split(scenes.float(), sizes, 1), strict=True)
    return torch.stack([(others - own).norm(dim=1) for own, others in parts])


def combined_ranks(distances: Tensor) -> Tensor:
    """
    Return the best rank of each image over the descriptors, (images,), from 1.

    Tighe and Lazebnik (2010), section 2.1.

    :param distances: (descriptors, images).
    """
    order = distances.argsort(dim=1, stable=True)
    return order.argsort(dim=1).amin(0) + 1


def feature_distances(own: Tensor, others: Tensor) -> Iterator[Tensor]:
    """Yield the distances in each feature between (S, 1708) and (R, 1708), each (S, R)."""
    sizes = list(SUPERPIXEL_FEATURES.values())
    for one, other in zip(
        torch.split(own.float(), sizes, 1), torch.split(others.float(), sizes, 1), strict=True
    ):
        # Few numbers are subtracted exactly: equal ones must be at distance 0.
        exact = one.shape[1] <= 3
        mode = 'donot_use_mm_for_euclid_dist' if exact else 'use_mm_for_euclid_dist'
        yield torch.cdist(one.contiguous(), other.contiguous(), compute_mode=mode)


def neighbour_distances(descriptors: Tensor) -> Tensor:
    """
    Return the median distance to the 20th neighbour in each feature, (features,).

    :param descriptors: (superpixels, 1708) of the whole training set. Of many, evenly spaced ones
        are measured, with neighbours among all.
    """
    count = len(descriptors)
    place = min(NEIGHBOUR, count - 1) + 1  # the nearest is the superpixel itself
    measured = torch.linspace(0, count - 1, min(count, _MEASURED)).round().long()
    parts = []
    for some in torch.split(measured, 256):
        columns = feature_distances(descriptors[some], descriptors)
        parts.append(torch.stack([column.kthvalue(place, 1).values for column in columns]))
    # The precision of a weights file, so that a saved network decides alike.
    return torch.cat(parts, 1).median(1).values.half().float()


def log_ratios(nearby: Tensor, totals: Tensor, added: float = 1.0) -> Tensor:
    """
    Return the logarithm of the likelihood ratio of each class; equations 1 and 2.

    :param nearby: (features, S, C) superpixels of each class that are near in each feature.
    :param totals: (C,) superpixels of each class in the whole training set.
    :param added: to the counts of the class and of the others.
    :returns: (S, C); 0 without a training set, UNSEEN for a class that it lacks.
    """
    if not totals.any():
        return torch.zeros_like(nearby[0])
    rest = nearby.sum(2, keepdim=True) - nearby
    others = (totals.sum() - totals).clamp_min(1)
    rarity = (others / totals.clamp_min(1)).log()
    ratios = (((nearby + added) / (rest + added)).log() + rarity).sum(0)
    return torch.where(totals > 0, ratios, UNSEEN)


def smoothing_costs(adjacent: NDArray[np.float64]) -> NDArray[np.float64]:
    """
    Return the cost of two classes side by side; section 2.4, equation 7.

    :param adjacent: (C, C) how often a superpixel of one class has a neighbour of another.
    :returns: (C, C): the negative logarithm of the mean of both conditional probabilities, 0 for
        equal classes.
    """
    chances = adjacent / np.maximum(adjacent.sum(0), 1)
    costs = -np.log(np.maximum((chances + chances.T) / 2, _SMALLEST_CHANCE))
    np.fill_diagonal(costs, 0)
    return costs
