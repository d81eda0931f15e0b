"""Which tokens a masked language model must find again, and what it sees in their place (BERT, arXiv:1810.04805, section 3.1; whole words:
arXiv:1906.08101). The special tokens have the lowest ids: what is `ordinary` begins after them."""

from __future__ import annotations

import numpy
from numpy.typing import NDArray

from fishpaw.errors import ConfigError

__all__ = ["mask_tokens"]


def mask_tokens(
    ids: NDArray[numpy.int64],
    generator: numpy.random.Generator,
    *,
    mask_id: int,
    vocab_size: int,
    ordinary: int = 5,
    rate: float = 0.15,
    words: NDArray[numpy.bool_] | None = None,
) -> tuple[NDArray[numpy.int64], NDArray[numpy.int64]]:
    """ids [n] -> what the model reads [n], and the places of the tokens to find again [m], ascending.

    Each token of an id from `ordinary` on is chosen with probability `rate`; of the chosen, 80 % become mask_id, 10 % a random ordinary
    token, 10 % stay. words [n]: True where a token begins a word; then words are chosen, whole, and each has one fate. Errors: ConfigError
    for a rate that is no share, where no id is ordinary, and for words of another length.
    """
    if not 0 < rate < 1:
        raise ConfigError(f"The rate of masked tokens is {rate}.", fix="Give a share between 0 and 1.")
    if not 0 <= ordinary < vocab_size:
        raise ConfigError(f"Of {vocab_size} tokens none is ordinary from id {ordinary} on.", fix="Give the first id that isn't special.")
    if words is not None and words.shape != ids.shape:
        raise ConfigError(f"words has {words.size} flags for {ids.size} tokens.", fix="Give one a token.")
    chance, fate = generator.random((2, len(ids)))
    if words is not None:
        first = numpy.maximum.accumulate(numpy.where(words, numpy.arange(len(ids)), 0))            # of each token's word
        chance, fate = chance[first], fate[first]
    places = numpy.flatnonzero((chance < rate) & (ids >= ordinary))                                # [m]
    fate = fate[places]
    random = generator.integers(ordinary, vocab_size, len(places))
    seen = ids.copy()
    seen[places] = numpy.where(fate < 0.8, mask_id, numpy.where(fate < 0.9, random, ids[places]))
    return seen, places
