from dense_perception.data.road_world import RoadWorld
from dense_perception.predictors.flow_estimator import FlowEstimator
from dense_perception.predictors.segmenter import Segmenter
from dense_perception.weights.published import find_weights
import numpy as np
import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device'),
]
PLACES = (('cpu', 'float32'), ('cuda', 'float16'))


def test_labels_on_the_gpu_are_those_of_the_cpu():
    image = RoadWorld(1011).frame(40).image
    cpu, gpu = (
        Segmenter.from_file(find_weights('drive'), device=device, precision=precision)
        .segment(image)
        .labels
        for device, precision in PLACES
    )
    assert (cpu == gpu).mean() >= 0.99


def test_flow_on_the_gpu_is_that_of_the_cpu():
    world = RoadWorld(1011)
    first, second = world.frame(40).image, world.frame(41).image
    cpu, gpu = (
        FlowEstimator.from_file(find_weights('flow'), device=device, precision=precision).estimate(
            first, second
        )
        for device, precision in PLACES
    )
    assert np.linalg.norm(cpu - gpu, axis=-1).mean() < 0.1
