"""Files that are whole or absent: atomic writes, folders swapped in by a rename, SHA-256 manifests, locks, names that stay inside.

A process killed at any moment leaves the old file or folder, or the new one, complete. Beside a folder `out` stand, while it is
written: `.out.lock` (who writes), `.out.new` (what is being written), `.out.old` (the old one, between two renames), `.out.trash`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO

from fishpaw.errors import CheckpointError, FishpawError

__all__ = [
    "MANIFEST", "blobs", "digest_of", "file_atomic", "folder_atomic", "inside", "lock", "read_digest", "recover",
    "verify_manifest", "write_atomic", "write_manifest",
]  # fmt: skip

MANIFEST = "manifest.json"


def write_atomic(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write a file whole; see `file_atomic`. Text is UTF-8, line ends as given."""
    with file_atomic(path) as file:
        file.write(data.encode("utf-8") if isinstance(data, str) else data)


@contextmanager
def file_atomic(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Give a temporary sibling, open for writing; on success sync it and rename it to `path`; on an exception remove it.

    Makes parent folders. Raises FishpawError (disk full, not writable …), and then the old file is as it was.
    """
    target = _real(path)
    with _explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}-{os.urandom(4).hex()}.new")
        try:
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if target.exists():
                shutil.copymode(target, temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        _sync(target.parent)


@contextmanager
def folder_atomic(path: str | os.PathLike[str], *, timeout: float = 60.0) -> Iterator[Path]:
    """Give a temporary sibling to fill; on success list it in a manifest, sync it and swap it in as `path`; on an exception drop it.

    An existing folder is replaced, but files in it that its manifest does not list and no loader would read (a README, a log)
    move along. One that holds unlisted weights or configuration is refused before anything is written: it is another model's.
    The folder is locked meanwhile: another process waits `timeout` seconds, then raises FishpawError with the owner's pid.
    """
    target = _real(path)
    new = _sibling(target, "new")
    with lock(target, timeout=timeout), _explained(target):
        _settle(target)
        _refuse_foreign(target)
        _remove(new)
        new.mkdir()
        try:
            yield new
            write_manifest(new)
            _sync_tree(new)
            if target.exists():
                shutil.copymode(target, new)
                os.replace(target, _sibling(target, "old"))
            os.replace(new, target)
            _sync(target.parent)
        finally:
            _settle(target)                                       # forwards if the new one is in place, else back to the old one
            _remove(new)


def recover(path: str | os.PathLike[str]) -> bool:
    """Put the old folder back if a process died between the two renames that replace `path`. True if it did. Call before reading."""
    target = _real(path)
    if target.exists() or not _sibling(target, "old").exists():
        return False
    with lock(target), _explained(target):                        # a living writer is between the renames: let it end
        missing = not target.exists()
        _settle(target)
    return missing


def write_manifest(folder: str | os.PathLike[str]) -> str:
    """List every file below `folder` with size and SHA-256 in manifest.json (canonical JSON); return its digest."""
    root = Path(folder)
    with _explained(root):
        names = [name for name in _names(root) if name != MANIFEST]
        found = {name: {"sha256": digest_of(root / name), "size": (root / name).stat().st_size} for name in names}
        digest = hashlib.sha256(_canonical({"files": found})).hexdigest()
        write_atomic(root / MANIFEST, _canonical({"digest": digest, "files": found}))
    return digest


def verify_manifest(folder: str | os.PathLike[str], *, also: Path | None = None) -> str:
    """Compare every byte of a saved folder with its manifest; return the manifest's digest.

    Raises CheckpointError that names the file: changed, truncated, missing, or outside the folder (`also`: see `inside`). Files
    that are not listed are an error if a loader would read them (weights, .json, .txt, .model); a README or a log is none.
    """
    root = Path(folder)
    recover(root)
    digest, listed = _manifest(root)
    for name, (size, sha256) in listed.items():
        path = inside(root, name, also=also)
        try:
            if not path.is_file():
                raise CheckpointError(f"{path}: listed in {MANIFEST}, but missing.", fix=_FETCH)
            found = path.stat().st_size
            if found != size:
                raise CheckpointError(f"{path}: {found:,} bytes, but {MANIFEST} says {size:,}.", fix=_FETCH)
            if digest_of(path) != sha256:
                raise CheckpointError(f"{path}: its bytes differ from those that were saved (SHA-256).", fix=_FETCH)
        except OSError as error:
            raise CheckpointError(f"{path}: can't be read ({error.strerror}).", fix="Check its permissions and the disk.") from error
    strays = [name for name in _names(root) if name not in listed and _is_read_by_loaders(name)]
    if strays:
        raise CheckpointError(f"{root / strays[0]}: not listed in {MANIFEST}.", fix=f"Remove it, or {MANIFEST} if it belongs there.")
    return digest


def read_digest(folder: str | os.PathLike[str]) -> str:
    """The digest that a saved folder's manifest states, without a look at the files. Raises CheckpointError for no sound manifest."""
    return _manifest(Path(folder))[0]


@contextmanager
def lock(path: str | os.PathLike[str], *, timeout: float = 60.0) -> Iterator[None]:
    """Hold `.name.lock` beside `path`: one holder at a time, over threads and processes. Not re-entrant.

    The system frees it when its owner dies, so that a stale file never blocks. Raises FishpawError that names the owner's pid
    after `timeout` seconds. On file systems without locks the pid in the file decides.
    """
    target = _real(path)
    file = _sibling(target, "lock")
    deadline = time.monotonic() + timeout
    with _explained(target):
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(file)
        while descriptor is None:
            if time.monotonic() >= deadline:
                owner = _owner(file)
                raise FishpawError(
                    f"{target}: process {owner or 'unknown'} is writing there (waited {timeout:g} s).",
                    fix=f"Wait for it to end or choose another folder; {file.name} frees itself when that process ends.",
                )
            time.sleep(min(0.05, timeout / 4 + 0.001))
            descriptor = _acquire(file)
    try:
        yield
    finally:
        if os.name == "nt":                                       # an open file can't be removed there
            os.close(descriptor)
            with suppress(OSError):
                file.unlink()
        else:
            with suppress(OSError):                               # a waiter sees that its file is no longer the one in the folder
                file.unlink()
            with suppress(OSError):
                _fcntl().flock(descriptor, _fcntl().LOCK_UN)      # a forked worker may still have the descriptor
            os.close(descriptor)


def inside(folder: str | os.PathLike[str], name: str, *, also: Path | None = None) -> Path:
    """`folder / name`, after making sure that it stays in the folder, on every system. The file need not exist.

    `also`: one more folder that links may lead to (a hub snapshot holds links into a sibling folder `blobs`).
    Raises CheckpointError for absolute names, drives, `..`, backslashes, links that lead elsewhere, and names too long for a disk.
    """
    root, windows = Path(folder), PureWindowsPath(name)
    safe = "\0" not in name and "\\" not in name and not windows.anchor and PurePosixPath(name).parts and ".." not in windows.parts
    try:
        short = len(name) <= 1024 and all(len(part.encode("utf-8")) <= 255 for part in windows.parts)
        if safe and short and not name.startswith("/"):
            real = (root / name).resolve()
            if any(real != allowed and real.is_relative_to(allowed) for allowed in (root.resolve(), *([also.resolve()] if also else []))):
                return root / name
    except (OSError, RuntimeError, ValueError):                   # a loop of links, a path too long, a lone surrogate
        pass
    raise CheckpointError(f"{root}: the name {name[:200]!r} leaves the folder.", fix=_LEAVES)


def blobs(folder: str | os.PathLike[str]) -> Path | None:
    """The folder that a hub snapshot's links lead to (`also` of `inside`), None for any other folder."""
    root = Path(os.path.abspath(folder))
    return root.parent.parent / "blobs" if root.parent.name == "snapshots" else None


_FETCH = "Copy or download the folder again; a folder that you changed on purpose loads with verification off."
_LEAVES = "Don't use a model that points outside of itself; if the link is yours, put the file itself there."
_HEX = frozenset("0123456789abcdef")
_LIMIT = 16 * 2**20                                               # bytes of a manifest: 100,000 files and more
_READ = frozenset({".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".index", ".h5", ".weights", ".npz", ".json", ".txt", ".model"})
_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "Free some space (or raise the limit or quota) or choose another folder."),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "Choose a folder that you may write to (--out; for downloads set HF_HOME)."),
    **dict.fromkeys((errno.EBUSY, errno.EXDEV), "It is a mount point or in use: choose a folder inside it."),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST), "A part of this path is a file: choose another."),
    errno.ENAMETOOLONG: "Choose a shorter name.",
}


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        at = Path(error.filename) if isinstance(error.filename, str) else path
        where = "" if at == path or at.name.startswith(f".{path.name}.") else f": {at}"          # nobody knows our temporary files
        advice = _ADVICE.get(error.errno or 0, "Check the path and the disk, then try again.")
        raise FishpawError(f"{path}: can't be written ({error.strerror or error}{where}).", fix=advice) from error


