"""Patches wrong translations: each by itself, all by one patch, and one after another.

    python scripts/patch_mistakes.py --model runs/demo/editable --num_mistakes 50

Takes test and validation sentences that the model translates wrongly and edits towards their references. Prints how
many edits are satisfied (`l_e <= 0`) and how many are verified by decoding, after one round and after several; what
all patches together cost on the test sentences; sizes and times. Writes patches.json, and the patches themselves with
--save_patches.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editable_hf import EditorConfig, edited, make_edit_requests
from editable_hf.commands import check_translates, load
from editable_hf.data.atomic import write_atomically
from editable_hf.data.translation import load_translation_data
from editable_hf.evaluation.translator import Translator
from editable_hf.evaluation.verified_edit import decode
from editable_hf.experiments.report import environment
from editable_hf.patches import Patch
from editable_hf.patches.making import configured_edit, patch_of
from editable_hf.patches.stack import apply_patches, patched_parameters, revert_patches
from editable_hf.review.translations import review_translations


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub id of an encoder-decoder model")
    parser.add_argument("--data", default="embedded", help="'embedded', a folder or a hub id")
    parser.add_argument("--source_prefix", help="to put before each source (T5), instead of the model's own")
    parser.add_argument("--source_lang", help="of a multilingual model, as it names languages, e.g. deu_Latn")
    parser.add_argument("--target_lang", help="the language that it translates to, e.g. eng_Latn")
    parser.add_argument("--num_mistakes", type=int, default=50, help="wrong translations to patch")
    parser.add_argument("--num_sentences", type=int, default=1_000, help="test sentences that are reviewed")
    parser.add_argument(
        "--num_alternatives", type=int, default=16, help="translations that a target must beat at first"
    )
    parser.add_argument("--joint_steps", type=int, default=50, help="most steps of the one edit for all mistakes")
    parser.add_argument("--max_rounds", type=int, default=5, help="edits until decoding gives the target")
    parser.add_argument("--output_dir", default="runs/patch_mistakes", help="folder for patches.json")
    parser.add_argument("--save_patches", action="store_true", help="save the patches of the sequence, too")
    return parser.parse_args()


def find_mistakes(model, tokenizer, pairs, count: int, num_alternatives: int) -> list[dict[str, Any]]:
    """Requests for the first sentences whose translation differs from the reference."""
    outputs = Translator(model, tokenizer, pairs["source"])(progress="looking for mistakes")
    wrong = [index for index, text in enumerate(outputs) if text != pairs["target"][index]]
    requests = make_edit_requests(
        model,
        tokenizer,
        [pairs["source"][index] for index in wrong[: 2 * count]],
        targets=[pairs["target"][index] for index in wrong[: 2 * count]],
        num_alternatives=num_alternatives,
    )
    # Decoded one by one, without the length limit of a batch, some are right.
    return [each for each in requests if decode(model, tokenizer, each) != each["labels"]][:count]


def each_by_itself(model, tokenizer, requests, config: EditorConfig, max_rounds: int) -> dict[str, Any]:
    outcomes, seconds = [], []
    for request in tqdm(requests, desc=f"edits, at most {max_rounds} rounds", unit="edit"):
        start = time.perf_counter()
        outcomes.append(configured_edit(model, tokenizer, [request], config, max_rounds))
        seconds.append(time.perf_counter() - start)
    satisfied = [outcome.result.success for outcome in outcomes]
    verified = [outcome.all_verified for outcome in outcomes]
    return {
        "satisfied": sum(satisfied) / len(outcomes),
        "verified": sum(verified) / len(outcomes),
        "satisfied_not_verified": sum(s and not v for s, v in zip(satisfied, verified, strict=True)) / len(outcomes),
        "num_steps": sum(outcome.result.num_steps for outcome in outcomes) / len(outcomes),
        "num_rounds": sum(outcome.num_rounds for outcome in outcomes) / len(outcomes),
        "edit_seconds": sum(seconds) / len(seconds),
    }


class PatchStep(NamedTuple):
    """One patch of a sequence.

    Attributes:
        patch: `None` where the edit failed, or nothing had to be edited.
        success: Whether `l_e <= 0` holds.
        verified: Whether decoding gives the target.
        broken: Positions of earlier requests whose target was decoded before this patch and is not any more.
    """

    patch: Patch | None
    success: bool
    verified: bool
    broken: list[int]


def patch_one_after_another(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[Mapping[str, Any]],
    config: EditorConfig,
    max_rounds: int,
) -> list[PatchStep]:
    """Makes a patch for each request, on top of all before, and looks after each whether the earlier ones still hold.

    The model is left as it was, bit for bit; apply the patches that you want to keep, in this order.
    """
    steps: list[PatchStep] = []
    holding: set[int] = set()
    num_applied = 0
    try:
        for index, request in enumerate(tqdm(requests, desc="patches", unit="patch")):
            outcome = configured_edit(model, tokenizer, [request], config, max_rounds)
            patch = patch_of(model, outcome, config)
            if patch is not None:
                apply_patches(model, patch)
                num_applied += 1
            broken = [] if patch is None else sorted(_broken(model, tokenizer, requests, holding))
            holding -= set(broken)
            if outcome.all_verified:
                holding.add(index)
            steps.append(PatchStep(patch, outcome.result.success, outcome.all_verified, broken))
    finally:
        revert_patches(model, num_applied)
    return steps


def _broken(model, tokenizer, requests: Sequence[Mapping[str, Any]], holding: set[int]) -> list[int]:
    return [index for index in holding if decode(model, tokenizer, requests[index]) != list(requests[index]["labels"])]


def reviewed(model, tokenizer, params, test, requests, name: str) -> dict[str, Any]:
    """What a set of edited parameters does to the test set, and how many of the mistakes it mends."""
    start = time.perf_counter()
    review = review_translations(model, tokenizer, params, test["source"], test["target"], patch=name, progress=name)
    seconds = time.perf_counter() - start
    with edited(model, params):
        mended = [decode(model, tokenizer, each) == list(each["labels"]) for each in requests]
    found = {key: value for key, value in review.as_dict().items() if key != "changes"}
    return {**found, "mended": sum(mended) / len(mended), "diff_seconds": seconds}


def main(args: argparse.Namespace) -> None:
    loaded = load(
        args.model, inputs={key: getattr(args, key) for key in ("source_prefix", "source_lang", "target_lang")}
    )
    check_translates(loaded, args.model)
    model, tokenizer, config = loaded.model, loaded.processor, loaded.editor
    splits = load_translation_data(args.data).splits
    test, validation = splits["test"][: args.num_sentences], splits["validation"][:]
    for part in (test, validation):
        part["source"] = loaded.addressed(part["source"])
    pool = {key: [*test[key], *validation[key]] for key in ("source", "target")}
    requests = find_mistakes(model, tokenizer, pool, args.num_mistakes, args.num_alternatives)
    if not requests:
        raise SystemExit(f"{args.model} makes no mistake on these sentences that an edit could mend; give more.")
    results: dict[str, Any] = {"num_mistakes": len(requests), "num_sentences": len(test["source"])}
    results["once"] = each_by_itself(model, tokenizer, requests, config, 1)
    results["verified"] = each_by_itself(model, tokenizer, requests, config, args.max_rounds)
    start = time.perf_counter()
    more_steps = replace(config, max_steps=args.joint_steps)
    joint = configured_edit(model, tokenizer, requests, more_steps, args.max_rounds)
    seconds = time.perf_counter() - start
    results["together"] = {"num_steps": joint.result.num_steps, "success": joint.result.success, "seconds": seconds}
    results["together"] |= reviewed(model, tokenizer, joint.result.params, test, requests, "all by one patch")
    patch = patch_of(model, joint, more_steps)
    results["together"]["bytes"] = None if patch is None else len(patch.payload)
    steps = patch_one_after_another(model, tokenizer, requests, config, args.max_rounds)
    patches = [step.patch for step in steps if step.patch is not None]
    params = patched_parameters(model, patches)
    results["sequence"] = {
        "satisfied": sum(step.success for step in steps) / len(steps),
        "verified": sum(step.verified for step in steps) / len(steps),
        "num_broken": sum(len(step.broken) for step in steps),
        "bytes": [len(each.payload) for each in patches],
    }
    results["sequence"] |= reviewed(model, tokenizer, params, test, requests, "one after another")
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if args.save_patches:
        for number, each in enumerate(patches, start=1):
            each.save_pretrained(folder / f"{number:03d}-{each.fingerprint[:12]}")
    content = {**results, "config": vars(args), "seed": None, **environment()}  # nothing is drawn
    write_atomically(folder / "patches.json", json.dumps(content, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main(parse_args())
