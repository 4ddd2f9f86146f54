"""The model ``megatron_aia`` of lmms-eval: it writes questions down, or reads answers."""

from lmms_eval.models.registry_v2 import ModelManifest


def manifest() -> ModelManifest:
    """Return what lmms-eval registers."""
    return ModelManifest(
        model_id="megatron_aia", simple_class_path="megatron_aia_lmms_eval.model.MegatronAIA"
    )