def _real(path: str | os.PathLike[str]) -> Path:
    real = Path(os.path.realpath(path))
    if not real.name:
        raise FishpawError(f"{real}: the root of a disk can't be written as a whole.", fix="Name a folder in it.")
    return real


def _sibling(target: Path, suffix: str) -> Path:
    return target.with_name(f".{target.name}.{suffix}")


def _settle(target: Path) -> None:
    """End what a dead process began: the old folder goes back if the new one never came, else its strays move over and it goes."""
    old, trash = _sibling(target, "old"), _sibling(target, "trash")
    if old.exists() and not target.exists():
        os.replace(old, target)
        _sync(target.parent)
    elif old.exists():
        for name in _strays(old):
            if not (target / name).exists():
                with suppress(OSError):
                    (target / name).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(old / name, target / name)
        _remove(trash)
        os.replace(old, trash)                                    # so that `.old` is complete whenever it exists
    _remove(trash)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder, ignore_errors=True)


def _strays(folder: Path) -> list[str]:
    try:
        listed = _manifest(folder)[1]
    except CheckpointError:
        listed = {}
    return [name for name in _names(folder) if name not in listed and name != MANIFEST]


def _refuse_foreign(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise FishpawError(f"{target}: is a file, not a folder.", fix="Choose another name, or remove it.")
    if target.exists() and not (target / MANIFEST).exists():
        for name in filter(_is_read_by_loaders, _names(target)):
            raise FishpawError(f"{target}: holds {name}, which fishpaw did not save.", fix="Choose a new folder, or empty this one.")


def _is_read_by_loaders(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") for part in path.parts)
    return name != MANIFEST and not hidden and (path.suffix.lower() in _READ or ".data-" in path.name)


def _names(root: Path) -> list[str]:
    """Names of all files below the folder, "/" between the parts, sorted."""
    return sorted((Path(at) / name).relative_to(root).as_posix() for at, _, names in os.walk(root) for name in names)


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


def _manifest(root: Path) -> tuple[str, dict[str, tuple[int, str]]]:
    """Digest and {name: (size, sha256)}. Its own bytes must be the canonical ones, so that no flipped byte is invisible."""
    path = root / MANIFEST
    try:
        with open(path, "rb") as file:
            content = file.read(_LIMIT + 1)
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror}).", fix=_FETCH) from error
    value = _parsed(content)
    files = value.get("files") if isinstance(value, dict) and value.keys() == {"digest", "files"} else None
    if not isinstance(files, dict) or value["digest"] != hashlib.sha256(_canonical({"files": files})).hexdigest():
        raise CheckpointError(f"{path}: damaged, it does not agree with its own digest.", fix=_FETCH)
    listed: dict[str, tuple[int, str]] = {}
    for name, entry in files.items():
        if not isinstance(entry, dict) or entry.keys() != {"sha256", "size"}:
            raise CheckpointError(f"{path}: the entry of {name!r} is not a size and a SHA-256.", fix=_FETCH)
        size, sha256 = entry["size"], entry["sha256"]
        if type(size) is not int or size < 0 or not isinstance(sha256, str) or len(sha256) != 64 or not _HEX.issuperset(sha256):
            raise CheckpointError(f"{path}: the entry of {name!r} is not a size and a SHA-256.", fix=_FETCH)
        listed[name] = (size, sha256)
    return value["digest"], listed


