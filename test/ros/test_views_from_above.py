"""The label set of aerial views in docs/integration.md, with weights of the user's own."""

import json
from pathlib import Path
import re

from dense_perception.data.label_files import read_mapping
from dense_perception.networks import NETWORKS, SEGMENTATION_NETWORKS
from dense_perception.ros.messages import image_to_array, message_to_labels
from dense_perception.weights.checkpoint import Card, own_label_set, Preprocessing, save_weights
import pytest
from std_msgs.msg import String
import torch
import yaml

pytestmark = pytest.mark.ros

ROOT = Path(__file__).parents[2]
PAGE = ROOT / 'docs' / 'integration.md'


class Patches(torch.nn.Module):
    """A network of random weights that scores patches of eight pixels by their colours."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.score = torch.nn.Conv2d(3, classes, 8, stride=8, padding=4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.score(images)


@pytest.fixture
def aerial(tmp_path):
    """Return the label set that the page shows."""
    (example,) = re.findall(r'```yaml\n(.*?)```', PAGE.read_text(encoding='utf-8'), re.DOTALL)
    path = tmp_path / 'labels.yaml'
    path.write_text(example)
    return read_mapping(path)[1]


def test_a_drones_node_tells_and_paints_the_classes_of_its_weights(
    bench, frame, aerial, monkeypatch, tmp_path
):
    monkeypatch.setitem(NETWORKS, 'patches', Patches)
    monkeypatch.setitem(SEGMENTATION_NETWORKS, 'patches', Patches)
    card = Card('patches', {'classes': len(aerial)}, Preprocessing(), **own_label_set(aerial))
    weights = tmp_path / 'aerial.safetensors'
    save_weights(weights, card.build(), card)
    of_a_drone = yaml.safe_load((ROOT / 'config' / 'drone.yaml').read_text())
    parameters = of_a_drone['/**']['ros__parameters']
    small = {'device': 'cpu', 'precision': 'float32', 'segmentation_width': 64}
    empty = {'cameras': [''], 'engine_image_size': [0, 0]}  # an empty list has no type here
    shown = {'overlay_opacity': 1.0, 'image_transport': 'raw', 'flow_weights': ''}
    running = bench(
        **{**parameters, **small, **empty, **shown, 'segmentation_weights': str(weights)}
    )
    infos = running.listen('label_info', String, latched=True)
    labels, pictures = running.listen('labels'), running.listen('labels_color')
    running.camera().publish(frame(1))
    running.spin(lambda: infos and labels and pictures)
    info = json.loads(infos[0].data)
    assert info['name'] == 'aerial'
    names = [entry['name'] for entry in info['classes']]
    assert names == ['paved', 'grass', 'water', 'person', 'car']
    found = message_to_labels(labels[0])
    assert found.max() < len(names)
    colors = [tuple(entry['color']) for entry in info['classes']]
    painted = image_to_array(pictures[0])[-1]  # below the legend
    assert [tuple(pixel) for pixel in painted] == [colors[index] for index in found[-1]]
