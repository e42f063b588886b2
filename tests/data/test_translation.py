import gzip
import lzma
import os
import random
import types
from pathlib import Path

import datasets
import pytest

import editable_hf.data.hub_pairs as hub_pairs
from editable_hf.data.translation import load_translation_data

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
DE = ["wir sind geboren .", "ja , gut !", "nein , nicht so schnell ."]
EN = ["we &apos;re born .", "yes , good !", "no , not so fast ."]


def write_folder(folder, stems=("train", "valid", "test"), de=DE, en=EN):
    folder.mkdir(exist_ok=True)
    for stem in stems:
        (folder / f"{stem}.de").write_text("".join(f"{line}\n" for line in de), encoding="utf-8", newline="\n")
        (folder / f"{stem}.en").write_text("".join(f"{line}\n" for line in en), encoding="utf-8", newline="\n")
    return folder


def columns(split):
    return [list(split[name]) for name in ("source", "target", "target_text")]


def test_tokenized_folder_passes_unchanged(tmp_path):
    data = load_translation_data(str(write_folder(tmp_path / "mini")))
    assert sorted(data.splits) == ["test", "train", "validation"]
    for split in data.splits.values():
        assert columns(split) == [DE, EN, ["we're born.", "yes, good!", "no, not so fast."]]
    assert data.name == "De-En, folder mini"
    assert data.test_name == "test of the folder mini (3 pairs)"


def test_raw_references_beside_the_tokens_are_used(tmp_path):
    raw = ["We're born.", "Yes, good!", "No, not so fast."]
    write_folder(tmp_path)
    with lzma.open(tmp_path / "test.raw.en.xz", "wt", encoding="utf-8") as file:
        file.write("\n".join(raw) + "\n")
    splits = load_translation_data(str(tmp_path)).splits
    assert list(splits["test"]["target_text"]) == raw
    assert splits["validation"]["target_text"][0] == "we're born."


def test_raw_folder_is_tokenized_and_keeps_its_text(tmp_path):
    folder = write_folder(
        tmp_path / "m", ("train", "val", "test_2016_flickr", "test_2017_flickr"), ["Zwei Männer."], ["It's two men."]
    )
    data = load_translation_data(str(folder))
    assert columns(data.splits["train"]) == [["zwei männer ."], ["it &apos;s two men ."], ["It's two men."]]
    assert data.test_name == "test_2016_flickr of the folder m (1 pairs)"


def test_declared_form_overrules_the_look_of_the_text(tmp_path):
    folder = str(write_folder(tmp_path, de=["So."], en=["It's so."]))
    assert load_translation_data(folder, tokenized=True).splits["train"]["target"][0] == "it's so."
    folder = str(write_folder(tmp_path, de=["so ."], en=["it &apos;s ."]))
    assert load_translation_data(folder, tokenized=False).splits["train"]["target"][0] == "it &amp; apos ; s ."


def test_compressed_files_and_direction(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "train.de.gz").write_bytes(gzip.compress((tmp_path / "train.de").read_bytes()))
    # Two streams in one file, as `cat a.xz b.xz` makes it.
    lines = (tmp_path / "train.en").read_bytes().splitlines(keepends=True)
    (tmp_path / "train.en.xz").write_bytes(lzma.compress(lines[0]) + lzma.compress(b"".join(lines[1:])))
    (tmp_path / "train.de").unlink()
    (tmp_path / "train.en").unlink()
    splits = load_translation_data(str(tmp_path), source_lang="en", target_lang="de").splits
    assert columns(splits["train"])[:2] == [EN, DE]


def test_only_line_feeds_end_a_line(tmp_path):
    odd = ["eins\u2028zwei , drei .", "vier\x85 , \x0c fünf .", "sechs , sieben ."]
    write_folder(tmp_path, de=odd)
    (tmp_path / "valid.de").write_bytes("\ufeff".encode() + "\r\n".join(odd).encode())
    splits = load_translation_data(str(tmp_path)).splits
    assert list(splits["train"]["source"]) == odd
    assert list(splits["validation"]["source"]) == odd


