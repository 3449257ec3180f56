from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import threading

from dense_perception.errors import WeightsError
from dense_perception.weights.fetching import fetch
import numpy as np
import pytest

CONTENT = np.random.default_rng(0).integers(256, size=1_000_000, dtype=np.uint8).tobytes()
DIGEST = sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT: whole, in ranges, or only the first part of what was asked for."""

    def do_GET(self):
        self.server.requests.append(self.headers.get('Range'))
        start = 0
        if self.path.startswith('/missing'):
            self.send_error(404)
            return
        if 'Range' in self.headers and not self.path.startswith('/whole'):
            start = int(self.headers['Range'].removeprefix('bytes=').rstrip('-'))
            if start >= len(CONTENT):
                self.send_response(416)
                self.send_header('Content-Range', f'bytes */{len(CONTENT)}')
                self.end_headers()
                return
            self.send_response(206)
            self.send_header('Content-Range', f'bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}')
        else:
            self.send_response(200)
        part = CONTENT[start:]
        claimed = 2**40 if self.path.startswith('/huge') else len(part)
        if not self.path.startswith('/unknown'):
            self.send_header('Content-Length', str(claimed))
        self.end_headers()
        breaks = self.path.startswith('/breaks') and len(self.server.requests) == 1
        self.wfile.write(part[:300_000] if breaks else part)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(('127.0.0.1', 0), Handler) as serving:
        serving.requests = []
        serving.url = f'http://127.0.0.1:{serving.server_port}'
        thread = threading.Thread(target=serving.serve_forever, daemon=True)
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


def test_file_is_fetched_with_its_progress(server, tmp_path):
    path = tmp_path / 'new' / 'a.bin'
    seen = []
    digest = fetch(f'{server.url}/a', path, DIGEST, lambda *state: seen.append(state))
    assert digest == DIGEST
    assert path.read_bytes() == CONTENT
    assert seen[0] == (0, len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [entry.name for entry in path.parent.iterdir()] == ['a.bin']


def test_broken_transfer_is_told_and_goes_on_where_it_stopped(server, tmp_path):
    path = tmp_path / 'a.bin'
    with pytest.raises(WeightsError, match='what has arrived is kept, fetch again to go on'):
        fetch(f'{server.url}/breaks', path, DIGEST)
    assert not path.exists()
    have = (tmp_path / 'a.bin.part').stat().st_size
    assert 0 < have <= 300_000
    fetch(f'{server.url}/breaks', path, DIGEST)
    assert server.requests == [None, f'bytes={have}-']
    assert path.read_bytes() == CONTENT


def test_server_without_ranges_starts_anew(server, tmp_path):
    (tmp_path / 'a.bin.part').write_bytes(b'x' * 1000)
    fetch(f'{server.url}/whole', tmp_path / 'a.bin', DIGEST)
    assert (tmp_path / 'a.bin').read_bytes() == CONTENT


def test_part_that_is_whole_is_taken(server, tmp_path):
    (tmp_path / 'a.bin.part').write_bytes(CONTENT)
    fetch(f'{server.url}/a', tmp_path / 'a.bin', DIGEST)
    assert server.requests == [f'bytes={len(CONTENT)}-']
    assert (tmp_path / 'a.bin').read_bytes() == CONTENT


def test_part_that_is_too_long_is_dropped(server, tmp_path):
    (tmp_path / 'a.bin.part').write_bytes(CONTENT + b'x')
    fetch(f'{server.url}/a', tmp_path / 'a.bin', DIGEST)
    assert (tmp_path / 'a.bin').read_bytes() == CONTENT


def test_file_of_unknown_length_is_fetched(server, tmp_path):
    assert fetch(f'{server.url}/unknown', tmp_path / 'a.bin') == DIGEST


def test_beginning_of_the_hash_is_enough(server, tmp_path):
    assert fetch(f'{server.url}/a', tmp_path / 'a.bin', DIGEST[:8].upper()) == DIGEST


def test_file_with_another_hash_is_deleted(server, tmp_path):
    with pytest.raises(WeightsError, match=f'its SHA-256 is {DIGEST}, not 0123; it was deleted'):
        fetch(f'{server.url}/a', tmp_path / 'a.bin', '0123')
    assert not list(tmp_path.iterdir())


def test_enormous_file_is_not_begun(server, tmp_path):
    with pytest.raises(WeightsError, match='it has 1099511627776 bytes; no file of weights'):
        fetch(f'{server.url}/huge', tmp_path / 'a.bin')


def test_missing_file_and_missing_server_are_told(server, tmp_path):
    with pytest.raises(WeightsError, match='/missing: the server says 404 Not Found'):
        fetch(f'{server.url}/missing', tmp_path / 'a.bin')
    with pytest.raises(WeightsError, match='http://127.0.0.1:1/a: .*refused'):
        fetch('http://127.0.0.1:1/a', tmp_path / 'a.bin')


def test_only_http_is_fetched(tmp_path):
    with pytest.raises(WeightsError, match='must start with http'):
        fetch('file:///etc/hostname', tmp_path / 'a.bin')
