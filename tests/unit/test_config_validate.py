import pytest

from megatron_aia.config import fit_layout, validate
from megatron_aia.config.files import settings_by_name, with_values
from megatron_aia.config.tree import Config
from megatron_aia.config.validate import check_can_be_made
from megatron_aia.models import preset_table


def demo(**values) -> Config:
    # Numbers that the messages below name, whatever the preset has.
    return with_values(preset_table()["emu3_demo"].build(), {"num_layers": 8, "lr": 2e-3, **values})


def check(world_size=1, has_gpu=False, **values) -> list[str]:
    return validate(fit_layout(demo(**values), world_size), world_size, has_gpu)


@pytest.mark.parametrize("name", sorted(preset_table()))
def test_every_preset_is_valid_on_eight_processes(name, tmp_path):
    config = preset_table()[name].build()
    if name != "emu3_demo":
        config = with_values(config, {"data_path": (str(tmp_path),), "load": str(tmp_path)})
    assert config.run.preset == name
    assert validate(fit_layout(config, 8), 8) == []


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
def test_the_demo_is_valid_on_any_number_of_processes(world_size):
    assert check(world_size) == []


@pytest.mark.parametrize(
    ("world_size", "values", "message"),
    [
        (
            3,
            {"tensor_model_parallel_size": 3},
            "--tensor-model-parallel-size 3 does not divide --num-attention-heads 4; use 1 or 2",
        ),
        (
            4,
            {"tensor_model_parallel_size": 4},
            "--tensor-model-parallel-size 4 does not divide --num-query-groups 2; use 1 or 2",
        ),
        (
            2,
            {"tensor_model_parallel_size": 2, "ffn_hidden_size": 255},
            "--tensor-model-parallel-size 2 does not divide --ffn-hidden-size 255; use 1",
        ),
        (
            4,
            {"num_query_groups": 3},
            "--num-query-groups 3 does not divide --num-attention-heads 4; use 1, 2 or 4",
        ),
        (1, {"hidden_size": 98}, "--num-attention-heads 4 does not divide --hidden-size 98"),
        (1, {"kv_channels": 25}, "the head size 25 is odd.*use --kv-channels 26"),
        (1, {"attention_dropout": 0.1}, "--attention-dropout 0.1 cannot be used with AIA"),
        (1, {"transformer_impl": "transformer_engine"}, "needs a GPU and there is none; use local"),
        (1, {"attention_backend": "cudnn"}, "needs a GPU and there is none; use auto"),
        (
            3,
            {"pipeline_model_parallel_size": 3},
            "--pipeline-model-parallel-size 3 does not divide --num-layers 8; use 1, 2, 4 or 8",
        ),
        (
            2,
            {
                "pipeline_model_parallel_size": 1,
                "num_layers_per_virtual_pipeline_stage": 2,
            },
            "--num-layers-per-virtual-pipeline-stage 2 interleaves .* there is one stage",
        ),
        (
            2,
            {"pipeline_model_parallel_size": 2, "num_layers_per_virtual_pipeline_stage": 3},
            "3 does not split the 4 layers of a stage into two or more chunks; use 1 or 2",
        ),
        (
            2,
            {"pipeline_model_parallel_size": 2, "num_layers_per_virtual_pipeline_stage": 4},
            "4 does not split the 4 layers of a stage into two or more chunks; use 1 or 2",
        ),
        (
            8,
            {"pipeline_model_parallel_size": 8, "num_layers_per_virtual_pipeline_stage": 1},
            "1 does not split the 1 layers of a stage into two or more chunks; leave it out",
        ),
        (
            2,
            {"context_parallel_size": 2, "seq_length": 1022},
            "--context-parallel-size 2 cuts a sequence into 4 chunks, and --seq-length 1022 is not "
            "a multiple of 4; use 1024",
        ),
        (
            4,
            {
                "context_parallel_size": 2,
                "tensor_model_parallel_size": 2,
                "sequence_parallel": True,
                "seq_length": 1020,
            },
            "--context-parallel-size 2 cuts .* and --sequence-parallel each over 2 processes, and "
            "--seq-length 1020 is not a multiple of 8; use 1024",
        ),
        (
            2,
            {"context_parallel_size": 2, "attention_dropout": 0.1, "aia": False},
            "--attention-dropout 0.1 cannot be used with --context-parallel-size 2.*use 0",
        ),
        (
            4,
            {"context_parallel_size": 3, "seq_length": 1020},
            "1 x --context-parallel-size 3 = 3 does not divide .* 4; start a multiple of 3",
        ),
        (
            3,
            {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2},
            "2 x --pipeline-model-parallel-size 2 = 4 does not divide .* 3; start a multiple of 4",
        ),
        (
            2,
            {
                "tensor_model_parallel_size": 2,
                "sequence_parallel": True,
                "seq_length": 1023,
            },
            "--seq-length 1023 is not a multiple of 2; use 1024",
        ),
        (
            1,
            {"recompute_granularity": "full", "recompute_num_layers": 3},
            "--recompute-num-layers 3 does not divide the 8 layers .*; use 1, 2, 4 or 8",
        ),
        (
            2,
            {
                "recompute_granularity": "full",
                "recompute_method": "block",
                "recompute_num_layers": 5,
                "pipeline_model_parallel_size": 2,
            },
            "--recompute-num-layers 5 is more than the 4 layers .*; use 4 or less",
        ),
        (
            2,
            {
                "recompute_granularity": "full",
                "recompute_num_layers": 4,
                "pipeline_model_parallel_size": 2,
                "num_layers_per_virtual_pipeline_stage": 2,
            },
            "--recompute-num-layers 4 does not divide the 2 layers .*; use 1 or 2",
        ),
        (1, {"seq_length": 2048}, "--seq-length 2048 is longer than --max-position-embeddings"),
        (1, {"task_ratio": "1-1"}, "--task-ratio 1-1 is not a ratio.*1:1"),
        (1, {"task_ratio": "0:0"}, "--task-ratio 0:0 is not a ratio"),
        (1, {"task_ratio": "1:1:1:1:1"}, "--task-ratio 1:1:1:1:1 is not a ratio"),
        (1, {"data_path": ("no/where",)}, "--data-path no/where is not a folder; .*build_shards"),
        (1, {"tokenizer_model": "no/where"}, "--tokenizer-model no/where does not exist"),
        (1, {"min_lr": 1.0}, "--min-lr 1.0 is above --lr 0.002; use 0.002 or less"),
        (
            1,
            {"train_iters": 10},
            "--lr-warmup-iters 10 leaves no step .* --train-iters is 10; use 9 or less",
        ),
        (1, {"lr_decay_iters": 5}, "--lr-decay-iters is 5; use 4 or less"),
        (
            1,
            {"overlap_param_gather": True, "overlap_grad_reduce": True},
            "--overlap-param-gather works only with --use-distributed-optimizer",
        ),
        (
            1,
            {"overlap_param_gather": True, "use_distributed_optimizer": True},
            "--overlap-param-gather works only with --overlap-grad-reduce",
        ),
        (1, {"save_interval": 5}, "--save-interval 5 has no folder to save to; add --save"),
        (1, {"finetune": True}, "--finetune has no weights to start from; add --load"),
        (1, {"load": "no/where"}, "--load no/where is not a folder"),
        (
            2,
            {
                "pipeline_model_parallel_size": 2,
                "num_layers_per_virtual_pipeline_stage": 2,
                "variable_seq_lengths": True,
            },
            "--variable-seq-lengths cannot be used with --num-layers-per-virtual.*leave out one",
        ),
        (1, {"reset_data": True}, "--reset-data has no run to go on with; add --load"),
        (
            1,
            {"reset_data": True, "finetune": True, "load": "."},
            "--reset-data goes on .* and --finetune begins .*; use one",
        ),
        (
            1,
            {"data_path": ("1", "no/where")},
            "--data-path no/where is not a folder; .*build_shards",
        ),
        (1, {"data_path": ("no.yaml",)}, "--data-path no.yaml is not a file; name a mixture"),
    ],
)
def test_a_mistake_is_one_line_with_a_remedy(world_size, values, message):
    with pytest.raises(ValueError, match=message) as error:
        check(world_size, **values)
    assert "\n" not in str(error.value)


