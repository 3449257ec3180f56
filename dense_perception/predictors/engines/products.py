"""
Convolutions of a large network on a GPU: fused with the ReLU behind them, or as matrix products.

The published front end spends two thirds of its arithmetic in one convolution of 7 x 7 taps at
dilation 4. A library that is tuned for undilated taps may run it far below what the same device
reaches in a matrix product; gathering the taps costs little beside 4096 filters. Each layer keeps
whichever way was the fastest on its own inputs.
"""

from collections.abc import Callable, Sequence
import copy
import logging
import time

from dense_perception.networks.layers import is_plain
import torch
from torch import fx, nn, Tensor
import torch.nn.functional as F

_LOG = logging.getLogger(__name__)
_MOST_GATHERED = 2**29  # bytes of taps that are gathered at a time
_RUNS = 3  # of each way; the best counts


class PlainConvolution(nn.Module):
    """A convolution and, if wanted, the ReLU behind it; cuDNN does both in one pass."""

    def __init__(self, layer: nn.Conv2d, *, rectify: bool) -> None:
        super().__init__()
        self.layer, self.rectify = layer, rectify

    def forward(self, values: Tensor) -> Tensor:
        """Return what the layer gives, (N, C, H, W)."""
        layer = self.layer
        if self.rectify and values.is_cuda and isinstance(layer.padding, tuple):
            fused: Tensor = torch.cudnn_convolution_relu(
                values,
                layer.weight,
                layer.bias,
                layer.stride,
                layer.padding,
                layer.dilation,
                layer.groups,
            )
            return fused
        result: Tensor = layer(values)
        return result.relu_() if self.rectify else result


class ProductConvolution(nn.Module):
    """The same by gathering the taps of some rows at a time and one matrix product for them."""

    def __init__(self, layer: nn.Conv2d, *, rectify: bool) -> None:
        """
        Take a layer.

        :param layer: one that `is_plain`.
        """
        super().__init__()
        self.layer, self.rectify = layer, rectify
        weight = layer.weight.detach().permute(2, 3, 1, 0)  # (rows, columns, C, filters)
        self.weight = nn.Parameter(weight.reshape(-1, layer.out_channels).contiguous(), False)

    @torch.inference_mode()
    def forward(self, values: Tensor) -> Tensor:
        """Return what the layer gives, (N, C, H, W), channels last in memory."""
        layer = self.layer
        assert not isinstance(layer.padding, str)
        assert layer.bias is not None
        (down, across), (step_down, step_across) = layer.kernel_size, layer.dilation
        high, wide = layer.padding
        images = F.pad(values, (wide, wide, high, high)).permute(0, 2, 3, 1).contiguous()
        batch, height, width, channels = images.shape
        rows, columns = height - step_down * (down - 1), width - step_across * (across - 1)
        result = values.new_empty((batch, rows, columns, layer.out_channels))
        taps = down * across * channels
        at_once = max(1, _MOST_GATHERED // (columns * taps * values.element_size()))
        multiply = torch._addmm_activation if self.rectify else torch.addmm
        for image, target in zip(images, result, strict=True):
            for top in range(0, rows, at_once):
                some = min(at_once, rows - top)
                gathered = image[top:].as_strided(
                    (some, columns, down, across, channels),
                    (
                        width * channels,
                        channels,
                        step_down * width * channels,
                        step_across * channels,
                        1,
                    ),
                    storage_offset=image[top:].storage_offset(),
                )
                place = target[top : top + some].view(-1, layer.out_channels)
                multiply(layer.bias, gathered.reshape(-1, taps), self.weight, out=place)
        return result.permute(0, 3, 1, 2)


def choose_convolutions(
    network: nn.Module,
    *images: Tensor,
    time_of: Callable[[nn.Module, Tensor], float] | None = None,
) -> nn.Module:
    """
    Return a copy of a network whose convolutions run in the way that is fastest here.

    :param network: on its device and in its precision; can be traced symbolically.
    :param images: (N, 3, H, W) each, what it will be given.
    :param time_of: seconds that a layer needs for an input; measured if None.
    :raises torch.fx.proxy.TraceError: what the network does depends on its input.
    """
    measure = time_of or _seconds
    traced = fx.symbolic_trace(copy.deepcopy(network))
    convolutions = _rectified(traced)
    inputs = _inputs(traced, images, list(convolutions))
    for name, rectify in convolutions.items():
        layer = traced.get_submodule(name)
        assert isinstance(layer, nn.Conv2d)
        ways: list[nn.Module] = [PlainConvolution(layer, rectify=rectify)]
        if is_plain(layer):
            ways.append(ProductConvolution(layer, rectify=rectify))
        times = [measure(way, inputs[name]) for way in ways]
        best = times.index(min(times))
        _LOG.info(
            '%s: %s', name, ', '.join(f'{type(w).__name__} {1e3 * t:.2f} ms'
                                      for w, t in zip(ways, times, strict=True)),
        )  # fmt: skip
        traced.set_submodule(name, ways[best])
        del inputs[name]
    return traced


def _rectified(traced: fx.GraphModule) -> dict[str, bool]:
    """Take the ReLUs behind convolutions out; return which convolution had one."""
    calls: dict[str, list[fx.Node]] = {}  # a layer may be called more than once
    for node in traced.graph.nodes:
        if node.op == 'call_module' and isinstance(
            traced.get_submodule(str(node.target)), nn.Conv2d
        ):
            calls.setdefault(str(node.target), []).append(node)
    found: dict[str, bool] = {}
    for name, nodes in calls.items():
        users = [list(node.users) for node in nodes]
        found[name] = all(len(own) == 1 and own[0].target is torch.relu for own in users)
        if found[name]:
            for node, (user,) in zip(nodes, users, strict=True):
                user.replace_all_uses_with(node)
                traced.graph.erase_node(user)
    traced.recompile()
    for name, rectify in found.items():
        layer = traced.get_submodule(name)
        assert isinstance(layer, nn.Conv2d)
        if rectify:  # until the fastest way is known
            layer.register_forward_hook(lambda _, __, output: output.relu_())
    return found


@torch.inference_mode()
def _inputs(
    traced: fx.GraphModule, images: Sequence[Tensor], names: list[str]
) -> dict[str, Tensor]:
    """Return what each layer is given."""
    seen: dict[str, Tensor] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[name] = inputs[0].clone()

        return hook

    layers = {name: traced.get_submodule(name) for name in names}
    hooks = [layer.register_forward_pre_hook(note(name)) for name, layer in layers.items()]
    traced(*images)
    for hook in hooks:
        hook.remove()
    for layer in layers.values():
        layer._forward_hooks.clear()
    return seen


@torch.inference_mode()
def _seconds(layer: nn.Module, values: Tensor) -> float:
    """Return the least of some times that a layer takes."""
    times = []
    for _ in range(_RUNS + 1):  # the first one chooses kernels
        _wait(values.device)
        started = time.perf_counter()
        layer(values)
        _wait(values.device)
        times.append(time.perf_counter() - started)
    return min(times[1:])


def _wait(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
