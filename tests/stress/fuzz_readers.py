"""Feeds damaged files to everything that reads files of strangers, and looks for other ends than a clear error.

    python tests/stress/fuzz_readers.py --minutes 10
    python tests/stress/fuzz_readers.py --readers patch payload --minutes 2 --seed 7

Readers: a translation folder, WIT3's XML, JSONL requests, edits of facts, `patch.json`, a patch's
payload (with a checksum that fits, as an attacker would see to), `editor_config.json`. hypothesis damages a valid file
and shrinks what it finds. A finding is an exception that is no ValueError or OSError of ours, more than five seconds
for one file, or a model that a refused patch has changed. Exits with 1 if there is any.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fuzz_damage import damaged, damaged_json
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from torch import nn
from tqdm.auto import tqdm
from transformers import PretrainedConfig, PreTrainedModel

from editable_hf import EditorConfig, edited
from editable_hf.core.editing import EditResult
from editable_hf.data.fact_files import read_fact_requests
from editable_hf.data.parallel_folder import read_parallel_folder
from editable_hf.data.requests import read_corrections
from editable_hf.data.wit3 import TEST_SETS, read_wit3
from editable_hf.patches import Patch, apply_patches

SECONDS = 5


class Tiny(PreTrainedModel):
    """The model whose patch is damaged."""

    config_class = PretrainedConfig

    def __init__(self, config: PretrainedConfig):
        super().__init__(config)
        self.linear = nn.Linear(6, 5)
        self.post_init()


Reader = tuple[st.SearchStrategy[bytes], Callable[[bytes], Any]]


def folder_reader(folder: Path) -> Reader:
    lines = b"ein hund bellt .\nzwei hunde bellen .\n"
    for split in ("train", "valid", "test"):
        for language in ("de", "en"):
            (folder / f"{split}.{language}").write_bytes(lines)

    def read(data: bytes) -> None:
        (folder / "train.en").write_bytes(data)
        read_parallel_folder(folder, "de", "en")

    return damaged(lines), read


def wit3_files() -> dict[str, bytes]:
    text = b"<url>http://x</url>\n<title>A title</title>\nEin Hund bellt laut.\nZwei Hunde bellen laut.\n"
    files = {f"train.tags.de-en.{language}": text for language in ("de", "en")}
    xml = b'<?xml version="1.0"?>\n<mteval>\n<doc docid="1">\n<seg id="1"> Ein Satz. </seg>\n</doc>\n</mteval>\n'
    return files | {f"IWSLT14.{name}.de-en.{language}.xml": xml for name in TEST_SETS for language in ("de", "en")}


def xml_reader(folder: Path) -> Reader:
    for name, content in wit3_files().items():
        (folder / name).write_bytes(content)
    path = folder / f"IWSLT14.{TEST_SETS[0]}.de-en.de.xml"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        read_wit3(folder)

    return damaged(path.read_bytes()), read


def requests_reader(folder: Path) -> Reader:
    path = folder / "requests.jsonl"
    lines = [{"source": "ein hund .", "target": "a dog ."}, {"source": "zwei .", "target": "two ."}]

    def read(data: bytes) -> None:
        path.write_bytes(data)
        read_corrections(path)

    return damaged("".join(json.dumps(line) + "\n" for line in lines).encode()), read


def facts_reader(folder: Path) -> Reader:
    path = folder / "facts.json"
    keys = ("subject", "src", "pred", "rephrase", "alt", "loc", "loc_ans")
    rows = [{key: f"{key} {number}" for key in keys} for number in range(2)]

    def read(data: bytes) -> None:
        path.write_bytes(data)
        read_fact_requests(path)

    return damaged(json.dumps(rows).encode()), read


def patch_files(folder: Path) -> Tiny:
    torch.manual_seed(0)
    model = Tiny(PretrainedConfig())
    params = {name: p.detach() + 0.01 for name, p in model.named_parameters()}
    result = EditResult(params, True, 1, torch.tensor(-0.1), [1.0, -0.1])
    request = {"source": "ein hund", "target": "a dog", "alternatives": [[1, 2], [3]]}
    Patch.from_edit(model, result, request=request, editor=EditorConfig(), layers="*").save_pretrained(folder)
    return model


def applied(model: Tiny, folder: Path) -> None:
    """Reads and applies the patch; where that is refused, the model must be as it was."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with edited(model, before):  # puts the weights back where a patch that is still whole was applied
        try:
            apply_patches(model, Patch.from_pretrained(folder))
        except Exception:
            assert all(torch.equal(p, before[name]) for name, p in model.named_parameters()), "the model was changed"
            raise
    model.config = PretrainedConfig()
    vars(model).pop("_held_patches", None)


