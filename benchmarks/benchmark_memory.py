"""Peak memory of one edit of a language model of half a billion parameters in bfloat16, random weights.

    python benchmarks/benchmark_memory.py

An edit holds copies of what it moves: the parameters as they are summed (float32), their gradient and the editor's
state. What it needs beside the model should be no more than three times the edited tensors in that precision, and the
activations of a few rows.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from editable_hf import edit, rmsprop, select_parameters
from editable_hf.core.continuations import ContinuationConstraint
from editable_hf.experiments.report import environment

# Qwen2.5-0.5B.
SIZES = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151_936,
    "tie_word_embeddings": True,
}
LENGTH, TARGET = 12, 4


def resident_bytes(key: str) -> int:
    """`VmRSS`, what the process holds now, or `VmHWM`, the most since [`reset_peak`]."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


def reset_peak() -> None:
    """Linux only. Without it the peak of making the model would hide the edit's."""
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", default="layers.23.mlp.down_proj.weight", help="what the edit moves")
    parser.add_argument("--num_alternatives", type=int, default=4)
    parser.add_argument("--max_steps", type=int, default=2)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(Qwen2Config(**SIZES), dtype=torch.bfloat16).eval()
    model_bytes = sum(parameter.nbytes for parameter in model.parameters())
    selected = select_parameters(model, args.layers).values()
    edited_bytes = 4 * sum(parameter.numel() for parameter in selected)  # as they are summed
    tokens = torch.randint(3, 1_000, (1 + args.num_alternatives, TARGET)).tolist()
    prompt = torch.randint(3, 1_000, (LENGTH,)).tolist()
    constraint = ContinuationConstraint.from_ids(prompt, tokens[0], tokens[1:], pad_token_id=0)
    with torch.no_grad():  # what libraries keep from their first use on is no part of an edit
        model(input_ids=constraint.input_ids, attention_mask=constraint.attention_mask)
    reset_peak()
    before, start = resident_bytes("VmRSS"), time.perf_counter()
    result = edit(model, constraint, rmsprop(1e-4), args.layers, args.max_steps)
    extra = resident_bytes("VmHWM") - before
    print(environment())
    print(f"model {model_bytes / 1e6:,.0f} MB; edited tensors {edited_bytes / 1e6:,.1f} MB in float32")
    seconds = time.perf_counter() - start
    print(f"{result.num_steps} steps in {seconds:.1f} s, l_e {result.history[0]:.2f} -> {result.loss:.2f}")
    print(f"peak beside the model: {extra / 1e6:,.1f} MB, {extra / edited_bytes:.2f} times the edited tensors")


if __name__ == "__main__":
    main()
