from pathlib import Path

from dense_perception.errors import SettingError
from dense_perception.ros.rig import read_rig, remappings, RigCamera
import pytest

CONFIG = Path(__file__).parents[2] / 'config'


def rig(tmp_path, text):
    path = tmp_path / 'rig.yaml'
    path.write_text(text)
    return read_rig(path)


def test_a_camera_is_in_the_namespace_of_its_name_unless_the_file_says_where(tmp_path):
    cameras = rig(tmp_path, 'cameras: {front: , left: {namespace: /wing/, image_topic: rgb}}')
    assert list(cameras) == ['front', 'left']
    assert remappings(cameras) == [
        ('front/image', '/front/image_raw'),
        ('front/image/compressed', '/front/image_raw/compressed'),
        ('front/camera_info', '/front/camera_info'),
        ('left/image', '/wing/rgb'),
        ('left/image/compressed', '/wing/rgb/compressed'),
        ('left/camera_info', '/wing/camera_info'),
    ]


def test_the_file_that_comes_with_the_package_shows_every_key_with_its_default():
    cameras = read_rig(CONFIG / 'rig.yaml')
    assert list(cameras) == ['front', 'left', 'right']
    assert cameras['front'] == RigCamera()
    assert cameras['right'] == RigCamera(namespace='/right')
    text = (CONFIG / 'rig.yaml').read_text()
    assert all(f'{name}: ' in text for name in RigCamera.__dataclass_fields__)


@pytest.mark.parametrize(
    ('text', 'complaint'),
    [
        ('', 'holds NoneType, not names and values'),
        ('cameras:', 'must hold `cameras:` alone'),
        ('cameras: [front]', 'must hold `cameras:` alone'),
        ('cameras: {front: }\nspeed: 3', 'must hold `cameras:` alone'),
        ('cameras: {2nd: }', "cameras has '2nd'; a name must begin with a letter"),
        ('cameras: {1: }', 'it must be a list of names'),
        ('cameras: {front: /front}', "front is '/front'; it must be names and values"),
        ('cameras: {front: {topic: /a}}', 'front: unknown topic; known are image_topic, info_'),
        ('cameras: {front: {namespace: 1}}', r'namespace is 1 \(int\); it must be str'),
        ('cameras: {front', 'not valid YAML'),
    ],
)
def test_a_rig_that_cannot_be_is_refused_by_its_file_with_what_would_be_right(
    tmp_path, text, complaint
):
    with pytest.raises(SettingError, match=complaint) as caught:
        rig(tmp_path, text)
    assert str(tmp_path / 'rig.yaml') in str(caught.value)


def test_a_missing_rig_is_named(tmp_path):
    with pytest.raises(SettingError, match='none.yaml: cannot be read: No such file'):
        read_rig(tmp_path / 'none.yaml')
