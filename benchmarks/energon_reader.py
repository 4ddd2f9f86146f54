"""What ``mixture_3m.py`` reads with megatron-energon, where that is installed."""

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

MIXTURE = """\
__module__: megatron.energon
__class__: MetadatasetV2
splits:
  train:
    blend:
      - {weight: 2, path: drawing}
      - {weight: 1, path: asking}
"""


def prepare(folder: Path) -> None:
    """Let energon index the folders ``drawing`` and ``asking``, and mix them 2 to 1."""
    choices = ["--non-interactive", "--split-ratio", "1,0,0", "--sample-type", "CrudeWebdataset"]
    for name in ("drawing", "asking"):
        command = [sys.executable, "-m", "megatron.energon.cli.main", "prepare", *choices]
        subprocess.run([*command, str(folder / name)], check=True, stdout=subprocess.DEVNULL)
    (folder / "mixture.yaml").write_text(MIXTURE)


def samples(folder: Path) -> Iterator[Any]:
    """Yield decoded samples without end: slices of shards, a buffer of 1000, batches of 8."""
    from megatron.energon import (
        Cooker,
        DefaultTaskEncoder,
        WorkerConfig,
        basic_sample_keys,
        get_loader,
        get_train_dataset,
        stateless,
    )
    from megatron.energon.flavors import CaptioningSample

    @stateless
    def cook(sample: dict[str, Any]) -> CaptioningSample:
        codes = np.lib.format.read_array(io.BytesIO(sample["emu3.npy"]), allow_pickle=False)
        text = json.loads(sample["json"])
        return CaptioningSample(**basic_sample_keys(sample), image=codes, caption=text)

    class Encoder(DefaultTaskEncoder):  # type: ignore[misc]
        cookers = [Cooker(cook)]
        decoder = None

        def batch(self, samples: list[Any]) -> Any:
            return samples

    dataset = get_train_dataset(
        folder / "mixture.yaml",
        batch_size=8,
        shuffle_buffer_size=1000,
        max_samples_per_sequence=100,
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=0),
        task_encoder=Encoder(),
    )
    for batch in get_loader(dataset):
        yield from batch
