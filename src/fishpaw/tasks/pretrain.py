"""Pretrain a Transformer on shards of text: one objective or a mixture of them, in one forward a step."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from fishpaw import checks, switch
from fishpaw.config import ModelConfig
from fishpaw.contracts import Batch
from fishpaw.data.collate import move, pad
from fishpaw.data.shards import Piece, Pieces, Shards
from fishpaw.errors import ConfigError, DataError
from fishpaw.losses.contrastive import in_batch
from fishpaw.model.transformer import Transformer
from fishpaw.switch import Spec, spec_name
from fishpaw.tasks.corpora import vocabulary_digest
from fishpaw.tasks.generate import Generate
from fishpaw.tasks.objectives import Contrastive, NextSentence, Objective, Row, Special
from fishpaw.tasks.training import imprint, seeded
from fishpaw.text.encoding import Tokenizer
from fishpaw.train.launch import leads
from fishpaw.train.loop import Result, fit
from fishpaw.train.options import Options
from fishpaw.train.team import Parallel
from fishpaw.weights.load import inspect, tell, tokenizer_of
from fishpaw.weights.save import save

__all__ = ["Asked", "Pretrain", "fitting", "sized", "special_of"]

STOPS = "。！？!?；;…"
"""Characters that end a sentence."""

_SENTINELS = (r"<extra_id_(\d+)>", r"\[unused(\d+)\]")


@dataclass(frozen=True)
class Asked:
    """A batch and all that is asked of it. batch: packed, or padded beside encoder_batch, which an encoder reads. at [m]: flat indices
    whose logits are asked for, targets [m], kinds [m] the objective that asks. views [p 2]: rows whose pooled vectors belong together.
    follows [x] in rows [x]: whether the second part follows. lengths: tokens of each row."""

    batch: Batch
    at: Tensor
    targets: Tensor
    kinds: Tensor
    views: Tensor
    rows: Tensor
    follows: Tensor
    encoder_batch: Batch | None = None
    lengths: tuple[int, ...] = ()


def special_of(tokenizer: Tokenizer) -> Special:
    """The ids that objectives build rows of. cls: what the tokenizer sets before a text."""
    mask: int | None
    try:
        mask = tokenizer.mask_id
    except DataError:
        mask = None
    first, frame = max(tokenizer.special_ids, default=-1) + 1, tokenizer.encode("").ids
    stops = frozenset(id for id, token in enumerate(tokenizer.tokens) if token in set(STOPS))
    forms = [{int(one[1]): id for id, token in enumerate(tokenizer.tokens) if (one := re.fullmatch(form, token))} for form in _SENTINELS]
    sentinels = next((tuple(found[number] for number in sorted(found)) for found in forms if len(found) > 1), ())
    return Special(
        cls=frame[0] if frame and frame[0] != tokenizer.eos_id else None, sep=tokenizer.eos_id, mask=mask, vocab_size=tokenizer.size,
        ordinary=first if first < tokenizer.size // 2 else 0, stops=stops, sentinels=sentinels,
    )  # fmt: skip


def sized(layers: int, width: int) -> ModelConfig:
    """A RoFormer of so many layers, as wide; heads of 64 where that divides the width."""
    checks.whole("layers", layers, least=1)
    checks.whole("width", width, least=1)
    heads = next(number for number in range(max(1, width // 64), 0, -1) if width % number == 0)
    return ModelConfig(family="roformer", vocab_size=1, hidden_size=width, layers=layers, attention_heads=heads,
                       intermediate_size=4 * width, position="rotary")  # fmt: skip


def fitting(config: ModelConfig, objectives: Iterable[Objective]) -> dict[str, Any]:
    """What must change in a configuration so that its model can be asked all of this: mask, stream, heads that it lacks. ConfigError for
    objectives that no model can answer together."""
    asked = tuple(objectives)
    together = ", ".join(type(one).__name__ for one in asked)
    changes: dict[str, Any] = {}
    streams = [name for name in ("tokens", "positions") if all(name in one.streams for one in asked)]
    clocks = [name for name in ("full", "causal", "unilm", "encoder-decoder") if all(name in one.clocks for one in asked)]
    if not streams or not clocks:
        raise ConfigError(f"No model can be asked {together} together.", fix="Leave one of them out.")
    own = _clock(config)
    if own != "encoder-decoder" and own not in clocks:
        changes["mask"] = next((name for name in clocks if name != "encoder-decoder"), "full")
    if config.stream not in streams:
        changes["stream"] = streams[0]
        clock = next(name for name in (changes.get("mask", own), *clocks) if name in clocks)
        changes["mask"] = {"name": "full", "exclude_self": True} if streams[0] == "positions" else clock
    heads: list[Spec] = list(config.heads)
    for wanted in _missing(map(spec_name, heads), asked):
        name = wanted.split(" or ")[0]
        linear = name == "pooler" and not any("nsp" in one.heads for one in asked)
        heads.append({"name": "pooler", "activation": "linear"} if linear else name)
    return changes | ({"heads": tuple(heads)} if len(heads) > len(config.heads) else {})


class Pretrain:
    """A model, its tokenizer and what it is asked.

    objectives: each with the share of the pieces that it reads, as {Masked(): 0.5, UniLM(): 0.5}; which one reads a piece is drawn anew
    each epoch. The loss is the mean over all questions, each by its objective's weight. length: tokens a row at most, special ones
    included. Errors: ConfigError for shares that are none, and for an objective that the model or the vocabulary can't serve.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer, objectives: Mapping[Objective, float], *, length: int = 128) -> None:
        if not objectives or not all(share > 0 and math.isfinite(share) for share in objectives.values()):
            raise ConfigError(f"The objectives' shares are {list(objectives.values())}.", fix="Give at least one, all above 0.")
        checks.whole("length", length, least=8)
        self.model, self.tokenizer, self.length = model, tokenizer, length
        self.objectives = tuple(objectives)
        self.shares = tuple(share / sum(objectives.values()) for share in objectives.values())
        special = special_of(tokenizer)
        start = None if model.encoder is None else Generate(model, tokenizer).stepper.start_id
        self.special = special if start is None else replace(special, start=start)
        for objective in self.objectives:
            _refuse(model, self.special, objective)
        if len({type(one) for one in self.objectives}) < len(self.objectives):
            raise ConfigError("One objective is given twice.", fix="Keep one of each kind, with its share.")
        for one in (model, *([model.encoder] if model.encoder else [])):
            if one.longest is not None and length > one.longest:
                raise ConfigError(f"length is {length}, but the model has {one.longest} positions.", fix="Lower it.")

    @classmethod
    def new(
        cls, tokenizer: Tokenizer, objectives: Mapping[Objective, float], *, config: ModelConfig | None = None, length: int = 128,
        seed: int = 0,
    ) -> Pretrain:
        """A model from random values, by default a RoFormer of 4 layers, 256 wide. config: another shape; its vocabulary becomes the
        tokenizer's, mask, stream and heads what the objectives need."""
        shape = (config or sized(4, 256)).change({"vocab_size": tokenizer.size})
        if shape.encoder is not None:
            shape = shape.change({"encoder": shape.encoder.change({"vocab_size": tokenizer.size})})
        shape = shape.change(fitting(shape, objectives))
        with seeded(seed):
            model = Transformer(shape)
        return cls(model, tokenizer, objectives, length=length)

    @classmethod
    def load(
        cls, name: str | Path, objectives: Mapping[Objective, float], *, changes: Mapping[str, Any] | None = None, length: int = 128,
        seed: int = 0, family: str | None = None, revision: str | None = None,
    ) -> Pretrain:
        """Go on from a checkpoint. Mask and heads become what the objectives need; a head that it lacks begins with random values.
        changes, family, revision, errors: as of fp.load."""
        model, found = inspect(name, changes=changes, revision=revision, family=family)
        needed = fitting(model.config, objectives)
        heads = needed.pop("heads", None)
        if needed:
            model, found = inspect(name, changes={**needed, **(changes or {})}, revision=revision, family=family)
        tokenizer = tokenizer_of(found)
        tell(found)
        if heads is not None:
            with seeded(seed):
                model.set_heads(heads)
        return cls(model, tokenizer, objectives, length=length)

    def pieces(self, shards: Shards, *, seed: int = 0) -> Pieces:
        """The pieces of `shards` that fit into a row. DataError where these were written with another vocabulary."""
        written = shards.facts.get("vocabulary")
        other = shards.vocab_size != self.model.config.vocab_size if written is None else written != vocabulary_digest(self.tokenizer)
        if other or shards.vocab_size > self.model.config.vocab_size:
            raise DataError(f"{shards.folder} was written with another vocabulary, of {shards.vocab_size} tokens; the model's has "
                            f"{self.model.config.vocab_size}.", fix="Write it anew with the model's.")
        return Pieces(shards, min(objective.room(self.length) for objective in self.objectives), seed=seed)

    def fit(
        self,
        shards: Shards,
        dev: Shards | None = None,
        *,
        options: Options | None = None,
        out: str | Path | None = None,
        resume: bool = True,
        optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
        evaluated: int = 1024,
        parallel: Parallel = "replicated",
        progress: bool | None = None,
        report: Callable[[dict[str, Any]], None] | None = None,
    ) -> Result:
        """Train; evaluate on `evaluated` pieces from all over `dev`; out/model is what came of it. Other arguments, errors and signals:
        train.loop.fit."""
        options = options or Options(learning_rate=1e-3, warmup=0.02, steps=10_000, token_budget=8192)
        pieces = self.pieces(shards, seed=options.seed)
        identity = {"task": "pretrain", "objectives": [repr(one) for one in self.objectives], "shares": list(self.shares),
                    "length": self.length, "start": imprint(self.model)}
        unseen = None
        if dev is not None:
            read = self.pieces(dev)
            count = min(evaluated, len(read))
            unseen = [read[index * len(read) // count] for index in range(count)]                  # from all over it
            if not any(row.asks for piece in unseen for row in self._rows(piece)[1]):
                raise DataError(f"Nothing is asked of {dev.folder}: its texts are too short, or unknown to the vocabulary.",
                                fix="Give longer ones to evaluate on, or none.")
            identity["dev"] = f"{dev.digest} {evaluated}"
        result = fit(
            self.model, pieces, loss=self.loss, collate=self.collate, options=options, out=out, resume=resume, optimizer=optimizer,
            evaluate=None if unseen is None else partial(self.evaluate, pieces=unseen), monitor="-loss",
            digest=shards.digest, identity=identity, length=pieces.lengths.tolist(), parallel=parallel, progress=progress, report=report,
        )  # fmt: skip
        if out is not None and leads():
            save(self.model, Path(out) / "model", self.tokenizer)
        return result

    def collate(self, pieces: Sequence[Piece]) -> Asked:
        """Pieces to rows, packed, or padded for an encoder and a decoder. Pieces that are all too short to be asked anything: one row
        without a question."""
        rows: list[Row] = []
        kinds: list[int] = []
        for piece in pieces:
            kind, made = self._rows(piece)
            rows += made
            kinds += [kind] * len(made)
        if not rows:
            lone = numpy.array([self.special.sep])
            rows, kinds = [Row(lone, 0 * lone, source=None if self.special.start is None else lone)], [0]
        batch, encoder_batch = self._batches(rows)
        first = batch.first.tolist()
        views = [index for index, row in enumerate(rows) if row.view]
        told = [index for index, row in enumerate(rows) if row.follows is not None]
        return Asked(
            batch,
            at=torch.cat([torch.from_numpy(row.at) + start for row, start in zip(rows, first, strict=True)]),
            targets=torch.cat([torch.from_numpy(row.targets) for row in rows]),
            kinds=torch.tensor(kinds).repeat_interleave(torch.tensor([len(row.at) for row in rows])),
            views=torch.tensor(views, dtype=torch.long).view(-1, 2),
            rows=torch.tensor(told, dtype=torch.long),
            follows=torch.tensor([bool(rows[index].follows) for index in told]),
            encoder_batch=encoder_batch,
            lengths=tuple(len(row) + (0 if row.source is None else len(row.source)) for row in rows),
        )

    def _batches(self, rows: Sequence[Row]) -> tuple[Batch, Batch | None]:
        """Segments are for two texts and for UniLM's mask; a causal model decodes without."""
        if self.model.encoder is None:
            segments = None if self.model.mask.clock == "causal" else [torch.from_numpy(row.segments) for row in rows]
            return Batch.packed([torch.from_numpy(row.ids) for row in rows], segments=segments), None
        sources = [Row(row.source, numpy.zeros_like(row.source)) for row in rows if row.source is not None]
        return _padded(rows, self.model.config.pad_id), _padded(sources, self.model.encoder.config.pad_id)

    def loss(self, model: nn.Module, asked: Asked) -> tuple[Tensor, Tensor]:
        """Weighted sum over all questions, and of the weights; without a question (0, 0)."""
        output = model(asked.batch, encoder_batch=asked.encoder_batch, logits_at=asked.at)
        parts = self._scored(output, asked) or [(output.hidden.float().sum() * 0, torch.zeros((), device=asked.at.device), 1.0)]
        total = sum((sums * weight for sums, _, weight in parts), torch.zeros((), device=asked.at.device))
        count = sum((counts * weight for _, counts, weight in parts), torch.zeros((), device=asked.at.device))
        return total, count

    @torch.no_grad()
    def evaluate(self, model: nn.Module, *, pieces: Sequence[Piece], rows: int = 32) -> dict[str, float]:
        """loss, as it is trained; of each objective that names tokens loss (nats) and accuracy, over its own share of the pieces; of pairs
        of texts and of second sentences likewise."""
        device = next(model.parameters()).device
        sums: dict[str, list[float]] = {}                            # losses, right answers, questions
        total = weight = 0.0
        with self.model.evaluating():
            for start in range(0, len(pieces), rows):
                asked = move(self.collate(pieces[start : start + rows]), device)
                output = model(asked.batch, encoder_batch=asked.encoder_batch, logits_at=asked.at)
                for each, count, factor in self._scored(output, asked):
                    total, weight = total + float(each) * factor, weight + float(count) * factor
                for name, scores, targets in self._answered(output, asked):
                    losses, right = cross_entropy(scores.float(), targets, reduction="sum"), (scores.argmax(-1) == targets).sum()
                    own = float(losses), float(right), float(len(targets))
                    sums[name] = [before + one for before, one in zip(sums.get(name, [0.0] * 3), own, strict=True)]
        figures = {"loss": total / weight if weight else math.nan}
        for name, (lost, found, number) in sums.items():
            if number:
                figures |= {f"{name}_loss": lost / number, f"{name}_accuracy": found / number}
        return figures

    def _answered(self, output: Any, asked: Asked) -> list[tuple[str, Tensor, Tensor]]:
        """Of each kind of question its name, the scores of the answers [m x], and the right ones [m]."""
        found = []
        for kind, objective in enumerate(self.objectives):
            name, own = type(objective).__name__.lower(), asked.kinds == kind
            if output.logits is not None:
                found.append((name, output.logits[own], asked.targets[own]))
            if isinstance(objective, Contrastive) and len(asked.views):
                one, other = normalize(output.pooled[asked.views].float(), dim=-1).unbind(1)
                found.append((name, one @ other.T / objective.temperature, torch.arange(len(one), device=one.device)))
        if len(asked.rows):
            found.append(("follows", output.nsp[asked.rows], (~asked.follows).long()))
        return found

    def _rows(self, piece: Piece) -> tuple[int, Sequence[Row]]:
        """Which objective reads a piece, and what it makes of it."""
        kind = self._chosen(piece)
        return kind, self.objectives[kind].rows(piece, self.special)

    def _chosen(self, piece: Piece) -> int:
        """Which objective reads a piece: of the generator's second stream, so that its own draws are independent of it."""
        chance, index = float(piece.generator(stream=1).random()), 0
        while index < len(self.shares) - 1 and chance >= self.shares[index]:
            chance, index = chance - self.shares[index], index + 1
        return index

    def _scored(self, output: Any, asked: Asked) -> list[tuple[Tensor, Tensor, float]]:
        """Of each kind of question the sum of losses, their number, and the weight of one."""
        parts: list[tuple[Tensor, Tensor, float]] = []
        if len(asked.at):
            dtype = torch.promote_types(output.logits.dtype, torch.float32)
            weights = torch.tensor([one.weight for one in self.objectives], device=asked.at.device, dtype=dtype)[asked.kinds]
            losses = cross_entropy(output.logits.to(dtype), asked.targets, reduction="none")
            parts.append(((losses * weights).sum(), weights.sum(), 1.0))
        for objective in self.objectives:
            if isinstance(objective, Contrastive) and len(asked.views):
                pairs = output.pooled[asked.views]                                                 # [p 2 d]
                parts.append((*in_batch(pairs[:, 0], pairs[:, 1], temperature=objective.temperature), objective.weight))
            if isinstance(objective, NextSentence) and len(asked.rows):
                scores = output.nsp[asked.rows].to(torch.promote_types(output.nsp.dtype, torch.float32))
                total = cross_entropy(scores, (~asked.follows).long(), reduction="sum")            # 0: is next
                parts.append((total, torch.tensor(float(len(asked.rows)), device=total.device), objective.weight * objective.sentence))
        return parts


def _padded(rows: Sequence[Row], fill: int) -> Batch:
    padded = pad(rows, fill=fill)  # type: ignore[arg-type]  # arrays are sequences of whole numbers, too
    return Batch.padded(padded.ids, keep=padded.keep)


def _clock(config: ModelConfig) -> str:
    """Of its first layer's mask, which all others share; or what has an encoder."""
    return "encoder-decoder" if config.encoder else switch.build("masks", config.turns("mask")[0], config).clock


def _missing(heads: Iterable[str], objectives: Iterable[Objective]) -> list[str]:
    """Of the heads that are wanted those that none of `heads` serves."""
    held, missing = set(heads), []
    for wanted in (head for one in objectives for head in one.heads):
        if not held & {*wanted.split(" or "), wanted}:
            missing.append(wanted)
            held |= {wanted, wanted.split(" or ")[0]}
    return missing


def _refuse(model: Transformer, special: Special, objective: Objective) -> None:
    """What an objective needs, and the model or its vocabulary lacks."""
    name, clock = type(objective).__name__, _clock(model.config)
    if clock not in objective.clocks:
        own = "an encoder and a decoder" if model.encoder else f"the mask {clock!r}"
        raise ConfigError(f"{name} can't be asked of a model with {own}.", fix=f"Use {' or '.join(map(repr, objective.clocks))}.")
    if model.config.stream not in objective.streams:
        raise ConfigError(f"{name} can't be asked of a model with the stream {model.config.stream!r}.",
                          fix=f"Use {' or '.join(map(repr, objective.streams))}.")
    if model.config.stream == "positions" and not all(mask.exclude_self for mask in model.masks):
        raise ConfigError(f"{name} asks for a token that the model's mask lets it see.", fix='Use {"name": "full", "exclude_self": True}.')
    heads = [spec_name(head) for head in model.config.heads]
    for wanted in _missing(heads, [objective]):
        raise ConfigError(f"{name} asks the head {wanted}, but the model has {', '.join(heads) or 'none'}.", fix="Give it one.")
    for wanted in objective.tokens:
        if all(getattr(special, one) in (None, ()) for one in wanted.split(" or ")):
            raise ConfigError(f"{name} needs {_TOKENS[wanted]}, which the vocabulary lacks.", fix="Add it, or leave the objective out.")


_TOKENS = {"cls": "[CLS]", "mask": "[MASK]", "sentinels or mask": "[MASK], or <extra_id_0> and more"}
