"""Fixtures for tests of weights files that others have written."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
import shutil

from dense_perception.weights.caffe import net_parameter
import pytest
from torch import Tensor

Blobs = Mapping[str, Sequence[Tensor]]  # of each layer


@pytest.fixture
def write_caffemodel() -> Callable[..., Path]:
    """Return a function that writes a Caffe file, of the form since 2014 or of that before."""

    def write(path: Path, layers: Blobs, *, v1: bool = False) -> Path:
        net = net_parameter()()
        for name, blobs in layers.items():
            layer = (net.layers if v1 else net.layer).add(name=name.encode())
            for value in blobs:
                blob = layer.blobs.add(data=value.numpy().astype('<f4').tobytes())
                if v1:
                    sizes = (*(1,) * (4 - value.dim()), *value.shape)
                    blob.num, blob.channels, blob.height, blob.width = sizes
                else:
                    blob.shape.dim.extend(value.shape)
        path.write_bytes(net.SerializeToString())
        return path

    return write


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """Return a folder that is gone after the test, for files of hundreds of megabytes."""
    yield tmp_path
    shutil.rmtree(tmp_path)
