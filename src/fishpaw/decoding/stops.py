"""Stop strings: generation ends where one of them stands in the text, however its characters fall on tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fishpaw.errors import ConfigError
from fishpaw.text.encoding import Tokenizer

__all__ = ["StopStrings"]

SLACK = 3                                                        # tokens before the tail, so that its first one joins as in the whole text


@dataclass(frozen=True)
class StopStrings:
    """A Stop (decoding/walk.py): True for a row whose text, decoded from the generated tokens alone, holds one of the strings.

    Nothing of a stop string is in the answer: `cut` the text. What came before is never searched again: a step decodes a tail of as many
    tokens as the longest string has bytes, and the whole row only where the tail seems to hold a string. Special tokens have no text;
    they belong into Limits.ends. Raises ConfigError for no string, an empty one and one that is a special token.
    """

    tokenizer: Tokenizer
    strings: tuple[str, ...]

    def __init__(self, tokenizer: Tokenizer, strings: Sequence[str]) -> None:
        if isinstance(strings, str) or not strings or not all(isinstance(one, str) and one for one in strings):
            raise ConfigError(f"The stop strings are {strings!r}; allowed: a list of texts, none of them empty.", fix="Give at least one.")
        special = {tokenizer.tokens[id] for id in tokenizer.special_ids if id < len(tokenizer.tokens)}
        if hidden := [one for one in strings if one in special]:
            raise ConfigError(f"The stop string {hidden[0]} is a special token, which no text shows.", fix="Name its id in ends instead.")
        object.__setattr__(self, "tokenizer", tokenizer)
        object.__setattr__(self, "strings", tuple(strings))

    def __call__(self, tokens: Tensor) -> Tensor:
        longest = max(len(one.encode("utf-8", "surrogatepass")) for one in self.strings)      # a token has a byte at least
        width = longest + SLACK
        tails = tokens[:, -width:].tolist()
        found = [self._ends(tokens, row, tail, width) for row, tail in enumerate(tails)]
        return torch.tensor(found, dtype=torch.bool, device=tokens.device)                                    # [r]

    def cut(self, text: str) -> tuple[str, str | None]:
        """The text before the first stop string in it, and that string; the whole text and None where there is none."""
        places = [(place, one) for one in self.strings if (place := text.find(one)) >= 0]
        if not places:
            return text, None
        place, found = min(places)
        return text[:place], found

    def settled(self, text: str) -> int:
        """How many of the first characters can't be part of a stop string that the next tokens complete."""
        held = max((size for one in self.strings for size in range(1, len(one)) if text.endswith(one[:size])), default=0)
        return len(text) - held

    def _ends(self, tokens: Tensor, row: int, tail: list[int], width: int) -> bool:
        special = self.tokenizer.special_ids
        if not special.isdisjoint(tail):                         # they take places, but have no text
            tail = [token for token in tokens[row].tolist() if token not in special][-width:]
        text = self.tokenizer.decode(tail)
        # Blanks beside quotes depend on what came before the tail: the tail is compared without blanks, the whole as it is.
        bare = "".join(text.split())
        if not any(one in text or ((squeezed := "".join(one.split())) and squeezed in bare) for one in self.strings):
            return False
        return self.cut(self.tokenizer.decode(tokens[row].tolist()))[1] is not None
