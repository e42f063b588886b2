"""What the stages of the terms recipe do, each filling one folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import load_from_disk
from transformers import AutoTokenizer, MarianMTModel, PreTrainedModel, PreTrainedTokenizerBase

from editable_hf import make_edit_requests
from editable_hf.data.atomic import write_atomically
from editable_hf.data.translation import load_translation_data
from editable_hf.experiments.stages import Stage
from editable_hf.experiments.term_measure import MeasuredTerm, measure
from editable_hf.experiments.term_recipe import TermRecipeConfig
from editable_hf.experiments.translation_stages import check_learned
from editable_hf.terms.examples import Example, TermExamples, find_examples
from editable_hf.terms.glossary import Term, read_glossary, sentences_with
from editable_hf.terms.terms import term_requests


def prepare_data(config: TermRecipeConfig, folder: Path) -> None:
    """Plain text; the last training pairs become a split of their own, `terms`."""
    data = load_translation_data(**asdict(config.data), raw_text=True)
    splits, count = data.splits, config.terms.num_sentences
    pairs = splits["train"]
    if len(pairs) <= count:
        raise ValueError(
            f"Expected more than `num_sentences` training pairs, got {len(pairs):,} and {count:,}; lower it in the "
            "section 'terms'."
        )
    splits["terms"] = pairs.select(range(len(pairs) - count, len(pairs)))
    splits["train"] = pairs.select(range(len(pairs) - count))
    splits.save_to_disk(folder / "splits")
    (folder / "names.json").write_text(json.dumps({"name": data.name, "test_name": data.test_name}), encoding="utf-8")


def load_network(stage: Stage) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model = MarianMTModel.from_pretrained(stage.folder, attn_implementation="eager")
    return model.to(PartialState().device), AutoTokenizer.from_pretrained(stage.folder)


def prepare_terms(config: TermRecipeConfig, data: Stage, pretrained: Stage, folder: Path) -> None:
    """The terms of each part with their sentences, and the edits that networks are trained with."""
    splits, (model, tokenizer) = load_from_disk(data.folder / "splits"), load_network(pretrained)
    check_learned(model, tokenizer, splits["validation"][:200], config.evaluation.min_bleu)
    options, references = config.terms, dict(zip(splits["terms"]["source"], splits["terms"]["target"], strict=True))
    terms = read_glossary(options.glossary).terms
    found = find_examples(model, tokenizer, terms, list(references), progress="sentences of terms")
    pairs = zip(found, sentences_with(terms, references), strict=True)
    usable = [term for term in (_measured(each, used, references, config) for each, used in pairs) if term]
    first, second = options.num_test, options.num_test + options.num_validation
    parts = {"test": usable[:first], "validation": usable[first:second], "train": usable[second:]}
    if len(usable) < second:
        raise ValueError(
            f"Expected {second} terms that the model can be edited for and that have unseen sentences (`num_test` and "
            f"`num_validation`), but only {len(usable)} of {len(terms)} have; add terms, or raise `num_sentences`."
        )
    content = {part: [asdict(term) for term in rows] for part, rows in parts.items()}
    write_atomically(folder / "terms.json", json.dumps(content, indent=1, ensure_ascii=False))
    rows = [row for term in parts["train"] for row in (*term.examples.edit, *term.examples.check)]
    options = {"num_alternatives": config.terms.num_alternatives, "progress": "requests"}
    rows = [row for row in rows if row.target != row.before]
    if rows:
        term_requests(model, tokenizer, rows, **options).save_to_disk(folder / "terms/train")
    elif any(changes.get("requests") == "terms" for changes in config.models.values()):
        raise ValueError(f"{config.terms.glossary} has no terms left to train with; add some, see `num_test`.")
    sources = splits["train"].shuffle(seed=config.seed)["source"][: config.terms.num_requests]
    sampled = make_edit_requests(model, tokenizer, sources, seed=config.seed, **options)
    sampled.save_to_disk(folder / "sentences/train")


def _measured(
    found: TermExamples, used: Sequence[str], references: dict[str, str], config: TermRecipeConfig
) -> MeasuredTerm | None:
    """The sentences that the edit does not see, whatever the model says to them; `None` if a part is empty."""
    seen = {row.source for row in (*found.edit, *found.check)}
    unseen = [source for source in used if source not in seen][: config.terms.num_unseen]
    if not found.edit or not unseen:
        return None
    examples = TermExamples(found.term, found.edit, found.check, [], found.left_out)
    wanted = [found.term.replaced_in(references[source]) for source in unseen]
    return MeasuredTerm(examples, unseen, wanted)


def load_terms(stage: Stage) -> dict[str, list[MeasuredTerm]]:
    """What [`prepare_terms`] found, by part."""
    content = json.loads((stage.folder / "terms.json").read_text(encoding="utf-8"))
    return {part: [_loaded(row) for row in rows] for part, rows in content.items()}


def _loaded(row: dict[str, Any]) -> MeasuredTerm:
    own = row["examples"]
    parts = {name: [Example(**each) for each in own[name]] for name in ("edit", "check", "held_out")}
    term = Term(**{key: tuple(forms) for key, forms in own["term"].items()})
    return MeasuredTerm(TermExamples(term, **parts, left_out=own["left_out"]), row["unseen"], row["wanted"])


def measure_row(config: TermRecipeConfig, data: Stage, terms: Stage, network: Stage, name: str, folder: Path) -> None:
    """Fills `row.json`, `at_once.json` and `terms.jsonl`, see [`measure`]."""
    test = load_from_disk(data.folder / "splits")["test"].shuffle(seed=config.seed)
    test = test[: config.evaluation.num_sentences]
    measure(config, name, load_network(network), load_terms(terms), (test["source"], test["target"]), folder)
