"""What the tokenizers that come with a file of their own share: which token is what, ids within the vocabulary, files written back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fishpaw.errors import DataError

__all__ = ["Roles"]


class Roles:
    """tokens: by id. named: role ("pad", "mask" …) -> id. saved: file name -> the bytes that `save` writes."""

    def __init__(self, tokens: Sequence[str], named: Mapping[str, int], saved: Mapping[str, bytes]) -> None:
        self.tokens, self._named, self._saved = tuple(tokens), dict(named), dict(saved)

    def save(self, folder: Path) -> None:
        """Write the files that it was made from, byte for byte."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in self._saved.items():
            (folder / name).write_bytes(data)

    @property
    def size(self) -> int:
        """The largest id and one: as many rows as a model needs."""
        return len(self.tokens)

    @property
    def pad_id(self) -> int:
        """Without a padding token the end token fills up, or the first: it is never attended to."""
        return self._named.get("pad", self._named.get("eos", 0))

    @property
    def bos_id(self) -> int:
        return self._id("bos")

    @property
    def eos_id(self) -> int:
        """What ends a text; BERT's kind have [SEP] for it. Raises DataError where there is neither, as the others do."""
        return self._id("sep" if "eos" not in self._named and "sep" in self._named else "eos")

    @property
    def unk_id(self) -> int:
        return self._id("unk")

    @property
    def sep_id(self) -> int:
        return self._id("sep")

    @property
    def cls_id(self) -> int:
        return self._id("cls")

    @property
    def mask_id(self) -> int:
        return self._id("mask")

    def _id(self, role: str) -> int:
        if role not in self._named:
            fix = f'Use a model that has one; beside a tokenizer.json, "{role}_token" of tokenizer_config.json names it.'
            raise DataError(f"this tokenizer has no {role} token.", fix=fix)
        return self._named[role]

    def _within(self, ids: Iterable[int]) -> list[int]:
        """The ids as ints. Raises DataError for one outside the vocabulary."""
        found = [int(id) for id in ids]
        for id in found:
            if not 0 <= id < self.size:
                raise DataError(f"id {id} is outside the vocabulary of {self.size} tokens.", fix="Decode ids of this tokenizer's model.")
        return found
