from pathlib import Path
import runpy
import shutil
import subprocess
from xml.etree import ElementTree

import pytest

TOOL = Path(__file__).parent.parent / 'tools' / 'make_keystore.py'

pytestmark = pytest.mark.skipif(not shutil.which('openssl'), reason='openssl is not installed')


def make(*arguments):
    return runpy.run_path(str(TOOL))['main']([str(argument) for argument in arguments])


def openssl(*arguments):
    command = ['openssl', *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def keystore(tmp_path):
    assert make(tmp_path / 'keystore', '--domain', 7) == 0
    return tmp_path / 'keystore'


def topics(keystore, kind, enclave='dense_perception'):
    tree = ElementTree.parse(keystore / 'enclaves' / enclave / 'permissions.xml')
    return {entry.text for entry in tree.iterfind(f'.//allow_rule/{kind}/topics/topic')}


def test_the_certificate_of_the_enclave_is_signed_by_the_authority_and_names_it(keystore):
    certificate = keystore / 'enclaves' / 'dense_perception' / 'cert.pem'
    authority = keystore / 'public' / 'ca.cert.pem'
    assert openssl('verify', '-CAfile', authority, certificate).returncode == 0
    told = openssl('x509', '-in', certificate, '-noout', '-subject', '-nameopt', 'RFC2253').stdout
    assert told.strip() == 'subject=CN=/dense_perception'


@pytest.mark.parametrize('name', ['governance', 'permissions'])
def test_a_signed_document_holds_what_lies_beside_it_and_a_changed_one_is_refused(keystore, name):
    signed = (keystore / 'enclaves' / 'dense_perception' / f'{name}.p7s').resolve()
    authority = keystore / 'public' / 'permissions_ca.cert.pem'
    verify = ('smime', '-verify', '-text', '-CAfile', authority)
    done = openssl(*verify, '-in', signed)
    assert done.returncode == 0
    assert done.stdout.replace('\r', '') == signed.with_suffix('.xml').read_text()
    changed = signed.with_name('changed.p7s')
    changed.write_text(signed.read_text().replace('<id>7</id>', '<id>8</id>'))
    assert openssl(*verify, '-in', changed).returncode != 0


def test_permissions_name_the_topics_and_services_of_the_policy_and_deny_the_rest(keystore):
    published, subscribed = topics(keystore, 'publish'), topics(keystore, 'subscribe')
    assert {'rt/dense_perception/labels', 'rt/diagnostics', 'ros_discovery_info'} <= published
    assert {'rt/camera/image_raw', 'rq/dense_perception/change_stateRequest'} <= subscribed
    assert 'rr/dense_perception/change_stateReply' in published
    assert not any('camera/image_raw' in name for name in published)
    tree = ElementTree.parse(keystore / 'enclaves' / 'dense_perception' / 'permissions.xml')
    assert tree.findtext('.//default') == 'DENY'
    assert [entry.text for entry in tree.iterfind('.//domains/id')] == ['7']


def test_another_camera_and_namespace_take_the_place_of_those_in_the_policy(tmp_path):
    keystore = tmp_path / 'keystore'
    where = ('--camera', '/front', '--image-topic', 'rgb', '--namespace', '/drone')
    assert make(keystore, *where) == 0
    images = {'rt/front/rgb', 'rt/front/rgb/compressed', 'rt/front/camera_info'}
    assert images <= topics(keystore, 'subscribe')
    assert not any('/camera/' in name for name in topics(keystore, 'subscribe'))
    assert 'rt/drone/dense_perception/labels' in topics(keystore, 'publish')
    assert 'rt/diagnostics' in topics(keystore, 'publish')


RIG = """cameras:
  front:
  left: {namespace: /rear/left, image_topic: rgb, info_topic: info}
"""


@pytest.fixture
def rig(tmp_path):
    path = tmp_path / 'rig.yaml'
    path.write_text(RIG)
    return path


def test_a_rig_gives_the_perception_node_the_topics_of_each_of_its_cameras(tmp_path, rig):
    keystore = tmp_path / 'keystore'
    assert make(keystore, '--rig', rig, '--namespace', '/car') == 0
    subscribed = {name for name in topics(keystore, 'subscribe') if name.startswith('rt/')}
    assert subscribed == {
        'rt/clock',
        *('rt/front/image_raw', 'rt/front/image_raw/compressed', 'rt/front/camera_info'),
        *('rt/rear/left/rgb', 'rt/rear/left/rgb/compressed', 'rt/rear/left/info'),
    }
    published = {name for name in topics(keystore, 'publish') if '/labels' in name}
    assert published == {
        f'rt/car/dense_perception/{camera}/{labels}'
        for camera in ('front', 'left')
        for labels in ('labels', 'labels/compressed', 'labels_color')
    }
    assert 'rt/car/dense_perception/transition_event' in topics(keystore, 'publish')
    assert 'rr/car/dense_perception/change_stateReply' in topics(keystore, 'publish')


def test_each_free_space_node_of_a_rig_reads_its_own_camera_alone(tmp_path, rig):
    keystore = tmp_path / 'keystore'
    assert make(keystore, '--rig', rig) == 0
    for camera, other in (('front', 'left'), ('left', 'front')):
        subscribed = topics(keystore, 'subscribe', f'free_space_{camera}')
        assert f'rt/dense_perception/{camera}/labels' in subscribed
        assert not any(f'/{other}' in name or 'image' in name for name in subscribed)
        assert f'rt/free_space_{camera}/free_space' in topics(
            keystore, 'publish', f'free_space_{camera}'
        )
    assert not (keystore / 'enclaves' / 'motion').exists()  # it reads no camera


def test_the_motion_node_reads_the_camera_and_imu_that_are_named(tmp_path, rig):
    keystore = tmp_path / 'keystore'
    where = ('--rig', rig, '--motion-camera', 'left', '--imu', '/body/imu')
    assert make(keystore, *where, '--namespace', '/drone') == 0
    subscribed = topics(keystore, 'subscribe', 'motion')
    assert {'rt/drone/dense_perception/left/flow', 'rt/body/imu', 'rt/tf'} <= subscribed
    assert not any('front' in name or name == 'rt/imu' for name in subscribed)
    assert 'rt/drone/motion/sectors' in topics(keystore, 'publish', 'motion')


@pytest.mark.parametrize(
    ('content', 'options', 'error'),
    [
        (RIG, ('--motion-camera', 'right'), "'right'; cameras are front, left"),
        ('cameras: {"front/": }', (), 'letters, digits'),
        ('front', (), 'rig.yaml'),
        (None, (), 'cannot be read'),
    ],
)
def test_a_rig_that_cannot_be_used_is_told(tmp_path, capsys, content, options, error):
    if content is not None:
        (tmp_path / 'rig.yaml').write_text(content)
    assert make(tmp_path / 'keystore', '--rig', tmp_path / 'rig.yaml', *options) == 1
    assert error in capsys.readouterr().err
    assert not (tmp_path / 'keystore').exists()


def test_every_enclave_has_a_key_of_its_own(keystore):
    keys = {path.parent.name: path.read_bytes() for path in keystore.rglob('key.pem')}
    assert set(keys) == {'dense_perception', 'free_space', 'motion'}
    assert len(set(keys.values())) == 3


def test_private_keys_are_for_their_owner_only(keystore):
    for key in keystore.rglob('*key.pem'):
        assert key.stat().st_mode & 0o077 == 0


def test_keys_that_exist_are_kept(keystore):
    before = {path: path.read_bytes() for path in keystore.rglob('*key.pem')}
    assert make(keystore, '--domain', 8) == 0
    assert {path: path.read_bytes() for path in keystore.rglob('*key.pem')} == before


@pytest.mark.parametrize(
    ('policy', 'error'),
    [
        ('no xml', 'cannot be read'),
        ('<policy/>', 'no enclave'),
        (
            '<policy><enclaves><enclave path="/../../x"><profiles><profile ns="/" node="n">'
            '<topics publish="ALLOW"><topic>/a</topic></topics></profile></profiles></enclave>'
            '</enclaves></policy>',
            'outside of the keystore',
        ),
        (
            '<policy><enclaves><enclave path="/x"><profiles><profile ns="/" node="n">'
            '<topics publish="DENY"><topic>/a</topic></topics></profile></profiles></enclave>'
            '</enclaves></policy>',
            'only ALLOW',
        ),
    ],
)
def test_a_policy_that_cannot_be_used_is_told(tmp_path, capsys, policy, error):
    (tmp_path / 'policy.xml').write_text(policy)
    assert make(tmp_path / 'keystore', '--policy', tmp_path / 'policy.xml') == 1
    assert error in capsys.readouterr().err
    assert not (tmp_path / 'x').exists()
