import os

os.environ["HF_HUB_OFFLINE"] = "1"
# Two workers share the cores with the processes that they start: threads that wait must not spin.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import copy
import io
import logging
import runpy
import subprocess
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from tiny_models import marian_config
from transformers import MarianMTModel

torch.set_num_threads(1)

REPOSITORY = Path(__file__).parents[1]

settings.register_profile("tests", max_examples=20, deadline=None, derandomize=True, database=None)
settings.load_profile("tests")


class DeprecationRecords(logging.Handler):
    """What a library logs, not warns, about calls that a later release will not take."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages = []

    def emit(self, record):
        if "deprecat" in record.getMessage().lower():
            self.messages.append(record.getMessage())


@pytest.fixture(autouse=True)
def no_deprecation_is_logged():
    records, libraries = DeprecationRecords(), [logging.getLogger(name) for name in ("transformers", "accelerate")]
    for library in libraries:
        library.addHandler(records)
    yield
    for library in libraries:
        library.removeHandler(records)
    assert not records.messages


@pytest.fixture(autouse=True)
def one_thread():
    """Recipes choose a number of threads for their process, which here runs the other tests, too."""
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def marian_template():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MarianMTModel(marian_config())


@pytest.fixture
def tiny_marian(marian_template):
    """A two-layer Marian in float32 and train mode, one's own copy: vocabulary 40, pad 1, eos 2, start 1."""
    return copy.deepcopy(marian_template)


def _made_up_pairs(count):
    # Word for word, with the verb at the end on one side, so that a small model learns most of it in seconds.
    people = [
        ("der hund", "the dog"),
        ("die katze", "the cat"),
        ("mein bruder", "my brother"),
        ("die frau", "the woman"),
    ]
    things = [("das haus", "the house"), ("ein buch", "a book"), ("den zug", "the train"), ("die stadt", "the city")]
    manners = [("heute", "today"), ("nie", "never"), ("schnell", "quickly"), ("gern", "gladly"), ("", "")]
    verbs = [("sieht", "sees"), ("findet", "finds"), ("sucht", "seeks"), ("malt", "paints"), ("kauft", "buys")]
    pairs = {}
    number = 0
    while len(pairs) < count:
        number = (number * 1103515245 + 12345) % 2**31
        choice = number >> 8
        words = []
        for options in (people, things, manners, verbs):
            choice, index = divmod(choice, len(options))
            words.append(options[index])
        person, thing, manner, verb = words
        source = " ".join(word for word in (person[0], thing[0], manner[0], verb[0], ".") if word)
        target = " ".join(word for word in (person[1], manner[1], verb[1], thing[1], ".") if word)
        pairs[source] = target
    return list(pairs), list(pairs.values())


@pytest.fixture(scope="session")
def sentence_pairs():
    """200 distinct made-up sentences and their translations, Moses-tokenized and lower-cased."""
    return _made_up_pairs(200)


@pytest.fixture(scope="session")
def tokenizer(sentence_pairs):
    from editable_hf.data.tokenizer import train_tokenizer

    sources, targets = sentence_pairs
    return train_tokenizer([*sources, *targets], vocab_size=100, max_length=40)


@pytest.fixture(scope="session")
def encoded_pairs(sentence_pairs, tokenizer):
    """The pairs as a dataset with columns `input_ids`, `attention_mask`, `labels`."""
    from datasets import Dataset

    sources, targets = sentence_pairs
    return Dataset.from_dict(dict(tokenizer(sources, text_target=targets)))


@pytest.fixture(scope="session")
def translator_template(tokenizer, encoded_pairs):
    from transformers import DataCollatorForSeq2Seq

    from editable_hf.models import iwslt_transformer_config

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MarianMTModel(iwslt_transformer_config(tokenizer, "tiny", dropout=0.0, max_length=40))
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        collate = DataCollatorForSeq2Seq(tokenizer, model=model)
        rows = encoded_pairs.to_list()
        for step in range(80):
            batch = collate([rows[(20 * step + offset) % len(rows)] for offset in range(20)])
            model(**batch, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.eval()


@pytest.fixture
def trained_marian(translator_template):
    """A Marian in float64 that has half learned to translate `sentence_pairs`, one's own copy, in eval mode."""
    return copy.deepcopy(translator_template).double()


@pytest.fixture
def translator_folder(trained_marian, tokenizer, tmp_path):
    """`trained_marian` and its tokenizer as saved: in float32, decoding with three beams."""
    folder = tmp_path / "model"
    trained_marian.generation_config.update(num_beams=3, early_stopping=True, max_new_tokens=30)
    trained_marian.float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def start_script():
    """Runs a script, named from the top of the repository, on one thread, in a process of its own."""

    def start(script, *options):
        return subprocess.run(
            [sys.executable, str(REPOSITORY / script), *map(str, options)],
            capture_output=True,
            text=True,
            timeout=500,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    return start


@pytest.fixture
def run_script(monkeypatch):
    """Runs a script, named from the top of the repository, in this process, which has imported everything before."""

    def run(script, *options):
        monkeypatch.setattr(sys, "argv", [script, *map(str, options)])
        code, stdout, stderr = 0, io.StringIO(), io.StringIO()
        with redirect_stdout(stdout), redirect_stderr(stderr):
            try:
                runpy.run_path(str(REPOSITORY / script), run_name="__main__")
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
                stderr.write("" if isinstance(ended.code, int) else f"{ended.code}")
            except Exception:
                code = 1
                traceback.print_exc()
        return subprocess.CompletedProcess(sys.argv, code, stdout.getvalue(), stderr.getvalue())

    return run


@pytest.fixture
def corpus(sentence_pairs, tmp_path):
    """A folder in fairseq's layout: 20 pairs to train with, 10 to validate, 30 to test."""
    folder = tmp_path / "data"
    folder.mkdir()
    for split, part in (("train", slice(0, 20)), ("valid", slice(20, 30)), ("test", slice(30, 60))):
        for language, sentences in zip(("de", "en"), sentence_pairs, strict=True):
            (folder / f"{split}.{language}").write_text("".join(f"{text}\n" for text in sentences[part]))
    return folder
