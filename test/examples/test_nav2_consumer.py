from importlib.util import find_spec
from pathlib import Path
import re

import numpy as np
import pytest

pytestmark = pytest.mark.ros

TOLD = re.compile(r'(\d+) cells free, (\d+) occupied; nearest ([\d.]+) m')


def test_labels_become_a_grid_and_a_class_that_does_not_exist_a_warning(stage):
    grids = []
    if find_spec('nav_msgs'):
        from nav_msgs.msg import OccupancyGrid

        grids = stage.listen(OccupancyGrid, '/nav2_consumer/grid')
    output = stage.start('examples/nav2_consumer.py', 'camera_height:=1.4', 'camera_pitch:=0.02')
    wrong = stage.start('examples/nav2_consumer.py', 'drivable:=lava')

    def told():
        warned = "cityscapes has no class 'lava'" in wrong.read_text()
        published = bool(grids) or not find_spec('nav_msgs')
        return warned and published and TOLD.search(output.read_text())

    stage.play_until(told)
    free, occupied, nearest = (
        float(number) for number in TOLD.search(output.read_text()).groups()
    )
    assert free > 200
    assert free + occupied < 200 * 200
    assert 0 <= nearest <= 30
    for grid in grids[:1]:
        assert grid.header.frame_id == 'base_footprint'
        assert (grid.info.width, grid.info.height) == (200, 200)
        assert grid.info.resolution == pytest.approx(0.1)
        assert (grid.info.origin.position.x, grid.info.origin.position.y) == (0, -10)
        cells = np.array(grid.data).reshape(200, 200)
        assert set(np.unique(cells)) <= {-1, 0, 100}
        free = np.argwhere(cells == 0)
        assert abs(free[:, 0].mean() - 100) < 60  # ahead rather than to one side
    assert stage.close() == [0, 0, 0]
    assert 'Traceback' not in output.read_text() + wrong.read_text()


@pytest.mark.parametrize('name', ['nav2', 'driving', 'drone'])
def test_an_example_is_short(name):
    file = Path(__file__).parents[2] / 'examples' / f'{name}_consumer.py'
    assert len(file.read_text().splitlines()) < 60
