"""BLEU drawdown, success rate and number of steps of edits of a translation model (Table 6's columns).

    python scripts/bleu_drawdown.py --model runs/demo/editable --data embedded --num_edits 20
    python scripts/bleu_drawdown.py --model Helsinki-NLP/opus-mt-de-en --raw_text --data bentrevett/multi30k

Requests are made with the model itself, from test sentences: alternatives by beam search, targets sampled at
temperature 1.2 (section 4.4); `--requests` takes your own corrections instead. Prints a table and writes results.json
and edits.jsonl, one line for each edit: the request, and what it changed. A killed run continues where it was. Several
processes (`accelerate launch --multi_gpu`) share the edits.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from datasets import Dataset
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from editable_hf import EditorConfig, make_edit_requests, set_languages
from editable_hf.data.atomic import write_atomically
from editable_hf.data.requests import read_corrections
from editable_hf.data.translation import TranslationData, load_translation_data
from editable_hf.evaluation.bleu_evaluator import BleuDrawdownEvaluator
from editable_hf.experiments.paper_tables import TABLE_6
from editable_hf.experiments.report import format_table, write_results
from editable_hf.experiments.run_lock import claim_folder
from editable_hf.launch import launched_processes


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub id of an encoder-decoder model")
    parser.add_argument("--data", default="embedded", help="'embedded', a folder or a hub id")
    parser.add_argument("--source_lang", default="de", help="language to translate from, as the data names it")
    parser.add_argument("--target_lang", default="en", help="language to translate into, as the data names it")
    parser.add_argument(
        "--model_languages", nargs=2, help="the two as a multilingual model's tokenizer names them: deu_Latn eng_Latn"
    )
    parser.add_argument("--source_prefix", help="to put before each source, instead of the model's own")
    parser.add_argument(
        "--raw_text", action="store_true", help="give the model plain text, not lower-cased Moses tokens"
    )
    parser.add_argument("--requests", help='JSONL of {"source": ..., "target": ...}, instead of sampled targets')
    parser.add_argument("--num_edits", type=int, default=100, help="edits to measure, each on the unedited model")
    parser.add_argument("--num_sentences", type=int, default=1_000, help="test sentences translated after each edit")
    parser.add_argument("--num_alternatives", type=int, default=32, help="translations that the target must beat")
    parser.add_argument("--learning_rate", type=float, help="alpha of the editor, instead of the model's own or 1e-3")
    parser.add_argument(
        "--layers", nargs="+", help="layers to edit, instead of the model's own or the last decoder layer"
    )
    parser.add_argument("--max_steps", type=int, help="most steps of an edit, instead of the model's own or 10")
    parser.add_argument("--num_beams", type=int, default=5, help="beam size of the translations")
    parser.add_argument("--batch_size", type=int, default=64, help="sentences decoded together")
    parser.add_argument("--seed", type=int, default=0, help="of the sample of test sentences and of the targets")
    parser.add_argument("--output_dir", default="runs/bleu_drawdown", help="folder for results.json and edits.jsonl")
    return parser.parse_args()


def load_requests(
    args: argparse.Namespace, model, tokenizer, sources: list[str], prefix: str, folder: Path
) -> Dataset:
    """The requests of this run, kept in the folder: a continued run must measure the same ones."""
    path, partial = folder / "requests.parquet", folder / "requests.partial"
    if not path.exists():
        options = {"num_alternatives": args.num_alternatives, "seed": args.seed}
        if args.requests:
            sources, targets = read_corrections(args.requests)
            prefixed = [prefix + source for source in sources]
            requests = make_edit_requests(model, tokenizer, prefixed, targets=targets, **options)
        else:
            requests = make_edit_requests(model, tokenizer, sources[: args.num_edits], **options)
        requests.to_parquet(partial)
        partial.rename(path)
    requests = Dataset.from_parquet(str(path))
    return requests.select(range(min(args.num_edits, len(requests))))


def check_settings(args: argparse.Namespace, folder: Path) -> None:
    """Refuses a folder that holds a run with other options."""
    folder.mkdir(parents=True, exist_ok=True)
    settings, path = {key: value for key, value in vars(args).items() if key != "output_dir"}, folder / "settings.json"
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != settings:
        raise SystemExit(f"{folder} holds a run with other options (see {path}); give another --output_dir.")
    write_atomically(path, json.dumps(settings, indent=2) + "\n")


def main(args: argparse.Namespace) -> None:
    folder, processes = Path(args.output_dir), launched_processes()
    with processes.main_process_first():
        check_settings(args, folder)
    claim_folder(folder)  # a second run would append to the same files
    model = AutoModelForSeq2SeqLM.from_pretrained(args.model).to(processes.device)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    editor_config = EditorConfig.find(args.model)
    if editor_config is None:
        print(f"{args.model} was not trained to be editable; it is edited with RMSProp all the same.")
        editor_config = EditorConfig()
    source_lang, target_lang = args.model_languages or map(editor_config.inputs.get, ("source_lang", "target_lang"))
    set_languages(model, tokenizer, source_lang, target_lang)
    prefix = editor_config.inputs.get("source_prefix", "") if args.source_prefix is None else args.source_prefix
    data = load_translation_data(
        args.data, source_lang=args.source_lang, target_lang=args.target_lang, raw_text=args.raw_text
    )
    test = data.splits["test"].shuffle(seed=args.seed)[: args.num_sentences]
    test["source"] = [prefix + source for source in test["source"]]
    with processes.main_process_first():
        requests = load_requests(args, model, tokenizer, test["source"], prefix, folder)
    evaluator = BleuDrawdownEvaluator(
        model,
        tokenizer,
        test["source"],
        test["target"],
        test["target_text"],
        target_lang=args.target_lang,
        raw_text=args.raw_text,
        layers=args.layers or editor_config.layers,
        num_beams=args.num_beams,
        batch_size=args.batch_size,
    )
    values = editor_config.hyperparameters | ({"learning_rate": args.learning_rate} if args.learning_rate else {})
    records = evaluator.evaluate(
        requests,
        editor_config.build_editor(**values),
        max_steps=args.max_steps or editor_config.max_steps,
        length_penalty=editor_config.length_penalty,
        path=folder / "edits.jsonl",
    )
    if processes.is_main_process:
        report(args, data, evaluator, records, values)


def report(
    args: argparse.Namespace,
    data: TranslationData,
    evaluator: BleuDrawdownEvaluator,
    records: list[dict],
    values: dict[str, float],
) -> None:
    folder = Path(args.output_dir)
    row = evaluator.summarize(Path(args.model).name, records, editor=values)
    write_results(folder / "results.json", [row], vars(args), args.seed, name=data.name, test_name=data.test_name)
    print(
        f"\n{data.test_name}\n{format_table([*TABLE_6, row])}\n\nResults: {folder}/results.json, {folder}/edits.jsonl"
    )


if __name__ == "__main__":
    main(parse_args())
