"""Linear attention from features of queries and keys, out_i = sum_j phi(q_i)·phi(k_j) v_j / sum_j phi(q_i)·phi(k_j), in linear time:
dense, in chunks, or as a state of constant size (arXiv:2006.16236). A kind of it is its feature map; everything else is here.

The forms take values with a last column of ones, so that a product's last column is the denominator; a key that is not there has a row of
zeros. What no query may see is never added, so nothing is subtracted: an output doesn't change by a bit with what is hidden from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fishpaw.attention.memory import State
from fishpaw.contracts import Attended, Attention, Memory, Rows, View
from fishpaw.errors import ConfigError

__all__ = ["PLAIN", "LinearKind", "Maps", "backward", "causal", "compare", "dense", "divide", "full", "gather", "read", "repeated",
           "turned"]

Pair = tuple["Maps", Tensor, Tensor | None]

CHUNK = 64
"""Tokens of a chunk: inside, a masked product of features; between chunks, a state."""


@dataclass(frozen=True)
class Maps:
    """queries, keys: [… n d] -> features [… n f], each token by itself, for they are called on pieces. similarity: q [… q d], k [… k d] ->
    [… q k], the product of their features where that is cheaper without them (None: from the features). chunk: tokens of a piece. few: up
    to that many tokens the similarity serves alone."""

    queries: Callable[[Tensor], Tensor]
    keys: Callable[[Tensor], Tensor]
    similarity: Callable[[Tensor, Tensor], Tensor] | None = None
    chunk: int = CHUNK
    few: int = 0


PLAIN = Maps(lambda q: q, lambda k: k)
"""For what are features already."""


def compare(q: Tensor, k: Tensor, maps: Maps = PLAIN) -> Tensor:
    """phi(q) phi(k)^T, [… q k]."""
    return maps.queries(q) @ maps.keys(k).mT if maps.similarity is None else maps.similarity(q, k)


def gather(k: Tensor, v: Tensor, maps: Maps = PLAIN, *, state: Tensor | None = None) -> Tensor:
    """sum_j phi(k_j) v_j^T over k [… k d], v [… k e], and an earlier state -> the state [… f e]."""
    for one, values in zip(k.split(maps.chunk, -2), v.split(maps.chunk, -2), strict=True):
        state = _grown(state, maps.keys(one).mT @ values)
    assert state is not None
    return state


def read(q: Tensor, state: Tensor, maps: Maps = PLAIN) -> Tensor:
    """phi(q) state: q [… q d], state [… f e] -> totals [… q e]."""
    return _joined((maps.queries(one) @ state for one in q.split(maps.chunk, -2)), q.shape[-2])


def dense(q: Tensor, k: Tensor, v: Tensor, maps: Maps = PLAIN, *, allowed: Tensor, state: Tensor | None = None) -> Tensor:
    """q [… q d], k [… k d], v [… k e], allowed bool [… q k], state [… f e] of earlier keys -> totals [… q e]. Any mask, in quadratic time:
    the reference of the other forms."""
    total = compare(q, k, maps).masked_fill(~allowed, 0) @ v
    return total if state is None else total + read(q, state, maps)


def full(q: Tensor, k: Tensor, v: Tensor, maps: Maps = PLAIN, *, state: Tensor | None = None) -> Tensor:
    """Every query sees every key; shapes as in `dense`."""
    if maps.similarity is not None and state is None and k.shape[-2] <= maps.few:
        return maps.similarity(q, k) @ v
    return read(q, gather(k, v, maps, state=state), maps)


def causal(q: Tensor, k: Tensor, v: Tensor, maps: Maps = PLAIN, *, strict: bool = False, state: Tensor | None = None) -> Tensor:
    """Query i sees the keys 0 … i, strict: 0 … i-1, and those of the state; shapes as in `dense`, as many queries as keys."""
    if maps is PLAIN and v.shape[-1] == 1:
        return _counted(q, k * v, strict, state)
    size = maps.few if q.shape[-2] <= maps.few else maps.chunk
    totals, pieces = [], [one.split(size, -2) for one in (q, k, v)]
    for left, (ask, one, values) in zip(reversed(range(len(pieces[0]))), zip(*pieces, strict=True), strict=True):
        plain = maps.similarity is None                                          # else features only where a state is read or written
        features = maps.queries(ask) if plain or state is not None else ask
        marks = maps.keys(one) if plain or left else one
        scores = features @ marks.mT if maps.similarity is None else maps.similarity(ask, one)
        total = scores.tril_(-1 if strict else 0) @ values
        totals.append(total if state is None else total + features @ state)
        if left:
            state = _grown(state, marks.mT @ values)
    return torch.cat(totals, dim=-2)


def backward(q: Tensor, k: Tensor, v: Tensor, maps: Maps = PLAIN) -> Tensor:
    """Query i sees the keys after it, i+1 …; shapes as in `dense`."""
    return causal(q.flip(-2), k.flip(-2), v.flip(-2), maps, strict=True).flip(-2)


class LinearKind(Attention):
    """q [b h q d], k and v [b g k d] -> out [b h q d]: a kind overrides `queries` and `keys`, and `similarity` where it has a cheaper one.

    Every mask but a window. A query that sees nothing gets 0, with finite gradients. Sums in fp32 or better. There is no matrix of shares,
    so attention dropout has nothing to fall on and is left out; the shares are made for those who ask (`weights`), in quadratic time.
    `turns`: what rotary positions turn: the "vectors" before the map, so that shares stay those of a kernel, or the "features" after it,
    in the numerator alone (RoFormer, arXiv:2104.09864, eq. 19; shares may then be negative).
    """

    honours = frozenset({"embed", "rotate"})
    rules = frozenset({"exclude_self"})
    reads_mask = False
    turns: str = "vectors"
    chunk: int = CHUNK
    few: int = 0

    def queries(self, q: Tensor) -> Tensor:
        """[… n d] -> features [… n f], token by token, in fp32 or better."""
        raise NotImplementedError

    def keys(self, k: Tensor) -> Tensor:
        """[… n d] -> features [… n f], token by token: a scale that depends on other keys would change with every step."""
        return self.queries(k)

    similarity: Callable[[Tensor, Tensor], Tensor] | None = None
    """q [… q d], k [… k d] -> [… q k], where a kind has the product of features cheaper than from features."""

    def forward(
        self,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        view: View,
        carry: Any = None,
        memory: Memory | None = None,
        weights: bool = False,
    ) -> Attended:
        assert memory is None or isinstance(memory, State)
        with torch.autocast(q.device.type, enabled=False):                       # sums over many keys don't fit 8 bits
            return self._attend(q, k, v, view, memory, weights)

    def memory(self, room: int | None = None) -> Memory:
        return State()

    def maps(self, dtype: torch.dtype) -> Maps:
        """For one call on q and k of this type; a kind with something to prepare does it here, once for all pieces."""
        return Maps(self.queries, self.keys, self.similarity, self.chunk, self.few)

    def _attend(self, q: Tensor, k: Tensor | None, v: Tensor | None, view: View, memory: State | None, weights: bool) -> Attended:
        dtype, q = q.dtype, _wide(q)
        k, v = (None if one is None else repeated(_wide(one), q.shape[1]) for one in (k, v))
        maps = self.maps(q.dtype)
        if self.turns == "vectors" or "rotate" not in view.position.hooks():
            pairs = [(maps, *view.position.rotate(q, k, view.at))]               # one product gives numerator and denominator
        else:
            q, k = maps.queries(q), None if k is None else maps.keys(k)
            pairs = [(PLAIN, *turned(q, k, view)), (PLAIN, q, k)]
        stored = None if memory is None else memory.sums
        if weights:
            return _explicit(pairs, v, view, stored, dtype)
        if v is None:
            if stored is None:
                raise ValueError("attention without keys needs a memory that holds them")
            totals = [read(_laned(q, view), state, maps) for (maps, q, _), state in zip(pairs, stored, strict=True)]
        else:
            values, keep = _laned(v, view), _laned(view.fresh.keep[:, None, :, None], view).to(v.dtype)
            columns = [functional.pad(values, (0, 1), value=1).mul_(keep)] if len(pairs) == 1 else [values * keep, keep]
            form, before, totals = _form(view), stored or (None, None), []
            if memory is not None:
                memory.sums = tuple(
                    gather(_laned(k, view), column, maps, state=state)
                    for (maps, _, k), column, state in zip(pairs, columns, before, strict=False)
                    if k is not None
                )
            for (maps, q, k), column, state in zip(pairs, columns, before, strict=False):
                assert k is not None
                totals.append(form(_laned(q, view), _laned(k, view), column, maps, state=state))
        out = divide(totals[0] if len(totals) == 1 else torch.cat(totals, dim=-1))                  # [b lanes h n d]
        return Attended(out.transpose(1, 2).flatten(2, 3).to(dtype))


def repeated(x: Tensor, heads: int) -> Tensor:
    """[b g n d] -> [b h n d], each as often as there are query heads a head of keys; no copy where there is one."""
    return x[:, :, None].expand(-1, -1, heads // x.shape[1], -1, -1).flatten(1, 2)


def turned(q: Tensor, k: Tensor | None, view: View) -> tuple[Tensor, Tensor | None]:
    """Features turned by the view's position, their norms kept: sharpening is for a softmax, here it would only lengthen the output."""
    many, one = view.position.rotate(q, k, view.at)
    if not view.position.sharpens:
        return many, one
    return _as_long(many, q), None if one is None or k is None else _as_long(one, k)


