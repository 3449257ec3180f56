"""
Time what the free space node and the motion node do for one 480x360 image, without ROS.

`OMP_NUM_THREADS=1 python benchmark/consumers.py`; true flow and labels of a rendered drive.
"""

from collections.abc import Callable
from pathlib import Path
import sys

import cv2
from dense_perception.data.road_world import RoadWorld, RoadWorldSettings
from dense_perception.evaluation.result_files import machine, table_path, write_table
from dense_perception.evaluation.timing import time_calls
from dense_perception.geometry.approach import sector_motion
from dense_perception.geometry.camera import Camera, mounted
from dense_perception.geometry.ego_motion import EgoMotionSettings, estimate_ego_motion
from dense_perception.geometry.free_space import find_free_space, GroundView, occupancy_grid
from dense_perception.geometry.moving import find_moving, MovingSettings, static_mask
from dense_perception.labels import CITYSCAPES
from dense_perception.ros.coarse import CoarseGrid
from dense_perception.ros.free_distance import Beams
import numpy as np
import torch

HEIGHT, WIDTH = 360, 480
BENT = np.array((-0.2, 0.05, 0, 0, 0))


def main() -> int:
    """Print the table and write it beside this file."""
    cv2.setNumThreads(1)
    cpu = torch.device('cpu')
    title = f'{machine(cpu)}, OpenCV with one thread'
    world = RoadWorld(3, RoadWorldSettings(height=HEIGHT, width=WIDTH, sensor=False))
    labels, (flow, _) = world.frame(20).labels, world.flow(20, 21)
    rows = []
    for name, distortion in (('pinhole', np.zeros(0)), ('distorted', BENT)):
        camera = Camera(WIDTH, HEIGHT, world.camera_matrix, distortion)
        for what, work in works(camera, flow, labels).items():
            timing = time_calls(work, seconds=2)
            rows.append((what, name, f'{timing.p50_ms:.1f}', f'{timing.p99_ms:.1f}'))
            print(f'{what:44s} {name:10s} {timing.p50_ms:6.1f} {timing.p99_ms:6.1f} ms')
    columns = ('what, per image of 480x360', 'camera', 'p50 ms', 'p99 ms')
    write_table(table_path('consumers', cpu, Path(__file__).parent), columns, rows, title)
    return 0


def works(camera: Camera, flow: np.ndarray, labels: np.ndarray) -> dict[str, Callable[[], object]]:
    """Return what is timed; everything that a node makes once is made before."""
    grid = CoarseGrid(camera, 4)
    ego, moving = EgoMotionSettings(threshold_px=0.25, step=4), MovingSettings(threshold_px=0.25)
    turn = estimate_ego_motion(grid.flow(flow), grid.straight, ego).rotation
    view = GroundView(camera, mounted((0, 0, 1.4), pitch=0.02))
    beams = Beams(view, 30.0)

    def sectors(rotation: np.ndarray | None) -> object:
        coarse = grid.flow(flow)
        motion = estimate_ego_motion(coarse, grid.straight, ego, rotation=rotation)
        return sector_motion(coarse, grid.straight, motion, 0.1)

    def with_labels() -> object:
        coarse, classes = grid.flow(flow), grid.labels(labels)
        static = static_mask(classes, CITYSCAPES, moving)
        motion = estimate_ego_motion(coarse, grid.straight, ego, static=static, rotation=turn)
        sector_motion(coarse, grid.straight, motion, 0.1)
        found = find_moving(coarse, classes, grid.straight, motion, CITYSCAPES, moving)
        return grid.fine(found.mask)

    def distance() -> object:
        return beams.scan(find_free_space(labels, view, CITYSCAPES))

    def both() -> object:
        space = find_free_space(labels, view, CITYSCAPES)
        return occupancy_grid(space, view), beams.scan(space)

    return {
        'motion: sectors, turn from the IMU': lambda: sectors(turn),
        'motion: sectors, turn from the flow': lambda: sectors(None),
        'motion: sectors and moving, turn from the IMU': with_labels,
        'free space: distance': distance,
        'free space: distance and grid': both,
    }


if __name__ == '__main__':
    sys.exit(main())
