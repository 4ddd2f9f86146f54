"""UniFork between the authors' checkpoints and megatron-core."""

from megatron_aia.models.hugging_face import HFFormat
from megatron_aia.models.unifork.hf_config import TOWER, document, model_config
from megatron_aia.models.unifork.hf_reference import (
    own_logits,
    reference_inputs,
    reference_logits,
    reference_model,
    verify_cases,
)
from megatron_aia.models.unifork.weight_map import export_names, find_names, weight_map

FORMAT = HFFormat(
    model_types={"llava_qwen2": "original"},
    find_names=find_names,
    export_names=export_names,
    model_config=model_config,
    weight_map=weight_map,
    document=document,
    verify_cases=verify_cases,
    reference_logits=reference_logits,
    reference_model=reference_model,
    reference_inputs=reference_inputs,
    own_logits=own_logits,
    documents=(TOWER,),
    files=(
        *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
        *("merges.txt", "generation_config.json", f"{TOWER}.json"),
    ),
)
