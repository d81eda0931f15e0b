"""What a shuffle is to make: options that don't fit are refused, memory is parted, folders are claimed, parts put in their place."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from fishpaw.data import shuffle_plan
from fishpaw.data.shuffle_files import Part
from fishpaw.data.shuffle_plan import STATE, WORK, Room, Shuffled, claim, digest_of, parted, plan, publish, read_json, told
from fishpaw.data.shuffle_spool import PER_LINE
from fishpaw.errors import ConfigError, DataError, FishpawError

FOUND = Shuffled((Part("part-00000.txt", 2, 4), Part("part-00001.txt", 1, 2)), 3, 6, "0" * 32)


@pytest.fixture
def text(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.zh", "a.en", "b.txt.gz", "plain"):
        (tmp_path / "in" / name).write_bytes(b"")
    return tmp_path / "in"


@pytest.mark.parametrize(
    ("given", "options", "says"),
    [
        ([], {}, "no input"),
        (["-", "-"], {}, "named twice"),
        (["nowhere"], {}, "nowhere: can't be read"),
        (["."], {}, "is a folder"),
        (["plain"], {"lines_per_file": 0}, "lines_per_file is 0"),
        (["plain"], {"bytes_per_file": -1}, "bytes_per_file is -1"),
        (["plain"], {"lines_per_file": 3, "bytes_per_file": 3}, "Leave one out"),
        (["a.zh", "a.en"], {"bytes_per_file": 9, "aligned": True}, "can't be cut by bytes"),
        (["a.zh", "a.en"], {"ending": ".txt", "aligned": True}, "both become a.txt"),
        (["plain"], {"ending": "txt"}, "ending is 'txt'"),
        (["plain"], {"ending": "./../x"}, "ending is"),
    ],
)
def test_what_does_not_fit_is_refused(text, monkeypatch, given, options, says):
    monkeypatch.chdir(text)
    with pytest.raises(ConfigError if given[:1] not in (["nowhere"], ["."]) else DataError, match=says):
        plan(given, **options)


def test_names_of_files(text):
    def names(given, **options):
        made = plan([one if one == "-" else text / one for one in given], **options)
        return [made.name(number)(3) for number in range(len(made.sets))]

    assert names(["plain", "a.en"]) == ["part-00003.txt"] and names(["b.txt.gz"]) == ["part-00003.txt.gz"]
    assert names(["-"]) == ["part-00003.txt"] and names(["a.en", "plain"], ending=".x") == ["part-00003.x"]
    assert names(["a.zh", "a.en", "plain"], aligned=True) == ["a.zh", "a.en", "plain.txt"]
    assert names(["a.zh", "-"], aligned=True, lines_per_file=9) == ["a-00003.zh", "stdin-00003.txt"]


def test_memory_is_parted(monkeypatch):
    monkeypatch.setattr(shuffle_plan, "_held", lambda: 40 * 2**20)
    room = Room.within(2**28)
    assert 2 * (room.batch + PER_LINE * room.lines) <= 2 * room.bucket <= 0.95 * 2**28 - 64 * 2**20
    assert parted(10 * room.bucket, room) == 15 and parted(1, room) == 1 and parted(2**50, room) == 256
    with pytest.raises(ConfigError, match="memory is 64M, too little: Python alone takes 40M. Give (1..)M") as caught:
        Room.within(2**26)
    assert Room.within(int(caught.value.fix.split()[1][:-1]) * 2**20)


def test_a_folder_is_claimed_once(text, tmp_path):
    wanted, out = plan([text / "plain"]), tmp_path / "out"
    assert claim(out, wanted, False) is None
    (out / WORK / "parts").mkdir(parents=True)
    (out / WORK / STATE).write_text(json.dumps({"plan": asdict(wanted), "spool": str(out / WORK)}), encoding="utf-8")
    assert claim(out, wanted, False) is None                         # gone on with
    other = plan([text / "plain"], seed=1)
    with pytest.raises(ConfigError, match=r"an unfinished shuffle of other inputs or options.*--restart"):
        claim(out, other, False)
    for part in FOUND.files:
        (out / WORK / "parts" / part.name).write_bytes(b"")
    publish(out, wanted, FOUND, out / WORK)
    assert sorted(path.name for path in out.iterdir()) == [".shuffle.json", "part-00000.txt", "part-00001.txt"]
    assert claim(out, wanted, False) == FOUND
    with pytest.raises(ConfigError, match="the output of another shuffle"):
        claim(out, other, False)
    (out / "part-00001.txt").unlink()
    with pytest.raises(ConfigError, match="part-00001.txt is missing"):
        claim(out, wanted, False)
    (out / "mine.txt").write_bytes(b"")
    with pytest.raises(ConfigError, match="holds mine.txt already"):
        claim(out, other, True)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]     # restart removes what was listed, and nothing else


@pytest.mark.parametrize("moves", [0, 1, 2])
def test_parts_half_moved_are_moved_to_the_end(text, tmp_path, monkeypatch, moves):
    wanted, out = plan([text / "plain"]), tmp_path / "out"
    (out / WORK / "parts").mkdir(parents=True)
    for part in FOUND.files:
        (out / WORK / "parts" / part.name).write_bytes(part.name.encode())
    left, replace = [moves], os.replace

    def some(source, target):
        if Path(source).parent.name == "parts" or Path(source).name == ".shuffle.json":
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(shuffle_plan.os, "replace", some)
    with pytest.raises(KeyboardInterrupt):
        publish(out, wanted, FOUND, out / WORK)
    monkeypatch.undo()
    assert claim(out, wanted, False) == FOUND
    assert all((out / part.name).read_bytes() == part.name.encode() for part in FOUND.files) and not (out / WORK).exists()


def test_errors_of_the_disk_are_told(tmp_path):
    with pytest.raises(FishpawError, match="No space left on device.*same command again"), told(tmp_path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(BrokenPipeError), told(tmp_path):
        raise BrokenPipeError
    (tmp_path / "half.json").write_text('{"plan": ', encoding="utf-8")
    assert read_json(tmp_path / "half.json") is None
    assert digest_of(["a"]) == "a" and len(digest_of(["a", "b"])) == 32
