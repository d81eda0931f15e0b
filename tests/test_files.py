"""Files are whole or absent: kills, full disks, damaged bytes, rivals for a folder, names that want out."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fishpaw import files
from fishpaw.errors import CheckpointError, FishpawError
from fishpaw.files import blobs, file_atomic, folder_atomic, inside, lock, recover, verify_manifest, write_atomic, write_manifest

SOURCE = Path(files.__file__).resolve().parents[1]
posix = pytest.mark.skipif(os.name != "posix", reason="signals and limits are POSIX's")


def run(code: str, *arguments: object, **options):
    """Another Python; its working directory is its first argument's parent."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(SOURCE)}, text=True, stdout=-1, stderr=-1, **options)


def fill(path: Path, value: str) -> None:
    with folder_atomic(path) as folder:
        (folder / "config.json").write_text(json.dumps({"value": value}), encoding="utf-8")
        (folder / "part").mkdir()
        (folder / "part" / "模型.bin").write_bytes(value.encode() * 100)


def value(path: Path) -> str:
    verify_manifest(path)
    return json.loads((path / "config.json").read_text(encoding="utf-8"))["value"]


# one file

def test_write_atomic_makes_folders_and_keeps_bytes(tmp_path):
    path = tmp_path / "a" / "b.txt"
    write_atomic(path, "一\r\n二\n")
    assert path.read_bytes() == "一\r\n二\n".encode()
    write_atomic(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert [file.name for file in path.parent.iterdir()] == ["b.txt"]


@posix
def test_mode_follows_the_umask_and_then_the_old_file(tmp_path):
    path = tmp_path / "a"
    before = os.umask(0o027)
    try:
        write_atomic(path, "1")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640
    path.chmod(0o600)
    write_atomic(path, "2")
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_exception_leaves_the_old_file(tmp_path):
    path = tmp_path / "a"
    write_atomic(path, "old")
    with pytest.raises(ZeroDivisionError), file_atomic(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


# a folder

def test_folder_is_replaced_whole(tmp_path):
    path = tmp_path / "out"
    fill(path, "old")
    (path / "README.md").write_text("mine")
    fill(path, "new")
    assert value(path) == "new"
    assert (path / "README.md").read_text() == "mine"             # what no loader reads moves along
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_an_exception_leaves_the_old_folder(tmp_path):
    path = tmp_path / "out"
    fill(path, "old")
    with pytest.raises(ZeroDivisionError), folder_atomic(path) as folder:
        (folder / "config.json").write_text("half")
        raise ZeroDivisionError
    assert value(path) == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_a_foreign_model_is_never_replaced(tmp_path):
    path = tmp_path / "out"
    path.mkdir()
    (path / "pytorch_model.bin").write_bytes(b"years of work")
    with pytest.raises(FishpawError, match=r"pytorch_model\.bin.*new folder"):
        fill(path, "new")
    assert (path / "pytorch_model.bin").read_bytes() == b"years of work"


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(FishpawError, match="is a file"):
        fill(tmp_path / "out", "new")
    with pytest.raises(FishpawError, match="part of this path is a file"):
        write_atomic(tmp_path / "out" / "in", "x")


@posix
def test_a_link_to_a_folder_stays_a_link(tmp_path):
    fill(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    fill(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and value(tmp_path / "real") == "new"


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from fishpaw.files import folder_atomic
count, stop = 0, int(sys.argv[2])
def counted(function):
    def call(*arguments, **options):
        global count
        count += 1
        if count == stop:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call
os.replace, os.fsync, shutil.rmtree, os.mkdir, os.unlink = map(counted, (os.replace, os.fsync, shutil.rmtree, os.mkdir, os.unlink))
with folder_atomic(sys.argv[1]) as folder:
    (folder / "config.json").write_text('{"value": "new"}')
    (folder / "part").mkdir()
print("whole")
"""


@posix
def test_a_kill_at_any_step_leaves_old_or_new(tmp_path):
    """Kill before the first, second, … renaming, syncing or removing call until one run ends by itself."""
    seen = []
    for step in range(1, 60):
        path = tmp_path / str(step) / "out"
        fill(path, "old")
        (path / "notes.md").write_text("mine")
        child = run(KILLED, path, step)
        finished = child.communicate(timeout=60)[0].strip() == "whole"
        assert finished or child.returncode == -signal.SIGKILL
        recover(path)
        seen.append(value(path))
        if seen[-1] == "old":
            assert (path / "notes.md").exists()
        fill(path, "next")                                         # the folder is as good as any, the dead owner's lock is no obstacle
        assert value(path) == "next" and (path / "notes.md").read_text() == "mine"
        assert [file.name for file in path.parent.iterdir()] == ["out"]
        if finished:
            break
    assert finished and len(seen) > 10
    assert seen == sorted(seen, reverse=True) and set(seen) == {"old", "new"}      # once new, never old again


@posix
def test_without_the_recovery_a_kill_between_the_renames_is_seen(tmp_path, monkeypatch):
    """The planted fault: the test above would notice a writer that forgets the old folder."""
    fill(tmp_path / "out", "old")
    os.replace(tmp_path / "out", tmp_path / ".out.old")
    monkeypatch.setattr(files, "recover", lambda path: False)
    with pytest.raises(CheckpointError, match="manifest.json: can't be read"):
        value(tmp_path / "out")
    monkeypatch.undo()
    assert value(tmp_path / "out") == "old"


LIMITED = """
import resource, sys
from fishpaw.errors import FishpawError
from fishpaw.files import folder_atomic, write_atomic
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
for attempt in ("folder", "file"):
    try:
        if attempt == "file":
            write_atomic(sys.argv[1] + "/config.json", b"x" * 100_000)
        else:
            with folder_atomic(sys.argv[1]) as folder:
                with open(folder / "model.safetensors", "wb") as file:
                    for _ in range(10):
                        file.write(b"x" * 10_000)
                        file.flush()
    except FishpawError as error:
        print(error)
"""


@posix
def test_a_full_disk_leaves_the_old_folder(tmp_path):
    path = tmp_path / "out"
    fill(path, "old")
    output, error = run(LIMITED, path).communicate(timeout=60)
    lines = output.splitlines()
    assert len(lines) == 2 and all("File too large" in line and "Free some space" in line for line in lines), output + error
    assert ".new" not in output                                       # nobody has to know our temporary files
    assert value(path) == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


@posix
@pytest.mark.skipif(os.name == "posix" and os.getuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_explained(tmp_path):
    tmp_path.chmod(0o500)
    try:
        for write in (lambda: write_atomic(tmp_path / "a", "x"), lambda: fill(tmp_path / "out", "x")):
            with pytest.raises(FishpawError, match="that you may write to"):
                write()
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize(("number", "advice"), [(13, "may write to"), (30, "may write to"), (28, "Free some space"), (5, "Check the path")])
def test_errors_of_the_system_become_advice(tmp_path, monkeypatch, number, advice):
    fill(tmp_path / "out", "old")

    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "fsync", fail)
    for write in (lambda: write_atomic(tmp_path / "a", "x"), lambda: fill(tmp_path / "out", "new")):
        with pytest.raises(FishpawError, match=advice):
            write()
    monkeypatch.undo()
    assert value(tmp_path / "out") == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


# the manifest

def test_the_manifest_is_canonical_and_complete(tmp_path):
    fill(tmp_path / "out", "old")
    content = (tmp_path / "out" / "manifest.json").read_bytes()
    manifest = json.loads(content)
    assert content == json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert sorted(manifest["files"]) == ["config.json", "part/模型.bin"]
    assert verify_manifest(tmp_path / "out") == manifest["digest"] == write_manifest(tmp_path / "out")


def flips(path: Path, count: int, seed: int) -> int:
    """Flip one byte at a time in any file of the folder; how many flips were caught by an error that names the file."""
    choose = random.Random(seed)
    targets = [file for file in sorted(path.rglob("*")) if file.is_file()]
    sizes = [file.stat().st_size for file in targets]
    caught = 0
    for _ in range(count):
        file = choose.choices(targets, sizes)[0]
        before = file.read_bytes()
        after = bytearray(before)
        after[choose.randrange(len(after))] ^= choose.randrange(1, 256)
        file.write_bytes(after)
        try:
            verify_manifest(path)
        except CheckpointError as error:
            caught += file.name in str(error)
        file.write_bytes(before)
    return caught


def test_a_thousand_flipped_bytes_are_a_thousand_errors_that_name_the_file(tmp_path):
    fill(tmp_path / "out", "old")
    assert flips(tmp_path / "out", 1_000, seed=0) == 1_000


def test_every_byte_of_the_manifest_is_guarded(tmp_path):
    fill(tmp_path / "out", "old")
    path = tmp_path / "out" / "manifest.json"
    before = path.read_bytes()
    for position in range(len(before)):
        for flip in (1, 0x20, 0x80):                               # also: case, white space, no UTF-8
            path.write_bytes(before[:position] + bytes([before[position] ^ flip]) + before[position + 1 :])
            with pytest.raises(CheckpointError, match=r"manifest\.json"):
                verify_manifest(tmp_path / "out")
    for other in (before + b"\n", b" " + before, before[:-1], b"", before.replace(b'":', b'": ', 1)):
        path.write_bytes(other)
        with pytest.raises(CheckpointError, match=r"manifest\.json"):
            verify_manifest(tmp_path / "out")


def test_without_the_digest_flips_go_unseen(tmp_path, monkeypatch):
    """The planted fault: a verifier that skips the sums must fail the test of the flips."""
    fill(tmp_path / "out", "old")
    monkeypatch.setattr(files, "digest_of", lambda path: json.loads((tmp_path / "out" / "manifest.json").read_bytes())["files"][
        path.relative_to(tmp_path / "out").as_posix()]["sha256"])
    assert flips(tmp_path / "out", 60, seed=0) < 60


def test_missing_truncated_and_unlisted_files_are_named(tmp_path):
    path = tmp_path / "out"
    fill(path, "old")
    for stray in ("README.md", "log.jsonl", ".gitattributes", "figure.png"):
        (path / stray).write_text("x")
    (path / ".cache").mkdir()
    (path / ".cache" / "state.json").write_text("x")
    verify_manifest(path)
    for stray in ("model.safetensors", "part/pytorch_model.bin", "vocab.txt", "TOKENIZER.JSON", "x.data-00000-of-00001"):
        (path / stray).write_text("x")
        with pytest.raises(CheckpointError, match=f"{Path(stray).name}: not listed"):
            verify_manifest(path)
        (path / stray).unlink()
    (path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: 1 bytes, but manifest\.json says 16"):
        verify_manifest(path)
    (path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json: listed in manifest\.json, but missing"):
        verify_manifest(path)


def signed(found: object) -> bytes:
    digest = hashlib.sha256(files._canonical({"files": found})).hexdigest()
    return files._canonical({"digest": digest, "files": found})


@pytest.mark.parametrize("content", [
    b"[" * 1_000_000, b"null", b"[]", b'{"digest":"","files":{}}', b"\xff\xfe", b"1" * 10_000,
    signed([]), signed({"a": 1}), signed({"a": {}}),
    signed({"a": {"sha256": "0" * 64, "size": -1}}), signed({"a": {"sha256": "0" * 64, "size": True}}),
    signed({"a": {"sha256": "0" * 64, "size": 1.0}}), signed({"a": {"sha256": "G" * 64, "size": 1}}),
    signed({"../a": {"sha256": "0" * 64, "size": 1}}), signed({"/etc/passwd": {"sha256": "0" * 64, "size": 1}}),
    signed({"": {"sha256": "0" * 64, "size": 1}}), signed({"a\0b": {"sha256": "0" * 64, "size": 1}}),
], ids=range(17))  # fmt: skip
def test_hostile_manifests(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(CheckpointError):
        verify_manifest(tmp_path)


# names

@pytest.mark.parametrize("name", [
    "", ".", "./", "..", "../a", "a/../../b", "a/..", "/etc/passwd", "//host/share", "C:\\a", "C:a", "..\\a", "a\\..\\b", "\\a",
    "a\0b", "\ud800", "x" * 256, "x/" * 5000,
])  # fmt: skip
def test_names_that_leave_are_refused(tmp_path, name):
    with pytest.raises(CheckpointError, match="leaves the folder"):
        inside(tmp_path, name)


@pytest.mark.parametrize("name", ["a", "a/b.bin", "模型 一.bin", "...", "a..b", "./a"])
def test_names_that_stay(tmp_path, name):
    assert inside(tmp_path, name) == tmp_path / name


@posix
def test_links_are_followed(tmp_path):
    snapshot = tmp_path / "models--a" / "snapshots" / "0f"
    snapshot.mkdir(parents=True)
    store = tmp_path / "models--a" / "blobs"
    store.mkdir()
    (store / "1").write_text("x")
    (tmp_path / "secret").write_text("x")
    (snapshot / "model.bin").symlink_to("../../blobs/1")
    (snapshot / "evil.bin").symlink_to("../../../secret")
    (snapshot / "loop.bin").symlink_to("loop.bin")
    (snapshot / "up").symlink_to("..")
    assert blobs(snapshot) == store and blobs(tmp_path) is None
    assert inside(snapshot, "model.bin", also=blobs(snapshot)).read_text() == "x"
    for name in ("evil.bin", "loop.bin", "up", "up/x"):
        with pytest.raises(CheckpointError):
            inside(snapshot, name, also=blobs(snapshot))
    with pytest.raises(CheckpointError):
        inside(snapshot, "model.bin")


# locks

HOLD = """
import sys, time
from fishpaw.files import lock
with lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def test_a_second_process_waits_or_names_the_first(tmp_path):
    path = tmp_path / "out"
    child = run(HOLD, path, 30)
    try:
        assert child.stdout.readline() == "held\n"
        with pytest.raises(FishpawError, match=f"process {child.pid} is writing there"), lock(path, timeout=0.2):
            pass
        with pytest.raises(FishpawError, match=str(child.pid)), folder_atomic(path, timeout=0):
            pass
    finally:
        child.kill()
        child.communicate()
    with lock(path, timeout=0):                                    # its owner is dead: taken over at once
        pass
    assert list(tmp_path.iterdir()) == []


def test_waiting_ends_when_the_owner_does(tmp_path):
    child = run(HOLD, tmp_path / "out", 0.3)
    assert child.stdout.readline() == "held\n"
    with lock(tmp_path / "out", timeout=20):
        child.communicate(timeout=20)


def test_one_holder_at_a_time_within_a_process(tmp_path):
    with lock(tmp_path / "a"), pytest.raises(FishpawError, match=str(os.getpid())), lock(tmp_path / "a", timeout=0.1):
        pass
    with lock(tmp_path / "a"), lock(tmp_path / "b"):
        pass


COUNT = """
import sys
from pathlib import Path
from fishpaw.files import lock
path = Path(sys.argv[1])
for _ in range(100):
    with lock(path):
        path.write_text(str(int(path.read_text()) + 1))
"""


def test_no_update_is_lost_between_processes(tmp_path):
    path = tmp_path / "count"
    path.write_text("0")
    children = [run(COUNT, path) for _ in range(3)]
    for child in children:
        assert child.wait(60) == 0, child.communicate()[1]
        child.communicate()
    assert path.read_text() == "300"


@posix
def test_a_file_system_without_locks_falls_back_on_the_pid(tmp_path, monkeypatch):
    import fcntl

    def flock(descriptor, operation):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with lock(tmp_path / "a"), pytest.raises(FishpawError, match=str(os.getpid())), lock(tmp_path / "a", timeout=0):
        pass
    child = run("pass")
    child.communicate()
    (tmp_path / ".a.lock").write_text(str(child.pid))
    with lock(tmp_path / "a", timeout=0):
        pass


def test_two_processes_fill_one_folder_in_turn(tmp_path):
    code = "import sys\nfrom fishpaw.files import folder_atomic\nfor _ in range(10):\n    with folder_atomic(sys.argv[1]) as folder:\n"
    code += "        (folder / 'config.json').write_text('{\"value\": \"' + sys.argv[2] + '\"}')\n"
    children = [run(code, tmp_path / "out", name) for name in "ab"]
    deadline = time.monotonic() + 60
    while any(child.poll() is None for child in children) and time.monotonic() < deadline:
        recover(tmp_path / "out")                                  # a reader between the renames waits, and takes nothing away
    assert [child.wait(1) for child in children] == [0, 0], [child.communicate()[1] for child in children]
    for child in children:
        child.communicate()
    assert value(tmp_path / "out") in "ab"
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
