"""Starting points for Emu3. Standard library only."""

from megatron_aia.config import (
    Config,
    DataConfig,
    ModelConfig,
    ParallelConfig,
    RunConfig,
    TrainingConfig,
)
from megatron_aia.models.family import Need, Preset


def emu3_8b() -> Config:
    """Return the published architecture with the schedule of Emu3's fine-tuning script.

    The published configuration has dropout 0.1. Flash attention and the AIA intensity need
    attention probabilities without dropout, so both dropouts are 0 here; ``--hidden-dropout 0.1``
    brings the other one back.
    """
    return Config(
        run=RunConfig(preset="emu3_8b"),
        model=ModelConfig(
            model="emu3",
            num_layers=32,
            hidden_size=4096,
            ffn_hidden_size=14_336,
            num_attention_heads=32,
            num_query_groups=8,
            max_position_embeddings=9216,
            norm_epsilon=1e-5,
            rotary_base=1_000_000,
            text_vocab_size=151_643,
            codebook_size=32_768,
        ),
        parallel=ParallelConfig(
            # By count some 31 of 80 GiB on 64 GPUs: nothing need be computed twice, and one stage
            # has no bubble and no uneven head.
            tensor_model_parallel_size=4,
            pipeline_model_parallel_size=1,
            sequence_parallel=True,
            use_distributed_optimizer=True,
            overlap_grad_reduce=True,
            overlap_param_gather=True,
        ),
        data=DataConfig(
            seq_length=9216,
            global_batch_size=256,
            cfg_drop_prob=0.05,
            # Samples of some 8,300 tokens would leave 11 % of fixed sequences to padding.
            variable_seq_lengths=True,
        ),
        training=TrainingConfig(bf16=True),
    )


def emu3_demo() -> Config:
    """Return a small Emu3 that learns real photographs on two CPU cores in minutes."""
    return Config(
        run=RunConfig(preset="emu3_demo"),
        model=ModelConfig(
            model="emu3",
            num_layers=6,
            hidden_size=96,
            ffn_hidden_size=256,
            num_attention_heads=4,
            num_query_groups=2,
            max_position_embeddings=1024,
            text_vocab_size=512,
            codebook_size=512,
        ),
        data=DataConfig(
            seq_length=1024,
            micro_batch_size=2,
            global_batch_size=12,
            cfg_drop_prob=0.05,
            num_workers=0,
        ),
        training=TrainingConfig(
            train_iters=100,
            lr=1e-3,
            min_lr=1e-4,
            lr_warmup_iters=10,
            weight_decay=0.01,
        ),
    )


_PUBLISHED: frozenset[Need] = frozenset({"data", "weights"})

PRESETS = {
    "emu3_8b": Preset(emu3_8b, needs=_PUBLISHED),
    "emu3_demo": Preset(emu3_demo),
}
