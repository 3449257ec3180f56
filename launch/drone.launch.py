"""
Label a drone's camera stream, estimate its flow, and tell how soon what is met.

`ros2 launch dense_perception drone.launch.py camera:=/front imu:=/imu/data` starts what
drive.launch.py starts, with the parameters of a drone, and the motion node beside it. Every
argument of drive.launch.py is one here too.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

SHARE = Path(get_package_share_directory('dense_perception'))
# Declared before drive.launch.py is read: params_file has another default there.
ARGUMENTS = {
    'params_file': (str(SHARE / 'config' / 'drone.yaml'), 'YAML file of parameters'),
    'motion_params_file': (
        str(SHARE / 'config' / 'motion.yaml'),
        'YAML file of parameters of the motion node',
    ),
    'motion_camera': (
        '',
        'name of the camera in the rig whose flow the motion node reads; empty: the only camera',
    ),
    'imu': ('/imu', 'topic of the IMU'),
    'mounting': ('', 'tf or parameters; empty: as in motion_params_file'),
    'use_labels': ('', 'true or false; empty: as in motion_params_file'),
}


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments; the motion node follows once their values are known."""
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    drive = PythonLaunchDescriptionSource(str(SHARE / 'launch' / 'drive.launch.py'))
    return LaunchDescription(
        [*arguments, IncludeLaunchDescription(drive), OpaqueFunction(function=_motion)]
    )


def _motion(context: LaunchContext) -> list[Node]:
    names = (*ARGUMENTS, 'namespace', 'use_sim_time', 'respawn', 'log_level')
    value = {name: LaunchConfiguration(name).perform(context) for name in names}
    overrides: dict[str, object] = {'use_sim_time': value['use_sim_time'].lower() == 'true'}
    if value['mounting']:
        overrides['mounting'] = value['mounting']
    if value['use_labels']:
        overrides['use_labels'] = value['use_labels'].lower() == 'true'
    inputs = ('labels', 'label_info', 'flow', 'flow_reference', 'camera_info')
    outputs = f'dense_perception/{value["motion_camera"]}'.rstrip('/')
    node = Node(
        package='dense_perception',
        executable='motion_node',
        name='motion',
        namespace=value['namespace'],
        parameters=[value['motion_params_file'], overrides],
        remappings=[('imu', value['imu']), *((name, f'{outputs}/{name}') for name in inputs)],
        arguments=['--ros-args', '--log-level', value['log_level'], '--enclave', '/motion'],
        respawn=value['respawn'].lower() == 'true',
        respawn_delay=1.0,
        output='screen',
    )
    return [node]
