"""A patched model in the form of the systems that serve it: a CTranslate2 model, or a LoRA adapter of peft."""

from editable_hf.export.ctranslate2_model import compare_translations, convert_to_ctranslate2
from editable_hf.export.lora import LoraExport, save_lora

__all__ = ["LoraExport", "compare_translations", "convert_to_ctranslate2", "save_lora"]
