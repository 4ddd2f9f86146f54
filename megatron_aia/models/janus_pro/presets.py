"""Starting points for Janus-Pro. Standard library only."""

from dataclasses import replace

from megatron_aia.config import (
    AIAConfig,
    Config,
    DataConfig,
    ParallelConfig,
    RunConfig,
    TrainingConfig,
)
from megatron_aia.models.family import Need, Preset
from megatron_aia.models.janus_pro.settings import JanusModelConfig


def janus_pro_7b() -> Config:
    """Return the published architecture with the schedule of the authors' AIA fine-tuning."""
    return Config(
        run=RunConfig(preset="janus_pro_7b"),
        model=JanusModelConfig(
            model="janus_pro",
            num_layers=30,
            hidden_size=4096,
            ffn_hidden_size=11_008,
            num_attention_heads=32,
            num_query_groups=32,
            max_position_embeddings=16_384,
            norm_epsilon=1e-6,
            rotary_base=10_000,
            text_vocab_size=102_400,
            codebook_size=16_384,
            code_channels=8,
            vision_num_layers=24,
            vision_hidden_size=1024,
            vision_ffn_hidden_size=4096,
            vision_num_attention_heads=16,
            image_size=384,
            patch_size=16,
        ),
        aia=AIAConfig(aia_preset="paper_janus_pro", aia_profile="paper_janus_pro"),
        parallel=ParallelConfig(
            tensor_model_parallel_size=4,
            pipeline_model_parallel_size=1,
            sequence_parallel=True,
            use_distributed_optimizer=True,
            overlap_grad_reduce=True,
            overlap_param_gather=True,
        ),
        data=DataConfig(seq_length=8192, global_batch_size=256, cfg_drop_prob=0.1),
        training=TrainingConfig(
            freeze=("vision_model.*",),
            bf16=True,
            lr=2e-5,
            min_lr=1e-6,
            weight_decay=0.05,
            adam_eps=1e-6,
            clip_grad=1.0,
        ),
    )


def janus_pro_1b() -> Config:
    """Return the smaller published architecture, otherwise as ``janus_pro_7b``."""
    large = janus_pro_7b()
    return replace(
        large,
        run=RunConfig(preset="janus_pro_1b"),
        model=replace(
            large.model,
            num_layers=24,
            hidden_size=2048,
            ffn_hidden_size=5632,
            num_attention_heads=16,
            num_query_groups=16,
        ),
        parallel=replace(large.parallel, tensor_model_parallel_size=1, sequence_parallel=False),
    )


def janus_demo() -> Config:
    """Return a small Janus-Pro that learns three photographs by heart in minutes on two CPU cores.

    Its image tower starts at random and stays so, as the published one is not trained either:
    random features are enough to tell a few photographs apart.
    """
    return Config(
        run=RunConfig(preset="janus_demo"),
        model=JanusModelConfig(
            model="janus_pro",
            num_layers=6,
            hidden_size=192,
            ffn_hidden_size=384,
            num_attention_heads=4,
            num_query_groups=4,
            max_position_embeddings=1024,
            norm_epsilon=1e-6,
            rotary_base=10_000,
            text_vocab_size=512,
            codebook_size=512,
            code_channels=8,
            vision_num_layers=2,
            vision_hidden_size=64,
            vision_ffn_hidden_size=128,
            vision_num_attention_heads=4,
            image_size=64,
            patch_size=8,
        ),
        aia=AIAConfig(aia_preset="paper_janus_pro", aia_profile="paper_janus_pro"),
        data=DataConfig(seq_length=640, global_batch_size=12, cfg_drop_prob=0.1, num_workers=0),
        training=TrainingConfig(
            freeze=("vision_model.*",),
            train_iters=300,
            lr=5e-3,
            min_lr=1e-4,
            lr_warmup_iters=20,
            weight_decay=0.0,
        ),
    )


_PUBLISHED: frozenset[Need] = frozenset({"data", "weights"})

PRESETS = {
    "janus_pro_7b": Preset(janus_pro_7b, needs=_PUBLISHED),
    "janus_pro_1b": Preset(janus_pro_1b, needs=_PUBLISHED),
    "janus_demo": Preset(janus_demo),
}
