"""What `editable-hf export` does: a patched model for CTranslate2, or patches as an adapter of peft."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from editable_hf.commands import Loaded
from editable_hf.data.sentences import read_sentences
from editable_hf.export.ctranslate2_model import compare_translations, convert_to_ctranslate2
from editable_hf.export.lora import save_lora
from editable_hf.patches.patch import Patch
from editable_hf.patches.stack import patched_parameters

MOST_SHOWN = 5


def export_ctranslate2(
    loaded: Loaded, output: str, *, data: str | None = None, quantization: str | None = None
) -> dict[str, Any]:
    """Converts a model, and compares its translations with those of the result if there are sentences."""
    model, tokenizer = loaded.model, loaded.processor
    sources = None if data is None else loaded.addressed(read_sentences(data).sources)
    convert_to_ctranslate2(model, tokenizer, output, quantization)
    report: dict[str, Any] = {"output": output, "quantization": quantization, "num_compared": 0, "differences": []}
    if sources is not None:
        differences = compare_translations(model, tokenizer, output, sources)
        greedy = compare_translations(model, tokenizer, output, sources, num_beams=1)
        report |= {"num_compared": len(sources), "num_beams": model.generation_config.num_beams or 1}
        report |= {"num_greedy_differences": len(greedy), "differences": [each._asdict() for each in differences]}
    return report


def export_lora(loaded: Loaded, patches: Sequence[Patch], output: str, base_model: str, rank: int | None) -> dict:
    """Writes what patches, together, change as one adapter."""
    params = patched_parameters(loaded.model, patches)
    named = {patch.base_model for patch in patches}
    name = named.pop() if len(named) == 1 and None not in named else base_model
    made = save_lora(loaded.model, params, output, rank=rank, base_model=name)
    return {
        "output": output,
        "base_model": name,
        "ranks": made.ranks,
        "whole": made.whole,
        "relative_error": made.relative_error,
        "bytes": made.num_bytes,
    }


def describe_ctranslate2(report: dict[str, Any]) -> str:
    """What [`export_ctranslate2`] found, for the terminal."""
    lines = [f"CTranslate2 model: {report['output']} ({report['quantization'] or 'not quantized'})"]
    total, differences = report["num_compared"], report["differences"]
    if not total:
        return f"{lines[0]}\nIts translations were not compared with the model's: give sentences by --data."
    for beams, count in {1: report["num_greedy_differences"], report["num_beams"]: len(differences)}.items():
        lines.append(f"beams: {beams}, the same translations as the model: {total - count:,} of {total:,}")
    for each in differences[:MOST_SHOWN]:
        lines += ["", *(f"  {key:11} {text}" for key, text in each.items())]
    if len(differences) > MOST_SHOWN:
        lines.append(f"\nand {len(differences) - MOST_SHOWN:,} more that differ")
    return "\n".join(lines)


def describe_lora(report: dict[str, Any]) -> str:
    """What [`export_lora`] found, for the terminal."""
    ranks = report["ranks"].values()
    size, error = report["bytes"] / 1e6, report["relative_error"]
    return (
        f"Adapter: {report['output']} ({size:.2f} MB) for {report['base_model']}\n"
        f"  {len(ranks)} matrices as factors of rank {min(ranks, default=0)} to {max(ranks, default=0)}, relative "
        f"error {error:.1e}; {len(report['whole'])} other modules whole"
    )