def refingerprinted(data: bytes) -> bytes:
    """`patch.json` with the fingerprint of what it says, as an attacker would see to."""
    try:
        content = json.loads(data)
        named = json.dumps([1, content["encoding"], content["parent"], content["tensors"]], sort_keys=True)
    except (ValueError, KeyError, TypeError, RecursionError):
        return data
    return json.dumps({**content, "fingerprint": hashlib.sha256(named.encode()).hexdigest()}).encode()


def patch_reader(folder: Path) -> Reader:
    model = patch_files(folder)

    def read(data: bytes) -> None:
        (folder / "patch.json").write_bytes(data)
        applied(model, folder)

    strategy = damaged_json((folder / "patch.json").read_bytes())
    return strategy | strategy.map(refingerprinted), read


def payload_reader(folder: Path) -> Reader:
    model = patch_files(folder)
    content, path = json.loads((folder / "patch.json").read_text()), folder / "patch.safetensors"

    def read(data: bytes) -> None:
        content["payload"] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        (folder / "patch.json").write_text(json.dumps(content))
        path.write_bytes(data)
        applied(model, folder)

    payload = path.read_bytes()
    end = 8 + int.from_bytes(payload[:8], "little")

    def with_header(header: bytes) -> bytes:
        return len(header).to_bytes(8, "little") + header + payload[end:]

    def with_dtype(header: bytes, dtype: str) -> bytes:
        return with_header(header.replace(b'"U8"', f'"{dtype}"'.encode()))

    other = st.builds(with_dtype, st.just(payload[8:end]), st.sampled_from(["I8", "BOOL", "F8_E4M3", "U16", "F32"]))
    return damaged(payload) | damaged_json(payload[8:end]).map(with_header) | other, read


def editor_reader(folder: Path) -> Reader:
    EditorConfig(learned={"raw_learning_rate": -6.9}).save_pretrained(folder)
    path = folder / "editor_config.json"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        config = EditorConfig.from_pretrained(folder)
        if config is not None:
            config.build_editor()

    return damaged_json(path.read_bytes()), read


READERS: dict[str, Callable[[Path], Reader]] = {
    "folder": folder_reader,
    "xml": xml_reader,
    "requests": requests_reader,
    "facts": facts_reader,
    "patch": patch_reader,
    "payload": payload_reader,
    "editor_config": editor_reader,
}


def too_slow(*_: Any) -> None:
    raise TimeoutError(f"more than {SECONDS} s for one file")


def fuzz(name: str, seconds: float, first_seed: int) -> tuple[Counter[str], list[str]]:
    """How the reader ended, and how often; and the findings."""
    ends, findings, deadline = Counter(), [], time.monotonic() + seconds
    signal.signal(signal.SIGALRM, too_slow)
    with tempfile.TemporaryDirectory() as folder, tqdm(desc=name, unit="file") as bar:
        strategy, read = READERS[name](Path(folder))

        def one(data: bytes) -> None:
            bar.update()
            signal.alarm(SECONDS)
            try:
                read(data)
                ends["read"] += 1
            except TimeoutError:
                raise
            except (ValueError, OSError) as error:
                # Those two say where in the file, but not in which file or what to do.
                assert type(error) not in (UnicodeDecodeError, json.JSONDecodeError) and str(error).strip(), repr(
                    error
                )
                ends[type(error).__name__] += 1
            finally:
                signal.alarm(0)

        number = first_seed
        while time.monotonic() < deadline or number == first_seed:
            options = {
                "max_examples": 300,
                "deadline": None,
                "database": None,
                "phases": [Phase.generate, Phase.shrink],
            }
            checks = list(HealthCheck)
            try:
                seed(number)(settings(**options, suppress_health_check=checks)(given(strategy)(one)))()
            except Exception:
                findings.append(f"{name}, seed {number}:\n{traceback.format_exc()}")
                if len(findings) == 10:
                    break
            number += 1
    return ends, findings


def main(args: argparse.Namespace) -> int:
    found = []
    for name in args.readers:
        start = time.monotonic()
        ends, findings = fuzz(name, 60 * args.minutes, args.seed)
        seconds, found = time.monotonic() - start, found + findings
        how = ", ".join(f"{kind} {count:,}" for kind, count in ends.most_common())
        print(
            f"{name:<14} {sum(ends.values()):>9,} files in {seconds / 60:.1f} min, {len(findings)} findings: {how}",
            flush=True,
        )
    print("\n".join(found))
    return 1 if found else 0


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--readers", nargs="+", choices=list(READERS), default=list(READERS), help="all if none is named"
    )
    parser.add_argument("--minutes", type=float, default=1.0, help="for each reader; at least 300 files are tried")
    parser.add_argument("--seed", type=int, default=0, help="of the damage")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main(parse_args()))
