"""Trees of phrases and of dependencies from a masked language model alone, by perturbed masking (arXiv:2004.14786; kexue.fm/archives/7476).

A text with white space in it, or a list, is read as words; one without as units: characters, and runs of letters and digits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fishpaw.errors import DataError
from fishpaw.interpret.constituency import MOST, Objective, Tree, article, brackets, constituents
from fishpaw.interpret.dependency import Algorithm, arc_scores, eisner
from fishpaw.interpret.perturbed_masking import Metric, impact_matrix, l2, refuse_unfit
from fishpaw.model.transformer import Transformer
from fishpaw.tasks.segment import Layout, units
from fishpaw.text.encoding import Tokenizer
from fishpaw.weights.load import load

__all__ = ["Impact", "Parse", "Parsed", "conllu"]


@dataclass(frozen=True)
class Impact:
    """words, and matrix [n n]: row i, column j is the impact of word j on word i."""

    words: tuple[str, ...]
    matrix: Tensor


@dataclass(frozen=True)
class Parsed:
    """An impact, and what was made of it: a tree of phrases, or the head of each word (-1: the root); the other is None."""

    impact: Impact
    tree: Tree | None = None
    heads: tuple[int, ...] | None = None

    @property
    def shown(self) -> str:
        """The tree in brackets, or CoNLL-U."""
        if self.tree is not None:
            return brackets(self.tree, self.impact.words)
        return conllu(self.heads or (), self.impact.words)

    @property
    def figures(self) -> dict[str, Any]:
        """All of it, for JSON; words are counted from 0, the head of the root is -1."""
        return {"words": [*self.impact.words], "tree": self.tree, "heads": None if self.heads is None else [*self.heads],
                "impact": self.impact.matrix.tolist()}  # fmt: skip


class Parse:
    """A masked language model and its tokenizer, asked for trees.

    >>> task = Parse.load("hfl/chinese-roberta-wwm-ext")
    >>> shown, heads = task.constituency("今天 天气 很 好").shown, task.dependency("今天 天气 很 好", root=3).heads

    A text of n words is read n (n + 1) / 2 times: each pair of words masked, and each word. layer and metric: those of
    `perturbed_masking.impacts`. Errors: ConfigError for another model than a masked one; DataError for a tokenizer without a mask, a text
    or a word without a token, one that is longer than the model reads, and more than 400 words.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer, *, layer: int = -1, metric: Metric = l2) -> None:
        refuse_unfit(model, layer=layer)
        self.model, self.tokenizer, self.mask_id = model, tokenizer, tokenizer.mask_id
        self.layer, self.metric = layer, metric
        self.layout = Layout.of(tokenizer, longest=model.longest)

    @classmethod
    def load(cls, name: str | Path, *, changes: Mapping[str, Any] | None = None, layer: int = -1, metric: Metric = l2) -> Parse:
        """A model by its name for fp.load, with the changes of fp.load_model; the other arguments are those of the class."""
        return cls(*load(name, changes=changes), layer=layer, metric=metric)

    def impact(self, text: str | Sequence[str], *, tokens: int = 4096) -> Impact:
        """What each word does to each other one; from one of these any number of trees is made. tokens: a batch."""
        words = text.split() if isinstance(text, str) else [*text]
        if isinstance(text, str) and len(words) == 1:
            encoding = self.tokenizer.encode(words[0], special=False)
            found = units(words[0], encoding, most=max(1, len(encoding.ids)))
            words, ids, lengths = [words[0][one.start : one.end] for one in found], encoding.ids, [one.tokens for one in found]
        else:
            pieces = [self.tokenizer.encode(word, special=False).ids for word in words]
            ids, lengths = [id for piece in pieces for id in piece], [*map(len, pieces)]
        if not ids:
            raise DataError("The text has no token to parse.", fix="Leave out what is blank, or only signs that nobody sees.")
        if split := [word for word in words if word.split() != [word]]:
            raise DataError(f"The word {split[0]!r:.40} has white space in it.", fix="Give words without.")
        if 0 in lengths:
            raise DataError(f"The word {words[lengths.index(0)]!r:.40} has no token.", fix="Leave it out.")
        if len(words) > MOST:
            raise DataError(f"A text of {len(words)} words; a tree has {MOST} at most.", fix="Give a sentence a line.")
        if self.layout.room is not None and len(ids) > self.layout.room:
            raise DataError(f"A text of {len(ids)} tokens, but the model reads {self.layout.room} beside those that the tokenizer adds.",
                            fix="Give a sentence a line.")
        laid, places = self.layout.lay(ids, lengths)
        matrix = impact_matrix(self.model, laid, places, mask_id=self.mask_id, layer=self.layer, metric=self.metric, tokens=tokens)
        return Impact(tuple(words), matrix)

    def constituency(self, text: str | Sequence[str] | Impact, *, objective: Objective = article) -> Parsed:
        """A tree of phrases, by constituency's `article` or `code`, or another objective."""
        impact = text if isinstance(text, Impact) else self.impact(text)
        return Parsed(impact, tree=constituents(impact.matrix, objective=objective))

    def dependency(self, text: str | Sequence[str] | Impact, *, algorithm: Algorithm = eisner, root: int | None = None) -> Parsed:
        """Heads, by dependency's `eisner` or `chu_liu_edmonds`. root: the number of the word that hangs on none, from 0; None: that of the
        best tree."""
        impact = text if isinstance(text, Impact) else self.impact(text)
        return Parsed(impact, heads=tuple(algorithm(arc_scores(impact.matrix), root=root)))


def conllu(heads: Sequence[int], words: Sequence[str]) -> str:
    """A line a word in the ten columns of CoNLL-U, numbers from 1, a head of 0 at the root, and an empty line at the end; what isn't known
    is _ (universaldependencies.org/format.html)."""
    lines = [[str(at), word, *"____", str(head + 1), "root" if head < 0 else "_", "_", "_"]
             for at, (word, head) in enumerate(zip(words, heads, strict=True), 1)]
    return "".join("\t".join(line) + "\n" for line in lines)
