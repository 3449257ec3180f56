"""
`ros2 launch` for a ROS 2 from wheels, which brings launch itself but not this command.

Set-up installs this file into the virtual environment. Usage is that of the real command:
`ros2 launch PACKAGE FILE [name:=value ...]` or `ros2 launch PATH [name:=value ...]`.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path
import sys

from ament_index_python.packages import get_package_share_directory, PackageNotFoundError
from launch import LaunchContext, LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import AnyLaunchDescriptionSource
from launch.utilities import perform_substitutions
from ros2cli.command import CommandExtension


def launch_file(package: str, name: str) -> Path:
    """
    Return the path of a package's launch file.

    :raises RuntimeError: no such package, no such file in its share folder, or more than one.
    """
    try:
        share = Path(get_package_share_directory(package))
    except PackageNotFoundError as error:
        raise RuntimeError(f"package '{package}' is not found: {error}") from error
    found = sorted(share.rglob(name))
    if len(found) != 1:
        raise RuntimeError(f"{len(found)} files named '{name}' in {share}; exactly one is needed")
    return found[0]


def split_arguments(words: list[str]) -> list[tuple[str, str]]:
    """
    Split each `name:=value`.

    :raises RuntimeError: a word is not of that form.
    """
    pairs = []
    for word in words:
        name, separator, value = word.partition(':=')
        if not (name and separator):
            raise RuntimeError(f"argument '{word}' must have the form name:=value")
        pairs.append((name, value))
    return pairs


def described_arguments(description: LaunchDescription) -> str:
    """Return a text that tells the name, meaning and default of each argument."""
    lines = ["Arguments (pass arguments as '<name>:=<value>'):"]
    for argument in description.get_launch_arguments():
        lines += ['', f"    '{argument.name}':", f'        {argument.description}']
        if argument.choices:
            lines.append(f'        one of: {argument.choices}')
        if argument.default_value is not None:
            default = perform_substitutions(LaunchContext(), argument.default_value)
            lines.append(f"        (default: '{default}')")
    return '\n'.join(lines if len(lines) > 1 else ['No arguments.'])


class LaunchCommand(CommandExtension):  # type: ignore[misc]  # ros2cli has no types
    """Run a launch file."""

    def add_arguments(
        self, parser: ArgumentParser, cli_name: str, *, argv: list[str] | None = None
    ) -> None:
        """Declare the arguments of the command."""
        parser.add_argument('package_or_path', help='package name, or path of a launch file')
        parser.add_argument('words', nargs='*', metavar='[file] name:=value')
        parser.add_argument('-s', '--show-args', action='store_true', help='list the arguments')
        parser.add_argument('-d', '--debug', action='store_true', help='log at debug level')
        parser.add_argument('-n', '--noninteractive', action='store_true', help='no terminal')

    def main(self, *, parser: ArgumentParser, args: Namespace) -> int:
        """Run until the launched processes end or an interrupt stops them."""
        words = list(args.words)
        if Path(args.package_or_path).is_file():
            path = Path(args.package_or_path)
        elif words:
            path = launch_file(args.package_or_path, words.pop(0))
        else:
            raise RuntimeError(f"'{args.package_or_path}' is no launch file: name one of its own")
        source = AnyLaunchDescriptionSource(str(path))
        if args.show_args:
            print(described_arguments(source.get_launch_description(LaunchContext())))
            return 0
        interactive = sys.stdin.isatty() and not args.noninteractive
        service = LaunchService(argv=words, noninteractive=not interactive, debug=args.debug)
        service.include_launch_description(
            LaunchDescription(
                [IncludeLaunchDescription(source, launch_arguments=split_arguments(words))]
            )
        )
        return service.run()
