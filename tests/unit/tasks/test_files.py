"""Data files: plain and gzipped read alike, and every way a file can be bad names the place."""

import gzip
import hashlib
import json

import pytest

from dual_lora.config import DataError
from dual_lora.tasks.files import exists, open_lines, read_csv, read_json_list, read_text

FIELDS = {"instruction": str, "answer": str}


def write_json(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")


def test_plain_and_gzipped_give_the_same_text_and_fingerprint(tmp_path):
    content = "naïve café\n"
    (tmp_path / "a.txt").write_text(content, encoding="utf-8")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(content.encode()))
    assert read_text(tmp_path, "a.txt") == read_text(tmp_path, "b.txt")
    assert read_text(tmp_path, "a.txt")[1] == hashlib.sha256(content.encode()).hexdigest()
    assert exists(tmp_path, "a.txt")
    assert exists(tmp_path, "b.txt")
    assert not exists(tmp_path, "c.txt")


def test_missing_file_names_it_and_the_way_on(tmp_path):
    with pytest.raises(DataError, match=r"boolq/train\.json.*train\.json\.gz.*data\.dir"):
        read_text(tmp_path, "boolq/train.json")


def test_truncated_gzip_is_refused(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"hello world" * 1000)[:-20])
    with pytest.raises(DataError, match=r"a\.txt\.gz.*damaged or truncated"):
        read_text(tmp_path, "a.txt")


def test_bytes_that_are_not_utf8_name_the_line(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\n\xff\n")
    with pytest.raises(DataError, match=r"a\.txt, line 3: not UTF-8"):
        read_text(tmp_path, "a.txt")


def test_lines_split_only_at_newlines(tmp_path):
    (tmp_path / "a.txt").write_bytes("one\u2028still one\r\ntwo\n".encode())
    assert open_lines(tmp_path, "a.txt")[0] == ["one\u2028still one", "two"]


def test_empty_file_and_empty_list_are_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"")
    write_json(tmp_path / "a.json", [])
    with pytest.raises(DataError, match="empty"):
        open_lines(tmp_path, "a.txt")
    with pytest.raises(DataError, match="empty"):
        read_json_list(tmp_path, "a.json", FIELDS)


def test_truncated_json_names_line(tmp_path):
    (tmp_path / "a.json").write_text('[{"instruction": "x",\n "answer": "tr')
    with pytest.raises(DataError, match=r"a\.json, line 2: not valid JSON"):
        read_json_list(tmp_path, "a.json", FIELDS)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"instruction": "x"}, r"a\.json, item 2, field 'answer': missing; the object has instruction"),
        ({"instruction": "x", "answer": 3}, r"item 2, field 'answer': expected str, found int \(3\)"),
        ("text", r"item 2: expected an object, found str"),
    ],
)
def test_malformed_item_names_item_and_field(tmp_path, second, message):
    write_json(tmp_path / "a.json", [{"instruction": "x", "answer": "y"}, second])
    with pytest.raises(DataError, match=message):
        read_json_list(tmp_path, "a.json", FIELDS)


def test_csv_quotes_and_newlines_survive(tmp_path):
    (tmp_path / "a.csv").write_text('mr,ref\n"name[A, B]","He said ""hi"".\nTwice."\n')
    rows, _ = read_csv(tmp_path, "a.csv", ("mr", "ref"))
    assert rows == [{"mr": "name[A, B]", "ref": 'He said "hi".\nTwice.'}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("mr,text\na,b\n", r"line 1, field 'ref': the header has no such column"),
        ("mr,ref\na,b\nonly one\n", r"line 3: 1 cells, but the header has 2"),
        ('mr,ref\na,"unfinished', r"line \d: not valid CSV"),
        ("mr,ref\n", "no rows"),
    ],
)
def test_malformed_csv_names_line_and_column(tmp_path, content, message):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        read_csv(tmp_path, "a.csv", ("mr", "ref"))


def test_half_of_a_character_is_refused_with_what_stands_before_it(tmp_path):
    """A pair of surrogates is a character; one alone ended in the tokenizer's TypeError."""
    item = {"instruction": "A \U0001f600 and a \\ud83d of text", "answer": "b"}
    write_json(tmp_path / "train.json", [item])
    assert read_json_list(tmp_path, "train.json", FIELDS)[0] == [item]
    write_json(tmp_path / "train.json", [item, {"instruction": "cut \ud83d", "answer": "b"}])
    with pytest.raises(DataError, match=r"train.json: after '.*cut ': \\ud83d is half of a character"):
        read_json_list(tmp_path, "train.json", FIELDS)
