"""Predictors that are evaluated in an engine, and in nothing else."""

from dense_perception.arrays import Image
from dense_perception.errors import InputError
from dense_perception.predictors.engines.choice import ENGINES
from dense_perception.predictors.engines.engine import EngineError
from dense_perception.predictors.engines.engined import EngineUser
from dense_perception.predictors.engines.settings import TORCH

_MOST_SIZES = 8  # of inputs; each has an engine with a copy of the weights


class EngineUse:
    """
    Builds engines before the first images of each size, and lets nothing take their place.

    A node goes on in torch where an engine fails; figures that should be an engine's must not.
    """

    def __init__(self, engine: str = TORCH) -> None:
        """
        Begin without any.

        :param engine: the one that was asked for.
        """
        self._engine = engine
        self._images: set[tuple[str, tuple[int, ...]]] = set()  # tasks and shapes met
        self._inputs: set[tuple[object, ...]] = set()  # tasks and sizes that have an engine
        self._notes: dict[str, None] = {}  # in the order in which they came

    def prepare(self, task: str, predictor: EngineUser, *images: Image) -> None:
        """
        Build an engine where images of a new size come; nothing where torch was asked for.

        :param task: of the predictor: segmentation or flow.
        :param images: as many as the predictor takes at a time, of one size.
        :raises InputError: images of too many sizes.
        """
        if self._engine == TORCH or (task, images[0].shape) in self._images:
            return
        self._images.add((task, images[0].shape))
        size = (task, *(tuple(value.shape) for value in predictor.inputs(*images)))
        if size in self._inputs:
            return
        if len(self._inputs) == _MOST_SIZES:
            raise InputError(
                f'images of more than {_MOST_SIZES} sizes, and an engine is built for each; '
                'evaluate them in parts, or in torch'
            )
        self._inputs.add(size)
        predictor.prepare(images)

    def check(self, task: str, predictor: EngineUser) -> None:
        """
        Note what gave a predictor's newest result; refuse one that is not of the engine.

        :param task: of the predictor, as for `prepare`.
        :raises EngineError: it could not be had, or failed; the message says why.
        """
        if self._engine == TORCH:
            return
        if predictor.running not in ENGINES:
            raise EngineError(f'{self._engine} is to be evaluated: {predictor.engine_note}')
        self._notes[f'{task} in {predictor.engine_note}'] = None

    def __str__(self) -> str:
        """Return what ran, on inputs of what size, and how far it agrees; empty for torch."""
        return ', '.join(self._notes) or ('' if self._engine == TORCH else self._engine)
