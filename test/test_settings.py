from dataclasses import asdict, dataclass, FrozenInstanceError
from pathlib import Path

from dense_perception.errors import SettingError
from dense_perception.settings import PerceptionSettings, setting, Settings
import pytest
import yaml

CONFIG = Path(__file__).parents[1] / 'config'


@dataclass(frozen=True)
class Example(Settings):
    """One setting of each type."""

    scale: float = setting(0.5, 'width / width', low=0.1, high=1.0)
    count: int = setting(3, 'things', low=1, high=5)
    name: str = setting('a', 'which', choices=('a', 'b'))
    on: bool = setting(False, 'whether')
    who: tuple[str, ...] = setting((), 'names', high=3)
    size: tuple[int, ...] = setting((), 'pixels', low=2, high=9, numbers=2)


def test_defaults_are_those_of_the_fields():
    assert Example() == Example(scale=0.5, count=3, name='a', on=False, who=(), size=())


@pytest.mark.parametrize('values', [{'scale': 0.1}, {'scale': 1.0}, {'count': 1}, {'count': 5}])
def test_limits_are_allowed_themselves(values):
    ((name, value),) = values.items()
    assert getattr(Example(**values), name) == value


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({'scale': 0.09}, 'scale is 0.09; it must lie in 0.1 to 1.0'),
        ({'scale': 1.01}, 'scale is 1.01; it must lie in 0.1 to 1.0'),
        ({'scale': float('nan')}, 'scale is nan; it must be a finite number'),
        ({'scale': float('inf')}, 'scale is inf; it must be a finite number'),
        ({'count': 6}, 'count is 6; it must lie in 1 to 5'),
        ({'name': 'c'}, "name is 'c'; it must be one of a, b"),
        ({'scale': '0.5'}, r"scale is '0.5' \(str\); it must be float"),
        ({'scale': True}, r'scale is True \(bool\); it must be float'),
        ({'count': 2.0}, r'count is 2.0 \(float\); it must be int'),
        ({'count': True}, r'count is True \(bool\); it must be int'),
        ({'on': 1}, r'on is 1 \(int\); it must be bool'),
        ({'name': None}, r'name is None \(NoneType\); it must be str'),
        ({'who': 'front'}, r"who is 'front' \(str\); it must be a list of names"),
        ({'who': ['front', 1]}, r"who is \['front', 1\] \(list\); it must be a list of names"),
        ({'who': list('abcd')}, 'who has 4 names; it may have 3'),
        ({'who': ['']}, "who has ''; a name must begin with a letter"),
        ({'who': ['a', '2nd']}, "who has '2nd'; a name must begin with a letter"),
        ({'who': ['a b']}, "who has 'a b'; a name must begin with a letter"),
        ({'who': ['a/b']}, "who has 'a/b'; a name must begin with a letter"),
        ({'who': ['a__b']}, "who has 'a__b'; .* single underscores"),
        ({'who': ['a\n']}, 'who has .*; a name must begin with a letter'),
        ({'who': ['x' * 65]}, "who has 'x+'; .* 64 at most"),
        ({'who': ['a', 'b', 'a']}, "who has 'a' twice; names must differ"),
        ({'size': 3}, r'size is 3 \(int\); it must be a list of 2 whole numbers, or an empty one'),
        ({'size': [3]}, r'size is \[3\] \(list\); it must be a list of 2 whole numbers'),
        ({'size': [3, 4, 5]}, r'size is \[3, 4, 5\] .* list of 2 whole numbers'),
        ({'size': [3, 4.0]}, r'size is \[3, 4.0\] .* list of 2 whole numbers'),
        ({'size': [True, 4]}, r'size is \[True, 4\] .* list of 2 whole numbers'),
        ({'size': [1, 9]}, r'size is \[1, 9\]; its numbers must lie in 2 to 9'),
        ({'size': [2, 10]}, r'size is \[2, 10\]; its numbers must lie in 2 to 9'),
    ],
)
def test_bad_value_is_refused_with_its_name_and_what_would_be_right(values, message):
    with pytest.raises(SettingError, match=message):
        Example.from_mapping(values)
    with pytest.raises(SettingError, match=message):
        Example(**values)


