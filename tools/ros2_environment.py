"""
Let every Python of this virtual environment find its ROS 2 packages and executables.

Set-up installs this file into the environment, and a .pth file imports it at each start, before
the one that comes with the ROS 2 wheels. What a person or an overlay has set keeps its place.
"""

import os
import sys

# Set by the ROS 2 wheels once LD_LIBRARY_PATH is right; a child in another environment
# inherits it and would then miss its own libraries.
GUARD = '_ROS_WHEELS_BOOTSTRAP_COMPLETE'


def entries(variable: str) -> list[str]:
    """Return the folders that an environment variable lists."""
    return [entry for entry in os.environ.get(variable, '').split(os.pathsep) if entry]


def set_environment(prefix: str) -> None:
    """Change this process' variables, and so its children's, to use the environment `prefix`."""
    programs = os.path.join(prefix, 'bin')
    if programs not in entries('PATH'):
        os.environ['PATH'] = os.pathsep.join([programs, *entries('PATH')])
    if prefix not in entries('AMENT_PREFIX_PATH'):
        os.environ['AMENT_PREFIX_PATH'] = os.pathsep.join([*entries('AMENT_PREFIX_PATH'), prefix])
    if os.path.join(prefix, 'lib') not in entries('LD_LIBRARY_PATH'):
        os.environ.pop(GUARD, None)


set_environment(sys.prefix)
