"""How long an edit takes, beside the whole-model way and a forward pass.

    python benchmarks/benchmark_edit.py
    python benchmarks/benchmark_edit.py --rounds 9 --json benchmark_edit.json

One request with 32 alternatives of 25 tokens on a fairseq-size Marian (10,000 pieces), last decoder layer, RMSProp,
k=10 steps, all taken. `whole_model` is the same edit in plain torch: the whole model runs at every step and every
alternative is differentiated. Edited parameters and `l_e` of both are compared before anything is timed. `kernels` are
what each way dispatches, the same number on every machine: a GPU waits for each launch, so its time follows them. They
are counted for both ways of scoring alternatives, that of GPUs (`one pass`) and that of CPUs. The last line is one
JSON object with the ratios.
"""

from __future__ import annotations

import argparse

import torch
from benchmark_models import (
    add_common_arguments,
    launches_dominate_on,
    make_request,
    random_model,
    whole_model_constraint,
    whole_model_edit,
)
from transformers import MarianMTModel

from editable_hf.core.editing import EditResult, edit
from editable_hf.core.editors import rmsprop
from editable_hf.core.selection import select_parameters
from editable_hf.data.requests import request_constraint
from editable_hf.experiments.timing import (
    count_kernels,
    finish,
    format_seconds,
    ratio,
    time_interleaved,
)

LENGTH = 25
LAYERS = "last_decoder_layer"
TOO_WEAK = 1e-6  # learning rate with which no edit succeeds, so that all steps are taken
RATIOS = {
    "edit_speedup_k10": ("whole_model_k10", "edit_k10"),
    "edit_speedup_k10_no_shared_prefix": ("whole_model_k10_no_shared_prefix", "edit_k10_no_shared_prefix"),
    "edit_speedup_k3": ("whole_model_k3", "edit_k3"),
    "edit_k3_in_forwards": ("edit_k3", "forward"),
    "edit_k10_in_forwards": ("edit_k10", "forward"),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser)
    return parser.parse_args()


def ours(model: MarianMTModel, request: dict, max_steps: int, learning_rate: float = TOO_WEAK) -> EditResult:
    return edit(model, request_constraint(request, model), rmsprop(learning_rate), LAYERS, max_steps)


def whole_model(model: MarianMTModel, request: dict, max_steps: int, learning_rate: float = TOO_WEAK):
    # What is not edited is detached, so that autograd records the edited layer alone here too.
    own = dict(model.named_parameters())
    names = list(select_parameters(model, LAYERS))
    frozen = {name: param.detach() for name, param in own.items() if name not in names}
    return whole_model_edit(
        model,
        lambda params: whole_model_constraint(model, {**frozen, **params}, request),
        names,
        max_steps,
        learning_rate,
    )


@torch.no_grad()
def forward(model: MarianMTModel, request: dict) -> None:
    """One forward of the target and its alternatives, the least that can tell whether a model needs the edit."""
    whole_model_constraint(model, {}, request)


def check(model: MarianMTModel, request: dict) -> dict[str, float]:
    """Differences between both edits after 3 steps; raises `SystemExit` if they are more than rounding."""
    result = ours(model, request, 3, learning_rate=1e-5)
    params, loss = whole_model(model, request, result.num_steps, learning_rate=1e-5)
    own = dict(model.named_parameters())
    # Near a gradient of 0, RMSProp's first step turns rounding into a step of another sign: few and small.
    moved = torch.cat([(params[name] - own[name]).detach().flatten() for name in params])
    wrong = torch.cat([(params[name] - result.params[name]).detach().flatten() for name in params])
    differences = {
        "loss": abs(result.loss.item() - loss.item()) / abs(loss.item()),
        "params": (wrong.norm() / moved.norm()).item(),
    }
    if not differences["loss"] < 1e-4 or not differences["params"] < 1e-2:
        raise SystemExit(f"The edit and its whole-model reference differ: {differences}. Nothing was timed.")
    return differences


def kernels(model: MarianMTModel, request: dict) -> dict[str, int]:
    """Kernels dispatched by a forward and by edits of 0, 3 and 10 steps."""
    counts = {"forward": count_kernels(lambda: forward(model, request))}
    for way, devices in (("two passes", set()), ("one pass", {model.device.type})):
        with launches_dominate_on(devices):
            for k in (0, 3, 10):
                counts[f"edit k={k}, {way}"] = count_kernels(lambda: ours(model, request, k))  # noqa: B023
    for k in (0, 3, 10):
        counts[f"whole model k={k}"] = count_kernels(lambda: whole_model(model, request, k))  # noqa: B023
    return counts


def main(args: argparse.Namespace) -> None:
    device = torch.device(args.device)
    model = random_model(args.size, device).eval()
    shared, unshared = make_request(model, 32, LENGTH), make_request(model, 32, LENGTH, shared=False)
    checks = {"shared": check(model, shared), "unshared": check(model, unshared)}
    print(f"relative differences to the whole-model edit: {checks}")
    for request in (shared, unshared):
        assert ours(model, request, 10).num_steps == 10
    counts = kernels(model, shared)
    print("\n".join(f"{name:<28} {count:6,} kernels" for name, count in counts.items()))
    functions = {
        "forward": lambda: forward(model, shared),
        "edit_k3": lambda: ours(model, shared, 3),
        "edit_k10": lambda: ours(model, shared, 10),
        "edit_k10_no_shared_prefix": lambda: ours(model, unshared, 10),
        "whole_model_k3": lambda: whole_model(model, shared, 3),
        "whole_model_k10": lambda: whole_model(model, shared, 10),
        "whole_model_k10_no_shared_prefix": lambda: whole_model(model, unshared, 10),
    }
    seconds = time_interleaved(functions, args.rounds, device)
    print(format_seconds(seconds))
    ranges = {name: ratio(seconds, *pair) for name, pair in RATIOS.items()}
    for name, value in ranges.items():
        print(f"{name:<36} {value['median']:6.2f}  ({value['low']:.2f} - {value['high']:.2f})")
    ratios = {name: round(value["median"], 3) for name, value in ranges.items()}
    results = {"config": vars(args), "seed": 0, "checks": checks, "kernels": counts}
    finish({**results, "seconds": seconds, "ranges": ranges}, ratios, args.json)


if __name__ == "__main__":
    main(parse_args())
