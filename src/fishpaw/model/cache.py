"""What a Transformer remembers between the steps of decoding. Live rows are a tree, not copies: all rows of a prompt (its beams) share one
buffer of keys, and `line` says which stored keys each row descends from; moving a row moves a row of `line`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fishpaw.contracts import Batch, Grid, Memory, Rows
from fishpaw.masks import Mask

__all__ = ["Cache"]


class Cache:
    """p prompts, r live rows in up to `lanes` lanes a prompt, k stored keys a prompt.

    keys: facts of the stored keys [p k], shared by the layers; memories: (self, cross) a layer; owner [r]: the prompt of each row; line
    bool [p lanes k], None while nothing is hidden from any row; condition [p c] of conditional norms; last: order, position and time of
    each row's latest token, [r 1] each.
    """

    def __init__(self, memories: Sequence[tuple[Memory, Memory | None]], mask: Mask) -> None:
        self.memories = tuple(memories)
        self.mask = mask
        self.keys: Rows | None = None
        self.encoder: Rows | None = None
        self.condition: Tensor | None = None
        self.owner = torch.empty(0, dtype=torch.long)
        self.line: Tensor | None = None
        self.last: Rows | None = None
        self.lanes = 1
        self.prompts = 0
        self.dense = True
        self.reach = 0

    @property
    def length(self) -> int:
        """Stored keys a prompt, those of all its rows."""
        return 0 if self.keys is None else self.keys.order.shape[1]

    def batch(self, tokens: Tensor, segments: Tensor | None = None) -> Batch:
        """tokens [r] or [r u], the next of each live row -> the Batch of one step. segments like tokens; a UniLM mask takes 1 if None."""
        if self.last is None:
            raise ValueError("the cache is empty: read the prompts first")
        tokens = tokens[:, None] if tokens.dim() == 1 else tokens
        if tokens.dim() != 2 or len(tokens) != len(self.owner) or not tokens.shape[1]:
            raise ValueError(f"tokens of shape {tuple(tokens.shape)} for {len(self.owner)} live rows: give [rows] or [rows, new]")
        r, u = tokens.shape
        if segments is None and self.mask.clock == "unilm":
            segments = torch.ones_like(tokens)
        if segments is not None and segments.numel() != r * u:
            raise ValueError(f"segments has shape {tuple(segments.shape)}, ids {(r, u)}: they must be equal")
        segments = None if segments is None else segments.reshape(r, u)
        step = torch.arange(1, u + 1, device=tokens.device)
        order = self.last.order + step                                                              # [r u]
        time = self.mask.times(order, segments, self.last.time[:, 0])
        grid, keep = self._grid(r, u, tokens.device)
        facts = Rows(order, self.last.position + step, time, torch.ones_like(order, dtype=torch.bool))
        rows = facts.map(lambda fact: grid.lay(fact.flatten()))
        return Batch(
            ids=tokens.flatten(),
            segments=None if segments is None else segments.flatten(),
            grids=(grid,),
            rows=(Rows(rows.order, rows.position, rows.time, keep),),
            row=torch.arange(r, device=tokens.device).repeat_interleave(u),
            first=torch.arange(r, device=tokens.device) * u,
            shape=(r, u),
            condition=None if self.condition is None else self.condition[self.owner],
            dense=grid.cells is None,
        )

    def extend(self, batch: Batch, encoder: Rows | None) -> tuple[Rows, Tensor | None]:
        """The tokens of a batch become keys -> facts of all keys [p k], and each query's line [p q k] (None: all keys are its own)."""
        rows = batch.rows[0]
        tail = batch.last()
        self.last = rows.map(lambda fact: batch.grids[0].flat(fact)[tail, None])
        self.dense = self.dense and batch.dense
        if self.keys is None:
            self.keys, self.encoder, self.condition = rows, encoder, batch.condition
            self.prompts = batch.grids[0].b
            self.owner = torch.arange(self.prompts, device=batch.ids.device)
            self.reach = batch.grids[0].t
            return rows, None
        new = batch.grids[0].t // self.lanes
        self.keys = Rows(*(torch.cat(pair, dim=1) for pair in zip(_facts(self.keys), _facts(rows), strict=True)))
        self.reach += new
        if self.line is None:
            return self.keys, None
        own = torch.eye(self.lanes, dtype=torch.bool, device=batch.ids.device).repeat_interleave(new, dim=1)
        self.line = torch.cat((self.line, own.expand(self.prompts, -1, -1)), dim=2)                 # [p lanes k]
        return self.keys, self.line.repeat_interleave(new, dim=1)

    def select(self, index: Tensor) -> None:
        """index [r']: new row j continues old row index[j]. Rows of a prompt must stay adjacent, prompts in order; a prompt without
        rows leaves the buffers."""
        if self.keys is None or self.last is None:
            raise ValueError("the cache is empty: read the prompts first")
        if not len(index):
            raise ValueError("no row is left: make a new cache")
        before, lane = self.lanes, (self._places() - self.owner * self.lanes)[index]
        owner, counts = torch.unique_consecutive(self.owner[index], return_counts=True)
        if len(owner) > 1 and not bool((owner[1:] > owner[:-1]).all()):
            raise ValueError("rows of one prompt must be adjacent, and prompts in their order")
        self.last = self.last.map(lambda fact: fact[index])
        if len(owner) < self.prompts:
            for memory in self._all_memories():
                memory.take(owner)
            self.keys = self.keys.map(lambda fact: fact[owner])
            self.encoder = None if self.encoder is None else self.encoder.map(lambda fact: fact[owner])
            self.line = None if self.line is None else self.line[owner]
            self.condition = None if self.condition is None else self.condition[owner]
            self.reach = int(self.last.position.max()) + 1                                          # the longest may have left
        self.prompts = len(owner)
        self.lanes = int(counts.max())
        self.owner = torch.arange(self.prompts, device=index.device).repeat_interleave(counts)
        start = torch.arange(self.prompts, device=index.device) * before
        lanes = start[:, None].repeat(1, self.lanes)                                                # a pad lane repeats its prompt's first
        lanes.view(-1)[self._places()] = start[self.owner] + lane
        if self.line is not None:
            self.line = self.line.flatten(0, 1)[lanes]
        elif self.lanes > 1:
            self.line = torch.ones(self.prompts, self.lanes, self.length, dtype=torch.bool, device=index.device)
        for own, _ in self.memories:
            own.select(lanes)

    def compact(self) -> None:
        """Forget stored keys that no live row descends from."""
        if self.keys is None or self.line is None:
            return
        used = self.line.any(1) & self.keys.keep                                                    # [p k]
        most = int(used.sum(1).max())
        if most == self.length:
            return
        cells = (~used).int().argsort(dim=1, stable=True)[:, :most]
        for own, _ in self.memories:
            own.compact(cells)
        kept = used.gather(1, cells)
        self.keys = self.keys.map(lambda fact: fact.gather(1, cells))
        self.keys = Rows(self.keys.order, self.keys.position, self.keys.time, kept)
        self.dense = bool(kept.all())
        self.line = self.line.gather(2, cells[:, None].expand(-1, self.lanes, -1))
        if self.lanes == 1:
            self.line = None

    def _places(self) -> Tensor:
        """The lane of each row, counted over all prompts, [r]."""
        count = torch.bincount(self.owner, minlength=self.prompts)
        start = (count.cumsum(0) - count)[self.owner]
        return self.owner * self.lanes + torch.arange(len(self.owner), device=self.owner.device) - start

    def _grid(self, r: int, u: int, device: torch.device) -> tuple[Grid, Tensor]:
        p, lanes = self.prompts, self.lanes
        if r == p * lanes:
            return Grid(p, lanes * u), torch.ones(p, lanes * u, dtype=torch.bool, device=device)
        cells = (self._places()[:, None] * u + torch.arange(u, device=device)).flatten()
        index = torch.zeros(p * lanes * u, dtype=torch.long, device=device)
        index[cells] = torch.arange(r * u, device=device)
        keep = torch.zeros_like(index, dtype=torch.bool)
        keep[cells] = True
        return Grid(p, lanes * u, 0, index.view(p, -1), cells), keep.view(p, -1)

    def _all_memories(self) -> list[Memory]:
        return [memory for pair in self.memories for memory in pair if memory is not None]


def _facts(rows: Rows) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return rows.order, rows.position, rows.time, rows.keep
