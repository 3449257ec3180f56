from dataclasses import fields
from pathlib import Path

from dense_perception.ros.node import PerceptionNode
from dense_perception.ros.parameters import change_settings, read_parameters
from dense_perception.settings import PerceptionSettings
import pytest
from rcl_interfaces.msg import ParameterType
from rcl_interfaces.srv import DescribeParameters, GetParameters
import rclpy
from rclpy.context import Context
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.parameter import Parameter

pytestmark = pytest.mark.ros


def test_every_setting_is_a_parameter_with_its_default_description_and_range(bench):
    running = bench('unconfigured', device='auto', precision='auto', segmentation_width=480)
    names = [entry.name for entry in fields(PerceptionSettings)]
    response = running.call(
        DescribeParameters, 'describe_parameters', DescribeParameters.Request(names=names)
    )
    for entry, descriptor in zip(fields(PerceptionSettings), response.descriptors, strict=True):
        assert descriptor.description == entry.metadata['description']
        limits = [*descriptor.integer_range, *descriptor.floating_point_range]
        expected = [] if entry.metadata['low'] is None else [entry.metadata['low']]
        assert [limit.from_value for limit in limits] == expected
        for choice in entry.metadata['choices']:
            assert choice in descriptor.additional_constraints
        told = 'may change while the node runs' in descriptor.additional_constraints
        assert told == entry.metadata['changeable']
    response = running.call(
        GetParameters, 'get_parameters', GetParameters.Request(names=['segmentation_width'])
    )
    assert response.values[0].type == ParameterType.PARAMETER_INTEGER
    assert response.values[0].integer_value == 480


@pytest.mark.parametrize('state', ['unconfigured', 'active'])
@pytest.mark.parametrize(
    ('name', 'value', 'reason'),
    [
        ('overlay_opacity', 1.5, 'overlay_opacity'),
        ('segmentation_width', -1, 'segmentation_width'),
        ('image_transport', 'theora', 'must be one of raw, compressed'),
        ('silence_warning_s', 'long', 'Wrong parameter type'),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_with_a_reason(bench, state, name, value, reason):
    running = bench(state)
    before = running.node.get_parameter(name).value
    result = running.set(**{name: value})
    assert not result.successful
    assert reason in result.reason
    assert running.node.get_parameter(name).value == before


def test_a_changeable_parameter_takes_effect_at_the_next_image(bench, frame):
    running = bench(overlay_opacity=1.0)
    heard = running.listen('labels_color')
    camera = running.camera()
    camera.publish(frame(0))
    running.spin(lambda: len(heard) == 1)
    assert running.set(overlay_opacity=0.0).successful
    camera.publish(frame(1))
    running.spin(lambda: len(heard) == 2)
    assert bytes(heard[0].data) != bytes(frame(0).data)
    assert bytes(heard[1].data) == bytes(frame(1).data)


def test_other_parameters_change_only_while_the_node_is_unconfigured(bench):
    running = bench('inactive')
    result = running.set(segmentation_width=128)
    assert not result.successful
    assert 'segmentation_width cannot change while the node is configured' in result.reason
    assert running.set(segmentation_width=64).successful  # no change
    assert running.change('cleanup')
    assert running.set(segmentation_width=128).successful
    assert running.change('configure')


def test_wrong_strings_of_a_file_can_be_set_right_one_by_one(bench):
    running = bench('unconfigured', image_transport='theora', precision='double')
    assert not running.change('configure')
    status, _ = running.next_diagnostics()
    assert "image_transport is 'theora'" in status.message
    assert running.set(image_transport='raw').successful
    assert running.set(precision='float32').successful
    assert running.change('configure')


@pytest.mark.parametrize(
    ('name', 'value', 'right'),
    [
        ('segmentation_width', 'wide', 'INTEGER'),
        ('overlay_opacity', 1, 'DOUBLE'),
        ('autostart', 'perhaps', 'BOOL'),
    ],
)
def test_a_value_of_another_type_is_refused_at_start_with_the_right_one(bench, name, value, right):
    with pytest.raises(InvalidParameterTypeException, match=f'{name}.*{right}'):
        bench(**{name: value})


def test_a_value_out_of_range_is_refused_at_start(bench):
    with pytest.raises(InvalidParameterValueException, match='overlay_opacity'):
        bench(overlay_opacity=2.0)


def test_a_list_of_numbers_is_set_by_parameter_and_two_zeros_empty_it(bench):
    running = bench('unconfigured', engine_image_size=[640, 480])
    assert read_parameters(running.node, PerceptionSettings).engine_image_size == (640, 480)
    assert running.set(engine_image_size=[0, 0]).successful
    assert read_parameters(running.node, PerceptionSettings).engine_image_size == ()


@pytest.mark.parametrize(
    ('value', 'reason'),
    [
        ([640], 'must be a list of 2 whole numbers'),
        ([640, 8193], 'its numbers must lie in 16 to 8192'),
        ([640.0, 480.0], 'Wrong parameter type'),
    ],
)
def test_a_list_of_other_numbers_is_refused_with_a_reason(bench, value, reason):
    running = bench('unconfigured')
    result = running.set(engine_image_size=value)
    assert not result.successful
    assert reason in result.reason


def test_empty_lists_of_a_file_are_none(ros_environment):
    file = Path(__file__).parents[2] / 'config' / 'drive.yaml'
    context = Context()
    rclpy.init(context=context)
    node = PerceptionNode(context=context, cli_args=['--ros-args', '--params-file', str(file)])
    try:
        assert read_parameters(node, PerceptionSettings) == PerceptionSettings()
    finally:
        node.destroy_node()
        context.try_shutdown()


def test_parameters_that_are_no_settings_are_passed_over():
    settings = PerceptionSettings()
    assert change_settings(settings, [Parameter('use_sim_time', value=True)]) == settings
