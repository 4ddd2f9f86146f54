"""Every setting of a run, as one tree of dataclasses.

Field names are the flags of the command line (``num_layers`` is ``--num-layers``) and the keys of
a YAML file. They are Megatron-LM's names wherever Megatron-LM has the option. The string below a
field is its help text, its type says its range. No torch: reading a configuration must be quick.
"""

from dataclasses import dataclass, field
from typing import Literal, Optional

from megatron_aia.config.families import DEFAULT_FAMILY
from megatron_aia.config.value_types import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Share,
)

StopSignalName = Literal["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP"]


@dataclass
class RunConfig:
    """Where the settings start from. Order: preset, then --config, then flags."""

    preset: str = ""
    """Named starting point: a model, its layout and its schedule."""
    config: Optional[str] = None
    """YAML file laid over the preset; its keys are flag names with underscores, grouped or flat."""
    seed: NonNegativeInt = 1234
    """Seeds weight initialisation, sample order, prompt drop and dropout."""


@dataclass
class ModelConfig:
    """Architecture."""

    model: str = DEFAULT_FAMILY
    """Model family, a name registered in megatron_aia.models."""
    num_layers: PositiveInt = 32
    """Decoder layers of the whole model."""
    hidden_size: PositiveInt = 4096
    """Width of the residual stream."""
    ffn_hidden_size: PositiveInt = 14336
    """Width of the gated MLP (each of gate and up)."""
    num_attention_heads: PositiveInt = 32
    """Query heads of the whole model."""
    num_query_groups: PositiveInt = 8
    """Key/value heads of the whole model (grouped-query attention)."""
    kv_channels: Optional[PositiveInt] = None
    """Head size; hidden_size / num_attention_heads when unset."""
    max_position_embeddings: PositiveInt = 9216
    """Longest sequence the rotary embedding is meant for."""
    norm_epsilon: PositiveFloat = 1e-5
    """Epsilon of RMSNorm."""
    rotary_base: PositiveInt = 1_000_000
    """Theta of the rotary embedding."""
    attention_dropout: Share = 0.0
    """Dropout on attention probabilities; must be 0 with AIA on."""
    hidden_dropout: Share = 0.0
    """Dropout on the embedding and both residual branches."""
    init_method_std: NonNegativeFloat = 0.02
    """Standard deviation of freshly initialised weights."""
    text_vocab_size: PositiveInt = 151_643
    """Ids of the text tokeniser; special tokens and image codes follow them."""
    codebook_size: PositiveInt = 32_768
    """Entries of the image codebook, the last ids of the vocabulary."""
    add_qkv_bias: bool = False
    """Add biases to queries, keys and values."""
    untie_embeddings_and_output_weights: bool = True
    """Give the output layer weights of its own, not those of the embedding."""
    make_vocab_size_divisible_by: PositiveInt = 128
    """The vocabulary is padded to a multiple of this times the tensor-parallel size."""
    attention_backend: Literal["auto", "flash", "flash3", "flash4", "cudnn"] = "auto"
    """Kernel that this project's attention calls on a GPU: PyTorch's flash, a flash-attn package,
    or cuDNN's. Megatron-LM's fused means cudnn here, unfused --aia-attention eager, and local that
    with --transformer-impl local."""
    transformer_impl: Literal["auto", "local", "transformer_engine"] = "auto"
    """Layer implementation; auto takes Transformer Engine on a GPU where it is installed."""

    @property
    def head_size(self) -> int:
        """Channels of one attention head."""
        return self.kv_channels or self.hidden_size // self.num_attention_heads


