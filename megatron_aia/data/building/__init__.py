"""Parts of the shard builder; ``megatron_aia.data.build`` puts them together."""