def numbers() -> list[str]:
    return [
        name
        for name, setting in settings_by_name(Config()).items()
        if setting.kind.base in (int, float)
    ]


def test_every_number_of_the_tree_has_a_range():
    settings = settings_by_name(Config())
    assert [name for name in numbers() if settings[name].kind.range is None] == []


@pytest.mark.parametrize("name", numbers())
@pytest.mark.parametrize("wrong", [-1, float("nan"), float("inf")])
def test_a_number_out_of_range_is_refused(name, wrong):
    flag = settings_by_name(Config())[name].flag
    with pytest.raises(ValueError, match=f"{flag} {wrong} is out of range; use"):
        check(**{name: wrong})


@pytest.mark.parametrize(
    ("name", "wrong", "remedy"),
    [
        ("num_layers", 0, "use 1 or more"),
        ("norm_epsilon", 0.0, "use a value above 0"),
        ("adam_beta1", 1.0, "use 0 or more and less than 1"),
    ],
)
def test_the_ends_of_ranges(name, wrong, remedy):
    with pytest.raises(ValueError, match=f"{wrong} is out of range; {remedy}$"):
        check(**{name: wrong})


def test_what_may_be_combined_is_not_refused(tmp_path):
    folder = str(tmp_path)
    assert check(attention_dropout=0.1, aia=False) == []
    assert check(2, context_parallel_size=2, seq_length=1020) == []
    assert check(4, context_parallel_size=2, aia=False, sequence_parallel=True) == []
    assert check(hidden_size=98, kv_channels=24) == []
    assert check(has_gpu=True, transformer_impl="transformer_engine") == []
    assert check(4, num_layers_per_virtual_pipeline_stage=2, recompute_granularity="full") == []
    assert check(save=folder, save_interval=5, load=folder, finetune=True) == []
    assert check(task_ratio="0:1") == []
    assert check(data_path=("3", folder), shuffle_window_shards=4) == []
    assert check(load=folder, reset_data=True) == []
    assert check(task_ratio="10:0:3", lr_warmup_iters=0, train_iters=1) == []
    assert check(aia_lambda_generation=0.0, cfg_drop_prob=0.0, lr=0.0, min_lr=0.0) == []


