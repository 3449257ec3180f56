"""
Label a camera stream and estimate its flow.

`ros2 launch dense_perception drive.launch.py camera:=/front` listens to /front/image_raw;
with `bag:=PATH` a player publishes the bag's topics first. For several cameras there is
drive_multi.launch.py.
"""

import os
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from dense_perception.ros.rig import read_rig, remappings
from launch import LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    OpaqueFunction,
    SetEnvironmentVariable,
    Shutdown,
)
from launch.events.process import ProcessExited
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

SHARE = Path(get_package_share_directory('dense_perception'))
ARGUMENTS = {
    'camera': ('/camera', 'namespace of the camera: its image_raw and camera_info are read'),
    'image_topic': ('image_raw', 'name of the image topic in the namespace of the camera'),
    'rig': ('', 'YAML file of several cameras, in place of camera and image_topic; empty: one'),
    'image_transport': ('', 'raw or compressed; empty: as in params_file'),
    'namespace': ('', 'namespace of the node; its outputs are NAMESPACE/dense_perception/...'),
    'params_file': (str(SHARE / 'config' / 'drive.yaml'), 'YAML file of parameters'),
    'device': ('', 'auto, cpu, cuda or cuda:N; empty: as in params_file'),
    'weights': ('', 'segmentation weights, a name or a file; empty: as in params_file'),
    'flow_weights': ('', 'flow weights, a name or a file; empty: as in params_file'),
    'segmentation_network': ('', 'network that labels, such as fcn8s; empty: as in params_file'),
    'flow_network': ('', 'flownet_simple or flownet_corr; empty: as in params_file'),
    'refinement': ('', 'of labels: none, dense_crf or crf_rnn; empty: as in params_file'),
    'flow_refinement': ('', 'of flow: none or variational; empty: as in params_file'),
    'proposal_network': ('', 'deep_mask or sharp_mask; empty: as in params_file'),
    'proposal_weights': ('', 'a weights file; empty: as in params_file'),
    'engine': ('', 'torch, auto or the name of an engine; empty: as in params_file'),
    'free_space': ('false', 'start a free space node for each camera'),
    'free_space_params_file': (
        str(SHARE / 'config' / 'free_space.yaml'),
        'YAML file of its parameters',
    ),
    'bag': ('', 'rosbag2 bag to publish; empty: a camera publishes'),
    'rate': ('1.0', 'speed of the bag, 1.0 is as recorded'),
    'loop': ('false', 'play the bag again and again'),
    'use_sim_time': ('false', 'take the time from /clock, which the player of a bag publishes'),
    'autostart': ('true', 'configure and activate at once; false: wait for a lifecycle manager'),
    'respawn': ('false', 'start the node again when it dies'),
    'log_level': ('info', 'debug, info, warn, error or fatal'),
}
SWITCHES = ('free_space', 'loop', 'use_sim_time', 'autostart', 'respawn')
BOOLEANS = ['true', 'false', 'True', 'False']
# Parameter that an argument sets; one that is left empty leaves it to params_file.
OVERRIDES = {
    'weights': 'segmentation_weights',
    **{
        name: name
        for name in (
            'device',
            'image_transport',
            'flow_weights',
            'segmentation_network',
            'flow_network',
            'refinement',
            'flow_refinement',
            'proposal_network',
            'proposal_weights',
            'engine',
        )
    },
}
PROFILE = str(SHARE / 'config' / 'fastdds_large_images.xml')
PROFILE_VARIABLES = ['FASTDDS_DEFAULT_PROFILES_FILE']
# The name up to Jazzy; later distributions warn of it.
if os.environ.get('ROS_DISTRO') in ('humble', 'iron', 'jazzy'):
    PROFILE_VARIABLES.append('FASTRTPS_DEFAULT_PROFILES_FILE')


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments; the nodes follow once their values are known."""
    arguments = [
        DeclareLaunchArgument(
            name,
            default_value=default,
            description=description,
            choices=BOOLEANS if name in SWITCHES else None,
        )
        for name, (default, description) in ARGUMENTS.items()
    ]
    # Images do not fit Fast DDS's default shared memory. A profile that the user has set stays.
    profile = [
        SetEnvironmentVariable(name, PROFILE)
        for name in PROFILE_VARIABLES
        if not any(name.endswith('_DEFAULT_PROFILES_FILE') for name in os.environ)
    ]
    return LaunchDescription([*arguments, *profile, OpaqueFunction(function=_nodes)])


def _nodes(context: LaunchContext) -> list[Node]:
    value = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    yes = {name: value[name].lower() == 'true' for name in SWITCHES}
    overrides = {OVERRIDES[name]: value[name] for name in OVERRIDES if value[name]}
    rig = read_rig(Path(value['rig'])) if value['rig'] else {}
    perception = Node(
        package='dense_perception',
        executable='perception_node',
        name='dense_perception',
        namespace=value['namespace'],
        parameters=[
            value['params_file'],
            {
                **{name: ParameterValue(text, value_type=str) for name, text in overrides.items()},
                **({'cameras': list(rig)} if rig else {}),
                'autostart': yes['autostart'],
                'use_sim_time': yes['use_sim_time'],
            },
        ],
        remappings=remappings(rig) if rig else _of_one_camera(value),
        arguments=[
            '--ros-args',
            '--log-level',
            value['log_level'],
            '--enclave',
            '/dense_perception',
        ],
        respawn=yes['respawn'],
        respawn_delay=1.0,
        on_exit=_end_after_failure if value['bag'] and not yes['respawn'] else None,
        output='screen',
    )
    nodes = [perception]
    if yes['free_space']:
        nodes += [_free_space(value, yes, camera) for camera in rig or ('',)]
    if not value['bag']:
        return nodes
    player = Node(
        package='dense_perception',
        executable='player_node',
        name='player',
        namespace=value['namespace'],
        parameters=[
            {
                'bag': ParameterValue(value['bag'], value_type=str),
                'rate': float(value['rate']),
                'loop': yes['loop'],
                'wait_for_subscribers': 1,  # the node, once it is active
                'start_delay_s': 2.0,  # time for others to find the topics
                'clock': yes['use_sim_time'],
                'restamp': not yes['use_sim_time'],
            }
        ],
        arguments=['--ros-args', '--log-level', value['log_level']],
        on_exit=_end_after_failure,
        output='screen',
    )
    return [*nodes, player]


def _free_space(value: dict[str, str], yes: dict[str, bool], camera: str) -> Node:
    outputs = f'dense_perception/{camera}'.rstrip('/')
    name = f'free_space_{camera}'.rstrip('_')
    return Node(
        package='dense_perception',
        executable='free_space_node',
        name=name,
        namespace=value['namespace'],
        parameters=[value['free_space_params_file'], {'use_sim_time': yes['use_sim_time']}],
        remappings=[
            (name, f'{outputs}/{name}')
            for name in ('labels', 'confidence', 'label_info', 'camera_info')
        ],
        arguments=['--ros-args', '--log-level', value['log_level'], '--enclave', f'/{name}'],
        respawn=yes['respawn'],
        respawn_delay=1.0,
        output='screen',
    )


def _of_one_camera(value: dict[str, str]) -> list[tuple[str, str]]:
    """Return what the topics that the node listens to become."""
    camera = value['camera'].rstrip('/')
    image = f'{camera}/{value["image_topic"]}'
    return [
        ('image', image),
        ('image/compressed', f'{image}/compressed'),
        ('camera_info', f'{camera}/camera_info'),
    ]


def _end_after_failure(event: ProcessExited, _: LaunchContext) -> list[Shutdown]:
    """End a replay of which one part has failed; the other would wait for it in vain."""
    if event.returncode == 0:
        return []
    return [Shutdown(reason=f'{event.process_name} ended with {event.returncode}')]
