"""What an editable training step costs, in plain training steps.

    python benchmarks/benchmark_training.py
    python benchmarks/benchmark_training.py --rounds 7 --json benchmark_training.json

Times `EditableSeq2SeqTrainer.training_step` and the optimizer's step on a fairseq-size Marian (10,000 pieces, last
decoder layer, RMSProp; one request with 32 alternatives of 25 tokens) against the same step without edits, in one
run, round by round. Edits are made too weak to succeed, so that all k steps are taken. Steps with eight edits are
counted with the edits together, as on a GPU, and timed there, also one after another. `whole_model` is the same
objective in plain torch: the whole model runs at every step of the edit, and every alternative is differentiated.
Loss and gradients of both are compared before anything is timed. The last line is one JSON object with the ratios.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmark_models import (
    add_common_arguments,
    cifar_resnet18,
    launches_dominate_on,
    make_batch,
    make_request,
    random_model,
    whole_model_constraint,
    whole_model_edit,
    whole_model_locality,
)
from datasets import Dataset
from torch import Tensor
from torch.nn import functional as F
from transformers import set_seed

from editable_hf import EditableSeq2SeqTrainer, EditableSeq2SeqTrainingArguments
from editable_hf.core.constraints import ClassConstraint, launches_dominate
from editable_hf.core.editing import edit
from editable_hf.core.editors import rmsprop
from editable_hf.core.functional import eval_mode
from editable_hf.core.losses import edit_loss, locality_loss, objective
from editable_hf.core.selection import select_parameters
from editable_hf.experiments.timing import (
    count_kernels,
    finish,
    format_seconds,
    ratio,
    time_interleaved,
)
from editable_hf.training.locality import LocalityBatch

LENGTH = 25
NUM_EDITS = 8  # of a step that makes several
TOO_WEAK = 1e-6  # learning rate with which no edit succeeds
STANDSTILL = 1e-15  # of the optimizer, which does all its work, so that training does not make the edits succeed
CHAIN_3 = "resnet.encoder.stages.2"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser)
    parser.add_argument("--peak", nargs=2, metavar=("TOKENS", "K"), type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


class Translation:
    """One trainer and the steps to time; `shared`: whether alternatives share prefixes; `None`: no edits."""

    def __init__(
        self, size: str, device: torch.device, shared: bool | None, dropout=0.3, narrow: bool = False, **options
    ):
        self.model = random_model(size, device, dropout, narrow)
        self.batches = {tokens: make_batch(tokens, LENGTH, device) for tokens in (1_000, 4_000)}
        args = EditableSeq2SeqTrainingArguments(
            tempfile.mkdtemp(),
            learning_rate=STANDSTILL,
            hyperparameter_learning_rate=STANDSTILL,
            use_cpu=device.type == "cpu",
            report_to=[],
            disable_tqdm=True,
            **options,
        )
        requests = None
        if shared is not None:
            requests = make_requests(
                make_request(self.model, 8 if narrow else 32, LENGTH, shared), args.edits_per_step
            )
        self.trainer = EditableSeq2SeqTrainer(
            self.model, args, edit_dataset=requests, data_collator=lambda rows: rows, train_dataset=[0]
        )
        self.trainer.current_gradient_accumulation_steps = 1
        self.optimizer = self.trainer.create_optimizer()

    def step(self, num_tokens: int, max_steps: int = 0, optimize: bool = True) -> Tensor:
        """One training step as the trainer makes it; returns the loss."""
        self.trainer.args.edit_max_steps = max_steps
        loss = self.trainer.training_step(self.model, dict(self.batches[num_tokens]))
        terms = self.trainer._terms.means(self.trainer.accelerator) if max_steps else {"edit_num_steps": 0}
        assert terms["edit_num_steps"] == max_steps
        return self._finish(loss, optimize)

    def whole_model_step(self, num_tokens: int, max_steps: int, optimize: bool = True) -> Tensor:
        """The same objective in plain torch."""
        inputs = dict(self.batches[num_tokens], use_cache=False)
        labels = inputs.pop("labels")
        args, names = self.trainer.args, self.trainer.edit_parameters
        self.model.train()
        base = F.cross_entropy(self.model(**inputs).logits.flatten(0, 1), labels.flatten())
        with eval_mode(self.model):
            params, loss = whole_model_edit(
                self.model,
                lambda params: whole_model_constraint(self.model, params, self.trainer.edit_dataset[0]),
                names,
                max_steps,
                args.edit_learning_rate,
                beta=self.model.editor.beta.sigmoid(),
                create_graph=True,
            )
            locality = whole_model_locality(self.model, params, inputs)
        total = base + args.edit_coef * loss.relu() + args.locality_coef * locality
        total.backward()
        return self._finish(total.detach(), optimize)

    def _finish(self, loss: Tensor, optimize: bool) -> Tensor:
        if optimize:
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss


def make_requests(request: dict[str, Any], count: int) -> Dataset:
    """As many that are nearly the same, of different lengths and with different numbers of alternatives."""
    ids, alternatives = request["input_ids"], request["alternatives"]
    cuts = [number % 4 for number in range(count)]
    rows = [{"input_ids": ids[cut:], "alternatives": alternatives[: len(alternatives) - cut]} for cut in cuts]
    return Dataset.from_list([{**request, **row, "id": number} for number, row in enumerate(rows)])


def check_translation(size: str, device: torch.device) -> dict[str, float]:
    """Relative differences of loss and gradients between the trainer's step and the whole-model step."""
    run = Translation(size, device, True, dropout=0.0, edit_learning_rate=1e-5, locality_coef=10.0)
    losses, gradients = [], []
    for step in (run.step, run.whole_model_step):
        losses.append(step(1_000, max_steps=3, optimize=False).item())
        gradients.append({name: p.grad.clone() for name, p in run.model.named_parameters() if p.grad is not None})
        run.model.zero_grad()
    return compare(losses, gradients)


