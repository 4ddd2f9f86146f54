"""Emu3 as the rest of the code knows it. Standard library only."""

from pathlib import Path

from megatron_aia.models.emu3.presets import PRESETS
from megatron_aia.models.family import DemoForm, ModelFamily

_IMAGE_TOKENIZER = "megatron_aia.models.emu3.image_tokenizer:load"

FAMILY = ModelFamily(
    name="emu3",
    package="megatron_aia.models.emu3",
    presets=PRESETS,
    demo_preset="emu3_demo",
    codes_suffix="emu3.npy",
    # The tokeniser alone or a whole model as transformers writes them, and the authors' own folder.
    image_tokenizers=dict.fromkeys(("emu3_vqgan", "emu3", "Emu3VisionVQ"), _IMAGE_TOKENIZER),
    record_formats=("megatron_aia.models.emu3.code_list",),
    demo=DemoForm(
        folder=Path("demo_output/data"),
        grid_side=16,
        template_texts=("You are a helpful assistant. USER: . ASSISTANT:", "0123456789*"),
    ),
)
