"""Chinese text to WordPiece ids on one core: ours against tokenizers and transformers, on 20 MB of corpora.

    python benchmarks/tokenize.py [--data DIR] [--runs N] [--json [FILE]] [--smoke] [--megabytes 20]

Claim: the bulk call makes at least 10 MB of UTF-8 a second on one core, with ids equal to those of tokenizers on every line. Each round
takes a part of the corpora that no round before has seen, since ours remembers words; every contender gets the same one. The equality is
checked on all of it: a line that differs is counted and shown. The process is bound to one core (--threads 1), batches included.
"""

from __future__ import annotations

import os
import sys

sys.path.pop(0)                                                  # this folder: its tokenize.py must not stand for Python's
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import tempfile
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from benchmarks import harness, texts

from fishpaw.text.wordpiece import WordPiece

Call = Callable[[Sequence[str]], Any]
RUNS = 5
WARM_UP = 1


def main() -> None:
    given = harness.arguments(__doc__ or "", runs=RUNS, threads=1, more=_options)
    harness.start(given, torch=False)
    report = harness.Report("tokenize", "WordPiece on Chinese text, MB of UTF-8 a second", given)
    size = 20_000 if given.smoke else int(given.megabytes * 1e6)
    lines, source = texts.corpus(given.data, size)
    vocab = texts.vocabulary(given.data)
    with tempfile.TemporaryDirectory() as name:
        tokenizer = WordPiece(vocab)
        tokenizer.save(Path(name))
        calls = contenders(tokenizer, Path(name), report)
        _compare(tokenizer, calls, lines, report)
        fresh = WordPiece(vocab)                                 # the one above has seen everything
        calls |= ours(fresh)
    bytes_ = [len(line.encode()) for line in lines]
    report.note(f"{sum(bytes_) / 1e6:.1f} MB, {len(lines):,} {source}; vocabulary of {len(vocab):,}")
    rounds = given.runs + WARM_UP
    share = max(1, len(lines) // rounds)
    parts = [lines[number::rounds][:share] for number in range(rounds)]      # every part a sample of all corpora
    work = sum(bytes_) / len(lines) * share / 1e6
    timed = {who: _over(call, parts) for who, call in calls.items()}
    report.timed("WordPiece", harness.interleave(timed, runs=given.runs, warm_up=WARM_UP), unit="MB/s", work=work)
    report.finish()


def ours(tokenizer: WordPiece) -> dict[str, Call]:
    """The bulk call, and the one that gives tokens and offsets, too."""
    return {"fishpaw, ids in bulk": tokenizer.encode_ids, "fishpaw, encodings": tokenizer.encode_batch}


def contenders(tokenizer: WordPiece, folder: Path, report: harness.Report) -> dict[str, Call]:
    """Ours first (the order of the table), then the peers; each takes lines."""
    import tokenizers

    calls = ours(tokenizer)
    rust = tokenizers.BertWordPieceTokenizer(str(folder / "vocab.txt"))
    calls["tokenizers, one by one"] = lambda lines: [rust.encode(line).ids for line in lines]
    calls["tokenizers, batch"] = lambda lines: [one.ids for one in rust.encode_batch(list(lines))]
    calls["tokenizers, fast batch"] = lambda lines: [one.ids for one in rust._tokenizer.encode_batch_fast(list(lines))]
    if report.needs("transformers"):
        import transformers

        theirs = transformers.AutoTokenizer.from_pretrained(str(folder))
        theirs.model_max_length = 10**9
        calls["transformers, fast"] = lambda lines: theirs(list(lines), return_attention_mask=False, return_token_type_ids=False).input_ids
        if hasattr(transformers, "BertTokenizerLegacy"):
            slow: Any = transformers.BertTokenizerLegacy(str(folder / "vocab.txt"))
            slow.model_max_length = 10**9
            calls["transformers, Python"] = lambda lines: slow(list(lines)).input_ids
    return calls


def _compare(tokenizer: WordPiece, calls: dict[str, Call], lines: list[str], report: harness.Report) -> None:
    """Our ids and those of `tokenizers` on every line."""
    different, shown = 0, ""
    for start in range(0, len(lines), 4096):
        some = lines[start : start + 4096]
        expected = calls["tokenizers, batch"](some)
        for who in ours(tokenizer):
            for line, ids, wanted in zip(some, _rows(calls[who](some)), expected, strict=True):
                if ids != wanted:
                    different += 1
                    shown = shown or f"{who}: {line[:60]!r} gives {ids[:20]}, tokenizers {wanted[:20]}"
    if different:
        raise harness.Different(f"{different} of {len(lines)} lines have other ids; {shown}")
    report.note(f"ids equal to those of tokenizers on all {len(lines):,} lines")


def _rows(found: Any) -> list[list[int]]:
    """What a call of ours gives, as lists: encodings, or (ids, lengths) in flat arrays."""
    if isinstance(found, list):
        return [one.ids for one in found]
    rows, start = [], 0
    ids = found.ids.tolist()
    for length in found.lengths.tolist():
        rows.append(ids[start : start + length])
        start += length
    return rows


def _over(call: Call, parts: list[list[str]]) -> Callable[[], object]:
    """Each run of a contender takes the next part."""
    waiting = cycle(parts)
    return lambda: call(next(waiting))


def _options(parser: ArgumentParser) -> None:
    parser.add_argument("--megabytes", type=float, default=20, help="of corpora, default 20")


if __name__ == "__main__":
    main()