def test_whole_number_is_taken_for_a_float():
    scale = Example(scale=1).scale
    assert scale == 1.0
    assert type(scale) is float


@pytest.mark.parametrize('given', [['front', 'rear_2'], ('front', 'rear_2')])
def test_a_list_of_names_keeps_its_order_and_cannot_change(given):
    assert Example(who=given).who == ('front', 'rear_2')


@pytest.mark.parametrize('given', [[], [2, 9], (9, 2)])
def test_a_list_of_numbers_is_empty_or_as_long_as_it_is_meant_to_be(given):
    assert Example(size=given).size == tuple(given)


def test_a_yaml_list_is_a_list_of_names(tmp_path):
    path = tmp_path / 'a.yaml'
    path.write_text('who: [front, left]\n')
    assert Example.from_yaml(path).who == ('front', 'left')


def test_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(
        SettingError,
        match='node.yaml: unknown sacle, x; known are count, name, on, scale, size, who',
    ):
        Example.from_mapping({'sacle': 1.0, 'x': 2}, source='node.yaml')


def test_settings_do_not_change():
    with pytest.raises(FrozenInstanceError):
        Example().count = 4


def test_yaml_file_sets_what_it_names_and_leaves_the_rest(tmp_path):
    path = tmp_path / 'a.yaml'
    path.write_text('count: 4\nname: b  # comment\n')
    assert Example.from_yaml(path) == Example(count=4, name='b')


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('count: 9', 'count is 9'),
        ('cuont: 3', 'unknown cuont'),
        ('1: 3', 'unknown 1'),
        ('- count', 'holds list, not names and values'),
        ('', 'holds NoneType, not names and values'),
        ('count', 'holds str, not names and values'),
        ('count: [1', 'not valid YAML'),
        ('a: !!python/object/apply:os.getcwd []', 'not valid YAML'),
    ],
)
def test_bad_yaml_file_is_refused_by_its_name(tmp_path, content, message):
    path = tmp_path / 'bad.yaml'
    path.write_text(content)
    with pytest.raises(SettingError, match=message) as caught:
        Example.from_yaml(path)
    assert 'bad.yaml' in str(caught.value)


def test_names_of_several_types_are_refused_together(tmp_path):
    path = tmp_path / 'a.yaml'
    path.write_text('1: 3\nx: 4\n')
    with pytest.raises(SettingError, match='unknown 1, x'):
        Example.from_yaml(path)


@pytest.mark.parametrize('content', [b'\xff\xfe\x00', b'\x80'])
def test_yaml_file_that_is_no_text_is_refused_by_its_name(tmp_path, content):
    path = tmp_path / 'bad.yaml'
    path.write_bytes(content)
    with pytest.raises(SettingError, match='bad.yaml'):
        Example.from_yaml(path)


def test_missing_yaml_file_is_named(tmp_path):
    with pytest.raises(SettingError, match='none.yaml: cannot be read: No such file'):
        Example.from_yaml(tmp_path / 'none.yaml')


def test_every_setting_of_the_node_says_what_it_is_for():
    for entry in PerceptionSettings.__dataclass_fields__.values():
        assert len(entry.metadata['description']) > 10


@pytest.mark.parametrize('name', ['drive', 'drone'])
def test_parameter_files_name_every_setting_of_the_node(name):
    content = yaml.safe_load((CONFIG / f'{name}.yaml').read_text())
    parameters = content['/**']['ros__parameters']
    settings = PerceptionSettings.from_mapping(parameters)
    assert set(parameters) == set(asdict(settings))
    if name == 'drive':
        assert settings == PerceptionSettings()


@pytest.mark.parametrize('name', ['segmentation_weights', 'engine_cache', 'calibration_frames'])
def test_a_path_may_not_step_upwards(name):
    for path in ('../weights', '/a/../../etc', 'a/..'):
        with pytest.raises(SettingError, match=f'{name} is .*must not hold'):
            PerceptionSettings(**{name: path})
    assert getattr(PerceptionSettings(**{name: '/a/b..c'}), name) == '/a/b..c'
