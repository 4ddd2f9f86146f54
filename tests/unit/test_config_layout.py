import copy
from dataclasses import replace

import pytest

from megatron_aia.config import Config, ModelConfig, ParallelConfig, data_parallel_size, fit_layout
from megatron_aia.config.layout import length_multiple

SMALL = ModelConfig(
    num_layers=8, hidden_size=96, ffn_hidden_size=256, num_attention_heads=4, num_query_groups=2
)


def fitted(world_size, model=SMALL, **parallel):
    config = fit_layout(Config(model=model, parallel=ParallelConfig(**parallel)), world_size)
    tensor, pipeline, _ = config.parallel.layout
    return tensor, pipeline, data_parallel_size(config, world_size)


@pytest.mark.parametrize(
    ("world_size", "expected"),
    [
        (1, (1, 1, 1)),
        (2, (2, 1, 1)),
        (3, (1, 1, 3)),
        (4, (2, 2, 1)),
        (6, (2, 1, 3)),
        (8, (2, 2, 2)),
        (16, (2, 2, 4)),
    ],
)
def test_the_table(world_size, expected):
    assert fitted(world_size) == expected


def test_set_sizes_stay():
    assert fitted(4, tensor_model_parallel_size=1) == (1, 2, 2)
    assert fitted(4, tensor_model_parallel_size=4) == (4, 1, 1)
    assert fitted(2, pipeline_model_parallel_size=2) == (1, 2, 1)
    assert fitted(4, pipeline_model_parallel_size=2) == (2, 2, 1)
    assert fitted(4, tensor_model_parallel_size=1, pipeline_model_parallel_size=1) == (1, 1, 4)


def test_the_model_has_its_say():
    assert fitted(4, model=replace(SMALL, num_query_groups=1)) == (1, 2, 2)
    assert fitted(4, model=replace(SMALL, num_layers=7)) == (2, 1, 2)
    assert fitted(4, num_layers_per_virtual_pipeline_stage=2) == (2, 2, 1)
    assert fitted(4, num_layers_per_virtual_pipeline_stage=3) == (2, 1, 2)


def test_sizes_that_are_wrong_are_left_for_validate():
    config = Config(model=SMALL, parallel=ParallelConfig(tensor_model_parallel_size=0))
    assert fit_layout(config, 4).parallel.tensor_model_parallel_size == 0


def test_the_input_is_left_alone():
    config = Config(model=SMALL)
    before = copy.deepcopy(config)
    fit_layout(config, 4)
    assert config == before


@pytest.mark.parametrize(
    ("parallel", "multiple"),
    [
        ({}, 64),
        ({"tensor_model_parallel_size": 3}, 64),
        ({"tensor_model_parallel_size": 3, "sequence_parallel": True}, 192),
        ({"context_parallel_size": 3}, 192),
        ({"context_parallel_size": 64}, 128),
        (
            {
                "context_parallel_size": 5,
                "tensor_model_parallel_size": 32,
                "sequence_parallel": True,
            },
            320,
        ),
    ],
)
def test_variable_rows_divide_over_processes(parallel, multiple):
    config = Config(model=SMALL, parallel=ParallelConfig(**parallel))
    assert length_multiple(config) == multiple