@dataclass
class AIAConfig:
    """Attention Interaction Alignment (Eq. 1 to 3 of the paper)."""

    aia: bool = True
    """Add the AIA loss. Without, intensities are not measured and megatron-core's attention runs
    (but not with context parallelism)."""
    aia_preset: str = "paper"
    """Starting values: those of the paper, for one model or another, or of the released code."""
    aia_lambda_generation: NonNegativeFloat = 40.0
    """Weight of the generation term; 0 measures the intensity without training it."""
    aia_lambda_understanding: NonNegativeFloat = 40.0
    """Weight of the understanding term; 0 measures the intensity without training it."""
    aia_profile: str = "paper"
    """Targets and thresholds by layer: a shipped profile's name or a YAML file."""
    aia_targets: Literal["stage", "layer"] = "stage"
    """Stage-level targets, or the profile's measured curve layer by layer (ablation)."""
    aia_loss: Literal["huber", "mse"] = "huber"
    """Penalty on the distance of intensity and target."""
    aia_query_key_sets: Literal["paper", "released_code"] = "paper"
    """Queries and keys of the intensity; released_code repeats that code's off-by-ones."""
    aia_count_inactive: bool = False
    """Keep samples without an AIA term in the denominator, as the released code does."""
    aia_attention: Literal["auto", "eager", "flash", "fused", "sampled"] = "auto"
    """How attention and intensity are computed: eager holds every map and is the reference, flash
    and fused are exact without, sampled estimates."""
    aia_sampled_queries: PositiveInt = 64
    """With --aia-attention sampled: queries a head that each intensity is estimated from."""


@dataclass
class ParallelConfig:
    """Layout over processes. Data parallelism takes the processes that are left."""

    tensor_model_parallel_size: Optional[PositiveInt] = None
    """Tensor-parallel processes; unset, the preset fits it to the process count."""
    pipeline_model_parallel_size: Optional[PositiveInt] = None
    """Pipeline stages; unset, the preset fits it to the process count."""
    num_layers_per_virtual_pipeline_stage: Optional[PositiveInt] = None
    """Layers of one model chunk; interleaves the pipeline schedule."""
    context_parallel_size: PositiveInt = 1
    """GPUs that split each sequence (zig-zag: each holds an early and a late chunk)."""
    sequence_parallel: bool = False
    """Split norms and residuals over the tensor-parallel processes."""
    use_distributed_optimizer: bool = False
    """Shard optimizer state over data- and context-parallel processes."""
    overlap_grad_reduce: bool = False
    """Reduce gradients while the backward pass still runs."""
    overlap_param_gather: bool = False
    """Gather updated weights while the next forward pass already runs."""
    recompute_granularity: Optional[Literal["full", "selective"]] = None
    """Recompute whole layers, or only core attention, in the backward pass."""
    recompute_method: Literal["uniform", "block"] = "uniform"
    """With full recompute: chunks of layers, or the first layers of a stage."""
    recompute_num_layers: PositiveInt = 1
    """With full recompute: layers of one chunk, or layers to recompute."""
    distributed_timeout_minutes: PositiveInt = 30
    """A collective that takes longer ends the run; so does any part of a step, a save or a
    validation."""

    @property
    def layout(self) -> tuple[int, int, int]:
        """Tensor, pipeline and context sizes, 1 where unset."""
        return (
            self.tensor_model_parallel_size or 1,
            self.pipeline_model_parallel_size or 1,
            self.context_parallel_size,
        )


