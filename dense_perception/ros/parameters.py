"""Settings as ROS parameters."""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import Field, fields, replace
from typing import Any

from dense_perception.errors import SettingError
from dense_perception.settings import AnySettings, Settings
from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.node import Node
from rclpy.parameter import Parameter


def declare_parameters(node: Node, kind: type[Settings]) -> None:
    """Declare one parameter for each field of a settings class, with description and range."""
    for entry in fields(kind):
        is_list = type(entry.default) is tuple
        default: Any = entry.default
        if is_list:
            default = list(default) or _nothing(entry)
        declared = node.declare_parameter(entry.name, default, _descriptor(entry))
        if is_list and declared.value is None:  # [] in a file
            node.set_parameters([Parameter(entry.name, value=default)])


def read_parameters(node: Node, kind: type[AnySettings]) -> AnySettings:
    """
    Build settings from a node's declared parameters.

    :raises SettingError: a value is not allowed.
    """
    values = _values(kind, [node.get_parameter(entry.name) for entry in fields(kind)])
    return kind.from_mapping(values, source=node.get_fully_qualified_name())


def check_parameters(kind: type[Settings], parameters: 'Sequence[Parameter[Any]]') -> None:
    """
    Check new values of parameters, each by itself; other parameters are passed over.

    :raises SettingError: a value is not allowed.
    """
    kind.from_mapping(_values(kind, parameters))


def change_settings(settings: AnySettings, parameters: 'Sequence[Parameter[Any]]') -> AnySettings:
    """
    Return settings with new values of parameters; other parameters are passed over.

    :param settings: those in use, of which only the changeable ones may change.
    :raises SettingError: a value is not allowed, or may not change now.
    """
    changed = replace(settings, **_values(type(settings), parameters))
    for entry in fields(settings):
        differs = getattr(changed, entry.name) != getattr(settings, entry.name)
        if differs and not entry.metadata['changeable']:
            raise SettingError(
                f'{entry.name} cannot change while the node is configured; clean it up, set it, '
                'and configure again'
            )
    return changed


def _values(kind: type[Settings], parameters: 'Sequence[Parameter[Any]]') -> Mapping[str, Any]:
    """Return the values of those parameters that are settings."""
    known = {entry.name: entry for entry in fields(kind)}
    return {
        entry.name: _plain(known[entry.name], entry.value)
        for entry in parameters
        if entry.name in known
    }


def _plain(entry: 'Field[Any]', value: Any) -> Any:
    """Return the value of a parameter as a setting has it."""
    if type(entry.default) is not tuple or not isinstance(value, list | array):
        return value
    return [] if list(value) == _nothing(entry) else list(value)


def _nothing(entry: 'Field[Any]') -> list[Any]:
    """Return what stands for an empty list, to which ROS gives no type."""
    return [0] * entry.metadata['numbers'] or ['']


def rejected(error: Exception) -> SetParametersResult:
    """Return the answer of a parameter callback that refuses a change."""
    return SetParametersResult(successful=False, reason=str(error))


def _descriptor(entry: 'Field[Any]') -> ParameterDescriptor:
    metadata = entry.metadata
    descriptor = ParameterDescriptor(description=metadata['description'])
    if metadata['choices']:
        descriptor.additional_constraints = f'one of {", ".join(metadata["choices"])}'
    if metadata['changeable']:
        descriptor.additional_constraints = 'may change while the node runs'
    if type(entry.default) is tuple:
        numbers, most = metadata['numbers'], metadata['high']
        descriptor.additional_constraints = (
            f'{numbers} numbers; {_nothing(entry)}: none'
            if numbers
            else f'at most {most} names; {_nothing(entry)}: none'
        )
    low, high = metadata['low'], metadata['high']
    if low is None or high is None:
        return descriptor
    if isinstance(entry.default, float):
        limits = FloatingPointRange(from_value=float(low), to_value=float(high))
        descriptor.floating_point_range = [limits]
    else:
        descriptor.integer_range = [IntegerRange(from_value=int(low), to_value=int(high), step=1)]
    return descriptor
