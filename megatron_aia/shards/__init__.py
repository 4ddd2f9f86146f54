"""The shard format: reading, indexing and verifying folders of WebDataset tars."""
