"""WordPiece as BERT's paper has it, in plain Python, one character at a time: the reference that the fast tokenizer must equal."""

from __future__ import annotations

import unicodedata

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
IDEOGRAPHS = ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F), (0x2B920, 0x2CEAF),
              (0xF900, 0xFAFF), (0x2F800, 0x2FA1F))             # BERT says 2B820; the tokenizers package 2B920
LATER = frozenset({0x890, 0x891, 0x8E2, 0x110CD, *range(0x13430, 0x13440)})    # format characters that its tables do not know yet


def naive_encode(text, index, *, lower=True, strip_accents=None, cjk=True, longest=100, added=()):
    """ids, tokens, offsets, with [CLS] and [SEP]."""
    strip = lower if strip_accents is None else strip_accents
    text = "".join("\ufffd" if 0xD800 <= ord(char) < 0xE000 else char for char in text)
    pieces = [("[CLS]", 0, 0)]
    whole = [token for token in (*SPECIAL, *added) if token in index]
    place = begin = 0
    while place <= len(text):
        hit = next((token for token in whole if text.startswith(token, place)), None)
        if hit or place == len(text):
            for word in split([(char, begin + n) for n, char in enumerate(text[begin:place])], lower, strip, cjk):
                pieces += greedy(word, index, longest)
            if hit:
                pieces.append((hit, place, place + len(hit)))
                place += len(hit)
                begin = place
                continue
        place += 1
    pieces.append(("[SEP]", 0, 0))
    return [index[token] for token, _, _ in pieces], [token for token, _, _ in pieces], [(start, end) for _, start, end in pieces]


def split(chars, lower, strip, cjk):
    """Words, each a list of (normalised character, index in the text)."""
    words, word = [], []
    for char, place in normal(chars, lower, strip, cjk):
        if char.isspace() or punctuation(char):
            words += [word] if word else []
            word = []
            if not char.isspace():
                words.append([(char, place)])
        else:
            word.append((char, place))
    return words + ([word] if word else [])


def normal(chars, lower, strip, cjk):
    for char, place in chars:
        category = unicodedata.category(char)
        if char in "\t\n\r" or category[0] == "Z":
            char = " "
        elif char in "\0\ufffd" or category in ("Cc", "Cs", "Co") or category == "Cf" and ord(char) not in LATER:
            continue
        folded = char
        if cjk and any(low <= ord(char) <= high for low, high in IDEOGRAPHS):
            folded = f" {char} "
        if strip:
            folded = "".join(part for part in unicodedata.normalize("NFD", folded) if unicodedata.category(part) != "Mn")
        for part in folded:
            for final in part.lower() if lower else part:
                yield final, place


def punctuation(char):
    code = ord(char)
    return 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126 or unicodedata.category(char)[0] == "P"


def greedy(word, index, longest):
    """Longest match first; the whole word is unknown when a rest is."""
    unknown = [("[UNK]", word[0][1], word[-1][1] + 1)]
    if len(word) > longest:
        return unknown
    pieces, start = [], 0
    while start < len(word):
        for end in range(len(word), start, -1):
            token = ("##" if start else "") + "".join(char for char, _ in word[start:end])
            if token in index:
                pieces.append((token, word[start][1], word[end - 1][1] + 1))
                start = end
                break
        else:
            return unknown
    return pieces
