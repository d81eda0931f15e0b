"""hub.find: what lies on the disk, and a hub that cuts, lies, is silent or is gone. A server in this process plays the hub."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from fishpaw.errors import CheckpointError, ConfigError, FishpawError, HubError
from fishpaw.hub import find

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NEWER = "89abcdef0123456789abcdef0123456789abcdef"
WEIGHTS = bytes(range(256)) * 1201                                # 307,456 bytes
TEXTS = {"config.json": b'{"model_type": "bert"}', "vocab.txt": "[PAD]\n[UNK]\n鱼\n".encode(), "tokenizer_config.json": b"{}"}
MODEL = {**TEXTS, "model.safetensors": WEIGHTS, "pytorch_model.bin": b"pickle", "README.md": b"# card", "training_args.bin": b"x",
         "modeling_evil.py": b"raise SystemExit", "onnx/model.safetensors": b"another", "pytorch_model.bin.index.json": b"{}"}


# -- the hub that is played -------------------------------------------------------------------------------------------------------

@dataclass
class Hub:
    url: str = ""
    models: dict[str, dict[str, bytes]] = field(default_factory=dict)
    commit: str = COMMIT
    large: tuple[str, ...] = (".safetensors", ".bin")            # kept outside git, so their hash is a SHA-256
    hashes: bool = True                                          # whether the listing states sizes and hashes
    sent: dict[str, bytes] = field(default_factory=dict)         # what is really sent for a file
    cuts: dict[str, int] = field(default_factory=dict)           # how many times sending it breaks off in the middle
    listing: bytes | None = None                                 # a listing to send as it is
    status: tuple[int, str] | None = None                        # what every request is answered with
    head_status: tuple[int, str] | None = None
    silent: tuple[str, ...] = ()                                 # methods or paths that are never answered
    elsewhere: str = ""                                          # where large files lie, on another host
    tag: str | None = None                                       # an ETag to lie with
    asked: list[tuple[str, str, str]] = field(default_factory=list)      # method, path, Range
    over: threading.Event = field(default_factory=threading.Event)

    def digest(self, name: str, content: bytes) -> str:
        return hashlib.sha256(content).hexdigest() if name.endswith(self.large) else git(content)

    def fetched(self) -> Counter[str]:
        return Counter(path.rpartition("/")[2] for method, path, _ in self.asked if method == "GET" and "/resolve/" in path)


def git(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Answers(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True                               # head and body are two writes: 40 ms a request otherwise

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.asked.append((self.command, path, self.headers.get("Range", "")))
        if any(word in (self.command, path) or word in path for word in hub.silent):
            hub.over.wait(30)
            self.close_connection = True
            return
        status = hub.status or (hub.head_status if self.command == "HEAD" else None)
        if status is not None:
            return self.send(status[0], b'{"error": "no"}', {"X-Error-Code": status[1]} if status[1] else {})
        if path.startswith("/api/models/"):
            name, _, revision = path.removeprefix("/api/models/").partition("/revision/")
            return self.list(name, revision)
        name, _, rest = path[1:].partition("/resolve/")
        commit, _, file = rest.partition("/")
        self.file(name, commit, file)

    def list(self, name: str, revision: str) -> None:
        hub = self.hub
        if hub.listing is not None:
            return self.send(200, hub.listing, {"Content-Type": "application/json"})
        if name not in hub.models:
            return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", hub.commit, "v1"):
            return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        files = []
        for file, content in hub.models[name].items():
            entry: dict[str, Any] = {"rfilename": file}
            if hub.hashes:
                entry |= {"size": len(content), "blobId": git(content)}
                if file.endswith(hub.large):
                    entry["lfs"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "pointerSize": 134}
            files.append(entry)
        self.send(200, json.dumps({"id": name, "sha": hub.commit, "siblings": files}).encode(), {"Content-Type": "application/json"})

    def file(self, name: str, commit: str, file: str) -> None:
        hub = self.hub
        content = hub.models[name][file]
        body = hub.sent.get(file, content)
        tag = hub.tag or hub.digest(file, content)
        facts = {"ETag": f'"{tag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if hub.elsewhere and file.endswith(hub.large) and self.headers["Host"] in hub.url:
            facts = {"X-Linked-Etag": facts["ETag"], "X-Linked-Size": str(len(content)), "X-Repo-Commit": commit, "ETag": '"other"'}
            return self.send(302, b"", {**facts, "Location": f"{hub.elsewhere}{self.path}"})
        asked = self.headers.get("Range", "") if self.command == "GET" else ""
        start = int(asked.removeprefix("bytes=").rstrip("-") or 0)
        if start:
            facts["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        if self.command == "GET" and hub.cuts.get(file, 0) > 0:
            hub.cuts[file] -= 1
            self.send(206 if start else 200, body[start:], facts, cut=(len(body) - start) // 2)
        else:
            self.send(206 if start else 200, body[start:], facts)

    def send(self, status: int, body: bytes, headers: dict[str, str], cut: int | None = None) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])
        self.close_connection = self.close_connection or cut is not None


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import close_session, constants

    hub = Hub(models={"fish/paw": dict(MODEL)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Answers,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    for key in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(key, raising=False)
    for key, value in {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "*", "HF_HUB_DISABLE_XET": "1"}.items():
        monkeypatch.setenv(key, value)
    for key, setting in {"HF_HUB_ETAG_TIMEOUT": 1, "HF_HUB_DOWNLOAD_TIMEOUT": 1, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True,
                         "HF_TOKEN_PATH": str(tmp_path / "token"), "HF_HUB_DISABLE_PROGRESS_BARS": True}.items():
        monkeypatch.setattr(constants, key, setting)
    close_session()
    yield hub
    hub.over.set()
    close_session()
    server.shutdown()
    thread.join()
    server.server_close()


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def outside(tmp_path: Path) -> set[str]:
    return {name for name in names(tmp_path) if not name.startswith("home/hub/")}


# -- on the disk ------------------------------------------------------------------------------------------------------------------

def test_folder_wins_over_the_hub_and_takes_no_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fish" / "paw").mkdir(parents=True)
    found = find("fish/paw")
    assert (found.folder, found.source, found.revision, found.file) == (Path("fish/paw"), "folder", None, None)
    assert find(tmp_path / "fish").folder == tmp_path / "fish"
    with pytest.raises(ConfigError, match="lies on this disk"):
        find("fish/paw", revision="v1")


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "paw").mkdir()
    assert find("~/paw").folder == tmp_path / "paw"


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin", "old.pt", "model.safetensors.index.json"])
def test_file_is_its_folder_and_its_name(tmp_path: Path, kind: str) -> None:
    (tmp_path / kind).write_bytes(b"x")
    found = find(str(tmp_path / kind))
    assert (found.folder, found.source, found.file) == (tmp_path, "file", tmp_path / kind)


@pytest.mark.parametrize("asked", ["bert_model.ckpt", "bert_model.ckpt.index", "bert_model.ckpt.data-00000-of-00001"])
def test_bundle_is_named_by_its_prefix_or_any_of_its_files(tmp_path: Path, asked: str) -> None:
    folder = tmp_path / "chinese_L-12"
    folder.mkdir()
    for part in ("index", "data-00000-of-00001"):
        (folder / f"bert_model.ckpt.{part}").write_bytes(b"x")
    found = find(folder / asked)
    assert (found.folder, found.source, found.file) == (folder, "file", folder / "bert_model.ckpt")


def test_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("x", encoding="utf-8")
    with pytest.raises(CheckpointError, match="not a file of weights"):
        find(tmp_path / "notes.md")


@pytest.mark.parametrize("name", ["./paw", "../paw", "/nowhere/paw", "~/nowhere/paw", "paw/", "a/b/c", "C:\\paw", "C:/paw", "a\\b", ".paw",
                                  "paw.safetensors", "fish/model.ckpt", "fish//paw", "fish/..", "-paw", "paw-", "paw.git", "鱼/掌",
                                  "fish/p aw", "fish--paw", "a" * 97, "a" * 5000, Path("fish/paw")])
def test_what_cannot_be_a_hub_id_is_never_sent_to_the_hub(hub: Hub, name: str | Path) -> None:
    with pytest.raises(CheckpointError):
        find(name)
    assert not hub.asked


def test_missing_path_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "roberta-small").mkdir()
    with pytest.raises(CheckpointError, match="no such file or folder.*roberta-small"):
        find(tmp_path / "roberta-smal")


@pytest.mark.parametrize("name", ["", "  ", "a\0b"])
def test_no_name_at_all(name: str) -> None:
    with pytest.raises(ConfigError, match="no name of a model"):
        find(name)


@pytest.mark.parametrize(("name", "revision"), [("fish/paw@", None), ("fish/paw", ""), ("fish/paw", "../../x"), ("fish/paw", "/etc"),
                                                ("fish/paw", "a b"), ("fish/paw@v1", "v2"), ("fish/paw@../x", None), ("fish/paw", "v1/")])
def test_revision_that_cannot_be_is_refused_before_anything_is_asked(hub: Hub, tmp_path: Path, name: str, revision: str | None) -> None:
    with pytest.raises(ConfigError):
        find(name, revision=revision)
    assert not hub.asked and not names(tmp_path)


# -- a hub that works -------------------------------------------------------------------------------------------------------------

def test_fetches_one_kind_of_weights_and_pins_the_commit(hub: Hub, tmp_path: Path) -> None:
    found = find("fish/paw")
    assert (found.source, found.name, found.revision, found.file, found.note) == ("hub", "fish/paw", COMMIT, None, None)
    assert names(found.folder) == {*TEXTS, "model.safetensors"}          # no .bin, no code, nothing of a subfolder
    assert (found.folder / "model.safetensors").read_bytes() == WEIGHTS
    assert found.folder.is_relative_to(tmp_path / "home" / "hub") and not outside(tmp_path)
    assert list(hub.fetched())[-1] == "config.json"                      # last, so that what has it is whole
    before = len(hub.asked)
    assert find("fish/paw") == found
    assert [path for _, path, _ in hub.asked[before:]] == ["/api/models/fish/paw/revision/main"]       # nothing is fetched twice


@pytest.mark.parametrize("hashes", [True, False])
def test_large_files_may_lie_on_another_host(hub: Hub, hashes: bool) -> None:
    hub.elsewhere, hub.hashes = hub.url.replace("127.0.0.1", "localhost"), hashes
    assert (find("fish/paw").folder / "model.safetensors").read_bytes() == WEIGHTS
    hub.commit, hub.models["fish/paw"]["model.safetensors"], hub.sent = NEWER, WEIGHTS[::-1], {"model.safetensors": WEIGHTS}
    with pytest.raises(HubError, match="damaged"):
        find("fish/paw")


@pytest.mark.parametrize("hashes", [True, False])
@pytest.mark.parametrize("wrong", [False, True])
def test_a_disk_without_symbolic_links(hub: Hub, monkeypatch: pytest.MonkeyPatch, wrong: bool, hashes: bool) -> None:
    from huggingface_hub import constants

    hub.hashes = hashes
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True)
    if wrong:
        hub.sent["model.safetensors"] = WEIGHTS[::-1]
        with pytest.raises(HubError, match="damaged"):
            find("fish/paw")
        hub.sent.clear()
    found = find("fish/paw")
    assert not any(path.is_symlink() for path in found.folder.iterdir())
    assert (found.folder / "model.safetensors").read_bytes() == WEIGHTS and find("fish/paw", offline=True).folder == found.folder


def test_other_programs_find_what_was_fetched(hub: Hub, tmp_path: Path) -> None:
    from huggingface_hub import try_to_load_from_cache

    found = find("fish/paw")
    seen = try_to_load_from_cache("fish/paw", "config.json", cache_dir=tmp_path / "home" / "hub", revision="main")
    assert seen == str(found.folder / "config.json")


@pytest.mark.parametrize(("name", "revision"), [("fish/paw@v1", None), ("fish/paw", "v1"), ("fish/paw@v1", "v1"),
                                                (f"fish/paw@{COMMIT}", None)])
def test_revision_is_asked_for(hub: Hub, name: str, revision: str | None) -> None:
    assert find(name, revision=revision).revision == COMMIT
    assert hub.asked[0][1].endswith(f"/revision/{name.partition('@')[2] or revision}")


def test_a_moved_branch_is_followed_and_the_old_commit_stays(hub: Hub) -> None:
    old = find("fish/paw")
    hub.commit, hub.models["fish/paw"]["vocab.txt"] = NEWER, b"[PAD]\n"
    new = find("fish/paw")
    assert new.revision == NEWER and (new.folder / "vocab.txt").read_bytes() == b"[PAD]\n"
    assert find(f"fish/paw@{COMMIT}", offline=True).folder == old.folder
    assert find("fish/paw", offline=True).folder == new.folder


@pytest.mark.parametrize(("files", "expected"), [
    (["pytorch_model.bin", "training_args.bin", "tf_model.h5"], ["pytorch_model.bin"]),
    (["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "pytorch_model.bin.index.json"],
     ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "pytorch_model.bin.index.json"]),
    (["model-00001-of-00001.safetensors", "model.safetensors.index.json", "pytorch_model.bin"],
     ["model-00001-of-00001.safetensors", "model.safetensors.index.json"]),
    (["model.safetensors", "model-00001-of-00001.safetensors", "model.safetensors.index.json", "model.fp16.safetensors"],
     ["model.safetensors"]),
    (["onnx/model.fp16.safetensors", "onnx/pytorch_model.bin", "pytorch_model.bin", "sub/config.json"], ["pytorch_model.bin"]),
    (["bert_model.ckpt.index", "bert_model.ckpt.data-00000-of-00001", "bert_model.ckpt.meta"],
     ["bert_model.ckpt.index", "bert_model.ckpt.data-00000-of-00001"]),
])
def test_weights_are_chosen_in_order(hub: Hub, files: list[str], expected: list[str]) -> None:
    hub.models["fish/paw"] = {"config.json": b"{}", **{name: name.encode() for name in files}}
    assert names(find("fish/paw").folder) == {"config.json", *expected}


def test_no_weights_says_what_is_there(hub: Hub, tmp_path: Path) -> None:
    hub.models["fish/paw"] = {"config.json": b"{}", "tf_model.h5": b"x", "flax_model.msgpack": b"x"}
    with pytest.raises(CheckpointError, match=r"only \.h5, \.msgpack"):
        find("fish/paw")
    assert not names(tmp_path)


# -- a hub that fails -------------------------------------------------------------------------------------------------------------

def test_a_cut_connection_is_taken_up_where_it_broke(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)         # from 10 MB: an unfinished piece is asked for again
    hub.cuts["model.safetensors"] = 2
    assert (find("fish/paw").folder / "model.safetensors").read_bytes() == WEIGHTS
    ranges = [asked for method, path, asked in hub.asked if method == "GET" and path.endswith("model.safetensors")]
    assert ranges == ["", f"bytes={2 << 16}-", f"bytes={3 << 16}-"]       # half of 307,456, then half of the rest, in whole pieces


def test_after_a_break_only_what_is_missing_is_fetched(hub: Hub) -> None:
    hub.silent = ("/vocab.txt",)
    with pytest.raises(HubError, match="only in part or at another revision in the cache.*holds no model"):
        find("fish/paw")
    with pytest.raises(HubError, match="only in part or at another revision in the cache.*holds no model"):
        find("fish/paw", offline=True, revision=COMMIT)
    hub.silent = ()
    hub.over.set()
    find("fish/paw")
    assert hub.fetched()["model.safetensors"] == 1 and hub.fetched()["config.json"] == 1


@pytest.mark.parametrize("hashes", [True, False], ids=["listing states hashes", "only the tag does"])
@pytest.mark.parametrize("file", ["model.safetensors", "vocab.txt"])
def test_one_wrong_byte_is_found_and_the_next_run_repairs_it(hub: Hub, tmp_path: Path, file: str, hashes: bool) -> None:
    hub.hashes = hashes
    good = MODEL[file]
    hub.sent[file] = good[:7] + bytes([good[7] ^ 1]) + good[8:]
    with pytest.raises(HubError, match=rf"{file} of fish/paw is damaged \(hash .* removed.*HF_ENDPOINT") as caught:
        find("fish/paw")
    assert caught.value.exit_code == 3
    assert not any(path.name == file for path in tmp_path.rglob("*")), "the damaged file must not stay"
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes() == hub.sent[file]]
    assert not left, "nor what it links to"
    hub.sent.clear()
    assert (find("fish/paw").folder / file).read_bytes() == good


def test_huggingface_hub_alone_would_not_notice(hub: Hub, tmp_path: Path) -> None:
    """The planted fault above is caught by this file and by nothing under it; when this fails, the check can go."""
    from huggingface_hub import hf_hub_download

    hub.sent["model.safetensors"] = bytes([WEIGHTS[0] ^ 1]) + WEIGHTS[1:]
    path = hf_hub_download("fish/paw", "model.safetensors", revision=COMMIT, cache_dir=tmp_path, endpoint=hub.url)
    assert Path(path).read_bytes() != WEIGHTS


def test_size_that_differs_from_the_listing_is_damage(hub: Hub) -> None:
    hub.sent["model.safetensors"] = WEIGHTS[:-3]
    with pytest.raises(HubError, match="307453 bytes instead of 307456"):
        find("fish/paw")


def test_less_than_was_announced_is_damage(hub: Hub) -> None:
    hub.elsewhere, hub.sent = hub.url.replace("127.0.0.1", "localhost"), {"model.safetensors": WEIGHTS[:-3]}
    with pytest.raises(HubError, match="came incomplete"):
        find("fish/paw")


def test_nothing_outside_the_cache_is_removed(hub: Hub, tmp_path: Path) -> None:
    path, theirs = find("fish/paw").folder / "vocab.txt", tmp_path / "theirs.txt"
    theirs.write_bytes(b"not what the hub has")
    path.unlink()
    try:
        path.symlink_to(theirs)
    except OSError:
        pytest.skip("this system lets nobody make symbolic links")
    with pytest.raises(HubError, match="damaged"):
        find("fish/paw")
    assert theirs.read_bytes() == b"not what the hub has" and not path.is_symlink()


@pytest.mark.parametrize("offline", [True, False])
def test_damage_in_the_cache_is_found(hub: Hub, offline: bool) -> None:
    found = find("fish/paw")
    blob = (found.folder / "model.safetensors").resolve()
    if not (found.folder / "model.safetensors").is_symlink():
        pytest.skip("this disk has no symbolic links, so the cache states no hashes")
    blob.chmod(0o644)
    blob.write_bytes(WEIGHTS[:-1] + b"\0")
    with pytest.raises(HubError, match="damaged"):
        find("fish/paw", offline=offline)
    assert (find("fish/paw").folder / "model.safetensors").read_bytes() == WEIGHTS


def test_unknown_model_names_the_nearest_in_the_cache(hub: Hub) -> None:
    find("fish/paw")
    with pytest.raises(HubError, match=r"has no model fish/paws \(404\); there is no folder fish/paws here\. Did you mean fish/paw\?"):
        find("fish/paws")
    with pytest.raises(HubError, match="Check how it is written"):
        find("quite-another")


def test_unknown_revision(hub: Hub) -> None:
    with pytest.raises(HubError, match="fish/paw has no revision 'v2'"):
        find("fish/paw@v2")


@pytest.mark.parametrize(("status", "code", "message"), [
    (401, "", "no public model fish/paw.*HF_TOKEN"), (401, "GatedRepo", "granted access.*HF_TOKEN"), (403, "GatedRepo", "granted access"),
    (403, "", "granted access"), (429, "", "status 429.*HF_ENDPOINT"), (500, "", "status 500.*HF_ENDPOINT"), (503, "", "status 503"),
    (400, "", "does not answer as a model hub"), (416, "", "status 416")])
def test_refusals(hub: Hub, status: int, code: str, message: str) -> None:
    hub.status = (status, code)
    with pytest.raises(HubError, match=message):
        find("fish/paw")


def test_gated_weights_behind_an_open_listing(hub: Hub) -> None:
    hub.head_status = (403, "GatedRepo")
    with pytest.raises(HubError, match="granted access"):
        find("fish/paw")


def test_a_listed_file_that_is_missing(hub: Hub) -> None:
    hub.head_status = (404, "EntryNotFound")
    with pytest.raises(HubError, match="that it lacks"):
        find("fish/paw")


@pytest.mark.parametrize("silent", ["/api/", "HEAD"])
def test_silence_ends_within_the_timeout(hub: Hub, silent: str) -> None:
    hub.silent = (silent,)
    start = time.monotonic()
    with pytest.raises(HubError, match="did not answer within 1 s.*HF_ENDPOINT.*local folder") as caught:
        find("fish/paw")
    assert time.monotonic() - start < 60 and caught.value.exit_code == 3


def refused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_no_hub_at_all_names_the_ways_out_and_what_is_in_the_cache(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    find("fish/paw")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{refused_port()}")
    with pytest.raises(HubError, match=r"could not be reached.*HF_ENDPOINT.*local folder\. In the cache: fish/paw\.") as caught:
        find("fish/other")
    assert "\n" not in str(caught.value)
    found = find("fish/paw")
    assert found.revision == COMMIT and found.note is not None and "could not be reached" in found.note and COMMIT[:12] in found.note


@pytest.mark.parametrize("endpoint", ["nonsense", "ftp://x", "http://", "http://[", "http://256.256.256.256:1"])
def test_endpoint_that_is_no_address(hub: Hub, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(HubError, match="HF_ENDPOINT"):
        find("fish/paw")


@pytest.mark.parametrize("listing", [b"<html>login</html>", b"[]", b"{}", b"null", b'{"id": "a", "sha": "../../x", "siblings": []}',
                                     b'{"id": "a", "sha": null}', b'{"id": "a", "sha": "%s", "siblings": 3}' % COMMIT.encode(),
                                     b'{"id": "a", "sha": "%s", "siblings": [{"size": 3}]}' % COMMIT.encode(), b"\xff\xfe", b""])
def test_what_is_no_hub(hub: Hub, tmp_path: Path, listing: bytes) -> None:
    hub.listing = listing
    with pytest.raises(FishpawError, match="does not answer as a model hub"):
        find("fish/paw")
    assert not names(tmp_path)


def test_offline_with_and_without_the_model(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HubError, match="fish/paw@main is not in the cache.*offline mode is on.*holds no model"):
        find("fish/paw", offline=True)
    fetched = find("fish/paw")
    before = len(hub.asked)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError, match="there is no folder fishbone here. Unset HF_HUB_OFFLINE to ask the hub"):
        find("fishbone")
    found = find("fish/paw")
    assert found.folder == fetched.folder and found.revision == COMMIT and found.note is not None
    assert len(hub.asked) == before
    assert find("fish/paw", offline=False).note is None


@pytest.mark.parametrize("bad", ["../x.json", "/etc/x.json", "a/../../x.json", "..\\x.json", "C:x.json", "C:/x.json", "\\\\host\\x.json",
                                 "a/./x.json", ""])
def test_names_that_leave_the_folder_are_refused_and_nothing_is_written(hub: Hub, tmp_path: Path, bad: str) -> None:
    hub.models["fish/paw"][bad] = b"{}"
    with pytest.raises(HubError, match="would lie outside"):
        find("fish/paw")
    assert not names(tmp_path)


@pytest.mark.parametrize("tag", ["../../../x", "a/b", "..", "C:x"])
def test_a_tag_that_leaves_the_folder_is_refused(hub: Hub, tmp_path: Path, tag: str) -> None:
    hub.tag = tag
    with pytest.raises(HubError, match="no tag"):
        find("fish/paw")
    assert not names(tmp_path)


def test_unwritable_cache_names_hf_home(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "home").write_bytes(b"a file where the folder should be")
    with pytest.raises(HubError, match="can't be written.*HF_HOME"):
        find("fish/paw")


def test_timeout_that_is_no_number() -> None:
    result = run("find('fish/paw')", HF_HUB_ETAG_TIMEOUT="soon")
    assert result == "ConfigError 2"


def test_a_fresh_process_reads_the_environment(hub: Hub, tmp_path: Path) -> None:
    assert run("print(find('fish/paw').revision)", HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "other")) == COMMIT
    gone = f"http://127.0.0.1:{refused_port()}"
    note = run("print(find('fish/paw', offline=False).note)", HF_ENDPOINT=gone, HF_HOME=str(tmp_path / "other"), HF_HUB_OFFLINE="1")
    assert note.startswith("fish/paw: offline mode is on; the copy that was fetched earlier is used")


def run(code: str, **environment: str) -> str:
    program = ("from fishpaw.hub import find\nfrom fishpaw.errors import FishpawError\n"
               f"try:\n    {code}\nexcept FishpawError as error:\n    print(type(error).__name__, error.exit_code)")
    source = str(Path(__file__).parents[1] / "src")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, encoding="utf-8", timeout=60,
                          env={**clean, "PYTHONPATH": source, "NO_PROXY": "*", "HF_HUB_DISABLE_XET": "1", **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_door_imports_no_package() -> None:
    assert run("import sys; print([name for name in ('huggingface_hub', 'httpx2', 'torch', 'numpy') if name in sys.modules])") == "[]"


# -- models that ship -------------------------------------------------------------------------------------------------------------

def test_a_shipped_model_is_found_by_its_name_and_what_lies_on_the_disk_wins(tmp_path, monkeypatch):
    from fishpaw import hub

    kept = tmp_path / "package" / "little"
    kept.mkdir(parents=True)
    (kept / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "package" / "empty").mkdir()
    monkeypatch.setattr(hub, "_PRETRAINED", tmp_path / "package")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hub.shipped() == ["little"]
    found = find("little")
    assert (found.folder, found.source, found.name) == (kept, "shipped", "little")
    with pytest.raises(ConfigError, match="little comes with fishpaw"):
        find("little", revision="main")
    with pytest.raises(HubError):
        find("empty")
    (tmp_path / "little").mkdir()
    assert find("little").source == "folder"