def compare(losses: list[float], gradients: list[dict[str, Tensor]]) -> dict[str, float]:
    """Relative differences; raises `SystemExit` if they are more than rounding."""
    ours, theirs = (torch.cat([grad.flatten() for _, grad in sorted(grads.items())]) for grads in gradients)
    result = {
        "loss": abs(losses[0] - losses[1]) / abs(losses[1]),
        "gradient": ((ours - theirs).norm() / theirs.norm()).item(),
    }
    if not result["loss"] < 1e-5 or not result["gradient"] < 1e-3:
        raise SystemExit(f"The step and its whole-model reference differ: {result}. Nothing was timed.")
    return result


class Vision:
    """Plain and editable steps of ResNet-18 at 32x32, batch 32, chain 3."""

    def __init__(self, device: torch.device):
        self.model = cifar_resnet18(device).train()
        generator = torch.Generator().manual_seed(2)
        self.images = torch.randn(33, 3, 32, 32, generator=generator).to(device)
        self.labels = torch.randint(10, (33,), generator=generator).to(device)
        self.params = select_parameters(self.model, CHAIN_3)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=STANDSTILL)
        with torch.no_grad(), eval_mode(self.model):
            self.wanted = int(self.model(self.images[32:]).logits.argmin())

    def step(self, max_steps: int = 0, optimize: bool = True, alpha: float = TOO_WEAK, reuse: bool = True) -> Tensor:
        """A plain step (`max_steps=0`) or an editable one."""
        model, inputs = self.model, {"pixel_values": self.images[:32]}
        batch = LocalityBatch(model, self.params, inputs, locality_loss, reuse_base_forward=reuse and max_steps > 0)
        with batch.recorded():
            total = F.cross_entropy(model(**inputs).logits, self.labels[:32])
        if max_steps > 0:
            constraint = ClassConstraint({"pixel_values": self.images[32:]}, self.wanted)
            result = edit(model, constraint, rmsprop(alpha), CHAIN_3, max_steps, create_graph=True)
            assert result.num_steps == max_steps
            total = objective(total, edit_loss(result.loss), batch.compare([result.params]), 0.01, 10.0)
        total.backward()
        return self._finish(total.detach(), optimize)

    def whole_model_step(self, max_steps: int, optimize: bool = True, alpha: float = TOO_WEAK) -> Tensor:
        """The same in plain torch."""
        model, wanted = self.model, self.wanted

        def constraint(params: dict[str, Tensor]) -> Tensor:
            logits = torch.func.functional_call(model, params, (self.images[32:],)).logits[0]
            return torch.cat([logits[:wanted], logits[wanted + 1 :]]).max() - logits[wanted]

        base = F.cross_entropy(model(self.images[:32]).logits, self.labels[:32])
        with eval_mode(model):
            params, loss = whole_model_edit(model, constraint, list(self.params), max_steps, alpha, create_graph=True)
            locality = whole_model_locality(model, params, {"pixel_values": self.images[:32]})
        total = base + 0.01 * loss.relu() + 10.0 * locality
        total.backward()
        return self._finish(total.detach(), optimize)

    _finish = Translation._finish


