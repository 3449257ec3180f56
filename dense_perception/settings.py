"""
Settings written once, as frozen dataclasses.

The ROS parameter, the command-line flag, the YAML key and the range check of a setting all come
from its one field here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, Field, field, fields
import math
from pathlib import Path
import re
from typing import Any, TypeVar

from dense_perception.errors import SettingError
import yaml

Value = bool | int | float | str | tuple[str, ...] | tuple[int, ...]

REFINEMENTS = ('none', 'dense_crf', 'crf_rnn')  # of class scores
FLOW_REFINEMENTS = ('none', 'variational')
_NAME = re.compile(r'(?=.{1,64}\Z)[a-zA-Z](?:_?[a-zA-Z0-9])*_?')  # a token of a ROS 2 topic


def setting(
    default: Value,
    description: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    numbers: int = 0,
    path: bool = False,
    changeable: bool = False,
) -> Any:
    """
    Declare one field of a `Settings` dataclass.

    :param default: value where nobody gives one; its type is the setting's type. A tuple is a list
        of different names, each of letters, digits and underscores, as ROS has them in topics; or
        of whole numbers, see `numbers`.
    :param description: what it does, with its unit.
    :param low: smallest allowed number, inclusive; of a list, that of each.
    :param high: largest allowed number, inclusive; of names, how many there may be.
    :param choices: the allowed strings; empty for any.
    :param numbers: how many whole numbers a list has unless it is empty; 0: it is one of names.
    :param path: whether it names a file or folder; it may not step upwards by `..`.
    :param changeable: whether it may change while a node is running.
    """
    return field(
        default=default,
        metadata={
            'description': description,
            'low': low,
            'high': high,
            'choices': choices,
            'numbers': numbers,
            'path': path,
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
        return cls.from_mapping(read_mapping(path), source=str(path))


AnySettings = TypeVar('AnySettings', bound=Settings)


def read_mapping(path: Path) -> dict[Any, Any]:
    """
    Read a YAML file that holds one mapping of names to values.

    :raises SettingError: no such file, or no mapping in it.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise SettingError(f'{path}: cannot be read: {error.strerror}') from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingError(f'{path}: not valid YAML: {error}') from error
    if not isinstance(content, dict):
        raise SettingError(f'{path}: holds {type(content).__name__}, not names and values')
    return content


def _checked(entry: 'Field[Any]', given: object) -> object:
    """Return the value in the type of the field's default, or raise SettingError."""
    kind = type(entry.default)
    value: Any = given
    if kind is tuple:
        return (_checked_numbers if entry.metadata['numbers'] else _checked_names)(entry, value)
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
    if entry.metadata.get('path') and '..' in Path(str(value)).parts:
        raise SettingError(f'{entry.name} is {value!r}; a path must not hold ..; write it whole')
    return value


def _checked_names(entry: 'Field[Any]', given: Any) -> tuple[str, ...]:
    """Return a list of names as a tuple, or raise SettingError."""
    if not isinstance(given, list | tuple) or not all(isinstance(name, str) for name in given):
        raise SettingError(
            f'{entry.name} is {given!r} ({type(given).__name__}); it must be a list of names'
        )
    high = entry.metadata.get('high')
    if high is not None and len(given) > high:
        raise SettingError(f'{entry.name} has {len(given)} names; it may have {high}')
    for at, name in enumerate(given):
        if not _NAME.fullmatch(name):
            raise SettingError(
                f'{entry.name} has {name[:80]!r}; a name must begin with a letter and hold only '
                'letters, digits and single underscores, 64 at most'
            )
        if name in given[:at]:
            raise SettingError(f'{entry.name} has {name!r} twice; names must differ')
    return tuple(given)