@dataclass
class DataConfig:
    """Samples and sequences."""

    data_path: tuple[str, ...] = ()
    """Folders of WebDataset shards written by tools/build_shards.py, or their URLs (s3://, gs://,
    https://). With weights, as 2 A 1 B, their shares are exact in every 3 samples, whatever their
    tasks. Or a mixture file (*.yaml)."""
    valid_data_path: tuple[str, ...] = ()
    """Folders or URLs to validate on while training, in the forms of --data-path; prompts are never
    dropped there."""
    data_cache_path: Optional[str] = None
    """Folder for the index and tables of the data folders; unset, each keeps its own inside."""
    tokenizer_model: Optional[str] = None
    """Tokeniser file or folder; unset, the first data folder's own."""
    image_tokenizer: Optional[str] = None
    """Makes the codes of images that the shards hold as pictures: a model's folder, or a codebook
    (*.npz)."""
    seq_length: PositiveInt = 9216
    """Tokens of one sequence."""
    variable_seq_lengths: bool = False
    """Rows only as long as the longest of their micro-batch needs, at most --seq-length."""
    micro_batch_size: PositiveInt = 1
    """Rows of one forward pass."""
    global_batch_size: PositiveInt = 64
    """Samples (not sequences) of one optimizer step."""
    packing: bool = True
    """Put several samples into one sequence; they never see each other."""
    task_ratio: str = "1:1"
    """generation:understanding[:text[:mixed]], exact in every period of that many samples. For the
    folders of --data-path without weights; a mixture file has its own."""
    shuffle_window_shards: NonNegativeInt = 0
    """Shuffle shards, then samples inside windows of so many shards, for network file systems; 0
    shuffles over all samples of a source."""
    cfg_drop_prob: Share = 0.05
    """Share of generation samples that lose their prompt, for classifier-free guidance."""
    overlong_samples: Literal["error", "truncate"] = "error"
    """What to do with a sample longer than a sequence: stop, or cut its answer (never its
    image)."""
    num_workers: NonNegativeInt = 2
    """Processes, of each rank, that read the next steps while one is computed; 0: none."""
    max_corrupt_samples: NonNegativeInt = 100
    """Corrupt samples are replaced by others; more of them than this stop the run."""


@dataclass
class TrainingConfig:
    """Optimizer, schedule and loss."""

    train_iters: PositiveInt = 1000
    """Optimizer steps of the whole run, resumed steps included."""
    eval_interval: PositiveInt = 1000
    """With --valid-data-path: steps between validations; the last step is followed by one too."""
    eval_iters: PositiveInt = 100
    """Global batches of one validation: always the same samples, the first ones."""
    freeze: tuple[str, ...] = ()
    """Parameters that stay as they are: patterns of their names, as vision_model.*"""
    loss_normalization: Literal["task", "task_mean", "token", "sample"] = "task"
    """Weighting of the next-token loss: tasks by their share of samples, tasks alike, by label, or
    by sample."""
    bf16: bool = False
    """bfloat16 weights and activations; gradients and optimizer state stay fp32."""
    fp8_format: Optional[Literal["e4m3", "hybrid"]] = None
    """Multiply matrices of the decoder's layers in FP8 (Transformer Engine): e4m3, or hybrid with
    e5m2 for gradients. Unset, in bfloat16."""
    fp8_recipe: Literal["delayed", "tensorwise", "mxfp8", "blockwise"] = "delayed"
    """How FP8 scales are found: from past steps, from the tensor itself, or by blocks."""
    fp8_amax_history_len: PositiveInt = 1024
    """With the recipe delayed: steps whose largest values are remembered."""
    fp8_amax_compute_algo: Literal["max", "most_recent"] = "max"
    """With the recipe delayed: which of these values gives the scale."""
    fp8_dot_product_attention: bool = False
    """FP8 in the attention too; AIA then measures by sampled, from queries and keys in bfloat16."""
    lr: NonNegativeFloat = 1e-5
    """Peak learning rate."""
    min_lr: NonNegativeFloat = 1e-6
    """Learning rate at the end of the decay."""
    lr_decay_style: Literal["constant", "linear", "cosine"] = "cosine"
    """Shape of the decay."""
    lr_warmup_iters: NonNegativeInt = 30
    """Steps of linear warm-up."""
    lr_decay_iters: Optional[PositiveInt] = None
    """Steps until min_lr; train_iters when unset."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled weight decay (not applied to norms and biases)."""
    adam_beta1: Share = 0.9
    """First-moment decay of Adam."""
    adam_beta2: Share = 0.95
    """Second-moment decay of Adam."""
    adam_eps: PositiveFloat = 1e-8
    """Epsilon of Adam."""
    clip_grad: NonNegativeFloat = 5.0
    """Clip the global gradient norm; 0 does not clip."""
    max_skipped_in_a_row: PositiveInt = 3
    """The run ends after so many steps in a row whose gradient norm is not finite."""
    check_weight_hash_across_dp_replicas_interval: Optional[PositiveInt] = None
    """Steps between comparisons of the weights of all replicas; unset, they are not compared."""


