"""How long the drawdown of an image edit takes: shared features beside a full forward of the edited model.

    python benchmarks/benchmark_image_drawdown.py
    python benchmarks/benchmark_image_drawdown.py --num_images 10000 --num_edits 100

ResNet-18 with a CIFAR stem (four chains) and random weights, random edits of chain 3 and of the extra block. The
reference classifies all images with the whole model after each edit; ratios are of seconds for each edit, measured in
one run. Predictions are compared before anything is timed. The last line is one JSON object with the ratios.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from editable_hf.core.editing import edited
from editable_hf.core.editors import Params
from editable_hf.core.selection import select_parameters
from editable_hf.evaluation.error_evaluator import ErrorDrawdownEvaluator
from editable_hf.experiments.timing import finish, format_seconds, ratio, time_interleaved
from editable_hf.models import ExtraBlockForImageClassification, StemResNetConfig, StemResNetForImageClassification


class RandomImages(Dataset):
    """Noise, which costs as much to classify as anything else."""

    def __init__(self, count: int):
        self.images = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        return {"pixel_values": self.images[index], "labels": 0}


def random_edits(model, layers: str, count: int) -> list[Params]:
    """Moves as large as those of RMSProp's first steps at alpha 1e-3."""
    generator = torch.Generator().manual_seed(1)
    params = select_parameters(model, layers)
    return [
        {name: p.detach() + 2e-3 * torch.randn(p.shape, generator=generator).to(p) for name, p in params.items()}
        for _ in range(count)
    ]


@torch.no_grad()
def whole_model(evaluator: ErrorDrawdownEvaluator, edits: Sequence[Params]) -> Tensor:
    """Logits after each edit, `(num_edits, num_images, num_classes)`: one full forward for each."""
    model, logits = evaluator.model.eval(), []
    for params in edits:
        with edited(model, params):
            batches = (
                batch["pixel_values"].to(model.device, memory_format=torch.channels_last) for batch in evaluator.loader
            )
            logits.append(torch.cat([model(batch).logits.cpu() for batch in batches]))
    return torch.stack(logits)


def check(predictions: Tensor, logits: Tensor) -> dict[str, float]:
    """Predictions that differ, and how close the two classes are where they do: float32 rounds ties either way."""
    expected = logits.argmax(-1)
    gaps = (logits.gather(2, predictions.unsqueeze(2)) - logits.gather(2, expected.unsqueeze(2))).abs()
    return {
        "num_compared": expected.numel(),
        "num_different": int((predictions != expected).sum()),
        "gap": gaps.max().item(),
    }


def measure(model, layers: str, args: argparse.Namespace, num_edits: int) -> tuple[dict, dict]:
    evaluator = ErrorDrawdownEvaluator(model, RandomImages(args.num_images), layers=layers, batch_size=args.batch_size)
    edits = random_edits(model, layers, num_edits)
    compared = edits[: args.num_compared]
    checked = check(evaluator.predict(compared)[1:], whole_model(evaluator, compared))
    assert checked["gap"] < 1e-3, checked
    functions = {"whole model": lambda: whole_model(evaluator, compared), "shared": lambda: evaluator.predict(edits)}
    seconds = time_interleaved(functions, args.rounds, torch.device(args.device), warmups=0)
    per_edit = {
        "whole model": [value / len(compared) for value in seconds["whole model"]],
        "shared": [value / len(edits) for value in seconds["shared"]],
    }
    print(f"{layers}: seconds for each edit, {len(edits)} edits, {checked}\n{format_seconds(per_edit)}", flush=True)
    return {"seconds": per_edit, "check": checked, "num_edits": len(edits)}, ratio(per_edit, "whole model", "shared")


def main(args: argparse.Namespace) -> None:
    device = torch.device(args.device)
    torch.manual_seed(0)
    options = {"hidden_sizes": [8, 16, 16, 16], "embedding_size": 8} if args.size == "tiny" else {}
    model = StemResNetForImageClassification(StemResNetConfig(cifar_stem=True, num_labels=10, **options)).to(device)
    chain, chain_ratio = measure(model, "chain3", args, args.num_edits)
    wrapped = ExtraBlockForImageClassification.from_backbone(model, 64 if args.size == "tiny" else 4096).to(device)
    extra, extra_ratio = measure(wrapped, "extra", args, 100)
    results = {"config": vars(args), "seed": 0, "chain3": chain, "extra": extra}
    finish(results, {"drawdown_speedup_chain3": chain_ratio, "drawdown_speedup_extra": extra_ratio}, args.json)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["resnet18", "tiny"], default="resnet18", help="widths of the network")
    parser.add_argument("--num_images", type=int, default=500, help="images classified after each edit")
    parser.add_argument("--num_edits", type=int, default=20, help="edits of chain 3; of the extra block it is 100")
    parser.add_argument("--num_compared", type=int, default=2, help="edits that the whole model runs for")
    parser.add_argument("--batch_size", type=int, default=250, help="images classified together")
    parser.add_argument("--rounds", type=int, default=3, help="times everything is timed")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--json", help="file for all figures")
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_args())
