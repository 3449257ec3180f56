"""Writing the weights that a recipe has trained."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from dense_perception.training.batch_norm import folded
from dense_perception.training.schedule import LoopSettings
from dense_perception.weights.checkpoint import Card, save_weights
from torch import nn


def save_trained(
    path: Path, network: nn.Module, card: Card, recipe: LoopSettings, scores: Mapping[str, float]
) -> None:
    """
    Write a weights file whose card holds recipe and scores.

    :param network: averaged weights, as the card's network has them.
    """
    notes = {'recipe': asdict(recipe), 'scores': dict(scores)}
    save_weights(path, folded(network, card), replace(card, notes=notes))