def test_settings_without_effect_are_noted():
    assert "no multiple of --log-interval 10" in check(aia_figure_interval=5)[0]
    notes = check(
        sequence_parallel=True, save_total_limit=2, async_save=True, aia_figure_interval=20
    )
    assert [note.split()[0] for note in notes] == [
        "--sequence-parallel",
        "--save-total-limit",
        "--async-save",
        "--aia-figure-interval",
    ]
    assert check(2, sequence_parallel=True) == []
    assert check(attention_backend="flash", aia_attention="eager") == [
        "--attention-backend has no effect with --aia-attention eager"
    ]
    (note,) = check(num_workers=2, image_tokenizer=__file__)
    assert note.startswith("--num-workers 2 reads nothing ahead with --image-tokenizer")
    assert check(aia_sampled_queries=16) == [
        "--aia-sampled-queries has no effect without --aia-attention sampled"
    ]
    assert check(aia_sampled_queries=16, aia_attention="sampled") == []


@pytest.mark.parametrize("flag", ["--save", "--tensorboard-dir"])
def test_a_folder_that_cannot_be_made(flag, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in ("file", "file/below"):
        with pytest.raises(ValueError, match=f"{flag} .* cannot be made: .*file is no folder"):
            check_can_be_made(flag, str(tmp_path / folder))
    check_can_be_made(flag, str(tmp_path / "a" / "b"))
    check_can_be_made(flag, None)
