"""How long BLEU drawdown takes for each edit: the prefix memo beside plain `generate` on the edited model.

    python scripts/benchmark_drawdown.py
    python scripts/benchmark_drawdown.py --small_model runs/small/editable --large_model runs/paper/editable

Real edits of two models, the recipe's `small` one and one of fairseq's size. `generate` is plain transformers, from
the source sentences on; `translator` is our own loop without a memo. Both are timed on a few of the edits, and the
memo on all of them, because edits share it: ratios are of seconds for each edit, measured in one run. Without
checkpoints, both models are trained for a moment on the embedded corpus, with 10,000 columns in the head. Before
anything is timed, outputs are compared token for token; two that differ are a tie if their scores under the edited
model differ by less than 1e-4 nats. The last line is one JSON object with the ratios.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from benchmark_models import VOCABULARY
from timing import describe_machine, finish, format_seconds, ratio, time_interleaved
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, DataCollatorForSeq2Seq, MarianMTModel, PreTrainedModel

from editable_hf import EditorConfig, make_edit_requests
from editable_hf.core.editing import edit, edited
from editable_hf.core.editors import Params
from editable_hf.data.requests import request_constraint, strip_ids
from editable_hf.data.tokenizer import train_tokenizer
from editable_hf.data.translation import load_translation_data
from editable_hf.evaluation.memo_translator import MemoTranslator
from editable_hf.evaluation.translator import Translator
from editable_hf.models import iwslt_transformer_config

TIE = 1e-4  # nats; float32 rounds scores of about 20 nats to 2e-6 at every step
PIECES = 2_000  # as many as the recipe's demo takes from the embedded corpus


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small_model", help="checkpoint of the recipe's `small` size, trained here if not given")
    parser.add_argument("--large_model", help="checkpoint of fairseq's size, trained here if not given")
    parser.add_argument(
        "--data", default="embedded", help="test sentences: 'embedded', a folder, a WIT3 archive or hub id"
    )
    parser.add_argument("--num_edits", type=int, default=20, help="edits that the memo serves")
    parser.add_argument("--num_compared", type=int, default=3, help="edits that `generate` is compared and timed on")
    parser.add_argument("--num_sentences", type=int, default=32, help="test sentences translated after each edit")
    parser.add_argument("--num_beams", type=int, default=5, help="beam size")
    parser.add_argument("--train_steps", type=int, default=120, help="steps of a model that is trained here")
    parser.add_argument("--sizes", nargs=2, default=["small", "iwslt_de_en"], help="of the models trained here")
    parser.add_argument("--rounds", type=int, default=2, help="times everything is timed")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--json", help="file for all figures")
    return parser.parse_args()


class TokenTranslator(Translator):
    """Gives tuples of token ids in place of text."""

    def decode(self, number: int, sequences: Tensor) -> Iterator[tuple[int, tuple[int, ...]]]:
        rows = [tuple(strip_ids(row, self.tokenizer)) for row in sequences]
        return zip(self._indices[number], rows, strict=True)

    @torch.no_grad()
    def stock(self) -> list[tuple[int, ...]]:
        """What plain transformers gives, from the source tokens on."""
        outputs: list[Any] = [None] * self.num_sentences
        for number, batch in enumerate(self._batches):
            sequences = self.model.generate(
                **batch,
                num_beams=self.num_beams,
                do_sample=False,
                early_stopping=self.num_beams > 1,
                max_new_tokens=self._max_new_tokens[number],
            )
            for index, row in self.decode(number, sequences):
                outputs[index] = row
        return outputs

    @torch.no_grad()
    def score(self, index: int, tokens: Sequence[int]) -> float:
        """What beam search ranks a translation by: nats, over length to the power of the length penalty."""
        (number,) = (number for number, indices in enumerate(self._indices) if index in indices)
        place = self._indices[number].index(index)
        source = {key: value[place : place + 1] for key, value in self._batches[number].items()}
        start = self.model.config.decoder_start_token_id
        labels = torch.tensor([tokens], device=self.model.device)
        inputs = torch.cat([torch.full_like(labels[:, :1], start), labels[:, :-1]], dim=1)
        log_probs = F.log_softmax(self.model(**source, decoder_input_ids=inputs, use_cache=False).logits, dim=-1)
        total = log_probs.gather(2, labels[:, :, None]).double().sum().item()
        return total / len(tokens) ** self.model.generation_config.length_penalty


def train(size: str, data: Any, tokenizer: Any, steps: int, device: torch.device) -> MarianMTModel:
    """A model that has seen enough of a corpus for beam search to end its sentences."""
    torch.manual_seed(0)
    config = iwslt_transformer_config(tokenizer, size, dropout=0.0)
    config.vocab_size = config.decoder_vocab_size = VOCABULARY  # the pieces, and columns that never win
    model = MarianMTModel(config).to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3 if size != "iwslt_de_en" else 5e-4, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 30))
    collate = DataCollatorForSeq2Seq(tokenizer, model=model)
    for step in tqdm(range(steps), desc=f"training {size}", unit="step", leave=False):
        start = 32 * step % (len(data) - 32)
        rows = data[start : start + 32]
        encoded = tokenizer(rows["source"], text_target=rows["target"])
        batch = collate([dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)])
        model(**batch.to(device), use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model.eval()


def make_edits(model: PreTrainedModel, tokenizer: Any, test: Any, config: EditorConfig, count: int) -> list[Params]:
    """Edits that took a step: of what the model says to a reference, for sentence after sentence."""
    editor, edits = config.build_editor(**config.hyperparameters), []
    options = {"num_alternatives": 8, "progress": None}
    for start in range(0, len(test), 2 * count):
        rows = test[start : start + 2 * count]
        requests = make_edit_requests(model, tokenizer, rows["source"], targets=rows["target"], **options)
        for request in tqdm(requests, desc="edits", unit="edit", leave=False):
            constraint = request_constraint(request, model, config.length_penalty).to(model.device)
            result = edit(model, constraint, editor, config.layers, min(config.max_steps, 5))
            if result.num_steps > 0:
                edits.append(result.params)
            if len(edits) == count:
                return edits
    raise SystemExit(f"Only {len(edits)} of {count} edits took a step; give a larger test set or fewer --num_edits.")


def compare(translator: TokenTranslator, edits: dict[int, Params], memo: Sequence[list]) -> dict[str, Any]:
    """Sentences in which the memo and plain `generate` differ, and how many of them are score ties."""
    gaps, changed = [], 0
    before = translator.stock()
    for number, params in tqdm(edits.items(), desc="comparing", unit="edit", leave=False):
        with edited(translator.model, params):
            plain = translator.stock()
            for index, (ours, theirs) in enumerate(zip(memo[number], plain, strict=True)):
                if ours != theirs:
                    gaps.append(abs(translator.score(index, ours) - translator.score(index, theirs)))
        changed += sum(a != b for a, b in zip(before, plain, strict=True))
    total = len(edits) * translator.num_sentences
    differences = {"num_compared": total, "num_different": len(gaps), "num_ties": sum(gap < TIE for gap in gaps)}
    return {**differences, "largest_gap": max(gaps, default=0.0), "outputs_changed_by_edits": changed / total}


def measure(
    model: PreTrainedModel, tokenizer: Any, test: Any, config: EditorConfig, args: argparse.Namespace
) -> dict[str, Any]:
    """Compares, then times, the three ways on one model."""
    edits = make_edits(model, tokenizer, test, config, args.num_edits)
    translator = TokenTranslator(model, tokenizer, test["source"][: args.num_sentences], num_beams=args.num_beams)
    memo = MemoTranslator(translator, config.layers)
    count = min(args.num_compared, args.num_edits)
    chosen = {number: edits[number] for number in (i * args.num_edits // count for i in range(count))}
    check = compare(translator, chosen, memo(edits))
    statistics = memo.statistics.as_dict()
    print(f"{check}\n{statistics}")

    def on_each(translate: Any) -> None:
        for params in chosen.values():
            with edited(model, params):
                translate()

    functions = {
        "generate": lambda: on_each(translator.stock),
        "translator": lambda: on_each(translator),
        "memo": lambda: memo(edits),
    }
    # The comparison has warmed everything up.
    seconds = time_interleaved(functions, args.rounds, translator.model.device, warmups=0)
    shares = {"generate": count, "translator": count, "memo": args.num_edits}
    seconds = {name: [value / shares[name] for value in values] for name, values in seconds.items()}
    print(format_seconds(seconds))
    ranges = {name: ratio(seconds, name, "memo") for name in ("generate", "translator")}
    return {"check": check, "memo": statistics, "seconds_per_edit": seconds, "ranges": ranges}


def main(args: argparse.Namespace) -> None:
    device = torch.device(args.device)
    machine = describe_machine(device)
    print(machine)
    splits, tokenizer = load_translation_data(args.data).splits, None
    results = {}
    for name, folder, size in zip(
        ("small", "fairseq_size"), (args.small_model, args.large_model), args.sizes, strict=True
    ):
        if folder is not None:
            model = AutoModelForSeq2SeqLM.from_pretrained(folder, attn_implementation="eager").to(device).eval()
            own, config = AutoTokenizer.from_pretrained(folder), EditorConfig.from_pretrained(folder) or EditorConfig()
        else:
            tokenizer = tokenizer or train_tokenizer([*splits["train"]["source"], *splits["train"]["target"]], PIECES)
            model, own = train(size, splits["train"], tokenizer, args.train_steps, device), tokenizer
            config = EditorConfig()
        print(f"\n{name}: {folder or f'{size}, trained for {args.train_steps} steps'}")
        results[name] = measure(model, own, splits["test"], config, args)
        for against, value in results[name]["ranges"].items():
            print(f"memo over {against:<12} {value['median']:6.2f}  ({value['low']:.2f} - {value['high']:.2f})")
    small, large = results["small"], results["fairseq_size"]
    checks = [result["check"] for result in results.values()]
    ratios = {
        "drawdown_speedup": round(small["ranges"]["generate"]["median"], 3),
        "drawdown_identical": all(check["num_different"] == check["num_ties"] for check in checks),
        "drawdown_speedup_fairseq_size": round(large["ranges"]["generate"]["median"], 3),
        "drawdown_speedup_over_translator": round(small["ranges"]["translator"]["median"], 3),
        "drawdown_speedup_over_translator_fairseq_size": round(large["ranges"]["translator"]["median"], 3),
        "drawdown_num_different": sum(check["num_different"] for check in checks),
        "drawdown_num_ties": sum(check["num_ties"] for check in checks),
        "memo_hit_rate": round(small["memo"]["hit_rate"], 3),
        "memo_hit_rate_fairseq_size": round(large["memo"]["hit_rate"], 3),
        "memo_gigabytes": round(max(result["memo"]["peak_bytes"] for result in results.values()) / 1e9, 3),
    }
    finish({"machine": machine, "config": vars(args), "seed": 0, **results}, ratios, args.json)


if __name__ == "__main__":
    main(parse_args())
