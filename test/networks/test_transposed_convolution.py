from importlib.util import module_from_spec, spec_from_file_location
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn
import torch.nn.functional as F

EXAMPLE = Path(__file__).parents[2] / 'examples' / 'dcgan.py'


@pytest.fixture(scope='module')
def dcgan():
    spec = spec_from_file_location('dcgan', EXAMPLE)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


INPUT = torch.tensor(
    [[3, 3, 2, 1, 0], [0, 0, 1, 3, 1], [3, 1, 2, 2, 3], [2, 0, 0, 2, 2], [2, 0, 0, 0, 1.0]]
)
KERNEL = torch.tensor([[0, 1, 2], [2, 2, 0], [0, 1, 2.0]])


def test_convolution_of_the_worked_example():
    expected = torch.tensor([[12, 12, 17], [10, 17, 19], [9, 6, 14.0]])
    assert torch.equal(F.conv2d(INPUT[None, None], KERNEL[None, None])[0, 0], expected)


def test_transposed_convolution_multiplies_by_the_transposed_matrix_of_the_convolution():
    # Row (r, c) of the matrix holds the kernel where output (r, c) looks at the 4 x 4 input.
    matrix = torch.zeros(4, 16)
    for row in range(2):
        for column in range(2):
            place = torch.zeros(4, 4)
            place[row : row + 3, column : column + 3] = KERNEL
            matrix[2 * row + column] = place.flatten()
    torch.manual_seed(0)
    small, large = torch.randn(4), torch.randn(16)
    convolved = F.conv2d(large.reshape(1, 1, 4, 4), KERNEL[None, None])
    torch.testing.assert_close(convolved.flatten(), matrix @ large)
    transposed = F.conv_transpose2d(small.reshape(1, 1, 2, 2), KERNEL[None, None])
    torch.testing.assert_close(transposed.flatten(), matrix.T @ small)


def test_generator_doubles_the_size_with_each_transposed_convolution(dcgan):
    sides, values = [], torch.randn(2, 100)
    for layer in dcgan.Generator((16, 8, 8, 4)).eval():
        values = layer(values)
        if isinstance(layer, nn.ConvTranspose2d):
            sides.append(tuple(values.shape[2:]))
    assert sides == [(4, 4), (8, 8), (16, 16), (32, 32), (64, 64)]
    assert values.shape == (2, 3, 64, 64)
    assert values.abs().max() <= 1


def test_generator_has_the_weights_of_the_paper(dcgan):
    with torch.device('meta'):
        generator = dcgan.Generator()
    kernels = [layer for layer in generator if isinstance(layer, nn.ConvTranspose2d)]
    assert sum(layer.weight.numel() for layer in kernels) == 100 * 1024 * 16 + 25 * (
        1024 * 512 + 512 * 256 + 256 * 128 + 128 * 3
    )
    # Scale and shift of a normalisation for each channel but those of the picture.
    assert sum(value.numel() for value in generator.parameters()) == 18_855_040


def test_generator_of_the_port_to_torch_has_its_weights_and_sizes():
    # 4 x 4 kernels that need no added row: from 4 x 4 features of 512 channels to 64 x 64 pixels.
    widths = (512, 256, 128, 64)
    layers = [nn.ConvTranspose2d(100, widths[0], 4, bias=False)]
    for before, after in zip(widths, [*widths[1:], 3], strict=True):
        layers += [nn.BatchNorm2d(before), nn.ReLU()]
        layers.append(nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False))
    with torch.device('meta'):
        network, values = nn.Sequential(*layers).to('meta'), torch.empty(2, 100, 1, 1)
    assert network(values).shape == (2, 3, 64, 64)
    assert sum(value.numel() for value in network.parameters()) == 3_576_704


def test_discriminator_mirrors_the_generator(dcgan):
    with torch.device('meta'):
        network = dcgan.Discriminator()
        assert network(torch.empty(3, 3, 64, 64)).shape == (3,)
    convolutions = [layer for layer in network if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [128, 256, 512, 1024, 1]


def test_discriminator_has_the_weights_of_the_mirrored_generator(dcgan):
    with torch.device('meta'):
        network = dcgan.Discriminator()
    kernels = 25 * (3 * 128 + 128 * 256 + 256 * 512 + 512 * 1024) + 16 * 1024
    normalised = 256 + 512 + 1024  # not the first layer; scale and shift of each channel
    assert sum(value.numel() for value in network.parameters()) == kernels + 2 * normalised


def test_discriminator_with_the_kernels_of_the_port_to_torch_has_its_weights_and_sizes(dcgan):
    with torch.device('meta'):
        network = dcgan.Discriminator((512, 256, 128, 64))
        for place, layer in enumerate(network):
            if isinstance(layer, nn.Conv2d) and layer.stride == (2, 2):
                channels = layer.in_channels, layer.out_channels
                network[place] = nn.Conv2d(*channels, 4, 2, 1, bias=layer.bias is not None)
        assert network(torch.empty(2, 3, 64, 64)).shape == (2,)
    assert sum(value.numel() for value in network.parameters()) == 2_765_568


def test_each_step_trains_both_networks_by_their_own_losses(dcgan):
    torch.manual_seed(0)
    widths = (16, 16, 8, 8)
    generator, discriminator = dcgan.Generator(widths), dcgan.Discriminator(widths)
    before = [value.clone() for value in (*generator.parameters(), *discriminator.parameters())]
    trainer = dcgan.Trainer(generator, discriminator)
    real = torch.full((8, 3, 64, 64), 0.5)
    losses = [trainer.step(real) for _ in range(15)]
    after = (*generator.parameters(), *discriminator.parameters())
    assert not any(torch.equal(*pair) for pair in zip(before, after, strict=True))
    # Chance gives 2 ln 2; constant pictures are soon told from noise.
    assert losses[-1][1] < math.log(2) < losses[0][1]
    assert losses[-1][0] > losses[0][0]


def test_pictures_are_cut_to_squares(dcgan, tmp_path):
    picture = np.zeros((100, 160, 3), np.uint8)
    picture[:, 30:130, 2] = 255  # red, as OpenCV orders colours
    cv2.imwrite(str(tmp_path / 'a.png'), picture)
    (square,) = dcgan.squares(tmp_path)
    assert square.shape == (3, 64, 64)
    assert square.mean((1, 2)).tolist() == [1, -1, -1]