def check_vision(device: torch.device) -> dict[str, float]:
    """As [`check_translation`]; the locality term makes its own eval-mode forward here, as the reference does."""
    losses, gradients = [], []
    for whole in (False, True):
        run = Vision(device)
        step = run.whole_model_step if whole else lambda *args, run=run, **kw: run.step(*args, reuse=False, **kw)
        losses.append(step(3, optimize=False, alpha=1e-5).item())
        gradients.append({name: p.grad for name, p in run.model.named_parameters()})
    return compare(losses, gradients)


def peak_memory(size: str, num_tokens: int, max_steps: int, device: torch.device) -> float:
    """MiB that training takes beyond the imports: model, optimizer state and two steps."""
    before = resident_peak()
    run = Translation(size, device, True if max_steps else None, edit_learning_rate=TOO_WEAK)
    for _ in range(2):
        run.step(num_tokens, max_steps)
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else resident_peak() - before


def resident_peak() -> float:
    """Most memory this process had at once, in MiB. Not `getrusage`, which starts with the parent's figure."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 2**10


def measure_peak(size: str, num_tokens: int, max_steps: int, device: torch.device) -> float:
    """[`peak_memory`] in a process of its own."""
    command = [sys.executable, __file__, "--size", size, "--device", str(device)]
    command += ["--peak", str(num_tokens), str(max_steps)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


RATIOS = {
    "step_ratio_4000_k10": ("editable_4000_k10", "plain_4000"),
    "step_ratio_4000_k3": ("editable_4000_k3", "plain_4000"),
    "step_ratio_1000_k10": ("editable_1000_k10", "plain_1000"),
    "step_ratio_1000_k3": ("editable_1000_k3", "plain_1000"),
    "step_ratio_1000_k10_no_shared_prefix": ("editable_1000_k10_no_shared_prefix", "plain_1000"),
    "whole_model_step_ratio_1000_k10": ("whole_model_1000_k10", "plain_1000_beside_whole_model"),
    "eight_edits_apart_to_together_1000_k3": ("eight_edits_apart_1000_k3", "eight_edits_together_1000_k3"),
    "resnet_step_ratio_k10": ("editable_resnet_k10", "plain_resnet"),
    "whole_model_resnet_step_ratio_k10": ("whole_model_resnet_k10", "plain_resnet"),
}


def measure(size: str, device: torch.device, rounds: int) -> dict[str, list[float]]:
    """Seconds of every step that `RATIOS` names."""
    plain = Translation(size, device, None)
    shared = Translation(size, device, True, edit_learning_rate=TOO_WEAK)
    unshared = Translation(size, device, False, edit_learning_rate=TOO_WEAK)
    vision, plain_vision = Vision(device), Vision(device)
    functions: dict[str, Callable] = {
        "plain_4000": lambda: plain.step(4_000),
        "editable_4000_k3": lambda: shared.step(4_000, 3),
        "editable_4000_k10": lambda: shared.step(4_000, 10),
        "plain_1000": lambda: plain.step(1_000),
        "editable_1000_k3": lambda: shared.step(1_000, 3),
        "editable_1000_k10": lambda: shared.step(1_000, 10),
        "editable_1000_k10_no_shared_prefix": lambda: unshared.step(1_000, 10),
        "plain_resnet": lambda: plain_vision.step(),
        "editable_resnet_k10": lambda: vision.step(10),
        "whole_model_resnet_k10": lambda: vision.whole_model_step(10),
    }
    several = Translation(size, device, True, edits_per_step=NUM_EDITS, edit_learning_rate=TOO_WEAK)

    def step_of_several(devices: set[str]) -> None:
        with launches_dominate_on(devices):
            several.step(1_000, 3)

    slow = {
        "plain_1000_beside_whole_model": lambda: plain.step(1_000),
        "whole_model_1000_k10": lambda: shared.whole_model_step(1_000, 10),
    }
    if launches_dominate(device):  # elsewhere edits never go together, and those that would take minutes
        slow["eight_edits_apart_1000_k3"] = lambda: step_of_several(set())
        slow["eight_edits_together_1000_k3"] = lambda: step_of_several({device.type})
    return time_interleaved(functions, rounds, device) | time_interleaved(slow, 2, device, warmups=0)


def kernels(size: str, device: torch.device) -> dict[str, int]:
    """Kernels of a plain and of an editable step, the optimizer's left out; as this device scores alternatives."""
    plain = Translation(size, device, None)
    editable = Translation(size, device, True, edit_learning_rate=TOO_WEAK)
    counts = {"plain step": count_kernels(lambda: plain.step(1_000, optimize=False))}
    for k in (3, 10):
        counts[f"editable step k={k}"] = count_kernels(lambda: editable.step(1_000, k, optimize=False))  # noqa: B023
    return counts


