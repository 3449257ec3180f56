"""What decides, beside the network, whether a built engine fits: the device and the packages."""

from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
import os
from pathlib import Path
import platform

import torch


def device_name(device: torch.device) -> str:
    """Return the model of a device; of a CPU also what it computes with, and on how much."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    path = Path('/proc/cpuinfo')
    lines = path.read_text(encoding='utf-8').splitlines() if path.is_file() else []
    models = [line.partition(': ')[2] for line in lines if line.startswith('model name')]
    capability = torch.backends.cpu.get_cpu_capability()
    model = models[0] if models else platform.machine()
    return f'{model}, {capability}, {os.cpu_count()} cores, {torch.get_num_threads()} threads'


def version_of(package: str) -> str:
    """Return the version of what installed a module; empty where nothing did."""
    if find_spec(package) is None:
        return ''
    try:
        return version(package)
    except PackageNotFoundError:  # onnxruntime-gpu installs onnxruntime
        names = packages_distributions().get(package, [])  # seconds, so it is not the first way
        return ', '.join(f'{name} {version(name)}' for name in sorted(set(names)))
