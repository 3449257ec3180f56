import os
from pathlib import Path
import subprocess
import sys

import dense_perception

PACKAGE = Path(dense_perception.__file__).parent
# Commands that play or record messages.
WITH_ROS = ('dense_perception.ros', 'dense_perception.cli.demo', 'dense_perception.cli.make_bag')

IMPORT_ALL = """
import importlib, sys
for name in ('rclpy', 'sensor_msgs', 'cv_bridge'):
    sys.modules[name] = None  # makes importing it an ImportError
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def test_library_outside_the_node_is_imported_without_ros():
    files = sorted(PACKAGE.rglob('*.py'))
    parts = (file.relative_to(PACKAGE.parent).with_suffix('').parts for file in files)
    names = ['.'.join(name).removesuffix('.__init__') for name in parts]
    library = [name for name in names if not name.startswith(WITH_ROS)]
    assert 'dense_perception.predictors.segmenter' in library
    done = subprocess.run(
        [sys.executable, '-c', IMPORT_ALL, *library],
        env={**os.environ, 'PYTHONPATH': str(PACKAGE.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
