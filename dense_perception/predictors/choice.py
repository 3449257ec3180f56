"""Which network does a task, and with which weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dense_perception.errors import SettingError, WeightsError
from dense_perception.labels import CITYSCAPES
from dense_perception.networks import (
    Builder,
    FLOW_NETWORKS,
    PROPOSAL_NETWORKS,
    SEGMENTATION_NETWORKS,
)
from dense_perception.weights.checkpoint import Card, load_weights, Preprocessing, read_card
from dense_perception.weights.published import find_weights, PUBLISHED
import torch
from torch import nn


@dataclass(frozen=True)
class Task:
    """What a network is wanted for."""

    name: str  # as settings begin with it
    networks: Mapping[str, Builder]
    default_weights: str  # those of nobody's choice
    arguments: Mapping[str, Any]  # of a compact network that has no weights
    label_set: str = ''


SEGMENTATION = Task(
    'segmentation',
    SEGMENTATION_NETWORKS,
    'drive',
    {'classes': len(CITYSCAPES), 'width': 'compact'},
    CITYSCAPES.name,
)
FLOW = Task('flow', FLOW_NETWORKS, 'flow', {'width': 0.25})
PROPOSALS = Task('proposal', PROPOSAL_NETWORKS, '', {'width': 'compact'})


@dataclass(frozen=True)
class Choice:
    """A network for a task."""

    network: nn.Module
    card: Card
    weights: str  # name or file; empty where the weights are random

    @property
    def trained(self) -> bool:
        """Whether it has weights that were trained."""
        return bool(self.weights)


def choose_network(task: Task, network: str, weights: str) -> Choice:
    """
    Load the network that is asked for, or build it where there are no weights for it.

    :param network: a name in the task's networks; empty for what the weights hold.
    :param weights: a name of shipped weights or a file. The task's default stands for no choice:
        other shipped weights are then taken if they are of the network that is asked for, and
        without any the network is compact and its weights are random, seed 0.
    :raises SettingError: the task has no such network.
    :raises WeightsError: the weights are missing, damaged, or of another network or task.
    """
    if network and network not in task.networks:
        known = ', '.join(task.networks)
        raise SettingError(f'{task.name}_network is {network!r}; known are {known}')
    if network and weights == task.default_weights:
        weights = _shipped(task, network)
        if not weights:
            return _untrained(task, network)
    path = find_weights(weights)
    held = read_card(path).network
    if network and held != network:
        raise WeightsError(
            f'{task.name}_weights are {weights}, which hold {held}; {task.name}_network asks for '
            f'{network}'
        )
    if held not in task.networks:
        raise WeightsError(f'{path}: {held} is no {task.name} network')
    return Choice(*load_weights(path), weights)


def _shipped(task: Task, network: str) -> str:
    """Return the name of shipped weights of a network, those of the task's default first."""
    names = sorted(PUBLISHED, key=lambda name: name != task.default_weights)
    return next((name for name in names if read_card(find_weights(name)).network == network), '')


def _untrained(task: Task, network: str) -> Choice:
    card = Card(network, task.arguments, Preprocessing(), task.label_set)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Choice(card.build().eval(), card, '')
