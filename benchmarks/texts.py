"""Chinese text for the benchmarks: corpora from a folder where there is one, else lines generated from a seed."""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

from fishpaw.text.vocab import SPECIAL, Vocab

__all__ = ["corpus", "sentences", "vocabulary"]

VOCABULARY = "vocab/uer/google_zh_vocab.txt"                     # 21,128 tokens: that of the published Chinese BERT
CORPORA = ("corpus/laws_lawrefbook", "corpus/pingcap_docs_cn", "corpus/classical_modern_bitext", "corpus/d2l_zh", "corpus/react_zh")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SIZE = 21128


def vocabulary(data: Path | None) -> Vocab:
    """That of the published Chinese BERT, else one as large: special tokens, ASCII, ideographs, pieces of words."""
    if data is not None and (data / VOCABULARY).is_file():
        return Vocab.load(data / VOCABULARY)
    pieces = [first + second for first in LETTERS for second in LETTERS]
    tokens = [*SPECIAL, *map(chr, range(33, 65)), *map(chr, range(91, 127)), *"，。！？、；：（）《》“”", *pieces,
              *(f"##{piece}" for piece in (*LETTERS, *"0123456789", *pieces))]
    tokens += [chr(0x4E00 + index) for index in range(SIZE - len(tokens))]
    return Vocab(tuple(tokens))


def corpus(data: Path | None, size: int) -> tuple[list[str], str]:
    """Lines that hold about `size` bytes of UTF-8, of several corpora in equal shares, and a line that says which."""
    found = [] if data is None else [path for name in CORPORA if (path := _file(data / name)) is not None]
    if not found:
        return list(_cut(_generated(), size)), "generated lines (no --data)"
    lines: list[str] = []
    for path in found:
        lines += _cut(_lines(path), size // len(found))
    return lines, "lines of " + ", ".join(path.parent.name for path in found)


def sentences(data: Path | None, count: int, *, least: int = 8, most: int = 60, seed: int = 0) -> tuple[list[str], str]:
    """`count` different sentences of `least` to `most` characters, in random order, and a line that says where they are from."""
    found: dict[str, None] = {}
    lines, source = corpus(data, count * most * 40)
    for line in lines:
        for sentence in re.findall(r"[^。！？；\n]+[。！？；]?", line):
            if least <= len(sentence.strip()) <= most and re.search("[\u4e00-\u9fff]", sentence):
                found[sentence.strip()] = None
    held = sorted(found)
    random.Random(seed).shuffle(held)
    if len(held) < count:
        raise ValueError(f"{source} hold {len(held)} sentences of {least} to {most} characters, {count} are wanted")
    return held[:count], source


def _file(folder: Path) -> Path | None:
    return next((path for name in ("docs.jsonl", "docs.jsonl.gz") if (path := folder / name).is_file()), None)


def _lines(path: Path) -> Iterator[str]:
    opened = gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")
    with opened as stream:
        for record in stream:
            yield from (line for line in json.loads(record)["text"].splitlines() if line.strip())


def _cut(lines: Iterator[str], size: int) -> Iterator[str]:
    total = 0
    for line in lines:
        yield line
        total += len(line.encode()) + 1
        if total >= size:
            return


def _generated() -> Iterator[str]:
    """Sentences without end: ideographs, frequent ones more often, with a number or a Latin word here and there."""
    noise = random.Random(0)
    while True:
        words = []
        for _ in range(noise.randint(3, 40)):
            kind = noise.random()
            if kind < 0.03:
                words.append("".join(noise.choices(LETTERS, k=noise.randint(2, 8))))
            elif kind < 0.05:
                words.append(str(noise.randint(0, 10**noise.randint(1, 6))))
            else:
                words.append("".join(chr(0x4E00 + int(8000 * noise.random() ** 2)) for _ in range(noise.randint(1, 3))))
        yield "".join(words)[: noise.randint(8, 90)] + "。"
