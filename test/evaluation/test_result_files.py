import csv
import os
from pathlib import Path
import re

from dense_perception.evaluation.report_run import processor
from dense_perception.evaluation.result_files import (
    machine,
    newest_table,
    table_path,
    write_table,
)
import numpy as np
import pytest
import torch

CPU = torch.device('cpu')


def test_a_table_is_named_by_processor_and_version(tmp_path):
    path = table_path('engines', CPU, tmp_path)
    assert path.parent == tmp_path
    assert re.fullmatch(r'engines_[A-Za-z0-9._-]+_torch[A-Za-z0-9._-]+\.csv', path.name)
    assert re.findall(r'[A-Za-z0-9]+', processor())[0] in path.name
    assert torch.__version__.partition('+')[0] in path.name


@pytest.mark.gpu
def test_a_table_of_a_gpu_is_named_by_it(tmp_path):
    words = re.findall(r'[A-Za-z0-9]+', torch.cuda.get_device_name())
    assert '_'.join(words) in table_path('gpu', torch.device('cuda'), tmp_path).name


def test_the_machine_is_described_with_its_versions():
    text = machine(CPU)
    assert text.startswith(processor())
    for part in (f'torch {torch.__version__}', f'numpy {np.__version__}', ' threads', 'load '):
        assert part in text


def test_the_table_that_was_written_last_is_found(tmp_path):
    for age, name in enumerate(('node_B_torch2.csv', 'node_A_torch3.csv', 'node_h100.csv')):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (100 - age, 100 - age))
    (tmp_path / 'nodes_A_torch3.csv').touch()
    assert newest_table('node', tmp_path) == tmp_path / 'node_B_torch2.csv'
    assert newest_table('engines', tmp_path) is None


def test_a_table_is_written_with_its_title_as_the_last_column(tmp_path: Path):
    path = tmp_path / 'table.csv'
    write_table(path, ('what', 'ms'), [('a, b', 1.5), ('c', 2)], 'Some CPU')
    with path.open(newline='', encoding='utf-8') as file:
        lines = list(csv.DictReader(file))
    assert lines == [
        {'what': 'a, b', 'ms': '1.5', 'Some CPU': ''},
        {'what': 'c', 'ms': '2', 'Some CPU': ''},
    ]
