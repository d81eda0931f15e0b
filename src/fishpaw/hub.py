"""A model's name -> the local folder it lies in: a folder, a file, one that ships, or a hub id that is fetched, pinned and verified.

Protocol: https://huggingface.co/docs/hub/api, spoken by huggingface_hub, which leaves two things to its callers: it compares
no hash after a download (huggingface_hub issues 2364 and 3643), and its listings wait for ever. Both are done here.
"""

from __future__ import annotations

import difflib
import errno
import hashlib
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Literal, NoReturn

from fishpaw.errors import CheckpointError, ConfigError, FishpawError, HubError

__all__ = ["SMALL", "Found", "find", "shipped"]

SMALL = "fishpaw-small"
"""The model that comes with fishpaw and is taken where none is named."""


@dataclass(frozen=True)
class Found:
    """Where a model lies. `revision` is the hub's commit (40 hex digits), to be recorded wherever the model is saved."""

    folder: Path
    source: Literal["folder", "file", "shipped", "hub"]
    name: str                       # as it should be recorded: the hub id, or the path
    revision: str | None = None
    file: Path | None = None        # the file that was named; of a TensorFlow bundle its prefix, which is no file itself
    note: str | None = None         # what the user should hear about it, such as that the hub could not be asked


def find(name: str | Path, *, revision: str | None = None, offline: bool | None = None) -> Found:
    """Find a model. Nothing that is fetched is ever executed: only weights, JSON and vocabularies are taken, no Python file.

    name: a folder; a file (.safetensors, .bin, .pt, a TensorFlow bundle's prefix or any of its files); a model that ships with
        fishpaw (shipped()); or a hub id, `name`, `owner/name` or `owner/name@revision`. What exists on the disk wins. What looks like
        a path is never sent to the hub.
    revision: branch, tag or commit of a hub id; default the hub's main branch. The commit it stood for is returned.
    offline: True: the network isn't touched; False: it is asked; None: as HF_HUB_OFFLINE says.

    Only one kind of weights is fetched, safetensors where there are any, and only from the top folder. Each file is compared with
    the size and the hash that the hub states for it, each time. If the hub can't be reached, what was fetched before is used, with a note.
    Environment: HF_ENDPOINT (a mirror), HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_HUB_OFFLINE, HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT
    (seconds, default 10).

    Raises CheckpointError (no such path, no weights), ConfigError (a name or a revision that can't be), HubError (exit code 3).
    """
    text = os.fspath(name)
    if not text.strip() or "\0" in text:
        raise ConfigError(f"{text!r} is no name of a model.", fix="Give a folder, a file of weights or a hub id such as owner/name.")
    local = _on_disk(text)
    if local is not None:
        if revision is not None:
            raise ConfigError(f"{text} lies on this disk, where revision {revision!r} means nothing.", fix="Leave the revision out.")
        return local
    if text in shipped():
        if revision is not None:
            raise ConfigError(f"{text} comes with fishpaw, in one revision.", fix=f"Leave {revision!r} out.")
        return Found(_PRETRAINED / text, "shipped", text)
    if isinstance(name, Path) or _looks_like_a_path(text):
        raise CheckpointError(f"{text}: there is no such file or folder.", fix=_neighbours(text))
    repository, wanted = _split(text, revision)
    hub = _Hub(repository, wanted)
    if _is_offline() if offline is None else offline:
        return hub.fetched_before(because="offline mode is on")
    return hub.fetch()


_PRETRAINED = Path(__file__).resolve().parent / "pretrained"


def shipped() -> list[str]:
    """The models that come with fishpaw, by name."""
    return sorted(path.parent.name for path in _PRETRAINED.glob("*/config.json"))


# -- on the disk ------------------------------------------------------------------------------------------------------------------

_WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".weights", ".npz", ".json")
_BUNDLE_PART = re.compile(r"(.+)\.(index|meta|data-\d{5}-of-\d{5})")


