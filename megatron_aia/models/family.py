"""What the rest of the code knows of a model family. Imports no torch: the command line reads it.

A family is a folder ``models/<name>/`` whose ``family.py`` holds a ``ModelFamily``, and one line of
the table in ``models/__init__.py``. The parts that need torch stand in modules of fixed names and
are imported when they are asked for::

    family.py    FAMILY: this page
    model.py     SPEC: how to build it, run it, write its samples, and what it learns
    convert.py   FORMAT: its Hugging Face checkpoints
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from megatron_aia.config import Config, ModelConfig

if TYPE_CHECKING:
    from megatron_aia.models.hugging_face import HFFormat
    from megatron_aia.models.spec import ModelSpec

Need = Literal["data", "weights"]
UnderstandingImages = Literal["codes", "pictures"]


@dataclass(frozen=True)
class Preset:
    """A named starting point of a family."""

    build: Callable[[], Config]
    """Return its configuration."""
    needs: frozenset[Need] = frozenset()
    """What the user must name: ``data`` (else the demo's is built), ``weights`` to start from."""


@dataclass(frozen=True)
class DemoForm:
    """What the demo's data folder of one family differs in."""

    folder: Path
    """Where a run without data has it, from the working directory."""
    grid_side: int
    """Codes along a side of an image."""
    template_texts: tuple[str, ...]
    """The family's own words around those of a sample; the text tokeniser learns them too."""
    special_tokens: tuple[str, ...] = ()
    """Tokens of the text tokeniser that no text is encoded to."""
    code_depth: int = 0
    """Residual codes of an image token; 0 where it is one code."""
    num_pictures: int | None = None
    """So many photographs, one crop each, to be learned by heart; None takes all, four crops each.
    """


def _no_check(config: Config) -> None:
    """Accept every configuration."""


@dataclass(frozen=True)
class ModelFamily:
    """A model family: everything that a new model has to provide."""

    name: str
    package: str
    """Of its modules, as ``megatron_aia.models.NAME``."""
    presets: Mapping[str, Preset]
    """By name; no other family has a preset of the same name."""
    demo_preset: str
    """The preset of a small model that trains on a CPU."""
    model_config: type[ModelConfig] = ModelConfig
    """The class of ``Config.model``; its own fields are flags of this family only."""
    check: Callable[[Config], None] = _no_check
    """Raise ValueError, naming flag, value and remedy, if a configuration does not suit it."""
    aia_presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Values of ``--aia-preset`` that this family adds: name to fields of ``AIAConfig``."""
    branches: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Of a model that forks: patterns of the parameters of ``understanding`` and ``generation``."""
    understanding_images: UnderstandingImages = "codes"
    """How the shards store images to look at: as codes, or as pictures."""
    codes_suffix: str = "npy"
    """File type of image codes in the shards."""
    image_tokenizers: Mapping[str, str] = field(default_factory=dict)
    """``model_type`` of a config.json to what loads that image tokeniser, ``module:function``."""
    record_formats: tuple[str, ...] = ()
    """Inputs of the shard builder that only this family has: ``module`` with its ``FORMAT``."""
    demo: DemoForm | None = None
    """How the demo's data folder looks; None if there is no demo."""

    def spec(self) -> ModelSpec:
        """Import how it is built, run and trained."""
        spec: ModelSpec = import_module(f"{self.package}.model").SPEC
        return spec

    def hugging_face(self) -> HFFormat:
        """Import its Hugging Face checkpoints."""
        found: HFFormat = import_module(f"{self.package}.convert").FORMAT
        return found