def kernels_of_edits(size: str, device: torch.device) -> dict[str, int]:
    """Kernels of steps with one edit and with eight, as on a GPU; width and alternatives do not change the number."""
    counts = {}
    for edits in (1, NUM_EDITS):
        options = {"narrow": True, "edits_per_step": edits, "edit_learning_rate": TOO_WEAK}
        run = Translation(size, device, True, **options)
        with launches_dominate_on({device.type}):
            for k in (3, 10):
                name = f"as on a GPU, k={k}, {edits} edits"
                counts[name] = count_kernels(lambda: run.step(1_000, k, optimize=False))  # noqa: B023
    return counts


def main(args: argparse.Namespace) -> None:
    set_seed(0)
    device = torch.device(args.device)
    if args.peak:
        print(peak_memory(args.size, *args.peak, device))
        return
    checks = {"translation": check_translation(args.size, device), "resnet": check_vision(device)}
    print(f"relative differences to the whole-model step: {checks}")
    counts = kernels(args.size, device) | kernels_of_edits(args.size, device)
    print("\n".join(f"{name:<28} {count:6,} kernels" for name, count in counts.items()))
    seconds = measure(args.size, device, args.rounds)
    print(format_seconds(seconds))
    memory = {f"k{k}": measure_peak(args.size, 4_000, k, device) for k in (0, 10)}
    ranges = {name: ratio(seconds, *pair) for name, pair in RATIOS.items() if set(pair) <= set(seconds)}
    for name, value in ranges.items():
        print(f"{name:<40} {value['median']:6.2f}  ({value['low']:.2f} - {value['high']:.2f})")
    print(f"peak memory at 4,000 tokens, MiB: {memory}")
    ratios = {name: round(value["median"], 3) for name, value in ranges.items()}
    for k in (3, 10):
        one, several = (counts[f"as on a GPU, k={k}, {edits} edits"] for edits in (1, NUM_EDITS))
        ratios[f"kernels_of_eight_edits_to_one_k{k}"] = round(several / one, 3)
    ratios["peak_memory_ratio"] = round(memory["k10"] / memory["k0"], 3)
    results = {"config": vars(args), "seed": 0, "checks": checks, "kernels": counts}
    finish({**results, "seconds": seconds, "ranges": ranges, "memory_mib": memory}, ratios, args.json)


if __name__ == "__main__":
    main(parse_args())