def _on_disk(text: str) -> Found | None:
    path = _home(text)
    try:
        if path.is_dir():
            return Found(path, "folder", text)
        if path.is_file():
            part = _BUNDLE_PART.fullmatch(path.name)
            if part is not None:
                path = path.with_name(part[1])
            elif path.suffix.lower() not in _WEIGHT_FILES:
                raise CheckpointError(f"{text} is not a file of weights that can be read.",
                                      fix="Give a .safetensors, a .bin, a TensorFlow bundle (x.ckpt) or the folder they lie in.")
            return Found(path.parent, "file", text, file=path)
        if path.with_name(path.name + ".index").is_file():
            return Found(path.parent, "file", text, file=path)
    except (OSError, ValueError) as error:                        # a name too long, a folder without permission, Path("/")
        raise CheckpointError(f"{text}: {error}.", fix="Give a folder, a file of weights or a hub id such as owner/name.") from None
    return None


def _home(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:                                              # ~nobody/model, or no home directory at all
        raise CheckpointError(f"{text}: there is no such home folder.", fix="Give the whole path.") from None


def _looks_like_a_path(text: str) -> bool:
    return (text[0] in "./~\\" or text[-1] in "/\\" or "\\" in text or bool(PureWindowsPath(text).drive)
            or text.partition("@")[0].count("/") > 1 or text.lower().endswith((*_WEIGHT_FILES, ".ckpt", ".index")))


def _near(path: Path) -> list[str]:
    return difflib.get_close_matches(path.name, sorted(other.name for other in path.parent.iterdir()), n=3)


def _neighbours(text: str) -> str:
    path = _home(text)
    try:
        near = _near(path)
    except OSError:
        return f"The folder {path.parent} can't be read either: check the path."
    return f"Close to it in {path.parent}: {', '.join(near)}." if near else f"Check the path: {path.parent} holds nothing like it."


# -- names on the hub -------------------------------------------------------------------------------------------------------------

_REPOSITORY = re.compile(r"(?!.*(?:--|\.\.|\.git$))(?:\w(?:[\w.-]*\w)?/)?\w(?:[\w.-]*\w)?", re.ASCII)
_REVISION = re.compile(r"\w[\w./-]*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


def _split(text: str, revision: str | None) -> tuple[str, str]:
    repository, at, inline = text.partition("@")
    if at and revision is not None and inline != revision:
        raise ConfigError(f"{text} asks for revision {inline!r} and the argument for {revision!r}.", fix="Give one of them.")
    wanted = inline if at else "main" if revision is None else revision
    if not _REPOSITORY.fullmatch(repository) or len(repository) > 96:
        raise CheckpointError(f"{text} is neither a file nor a folder nor a hub id (owner/name).", fix=_neighbours(text))
    if not _REVISION.fullmatch(wanted) or ".." in wanted or wanted[-1] in "/.":
        raise ConfigError(f"{wanted!r} is no revision.", fix="Give a branch, a tag or a commit of 40 hex digits.")
    return repository, wanted


# -- the hub ----------------------------------------------------------------------------------------------------------------------

# The first line that matches takes all: one kind of weights, one copy. Each with the index that names its shards.
_BUNDLE = r".*\.ckpt.*\.(?:index|data-\d{5}-of-\d{5})"
_WEIGHTS = ((r"model\.safetensors", None),
            (r"model-\d{5}-of-\d{5}\.safetensors", "model.safetensors.index.json"),
            (r".*\.safetensors", None),
            (r"pytorch_model\.bin", None),
            (r"pytorch_model-\d{5}-of-\d{5}\.bin", "pytorch_model.bin.index.json"),
            (_BUNDLE, None))
_BESIDE = re.compile(r".*\.(?:json|txt|model|vocab)|merges|vocab")


@dataclass(frozen=True)
class _File:
    name: str
    size: int | None
    digest: str | None              # 64 hex digits: SHA-256 of the content; 40: git's SHA-1 of "blob SIZE\0" and the content


class _Hub:
    """One repository at one revision, as the hub and its cache know it."""

    def __init__(self, repository: str, wanted: str) -> None:
        try:
            from huggingface_hub import constants
        except ValueError as error:                               # int(os.environ["HF_HUB_ETAG_TIMEOUT"]) as it is imported
            raise ConfigError(f"HF_HUB_ETAG_TIMEOUT or HF_HUB_DOWNLOAD_TIMEOUT is not a whole number of seconds: {error}.",
                              fix="Correct or unset it.") from None
        self.repository, self.wanted = repository, wanted
        # Read now, too: in a notebook they are often set after the import, which is when huggingface_hub reads them.
        self.endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
        home = os.environ.get("HF_HOME")
        cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or (
            os.path.join(home, "hub") if home else constants.HF_HUB_CACHE)
        self.cache = Path(os.path.expandvars(cache)).expanduser().absolute()
        self.folder = self.cache / f"models--{repository.replace('/', '--')}"
        self.timeout = constants.HF_HUB_ETAG_TIMEOUT

    def fetch(self) -> Found:
        try:
            commit, files = self.listing()
            for file in files:
                self.bring(commit, file)
            self.remember(commit)
        except _Unreachable as error:
            return self.fetched_before(because=str(error))
        return Found(self.folder / "snapshots" / commit, "hub", self.repository, commit)

    def listing(self) -> tuple[str, list[_File]]:
        """The commit that the revision stands for, and the files to fetch, config.json last: a snapshot that has it is whole."""
        from huggingface_hub import HfApi

        with self.reaching():
            try:
                info = HfApi(endpoint=self.endpoint, library_name="fishpaw").model_info(
                    self.repository, revision=self.wanted, timeout=self.timeout, files_metadata=True)
                files = [_File(at.rfilename, at.lfs.size if at.lfs else at.size, at.lfs.sha256 if at.lfs else at.blob_id)
                         for at in info.siblings or ()]
                commit = info.sha or ""
            except (ValueError, TypeError, KeyError, AttributeError):        # not JSON, or another JSON
                files, commit = [], ""
        if not _COMMIT.fullmatch(commit):
            raise self.no_hub()
        for file in files:
            if _escapes(file.name):
                raise HubError(f"{self.repository} lists a file {file.name!r}, which would lie outside its folder; nothing was fetched.",
                               fix="Don't use this model, and tell the hub about it.")
        chosen = _choose(files)
        if not chosen:
            kinds = sorted({PurePosixPath(file.name).suffix for file in files} - {"", ".json", ".md", ".txt"})
            raise CheckpointError(f"{self.repository} holds no safetensors, pytorch_model.bin or TensorFlow bundle, only "
                                  f"{', '.join(kinds) or 'text'}.", fix="Convert it, or choose another model.")
        return commit, chosen

    def bring(self, commit: str, file: _File) -> None:
        """Fetch one file unless it is there, and compare it with what the hub says of it."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

        path = self.folder / "snapshots" / commit / file.name
        digest, size = file.digest, file.size
        if not path.is_file():
            with self.reaching():
                # Asked once more than needed, because hf_hub_download meets silence here with six more tries of a minute each.
                url = hf_hub_url(self.repository, file.name, revision=commit, endpoint=self.endpoint)
                head = get_hf_file_metadata(url, timeout=self.timeout, endpoint=self.endpoint, library_name="fishpaw")
                if head.commit_hash != commit or not head.etag or _escapes(head.etag) or "/" in head.etag:
                    raise HubError(f"{self.endpoint} answers for {file.name} of {self.repository} with another commit or no tag.",
                                   fix="Try again; if it stays so, choose another HF_ENDPOINT or give a local folder.")
                digest, size = digest or head.etag, head.size if size is None else size
                hf_hub_download(self.repository, file.name, revision=commit, cache_dir=self.cache, endpoint=self.endpoint,
                                etag_timeout=self.timeout, library_name="fishpaw")
        self.verify(path, size, digest or _blob_name(path))

    def verify(self, path: Path, size: int | None, digest: str | None) -> None:
        try:
            seen = path.stat().st_size
            wrong = size is not None and seen != size
            what = f"{seen} bytes instead of {size}" if wrong else ""
            if not wrong and digest is not None and re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", digest):
                found = _digest(path, digest)
                wrong, what = found != digest, f"hash {found[:12]}… instead of {digest[:12]}…"
        except OSError as error:
            raise HubError(f"{path} can't be read: {error.strerror}.", fix="Correct its permissions or remove it.") from None
        if wrong:
            _remove(path, self.cache)
            raise HubError(f"{path.name} of {self.repository} is damaged ({what}); it was removed.",
                           fix=f"Run it again; if it stays so, choose another HF_ENDPOINT (now {self.endpoint}).")

    def remember(self, commit: str) -> None:
        """Note which commit a branch stood for, where huggingface_hub and so every other program looks for it."""
        reference = self.folder / "refs" / self.wanted
        if self.wanted == commit:
            return
        temporary = reference.with_name(f"{reference.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            if reference.is_file() and reference.read_text(encoding="utf-8") == commit:
                return
            reference.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(commit, encoding="utf-8")
            os.replace(temporary, reference)
        except OSError as error:
            self.unwritable(error)

    def fetched_before(self, *, because: str) -> Found:
        """What the cache holds of this repository and revision, verified as far as the cache states hashes."""
        commit = self.wanted
        if not _COMMIT.fullmatch(commit):
            try:
                commit = (self.folder / "refs" / self.wanted).read_text(encoding="utf-8").strip()
            except (OSError, ValueError):
                commit = ""
        snapshot = self.folder / "snapshots" / commit
        known = _COMMIT.fullmatch(commit) and snapshot.is_dir()
        names = sorted(path.name for path in snapshot.iterdir() if path.is_file()) if known else []
        bundle = any(re.fullmatch(_BUNDLE, name) for name in names)             # comes without a config.json at times
        if not _choose([_File(name, None, None) for name in names]) or not ("config.json" in names or bundle):
            missing = "only in part or at another revision" if any(self.folder.glob("snapshots/*/*")) else "not"
            what = f"{self.repository}@{self.wanted} is {missing} in the cache {self.cache}, and {because}; {self.no_folder()}."
            raise HubError(what, fix=self.ways_out())
        for name in names:
            self.verify(snapshot / name, None, _blob_name(snapshot / name))
        return Found(snapshot, "hub", self.repository, commit,
                     note=f"{self.repository}: {because}; the copy that was fetched earlier is used (commit {commit[:12]}).")

    def ways_out(self) -> str:
        here = self.candidates()
        listed = f"In the cache: {', '.join(here[:8])}{', …' if len(here) > 8 else ''}." if here else "The cache holds no model."
        switches = " and ".join(name for name in _OFFLINE if os.environ.get(name)) if _is_offline() else ""
        first = f"Unset {switches} to ask the hub (HF_ENDPOINT: a mirror)" if switches else "Set HF_ENDPOINT to a mirror"
        return f"{first}, or give a local folder. {listed}"

    def no_folder(self) -> str:
        """A mistyped folder is asked of the hub, too: say that it was looked for."""
        try:
            near = _near(Path(self.repository))
        except OSError:
            near = []
        return f"there is no folder {self.repository} here" + (f", but {' and '.join(near)}" if near else "")

    def candidates(self) -> list[str]:
        """Models that the cache holds, nearest name first."""
        try:
            folders = [folder for folder in self.cache.iterdir() if folder.name.startswith("models--")
                       and (any(folder.glob("snapshots/*/config.json")) or any(folder.glob("snapshots/*/*.ckpt.index")))]
        except OSError:
            return []
        names = sorted("/".join(folder.name.split("--")[1:]) for folder in folders)
        return sorted(names, key=lambda name: -difflib.SequenceMatcher(None, name, self.repository).ratio())

    @contextmanager
    def reaching(self) -> Iterator[None]:
        """Turn what a request can end in into one sentence: a HubError, or _Unreachable where the cache may still help."""
        import httpx2
        from huggingface_hub.errors import FileMetadataError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

        try:
            yield
        except FishpawError:
            raise
        except HfHubHTTPError as error:
            self.refused(error.response.status_code, error.response.headers.get("X-Error-Code", ""))
        except httpx2.TimeoutException:
            raise _Unreachable(f"{self.endpoint} did not answer within {self.timeout} s") from None
        except FileMetadataError:
            raise self.no_hub() from None
        except (OfflineModeIsEnabled, LocalEntryNotFoundError):
            raise _Unreachable("offline mode is on" if _is_offline() else f"{self.endpoint} could not be reached") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, ConnectionError, TimeoutError, RuntimeError) as error:   # RuntimeError: hf_xet's
            why = next(iter(str(error).splitlines()), type(error).__name__)
            raise _Unreachable(f"{self.endpoint} could not be reached ({why})") from None
        except OSError as error:
            self.unwritable(error)

    def refused(self, status: int, code: str) -> NoReturn:
        near = [name for name in self.candidates() if name != self.repository]
        close = difflib.get_close_matches(self.repository, near, n=3)
        advice = f"Did you mean {' or '.join(close)}?" if close else "Check how it is written (owner/name), or give a local folder."
        if code == "RevisionNotFound":
            raise HubError(f"{self.repository} has no revision {self.wanted!r}.", fix="Give a branch, a tag or a commit that it has.")
        if code == "EntryNotFound":
            raise HubError(f"{self.endpoint} lists a file of {self.repository} that it lacks.", fix="Try again, or another HF_ENDPOINT.")
        if code == "GatedRepo" or status == 403:
            raise HubError(f"{self.repository} is given only to those who were granted access ({status}).",
                           fix=f"Ask for it on {self.endpoint}/{self.repository}, then set HF_TOKEN.")
        if status == 401:
            what = f"{self.endpoint} has no public model {self.repository}, or does not accept the token (401); {self.no_folder()}."
            raise HubError(what, fix=f"If it is private, set HF_TOKEN. {advice}")
        if status == 404:
            raise HubError(f"{self.endpoint} has no model {self.repository} (404); {self.no_folder()}.", fix=advice)
        raise _Unreachable(f"{self.endpoint} answers with status {status}")

    def no_hub(self) -> HubError:
        return HubError(f"{self.endpoint} does not answer as a model hub does.",
                        fix="Check HF_ENDPOINT and the proxy, or give a local folder.")

    def unwritable(self, error: OSError) -> NoReturn:
        if error.errno == errno.ENOSPC:
            raise HubError(f"The disk of {self.cache} is full.", fix="Make room, or set HF_HOME to a folder on another disk.") from None
        if error.errno is None:                                   # huggingface_hub's own: the size differs from the one announced
            raise HubError(f"A file of {self.repository} came incomplete from {self.endpoint}.",
                           fix="Run it again, or set HF_ENDPOINT to a mirror.") from None
        raise HubError(f"The cache {self.cache} can't be written: {error.strerror}.", fix="Set HF_HOME to a folder that can be.") from None


_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


class _Unreachable(Exception):
    """The hub can't be asked now; str() says why. Never leaves this file."""


def _is_offline() -> bool:
    first, second = (os.environ.get(name) for name in _OFFLINE)
    return (first or second or "").upper() in {"1", "ON", "YES", "TRUE"}


def _choose(files: list[_File]) -> list[_File]:
    """One kind of weights and what belongs to it, config.json last; empty if there are no weights."""
    for pattern, index in _WEIGHTS:
        weights = [file for file in files if "/" not in file.name and re.fullmatch(pattern, file.name)]
        if weights:
            beside = [file for file in files if "/" not in file.name and _BESIDE.fullmatch(file.name)
                      and (file.name == index or not file.name.endswith(".index.json"))]
            return sorted(weights + beside, key=lambda file: file.name == "config.json")
    return []


def _escapes(name: str) -> bool:
    """Whether joining it to a folder could leave the folder, on any system."""
    return (not name or "\0" in name or "\\" in name or bool({"..", "."} & set(name.split("/"))) or name.startswith("/")
            or any(PureWindowsPath(part).drive for part in name.split("/")))


def _blob_name(path: Path) -> str | None:
    """In the cache a file is a link to a blob that is named by its hash."""
    return Path(os.readlink(path)).name if path.is_symlink() else None


def _digest(path: Path, like: str) -> str:
    digest = hashlib.sha256() if len(like) == 64 else hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _remove(path: Path, cache: Path) -> None:
    """A file of the cache and what it links to, so that the next run fetches it anew; nothing outside the cache."""
    root = cache.resolve()
    while True:
        target = path.parent / os.readlink(path) if path.is_symlink() else None
        if root in path.parent.resolve().parents:
            path.unlink(missing_ok=True)
        if target is None:
            return
        path = target
