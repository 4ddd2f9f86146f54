"""Settings of the shard builder, and what of them decides its bytes."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Optional

from megatron_aia.models import families
from megatron_aia.models.family import UnderstandingImages

_WITHOUT_EFFECT_ON_BYTES = ("records", "output", "overwrite", "allow_dropped", "num_workers")


@dataclass
class BuildOptions:
    """Settings of ``build_shards``."""

    records: Path
    """Records: a JSON list or JSON lines (*.jsonl), Parquet or tar files, a folder that datasets
    saved, or lists of codes; docs/data.md has the fields."""
    output: Path
    """Folder to make."""
    format: str = "auto"
    """Format of --records; auto finds it, and an unknown one is answered by the list of all."""
    image_tokenizer: Optional[Path] = None
    """Codebook file (*.npz), or a folder with a model's own image tokeniser. Unset, every image
    is stored as a picture, for a run that makes codes itself."""
    image_root: Path = Path()
    """Where the image paths of the records start; none may lead out of it."""
    image_area: Optional[int] = None
    """Pixels of a picture before it is encoded; the tokeniser's own when unset."""
    understanding_images: UnderstandingImages = "codes"
    """Store images to look at as codes, or as picture files for a model that looks at pictures."""
    samples_per_shard: int = 5000
    """Records of one tar file."""
    keep_images: bool = False
    """Store the picture files too."""
    overwrite: bool = False
    """Replace a data folder at the output, and an unfinished build of other settings."""
    allow_dropped: int = 0
    """Most records that may be left out because they do not fit."""
    device: str = "cpu"
    """Torch device of the image tokeniser; with cuda the workers take all devices in turn."""
    num_workers: int = 0
    """Processes that read and encode; 0 does so in the main process. Any number, same bytes."""

    def stores_picture(self, is_drawn: bool) -> bool:
        """Return whether an image goes into the shards as its picture file alone."""
        if self.image_tokenizer is None:
            return True
        return self.understanding_images == "pictures" and not is_drawn

    @property
    def codes_suffix(self) -> str:
        """File type of image codes in the shards: of the first family that stores images so."""
        reads = self.understanding_images
        return next(f.codes_suffix for f in families() if f.understanding_images == reads)

    def check(self) -> None:
        """Check values that no input is needed for.

        Raises:
            ValueError: one is out of range.
        """
        for name, least in (("samples_per_shard", 1), ("num_workers", 0), ("allow_dropped", 0)):
            value = getattr(self, name)
            if value < least:
                raise ValueError(f"--{name.replace('_', '-')} {value} must be at least {least}")

    def meaning(self) -> dict[str, str]:
        """Return every setting that may change a byte of the shards, as text by flag.

        An unfinished build goes on only under equal settings.
        """
        settings = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Path):
                value = value.absolute()
            if field.name == "device":
                # Kinds of devices round differently; the number of a device does not matter.
                value = value.partition(":")[0]
            if field.name not in _WITHOUT_EFFECT_ON_BYTES:
                settings[f"--{field.name.replace('_', '-')}"] = str(value)
        return settings
