"""
Evaluate the node on a recording.

`ros2 launch dense_perception evaluate.launch.py bag:=PATH truth:=FOLDER` plays the bag to the node
that drive.launch.py starts and leaves report.json and report.html; `mode:=offline` runs the
networks on every image instead. It is the command `evaluate`, whose exit status tells of gates.
"""

from pathlib import Path
import shlex

from ament_index_python.packages import get_package_prefix
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, ExecuteProcess, OpaqueFunction, Shutdown
from launch.substitutions import LaunchConfiguration

COMMAND = Path(get_package_prefix('dense_perception')) / 'lib' / 'dense_perception' / 'evaluate'
ARGUMENTS = {
    'bag': (None, 'rosbag2 bag, a folder or a single .db3 or .mcap file'),
    'truth': ('', 'folder of truth; empty: topics of the bag, or NAME_truth beside it'),
    'mode': ('replay', 'replay: the launched node; offline: every image, without ROS topics'),
    'rate': ('1.0', 'speed of a replay, 1.0 is as recorded'),
    'weights': ('drive', 'of labels'),
    'flow_weights': ('flow', 'of flow'),
    'device': ('auto', 'auto, cpu, cuda or cuda:N'),
    'label_set': ('', 'of the truth; empty: that of the weights'),
    'record': ('', 'folder for a copy of the bag with the results; empty: none'),
    'out': ('out/evaluation', 'folder for report.json and report.html'),
    'options': ('', 'more options of the command `evaluate`, as in a shell'),
}
# Options of the command by the name of their argument; of the optional ones an empty one is none.
ALWAYS = ('bag', 'weights', 'flow_weights', 'device', 'out')
OPTIONAL = ('truth', 'label_set', 'record')


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments; the command follows once their values are known."""
    arguments = [
        DeclareLaunchArgument(
            name,
            default_value=default,
            description=description,
            choices=['replay', 'offline'] if name == 'mode' else None,
        )
        for name, (default, description) in ARGUMENTS.items()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=_command)])


def _command(context: LaunchContext) -> list[ExecuteProcess]:
    value = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    given = [*ALWAYS, *(name for name in OPTIONAL if value[name])]
    words = [f'--{name.replace("_", "-")}={value[name]}' for name in given]
    if value['mode'] == 'replay':
        words.append(f'--rate={value["rate"]}')
    return [
        ExecuteProcess(
            cmd=[str(COMMAND), value['mode'], *words, *shlex.split(value['options'])],
            name='evaluate',
            output='screen',
            # It interrupts node and player itself, and may wait for them.
            sigterm_timeout='40',
            on_exit=Shutdown(reason='evaluate has ended'),
        )
    ]
