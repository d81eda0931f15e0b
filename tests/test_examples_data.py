"""Checks the bundled reviews: format, counts, balance, no repeated text, and that each rule catches a planted fault."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[1] / "examples" / "data"
COUNTS = {"reviews.tsv": 480, "reviews.dev.tsv": 100}
LABELS = {"neg", "pos"}
DOMAINS = 5  # hotel, book, electronics, food, film: the lines go round them in this order
SHORTEST, LONGEST = 8, 70
SHARED = 12  # this many consecutive characters in two lines mean that one was made from the other


def rows(path: Path) -> list[tuple[str, str]]:
    """The (text, label) pairs of a file; a line that is not `text<TAB>label` is a fault."""
    content = path.read_text(encoding="utf-8")
    assert content.endswith("\n"), f"{path.name}: the last line has no newline"
    pairs = []
    for number, line in enumerate(content[:-1].split("\n"), start=1):
        fields = line.split("\t")
        assert len(fields) == 2, f"{path.name}:{number}: {len(fields)} fields, not 2"
        text, label = fields
        assert label in LABELS, f"{path.name}:{number}: label {label!r}"
        assert text == text.strip() and text.isprintable(), f"{path.name}:{number}: stray space or control character"
        assert SHORTEST <= len(text) <= LONGEST, f"{path.name}:{number}: {len(text)} characters"
        pairs.append((text, label))
    return pairs


def check_counts(folder: Path) -> None:
    """Each file has its number of lines."""
    found = {name: len(rows(folder / name)) for name in COUNTS}
    assert found == COUNTS


def check_balance(folder: Path) -> None:
    """Every ten lines hold one `neg` and one `pos` of each domain, so domains and prefixes are balanced too."""
    for name in COUNTS:
        labels = [label for _, label in rows(folder / name)]
        for start in range(0, len(labels), 2 * DOMAINS):
            for first in range(start, start + DOMAINS):
                pair = set(labels[first : first + DOMAINS + 1 : DOMAINS])
                assert pair == LABELS, f"{name}: lines {first + 1} and {first + DOMAINS + 1} share a label"


def check_distinct(folder: Path) -> None:
    """No text occurs twice, within a file or across the two."""
    seen: dict[str, str] = {}
    for name in COUNTS:
        for number, (text, _) in enumerate(rows(folder / name), start=1):
            place = f"{name}:{number}"
            assert text not in seen, f"{place} repeats {seen[text]}"
            seen[text] = place


def check_shared(folder: Path) -> None:
    """No two lines, of either file, have SHARED consecutive characters in common."""
    owner: dict[str, str] = {}
    for name in COUNTS:
        for number, (text, _) in enumerate(rows(folder / name), start=1):
            place = f"{name}:{number}"
            for start in range(len(text) - SHARED + 1):
                piece = text[start : start + SHARED]
                assert owner.setdefault(piece, place) == place, f"{place} and {owner[piece]} share {piece!r}"


CHECKS = [check_counts, check_balance, check_distinct, check_shared]


@pytest.mark.parametrize("check", CHECKS)
def test_bundled_reviews(check: Callable[[Path], None]) -> None:
    check(DATA)


def drop_ten(train: list[str], dev: list[str]) -> None:
    del train[-10:]


def flip_label(train: list[str], dev: list[str]) -> None:
    text, label = train[36].split("\t")
    train[36] = f"{text}\t{'neg' if label == 'pos' else 'pos'}"


def swap_neighbours(train: list[str], dev: list[str]) -> None:
    """Totals stay right; only the domain's own balance breaks."""
    here = next(index for index in range(20, 24) if train[index][-3:] != train[index + 1][-3:])
    train[here], train[here + 1] = train[here + 1], train[here]


def repeat_in_train(train: list[str], dev: list[str]) -> None:
    train[219] = train[7].split("\t")[0] + "\t" + train[219].split("\t")[1]


def leak_into_dev(train: list[str], dev: list[str]) -> None:
    dev[53] = train[101].split("\t")[0] + "\t" + dev[53].split("\t")[1]


def share(train: list[str], dev: list[str], length: int) -> None:
    """Give a dev line exactly `length` characters of a train line, between characters that are nowhere else."""
    piece = max((line.split("\t")[0] for line in train), key=len)[3 : 3 + length]
    dev[17] = f"龘靐{piece}齉爩\t" + dev[17].split("\t")[1]


def share_twelve(train: list[str], dev: list[str]) -> None:
    share(train, dev, SHARED)


def share_eleven(train: list[str], dev: list[str]) -> None:
    share(train, dev, SHARED - 1)


def lose_tab(train: list[str], dev: list[str]) -> None:
    dev[4] = dev[4].replace("\t", " ")


def other_label(train: list[str], dev: list[str]) -> None:
    train[11] = train[11].split("\t")[0] + "\tneutral"


def pad_text(train: list[str], dev: list[str]) -> None:
    train[0] = " " + train[0]


def shorten_text(train: list[str], dev: list[str]) -> None:
    train[2] = "七字以下\t" + train[2].split("\t")[1]


def damaged(folder: Path, fault: Callable[[list[str], list[str]], None]) -> Path:
    """A copy of the data with one fault."""
    lines = [(DATA / name).read_text(encoding="utf-8")[:-1].split("\n") for name in COUNTS]
    before = [list(part) for part in lines]
    fault(*lines)
    assert lines != before
    for name, part in zip(COUNTS, lines, strict=True):
        (folder / name).write_text("\n".join(part) + "\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        (drop_ten, check_counts),
        (lose_tab, check_counts),
        (other_label, check_counts),
        (pad_text, check_counts),
        (shorten_text, check_counts),
        (flip_label, check_balance),
        (swap_neighbours, check_balance),
        (repeat_in_train, check_distinct),
        (leak_into_dev, check_distinct),
        (share_twelve, check_shared),
    ],
)
def test_planted_fault_is_caught(fault: Callable[[list[str], list[str]], None], check: Callable[[Path], None], tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        check(damaged(tmp_path, fault))


def test_eleven_shared_characters_are_allowed(tmp_path: Path) -> None:
    check_shared(damaged(tmp_path, share_eleven))