def test_limits_take_a_reproducible_sample_in_order(tmp_path):
    folder = str(
        write_folder(tmp_path / "f", de=[f"satz {n} ." for n in range(50)], en=[f"no {n} ." for n in range(50)])
    )
    data = load_translation_data(folder, max_train_samples=10, max_validation_samples=60, max_test_samples=20, seed=3)
    expected = sorted(random.Random(3).sample(range(50), 10))
    assert list(data.splits["train"]["source"]) == [f"satz {n} ." for n in expected]
    assert list(data.splits["train"]["target"]) == [f"no {n} ." for n in expected]
    assert len(data.splits["validation"]) == 50
    assert data.test_name == "test of the folder f (20 sampled of 50 pairs)"


def test_split_names_choose(tmp_path):
    folder = str(write_folder(tmp_path, ("train", "train_subset", "valid", "heldout")))
    names = {"train": "train_subset", "test": "heldout"}
    assert load_translation_data(folder, split_names=names).test_name.startswith("heldout of")
    with pytest.raises(ValueError, match=r"Expected one train split .* train and train_subset are there"):
        load_translation_data(folder)
    with pytest.raises(FileNotFoundError, match=r"the test split .* under the name test or .* it has heldout, train"):
        load_translation_data(folder, split_names={"train": "train"})
    with pytest.raises(ValueError, match=r"`split_names` has the keys \['dev'\]"):
        load_translation_data(folder, split_names={"dev": "valid"})


def test_files_of_fairseqs_tmp_folder_are_no_obstacle(tmp_path):
    write_folder(tmp_path, ("train", "valid", "test", "train.tags.de-en", "train.tags.de-en.tok", "test.raw"))
    assert len(load_translation_data(str(tmp_path)).splits["train"]) == 3


def test_misaligned_files_are_an_error(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "valid.en").write_text("one .\n")
    with pytest.raises(ValueError, match=r"valid\.de has 3 lines and .*valid\.en has 1"):
        load_translation_data(str(tmp_path))


def test_misaligned_raw_references_are_an_error(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "test.raw.en").write_text("One.\n")
    with pytest.raises(ValueError, match=r"test\.en has 3 lines and .*test\.raw\.en has 1"):
        load_translation_data(str(tmp_path))


def test_empty_side_is_an_error(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "train.en").write_text("one .\n \nthree .\n")
    with pytest.raises(ValueError, match=r"line 2 of .*train\.en is empty"):
        load_translation_data(str(tmp_path))


def test_empty_files_are_an_error(tmp_path):
    write_folder(tmp_path, de=[], en=[])
    with pytest.raises(ValueError, match=r"train\.de, but it is empty"):
        load_translation_data(str(tmp_path))


def test_bad_utf8_is_an_error(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "test.de").write_bytes(b"eins .\nf\xfcnf .\ndrei .\n")
    with pytest.raises(ValueError, match=r"test\.de to be UTF-8, but line 2 has the byte 0xfc"):
        load_translation_data(str(tmp_path))


@pytest.mark.parametrize(("ending", "compress"), [(".gz", gzip.compress), (".xz", lzma.compress)])
@pytest.mark.parametrize("damage", [lambda data: data[:-6], lambda data: b"text" + data])
def test_damaged_compressed_file_is_an_error(tmp_path, ending, compress, damage):
    write_folder(tmp_path)
    data = (tmp_path / "train.de").read_bytes()
    (tmp_path / "train.de").unlink()
    (tmp_path / f"train.de{ending}").write_bytes(damage(compress(data)))
    with pytest.raises(ValueError, match=rf"train\.de\{ending} to be a whole \{ending} file"):
        load_translation_data(str(tmp_path))


