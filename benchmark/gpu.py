"""
Time the networks on a CUDA device against its measured matrix product; does nothing without one.

`python benchmark/gpu.py`; the table goes to benchmark/gpu_DEVICE_torchVERSION.csv.
"""

import argparse
import copy
import csv
from functools import partial
from pathlib import Path
import statistics
import sys
import time

import cv2
from dense_perception.data.road_world import RoadWorld
from dense_perception.evaluation.peers import PEERS
from dense_perception.evaluation.result_files import table_path
from dense_perception.networks import NETWORKS
from dense_perception.networks.layers import correlation
from dense_perception.predictors import labelling
from dense_perception.predictors.engines.products import choose_convolutions
from dense_perception.predictors.flow_estimator import FlowEstimator
from dense_perception.predictors.segmenter import Segmenter
from dense_perception.predictors.tensors import images_to_tensor
from dense_perception.weights.published import find_weights
import torch
from torch.utils.flop_counter import FlopCounterMode

SIZE = (1024, 2048)
MARGIN = 186  # reflected pixels that Dilation10 needs


def milliseconds(run, calls=20):
    """Return the median and the largest of the times of a call on the device."""
    for _ in range(3):
        run()
    times = []
    for _ in range(calls):
        torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times), max(times)


class Table:
    """Rows that are printed as they come."""

    def __init__(self):
        self.rows = []

    def add(self, what, run, work=0.0, ceiling=0.0, calls=20):
        """
        Time a call.

        :param work: its floating-point operations in TFLOP.
        :param ceiling: TFLOP/s of a matrix product.
        :returns: its median in milliseconds; nan where it fails, which is printed.
        """
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        try:
            middle, most = milliseconds(run, calls)
        except Exception as error:  # noqa: BLE001 - the other rows are wanted all the same
            print(f'{what}: {type(error).__name__}: {error}'[:300], flush=True)
            return float('nan')
        rate = work / middle * 1e3
        row = {
            'what': what,
            'p50 ms': f'{middle:.3f}',
            'max ms': f'{most:.3f}',
            'TFLOP/s': f'{rate:.1f}' if work else '',
            'share of matrix product': f'{rate / ceiling:.3f}' if ceiling else '',
            'peak MiB': round(torch.cuda.max_memory_allocated() / 2**20),
        }
        self.rows.append(row)
        print(*row.values(), sep=', ', flush=True)
        return middle


