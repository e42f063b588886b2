"""Kills recipes at random moments and compares what they end with to undisturbed runs.

    python tests/stress/interrupt_recipes.py --recipes iwslt_de_en cifar10 --kills 20 --output_dir runs/interruptions

Each recipe (its demo configuration with `--smoke`) runs once undisturbed. Then it runs in another folder, and the
whole process group gets SIGKILL at a moment drawn uniformly from the measured duration, again and again; both count
from the first stage on, as nothing happens before. A run that finishes first is compared, and the next one starts in a
new folder, until there were so many kills and the last run is finished. Compared bit for bit are all JSON and JSONL
files and all weights outside of training's checkpoints, but for what depends on the clock or the place: the keys in
`UNCOMPARED`, and the output folder's own name. A finished stage must never be touched again. Prints a table, writes
interruptions.json, and ends with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from editable_hf.experiments.report import format_table, write_results

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
CONFIGS = {
    recipe: f"{recipe}/demo.yaml"
    for recipe in ("iwslt_de_en", "cifar10", "imagenet", "natural_adversarial", "compare_editors", "facts", "terms")
}
# Times; the mean loss of `Trainer`, which sums since the last start only; what `datasets` makes of a cache's path.
UNCOMPARED = {"edit_seconds", "train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss"}
UNCOMPARED |= {"_fingerprint"}
_STAGE = re.compile(r"^\[.+\] (starts|continues|already there)", re.MULTILINE)
COLUMNS = {
    "name": ("", "{}"),
    "seconds": ("undisturbed, s", "{:.0f}"),
    "kills": ("kills", "{}"),
    "runs": ("finished runs", "{}"),
    "files": ("files compared", "{}"),
    "different": ("different", "{}"),
    "repeated": ("finished stages touched", "{}"),
}


def run(recipe: str, folder: Path, limit: float | None = None) -> tuple[str, float] | None:
    """Starts a recipe and kills it `limit` seconds after its first stage began.

    Returns:
        Its output, and the seconds from its first stage on; `None` if it was killed.
    """
    command = [sys.executable, "-u", str(RECIPES / f"{recipe}.py"), "--smoke", "--output_dir", str(folder)]
    command += ["--config", str(RECIPES / "configs" / CONFIGS[recipe])]
    log = folder.with_suffix(".log")
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            while process.poll() is None and not _STAGE.search(log.read_text(encoding="utf-8", errors="replace")):
                time.sleep(0.01)
            start = time.perf_counter()
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    output = log.read_text(encoding="utf-8")
    if code != 0:
        raise SystemExit(f"{' '.join(command)} ended with {code}:\n{output[-3000:]}")
    return output, time.perf_counter() - start


def finished_stages(folder: Path) -> dict[str, list[int]]:
    """Inode of every finished stage's folder, and when its weights or its description were written."""
    paths = [path.parent for path in folder.glob("*/stage.json") if path.parent.suffix != ".partial"]
    files = {path: [path / "stage.json", *path.glob("*.safetensors")] for path in paths}
    return {
        path.name: [path.stat().st_ino, *(each.stat().st_mtime_ns for each in files[path])] for path in sorted(paths)
    }


def contents(folder: Path) -> dict[str, Any]:
    """What is compared, by the file's place in `folder`."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if "checkpoints" in path.parts:
            continue
        if path.suffix == ".safetensors":
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.suffix in (".json", ".jsonl"):
            text = path.read_text(encoding="utf-8").replace(str(folder), "FOLDER")
            parts = text.splitlines() if path.suffix == ".jsonl" else [text]
            found[str(path.relative_to(folder))] = [_timeless(json.loads(part)) for part in parts]
    return found


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(each) for key, each in value.items() if key not in UNCOMPARED}
    return [_timeless(each) for each in value] if isinstance(value, list) else value


def interrupt(recipe: str, kills: int, seed: int, output: Path) -> dict[str, Any]:
    """The row of one recipe."""
    generator = random.Random(f"{recipe} {seed}")
    _, seconds = run(recipe, output / f"{recipe}-whole")
    expected, moments, different, repeated, runs = contents(output / f"{recipe}-whole"), [], [], [], 0
    finished = False
    while len(moments) < kills or not finished:
        folder = output / f"{recipe}-killed{runs}"
        before = finished_stages(folder)
        limit = generator.uniform(0, seconds) if len(moments) < kills else None
        finished = run(recipe, folder, limit) is not None
        after = finished_stages(folder)
        repeated += [f"{folder.name}/{name}" for name, state in before.items() if after.get(name) != state]
        if not finished:
            stage = next((path.stem for path in folder.glob("*.partial")), "none")
            moments.append({"seconds": limit, "stage": stage, "finished": len(after)})
            print(f"{recipe}: kill {len(moments)} of {kills} after {limit:.1f} s, at {stage}", flush=True)
            continue
        found = contents(folder)
        names = sorted({*expected, *found})
        different += [f"{folder.name}/{name}" for name in names if expected.get(name) != found.get(name)]
        runs += 1
    again, _ = run(recipe, folder)
    repeated += [line for line in again.splitlines() if line.endswith(("] starts", "] continues"))]
    print(f"{recipe}: killed at {dict(Counter(moment['stage'] for moment in moments))}", flush=True)
    row = {"name": recipe, "seconds": seconds, "kills": len(moments), "runs": runs, "files": len(expected)}
    row |= {"different": len(different), "repeated": len(repeated)}
    return {**row, "different_files": different, "repeated_stages": repeated, "moments": moments}


def main(args: argparse.Namespace) -> None:
    output = Path(args.output_dir).resolve()
    if output.exists() and any(output.iterdir()):
        raise SystemExit(f"Expected an empty --output_dir for the runs, but {output} holds files; give another one.")
    output.mkdir(parents=True, exist_ok=True)
    rows = []
    for recipe in args.recipes:
        rows.append(interrupt(recipe, args.kills, args.seed, output))
        write_results(output / "interruptions.json", rows, vars(args), args.seed, uncompared=sorted(UNCOMPARED))
    print(f"\n{format_table(rows, COLUMNS)}\n\nResults: {output / 'interruptions.json'}")
    if any(row["different"] or row["repeated"] for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--recipes", nargs="+", choices=list(CONFIGS), default=list(CONFIGS), help="which; all if none"
    )
    parser.add_argument("--kills", type=int, default=20, help="of each recipe")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--output_dir", default="runs/interruptions", help="new folder for the runs and their logs")
    main(parser.parse_args())
