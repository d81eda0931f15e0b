"""Files of text to what pretraining reads: a vocabulary, shards to train on, and shards of what is kept apart to evaluate on."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy

from fishpaw import checks
from fishpaw.data.corpus import Unit, read_documents
from fishpaw.data.fingerprint import fingerprint
from fishpaw.data.shards import Document, Shards, write
from fishpaw.errors import ConfigError, DataError
from fishpaw.files import lock
from fishpaw.tasks.encode import bar
from fishpaw.text.encoding import Encoding, Tokenizer
from fishpaw.text.learn import characters
from fishpaw.text.vocab import Vocab
from fishpaw.text.wordpiece import WordPiece
from fishpaw.text.words import WordCutter, align, jieba_cutter

__all__ = ["Corpus", "documents", "gather", "learned", "prepare", "vocabulary_digest", "words_begin"]

_TOGETHER = 256                  # texts
_MOST_APART = 8192               # documents: evaluation reads no more, and they wait in memory
_PATIENCE = 7 * 86_400.0         # seconds: another process is writing the same


@dataclass(frozen=True)
class Corpus:
    """Which texts: files ("-": standard input), what a document is in them (data/corpus.py), how many bad lines may be left out."""

    files: Sequence[str | Path]
    unit: Unit = "line"
    field: str | None = None
    skip_bad: int = 0
    limit: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.files, str | Path):
            raise ConfigError(f"The files are one name, {str(self.files)!r}.", fix="Give a list of them.")

    def texts(self) -> Iterator[str]:
        """The documents, `limit` at most."""
        found = read_documents(self.files, unit=self.unit, field=self.field, skip_bad=self.skip_bad)
        return (one.text for one in islice(found, self.limit))

    @property
    def facts(self) -> dict[str, Any]:
        """What tells it from another: names and sizes of the files, not their content. Of standard input nothing."""
        named = [] if "-" in map(str, self.files) else [[Path(one).name, _size(one)] for one in self.files]
        return {"files": named, "unit": self.unit, "field": self.field, "limit": self.limit}


def gather(
    corpus: Corpus, folder: str | Path, tokenizer: Tokenizer | None = None, *, words: bool = False, apart: float = 0.01,
    dev: Corpus | None = None, anew: bool = False, progress: bool | None = None,
) -> tuple[Tokenizer, Shards, Shards | None]:
    """`prepare`, with a vocabulary of the texts' characters in folder/vocab.txt where no tokenizer is given; by one process at a time, so
    that of many with the same arguments one writes, and the others wait and read. anew: what is there is removed if it is of other texts
    or another vocabulary."""
    folder = Path(folder)
    facts = _facts(corpus, words=words, apart=apart, dev=dev)
    with lock(folder / "corpus", timeout=_PATIENCE):
        if anew and (folder / "shards" / "shards.json").is_file():
            own = facts if tokenizer is None else {**facts, "vocabulary": vocabulary_digest(tokenizer)}
            if "-" in map(str, corpus.files):
                raise DataError(f"{folder / 'shards'} is there already, and whether standard input holds the same texts can't be told.",
                                fix="Choose another folder, remove that one, or give files.")
            old = Shards(folder / "shards", verify=False)
            if _differing(old, own):
                file = folder / "vocab.txt"
                if file.is_file() and vocabulary_digest(WordPiece(Vocab.load(file))) == old.facts.get("vocabulary"):
                    file.unlink()
                _remove(folder / "shards")
        if not (folder / "shards").exists():
            if tokenizer is not None:
                return tokenizer, *prepare(corpus, folder, tokenizer, words=words, apart=apart, dev=dev, progress=progress)
            if (folder / "vocab.txt").exists():
                raise DataError(f"{folder / 'vocab.txt'} is there already.", fix="Give it as the vocabulary, or choose another folder.")
            vocab = _characters(corpus)
            tokenizer = WordPiece(vocab)
            found = prepare(corpus, folder, tokenizer, words=words, apart=apart, dev=dev, progress=progress)
            vocab.save(folder / "vocab.txt")                         # last: a process that is killed before leaves nothing to tell apart
            return tokenizer, *found
    tokenizer = learned(corpus, folder / "vocab.txt") if tokenizer is None else tokenizer
    return tokenizer, *prepare(corpus, folder, tokenizer, words=words, apart=apart, dev=dev, progress=progress)


def prepare(
    corpus: Corpus, folder: str | Path, tokenizer: Tokenizer, *, words: bool = False, apart: float = 0.01, dev: Corpus | None = None,
    progress: bool | None = None,
) -> tuple[Shards, Shards | None]:
    """Shards to train on and to evaluate on, in folder/shards and folder/dev: written if they aren't there, else those that are.

    words: keep which tokens begin a word (whole-word masking): jieba's words, and no piece of a word that WordPiece has cut. apart: share
    of the documents that is kept apart where no `dev` is given, the same texts together, 8192 documents at most, and none of them trained
    on; 0 or none so chosen: no shards to evaluate on. A process that is killed leaves both or begins again. Errors: DataError for texts
    that can't be read or hold no token, and for shards there of other texts or another vocabulary; ConfigError for jieba that is not
    installed.
    """
    checks.number("The share kept apart", apart, least=0, below=1)
    folder = Path(folder)
    facts = {"vocabulary": vocabulary_digest(tokenizer), **_facts(corpus, words=words, apart=apart, dev=dev)}
    if (folder / "shards" / "shards.json").is_file():
        shards = Shards(folder / "shards")
        _refuse_others(shards, facts)
    else:
        if (folder / "dev").exists():
            _remove(folder / "dev")                                  # of a process that was killed before the shards were whole
        cut = jieba_cutter() if words else None
        held: list[Document] = []
        seen: set[float] = set()                                     # the texts that are kept apart, by their shares

        def kept() -> Iterator[Document]:
            chosen: deque[float | None] = deque()

            def looked_at() -> Iterator[str]:
                for text in corpus.texts():
                    share = _share(text) if dev is None and apart > 0 else 1.0
                    chosen.append(share if share < apart else None)
                    yield text

            for document in documents(looked_at(), tokenizer, cut=cut):
                share = chosen.popleft()
                if share is None or (len(held) >= _MOST_APART and share not in seen):
                    yield document
                elif len(held) < _MOST_APART:                        # once there are enough, the same text again is neither
                    seen.add(share)
                    held.append(document)
            unseen = held if dev is None else documents(dev.texts(), tokenizer, cut=cut)
            if dev is not None or any(len(numpy.asarray(one.ids)) for one in held):
                write(unseen, folder / "dev", vocab_size=tokenizer.size, facts=facts)      # before the shards are: both, or none

        with bar(iter(()), progress) as done:

            def tell(tokens: int) -> None:
                done(1)

            shards = write(kept(), folder / "shards", vocab_size=tokenizer.size, facts=facts, tell=tell)
    return shards, Shards(folder / "dev") if (folder / "dev" / "shards.json").is_file() else None


def documents(texts: Iterable[str], tokenizer: Tokenizer, *, cut: WordCutter | None = None) -> Iterator[Document]:
    """Texts as tokens, one by one, in bulk where the tokenizer can; with `cut`, text to words, each token says whether it begins one."""
    bulk: Callable[..., Iterator[Any]] | None = getattr(tokenizer, "encode_id_chunks", None)
    if bulk is not None and cut is None:
        for rows in bulk(texts, special=False):
            for ids in numpy.split(rows.ids, numpy.cumsum(rows.lengths)[:-1]):
                yield Document(ids)
        return
    waiting = iter(texts)
    while group := list(islice(waiting, _TOGETHER)):
        for text, encoding in zip(group, tokenizer.encode_batch(group, special=False), strict=True):
            yield Document(encoding.ids, None if cut is None else words_begin(text, encoding, cut))


def words_begin(text: str, encoding: Encoding, cut: WordCutter) -> list[bool]:
    """Whether each token begins a word of `cut`'s: tokens without one, and pieces behind the first of a word that WordPiece has cut (##),
    belong to the word before them."""
    starts = {start for start, _ in align(text, cut(text))}
    return [start in starts and not token.startswith("##") for (start, _), token in zip(encoding.offsets, encoding.tokens, strict=True)]


def learned(corpus: Corpus, path: str | Path, *, least: int = 2, most: int = 21128) -> WordPiece:
    """A tokenizer of the texts' characters (text/learn.py), whose vocabulary is kept in the file `path`; the one there, if there is one.
    ConfigError for standard input, which can't be read a second time; DataError where there is no text."""
    path = Path(path)
    if path.is_file():
        return WordPiece(Vocab.load(path))
    vocab = _characters(corpus, least=least, most=most)
    path.parent.mkdir(parents=True, exist_ok=True)
    vocab.save(path)
    return WordPiece(vocab)


