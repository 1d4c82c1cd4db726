import pytest

from llmopt.errors import OutputError, UsageError
from llmopt.report.embed import embed, embed_in_file, markers

BEGIN, END = markers()


def test_only_what_stands_between_the_markers_changes():
    document = f"head\n{BEGIN}\nold\nold\n{END}\ntail\n"
    assert embed(document, "new\n") == f"head\n{BEGIN}\nnew\n{END}\ntail\n"
    assert embed(embed(document, "x"), "new") == embed(document, "new")


def test_places_have_names():
    one, two = markers("one"), markers("two")
    document = "\n".join([*markers(), *one, *two, ""])
    changed = embed(embed(document, "1", "one"), "2", "two")
    assert changed == "\n".join([*markers(), one[0], "1", one[1], two[0], "2", two[1], ""])
    with pytest.raises(UsageError, match="no place for a report named three"):
        embed(document, "3", "three")


@pytest.mark.parametrize("document", ["", f"{BEGIN}\n", f"{END}\n{BEGIN}\n"])
def test_a_document_without_markers_is_refused(document):
    with pytest.raises(UsageError, match="no place"):
        embed(document, "new")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(OutputError, match=r"nothing\.md"):
        embed_in_file(tmp_path / "nothing.md", "new")


def test_a_file_keeps_its_line_ends_and_its_mode(tmp_path):
    path = tmp_path / "README.md"
    path.write_bytes(f"head\r\n{BEGIN}\r\nold\r\n{END}\r\ntail\r\n".encode())
    path.chmod(0o640)
    embed_in_file(path, "new\nnewer\n")
    expected = f"head\r\n{BEGIN}\r\nnew\r\nnewer\r\n{END}\r\ntail\r\n"
    assert path.read_bytes() == expected.encode()
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_one(tmp_path):
    path, link = tmp_path / "README.md", tmp_path / "link.md"
    path.write_text(f"{BEGIN}\n{END}\n")
    link.symlink_to(path)
    embed_in_file(link, "new")
    assert link.is_symlink()
    assert "new" in path.read_text()