def test_missing_language_is_an_error(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "valid.en").unlink()
    with pytest.raises(FileNotFoundError, match=r"Expected valid\.en .* only the other language"):
        load_translation_data(str(tmp_path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes need a POSIX system")
def test_only_ordinary_files_are_read(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "valid.en").unlink()
    os.mkfifo(tmp_path / "valid.en")
    with pytest.raises(FileNotFoundError, match=r"Expected valid\.en"):
        load_translation_data(str(tmp_path))


def test_subword_units_are_an_error(tmp_path):
    write_folder(tmp_path, de=["ge@@ bo@@ ren .", "ja , g@@ ut !", "so ."])
    with pytest.raises(ValueError, match=r"whole words in .*train\.de, but it is cut into subword units"):
        load_translation_data(str(tmp_path))


def test_mixed_forms_are_an_error(tmp_path):
    write_folder(tmp_path, ("train", "valid"))
    write_folder(tmp_path, ("test",), ["Wir sind da."], ["We are here."])
    with pytest.raises(ValueError, match=r"mixed \(train tokenized, validation tokenized, test raw\)"):
        load_translation_data(str(tmp_path))


def test_folder_without_a_corpus_is_an_error(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"to hold train\.de and train\.en .* it has notes\.txt"):
        load_translation_data(str(tmp_path))


@pytest.mark.parametrize("source", ["./nowhere", "/a/b/c", __file__, ""])
def test_missing_path_is_an_error(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    # An empty string names the current folder, which has no corpus.
    with pytest.raises(FileNotFoundError, match="Expected (a folder, a hub dataset|the folder)"):
        load_translation_data(source)


def test_limit_below_one_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="at least one pair, but the limit for 'train' is 0"):
        load_translation_data(str(write_folder(tmp_path)), max_train_samples=0)


@pytest.fixture
def hub(monkeypatch):
    """Puts `hub.answer` in place of the network and records what was asked."""
    state = types.SimpleNamespace(answer=None, asked=None)

    def load_dataset(*args, **kwargs):
        state.asked = (args, kwargs)
        if isinstance(state.answer, Exception):
            raise state.answer
        return state.answer

    monkeypatch.setattr(hub_pairs, "load_dataset", load_dataset)
    return state


def hub_dataset(columns, names=("train", "validation", "test")):
    return datasets.DatasetDict({name: datasets.Dataset.from_dict(columns) for name in names})


def test_hub_dataset_with_a_translation_column(hub):
    hub.answer = hub_dataset({"translation": [{"de": "Wir sind da.", "en": "We're here."}]})
    data = load_translation_data("bbaaaa/iwslt14-de-en")
    assert hub.asked == (("bbaaaa/iwslt14-de-en", None), {"revision": "refs/convert/parquet"})
    assert columns(data.splits["test"]) == [["wir sind da ."], ["we &apos;re here ."], ["We're here."]]
    assert data.name == "De-En, hub dataset bbaaaa/iwslt14-de-en"
    assert data.test_name == "test of the hub dataset bbaaaa/iwslt14-de-en (1 pairs)"


def test_hub_dataset_with_plain_columns_leaves_empty_pairs_out(hub, caplog):
    hub.answer = hub_dataset({"de": ["Ja.", "", "Nein."], "en": ["Yes.", "Hm.", None]}, ("train", "dev", "test"))
    data = load_translation_data("someone/multi30k", config_name="raw", revision="v1")
    assert hub.asked == (("someone/multi30k", "raw"), {"revision": "v1"})
    assert columns(data.splits["validation"]) == [["ja ."], ["yes ."], ["Yes."]]
    assert "Left out 2 of 3 pairs of the split 'train'" in caplog.text


def test_hub_dataset_without_the_language_is_an_error(hub):
    hub.answer = hub_dataset({"text": ["Ja."]})
    with pytest.raises(ValueError, match=r"a column 'de', or one 'translation' .* but it has \['text'\]"):
        load_translation_data("someone/corpus")
    hub.answer = hub_dataset({"translation": [{"de": "Ja.", "fr": "Oui."}]})
    with pytest.raises(ValueError, match=r"a column 'en', or .* but it has \['de', 'fr'\]"):
        load_translation_data("someone/corpus")


def test_hub_dataset_without_a_split_is_an_error(hub):
    hub.answer = hub_dataset({"de": ["Ja."], "en": ["Yes."]}, ("train", "test"))
    with pytest.raises(FileNotFoundError, match=r"validation split of the hub dataset 'a/b' .* it has test, train"):
        load_translation_data("a/b")


def test_unreachable_hub_is_an_error(hub):
    hub.answer = ConnectionError("Couldn't reach 'a/b' on the Hub")
    with pytest.raises(FileNotFoundError, match=r"'a/b' to be a folder.*Couldn't reach.*check the spelling"):
        load_translation_data("a/b")


def test_unloadable_hub_dataset_is_an_error(hub):
    hub.answer = RuntimeError("Dataset scripts are no longer supported")
    with pytest.raises(ValueError, match=r"revision=None, but datasets says: Dataset scripts .*refs/convert/parquet"):
        load_translation_data("a/b")


def test_embedded_corpus_has_one_direction():
    with pytest.raises(ValueError, match="Expected 'de' to 'en' for the embedded corpus, but got 'en' to 'de'"):
        load_translation_data("embedded", source_lang="en", target_lang="de")


@pytest.mark.skipif(not (SHARED / "iwslt14_de_en").is_dir(), reason="needs the tokenized IWSLT14 corpus")
def test_iwslt14_has_the_papers_splits_untouched():
    folder = SHARED / "iwslt14_de_en"
    data = load_translation_data(str(folder))
    assert {part: len(split) for part, split in data.splits.items()} == {
        "train": 51_817,
        "validation": 7_283,
        "test": 6_750,
    }
    for part, stem in (("train", "train_subset"), ("validation", "valid"), ("test", "test")):
        for column, language in (("source", "de"), ("target", "en")):
            text = "".join(f"{line}\n" for line in data.splits[part][column])
            assert text.encode() == lzma.open(folder / f"{stem}.{language}.xz").read()
    assert data.splits["test"]["target_text"][3] == "We're all born. We all bring our children into the world."
    assert data.name == "IWSLT14 De-En, folder iwslt14_de_en"
    assert data.test_name == "IWSLT14 test set as in fairseq's preparation (6,750 pairs)"


@pytest.mark.skipif(not (SHARED / "iwslt14_de_en").is_dir(), reason="needs the tokenized IWSLT14 corpus")
@pytest.mark.parametrize("language", ["de", "en"])
def test_tokenizing_iwslt14_gives_fairseqs_tokens(language):
    from editable_hf.data.moses import MosesPreprocessor
    from editable_hf.data.text_lines import read_lines

    moses, folder = MosesPreprocessor(language), SHARED / "iwslt14_de_en"
    raw = read_lines(folder / f"test.raw.{language}.xz")
    # fairseq's script replaces this apostrophe in the test files before it tokenizes them.
    tokens = [moses.tokenize(line.replace("’", "'")) for line in raw]
    assert tokens == read_lines(folder / f"test.{language}.xz")


@pytest.mark.skipif(not (SHARED / "multi30k_de_en").is_dir(), reason="needs Multi30k")
def test_multi30k_raw_folder_loads():
    data = load_translation_data(str(SHARED / "multi30k_de_en"), max_train_samples=200)
    assert {part: len(split) for part, split in data.splits.items()} == {
        "train": 200,
        "validation": 1014,
        "test": 1000,
    }
    assert data.splits["test"][0] == {
        "source": "ein mann mit einem orangefarbenen hut , der etwas anstarrt .",
        "target": "a man in an orange hat starring at something .",
        "target_text": "A man in an orange hat starring at something.",
    }


def test_raw_text_stays_as_it_is(tmp_path):
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.de").write_text("Das ist Annas Haus.\n", encoding="utf-8")
        (tmp_path / f"{split}.en").write_text("That's Anna's house.\n", encoding="utf-8")
    row = load_translation_data(str(tmp_path), raw_text=True).splits["test"][0]
    assert row["source"] == "Das ist Annas Haus."
    assert row["target"] == row["target_text"] == "That's Anna's house."
