"""The signatures that hold the house together: flat tokens, how they stand in rows, and what a position, an attention, a memory and a
decoder may know. Shape letters: b rows, h heads, t length, q queries, k keys, d width, v vocabulary, n flat tokens, p prompts, r live rows.

Inside the model the hidden state is flat, `[n d]`, one row a token; a View says how those tokens stand in rows for attention. A padded
batch, a packed batch, a cached step and beams that share a prompt are then the same code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from fishpaw.errors import ConfigError

__all__ = ["Attended", "Attention", "Batch", "Grid", "Memory", "Output", "Position", "Rows", "Stepper", "View"]

GROUP_FILL = 0.8
"""Sequences share a rectangle of a packed batch while the shortest fills this share of it."""


@dataclass(frozen=True)
class Rows:
    """Facts of the tokens in a rectangle, each [b t]; never inferred from a length.

    order: index in its row, counting tokens only (windows, oneself). position: read by the position's hooks. time: a key is visible
    to a query iff key.time <= query.time. keep: True where there is a token.
    """

    order: Tensor
    position: Tensor
    time: Tensor
    keep: Tensor

    def map(self, change: Any) -> Rows:
        """The same change made to all four."""
        return Rows(change(self.order), change(self.position), change(self.time), change(self.keep))


@dataclass(frozen=True)
class Grid:
    """Where flat tokens stand in a rectangle of b rows and t columns.

    The tokens are flat[start : start + size]. `index` None: they fill it row after row. Else index [b t] is the token (counted from
    `start`) in each cell, any token where none is; and cells [m] is the cell of each token.
    """

    b: int
    t: int
    start: int = 0
    index: Tensor | None = None
    cells: Tensor | None = None

    @property
    def size(self) -> int:
        """Tokens in the grid, m."""
        return self.b * self.t if self.cells is None else len(self.cells)

    def lay(self, flat: Tensor) -> Tensor:
        """[n …] -> [b t …]"""
        size = self.size
        mine: Tensor = flat if size == len(flat) else flat.narrow(0, self.start, size)
        if self.index is None:
            return mine.reshape(self.b, self.t, *mine.shape[1:])
        laid: Tensor = mine.index_select(0, self.index.flatten()).view(self.b, self.t, *mine.shape[1:])    # not mine[index]: slow backwards
        return laid

    def flat(self, laid: Tensor) -> Tensor:
        """[b t …] -> [m …]"""
        every: Tensor = laid.flatten(0, 1)
        return every if self.cells is None else every.index_select(0, self.cells)

    def split(self, flat: Tensor, heads: int) -> Tensor:
        """[n h*d] -> [b h t d]"""
        if self.index is None and len(flat) == self.b * self.t:      # at a step of decoding each call counts
            return flat.reshape(self.b, self.t, heads, -1).transpose(1, 2)
        laid: Tensor = self.lay(flat).unflatten(-1, (heads, -1))
        return laid.transpose(1, 2)

    def merge(self, split: Tensor) -> Tensor:
        """[b h t d] -> [m h*d]"""
        if self.cells is None:
            return split.transpose(1, 2).reshape(self.b * self.t, -1)
        return self.flat(split.transpose(1, 2).flatten(2))


@dataclass(frozen=True)
class Batch:
    """What a Transformer reads: flat tokens and how they stand.

    ids [n]; segments [n] | None; grids and rows: one a group of rows of similar length (a cached step has one); shape (b, t) of a padded
    batch, else None; row [n]: the sequence of each token; first [rows]: the flat index of each sequence's first token; condition
    [rows c] | None, for conditional norms; dense: known to hold no padding. Token tables and norms never look at the grids.
    """

    ids: Tensor
    segments: Tensor | None
    grids: tuple[Grid, ...]
    rows: tuple[Rows, ...]
    row: Tensor
    first: Tensor
    shape: tuple[int, int] | None = None
    condition: Tensor | None = None
    dense: bool = False

    @classmethod
    def padded(
        cls,
        ids: Tensor,
        *,
        keep: Tensor | None = None,
        segments: Tensor | None = None,
        positions: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> Batch:
        """ids [b t]; keep [b t] bool, True where there is a token, None if nothing is padded (left or right: order and position count
        tokens only); segments, positions [b t]. The padding stays in the flat tokens. Errors: ValueError for what is no tensor, for other
        shapes and for a keep of floats."""
        for name, value in (("ids", ids), ("padding", keep), ("segments", segments), ("positions", positions)):
            if value is not None and not isinstance(value, Tensor):
                raise ValueError(f"{name} is a {type(value).__name__}: give a tensor [rows, length].")
        if ids.dim() != 2:
            raise ValueError(f"ids has {ids.dim()} dimensions, shape {tuple(ids.shape)}: give [rows, length].")
        if not ids.numel():
            raise ValueError(f"ids is empty, shape {tuple(ids.shape)}: give at least one row of one token.")
        for name, value in (("padding", keep), ("segments", segments), ("positions", positions)):
            if value is not None and value.shape != ids.shape:
                raise ValueError(f"{name} has shape {tuple(value.shape)}, ids {tuple(ids.shape)}: they must be equal.")
        if keep is not None and keep.is_floating_point():            # an additive mask, 0 where there is a token, would say the opposite
            raise ValueError(f"padding is {keep.dtype}: give booleans, True where there is a token.")
        b, t = ids.shape
        if keep is None:
            order = torch.arange(t, device=ids.device).expand(b, t)
            first = torch.arange(b, device=ids.device) * t
            kept = torch.ones_like(ids, dtype=torch.bool)
        else:
            kept = keep.bool()
            order = (kept.cumsum(1) - 1).clamp_min(0)
            first = kept.int().argmax(1) + torch.arange(b, device=ids.device) * t
        rows = Rows(order, order if positions is None else positions, order, kept)
        return cls(
            ids=ids.flatten(),
            segments=None if segments is None else segments.flatten(),
            grids=(Grid(b, t),),
            rows=(rows,),
            row=torch.arange(b, device=ids.device).repeat_interleave(t),
            first=first,
            shape=(b, t),
            condition=condition,
            dense=keep is None,
        )

    @classmethod
    def packed(
        cls,
        sequences: Sequence[Tensor],
        *,
        segments: Sequence[Tensor] | None = None,
        positions: Sequence[Tensor] | None = None,
        condition: Tensor | None = None,
    ) -> Batch:
        """Sequences [t_i] of any lengths, without padding: one after another in flat order, longest first, in rectangles of similar
        length for attention. `first` and `row` keep the order given. Empty sequences are refused."""
        lengths = [len(sequence) for sequence in sequences]
        if not lengths or min(lengths) == 0:
            raise ValueError(f"packed needs sequences of at least one token, got lengths {lengths[:20]}.")
        for name, given in (("segments", segments), ("positions", positions)):
            if given is not None and [len(one) for one in given] != lengths:
                raise ValueError(f"{name} of lengths {[len(one) for one in given][:20]} for sequences of {lengths[:20]}: make them equal.")
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        device = sequences[0].device
        grids, rows, start = [], [], 0
        for group in _groups(order, lengths):
            b, t = len(group), lengths[group[0]]
            width = torch.tensor([lengths[i] for i in group], device=device)
            keep = torch.arange(t, device=device) < width[:, None]                                  # [b t]
            column = torch.arange(t, device=device).expand(b, t)
            if all(lengths[i] == t for i in group):
                grids.append(Grid(b, t, start))
            else:
                index = (width.cumsum(0) - width)[:, None] + column.clamp_max(width[:, None] - 1)
                grids.append(Grid(b, t, start, index, keep.flatten().nonzero().squeeze(1)))
            position = column if positions is None else pad_sequence([positions[i] for i in group], batch_first=True)
            rows.append(Rows(column, position, column, keep))
            start += int(sum(lengths[i] for i in group))
        offsets = torch.zeros(len(lengths), dtype=torch.long)
        offsets[order] = torch.tensor([0, *[lengths[i] for i in order[:-1]]]).cumsum(0)
        return cls(
            ids=torch.cat([sequences[i] for i in order]),
            segments=None if segments is None else torch.cat([segments[i] for i in order]),
            grids=tuple(grids),
            rows=tuple(rows),
            row=torch.tensor(order, device=device).repeat_interleave(torch.tensor([lengths[i] for i in order], device=device)),
            first=offsets.to(device),
            condition=condition,
            dense=all(grid.cells is None for grid in grids),
        )

    @property
    def positions(self) -> Tensor:
        """The position of each flat token, [n]."""
        return torch.cat([grid.flat(rows.position) for grid, rows in zip(self.grids, self.rows, strict=True)])

    def last(self) -> Tensor:
        """The flat index of each sequence's last token, [rows]."""
        if self.shape is None:
            return self.first + torch.zeros_like(self.first).index_add_(0, self.row, self._kept().long()) - 1
        keep = self._kept().view(self.shape)                     # of a cached step, too, whose grid is [prompts, lanes x new]
        behind = keep.flip(1).int().argmax(1)
        return torch.arange(1, self.shape[0] + 1, device=keep.device) * self.shape[1] - 1 - behind

    def restore(self, flat: Tensor) -> Tensor:
        """[n …] -> [b t …] where the batch was padded; packed batches stay flat."""
        return flat if self.shape is None else flat.unflatten(0, self.shape)

    def unpack(self, flat: Tensor) -> list[Tensor]:
        """The tokens of each sequence, [t_i …], in the order given; of a padded batch without its padding."""
        kept = self._kept()
        if self.shape is not None:
            return [one[keep] for one, keep in zip(self.restore(flat), kept.view(self.shape), strict=True)]
        count = torch.zeros_like(self.first).index_add_(0, self.row, kept.long()).tolist()
        return [flat[start : start + size] for start, size in zip(self.first.tolist(), count, strict=True)]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""

        def move(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.to(device)

        return replace(
            self,
            ids=self.ids.to(device),
            segments=move(self.segments),
            grids=tuple(replace(grid, index=move(grid.index), cells=move(grid.cells)) for grid in self.grids),
            rows=tuple(one.map(move) for one in self.rows),
            row=self.row.to(device),
            first=self.first.to(device),
            condition=move(self.condition),
        )

    def _kept(self) -> Tensor:
        return torch.cat([grid.flat(rows.keep) for grid, rows in zip(self.grids, self.rows, strict=True)])


class Position(nn.Module):
    """Where a token stands, for those who need it. One a model, shared by its layers. Override what the position uses: the identity
    otherwise; `hooks` tells which. Facts come as explicit tensors: order and length are never inferred. `length`: how many positions there
    are, None for any number."""

    length: int | None = None
    sharpens: bool = False
    """Whether `rotate` changes norms, too (log-n scaling, YaRN's temperature): what has no softmax to sharpen must undo that."""

    def embed(self, x: Tensor, pos: Tensor) -> Tensor:
        """x [n e], pos [n] -> [n e]: added to the embeddings."""
        return x

    def at(self, q_pos: Tensor, k_pos: Tensor, new_pos: Tensor, dtype: torch.dtype) -> Any:
        """Tables for the other hooks, once a forward; q_pos [b q], k_pos [b k] of all keys, new_pos [b m] of those not yet stored."""
        return None

    def rotate(self, q: Tensor, k: Tensor | None, at: Any) -> tuple[Tensor, Tensor | None]:
        """q [b h q d], new k [b h m d] | None -> the same shapes."""
        return q, k

    def bias(self, q_pos: Tensor, k_pos: Tensor) -> Tensor | None:
        """[1|b h q k] without content, which the fused kernel can take (T5, ALiBi)."""
        return None

    def score(self, q: Tensor, k: Tensor, at: Any) -> Tensor:
        """[b h q k], before the scale; from content (NEZHA, ReRoPE): needs the explicit path."""
        return q @ k.mT

    def mix(self, weights: Tensor, at: Any) -> Tensor | None:
        """weights [b h q k] -> [b h q d] to add to the output (NEZHA)."""
        return None

    def hooks(self) -> frozenset[str]:
        """The hooks that this position overrides."""
        kind: Any = type(self)                                       # hashable, whatever nn.Module's annotations say
        return _overridden(kind)


@dataclass(frozen=True)
class View:
    """All that attention may know besides q, k and v; made once a forward, used by every layer.

    grid holds the queries, source the new keys (another one in cross-attention). q, k: facts of the queries and of all keys, stored ones
    first. clock and rules name the mask; mask bool [b 1 1|q k] is None where nothing is to be hidden beyond the clock: clock "causal"
    without a mask is the plain triangle (or a single query that sees all). bias [1|b h q k]. at: the position's tables.
    lanes: live rows that share each row of the grid (beams of a prompt), lane after lane.
    """

    grid: Grid
    source: Grid
    q: Rows
    k: Rows
    position: Position
    at: Any = None
    clock: str = "full"
    rules: tuple[str, ...] = ()
    mask: Tensor | None = None
    bias: Tensor | None = None
    lanes: int = 1

    @property
    def fresh(self) -> Rows:
        """Facts of the keys that are not stored yet, [b m]: the last columns of `k`."""
        return self.k.map(lambda fact: fact[:, -self.source.t :])

    @cached_property
    def additive(self) -> Tensor | None:
        """The one argument of the fused kernel: nothing, a boolean mask, or the bias with -inf outside the mask. Read once where a View
        with a bias is made: what a layer made first, recomputation would miss."""
        if self.bias is None or self.mask is None:
            return self.mask if self.bias is None else self.bias
        return self.bias.masked_fill(~self.mask, float("-inf"))


@dataclass(frozen=True)
class Attended:
    """What attention gives: out [b h q d]; carry: for the next layer (RealFormer's scores); weights [b h q k] if asked for."""

    out: Tensor
    carry: Any = None
    weights: Tensor | None = None


class Memory(Protocol):
    """What one attention remembers between steps: keys and values, or a state of constant size. How it is written and read is between it
    and the kernel that makes it; the cache only moves it."""

    def select(self, lanes: Tensor) -> None:
        """lanes [p x]: the old lane that each new lane continues, counted over the prompts still there (`take` comes first). Keys
        shared by lanes need nothing."""

    def take(self, prompts: Tensor) -> None:
        """Keep these prompts only, [p']."""

    def compact(self, cells: Tensor) -> None:
        """Keep these stored keys only, [p k'], a row a prompt."""


class Attention(nn.Module):
    """Queries, keys and values to an output; one a layer, the owner of scale, normalisation and the order of rotate and append.

    What it can serve: `honours`, the hooks of a position; `clocks` and `rules` of a mask; `has_scores`: whether there is a matrix of
    scores to carry from layer to layer. A pair that can't be is refused when the model is built (model/refusals.py says why).
    """

    honours: frozenset[str] = frozenset()
    clocks: frozenset[str] = frozenset({"full", "causal", "unilm"})
    rules: frozenset[str] = frozenset()
    has_scores: bool = False
    reads_mask: bool = True
    """Whether it reads View.mask; one that reads the facts of queries and keys instead is spared the making of a matrix."""

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
        """q [b h q d]; new k, v [b g m d] (g divides h), None where the memory has them all."""
        raise NotImplementedError

    def memory(self, room: int | None = None) -> Memory:
        """An empty memory for one sequence of steps, with room for that many keys a prompt before it grows. ConfigError where the
        kernel can't decode step by step."""
        raise ConfigError(f"The attention {type(self).__name__} can't decode step by step.", fix="Use attention 'softmax'.")


@dataclass
class Output:
    """What a Transformer answers, None where not asked for or not held. Padded batches: [b t …]; packed: [n …].

    hidden [b t d]; logits [b t v] (or [m v] at chosen tokens); replaced [b t], of a discriminator; pooled [b d]; nsp [b 2], 0 is "is
    next"; classes [b c]; all_hidden: the embeddings and every layer; attentions: [b h q k] a layer, (self, cross) pairs in a decoder with
    an encoder; cache.
    """

    hidden: Tensor
    logits: Tensor | None = None
    replaced: Tensor | None = None
    pooled: Tensor | None = None
    nsp: Tensor | None = None
    classes: Tensor | None = None
    all_hidden: tuple[Tensor, ...] | None = None
    attentions: tuple[Any, ...] | None = None
    cache: Any = None


class Stepper(Protocol):
    """The only thing that decoding sees: any model or function that scores the next token of live rows. Rows of one prompt are adjacent,
    in the order of the prompts."""

    def start(self, batch: Any, encoder_batch: Any = None) -> Tensor:
        """Read the prompts -> logits [p v] after each one's last token; the live rows are the prompts."""

    def step(self, tokens: Tensor) -> Tensor:
        """Append tokens [r] -> [r v], or [r u] -> [r u v], to each live row."""

    def select(self, index: Tensor) -> None:
        """index [r']: new row j continues old row index[j]. Fanning out, moving and leaving are this one call."""

    def compact(self) -> None:
        """Forget stored keys that no live row descends from."""


@cache
def _overridden(kind: Any) -> frozenset[str]:
    names = ("embed", "rotate", "bias", "score", "mix")
    return frozenset(name for name in names if getattr(kind, name) is not getattr(Position, name))


def _groups(order: list[int], lengths: list[int]) -> list[list[int]]:
    """Cut sequences, longest first, where one would fill less than GROUP_FILL of its group's width."""
    groups: list[list[int]] = []
    for i in order:
        if not groups or lengths[i] < GROUP_FILL * lengths[groups[-1][0]]:
            groups.append([])
        groups[-1].append(i)
    return groups
