"""Starting points for UniFork. Standard library only."""

from megatron_aia.config import (
    AIAConfig,
    Config,
    DataConfig,
    ParallelConfig,
    RunConfig,
    TrainingConfig,
)
from megatron_aia.models.family import Need, Preset
from megatron_aia.models.unifork.settings import UniForkModelConfig


def unifork_0_5b() -> Config:
    """Return the authors' architecture on Qwen2.5-0.5B, with the second stage of their training.

    It needs no pipeline: data parallelism and the distributed optimizer suffice.
    """
    return Config(
        run=RunConfig(preset="unifork_0_5b"),
        model=UniForkModelConfig(
            model="unifork",
            num_layers=24,
            num_shared_layers=12,
            hidden_size=896,
            ffn_hidden_size=4864,
            num_attention_heads=14,
            num_query_groups=2,
            max_position_embeddings=32_768,
            norm_epsilon=1e-6,
            rotary_base=1_000_000,
            text_vocab_size=151_936,
            codebook_size=16_384,
            add_qkv_bias=True,
            untie_embeddings_and_output_weights=False,
        ),
        aia=AIAConfig(aia=False),
        parallel=ParallelConfig(
            tensor_model_parallel_size=1,
            pipeline_model_parallel_size=1,
            use_distributed_optimizer=True,
            overlap_grad_reduce=True,
        ),
        data=DataConfig(seq_length=8192, global_batch_size=384, cfg_drop_prob=0.1),
        training=TrainingConfig(
            bf16=True,
            lr=5e-5,
            min_lr=5e-5,
            lr_warmup_iters=0,
            weight_decay=0.0,
            adam_beta2=0.999,
            clip_grad=1.0,
            loss_normalization="task_mean",
        ),
    )


def unifork_demo() -> Config:
    """Return a small UniFork that learns three photographs by heart in minutes on two CPU cores."""
    return Config(
        run=RunConfig(preset="unifork_demo"),
        model=UniForkModelConfig(
            model="unifork",
            num_layers=6,
            num_shared_layers=3,
            hidden_size=192,
            ffn_hidden_size=384,
            num_attention_heads=4,
            num_query_groups=2,
            max_position_embeddings=1024,
            norm_epsilon=1e-6,
            rotary_base=1_000_000,
            text_vocab_size=512,
            codebook_size=512,
            code_depth=3,
            code_channels=64,
            image_size=64,
            patch_size=8,
            depth_num_layers=2,
            depth_attention_size=192,
            depth_num_attention_heads=4,
            depth_ffn_hidden_size=384,
            add_qkv_bias=True,
            untie_embeddings_and_output_weights=False,
        ),
        aia=AIAConfig(aia_preset="paper_janus_pro", aia_profile="paper_janus_pro"),
        data=DataConfig(seq_length=640, global_batch_size=12, cfg_drop_prob=0.1, num_workers=0),
        training=TrainingConfig(
            train_iters=300,
            lr=5e-3,
            min_lr=1e-4,
            lr_warmup_iters=20,
            weight_decay=0.0,
        ),
    )


_PUBLISHED: frozenset[Need] = frozenset({"data", "weights"})

PRESETS = {
    "unifork_0_5b": Preset(unifork_0_5b, needs=_PUBLISHED),
    "unifork_demo": Preset(unifork_demo),
}
