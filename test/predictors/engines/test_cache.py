import json

from dense_perception.predictors.engines.cache import Cache
import pytest

KEY = {'engine': 'one', 'sizes': [[1, 3, 8, 8]], 'versions': {'torch': '2'}}


def write(content='weights'):
    def build(folder):
        (folder / 'network.bin').write_text(content, encoding='utf-8')

    return build


def content(folder):
    return (folder / 'network.bin').read_text(encoding='utf-8')


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / 'a' / 'cache')


def test_nothing_is_found_where_nothing_was_made(cache):
    assert cache.find(KEY) is None


def test_an_entry_is_found_by_its_key_alone(cache):
    made = cache.make(KEY, write())
    assert cache.find(dict(reversed(KEY.items()))) == made
    assert content(made) == 'weights'
    for name, other in [('engine', 'two'), ('sizes', [[1, 3, 8, 16]]), ('versions', {})]:
        assert cache.find({**KEY, name: other}) is None


@pytest.mark.parametrize('damage', ['changed', 'shortened', 'missing', 'added', 'no record'])
def test_a_damaged_entry_is_not_found_and_can_be_made_anew(cache, damage):
    folder = cache.make(KEY, write())
    file = folder / 'network.bin'
    if damage == 'changed':
        file.write_text('Weights', encoding='utf-8')
    elif damage == 'shortened':
        file.write_text('weight', encoding='utf-8')
    elif damage == 'missing':
        file.unlink()
    elif damage == 'added':
        (folder / 'more.bin').write_text('', encoding='utf-8')
    else:
        (folder / 'record.json').write_bytes(b'\xff{')
    assert cache.find(KEY) is None
    assert cache.find(KEY) is None
    assert content(cache.make(KEY, write('again'))) == 'again'
    assert cache.find(KEY) is not None


def test_an_entry_of_another_key_in_its_place_is_not_found(cache):
    folder = cache.make(KEY, write())
    record = json.loads((folder / 'record.json').read_text(encoding='utf-8'))
    record['key']['versions'] = {'torch': '1'}
    (folder / 'record.json').write_text(json.dumps(record), encoding='utf-8')
    assert cache.find(KEY) is None


def test_a_file_in_the_place_of_an_entry_gives_way(cache):
    folder = cache.make(KEY, write())
    (folder / 'network.bin').unlink()
    (folder / 'record.json').unlink()
    folder.rmdir()
    folder.write_text('no folder', encoding='utf-8')
    assert cache.find(KEY) is None
    assert content(cache.make(KEY, write())) == 'weights'


def test_a_build_that_fails_leaves_nothing_and_keeps_what_was_there(cache):
    cache.make(KEY, write())

    def fail(folder):
        write('half')(folder)
        raise RuntimeError('out of memory')

    with pytest.raises(RuntimeError, match='out of memory'):
        cache.make(KEY, fail)
    assert content(cache.find(KEY)) == 'weights'
    assert len(list(cache.folder.iterdir())) == 1
