"""Models that the paper's experiments need, as Hugging Face models."""

from editable_hf.models.iwslt_transformer import TRANSFORMER_SIZES, iwslt_transformer_config

__all__ = ["TRANSFORMER_SIZES", "iwslt_transformer_config"]
