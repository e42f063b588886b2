"""Writes the corpus that the package ships, `editable_hf/data/embedded_corpus/`, anew.

    pip install -r scripts/embedded_corpus/requirements.txt
    python scripts/embedded_corpus/generate.py

The same releases of babel and num2words give the same files.
"""

from __future__ import annotations

import itertools
import json
import lzma
from pathlib import Path

from corpus import generate_pairs
from corrections import generate_requests

FOLDER = Path(__file__).resolve().parents[2] / "editable_hf/data/embedded_corpus"
NUM_PAIRS, NUM_REQUESTS = 21_500, 400


def pairs_text() -> str:
    """A line for each pair: source, target and template, with tabs between."""
    pairs = itertools.islice(generate_pairs(seed=0), NUM_PAIRS)
    return "".join(f"{pair['source']}\t{pair['target']}\t{pair['template']}\n" for pair in pairs)


def requests_text() -> str:
    """A JSON object for each request."""
    requests = generate_requests(NUM_REQUESTS, seed=0)
    return "".join(json.dumps(request, ensure_ascii=False) + "\n" for request in requests)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, text in (("pairs.tsv.xz", pairs_text()), ("requests.jsonl.xz", requests_text())):
        content = lzma.compress(text.encode(), preset=9)
        FOLDER.joinpath(name).write_bytes(content)
        print(f"{FOLDER / name}: {text.count(chr(10)):,} lines, {len(content):,} bytes")


if __name__ == "__main__":
    main()