def _checked_numbers(entry: 'Field[Any]', given: Any) -> tuple[int, ...]:
    """Return a list of whole numbers as a tuple, or raise SettingError."""
    count, low, high = (entry.metadata[name] for name in ('numbers', 'low', 'high'))
    listed = isinstance(given, list | tuple) and all(type(number) is int for number in given)
    if not listed or len(given) not in (0, count):
        raise SettingError(
            f'{entry.name} is {given!r} ({type(given).__name__}); it must be a list of {count} '
            'whole numbers, or an empty one'
        )
    for number in given:
        if not low <= number <= high:
            raise SettingError(
                f'{entry.name} is {list(given)}; its numbers must lie in {low} to {high}'
            )
    return tuple(given)


@dataclass(frozen=True)
class PerceptionSettings(Settings):
    """How the node turns camera streams into labels, flow and proposals."""

    cameras: tuple[str, ...] = setting(
        (),
        'names of several cameras, such as [front, left]: NAME/image and NAME/camera_info are '
        'read and ~/NAME/labels and so on published; empty: one camera, without a name',
        high=16,
    )
    image_transport: str = setting(
        'raw',
        'raw: sensor_msgs/Image on `image`; compressed: CompressedImage on `image/compressed`',
        choices=('raw', 'compressed'),
    )
    segmentation_weights: str = setting(
        'drive',
        'name of shipped weights or path of a .safetensors file; empty: no labels',
        path=True,
    )
    flow_weights: str = setting(
        'flow',
        'name of shipped weights or path of a .safetensors file; empty: no flow',
        path=True,
    )
    segmentation_network: str = setting(
        '',
        'network that labels, such as fcn8s or front_end_context_large; a name that is unknown is '
        'refused with those that are; empty: the one that the weights hold. One without '
        'weights of its own is built compact and untrained',
    )
    flow_network: str = setting(
        '',
        'flownet_simple or flownet_corr, or either with _batch_norm; empty: the one that the '
        'weights hold. One without weights of its own is built compact and untrained',
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
        '',
        'path of a .safetensors file for proposal_network; empty: it is untrained',
        path=True,
    )
    device: str = setting('auto', 'auto, cpu, cuda or cuda:N; auto takes a CUDA device if any')
    precision: str = setting(
        'auto',
        'number type of the networks; auto takes the fastest that the device computes in',
        choices=('auto', 'float32', 'bfloat16', 'float16'),
    )
    engine: str = setting(
        'torch',
        'what labels and flow run in: torch; auto, the fastest engine that agrees with torch; or '
        'the name of one. It is built at configuring for images of engine_image_size; for those '
        'of another size once four have come, beside the next ones, for which torch is used, or, '
        'on a CUDA device, while they wait',
    )
    engine_image_size: tuple[int, ...] = setting(
        (),
        "[columns, rows] of the camera's images, in pixels: engines are built for them at "
        'configuring, which may take minutes; empty: once images have come. Not used by '
        'engine: torch',
        low=16,
        high=8192,
        numbers=2,
    )
    engine_cache: str = setting(
        '~/.cache/dense_perception',
        'folder of built engines; empty: built at every start',
        path=True,
    )
    calibration_frames: str = setting(
        '',
        'folder, video or rosbag2 recording of the camera that scales int8; empty: no int8',
        path=True,
    )
    keyframe_interval: int = setting(
        1,
        'every how many images of a camera the network labels one; the others have its labels, '
        'carried along flow, and no confidence',
        low=1,
        high=30,
        changeable=True,
    )
    max_latency_ms: float = setting(
        0.0,
        'milliseconds; results older than this make labelling cheaper: a smaller input, and where '
        'none is small enough, labels carried along flow; 0: no limit',
        low=0.0,
        high=60000.0,
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
    flow_output_scale: float = setting(
        1.0,
        'size of ~/flow, as a share of the image; its vectors are in pixels of that size',
        low=0.05,
        high=1.0,
        changeable=True,
    )
    overlay_opacity: float = setting(
        0.6, 'share of the label colour in labels_color', low=0.0, high=1.0, changeable=True
    )
    overlay_legend: bool = setting(
        True,
        'write the stamp, the age and the classes of the picture into labels_color',
        changeable=True,
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
