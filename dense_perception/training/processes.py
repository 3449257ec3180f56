"""The processes that train one network together, as `torchrun` starts them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from dense_perception.errors import SettingError
import torch
from torch import nn, Tensor
import torch.distributed as distributed

State = TypeVar('State')

# How long a process waits for another: the first one alone scores the network now and then.
TIMEOUT = timedelta(hours=3)


@dataclass(frozen=True)
class Processes:
    """
    How many processes train together, and which of them this one is.

    All hold the same network; each computes the gradient of its part of a batch. The first one
    alone scores, writes and prints.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0  # among those of this machine

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def place(self, device: torch.device) -> torch.device:
        """
        Return the device of this process, of those of its machine.

        :raises SettingError: there are more processes than GPUs.
        """
        if self.count == 1 or device.type != 'cuda':
            return device
        if self.local_rank >= torch.cuda.device_count():
            raise SettingError(
                f'process {self.local_rank} of this machine has no GPU of its own; there are '
                f'{torch.cuda.device_count()}, which --nproc-per-node must not exceed'
            )
        return torch.device('cuda', self.local_rank)

    def total(self, values: Tensor) -> Tensor:
        """Return the sum over all processes, the same in each."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values

    def of_first(self, state: State) -> State:
        """Return what the first process has."""
        if self.count == 1:
            return state
        states: list[Any] = [state if self.first else None]
        distributed.broadcast_object_list(states, src=0)
        return states[0]

    @torch.no_grad()
    def take_first(self, network: nn.Module) -> None:
        """Give the network of every process the weights of the first one's."""
        if self.count > 1:
            for value in network.state_dict().values():
                distributed.broadcast(value, src=0)

    @torch.no_grad()
    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Add up the gradients of all processes; one that no process has stays away."""
        if self.count == 1:
            return
        given = [value.grad is not None for value in parameters]
        for value in parameters:
            if value.grad is None:
                value.grad = torch.zeros_like(value)
        gradients = [value.grad for value in parameters if value.grad is not None]
        flags = torch.tensor(given, dtype=torch.float32, device=gradients[0].device)
        everything = self.total(torch.cat([*(grad.reshape(-1) for grad in gradients), flags]))
        sizes = [*(grad.numel() for grad in gradients), len(flags)]
        *parts, flags = torch.split(everything, sizes)
        for value, gradient, part, wanted in zip(
            parameters, gradients, parts, flags.tolist(), strict=True
        ):
            gradient.copy_(part.view_as(gradient))
            if not wanted:
                value.grad = None

    @torch.no_grad()
    def average_buffers(self, network: nn.Module) -> None:
        """Give every process the mean of what batch normalisation has seen in each."""
        if self.count > 1:
            for value in network.buffers():
                if value.is_floating_point():
                    value.copy_(self.total(value.contiguous()) / self.count)


ALONE = Processes()


@contextmanager
def joined() -> Iterator[Processes]:
    """
    Join the other processes that `torchrun` started; without it, this one is alone.

    Tensors on CPUs travel by gloo, those on GPUs by NCCL.
    """
    if not distributed.is_torchelastic_launched():
        yield ALONE
        return
    cuda = torch.cuda.is_available() and distributed.is_nccl_available()
    local_rank = distributed.get_node_local_rank()
    if cuda and local_rank < torch.cuda.device_count():
        torch.cuda.set_device(local_rank)
    distributed.init_process_group('cpu:gloo,cuda:nccl' if cuda else 'gloo', timeout=TIMEOUT)
    try:
        yield Processes(distributed.get_rank(), distributed.get_world_size(), local_rank)
    finally:
        distributed.destroy_process_group()