@dataclass
class CheckpointConfig:
    """Saving and loading."""

    save: Optional[str] = None
    """Folder for checkpoints; unset, none is written."""
    save_interval: Optional[PositiveInt] = None
    """Steps between checkpoints; unset, only the last step is saved."""
    save_total_limit: NonNegativeInt = 0
    """Newest checkpoints to keep in --save; 0 keeps all."""
    async_save: bool = False
    """Write a checkpoint beside the steps that follow it, by a process of each rank."""
    load: Optional[str] = None
    """Folder to continue from: its newest checkpoint. The same folder as --save may be empty."""
    pretrained_checkpoint: Optional[str] = None
    """Where a run whose --load holds no checkpoint yet takes its first weights from."""
    teacher_checkpoint: Optional[str] = None
    """Checkpoint of the frozen teacher that a loss term asks for."""
    finetune: bool = False
    """Take only the weights of --load; start at step 0 with a fresh optimizer and data order."""
    reset_data: bool = False
    """Go on from --load with other data, from the beginning of its order; weights, optimizer and
    step continue. No effect where the data is unchanged, so a restarted job may keep the flag."""
    verify_checkpoint: bool = True
    """Compare the files of a checkpoint with their checksums before it is loaded."""
    load_fallback: bool = False
    """Where the newest checkpoint of --load is damaged, take the whole one before it."""
    exit_signal_handler: bool = False
    """On a signal, finish the step, save and stop, as a cluster's time limit asks for."""
    exit_signal: tuple[StopSignalName, ...] = ("SIGTERM", "SIGINT", "SIGUSR1")
    """With --exit-signal-handler: signals to listen to."""
    exit_duration_in_mins: Optional[PositiveInt] = None
    """Save and stop before so many minutes are over; a save may take half as long again as the
    longest before it."""


@dataclass
class LoggingConfig:
    """What is reported, and how often."""

    log_interval: PositiveInt = 10
    """Steps between console lines and TensorBoard points; losses are means over them."""
    tensorboard_dir: Optional[str] = None
    """Folder for TensorBoard events; unset, none are written."""
    aia_figure_interval: NonNegativeInt = 0
    """Steps between TensorBoard figures of the intensity curves; 0 draws none."""
    sample_prompts: Optional[str] = None
    """JSON lines with prompt, or question and image: what the model draws and answers while it
    trains, in TensorBoard and the run's folder."""
    sample_interval: PositiveInt = 1000
    """With --sample-prompts: steps between samples; the last step is followed by them too."""
    log_throughput: bool = False
    """A second console line: TFLOP/s a GPU, MFU, memory, where the time goes, the slowest rank. The
    JSON records and TensorBoard always have them."""
    peak_flops: Optional[PositiveFloat] = None
    """FLOP/s of one device at its peak, for MFU; unset, by the name of the GPU."""
    profile: bool = False
    """Trace some steps with torch.profiler, into the folder of --tensorboard-dir or --save."""
    profile_step_start: PositiveInt = 10
    """First step to trace."""
    profile_step_end: PositiveInt = 12
    """The trace ends before this step."""
    profile_ranks: tuple[NonNegativeInt, ...] = (0,)
    """Ranks that trace, and that record memory."""
    record_memory_history: bool = False
    """Record who allocates GPU memory; written at the end, and when it runs out."""

    @property
    def profiles(self) -> bool:
        """Whether files beside the log are written."""
        return self.profile or self.record_memory_history


@dataclass
class Config:
    """A whole run."""

    run: RunConfig = field(default_factory=RunConfig)
    """Where the settings start from. Order: preset, then --config, then flags."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Architecture."""
    aia: AIAConfig = field(default_factory=AIAConfig)
    """Attention Interaction Alignment: pulls the cross-modal attention of a layer to a target."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Layout over processes. Data parallelism takes the processes that are left."""
    data: DataConfig = field(default_factory=DataConfig)
    """Samples and sequences."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Optimizer, schedule and loss."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Saving and loading."""
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    """What is reported, and how often."""
