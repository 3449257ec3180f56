import json
from pathlib import Path
import re

import pytest
import yaml

pytestmark = pytest.mark.ros

CONFIG = Path(__file__).parents[2] / 'config'
CAMERA = '/camera/image_raw'  # what drive.launch.py listens to


def strings(content):
    """Every string in nested lists and mappings."""
    if isinstance(content, dict):
        content = list(content.values())
    if isinstance(content, list):
        return [text for entry in content for text in strings(entry)]
    return [content] if isinstance(content, str) else []


def topics(name):
    """Every topic that a viewer's file names; Foxglove appends a path into the message."""
    text = (CONFIG / name).read_text(encoding='utf-8')
    content = json.loads(text) if name.endswith('.json') else yaml.safe_load(text)
    return {re.match(r'[\w/]+', word)[0] for word in strings(content) if word.startswith('/')} - {
        '/dense_perception'  # the node, in the name of its diagnostic status
    }


@pytest.mark.parametrize('name', ['drive.rviz', 'foxglove_layout.json'])
def test_every_topic_that_a_viewer_is_set_up_for_is_one_of_the_node(bench, name):
    running = bench('inactive')
    published = {output.topic_name for output in running.node.publishers} | {'/rosout'}
    assert topics(name) - {CAMERA} <= published
    assert {'/dense_perception/labels_color', '/dense_perception/flow_color'} <= topics(name)


def test_every_figure_of_the_foxglove_layout_is_one_of_the_diagnostics(bench):
    running = bench('unconfigured')
    _, values = running.next_diagnostics()
    text = (CONFIG / 'foxglove_layout.json').read_text(encoding='utf-8')
    keys = set(re.findall(r'key==\\"(.+?)\\"', text))
    assert keys
    assert keys <= set(values)


def test_every_panel_of_the_foxglove_layout_has_its_place():
    layout = json.loads((CONFIG / 'foxglove_layout.json').read_text(encoding='utf-8'))
    placed = [text for text in strings(layout['layout']) if '!' in text]
    assert sorted(placed) == sorted(layout['configById'])


def test_the_page_about_viewers_names_topics_of_the_node(bench):
    running = bench('inactive')
    text = (CONFIG.parent / 'docs' / 'seeing.md').read_text(encoding='utf-8')
    named = set(re.findall(r'/dense_perception/\w+', text))
    assert named
    assert named <= {output.topic_name for output in running.node.publishers}
