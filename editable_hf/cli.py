"""The command `editable-hf`: edit, review, apply, take back and share."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_EXAMPLES = """examples:
  editable-hf edit runs/demo/editable --source "anna mag tee ." --target "anna likes tea ." -o fixes/tea
  editable-hf edit gpt2 --prompt "The capital of Tuvalu is" --target " Funafuti" -o fixes/tuvalu
  editable-hf diff runs/demo/editable fixes/tea --data test.tsv --max_drawdown 0.1 --html tea.html
  editable-hf apply runs/demo/editable fixes/tea -o patched
  editable-hf revert patched fixes/tea -o restored
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
    for name, run, text in (
        ("apply", _apply, "write the model with patches applied"),
        ("revert", _revert, "write the model without the patches that were applied last"),
    ):
        command = _add(commands, name, run, text)
        command.add_argument("model", help="folder or hub id")
        command.add_argument("patches", nargs="+", help="folders or hub ids, in the order in which they were applied")
        command.add_argument("-o", "--output", required=True, help="new folder for the model")
    command = _add(commands, "evaluate", _evaluate, "whether patches still do what they are for, and at what price")
    command.add_argument("model", help="folder or hub id")
    command.add_argument("patches", nargs="+", help="folders or hub ids, in the order in which they are applied")
    command.add_argument("--data", help="regression set: .jsonl, .tsv or .txt, or a folder of image classes")
    _add_inputs(command)
    command = _add(commands, "list", _list, "what patches hold, and which of them a model carries")
    command.add_argument("names", nargs="+", help="patches or models, folders or hub ids")
    command = _add(commands, "push", _push, "upload a patch to the Hub")
    command.add_argument("patch", help="folder of the patch")
    command.add_argument("repo", help="user/name on the Hub")
    command.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    _add(commands, "env", _env, "versions and device, and which were tested, for bug reports")
    return parser


