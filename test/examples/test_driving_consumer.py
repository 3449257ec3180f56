import re

from dense_perception.ros.messages import message_to_labels
import numpy as np
import pytest
from sensor_msgs.msg import Image
from std_msgs.msg import Float32

pytestmark = pytest.mark.ros


def test_labels_and_flow_become_a_distance_and_a_mask_of_what_moves(stage):
    distances = stage.listen(Float32, '/driving_consumer/free_distance')
    masks = stage.listen(Image, '/driving_consumer/moving')
    output = stage.start('examples/driving_consumer.py', 'camera_height:=1.4')
    stage.play_until(lambda: len(distances) > 2 and bool(masks))
    assert all(0 <= message.data <= 30 for message in distances)
    assert max(message.data for message in distances) > 2  # there is road ahead
    mask = message_to_labels(masks[0])
    assert mask.shape == (180, 240)
    assert set(np.unique(mask)) <= {0, 255}
    assert (mask > 0).mean() < 0.5
    assert masks[0].header.frame_id == 'camera'
    assert re.search(r'free for [\d.]+ m; [\d.]+% moves', output.read_text())
    assert stage.close() == [0, 0]
    assert 'Traceback' not in output.read_text()


@pytest.mark.slow
@pytest.mark.parametrize('stage', [['flow_output_scale:=0.5']], indirect=True)
def test_flow_at_half_the_size_of_the_image_gives_a_mask_of_its_size(stage):
    masks = stage.listen(Image, '/driving_consumer/moving')
    output = stage.start('examples/driving_consumer.py', 'camera_height:=1.4')
    stage.play_until(lambda: bool(masks))
    mask = message_to_labels(masks[0])
    assert mask.shape == (90, 120)
    assert (mask > 0).mean() < 0.5
    assert stage.close() == [0, 0]
    assert 'sizes must match' not in output.read_text()
