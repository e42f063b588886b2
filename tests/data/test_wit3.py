import gzip
import io
import tarfile
import time
import tracemalloc
import zipfile

import pytest

import editable_hf.data.wit3 as wit3
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


def write_tar(path, files, prefix=f"{PAIR}/"):
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(prefix + name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


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


def test_archive_gives_fairseqs_splits(tmp_path):
    check_release(read_wit3(write_tar(tmp_path / "de-en.tgz", release())))


def test_zip_archive_gives_the_same(tmp_path):
    with zipfile.ZipFile(tmp_path / "de-en.zip", "w") as archive:
        for name, data in release().items():
            archive.writestr(f"{PAIR}/{name}", data)
    check_release(read_wit3(tmp_path / "de-en.zip"))


@pytest.mark.parametrize("subfolder", ["", PAIR])
def test_unpacked_folder_gives_the_same(tmp_path, subfolder):
    folder = tmp_path / subfolder
    folder.mkdir(exist_ok=True)
    for name, data in release().items():
        (folder / name).write_bytes(data)
    (folder / "README").write_text("not read")
    check_release(read_wit3(tmp_path))


def test_loader_takes_the_archive_in_either_direction(tmp_path):
    path = write_tar(tmp_path / "de-en.tgz", release())
    data = load_translation_data(str(path), source_lang="en", target_lang="de")
    assert data.splits["train"][0] == {
        "source": "someone : on wind",
        "target": "jemand : über wind",
        "target_text": "Jemand: Über Wind",
    }
    assert data.name == "En-De, WIT3 release de-en.tgz"
    assert data.test_name == "test of the WIT3 release de-en.tgz (5 pairs)"


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
    assert read_wit3(write_tar(tmp_path / "a.tgz", files))["train"].sources[2] == "satz nummer 1 ."


def test_links_and_paths_outside_are_not_followed(tmp_path):
    files = release()
    secret = tmp_path / "secret"
    secret.write_bytes(files.pop(f"train.tags.{PAIR}.de"))
    path = tmp_path / "in" / "de-en.tgz"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as archive:
        link = tarfile.TarInfo(f"{PAIR}/train.tags.{PAIR}.de")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        archive.addfile(link)
        for name, data in files.items():
            member = tarfile.TarInfo(f"../{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    with pytest.raises(FileNotFoundError, match=r"Expected train\.tags\.de-en\.de in .*give the release of one"):
        read_wit3(path)
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["de-en.tgz", "secret"]


@pytest.mark.parametrize("num_missing", [1, 200, 600])
def test_truncated_archive_is_an_error(tmp_path, num_missing):
    path = write_tar(tmp_path / "de-en.tgz", release())
    path.write_bytes(path.read_bytes()[:-num_missing])
    with pytest.raises(ValueError, match=r"de-en\.tgz to be a whole .* cut short or damaged"):
        read_wit3(path)


def test_file_that_is_no_archive_is_an_error(tmp_path):
    (tmp_path / "a.txt").write_text("hello\n")
    with pytest.raises(ValueError, match=r"a\.txt to be a whole \.tgz, \.tar or \.zip archive"):
        load_translation_data(str(tmp_path / "a.txt"))


def test_damaged_zip_is_an_error(tmp_path):
    path = tmp_path / "de-en.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in release().items():
            archive.writestr(name, data)
    path.write_bytes(path.read_bytes().replace(b"Sentence number 9.", b"Sentence number 8."))
    with pytest.raises(ValueError, match=r"de-en\.zip to be a whole .* damaged"):
        read_wit3(path)


@pytest.mark.parametrize("ending", ["tgz", "zip"])
def test_oversized_archive_is_an_error(tmp_path, monkeypatch, ending):
    monkeypatch.setattr(wit3, "MAX_ARCHIVE_BYTES", 1000)
    path = tmp_path / f"de-en.{ending}"
    if ending == "tgz":
        write_tar(path, release())
    else:
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in release().items():
                archive.writestr(name, data)
    with pytest.raises(ValueError, match=r"unpacks to [\d,]+ bytes or more and at most 1,000"):
        read_wit3(path)


def test_same_file_twice_is_an_error(tmp_path):
    files = release()
    twice = {f"one/{name}": data for name, data in files.items()} | {
        f"two/{name}": data for name, data in files.items()
    }
    with pytest.raises(ValueError, match=r"Expected one train\.tags\.de-en\.de in .* several"):
        read_wit3(write_tar(tmp_path / "a.tgz", twice))


def test_missing_test_file_is_an_error(tmp_path):
    files = release()
    del files[f"IWSLT14.TED.tst2011.{PAIR}.en.xml"]
    with pytest.raises(
        FileNotFoundError, match=r"Expected IWSLT14\.TED\.tst2011\.de-en\.en\.xml in .* it has IWSLT14"
    ):
        read_wit3(write_tar(tmp_path / "a.tgz", files))


def test_misaligned_training_files_are_an_error(tmp_path):
    files = release()
    files[f"train.tags.{PAIR}.en"] += b"One more.\n"
    with pytest.raises(
        ValueError, match=r"train\.tags\.de-en\.de .*has 50 lines and train\.tags\.de-en\.en .* has 51"
    ):
        read_wit3(write_tar(tmp_path / "a.tgz", files))


def test_empty_segment_is_an_error(tmp_path):
    files = release()
    files[f"IWSLT14.TED.dev2010.{PAIR}.en.xml"] = b'<seg id="1"> </seg>\n'
    with pytest.raises(ValueError, match=r"line 1 of the segments of IWSLT14\.TED\.dev2010\.de-en\.en\.xml is empty"):
        read_wit3(write_tar(tmp_path / "a.tgz", files))


def test_bad_utf8_is_an_error(tmp_path):
    files = release()
    files[f"train.tags.{PAIR}.de"] = files[f"train.tags.{PAIR}.de"].replace(b"Satz Nummer 1.", b"S\xe4tze.")
    with pytest.raises(ValueError, match=r"train\.tags\.de-en\.de to be UTF-8, but line 6 has the byte 0xe4"):
        read_wit3(write_tar(tmp_path / "a.tgz", files))


def header(kind, size, name="x"):
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    return member.tobuf()


def padded(data):
    return data + bytes(-len(data) % tarfile.BLOCKSIZE)


def negative_size():
    """A header whose size leads back to itself."""
    block = bytearray(header(tarfile.AREGTYPE, 0))
    block[124:136] = (-tarfile.BLOCKSIZE).to_bytes(12, "big", signed=True)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return header(tarfile.AREGTYPE, 0) + block


def sparse(count):
    """A file with as many holes as one likes, each of which is a number in memory."""
    named = (b"GNU.sparse.major=1", b"GNU.sparse.minor=0", b"GNU.sparse.name=a")
    fields = b"".join(b"%d %s\n" % (len(field) + 4, field) for field in named)
    body = b"%d\n" % count + b"1\n" * (2 * count)
    return header(tarfile.XHDTYPE, len(fields)) + padded(fields) + header(tarfile.REGTYPE, len(body)) + padded(body)


BYTES = "more than 1,048,576 bytes of headers"
HOSTILE = {
    "a huge extended header": (BYTES, lambda: header(tarfile.XHDTYPE, 2**29) + bytes(2**26)),
    "a huge long name": (BYTES, lambda: header(tarfile.GNUTYPE_LONGNAME, 2**29) + bytes(2**26)),
    "headers of headers": ("recursion", lambda: header(tarfile.XHDTYPE, 0) * 5000),
    "a number of 5,000 digits": (
        "5000 digits",
        lambda: header(tarfile.XHDTYPE, 5010) + padded(b"9" * 5000 + b" a=b\n" + b" " * 5),
    ),
    "a negative size": ("a file of negative size", negative_size),
    "holes without end": (BYTES, lambda: sparse(2**20)),
    "headers without end": (BYTES, lambda: header(tarfile.AREGTYPE, 0) * 2**15),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tar_is_refused_at_once(tmp_path, name):
    reason, build = HOSTILE[name]
    (tmp_path / "de-en.tgz").write_bytes(gzip.compress(build() + bytes(1024), 1))
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(ValueError, match=rf"cut short or damaged \(.*{reason}"):
        read_wit3(tmp_path / "de-en.tgz")
    seconds, (_, most) = time.process_time() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 10 and most < 50e6


@pytest.mark.parametrize(
    ("places", "reason"),
    [((6, 8), "password required"), ((8, 10), "compression method is not supported")],  # flags, method
)
def test_zip_that_cannot_be_unpacked_is_refused(tmp_path, places, reason):
    path = tmp_path / "de-en.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in release().items():
            archive.writestr(name, content)
    data = bytearray(path.read_bytes())
    for signature, offset in zip((b"PK\3\4", b"PK\1\2"), places, strict=True):
        at = -1
        while (at := data.find(signature, at + 1)) >= 0:
            data[at + offset] = 97 if reason.startswith("compression") else 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"without a password, but it is cut short or damaged .*{reason}"):
        read_wit3(path)