def vocabulary_digest(tokenizer: Tokenizer) -> str:
    """Stands for the tokens and their order."""
    return fingerprint(tokenizer.tokens)[:16]


def _characters(corpus: Corpus, *, least: int = 2, most: int = 21128) -> Vocab:
    if "-" in map(str, corpus.files):
        raise ConfigError("The vocabulary is learned in a first reading, but standard input is read only once.",
                          fix="Give a vocabulary or a model (--vocab, --model), or files.")
    texts = iter(corpus.texts())
    first = next(texts, None)
    if first is None:
        raise DataError(f"{', '.join(map(str, corpus.files))}: no text.", fix="Give files that hold at least one.")
    return characters(chain([first], texts), least=least, most=most)


def _remove(folder: Path) -> None:
    """A folder of shards. DataError for one that holds anything else: it isn't ours to remove."""
    for path in sorted(folder.iterdir()):
        if not re.fullmatch(r"shards\.json|manifest\.json|(tokens|documents|words)-\d{5}\.npy", path.name):
            raise DataError(f"{folder} holds {path.name}, which isn't of shards; nothing is removed.", fix="Choose another folder.")
    shutil.rmtree(folder)


def _facts(corpus: Corpus, *, words: bool, apart: float, dev: Corpus | None) -> dict[str, Any]:
    """What shards are written of, as shards.json keeps it."""
    return {"words": words, "apart": None if dev else apart, "dev": None if dev is None else dev.facts, **corpus.facts}


def _differing(shards: Shards, facts: dict[str, Any]) -> list[str]:
    """Names of facts in which the shards differ. Standard input is over: a run that goes on needn't give it again."""
    return [name for name, fact in facts.items() if shards.facts.get(name) != fact and not (name == "files" and not fact)]


def _refuse_others(shards: Shards, facts: dict[str, Any]) -> None:
    worded = "without words" if facts["words"] else "with words"
    said = {"vocabulary": "with another vocabulary", "words": worded, "files": "of other files", "dev": "beside other unseen texts"}
    if told := ", ".join(said.get(name, f"with {name} {shards.facts.get(name)}") for name in _differing(shards, facts)):
        fix = "Go on with what it began with, choose another folder, or write it anew (anew=True; --restart)."
        raise DataError(f"{shards.folder} was written {told}.", fix=fix)


def _share(text: str) -> float:
    """A number from 0 to 1 that the text alone decides."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()) / 2**64


def _size(path: str | Path) -> int:
    try:
        return Path(path).stat().st_size
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}).", fix="Check the name and its permissions.") from error
