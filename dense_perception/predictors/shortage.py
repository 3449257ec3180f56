"""Short memory: how it shows, and what can be given back."""

import torch


def is_shortage(error: BaseException) -> bool:
    """Whether memory of the device or of the computer was short."""
    typed = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return typed or "can't allocate memory" in str(error)  # torch on a CPU: a RuntimeError


def give_memory_back() -> None:
    """
    Return memory of a CUDA device that torch keeps for later.

    Of use to other processes, and to a large tensor where what is kept is in pieces. Not while an
    error is handled: its traceback holds what the network was working on.
    """
    torch.cuda.empty_cache()  # does nothing where no such device is in use
