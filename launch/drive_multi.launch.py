"""
Label the streams of several cameras and estimate their flow, in one node.

`ros2 launch dense_perception drive_multi.launch.py rig:=FILE` listens to the cameras that the file
names, by default /front, /left and /right; results of the first are on
/dense_perception/front/labels and so on. All other arguments are those of drive.launch.py.
"""

from pathlib import Path

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration

HERE = Path(__file__).parent
RIG = str(HERE.parent / 'config' / 'rig.yaml')


def generate_launch_description() -> LaunchDescription:
    """Start what drive.launch.py starts, with a rig."""
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                'rig',
                default_value=RIG,
                description='YAML file of the cameras; see config/rig.yaml',
            ),
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(str(HERE / 'drive.launch.py')),
                launch_arguments={'rig': LaunchConfiguration('rig')}.items(),
            ),
        ]
    )
