from pathlib import Path

from dense_perception.training.flow import FlowRecipe
from dense_perception.training.labelled import LabelledRecipe
from dense_perception.training.masks import MasksRecipe
from dense_perception.training.schedule import learning_rate_at
from dense_perception.training.segmentation import SegmentationRecipe
import pytest

CONFIG = Path(__file__).parents[2] / 'config'
RECIPES = sorted(CONFIG.glob('training_*.yaml'))
KINDS = {
    'flownet': FlowRecipe,
    'deep_mask': MasksRecipe,
    'sharp_mask': MasksRecipe,
    '': LabelledRecipe,
}


def recipe(name):
    kind = next(kind for start, kind in KINDS.items() if name.startswith(start))
    return kind.from_yaml(CONFIG / f'training_{name}.yaml')


def test_every_recipe_can_be_read():
    names = [path.stem.removeprefix('training_') for path in RECIPES]
    assert len(names) >= 12
    for name in names:
        assert recipe(name).steps >= 100


def test_recipes_of_the_shipped_weights_can_be_read():
    assert SegmentationRecipe.from_yaml(CONFIG / 'segmentation.yaml').rendered == 6
    assert FlowRecipe.from_yaml(CONFIG / 'flow.yaml').rendered == 2


@pytest.mark.parametrize(
    ('name', 'steps', 'batch', 'momentum', 'rate'),
    [
        ('dilation_front_end', 60_000, 14, 0.9, 1e-3),
        ('dilation_front_end_voc', 50_000, 14, 0.9, 1e-5),
        ('dilation_road_front_end', 40_000, 8, 0.99, 1e-4),
        ('dilation_road_context', 24_000, 100, 0.99, 1e-4),
        ('dilation_road_joint', 60_000, 1, 0.9, 1e-5),
        ('fcn32s', 100_000, 1, 0.99, 1e-10),
        ('fcn16s', 100_000, 1, 0.99, 1e-12),
        ('fcn8s', 100_000, 1, 0.99, 1e-14),
        ('fcn8s_at_once', 300_000, 1, 0.99, 1e-10),
    ],
)
def test_published_schedules_are_of_constant_rate(name, steps, batch, momentum, rate):
    settings = recipe(name)
    assert (settings.optimizer, settings.steps, settings.batch) == ('sgd', steps, batch)
    assert (settings.momentum, settings.weight_decay, settings.bias_rate) == (momentum, 5e-4, 2.0)
    for step in (0, steps // 2, steps - 1):
        assert learning_rate_at(step, settings) == pytest.approx(rate, rel=1e-9)


def test_front_end_with_coco_falls_to_a_tenth_once():
    settings = recipe('dilation_front_end_coco')
    rates = [learning_rate_at(step, settings) for step in (0, 99_999, 100_000, 139_999)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])


def test_flownet_halves_its_rate_three_times():
    settings = recipe('flownet_simple_short')
    assert (settings.optimizer, settings.batch, settings.error) == ('adam', 8, 'sum')
    rates = [learning_rate_at(step, settings) for step in (0, 299_999, 300_000, 400_000, 599_999)]
    assert rates == pytest.approx([1e-4, 1e-4, 5e-5, 2.5e-5, 1.25e-5])
    corr = recipe('flownet_corr_short')
    assert learning_rate_at(4_999, corr) == pytest.approx(5e-5)


def test_recipes_of_today_blur_and_those_of_papers_and_shipped_weights_do_not():
    found = {path.stem: recipe(path.stem.removeprefix('training_')) for path in RECIPES}
    blurred = {name for name, settings in found.items() if getattr(settings, 'blur', 0.0)}
    assert blurred == {'training_cityscapes', 'training_fine_tune'}
    assert SegmentationRecipe.from_yaml(CONFIG / 'segmentation.yaml').blur == 0
    assert FlowRecipe.from_yaml(CONFIG / 'flow.yaml').blur == 0