def _add(commands, name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    command.set_defaults(run=run)
    command.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    return command


def _add_inputs(command: argparse.ArgumentParser) -> None:
    command.add_argument("--source_lang", help="of a multilingual model, as it names languages, e.g. deu_Latn")
    command.add_argument("--target_lang", help="the language that it translates to, e.g. eng_Latn")
    command.add_argument(
        "--source_prefix", help="to put before each source, e.g. 'translate German to English: '; patches remember it"
    )


def _add_editor(command: argparse.ArgumentParser) -> None:
    command.add_argument("--layers", nargs="+", help="what may move, instead of the model's own choice")
    command.add_argument("--learning_rate", type=float, help="of the editor, instead of the model's own")
    command.add_argument("--max_steps", type=int, help="most steps of an edit, instead of the model's own")


def _inputs(args: argparse.Namespace) -> dict[str, str | None]:
    return {name: getattr(args, name) for name in ("source_lang", "target_lang", "source_prefix")}


def _add_edit(commands) -> None:
    command = _add(commands, "edit", _edit, "edit the model until it gives the target, and save that as a patch")
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
    command.add_argument("--requests", help='JSONL of {"source": ..., "target": ...}, in place of --source')
    command.add_argument("-o", "--output", required=True, help="new folder for the patch")
    command.add_argument("--patches", nargs="+", default=[], help="patches to apply first; the new one goes on top")
    command.add_argument("--base_model", help="hub id that the patch names as its model, if MODEL is a folder")
    _add_inputs(command)
    _add_editor(command)
    command.add_argument("--max_rounds", type=int, default=5, help="edits until decoding gives the target (default 5)")
    command.add_argument("--num_alternatives", type=int, default=32, help="translations that the target must beat")
    command.add_argument("--encoding", default="xor", help="xor (exact, the default) or bf16 (smaller, rounded)")


def _add_terms(commands) -> None:
    command = _add(commands, "terms", _terms, "edit the model until it uses the terms of a glossary")
    command.add_argument("model", help="folder or hub id")
    command.add_argument("glossary", help=".tsv of source term, target term and what that replaces; forms by |")
    command.add_argument("--corpus", required=True, help="source sentences that use the terms: .txt, .tsv or .jsonl")
    command.add_argument("-o", "--output", required=True, help="new folder for the patch, or for the patches")
    command.add_argument("--separate", action="store_true", help="one patch for each term, in place of one for all")
    _add_inputs(command)
    _add_editor(command)
    command.add_argument("--max_rounds", type=int, default=3, help="edits until checked sentences hold (default 3)")
    command.add_argument("--num_alternatives", type=int, default=16, help="translations that targets must beat")


def _add_diff(commands) -> None:
    command = _add(commands, "diff", _diff, "show what patches change over a regression set")
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


def _edit(args: argparse.Namespace) -> int:
    from editable_hf import commands

    if sum(each is not None for each in (args.source, args.image, args.requests)) != 1:
        raise ValueError("Give one of --source, --image and --requests.")
    targets = args.target or []
    if args.source is not None and len(targets) != len(args.source):
        raise ValueError(f"Give one --target for each --source, got {len(targets)} for {len(args.source)}.")
    if args.image is not None and len(targets) != 1:
        raise ValueError(f"Give one --target, the class of all images; got {len(targets)}.")
    if Path(args.output).exists():
        raise ValueError(f"{args.output} is there already; give a new folder.")
    loaded = commands.load(args.model, args.patches, _inputs(args))
    if not loaded.trained_editable:
        _note(f"Note: {args.model} was not trained to be editable; expect larger side effects.")
    _override(loaded.editor, args)
    options = {"base_model": args.base_model, "encoding": args.encoding}
    if args.image is not None:
        outcome = commands.edit_images(loaded, args.image, targets[0], **options)
    else:
        requests = args.requests or list(zip(args.source, targets, strict=True))
        outcome = commands.edit_texts(
            loaded, requests, max_rounds=args.max_rounds, num_alternatives=args.num_alternatives, **options
        )
    result = outcome.result
    found = {
        "success": result.success,
        "verified": outcome.verified,
        "num_steps": result.num_steps,
        "num_rounds": outcome.num_rounds,
        "loss_before": result.history[0],
        "loss_after": result.history[-1],
        "failure": result.failure,
        "outputs": outcome.outputs,
        "patch": None if outcome.patch is None else args.output,
        "bytes": None if outcome.patch is None else len(outcome.patch.payload),
    }
    if outcome.patch is not None:
        outcome.patch.save_pretrained(args.output)
    _print(args, found, _describe_edit(found))
    return 0 if result.success else 1


def _terms(args: argparse.Namespace) -> int:
    from editable_hf import commands
    from editable_hf.terms.command import describe_terms, patch_glossary

    if Path(args.output).exists():
        raise ValueError(f"{args.output} is there already; give a new folder.")
    loaded = commands.load(args.model, inputs=_inputs(args))
    if not loaded.model.config.is_encoder_decoder:
        raise ValueError(
            f"Expected an encoder-decoder model that translates, but {args.model} is a {type(loaded.model).__name__}; "
            "use `editable-hf edit`."
        )
    _override(loaded.editor, args)
    options = {key: getattr(args, key) for key in ("separate", "max_rounds", "num_alternatives")}
    parts = (loaded.model, loaded.processor, loaded.editor)
    found = patch_glossary(*parts, args.glossary, args.corpus, args.output, **options)
    _print(args, found, describe_terms(found))
    return 0 if found["patches"] else 1


def _override(editor, args: argparse.Namespace) -> None:
    if args.layers is not None:
        editor.layers = args.layers
    if args.max_steps is not None:
        editor.max_steps = args.max_steps
    if args.learning_rate is not None:
        editor.hyperparameters = {**editor.hyperparameters, "learning_rate": args.learning_rate}


def _describe_edit(found: dict[str, Any]) -> str:
    outputs = "\n".join(f"  {text}" for text in found["outputs"])
    if found["failure"] is not None:
        return f"The edit failed: {found['failure']}; no patch was written. Lower --learning_rate."
    if not found["success"]:
        return (
            f"l_e <= 0 not reached in {found['num_steps']} steps ({found['loss_before']:.2f} -> "
            f"{found['loss_after']:.2f}); no patch was written. Raise --max_steps or --learning_rate, or "
            "name more --layers."
        )
    if found["patch"] is None:
        return f"Nothing to edit: the target beats every alternative already. The model says:\n{outputs}"
    state = "the model now says so" if found["verified"] else "but decoding still gives something else"
    return (
        f"l_e <= 0 reached in {found['num_steps']} steps (round {found['num_rounds']}), {state}:\n{outputs}\n"
        f"Patch: {found['patch']} ({found['bytes'] / 1e6:.1f} MB)"
    )


def _diff(args: argparse.Namespace) -> int:
    from editable_hf import commands
    from editable_hf.review.page import format_html
    from editable_hf.review.review import exceeds
    from editable_hf.review.text import format_markdown, format_terminal

    patches = [commands.Patch.from_pretrained(each) for each in args.patches]
    loaded = commands.load(args.model, inputs=_inputs(args), remembered=patches)
    names = ", ".join(args.patches)
    review = commands.review(loaded, patches, args.data, base_model=args.model, patch=names)
    limit = args.max_drawdown
    above = limit is not None and exceeds(review, limit)
    for path, format_review in ((args.html, format_html), (args.markdown, format_markdown)):
        if path is not None:
            Path(path).write_text(format_review(review, max_drawdown=limit), encoding="utf-8")
    text = format_terminal(review, args.max_changes, color=sys.stdout.isatty(), max_drawdown=limit)
    _print(args, {**review.as_dict(), "above_max_drawdown": above}, text)
    return int(above)


def _apply(args: argparse.Namespace) -> int:
    from editable_hf import commands

    loaded = commands.load(args.model, args.patches)
    commands.save_model(loaded, args.output)
    carried = commands.applied_patches(loaded.model)
    _print(args, {"output": args.output, "patches": carried}, _carries(args.output, carried))
    return 0


def _revert(args: argparse.Namespace) -> int:
    from editable_hf import commands

    loaded = commands.load(args.model)
    commands.revert_patches(loaded.model, args.patches)
    commands.save_model(loaded, args.output)
    left = commands.applied_patches(loaded.model)
    _print(args, {"output": args.output, "patches": left}, _carries(args.output, left))
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from editable_hf import commands
    from editable_hf.review.text import summary

    patches = [commands.Patch.from_pretrained(each) for each in args.patches]
    found: dict[str, Any] = {}
    lines = []
    if args.data is not None:
        loaded = commands.load(args.model, inputs=_inputs(args), remembered=patches)
        review = commands.review(loaded, patches, args.data, base_model=args.model, patch=", ".join(args.patches))
        found["review"] = {key: value for key, value in review.as_dict().items() if key != "changes"}
        lines += summary(review)
    states = commands.check_patches(commands.load(args.model, patches, _inputs(args)), patches)
    found["patches"] = states
    words = {True: "yes", False: "NO", None: "-"}
    for name, state in zip(args.patches, states, strict=True):
        lines.append(f"{name}: l_e <= 0 {words[state['success']]}, verified {words[state['verified']]}")
    _print(args, found, "\n".join(lines))
    return 0


def _list(args: argparse.Namespace) -> int:
    from editable_hf import commands

    found, lines = [], []
    for name in args.names:
        try:
            one = commands.describe_patch(name)
            lines.append(
                f"{name}: patch {one['fingerprint'][:12]} for {one['base_model'] or one['model_class']}, "
                f"{one['num_steps']} steps, {one['bytes'] / 1e6:.1f} MB, verified {one['verified']}"
            )
        except ValueError:
            one = commands.describe_model(name)
            lines.append(_carries(name, one["patches"]))
        found.append(one)
    _print(args, {"found": found}, "\n".join(lines))
    return 0


def _carries(name: str, patches: Sequence[str]) -> str:
    listed = ": " + ", ".join(each[:12] for each in patches) if patches else ""
    return f"{name}: a model with {len(patches)} patch{'' if len(patches) == 1 else 'es'}{listed}"


def _push(args: argparse.Namespace) -> int:
    from editable_hf import commands

    url = commands.Patch.from_pretrained(args.patch).push_to_hub(args.repo, private=args.private)
    _print(args, {"url": url}, f"Pushed: {url}")
    return 0


def _env(args: argparse.Namespace) -> int:
    from editable_hf.versions import describe_environment, format_environment

    found = describe_environment()
    _print(args, found, format_environment(found))
    return 0


def _print(args: argparse.Namespace, found: dict[str, Any], text: str) -> None:
    print(json.dumps(found, ensure_ascii=False) if args.json else text)


def _note(text: str) -> None:
    print(text, file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        return args.run(args)
    except (ValueError, OSError) as error:
        print(f"editable-hf {args.command}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