def _parsed(content: bytes) -> Any:
    """The JSON value, or None unless these are exactly its canonical bytes."""
    try:
        value = json.loads(content) if len(content) <= _LIMIT else None
        return value if content == _canonical(value) else None
    except (ValueError, RecursionError):
        return None


def _sync(path: Path) -> None:
    """Flush a file or, where the system can, a folder's names to the disk."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):    # some file systems can't sync folders
            raise
    finally:
        os.close(descriptor)


def _sync_tree(root: Path) -> None:
    for at, _, names in os.walk(root, topdown=False):
        for name in names:
            _sync(Path(at) / name)
        _sync(Path(at))


def _fcntl() -> Any:
    import fcntl  # POSIX only

    return fcntl


def _acquire(file: Path) -> int | None:
    """A descriptor that holds the lock, with our pid written; None if another holds it."""
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:
        if os.name == "nt" and file.exists():                     # being removed by its owner
            return None
        raise
    held = False
    try:
        held = _try_lock(descriptor, file)
        if held:
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, f"{os.getpid():<20d}\n".encode("ascii"))
        return descriptor if held else None
    finally:
        if not held:
            os.close(descriptor)


def _try_lock(descriptor: int, file: Path) -> bool:
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, 2**20, os.SEEK_SET)                  # far from the pid, which others must be able to read
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    fcntl = _fcntl()
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL):
            raise
        owner = _owner(file)                                      # no locks on this file system: the pid is the next best thing
        if owner is not None and _is_alive(owner):
            return False
    try:
        return os.fstat(descriptor).st_ino == os.stat(file).st_ino          # the former owner may have removed this one meanwhile
    except FileNotFoundError:
        return False


def _owner(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="ascii").strip() or "0") or None
    except (OSError, ValueError):
        return None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