def _as_long(x: Tensor, like: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    kept: Tensor = x * torch.linalg.vector_norm(like, dim=-1, keepdim=True) / length.masked_fill(length == 0, 1)
    return kept


def divide(totals: Tensor) -> Tensor:
    """[… e] -> [… e-1]: the columns over the last one, 0 where that is 0. Without gradients `totals` is written over."""
    above, below = totals[..., :-1], totals[..., -1:]
    below = below.masked_fill(below == 0, 1)
    return above / below if totals.requires_grad else above.div_(below)          # in place: another buffer's pages cost more than this


def _explicit(pairs: list[Pair], v: Tensor | None, view: View, stored: object, dtype: torch.dtype) -> Attended:
    """With the shares, [b h q k]."""
    if v is None or stored is not None:
        raise ConfigError("Linear attention keeps no keys, so a step has no attention maps.", fix="Ask for them without a cache.")
    hidden = ~_allowed(view.q, view.fresh, view)[:, None]
    scores = [compare(q, k, maps).masked_fill(hidden, 0) for maps, q, k in pairs if k is not None]
    below = scores[-1].sum(-1, keepdim=True)
    shares = scores[0] / below.masked_fill(below == 0, 1)
    return Attended((shares @ v).to(dtype), weights=shares)


def _form(view: View) -> Callable[..., Tensor]:
    """What serves the mask of a view: (q, k, v, maps, state=) -> totals."""
    strict = "exclude_self" in view.rules
    q, k = (rows.map(lambda fact: fact.unflatten(1, (view.lanes, -1))) for rows in (view.q, view.fresh))         # [b lanes n]
    if torch.compiler.is_exporting():                                            # a graph for any length has no loop over pieces
        return partial(dense, allowed=_allowed(q, k, view)[:, :, None])
    if view.clock == "full":
        return _but_oneself if strict else full
    if view.clock == "causal" or k.time.shape[2] == 1:
        return partial(causal, strict=strict)
    late, before = k.time[..., 1:], k.time[..., :-1]
    # Equal times beyond the source, perhaps with padding between them, which has the time of what stands before it.
    if bool(((before > 0) & (late <= before) & k.keep[..., 1:]).any()):
        return partial(dense, allowed=_allowed(q, k, view)[:, :, None])
    return partial(_source_first, source=(k.time == 0)[:, :, None, :, None], strict=strict)


def _counted(q: Tensor, k: Tensor, strict: bool, state: Tensor | None) -> Tensor:
    """A single column, the turned kinds' denominator: a running sum is less work than masked products."""
    seen = k.cumsum(-2)
    seen = functional.pad(seen[..., :-1, :], (0, 0, 1, 0)) if strict else seen
    return (q * (seen if state is None else seen + state.mT)).sum(-1, keepdim=True)


def _but_oneself(q: Tensor, k: Tensor, v: Tensor, maps: Maps, *, state: Tensor | None) -> Tensor:
    return causal(q, k, v, maps, strict=True, state=state) + backward(q, k, v, maps)


def _source_first(q: Tensor, k: Tensor, v: Tensor, maps: Maps, *, source: Tensor, strict: bool, state: Tensor | None) -> Tensor:
    """UniLM: the keys of the source, [… k 1], are seen by every query, the others by later ones; times rise from column to column."""
    if strict:
        return causal(q, k, v, maps, strict=True, state=state) + backward(q, k, v * source, maps)
    return full(q, k, v * source, maps) + causal(q, k, v * ~source, maps, state=state)


def _allowed(q: Rows, k: Rows, view: View) -> Tensor:
    """Which keys a query may see, [… q k]."""
    seen = k.keep[..., None, :]
    if view.clock != "full":
        seen = seen & (k.time[..., None, :] <= q.time[..., None])
    return seen & (q.order[..., None] != k.order[..., None, :]) if "exclude_self" in view.rules else seen


def _laned(x: Tensor, view: View) -> Tensor:
    """[b h lanes*n d] -> [b lanes h n d]"""
    laid: Tensor = x.unflatten(2, (view.lanes, -1))
    return laid.transpose(1, 2)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _joined(pieces: Iterator[Tensor], count: int) -> Tensor:
    """Pieces [… n e] behind each other, `count` rows in all. Without gradients each is laid down before the next is made: that one then
    finds its memory in the cache, where a list of all of them would take as many fresh pages again as the whole."""
    first = next(pieces)
    if first.requires_grad:
        return torch.cat([first, *pieces], dim=-2)
    whole, end = first.new_empty(*first.shape[:-2], count, first.shape[-1]), 0
    for one in chain([first], pieces):
        start, end = end, end + one.shape[-2]
        whole[..., start:end, :] = one
    return whole


def _grown(state: Tensor | None, more: Tensor) -> Tensor:
    return more if state is None else state + more
