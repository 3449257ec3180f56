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


def topics(keystore, kind):
    tree = ElementTree.parse(keystore / 'enclaves' / 'dense_perception' / 'permissions.xml')
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
