from importlib.resources import files
import os
from pathlib import Path
import subprocess
import sys
from xml.etree import ElementTree

import pytest

pytestmark = pytest.mark.ros

ROOT = Path(__file__).parent.parent
FAST_DDS = {'fast': 'http://www.eprosima.com/XMLSchemas/fastRTPS_Profiles'}


def ros2(*arguments: str) -> list[str]:
    done = subprocess.run(['ros2', *arguments], capture_output=True, text=True, check=True)
    return done.stdout.split()


def share() -> Path:
    (prefix,) = ros2('pkg', 'prefix', '--share', 'dense_perception')
    return Path(prefix)


def test_ros2_run_finds_every_executable_by_package_name():
    assert ros2('pkg', 'executables', 'dense_perception')[1::2] == sorted(
        script.name for script in (ROOT / 'scripts').iterdir()
    )


def test_executables_run_under_the_python_that_is_first_on_the_path():
    (prefix,) = ros2('pkg', 'prefix', 'dense_perception')
    for script in Path(prefix, 'lib', 'dense_perception').iterdir():
        assert os.access(script, os.X_OK)
        assert script.read_text().startswith('#!/usr/bin/env python3\n')


def test_share_holds_manifest_launch_files_and_configuration():
    installed = {path.relative_to(share()) for path in share().rglob('*') if path.is_file()}
    assert Path('package.xml') in installed
    for folder in ('launch', 'config'):
        sources = {path.relative_to(ROOT) for path in (ROOT / folder).iterdir() if path.is_file()}
        assert sources
        assert sources <= installed


def test_installed_package_holds_its_weights_and_type_marker():
    package = files('dense_perception')
    assert package.joinpath('py.typed').is_file()
    for source in (ROOT / 'dense_perception' / 'weights' / 'files').glob('*'):
        assert package.joinpath('weights', 'files', source.name).is_file()


def test_fast_dds_profile_gives_large_images_room_and_keeps_the_network():
    root = ElementTree.parse(share() / 'config' / 'fastdds_large_images.xml').getroot()

    def values(tag: str) -> list[str | None]:
        return [element.text for element in root.iterfind(f'.//fast:{tag}', FAST_DDS)]

    assert values('type') == ['SHM', 'UDPv4']
    assert values('segment_size') == [str(64 * 1024**2)]
    assert values('maxMessageSize') == [str(32 * 1024**2)]
    assert values('count') == ['20']
    assert values('leaseAnnouncement/fast:nanosec') == ['500000000']
    assert values('useBuiltinTransports') == ['false']


def test_a_participant_uses_the_profile(ros_environment):
    code = (
        'import rclpy; from pathlib import Path; before = set(Path("/dev/shm").iterdir()); '
        'rclpy.init(); node = rclpy.create_node("n"); '
        'new = set(Path("/dev/shm").iterdir()) - before; '
        'print(max(file.stat().st_size for file in new)); rclpy.shutdown()'
    )
    done = subprocess.run([sys.executable, '-c', code], env=ros_environment, capture_output=True)
    assert int(done.stdout) >= 64 * 1024**2


def test_launch_shows_arguments_passes_them_and_stops_at_an_interrupt(launched, tmp_path):
    file = tmp_path / 'say.launch.py'
    file.write_text(
        'from launch import LaunchDescription\n'
        'from launch.actions import DeclareLaunchArgument, ExecuteProcess, LogInfo\n'
        'from launch.substitutions import LaunchConfiguration\n'
        'def generate_launch_description():\n'
        '    return LaunchDescription([\n'
        '        DeclareLaunchArgument("word", default_value="no", description="to say"),\n'
        '        LogInfo(msg=["word ", LaunchConfiguration("word")]),\n'
        '        ExecuteProcess(cmd=["sleep", "60"])])\n'
    )
    assert {"'word':", "'no')"} <= set(ros2('launch', str(file), '--show-args'))
    process = launched(file, 'word:=yes')
    process.wait_for('word yes')
    process.wait_for('process started')
    assert process.stop() == 0
