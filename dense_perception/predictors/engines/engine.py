"""What an inference engine is, and what is needed to make one."""

from collections.abc import Callable, Sequence
import copy
from dataclasses import dataclass, field
from functools import cached_property
import hashlib
import logging
from pathlib import Path
from typing import Protocol

from dense_perception.errors import DensePerceptionError, InputError
from dense_perception.networks.flownet import FLOW_SCALE
import torch
from torch import nn, Tensor

_LOG = logging.getLogger(__name__)

Inputs = tuple[Tensor, ...]  # what a network takes: (1, 3, H, W) float32 each, preprocessed
Agreement = Callable[[Tensor, Tensor], float]  # output and torch's in float32 to a share, 0 to 1


class EngineError(DensePerceptionError):
    """An engine is not installed, cannot be built, or gives other results than torch."""


class Engine(Protocol):
    """
    A network made ready for inputs of one size.

    Not for several threads at once: buffers are reused from call to call.
    """

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return what the network would for float32 inputs, in float32."""


@dataclass(frozen=True)
class Task:
    """A network, what it will be given, and by what an engine for it is judged."""

    network: nn.Module  # float32, on the CPU
    inputs: Sequence[Inputs]  # of one size; outputs are compared and calls timed on these
    agreement: Agreement
    least_agreement: float = 0.97
    calibration: Sequence[Inputs] = ()  # of the same size; int8 is scaled by these
    device: torch.device = field(default_factory=lambda: torch.device('cpu'))
    tell: Callable[[str], None] = _LOG.info  # progress: building may take minutes

    def __post_init__(self) -> None:
        sizes = {tuple(tuple(value.shape) for value in inputs) for inputs in self.inputs}
        if len(sizes | {tuple(tuple(v.shape) for v in i) for i in self.calibration}) != 1:
            raise InputError(f'an engine needs inputs of one size; these are of {sorted(sizes)}')

    @property
    def sizes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of each input."""
        return tuple(tuple(value.shape) for value in self.inputs[0])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the network: its structure and its weights."""
        digest = hashlib.sha256(f'{type(self.network).__module__} {self.network}'.encode())
        for name, value in self.network.state_dict().items():
            digest.update(f'{name} {tuple(value.shape)} {value.dtype}'.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def references(self) -> list[Tensor]:
        """What torch gives for `inputs` in float32, on the CPU."""
        network = copy.deepcopy(self.network).eval().to(self.device)
        with torch.inference_mode():
            return [
                network(*(value.to(self.device) for value in inputs)).float().cpu()
                for inputs in self.inputs
            ]

    def agreement_of(self, engine: Engine) -> float:
        """Return the mean agreement with torch in float32 over `inputs`, 0 to 1."""
        shares = [
            self.agreement(engine(*inputs).cpu(), reference)
            for inputs, reference in zip(self.inputs, self.references, strict=True)
        ]
        return sum(shares) / len(shares)


@dataclass(frozen=True)
class Maker:
    """How one kind of engine is made; either function may raise whatever its library raises."""

    device: str  # cpu or cuda
    load: Callable[[Task, Path], Engine]  # from what `build` wrote
    build: Callable[[Task, Path], None] | None = None  # None: nothing is worth keeping
    packages: tuple[str, ...] = ()  # modules that must be installed
    calibrated: bool = False  # whether it needs `Task.calibration`
    preparing: str = ''  # what `load` does for long, and libraries without a word


def equal_labels(scores: Tensor, reference: Tensor) -> float:
    """Return the share of places with the same best class; (N, C, H, W) each."""
    return (scores.argmax(1) == reference.argmax(1)).float().mean().item()


def close_flow(flow: Tensor, reference: Tensor) -> float:
    """
    Return the share of vectors that lie within 0.1 px and 5 % of the other's length.

    :param flow: (N, 2, H, W), in the unit of the flow networks.
    :param reference: the same.
    """
    distance = (flow - reference).norm(dim=1) * FLOW_SCALE
    length = reference.norm(dim=1) * FLOW_SCALE
    return (distance <= 0.1 + 0.05 * length).float().mean().item()
