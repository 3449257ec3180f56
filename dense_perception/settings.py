"""
Settings written once, as frozen dataclasses.

The ROS parameter, the command-line flag, the YAML key and the range check of a setting all come
from its one field here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, Field, field, fields
import math
from pathlib import Path
from typing import Any, TypeVar

from dense_perception.errors import SettingError
import yaml

Value = bool | int | float | str

REFINEMENTS = ('none', 'dense_crf', 'crf_rnn')  # of class scores
FLOW_REFINEMENTS = ('none', 'variational')


def setting(
    default: Value,
    description: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    changeable: bool = False,
) -> Any:
    """
    Declare one field of a `Settings` dataclass.

    :param default: value where nobody gives one; its type is the setting's type.
    :param description: what it does, with its unit.
    :param low: smallest allowed number, inclusive.
    :param high: largest allowed number, inclusive.
    :param choices: the allowed strings; empty for any.
    :param changeable: whether it may change while a node is running.
    """
    return field(
        default=default,
        metadata={
            'description': description,
            'low': low,
            'high': high,
            'choices': choices,
            'changeable': changeable,
        },
    )


@dataclass(frozen=True)
class Settings:
    """Base of all settings: checks every type and range when built."""

    def __post_init__(self) -> None:
        for entry in fields(self):
            object.__setattr__(self, entry.name, _checked(entry, getattr(self, entry.name)))

    @classmethod
    def from_mapping(
        cls: type['AnySettings'], values: Mapping[str, Any], source: str = 'settings'
    ) -> 'AnySettings':
        """
        Build from names and values, refusing names that do not exist.

        :param values: setting name to value; settings left out keep their default.
        :param source: where the values come from, for the message.
        :raises SettingError: an unknown name, a wrong type or a value out of range.
        """
        known = {entry.name for entry in fields(cls)}
        unknown = sorted(str(name) for name in set(values) - known)  # YAML names may be numbers
        if unknown:
            raise SettingError(
                f'{source}: unknown {", ".join(unknown)}; known are {", ".join(sorted(known))}'
            )
        try:
            return cls(**values)
        except SettingError as error:
            raise SettingError(f'{source}: {error}') from error

    @classmethod
    def from_yaml(cls: type['AnySettings'], path: Path) -> 'AnySettings':
        """
        Build from a YAML file that holds one mapping of names to values.

        :raises SettingError: no such file, no mapping in it, or a bad name or value.
        """
        try:
            content = yaml.safe_load(path.read_text(encoding='utf-8'))
        except OSError as error:
            raise SettingError(f'{path}: cannot be read: {error.strerror}') from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise SettingError(f'{path}: not valid YAML: {error}') from error
        if not isinstance(content, dict):
            raise SettingError(f'{path}: holds {type(content).__name__}, not names and values')
        return cls.from_mapping(content, source=str(path))


AnySettings = TypeVar('AnySettings', bound=Settings)


def _checked(entry: 'Field[Any]', given: object) -> object:
    """Return the value in the type of the field's default, or raise SettingError."""
    kind = type(entry.default)
    value: Any = given
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise SettingError(
            f'{entry.name} is {value!r} ({type(value).__name__}); it must be {kind.__name__}'
        )
    low, high = entry.metadata.get('low'), entry.metadata.get('high')
    if isinstance(value, float) and not math.isfinite(value):
        raise SettingError(f'{entry.name} is {value}; it must be a finite number')
    if (low is not None and value < low) or (high is not None and value > high):
        raise SettingError(f'{entry.name} is {value}; it must lie in {low} to {high}')
    choices = entry.metadata.get('choices')
    if choices and value not in choices:
        raise SettingError(f'{entry.name} is {value!r}; it must be one of {", ".join(choices)}')
    return value


@dataclass(frozen=True)
class PerceptionSettings(Settings):
    """How the node turns one camera stream into labels, flow and proposals."""

    image_transport: str = setting(
        'raw',
        'raw: sensor_msgs/Image on `image`; compressed: CompressedImage on `image/compressed`',
        choices=('raw', 'compressed'),
    )
    segmentation_weights: str = setting(
        'drive', 'name of shipped weights or path of a .safetensors file; empty: no labels'
    )
    flow_weights: str = setting(
        'flow', 'name of shipped weights or path of a .safetensors file; empty: no flow'
    )
    segmentation_network: str = setting(
        '',
        'network that labels, such as fcn8s; empty: the one that the weights hold. One without '
        'weights of its own is built compact and untrained',
    )
    flow_network: str = setting(
        '',
        'flownet_simple or flownet_corr; empty: the one that the weights hold. One without '
        'weights of its own is built compact and untrained',
    )
    refinement: str = setting(
        'none', 'what refines the scores of all pixels before they are labels', choices=REFINEMENTS
    )
    flow_refinement: str = setting(
        'none', 'what refines flow, on the CPU', choices=FLOW_REFINEMENTS
    )
    proposal_network: str = setting(
        '', 'deep_mask or sharp_mask, which propose masks of objects; empty: no proposals'
    )
    proposal_weights: str = setting(
        '', 'path of a .safetensors file for proposal_network; empty: it is untrained'
    )
    device: str = setting('auto', 'auto, cpu, cuda or cuda:N; auto takes a CUDA device if any')
    precision: str = setting(
        'auto',
        'number type of the networks; auto takes the fastest that the device computes in',
        choices=('auto', 'float32', 'bfloat16', 'float16'),
    )
    segmentation_width: int = setting(
        480, "pixels; images are resized to it for labelling; 0: the camera's", low=0, high=8192
    )
    flow_width: int = setting(
        512, "pixels; images are resized to it for flow; 0: the camera's", low=0, high=8192
    )
    proposal_width: int = setting(
        480, "pixels; images are resized to it for proposals; 0: the camera's", low=0, high=8192
    )
    max_flow_gap_s: float = setting(
        0.5,
        'seconds; flow starts anew when two frames are further apart',
        low=0.001,
        high=60.0,
        changeable=True,
    )
    overlay_opacity: float = setting(
        0.6, 'share of the label colour in labels_color', low=0.0, high=1.0, changeable=True
    )
    flow_color_range_px: float = setting(
        0.0,
        'flow that has full colour in flow_color; 0: the largest of each frame',
        low=0.0,
        high=1000.0,
        changeable=True,
    )
    silence_warning_s: float = setting(
        2.0,
        'seconds without an image before diagnostics warn',
        low=0.1,
        high=3600.0,
        changeable=True,
    )
