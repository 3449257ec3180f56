import csv
from pathlib import Path
import subprocess
import sys

import pytest

pytestmark = pytest.mark.ros

SCRIPT = Path(__file__).parents[2] / 'benchmark' / 'node.py'
SMALL = ('device=cpu', 'precision=float32', 'segmentation_width=64', 'flow_width=64')


@pytest.mark.slow
def test_benchmark_tells_rate_latency_and_memory_of_the_launched_node(ros_environment, tmp_path):
    table = tmp_path / 'table.csv'
    options = ['--seconds', '1', '--size', '64x48', '--cameras', '1', '--out', str(table)]
    run = subprocess.run(
        [sys.executable, str(SCRIPT), *options, '--set', *SMALL],
        env=dict(ros_environment),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    with table.open(newline='', encoding='utf-8') as file:
        rows = {row['what']: row for row in csv.DictReader(file)}
    assert list(rows) == ['bare', 'unloaded', 'saturated', 'camera at 60 Hz', 'overload']
    assert all(0 < float(row['p50 ms']) <= float(row['p99 ms']) for row in rows.values())
    assert float(rows['unloaded']['over bare ms']) < float(rows['unloaded']['p99 ms'])
    bare, overload = rows['bare'], rows['overload']
    for rank in ('p50 ms', 'p99 ms'):
        assert float(overload[f'limit {rank}']) > 2 * float(bare[rank])
    for name in ('saturated', 'camera at 60 Hz', 'overload'):
        assert float(rows[name]['fps']) > 0
        assert 2 <= int(rows[name]['received']) <= int(rows[name]['sent'])
        assert float(rows[name]['own mib']) > 100  # torch alone takes more
