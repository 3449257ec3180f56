"""
Put launch and the ros2 command, in pure Python, into the virtual environment that runs this file.

No wheel of their own exists. They are taken, on this machine only, from a wheel that carries
them among many other things; its checksum is verified, compiled files are left behind.
"""

from collections.abc import Iterator
import hashlib
from pathlib import Path
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from zipfile import ZipFile, ZipInfo

REQUIREMENT = 'isaacsim-ros2==6.2.0.0'
SHA256 = '34910c880e452528f5771e0f31673b08703e522f2d09cdb173216be7cd89844f'
# The wheel is marked for Python 3.12; what is taken from it runs on any.
TAGS = ('--python-version', '312', '--implementation', 'cp', '--platform', 'manylinux_2_35_x86_64')
FOLDER = 'isaacsim/exts/isaacsim.ros2.core/jazzy/rclpy/'
PACKAGES = (
    'composition_interfaces',  # imported by launch_ros
    'diagnostic_updater',
    'launch',
    'launch_ros',
    'launch_testing',
    'launch_testing_ros',
    'launch_xml',
    'launch_yaml',
    'message_filters',
    'osrf_pycommon',
    'ros2cli',
    'ros2node',
    'ros2param',
    'ros2pkg',
    'ros2run',
    'ros2service',
    'ros2topic',
    'rosidl_runtime_py',
)
MODULES = ('launch_testing_ros_pytest_entrypoint.py',)
# Script name, module and function, as in the entry points of the packages.
SCRIPTS = {'ros2': 'ros2cli.cli', '_ros2_daemon': 'ros2cli.daemon'}
OWN_COMMAND = 'ros2_launch_command'


def download(folder: Path) -> Path:
    """
    Fetch the wheel into a folder.

    :raises RuntimeError: the file is not the one expected.
    """
    pip = (sys.executable, '-m', 'pip', 'download', '--quiet', '--disable-pip-version-check')
    subprocess.run(
        [*pip, '--no-deps', '--only-binary=:all:', *TAGS, '--dest', folder, REQUIREMENT],
        check=True,
    )
    (wheel,) = folder.glob('*.whl')
    with wheel.open('rb') as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest()
    if digest != SHA256:
        raise RuntimeError(f'{wheel.name} has sha256 {digest}, expected {SHA256}')
    return wheel


def wanted(wheel: ZipFile) -> Iterator[ZipInfo]:
    """Yield the entries to unpack, each renamed to its place under site-packages."""
    for entry in wheel.infolist():
        name = entry.filename.removeprefix(FOLDER)
        top = name.split('/')[0]
        package = re.sub(r'-[^/]*\.egg-info$', '', top)
        if name == entry.filename or name.endswith('.so'):
            continue
        if package in PACKAGES or name in MODULES:
            entry.filename = re.sub(r'-py3\.12\.egg-info/', '.egg-info/', name)
            yield entry


def write_scripts(folder: Path) -> None:
    """Write the executables of the entry points."""
    for name, module in SCRIPTS.items():
        script = folder / name
        script.write_text(
            f'#!{sys.executable}\nimport sys\nfrom {module} import main\nsys.exit(main())\n',
            encoding='utf-8',
        )
        script.chmod(0o755)


def add_own_command(packages: Path) -> None:
    """Install our `ros2 launch`, with the metadata by which ros2 finds its commands."""
    source = Path(__file__).with_name(f'{OWN_COMMAND}.py')
    shutil.copy(source, packages / source.name)
    metadata = packages / f'{OWN_COMMAND}-1.0.egg-info'
    metadata.mkdir(exist_ok=True)
    (metadata / 'PKG-INFO').write_text(
        f'Metadata-Version: 1.0\nName: {OWN_COMMAND}\nVersion: 1.0\n', encoding='utf-8'
    )
    (metadata / 'entry_points.txt').write_text(
        f'[ros2cli.command]\nlaunch = {OWN_COMMAND}:LaunchCommand\n', encoding='utf-8'
    )


def main() -> None:
    """Install everything named above."""
    packages = Path(sysconfig.get_path('purelib'))
    with (
        tempfile.TemporaryDirectory(dir=sys.prefix) as folder,
        ZipFile(download(Path(folder))) as wheel,
    ):
        for entry in wanted(wheel):
            wheel.extract(entry, packages)
    write_scripts(Path(sysconfig.get_path('scripts')))
    add_own_command(packages)


if __name__ == '__main__':
    main()