def graph_of(run, values):
    """Return a call that replays the kernels of another."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            run(values)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run(values)
    return graph.replay


@torch.inference_mode()
def ceilings(table):
    """Measure matrix products and copying."""
    rates = {}
    for dtype in (torch.bfloat16, torch.float16):
        first, second = (torch.randn(8192, 8192, device='cuda', dtype=dtype) for _ in range(2))
        work = 2 * 8192**3 / 1e12
        middle = table.add(f'matrix product 8192, {dtype}', lambda a=first, b=second: a @ b, work)
        rates[dtype] = work / middle * 1e3
    values = torch.empty(2**30, device='cuda', dtype=torch.uint8)
    table.add('copy of 1 GiB', values.clone)
    return rates


@torch.inference_mode()
def large_network(table, rates):
    """Time Dilation10 on a padded 1024 x 2048 image."""
    network = NETWORKS['front_end_context'](classes=19, width='full', layers=10).eval()
    height, width = (size + 2 * MARGIN for size in SIZE)
    with FlopCounterMode(display=False) as counter, torch.device('meta'):
        meta = NETWORKS['front_end_context'](classes=19, width='full', layers=10).eval()
        meta(torch.empty(1, 3, height, width))
    work = counter.get_total_flops() / 1e12
    print(f'Dilation10 at 1024 x 2048: {work:.2f} TFLOP')
    image = torch.randn(1, 3, height, width).contiguous(memory_format=torch.channels_last)
    wanted = float32(table, network, image, work)
    for dtype, ceiling in rates.items():
        halves(table, network, image, wanted, dtype, work, ceiling)


def float32(table, network, image, work):
    """Time plain PyTorch and return its scores, which the others are compared with."""
    plain, values = copy.deepcopy(network).cuda(), image.cuda()
    table.add('Dilation10, plain torch float32', lambda: plain(values), work, calls=3)
    return plain(values)


def halves(table, network, image, wanted, dtype, work, ceiling):
    """Time a type of half the size: plain, with chosen convolutions, and as a CUDA graph."""
    placed = copy.deepcopy(network).to('cuda', dtype, memory_format=torch.channels_last)
    values = image.to('cuda', dtype)
    torch.backends.cudnn.benchmark = False
    table.add(f'Dilation10, torch {dtype}', lambda: placed(values), work, ceiling)
    torch.backends.cudnn.benchmark = True
    title = f'Dilation10, torch {dtype}, cuDNN chooses'
    table.add(title, lambda: placed(values), work, ceiling)
    chosen = choose_convolutions(placed, values)
    error = (chosen(values).float() - wanted).norm() / wanted.norm()
    print(f'relative error of chosen convolutions {error:.1e}')
    title = f'Dilation10, chosen convolutions {dtype}'
    table.add(title, lambda: chosen(values), work, ceiling)
    table.add(f'{title}, CUDA graph', graph_of(chosen, values), work, ceiling)


@torch.inference_mode()
def shipped_networks(table):
    """Time the shipped networks with and without what surrounds them."""
    world = RoadWorld(3)
    first, second = world.frame(40).image, world.frame(41).image
    for size in ((360, 480), (512, 1024), SIZE):
        shipped_labels(table, first, size)
    estimator = FlowEstimator.from_file(
        find_weights('flow'), device='cuda', precision='float16', width=512
    )
    table.add('flow, 360 x 480 float16, images to flow', lambda: estimator.estimate(first, second))
    for name, method in PEERS.items():
        table.add(f'flow, 360 x 480, OpenCV {name}', partial(method, first, second), calls=5)


def shipped_labels(table, frame, size):
    """Time labels of one size: the network alone, and from an image to its labels."""
    picture = cv2.resize(frame, size[::-1])
    segmenter = Segmenter.from_file(find_weights('drive'), device='cuda', precision='float16')
    values = images_to_tensor([picture]).cuda().half()
    values = values.contiguous(memory_format=torch.channels_last)
    what = f'drive, {size[0]} x {size[1]} float16'
    bare = table.add(f'{what}, network', lambda: segmenter.network(values))
    table.add(f'{what}, network, CUDA graph', graph_of(segmenter.network, values))
    whole = table.add(f'{what}, image to labels', lambda: segmenter.segment(picture))
    table.add(
        f'{what}, image to labels and confidence',
        lambda: segmenter.segment(picture, confidence=True),
    )
    print(f'{what}: {whole - bare:.2f} ms beside the network')


@torch.inference_mode()
def full_flow(table):
    """Time both FlowNets in their published width, and the correlation layer."""
    pair = [
        torch.randn(1, 3, 512, 1024, device='cuda').half().to(memory_format=torch.channels_last)
        for _ in range(2)
    ]
    for name in ('flownet_simple', 'flownet_corr'):
        network = NETWORKS[name]().eval().cuda().half().to(memory_format=torch.channels_last)
        table.add(f'{name}, 512 x 1024 float16', partial(network, *pair))
    features = [torch.randn(1, 256, 64, 128, device='cuda').half() for _ in range(2)]
    table.add('correlation, 64 x 128 x 256 float16', lambda: correlation(*features))


@torch.inference_mode()
def labels(table):
    """Time labels and confidence from scores, and compare them with the reference."""
    scores = torch.randn(1, 19, 128, 256, device='cuda')
    place = labelling.Enlargement(*SIZE, *SIZE)

    def deconvolution():
        kernel = torch.ones(19, 1, 16, 16, device='cuda')
        larger = torch.nn.functional.conv_transpose2d(scores, kernel, None, 8, 4, 0, 19)
        certain, best = larger.softmax(1).max(1)
        return best.byte().cpu(), (certain * 255).byte().cpu()

    before = table.add('scores to labels and confidence, deconvolution', deconvolution)
    kernel = labelling.label_pixels
    after = table.add('the same, one kernel', lambda: kernel(scores, place, confidence=True))
    table.add('scores to labels, one kernel', lambda: kernel(scores, place))
    print(f'labels and confidence {before / after:.1f} times as fast')
    ours, certain = kernel(scores, place, confidence=True)
    reference, sure = labelling.reference(scores.cpu(), place, confidence=True)
    print(
        f'equal labels {(ours == reference).mean():.7f}, confidence differs by at most '
        f'{abs(certain.astype(int) - sure.astype(int)).max()}'
    )


def main():
    """Print the table and write it beside this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print('no CUDA device; nothing measured')
        return 0
    card = torch.cuda.get_device_name()
    title = f'{card}, torch {torch.__version__}'
    print(title)
    table = Table()
    rates = ceilings(table)
    labels(table)
    large_network(table, rates)
    torch.backends.cudnn.benchmark = False
    shipped_networks(table)
    full_flow(table)
    path = table_path('gpu', torch.device('cuda'), options.out)
    with path.open('w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, [*table.rows[0], 'device'])
        writer.writeheader()
        writer.writerows({**row, 'device': title} for row in table.rows)
    return 0


if __name__ == '__main__':
    sys.exit(main())
