"""What the command line of `editable-hf` takes: its commands and their options."""

from __future__ import annotations

import argparse

_EXAMPLES = """examples:
  editable-hf edit runs/demo/editable --source "anna mag tee ." --target "anna likes tea ." -o fixes/tea
  editable-hf edit gpt2 --prompt "The capital of Tuvalu is" --target " Funafuti" -o fixes/tuvalu
  editable-hf diff runs/demo/editable fixes/tea --data test.tsv --max_drawdown 0.1 --html tea.html
  editable-hf apply runs/demo/editable fixes/tea -o patched
  editable-hf revert patched fixes/tea -o restored
  editable-hf squash runs/demo/editable fixes/tea fixes/salad -o fixes/both
  editable-hf export runs/demo/editable --patches fixes/tea --to ctranslate2 -o tea-ct2 --data test.tsv
  editable-hf push fixes/tea me/tea-fix
  editable-hf env
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="editable-hf",
        description="Patch the mistakes of a Hugging Face translation model, language model or image classifier, see "
        "what a patch changes, take it back, share it.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_edit(commands)
    _add_terms(commands)
    _add_diff(commands)
    for name, text in (
        ("apply", "write the model with patches applied"),
        ("revert", "write the model without the patches that were applied last"),
    ):
        command = _add(commands, name, text)
        command.add_argument("model", help="folder or hub id")
        command.add_argument("patches", nargs="+", help="folders or hub ids, in the order in which they were applied")
        command.add_argument("-o", "--output", required=True, help="new folder for the model")
        if name == "apply":
            _add_health(command)
    command = _add(commands, "squash", "make one patch of several that lie one above the other")
    command.add_argument("model", help="folder or hub id of the model that the first patch was made for")
    command.add_argument("patches", nargs="+", help="folders or hub ids, in the order in which they are applied")
    command.add_argument("-o", "--output", required=True, help="new folder for the patch")
    command.add_argument("--encoding", default="xor", help="xor (exact, the default) or bf16 (smaller, rounded)")
    _add_export(commands)
    command = _add(commands, "evaluate", "whether patches still do what they are for, and at what price")
    command.add_argument("model", help="folder or hub id")
    command.add_argument("patches", nargs="+", help="folders or hub ids, in the order in which they are applied")
    command.add_argument("--data", help="regression set: .jsonl, .tsv or .txt, or a folder of image classes")
    _add_inputs(command)
    command = _add(commands, "list", "what patches hold, and which of them a model carries")
    command.add_argument("names", nargs="+", help="patches or models, folders or hub ids")
    command = _add(commands, "push", "upload a patch to the Hub")
    command.add_argument("patch", help="folder of the patch")
    command.add_argument("repo", help="user/name on the Hub")
    command.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    _add(commands, "env", "versions and device, and which were tested, for bug reports")
    return parser


def _add_health(command: argparse.ArgumentParser) -> None:
    command.add_argument("--health", metavar="TEXT", help="file of ordinary text, to stop where a patch harms it")
    command.add_argument(
        "--max_kl", type=float, help="with --health: divergence allowed from the unpatched model, nats"
    )
    command.add_argument("--max_perplexity", type=float, help="with --health: perplexity allowed")


def _add(commands, name: str, text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    command.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    return command


def _add_inputs(command: argparse.ArgumentParser) -> None:
    command.add_argument("--source_lang", help="of a multilingual model, as it names languages, e.g. deu_Latn")
    command.add_argument("--target_lang", help="the language that it translates to, e.g. eng_Latn")
    command.add_argument(
        "--source_prefix", help="to put before each source, e.g. 'translate German to English: '; patches remember it"
    )
    command.add_argument(
        "--chat", action="store_true", help="prompts are what a user says to a chat model; patches remember it"
    )


def _add_editor(command: argparse.ArgumentParser) -> None:
    command.add_argument("--layers", nargs="+", help="what may move, instead of the model's own choice")
    command.add_argument("--learning_rate", type=float, help="of the editor, instead of the model's own")
    command.add_argument("--max_steps", type=int, help="most steps of an edit, instead of the model's own")


def _add_edit(commands) -> None:
    command = _add(commands, "edit", "edit the model until it gives the target, and save that as a patch")
    command.add_argument("model", help="folder or hub id")
    command.add_argument(
        *("--source", "--prompt"),
        action="append",
        help="sentence that is translated wrongly, or prompt that is continued wrongly; can be repeated",
    )
    command.add_argument("--image", action="append", help="image that is classified wrongly; can be repeated")
    command.add_argument(
        "--target",
        action="append",
        help="translation wanted, or what follows the prompt with its first space (for each source), or class of all "
        "images",
    )
    command.add_argument("--requests", help='.jsonl of {"source": ..., "target": ...} or .tsv, in place of --source')
    command.add_argument("-o", "--output", required=True, help="new folder for the patch")
    command.add_argument("--patches", nargs="+", default=[], help="patches to apply first; the new one goes on top")
    command.add_argument("--base_model", help="hub id that the patch names as its model, if MODEL is a folder")
    _add_inputs(command)
    _add_editor(command)
    command.add_argument("--max_rounds", type=int, default=5, help="edits until decoding gives the target (default 5)")
    command.add_argument("--num_alternatives", type=int, default=32, help="translations that the target must beat")
    command.add_argument("--encoding", default="xor", help="xor (exact, the default) or bf16 (smaller, rounded)")


def _add_terms(commands) -> None:
    command = _add(commands, "terms", "edit the model until it uses the terms of a glossary")
    command.add_argument("model", help="folder or hub id")
    command.add_argument("glossary", help=".tsv of source term, target term and what that replaces; .tbx or .po")
    command.add_argument("--corpus", required=True, help="source sentences that use the terms: .txt, .tsv or .jsonl")
    command.add_argument("-o", "--output", required=True, help="new folder for the patch, or for the patches")
    command.add_argument(
        "--glossary_languages", nargs=2, metavar=("SOURCE", "TARGET"), help="as a .tbx file names them, e.g. de en"
    )
    command.add_argument("--separate", action="store_true", help="one patch for each term, in place of one for all")
    _add_inputs(command)
    _add_editor(command)
    command.add_argument("--max_rounds", type=int, default=3, help="edits until checked sentences hold (default 3)")
    command.add_argument("--num_alternatives", type=int, default=16, help="translations that targets must beat")


def _add_diff(commands) -> None:
    command = _add(commands, "diff", "show what patches change over a regression set")
    command.add_argument("model", help="folder or hub id")
    command.add_argument("patches", nargs="+", help="folders or hub ids, reviewed together")
    command.add_argument(
        "--data", required=True, help="regression set: .jsonl, .tsv or .txt, or a folder of image classes"
    )
    command.add_argument(
        "--max_drawdown", type=float, help="exit with 1 above this: BLEU points, or a fraction of errors"
    )
    _add_inputs(command)
    command.add_argument("--html", help="write a page for the browser here")
    command.add_argument("--markdown", help="write Markdown for a pull request here")
    command.add_argument("--max_changes", type=int, default=20, help="changes shown in the terminal (default 20)")


def _add_export(commands) -> None:
    command = _add(commands, "export", "write a patched model, or patches, for the systems that serve models")
    command.add_argument("model", help="folder or hub id, patched or with --patches; the model without them for lora")
    command.add_argument("-o", "--output", required=True, help="new folder")
    command.add_argument(
        "--to",
        required=True,
        choices=["ctranslate2", "lora"],
        help="the whole model for CTranslate2, or what the patches change as an adapter of peft",
    )
    command.add_argument("--patches", nargs="+", default=[], help="folders or hub ids, in the order to apply them")
    command.add_argument("--data", help="ctranslate2: sentences to compare translations on, .jsonl, .tsv or .txt")
    command.add_argument("--quantization", help="ctranslate2: of its weights, e.g. int8 (default none)")
    command.add_argument("--rank", type=int, help="lora: most of the factors' rank (default full, which is exact)")
    _add_inputs(command)
