"""Takes the results of a finished run into results/, for the page that `make results` writes.

    python scripts/collect_result.py runs/multi30k/evaluation/results.json --name table_6-multi30k-seed0 \
        --command "recipes/iwslt_de_en.py --config recipes/configs/iwslt_de_en/multi30k.yaml --data MULTI30K"

The file keeps rows, configuration, seed, versions, commit and machine. Paths of the machine are cut to their last
part; weights and data are never in a results file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path, PurePath
from typing import Any

from editable_hf.data.atomic import write_atomically

NEEDED = ("rows", "config", "seed", "versions", "commit", "machine")


def without_paths(value: Any) -> Any:
    """`value` with every absolute path in it cut to its last part."""
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    return PurePath(value).name if isinstance(value, str) and PurePath(value).is_absolute() else value


def collect(path: Path, name: str, command: str, note: str | None, folder: Path) -> Path:
    """Writes `folder/name.json`, with a `note` on how it came about where the command alone does not say it.

    Raises:
        ValueError: If `path` is no results file, or was written by a checkout with changes that no commit has.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    missing = [key for key in NEEDED if key not in content]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}: give the results file of a recipe or a script.")
    if content["commit"] is None or content["commit"].endswith("-dirty"):
        raise ValueError(
            f"{path} is of commit {content['commit']}, which nobody can check out: measure with a clean checkout."
        )
    folder.mkdir(exist_ok=True)
    target = folder / f"{name}.json"
    made_by = {"command": command} if note is None else {"command": command, "note": note}
    text = json.dumps({**made_by, **without_paths(content)}, indent=1, ensure_ascii=False)
    write_atomically(target, text + "\n")
    return target


def main(args: argparse.Namespace) -> None:
    try:
        print(f"Written: {collect(Path(args.results), args.name, args.command, args.note, Path(args.folder))}")
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", help="results.json of a run")
    parser.add_argument("--name", required=True, help="name in results/; the page finds its table by how it begins")
    parser.add_argument("--command", required=True, help="what made it, with capitals for what a user has elsewhere")
    parser.add_argument("--note", help="what else a reader must know: interruptions, parts of other commits")
    parser.add_argument("--folder", default="results", help="where to put it")
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_args())
