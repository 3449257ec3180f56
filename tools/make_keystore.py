"""
Make the keys, certificates and signed permissions with which the nodes run under DDS Security.

The keystore has the layout of sros2, so that `ros2 security create_enclave` can add enclaves of
other nodes to it. This tool needs OpenSSL alone; what it makes is what `ros2 security
create_keystore`, `create_enclave` and `create_permission` make of the same policy. Options are
named as the arguments of drone.launch.py, and give the rights that its nodes need.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

POLICY = Path(__file__).parent.parent / 'config' / 'sros2_policy.xml'
# As the policy names them.
CAMERA, IMAGE, INFO, IMU = '/camera', 'image_raw', 'camera_info', '/imu'
PERCEPTION, FREE_SPACE, MOTION = 'dense_perception', 'free_space', 'motion'  # nodes
DAYS = 3650  # that certificates and permissions hold
SCHEMAS = 'http://www.omg.org/spec/DDS-SECURITY/20170901'
OF_NO_CAMERA = ('~/transition_event',)  # of what the perception node publishes under its name
# Names in DDS of the two topics of a service; the node replies, or it asks.
REQUEST, REPLY = 'rq{}Request', 'rr{}Reply'
RIGHTS = {  # attribute of the policy -> what is published, what is subscribed
    'publish': (['rt{}'], []),
    'subscribe': ([], ['rt{}']),
    'reply': ([REPLY], [REQUEST]),
    'request': ([REQUEST], [REPLY]),
}
# Everything is encrypted, and who has no certificate of this keystore takes no part.
GOVERNANCE = {
    'allow_unauthenticated_participants': 'false',
    'enable_join_access_control': 'true',
    'discovery_protection_kind': 'ENCRYPT',
    'liveliness_protection_kind': 'ENCRYPT',
    'rtps_protection_kind': 'ENCRYPT',
}
EVERY_TOPIC = {
    'topic_expression': '*',
    'enable_discovery_protection': 'true',
    'enable_liveliness_protection': 'true',
    'enable_read_access_control': 'true',
    'enable_write_access_control': 'true',
    'metadata_protection_kind': 'ENCRYPT',
    'data_protection_kind': 'ENCRYPT',
}


class KeystoreError(Exception):
    """The keystore cannot be made."""


@dataclass(frozen=True)
class Camera:
    """What a camera publishes; its name is part of the topics of the results, unless empty."""

    name: str = ''
    image: str = f'{CAMERA}/{IMAGE}'
    info: str = f'{CAMERA}/{INFO}'

    def topic(self, name: str) -> str:
        """Return the full name of a topic that the policy has of the camera."""
        if name == f'{CAMERA}/{INFO}':
            return self.info
        return f'{self.image}{name.removeprefix(f"{CAMERA}/{IMAGE}")}'


@dataclass(frozen=True)
class Place:
    """Where the nodes of the policy run, and which cameras there are."""

    cameras: tuple[Camera, ...] = (Camera(),)
    namespace: str = '/'
    motion_camera: str = ''  # name of the one whose flow the motion node reads
    imu: str = IMU

    def nodes(self, node: str) -> list[tuple[str, tuple[Camera, ...]]]:
        """Return the nodes that one of the policy stands for, and whose topics each knows."""
        if node == FREE_SPACE:  # one for each camera
            return [(f'{node}_{one.name}'.rstrip('_'), (one,)) for one in self.cameras]
        if node == MOTION:
            return [(node, (one,)) for one in self.cameras if one.name == self.motion_camera]
        return [(node, self.cameras)]

    def topics(self, name: str, node: str, cameras: Sequence[Camera]) -> list[str]:
        """Return the full names of a topic of the policy: one, or one of each camera."""
        if name.startswith(f'{CAMERA}/'):
            return [camera.topic(name) for camera in cameras]
        if name == IMU:
            return [self.imu]
        if node == PERCEPTION and name.startswith('~/') and name not in OF_NO_CAMERA:
            name = f'{PERCEPTION}{name[1:]}'
        result = name.removeprefix(f'{PERCEPTION}/')
        if result == name:
            return [self.full(name, node)]
        return [
            self.full('/'.join(filter(None, (PERCEPTION, camera.name, result))), node)
            for camera in cameras
        ]

    def full(self, name: str, node: str) -> str:
        """Return the full name of a service, or of a topic of no camera."""
        if name.startswith('/'):
            return name
        place = self.namespace.rstrip('/')
        return f'{place}/{node}{name[1:]}' if name.startswith('~/') else f'{place}/{name}'


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        enclaves = make_keystore(options.keystore, options.policy, _place(options), options.domain)
    except KeystoreError as error:
        print(f'make_keystore: {error}', file=sys.stderr)
        return 1
    print(f'{options.keystore}: {", ".join(enclaves)} in domain {options.domain}. To use it:')
    print(f'export ROS_SECURITY_KEYSTORE={options.keystore.resolve()}')
    print('export ROS_SECURITY_ENABLE=true ROS_SECURITY_STRATEGY=Enforce')
    print('The launch files name the enclave of each node; to start one by itself, add one of:')
    for enclave in enclaves:
        print(f'--ros-args --enclave {enclave}')
    return 0


def _place(options: argparse.Namespace) -> Place:
    """
    Return where the nodes run.

    :raises KeystoreError: the rig cannot be read, or has no camera of a name.
    """
    camera = options.camera.rstrip('/')
    cameras = [Camera('', f'{camera}/{options.image_topic}', f'{camera}/{INFO}')]
    if options.rig:
        cameras = read_cameras(options.rig)
    names = [camera.name for camera in cameras]
    if options.motion_camera and options.motion_camera not in names:
        known = ', '.join(filter(None, names)) or 'without a name'
        raise KeystoreError(f'motion camera is {options.motion_camera!r}; cameras are {known}')
    return Place(tuple(cameras), options.namespace, options.motion_camera, options.imu)


def read_cameras(rig: Path) -> list[Camera]:
    """
    Read a file of the form of config/rig.yaml, as drive_multi.launch.py does.

    :raises KeystoreError: it cannot be used.
    """
    # Here, as they and the YAML reader below are needed for a rig alone.
    from dense_perception.errors import SettingError
    from dense_perception.ros.rig import read_rig, remappings

    try:
        cameras = read_rig(rig)
    except SettingError as error:
        raise KeystoreError(str(error)) from error
    topics = dict(remappings(cameras))
    return [
        Camera(name, topics[f'{name}/image'], topics[f'{name}/camera_info']) for name in cameras
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='make_keystore', description=__doc__)
    parser.add_argument('keystore', type=Path, help='folder; keys that are there are kept')
    parser.add_argument('--policy', type=Path, default=POLICY, help='default: %(default)s')
    parser.add_argument('--camera', default=CAMERA, help='its namespace, default: %(default)s')
    parser.add_argument('--image-topic', default=IMAGE, help='in it, default: %(default)s')
    parser.add_argument('--rig', type=Path, help='file of several cameras, in place of these two')
    parser.add_argument(
        '--motion-camera',
        default='',
        help='the one in the rig that the motion node reads; without it that has no enclave there',
    )
    parser.add_argument('--imu', default=IMU, help='default: %(default)s')
    parser.add_argument('--namespace', default='/', help="the nodes', default: %(default)s")
    parser.add_argument(
        '--domain',
        type=int,
        default=int(os.environ.get('ROS_DOMAIN_ID') or 0),
        help='default: ROS_DOMAIN_ID, now %(default)s',
    )
    return parser


def make_keystore(keystore: Path, policy: Path, place: Place, domain: int) -> list[str]:
    """
    Make a keystore, or add to one, and sign what each enclave of a policy may do.

    Authority and keys that exist are kept; governance and permissions are written anew.

    :param domain: the one ROS domain in which the permissions hold.
    :returns: paths of the enclaves.
    :raises KeystoreError: there is no OpenSSL, or the policy or folder cannot be used.
    """
    if shutil.which('openssl') is None:
        raise KeystoreError('openssl is not on the PATH; install it')
    try:
        grants = dict(_grants(ElementTree.parse(policy).getroot(), place))
    except (OSError, ElementTree.ParseError) as error:
        raise KeystoreError(f'{policy}: cannot be read: {error}') from error
    if not grants:
        raise KeystoreError(f'{policy}: no enclave with a profile in it')
    os.umask(0o077)  # private keys are nobody else's
    try:
        _make_authority(keystore)
        _write(keystore / 'enclaves' / 'governance.xml', _governance(domain), keystore)
        for path, rights in grants.items():
            _make_enclave(keystore, path, _permissions(path, rights, domain))
    except OSError as error:
        raise KeystoreError(f'{keystore}: cannot be written: {error.strerror}') from error
    return list(grants)


def _grants(policy: Element, place: Place) -> Iterator[tuple[str, dict[str, list[str]]]]:
    """Give each enclave, and the names in DDS of the topics that it may publish and subscribe."""
    for path, allowed in rights(policy, place).items():
        # Who talks to whom, which every ROS 2 participant writes and reads.
        topics = {'publish': {'ros_discovery_info'}, 'subscribe': {'ros_discovery_info'}}
        for right, names in allowed.items():
            for kind, forms in zip(topics, RIGHTS[right], strict=True):
                topics[kind].update(form.format(name) for form in forms for name in names)
        yield path, {kind: sorted(names) for kind, names in topics.items()}


def rights(policy: Element, place: Place) -> dict[str, dict[str, set[str]]]:
    """
    Return what a policy allows in a place.

    :returns: for each enclave, kind of right to full names of topics and services.
    :raises KeystoreError: there is a rule that is not known here.
    """
    found: dict[str, dict[str, set[str]]] = {}
    for enclave in policy.iterfind('enclaves/enclave'):
        for profile in enclave.iterfind('profiles/profile'):
            written = profile.attrib['node']
            for node, cameras in place.nodes(written):
                # An enclave that has the name of its node keeps it.
                path = re.sub(f'(?<=/){re.escape(written)}$', node, enclave.attrib['path'])
                allowed = found.setdefault(path, {})
                for group in profile:
                    names = list(_full_names(group, place, node, cameras))
                    for right in _rights_of(group, path):
                        allowed.setdefault(right, set()).update(names)
    return found


def _full_names(
    group: Element, place: Place, node: str, cameras: Sequence[Camera]
) -> Iterator[str]:
    """Give the full names of the topics and services of a group."""
    for entry in group:
        name = entry.text or ''
        if entry.tag == 'service':
            yield place.full(name, node)
        else:
            yield from place.topics(name, node, cameras)


def _rights_of(group: Element, enclave: str) -> list[str]:
    """
    Return what a group of topics or services allows.

    :raises KeystoreError: it has a rule that is not known here.
    """
    for right, rule in group.attrib.items():
        if rule != 'ALLOW' or right not in RIGHTS:
            raise KeystoreError(
                f'{enclave}: {right}="{rule}"; only ALLOW of {", ".join(RIGHTS)} is known here, '
                'all else is denied anyway'
            )
    return list(group.attrib)


def _governance(domain: int) -> Element:
    root = Element('dds', {'xsi:noNamespaceSchemaLocation': f'{SCHEMAS}/dds_governance.xsd'})
    rule = SubElement(SubElement(root, 'domain_access_rules'), 'domain_rule')
    SubElement(SubElement(rule, 'domains'), 'id').text = str(domain)
    for name, value in GOVERNANCE.items():
        SubElement(rule, name).text = value
    topic_rule = SubElement(SubElement(rule, 'topic_access_rules'), 'topic_rule')
    for name, value in EVERY_TOPIC.items():
        SubElement(topic_rule, name).text = value
    return root


def _permissions(enclave: str, rights: dict[str, list[str]], domain: int) -> Element:
    root = Element('dds', {'xsi:noNamespaceSchemaLocation': f'{SCHEMAS}/dds_permissions.xsd'})
    grant = SubElement(SubElement(root, 'permissions'), 'grant', name=enclave)
    SubElement(grant, 'subject_name').text = f'CN={enclave}'
    validity = SubElement(grant, 'validity')
    now = datetime.now(timezone.utc) - timedelta(days=1)  # clocks of robots are not exact
    for name, moment in (('not_before', now), ('not_after', now + timedelta(days=DAYS))):
        SubElement(validity, name).text = f'{moment:%Y-%m-%dT%H:%M:%S}'
    rule = SubElement(grant, 'allow_rule')
    SubElement(SubElement(rule, 'domains'), 'id').text = str(domain)
    for kind, names in rights.items():
        topics = SubElement(SubElement(rule, kind), 'topics')
        for name in names:
            SubElement(topics, 'topic').text = name
    SubElement(grant, 'default').text = 'DENY'
    return root


def _make_authority(keystore: Path) -> None:
    """Make the authority that signs certificates and permissions, unless there is one."""
    public, private = keystore / 'public', keystore / 'private'
    for folder in (public, private, keystore / 'enclaves'):
        folder.mkdir(parents=True, exist_ok=True)
    if not (private / 'ca.key.pem').exists():
        _openssl(
            'req',
            '-x509',
            *_new_key(private / 'ca.key.pem'),
            '-subj',
            '/CN=sros2CA',
            '-days',
            str(DAYS),
            '-out',
            str(public / 'ca.cert.pem'),
        )
    for use in ('identity_ca', 'permissions_ca'):
        _link(public / f'{use}.cert.pem', public / 'ca.cert.pem')
        _link(private / f'{use}.key.pem', private / 'ca.key.pem')


def _make_enclave(keystore: Path, path: str, permissions: Element) -> None:
    folder = keystore / 'enclaves' / path.strip('/')
    if not folder.resolve().is_relative_to((keystore / 'enclaves').resolve()):
        raise KeystoreError(f'enclave {path!r} lies outside of the keystore')
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / 'key.pem').exists():
        request = folder / 'request.pem'
        subject = '/CN=' + path.replace('/', '\\/')
        _openssl('req', *_new_key(folder / 'key.pem'), '-subj', subject, '-out', str(request))
        _openssl(
            'x509',
            '-req',
            '-in',
            str(request),
            '-days',
            str(DAYS),
            '-CAcreateserial',
            '-CA',
            str(keystore / 'public' / 'ca.cert.pem'),
            '-CAkey',
            str(keystore / 'private' / 'ca.key.pem'),
            '-out',
            str(folder / 'cert.pem'),
        )
        request.unlink()
    for name in ('identity_ca.cert.pem', 'permissions_ca.cert.pem'):
        _link(folder / name, keystore / 'public' / name)
    _link(folder / 'governance.p7s', keystore / 'enclaves' / 'governance.p7s')
    _write(folder / 'permissions.xml', permissions, keystore)


def _write(path: Path, document: Element, keystore: Path) -> None:
    """Write a document, and beside it the same, signed by the authority."""
    document.set('xmlns:xsi', 'http://www.w3.org/2001/XMLSchema-instance')
    ElementTree.indent(document)
    ElementTree.ElementTree(document).write(path, encoding='utf-8', xml_declaration=True)
    _openssl(
        'smime',
        '-sign',
        '-text',
        '-in',
        str(path),
        '-out',
        str(path.with_suffix('.p7s')),
        '-signer',
        str(keystore / 'public' / 'permissions_ca.cert.pem'),
        '-inkey',
        str(keystore / 'private' / 'permissions_ca.key.pem'),
    )


def _new_key(path: Path) -> list[str]:
    """Return what asks for an unencrypted key of the curve that DDS Security 9.3.1 wants."""
    curve = 'ec_paramgen_curve:prime256v1'
    return ['-newkey', 'ec', '-pkeyopt', curve, '-nodes', '-keyout', str(path)]


def _link(link: Path, target: Path) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(os.path.relpath(target, link.parent))


def _openssl(*arguments: str) -> None:
    done = subprocess.run(['openssl', *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise KeystoreError(f'openssl {arguments[0]}: {done.stderr.strip()}')


if __name__ == '__main__':
    sys.exit(main())
