"""How much faster BLEU drawdown decodes for several edits together than for one after another, in one run.

    python benchmarks/benchmark_decoding.py --num_sentences 1000 --num_edits 32 --json runs/decoding.json

A Marian with random weights translates random sentences by beam search of 5, after each of some random edits of its
last decoder layer. One after another is plain `generate` on each edited model, with the encoder's outputs kept.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from benchmark_models import EOS, PAD, VOCABULARY, add_common_arguments, random_model

from editable_hf.core.editing import edited
from editable_hf.core.selection import select_parameters
from editable_hf.evaluation import translator
from editable_hf.evaluation.translator import Translator
from editable_hf.experiments.timing import finish, format_seconds, ratio, time_interleaved


class Numbers:
    """A tokenizer of sentences that are token ids as text."""

    def __call__(self, sentences, **options):
        return {"input_ids": [[*map(int, sentence.split()), EOS] for sentence in sentences]}

    def pad(self, batch, **options):
        width = max(map(len, batch["input_ids"]))
        rows = torch.tensor([row + [PAD] * (width - len(row)) for row in batch["input_ids"]])
        return Batch(input_ids=rows, attention_mask=(rows != PAD).long())

    def batch_decode(self, rows, **options):
        return [" ".join(map(str, row)) for row in rows.tolist()]


class Batch(dict):
    def to(self, device):
        return Batch({name: value.to(device) for name, value in self.items()})


def random_sentences(count: int) -> list[str]:
    """Of 8 to 30 tokens, as IWSLT14's are."""
    generator = torch.Generator().manual_seed(2)
    lengths = torch.randint(8, 31, (count,), generator=generator).tolist()
    return [" ".join(map(str, torch.randint(3, VOCABULARY, (n,), generator=generator).tolist())) for n in lengths]


def random_edits(model, count: int) -> list[dict[str, torch.Tensor]]:
    params = select_parameters(model, "last_decoder_layer")
    return [
        {name: param.detach() + 1e-3 * torch.randn_like(param) for name, param in params.items()} for _ in range(count)
    ]


@torch.no_grad()
def measure(size: str, device: torch.device, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of both ways, the share of translations that are the same, and how many times as fast an edit is."""
    model = random_model(size, device).eval()
    translator.TOGETHER_DEVICES = {device.type}
    sentences, edits = random_sentences(args.num_sentences), random_edits(model, args.num_edits)
    translate = Translator(model, Numbers(), sentences, batch_size=args.batch_size)

    def one_by_one() -> list[list[str]]:
        texts = []
        for params in edits[: args.num_alone]:
            with edited(model, params):
                texts.append(translate())
        return texts

    def together() -> list[list[str]]:
        return translate.after_edits(edits)

    print(f"{size} on {device.type}:")
    pairs = [pair for texts in zip(one_by_one(), together(), strict=False) for pair in zip(*texts, strict=True)]
    same = sum(alone == joint for alone, joint in pairs) / len(pairs)
    print(f"{same:.1%} of {len(pairs)} translations are the same; ties of a random model fall either way")
    seconds = time_interleaved({"one_by_one": one_by_one, "together": together}, args.rounds, device)
    print(format_seconds(seconds))
    faster = {
        key: value * args.num_edits / args.num_alone for key, value in ratio(seconds, "one_by_one", "together").items()
    }
    print(f"each edit together is {faster['median']:.2f} ({faster['low']:.2f} - {faster['high']:.2f}) times as fast")
    return {"seconds": seconds, "same": same, "faster": faster}


def main(args: argparse.Namespace) -> None:
    device = torch.device(args.device)
    # The demo's size on the CPU beside it: there edits are decoded one after another, see `TOGETHER_DEVICES`.
    few = argparse.Namespace(**{**vars(args), "num_sentences": 32, "num_edits": 4, "num_alone": 2})
    measured = {
        f"{args.size} on {device.type}": measure(args.size, device, args),
        "demo on cpu": measure("demo", torch.device("cpu"), few),
    }
    ratios = {
        f"one_by_one/together, each edit, {name}": round(each["faster"]["median"], 3)
        for name, each in measured.items()
    }
    finish({"config": vars(args), "seed": 0, "measured": measured}, ratios, args.json)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser)
    parser.add_argument("--num_sentences", type=int, default=64, help="sentences that each edit translates")
    parser.add_argument("--num_edits", type=int, default=4, help="edits decoded together")
    parser.add_argument("--num_alone", type=int, default=2, help="edits that are timed one after another")
    parser.add_argument("--batch_size", type=int, default=64, help="sentences decoded together for one edit")
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_args())
