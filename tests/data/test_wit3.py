import pytest

from editable_hf.data.translation import load_translation_data
from editable_hf.data.wit3 import TEST_SETS, is_clean_pair, read_wit3

PAIR = "de-en"


def train_file(language, num_sentences):
    """A talk with its lines of tags, as WIT3 writes it; sentence 2 is too long on one side, sentence 3 is empty."""
    sentences = [
        f"Satz Nummer {n}." if language == "de" else f"Sentence number {n}." for n in range(1, num_sentences + 1)
    ]
    sentences[1] = "Ja." if language == "de" else "Yes, that is how it is."
    sentences[2] = "Nur Deutsch." if language == "de" else ""
    head = [
        "<url>http://www.ted.com/talks/x</url>",
        "<keywords>talks, wind</keywords>",
        "<talkid>1</talkid>",
        "<title>Jemand: Über Wind</title>" if language == "de" else "<title>Someone: On wind</title>",
        "<description>Es weht.</description>" if language == "de" else "<description>It's windy.</description>",
    ]
    return "\n".join([*head, *sentences]) + "\n"


def test_file(test_set, language):
    text = f" Das ist's aus {test_set}. " if language == "de" else f" It’s R&amp;D from {test_set}. "
    head = '<?xml version="1.0"?>\n<!DOCTYPE mteval>\n<doc docid="1">\n<title>no</title>\n'
    return f'{head}<seg id="1">{text}</seg>\n</doc>\n'


test_file.__test__ = False


def release(num_sentences=48):
    files = {}
    for language in ("de", "en"):
        files[f"train.tags.{PAIR}.{language}"] = train_file(language, num_sentences)
        for test_set in TEST_SETS:
            files[f"IWSLT14.{test_set}.{PAIR}.{language}.xml"] = test_file(test_set, language)
    return {name: text.encode() for name, text in files.items()}


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def check_release(splits):
    # The title, the description and the sentences 1 and 4 to 48 are clean: 48 pairs, the 23rd and 46th held out.
    numbers = [1, *range(4, 49)]
    expected = [("jemand : über wind", "someone : on wind"), ("es weht .", "it &apos;s windy .")]
    expected += [(f"satz nummer {n} .", f"sentence number {n} .") for n in numbers]
    validation = [expected[22], expected[45]]
    train = [pair for pair in expected if pair not in validation]
    assert list(zip(splits["train"].sources, splits["train"].targets, strict=True)) == train
    assert list(zip(splits["validation"].sources, splits["validation"].targets, strict=True)) == validation
    assert splits["validation"].target_texts == ["Sentence number 23.", "Sentence number 46."]
    assert splits["train"].target_texts[:2] == ["Someone: On wind", "It's windy."]
    names = ["ted.dev2010", "tedx.dev2012", "ted.tst2010", "ted.tst2011", "ted.tst2012"]
    assert splits["test"].sources == [f"das ist &apos; s aus {name} ." for name in names]
    assert splits["test"].targets == [f"it &apos;s r &amp; amp ; d from {name} ." for name in names]
    assert splits["test"].target_texts[0] == "It’s R&amp;D from TED.dev2010."


@pytest.mark.parametrize("subfolder", ["", PAIR])
def test_folder_gives_fairseqs_splits(tmp_path, subfolder):
    folder = write(tmp_path / subfolder, release())
    (folder / "README").write_text("not read")
    check_release(read_wit3(tmp_path))


def test_loader_takes_the_folder_in_either_direction(tmp_path):
    path = write(tmp_path / "de-en", release())
    data = load_translation_data(str(path), source_lang="en", target_lang="de")
    assert data.splits["train"][0] == {
        "source": "someone : on wind",
        "target": "jemand : über wind",
        "target_text": "Jemand: Über Wind",
    }
    assert data.name == "En-De, WIT3 release de-en"
    assert data.test_name == "test of the WIT3 release de-en (5 pairs)"


@pytest.mark.parametrize(
    ("num_source", "num_target", "clean"),
    [(2, 3, True), (3, 2, True), (3, 5, False), (175, 175, True), (176, 175, False), (0, 1, False), (1, 0, False)],
)
def test_clean_pairs_are_those_of_clean_corpus_n(num_source, num_target, clean):
    assert is_clean_pair("a " * num_source, "b " * num_target) is clean


def test_pair_with_a_monstrous_word_is_not_clean():
    assert is_clean_pair("a" * 1000, "b")
    assert not is_clean_pair("a" * 1001, "b")


def test_only_listed_line_ends_end_a_line(tmp_path):
    files = release()
    files[f"train.tags.{PAIR}.de"] = files[f"train.tags.{PAIR}.de"].replace(b"Nummer 1.", "Nummer\u2028 1.".encode())
    assert read_wit3(write(tmp_path, files))["train"].sources[2] == "satz nummer 1 ."


def test_missing_test_file_is_an_error(tmp_path):
    files = release()
    del files[f"IWSLT14.TED.tst2011.{PAIR}.en.xml"]
    with pytest.raises(FileNotFoundError, match=r"ordinary file at .*IWSLT14\.TED\.tst2011\.de-en\.en\.xml, but"):
        read_wit3(write(tmp_path, files))


def test_misaligned_training_files_are_an_error(tmp_path):
    files = release()
    files[f"train.tags.{PAIR}.en"] += b"One more.\n"
    with pytest.raises(
        ValueError, match=r"train\.tags\.de-en\.de .*has 50 lines and train\.tags\.de-en\.en .* has 51"
    ):
        read_wit3(write(tmp_path, files))


def test_empty_segment_is_an_error(tmp_path):
    files = release()
    files[f"IWSLT14.TED.dev2010.{PAIR}.en.xml"] = b'<seg id="1"> </seg>\n'
    with pytest.raises(ValueError, match=r"line 1 of the segments of .*TED\.dev2010\.de-en\.en\.xml is empty"):
        read_wit3(write(tmp_path, files))


def test_bad_utf8_is_an_error(tmp_path):
    files = release()
    files[f"train.tags.{PAIR}.de"] = files[f"train.tags.{PAIR}.de"].replace(b"Satz Nummer 1.", b"S\xe4tze.")
    with pytest.raises(ValueError, match=r"train\.tags\.de-en\.de to be UTF-8, but line 6 has the byte 0xe4"):
        read_wit3(write(tmp_path, files))
