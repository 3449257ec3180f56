"""Each example beside the launch file, on a bag of the bundled drive, as a user starts them."""

import re
import signal
import time

import pytest

pytestmark = [pytest.mark.ros, pytest.mark.slow]

WAIT_S = 180.0  # on a busy machine
PARAMETERS = """
/**:
  ros__parameters:
    device: cpu
    precision: float32
    segmentation_width: 240
    flow_width: 256
    max_flow_gap_s: 60.0
"""
# What an example says first that is of use; of the numbers in it, one must be over 0.
USEFUL = {
    'driving': r'free for ([\d.]+) m; [\d.]+% moves',
    'drone': r'soonest ([\d.]+) s; 0 measurements of the IMU',
    'nav2': r'(\d+) cells free, \d+ occupied; nearest [\d.]+ m',
}
MOUNTED = {
    'driving': ['camera_height:=1.4'],
    'drone': [],
    'nav2': ['camera_height:=1.4', 'camera_pitch:=0.02'],
}


@pytest.mark.parametrize('name', USEFUL)
def test_an_example_makes_something_of_the_bundled_drive(launched, bag, example, tmp_path, name):
    file = tmp_path / 'parameters.yaml'
    file.write_text(PARAMETERS)
    drive = launched('drive.launch.py', f'bag:={bag}', 'loop:=true', f'params_file:={file}')
    process, output = example(f'examples/{name}_consumer.py', *MOUNTED[name])
    deadline = time.monotonic() + WAIT_S
    while not any(float(number) > 0 for number in re.findall(USEFUL[name], output.read_text())):
        running = process.poll() is None and drive.process.poll() is None
        assert running, output.read_text() + drive.output()
        assert time.monotonic() < deadline, output.read_text() + drive.output()
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(WAIT_S) == 0
    assert 'Traceback' not in output.read_text()
    assert drive.stop() == 0
