"""task.json: what was written is read; what is no object, too large or elsewhere is refused by name."""

from __future__ import annotations

import pytest

from fishpaw.errors import CheckpointError
from fishpaw.tasks.settings import WithSettings, read_settings
from fishpaw.text.learn import characters
from fishpaw.text.load import load_tokenizer
from fishpaw.text.wordpiece import WordPiece


def test_what_was_written_is_read_beside_the_tokenizer(tmp_path):
    assert read_settings(tmp_path) == {}
    WithSettings(WordPiece(characters(["好"], least=1)), {"task": "甲", "max_length": 7}).save(tmp_path)
    assert read_settings(tmp_path) == {"task": "甲", "max_length": 7}
    assert load_tokenizer(tmp_path).encode("好").ids


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"{", "can't be read"), (b"", "can't be read"), (b"\xff{}", "can't be read"), (b"[" * 99999, "can't be read"),
     (b"9" * 9999, "can't be read"), (b"[1]", "no JSON object"), (b"{}" + b" " * 2**20, "1,048,576 bytes are no settings")],
    ids=["cut", "empty", "latin", "nested", "long number", "list", "large"],
)  # fmt: skip
def test_what_is_no_object_of_json_is_refused(tmp_path, content, says):
    (tmp_path / "task.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"task\.json: .*{says}"):
        read_settings(tmp_path)


def test_a_link_may_lead_to_the_blobs_of_its_snapshot_and_nowhere_else(tmp_path):
    snapshot, elsewhere = tmp_path / "model" / "snapshots" / "0", tmp_path / "elsewhere"
    for folder in (snapshot, tmp_path / "model" / "blobs", elsewhere):
        folder.mkdir(parents=True)
    for target in (tmp_path / "model" / "blobs" / "1", elsewhere / "secret"):
        target.write_text('{"max_length": 5}', encoding="utf-8")
    link = snapshot / "task.json"
    try:
        link.symlink_to("../../blobs/1")
    except OSError:
        pytest.skip("no links here")
    assert read_settings(snapshot) == {"max_length": 5}
    link.unlink()
    link.symlink_to(elsewhere / "secret")
    with pytest.raises(CheckpointError, match="leaves the folder"):
        read_settings(snapshot)
