"""UniFork as the rest of the code knows it. Standard library only."""

from pathlib import Path

from megatron_aia.models.family import DemoForm, ModelFamily
from megatron_aia.models.unifork.presets import PRESETS
from megatron_aia.models.unifork.settings import UniForkModelConfig, check
from megatron_aia.models.unifork.special_tokens import NAMES, SYSTEM_PROMPT

FAMILY = ModelFamily(
    name="unifork",
    package="megatron_aia.models.unifork",
    presets=PRESETS,
    demo_preset="unifork_demo",
    model_config=UniForkModelConfig,
    check=check,
    branches={
        "understanding": ("decoder.layers.*.understanding.*", "final_norms.understanding.*"),
        "generation": (
            "decoder.layers.*.generation.*",
            "final_norms.generation.*",
            "depth_head.*",
        ),
    },
    codes_suffix="vila_u.npy",
    demo=DemoForm(
        folder=Path("demo_output/unifork/data"),
        grid_side=8,
        template_texts=(SYSTEM_PROMPT, "USER: ", " ASSISTANT: "),
        special_tokens=tuple(NAMES.values()),
        code_depth=3,
        # Few enough to be learned by heart.
        num_pictures=3,
    ),
)
