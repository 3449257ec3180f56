"""Where and how precisely a network runs."""

from dataclasses import dataclass

from dense_perception.errors import SettingError
from dense_perception.networks.fast_convolution import make_fast
import torch
from torch import nn

PRECISIONS = {
    'float32': torch.float32,
    'bfloat16': torch.bfloat16,
    'float16': torch.float16,
}


@dataclass(frozen=True)
class Placement:
    """A device and the number type of a network on it."""

    device: torch.device
    dtype: torch.dtype

    def place(self, network: nn.Module) -> nn.Module:
        """
        Return the network there, ready for inference, channels last in memory.

        In bfloat16 on a CPU wide dilated convolutions become `FastConvolution`s.
        """
        placed = network.eval().requires_grad_(False).to(self.device, self.dtype)
        placed = placed.to(memory_format=torch.channels_last)
        if self.device.type == 'cpu' and self.dtype == torch.bfloat16:
            make_fast(placed)
        return placed

    def __str__(self) -> str:
        return f'{self.device} {str(self.dtype).removeprefix("torch.")}'


def choose_placement(device: str = 'auto', precision: str = 'auto') -> Placement:
    """
    Choose device and precision.

    :param device: `auto` (a CUDA device if there is one), `cpu`, `cuda`, `cuda:1`, ...
    :param precision: `auto` (float16 on CUDA; on a CPU bfloat16 where it computes in it natively,
        else float32), or a name in `PRECISIONS`.
    :raises SettingError: no such device here, or a precision that the device cannot serve.
    """
    name = ('cuda' if torch.cuda.is_available() else 'cpu') if device == 'auto' else device
    try:
        chosen = torch.device(name)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise SettingError(f'device is {device!r}, which cannot be used here: {error}') from error
    if precision == 'auto':
        precision = _best_precision(chosen)
    if precision not in PRECISIONS:
        known = ', '.join(('auto', *PRECISIONS))
        raise SettingError(f'precision is {precision!r}; it must be one of {known}')
    if chosen.type == 'cpu' and precision == 'float16':
        raise SettingError('precision float16 is 100 times slower on a CPU; use auto or bfloat16')
    return Placement(chosen, PRECISIONS[precision])


def _best_precision(device: torch.device) -> str:
    if device.type == 'cuda':
        return 'float16'
    # Emulated bfloat16 is slower than float32; the CPU says whether it computes in it.
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return 'bfloat16' if native else 'float32'
