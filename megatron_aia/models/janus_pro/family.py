"""Janus-Pro as the rest of the code knows it. Standard library only."""

from pathlib import Path

from megatron_aia.models.family import DemoForm, ModelFamily
from megatron_aia.models.janus_pro.presets import PRESETS
from megatron_aia.models.janus_pro.settings import JanusModelConfig, check
from megatron_aia.models.janus_pro.special_tokens import NAMES

_IMAGE_TOKENIZER = "megatron_aia.models.janus_pro.image_tokenizer:load"

AIA_PRESETS = {
    "paper_janus_pro": {
        "aia_lambda_generation": 40.0,
        "aia_lambda_understanding": 40.0,
        "aia_profile": "paper_janus_pro",
        "aia_query_key_sets": "paper",
        "aia_count_inactive": False,
    },
    "released_code": {
        "aia_lambda_generation": 5.0,
        "aia_lambda_understanding": 10.0,
        "aia_profile": "released_code",
        "aia_query_key_sets": "released_code",
        "aia_count_inactive": True,
    },
}

FAMILY = ModelFamily(
    name="janus_pro",
    package="megatron_aia.models.janus_pro",
    presets=PRESETS,
    demo_preset="janus_demo",
    model_config=JanusModelConfig,
    check=check,
    aia_presets=AIA_PRESETS,
    understanding_images="pictures",
    codes_suffix="janus.npy",
    # The authors' folder, a whole model as transformers writes it, and the tokeniser alone.
    image_tokenizers=dict.fromkeys(("multi_modality", "janus", "janus_vqgan"), _IMAGE_TOKENIZER),
    demo=DemoForm(
        folder=Path("demo_output/janus/data"),
        grid_side=8,
        template_texts=(": \n\n",),
        special_tokens=tuple(NAMES.values()),
        # Few enough to be learned by heart: the demo ends by drawing one from memory.
        num_pictures=3,
    ),
)
