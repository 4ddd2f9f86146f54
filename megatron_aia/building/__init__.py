"""Parts of the shard builder; ``megatron_aia.building.build`` puts them together."""
