import fcntl
import mmap
import os
from pathlib import Path
import runpy
import subprocess
import sys

TOOLS = Path(__file__).parent.parent / 'tools'


def test_only_shared_memory_that_no_process_holds_is_removed(tmp_path):
    dead, live = 'fastdds_00000000000000aa', 'fastdds_00000000000000bb'
    port, mapped_port = 'fastdds_port7000', 'fastdds_port7001'
    kept = {'another', live, f'{live}_el', mapped_port}
    for name in (dead, f'{dead}_el', port, f'sem.{port}_mutex', *kept):
        (tmp_path / name).write_bytes(b'.')
    clean = runpy.run_path(str(TOOLS / 'clean_shared_memory.py'))['clean']
    with (tmp_path / f'{live}_el').open('r+b') as lock, (tmp_path / mapped_port).open() as file:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ):
            assert clean(tmp_path) == 2
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_environment_is_found_and_an_overlay_keeps_its_place(tmp_path):
    code = (
        'import os, runpy, sys; tools, prefix = sys.argv[1:]; '
        'set_environment = runpy.run_path(tools)["set_environment"]; '
        'os.environ.update(PATH="/usr/bin", AMENT_PREFIX_PATH="/overlay", '
        '_ROS_WHEELS_BOOTSTRAP_COMPLETE="1", LD_LIBRARY_PATH="/elsewhere/lib"); '
        'set_environment(prefix); set_environment(prefix); '
        'print(os.environ["PATH"], os.environ["AMENT_PREFIX_PATH"], '
        '"_ROS_WHEELS_BOOTSTRAP_COMPLETE" in os.environ)'
    )
    hook = str(TOOLS / 'ros2_environment.py')
    done = subprocess.run(
        [sys.executable, '-c', code, hook, '/venv'], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ['/venv/bin:/usr/bin', '/overlay:/venv', 'False']


def test_set_up_says_what_is_missing(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != 'ROS_DISTRO'}
    environment['PYTHON'] = str(tmp_path / 'python3')
    done = subprocess.run(
        [sys.executable, TOOLS / 'setup_environment.py', tmp_path / 'venv'],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert 'Python 3.11, 3.12 or 3.13 is needed' in done.stderr
