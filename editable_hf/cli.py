"""The command `editable-hf`: edit, review, apply, take back and share."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from editable_hf.cli_options import build_parser


def _inputs(args: argparse.Namespace) -> dict[str, str | None]:
    inputs = {name: getattr(args, name) for name in ("source_lang", "target_lang", "source_prefix")}
    return {**inputs, "chat": "user" if args.chat else None}


def _check_new(output: str) -> None:
    if Path(output).exists():
        raise ValueError(f"{output} is there already; give a new folder.")


def _edit(args: argparse.Namespace) -> int:
    from editable_hf import commands

    if sum(each is not None for each in (args.source, args.image, args.requests)) != 1:
        raise ValueError("Give one of --source, --image and --requests.")
    targets = args.target or []
    if args.source is not None and len(targets) != len(args.source):
        raise ValueError(f"Give one --target for each --source, got {len(targets)} for {len(args.source)}.")
    if args.image is not None and len(targets) != 1:
        raise ValueError(f"Give one --target, the class of all images; got {len(targets)}.")
    _check_new(args.output)
    loaded = commands.load(args.model, args.patches, _inputs(args))
    if not loaded.trained_editable:
        print(f"Note: {args.model} was not trained to be editable; expect larger side effects.", file=sys.stderr)
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
    report = {
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
    _print(args, report, _describe_edit(report))
    return 0 if result.success else 1


def _terms(args: argparse.Namespace) -> int:
    from editable_hf import commands
    from editable_hf.terms.command import describe_terms, patch_glossary

    _check_new(args.output)
    loaded = commands.load(args.model, inputs=_inputs(args))
    commands.check_translates(loaded, args.model)
    _override(loaded.editor, args)
    options = {key: getattr(args, key) for key in ("separate", "max_rounds", "num_alternatives")}
    parts = (loaded.model, loaded.processor, loaded.editor)
    options["languages"] = args.glossary_languages
    report = patch_glossary(*parts, args.glossary, args.corpus, args.output, **options)
    _print(args, report, describe_terms(report))
    return 0 if report["patches"] else 1


def _override(editor, args: argparse.Namespace) -> None:
    if args.layers is not None:
        editor.layers = args.layers
    if args.max_steps is not None:
        editor.max_steps = args.max_steps
    if args.learning_rate is not None:
        editor.hyperparameters = {**editor.hyperparameters, "learning_rate": args.learning_rate}


def _describe_edit(report: dict[str, Any]) -> str:
    outputs = "\n".join(f"  {text}" for text in report["outputs"])
    if report["failure"] is not None:
        return f"The edit failed: {report['failure']}; no patch was written. Lower --learning_rate."
    if not report["success"]:
        return (
            f"l_e <= 0 not reached in {report['num_steps']} steps ({report['loss_before']:.2f} -> "
            f"{report['loss_after']:.2f}); no patch was written. Raise --max_steps or --learning_rate, or "
            "name more --layers."
        )
    if report["patch"] is None:
        return f"Nothing to edit: the target beats every alternative already. The model says:\n{outputs}"
    state = "the model now says so" if report["verified"] else "but decoding still gives something else"
    return (
        f"l_e <= 0 reached in {report['num_steps']} steps (round {report['num_rounds']}), {state}:\n{outputs}\n"
        f"Patch: {report['patch']} ({report['bytes'] / 1e6:.1f} MB)"
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

    bounds = {"max_kl": args.max_kl, "max_perplexity": args.max_perplexity}
    if (args.health is not None) != any(bound is not None for bound in bounds.values()):
        raise ValueError("Give --health together with --max_kl or --max_perplexity, or none of them.")
    if args.health is not None:
        report = commands.health(commands.load(args.model), args.patches, args.health, **bounds)
        if not report["healthy"]:
            _print(args, report, _describe_harm(args, report["states"]))
            return 1
    loaded = commands.load(args.model, args.patches)
    commands.save_model(loaded, args.output)
    carried = commands.applied_patches(loaded.model)
    _print(args, {"output": args.output, "patches": carried}, _carries(args.output, carried))
    return 0


def _describe_harm(args: argparse.Namespace, states: Sequence[dict[str, Any]]) -> str:
    number = states[-1]["num_patches"]
    lines = [
        f"{each['num_patches']} patches: KL {each['kl']:.3g}, perplexity {each['perplexity']:.2f}" for each in states
    ]
    name = args.patches[number - 1]
    return "\n".join(
        [*lines, f"{name}, number {number} of {len(args.patches)}, leaves the bound: nothing was written."]
    )


def _squash(args: argparse.Namespace) -> int:
    from editable_hf import commands
    from editable_hf.patches.squash import squash_patches

    _check_new(args.output)
    patch = squash_patches(commands.load(args.model).model, args.patches, encoding=args.encoding)
    patch.save_pretrained(args.output)
    report = {
        "patch": args.output,
        "success": patch.success,
        "bytes": len(patch.payload),
        "requests": len(patch.request),
    }
    holds = "all that they are for holds" if patch.success else "NOT all that they are for holds together"
    text = f"{len(args.patches)} patches in one, {args.output} ({report['bytes'] / 1e6:.1f} MB): {holds}"
    _print(args, report, text)
    return 0


def _revert(args: argparse.Namespace) -> int:
    from editable_hf import commands
    from editable_hf.patches.stack import revert_patches

    loaded = commands.load(args.model)
    revert_patches(loaded.model, args.patches)
    commands.save_model(loaded, args.output)
    left = commands.applied_patches(loaded.model)
    _print(args, {"output": args.output, "patches": left}, _carries(args.output, left))
    return 0


def _export(args: argparse.Namespace) -> int:
    from editable_hf import commands
    from editable_hf.export import command

    _check_new(args.output)
    others = ("data", "quantization") if args.to == "lora" else ("rank",)
    if given := [f"--{name}" for name in others if getattr(args, name) is not None]:
        raise ValueError(f"{' and '.join(given)} cannot be used with --to {args.to}; leave it out.")
    patches = [commands.Patch.from_pretrained(each) for each in args.patches]
    if args.to == "lora":
        if not patches:
            raise ValueError("Give the --patches that the adapter is to hold, and as MODEL the model without them.")
        loaded = commands.load(args.model, inputs=_inputs(args), remembered=patches)
        report = command.export_lora(loaded, patches, args.output, args.model, args.rank)
        _print(args, report, command.describe_lora(report))
    else:
        loaded = commands.load(args.model, patches, _inputs(args))
        commands.check_translates(loaded, args.model)
        report = command.export_ctranslate2(loaded, args.output, data=args.data, quantization=args.quantization)
        _print(args, report, command.describe_ctranslate2(report))
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from editable_hf import commands
    from editable_hf.review.text import summary

    patches = [commands.Patch.from_pretrained(each) for each in args.patches]
    report: dict[str, Any] = {}
    lines = []
    if args.data is not None:
        loaded = commands.load(args.model, inputs=_inputs(args), remembered=patches)
        review = commands.review(loaded, patches, args.data, base_model=args.model, patch=", ".join(args.patches))
        report["review"] = {key: value for key, value in review.as_dict().items() if key != "changes"}
        lines += summary(review)
    states = commands.check_patches(commands.load(args.model, patches, _inputs(args)), patches)
    report["patches"] = states
    words = {True: "yes", False: "NO", None: "-"}
    for name, state in zip(args.patches, states, strict=True):
        lines.append(f"{name}: l_e <= 0 {words[state['success']]}, verified {words[state['verified']]}")
    _print(args, report, "\n".join(lines))
    return 0


def _list(args: argparse.Namespace) -> int:
    from editable_hf import commands

    report, lines = [], []
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
        report.append(one)
    _print(args, {"found": report}, "\n".join(lines))
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

    report = describe_environment()
    _print(args, report, format_environment(report))
    return 0


def _print(args: argparse.Namespace, report: dict[str, Any], text: str) -> None:
    print(json.dumps(report, ensure_ascii=False) if args.json else text)


_COMMANDS = {
    "edit": _edit,
    "terms": _terms,
    "diff": _diff,
    "apply": _apply,
    "revert": _revert,
    "squash": _squash,
    "export": _export,
    "evaluate": _evaluate,
    "list": _list,
    "push": _push,
    "env": _env,
}


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        return _COMMANDS[args.command](args)
    except (ValueError, OSError, ImportError) as error:
        print(f"editable-hf {args.command}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
