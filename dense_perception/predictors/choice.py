"""Which network does a task, and with which weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
import inspect
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
    # Forms of these networks with a name of their own: the network, and what makes it that form.
    forms: Mapping[str, tuple[str, Mapping[str, Any]]] = field(default_factory=dict)

    def form(self, name: str) -> tuple[str, Mapping[str, Any]]:
        """
        Return the network of a name, and the arguments that the name asks for.

        :raises SettingError: there is no such name.
        """
        if name not in self.networks and name not in self.forms:
            known = ', '.join((*self.networks, *self.forms))
            raise SettingError(f'{self.name}_network is {name!r}; known are {known}')
        return self.forms.get(name, (name, {}))


SEGMENTATION = Task(
    'segmentation',
    SEGMENTATION_NETWORKS,
    'drive',
    {'classes': len(CITYSCAPES), 'width': 'compact'},
    CITYSCAPES.name,
    {
        'front_end_context_large': ('front_end_context', {'large': True}),
        'dilation7': ('front_end_context', {'layers': 7}),
        'dilation8': ('front_end_context', {'layers': 8}),
        'dilation10': ('front_end_context', {'layers': 10}),
        'fcn16s_at_once': ('fcn16s', {'at_once': True}),
        'fcn8s_at_once': ('fcn8s', {'at_once': True}),
    },
)
FLOW = Task(
    'flow',
    FLOW_NETWORKS,
    'flow',
    {'width': 0.25},
    forms={
        f'{name}_batch_norm': (name, {'batch_norm': True})
        for name in ('flownet_simple', 'flownet_corr')
    },
)
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

    :param network: a name in the task's networks or their forms; empty for what the weights hold.
    :param weights: a name of shipped weights or a file. The task's default stands for no choice:
        other shipped weights are then taken if they are of the network that is asked for, and
        without any the network is compact and its weights are random, seed 0.
    :raises SettingError: the task has no such network.
    :raises WeightsError: the weights are missing, damaged, or of another network, form or task.
    """
    wanted, arguments = task.form(network) if network else ('', {})
    if network and weights == task.default_weights:
        weights = _shipped(task, wanted, arguments)
        if not weights:
            return _untrained(task, wanted, arguments)
    path = find_weights(weights)
    card = read_card(path)
    if network and card.network != wanted:
        raise WeightsError(
            f'{task.name}_weights are {weights}, which hold {card.network}; {task.name}_network '
            f'asks for {network}'
        )
    if card.network not in task.networks:
        raise WeightsError(f'{path}: {card.network} is no {task.name} network')
    if other := _otherwise(task, card, arguments):
        raise WeightsError(
            f'{task.name}_weights are {weights}, with {other}; {task.name}_network asks for '
            f'{network}'
        )
    return Choice(*load_weights(path), weights)


def _otherwise(task: Task, card: Card, arguments: Mapping[str, Any]) -> str:
    """Tell what weights were made with, where that is not what a form asks for."""
    known = inspect.signature(task.networks[card.network]).parameters
    held = {name: card.arguments.get(name, known[name].default) for name in arguments}
    return ', '.join(f'{name} {held[name]}' for name in arguments if held[name] != arguments[name])


def _shipped(task: Task, network: str, arguments: Mapping[str, Any]) -> str:
    """Return the name of shipped weights of a network, those of the task's default first."""
    for name in sorted(PUBLISHED, key=lambda name: name != task.default_weights):
        card = read_card(find_weights(name))
        if card.network == network and not _otherwise(task, card, arguments):
            return name
    return ''


def _untrained(task: Task, network: str, arguments: Mapping[str, Any]) -> Choice:
    card = Card(network, {**task.arguments, **arguments}, Preprocessing(), task.label_set)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Choice(card.build().eval(), card, '')
