"""From an image to its labels."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dense_perception.arrays import Confidence, Image, Labels
from dense_perception.errors import SettingError, WeightsError
from dense_perception.networks.frontend import STRIDE
from dense_perception.predictors.device import choose_placement, Placement
from dense_perception.predictors.engines.engine import equal_labels
from dense_perception.predictors.engines.engined import EngineUser, LOG, Use
from dense_perception.predictors.engines.settings import EngineSettings, TORCH
from dense_perception.predictors.labelling import (
    enlarge,
    Enlargement,
    label_pixels,
    label_scores,
)
from dense_perception.predictors.refinement import choose_refinement
from dense_perception.predictors.tensors import check_image, preprocess, resize, upload
from dense_perception.predictors.tiling import Tiled
from dense_perception.weights.checkpoint import Card, load_weights
import numpy as np
import torch
from torch import nn, Tensor


@dataclass(frozen=True)
class Segmentation:
    """Labels of one image, on its own grid."""

    labels: Labels
    confidence: Confidence | None  # None where it was not asked for


class Segmenter(EngineUser):
    """
    Segmentation network with its device, precision and preprocessing.

    One score stands for `stride` x `stride` pixels; labels are the best of the scores interpolated
    to the image's size, in the convention that the weights' card names, and refined there.
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

        :param network: takes (N, 3, H, W), gives scores for 8 x 8 pixels, or as its `stride` says.
        :param card: its preprocessing and label set.
        :param placement: where it runs.
        :param width: image columns at the network's input; 0 for the image's own.
        :param refinement: none, dense_crf or crf_rnn; what refines the scores of all pixels.
        :param engine: what the network runs in: torch; auto, for the fastest engine that agrees
            with torch; the name of one; or settings with the rest. See `Engined`.
        :param tell: receives what becomes of an engine, from any thread.
        :raises SettingError: there is no such engine or refinement, or the network has that
            already.
        :raises InputError: the folder for an engine's calibration holds too few images.
        """
        if card.network == refinement:
            raise SettingError(f'{card.network} ends with that stage itself; set refinement: none')
        self.card, self.width = card, width
        self.label_set = card.labels()
        self.refine = choose_refinement(refinement, len(self.label_set), placement.device)
        if card.tile is not None:
            network = Tiled(network, card.tile, enlarge=card.upsampling == 'half_pixel')
        self._use_network(network, placement, engine, Use(1, self.inputs, equal_labels), tell)
        self.margin = int(getattr(network, 'margin', 0))  # reflected pixels that it needs
        self.stride = int(getattr(network, 'stride', STRIDE))

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
    ) -> 'Segmenter':
        """
        Load a weights file.

        :param engine: as for `Segmenter`, like all but the device and its precision.
        :raises WeightsError: the file is damaged, or holds no segmentation network.
        :raises SettingError: device, precision or refinement is not to be had.
        """
        network, card = load_weights(path)
        if not card.label_set:
            raise WeightsError(f'{path}: {card.network} is no segmentation network')
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
    def segment(self, image: Image, *, confidence: bool = False) -> Segmentation:
        """
        Label every pixel of an image.

        :param image: (H, W, 3) uint8 RGB.
        :param confidence: whether to give the probability of each label too.
        :raises InputError: the image has another form.
        """
        check_image(image)
        return self._labelled(self.scores(image), image, confidence=confidence)

    @torch.inference_mode()
    def segment_all(
        self, images: Sequence[Image], *, confidence: bool = False
    ) -> list[Segmentation]:
        """
        Label every pixel of several images, those of one size in one pass of the network.

        :param images: (H, W, 3) uint8 RGB each; sizes may differ.
        :param confidence: whether to give the probability of each label too.
        :returns: what `segment` gives, in the order of the images.
        :raises InputError: an image has another form.
        """
        alike: dict[tuple[int, ...], list[int]] = {}
        for at, image in enumerate(images):
            check_image(image)
            alike.setdefault(image.shape, []).append(at)
        found: dict[int, Segmentation] = {}
        for places in alike.values():
            batch = self.scores(*(images[at] for at in places))
            for at, scores in zip(places, batch, strict=True):
                found[at] = self._labelled(scores[None], images[at], confidence=confidence)
        return [found[at] for at in range(len(images))]

    def segment_each(
        self, images: Iterable[Image], *, confidence: bool = False
    ) -> Iterator[Segmentation]:
        """
        Label one image after the other, as `segment` does.

        On a CUDA device the next image is uploaded and run while the labels of one are fetched,
        each on a stream of its own; it is taken from `images` before these labels are given.

        :param images: (H, W, 3) uint8 RGB each.
        :param confidence: whether to give the probability of each label too.
        :raises InputError: an image has another form.
        """
        if self.placement.device.type == 'cuda':
            yield from self._overlapped(images, confidence=confidence)
            return
        for image in images:
            yield self.segment(image, confidence=confidence)

    def _overlapped(self, images: Iterable[Image], *, confidence: bool) -> Iterator[Segmentation]:
        """Upload, run and fetch on three streams of a CUDA device."""
        device = self.placement.device
        uploads, downloads = torch.cuda.Stream(device), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        running: tuple[Tensor, Image, torch.cuda.Event] | None = None
        for image in images:
            check_image(image)
            started = self._start(image, uploads)
            if running:
                yield self._fetch(*running, downloads, confidence=confidence)
            running = started
        if running:
            yield self._fetch(*running, downloads, confidence=confidence)

    @torch.inference_mode()
    def _start(
        self, image: Image, uploads: torch.cuda.Stream
    ) -> tuple[Tensor, Image, torch.cuda.Event]:
        """Queue an image's way to its scores; return these and when they are ready."""
        main = torch.cuda.current_stream(self.placement.device)
        with torch.cuda.stream(uploads):
            (values,) = self.inputs(image)
        main.wait_stream(uploads)
        values.record_stream(main)  # its memory is free only after the network has read it
        scores: Tensor = self.network(values).float()
        return scores, image, main.record_event()

    @torch.inference_mode()
    def _fetch(
        self,
        scores: Tensor,
        image: Image,
        ready: torch.cuda.Event,
        downloads: torch.cuda.Stream,
        *,
        confidence: bool,
    ) -> Segmentation:
        """Wait for an image's scores and label its pixels, beside what the next image needs."""
        with torch.cuda.stream(downloads):
            downloads.wait_event(ready)
            scores.record_stream(downloads)
            return self._labelled(scores, image, confidence=confidence)

    @torch.inference_mode()
    def scores(self, *images: Image) -> Tensor:
        """
        Return class scores, (N, C, rows, columns) float32.

        :param images: N of one size, (H, W, 3) uint8 RGB each.
        """
        scores: Tensor = self.network(*self.inputs(*images))
        return scores.float()

    @torch.inference_mode()
    def inputs(self, *images: Image) -> tuple[Tensor]:
        """Return what the network takes for images of one size, (N, 3, rows, columns)."""
        height, width = images[0].shape[:2]
        if self.width and self.width != width:
            height, width = max(1, round(height * self.width / width)), self.width
        values = upload(images, self.placement.device)
        values = preprocess(resize(values, height, width), self.card.preprocessing)
        values = values.to(self.input_dtype)
        if self.margin:
            values = _reflect(values, self.margin)
        return (values.contiguous(memory_format=torch.channels_last),)

    def _labelled(self, scores: Tensor, image: Image, *, confidence: bool) -> Segmentation:
        """Label the pixels of one image by its scores."""
        place = self._enlargement(scores, image)
        if self.refine is None:
            return Segmentation(*label_pixels(scores, place, confidence=confidence))
        colors = upload([image], scores.device)
        refined = self.refine(enlarge(scores, place), colors)
        return Segmentation(*label_scores(refined, confidence=confidence))

    def _enlargement(self, scores: Tensor, image: Image) -> Enlargement:
        """Return how the scores of an image become its pixels."""
        height, width = image.shape[:2]
        input_width = self.width or width
        input_height = max(1, round(height * input_width / width))
        rows, columns = scores.shape[2] * self.stride, scores.shape[3] * self.stride
        return Enlargement(
            round(rows * height / input_height),
            round(columns * width / input_width),
            height,
            width,
            self.card.upsampling,
            self.stride,
        )


def _reflect(values: Tensor, margin: int) -> Tensor:
    """Reflect an image outwards; back and forth where it is smaller than the margin."""
    for axis in (2, 3):
        places = np.pad(np.arange(values.shape[axis]), margin, mode='reflect')
        values = values.index_select(axis, torch.from_numpy(places).to(values.device))
    return values
