import hashlib

import pytest

from llmopt.errors import UsageError
from llmopt.quality import evaluation_text
from llmopt.quality.evaluation_text import read_evaluation_text


def test_a_file_is_named_and_hashed(tmp_path):
    content = "naïve café\r\n" * 3
    path = tmp_path / "sample.txt"
    path.write_bytes(content.encode())
    text = read_evaluation_text(str(path))
    assert (text.name, text.content) == ("sample.txt", content)
    assert text.sha256 == hashlib.sha256(content.encode()).hexdigest()


def test_a_byte_order_mark_is_no_text_but_is_hashed(tmp_path):
    path = tmp_path / "sample.txt"
    path.write_bytes(b"\xef\xbb\xbfabcd")
    text = read_evaluation_text(str(path))
    assert text.content == "abcd"
    assert text.sha256 == hashlib.sha256(b"\xef\xbb\xbfabcd").hexdigest()


def test_the_bundled_text_is_the_one_for_evaluation(monkeypatch):
    monkeypatch.setattr(evaluation_text, "read_text", {"evaluation": "bundled words"}.__getitem__)
    text = read_evaluation_text("bundled")
    assert (text.name, text.content) == ("bundled", "bundled words")
    assert text.sha256 == hashlib.sha256(b"bundled words").hexdigest()


def test_wikitext2_is_read_by_its_name(monkeypatch):
    monkeypatch.setattr(evaluation_text, "read_wikitext2", lambda: b" \n = Du Fu = \n")
    text = read_evaluation_text("wikitext-2")
    assert (text.name, text.content) == ("wikitext-2", " \n = Du Fu = \n")


def test_unreadable_texts_are_refused(tmp_path):
    for path, reason in [
        (tmp_path / "missing.txt", "No such file"),
        (tmp_path, "directory"),
        ("nul\0byte", "null byte|null character"),
    ]:
        with pytest.raises(UsageError, match=reason) as caught:
            read_evaluation_text(str(path))
        assert "bundled" in caught.value.remedy
        assert "wikitext-2" in caught.value.remedy


def test_a_text_that_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / "sample.txt"
    path.write_bytes(b"ab\xffcd")
    with pytest.raises(UsageError, match=r"sample\.txt' is not UTF-8: byte 2 is 0xff"):
        read_evaluation_text(str(path))
