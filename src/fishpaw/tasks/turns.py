"""A conversation as one sequence, [CLS] u1 [SEP] u2 [SEP] …, and how probable a model finds its turns. Layout: DialoGPT, arXiv:1911.00536,
with the speaker as segment (kexue.fm/archives/7718): each turn is of the parity of its place, its [SEP] included; [CLS] is of segment 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fishpaw.errors import FishpawError
from fishpaw.model.transformer import Transformer
from fishpaw.tasks.encode import packed
from fishpaw.tasks.training import refuse_ending
from fishpaw.text.encoding import Encoding, Tokenizer

__all__ = ["Feature", "Layout", "log_probabilities"]

Turns = Sequence[Sequence[int]]
"""The tokens of each turn, its end token included."""


@dataclass(frozen=True)
class Feature:
    """ids and segments of the turns that fit; asked: the first token whose probability is asked for. cut: of its first turn only the end
    is there, since not even that turn fits."""

    ids: list[int]
    segments: list[int]
    asked: int
    cut: bool = False

    def __len__(self) -> int:
        return len(self.ids)


class Layout:
    """start: what the tokenizer puts before a text ([CLS]; nothing with GPT-2, whose turns then follow each other as in DialoGPT). end:
    its eos_id, which for BERT's kind is [SEP]."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        whole = tokenizer.encode("a")
        first = next((place for place, span in enumerate(whole.offsets) if span != (0, 0)), 0)
        self.start = whole.ids[:first]
        self.end = tokenizer.eos_id
        self._marks = {self.end, *self.start}

    def turns(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text and the end. A text that spells a mark itself, such as "[SEP]", loses it: it can't end its own turn."""
        return [[*(id for id in one.ids if id not in self._marks), self.end] for one in self.tokenizer.encode_batch(texts, special=False)]

    def latest(self, turns: Turns, room: int) -> Feature:
        """The last turns that fit in `room` tokens, whole; earlier ones are left out. A last turn that doesn't fit alone loses its
        beginning. Segments stay those of the whole conversation. asked: the last turn. Of no turns: the start; without one, the end."""
        return self._feature(turns, _reach(turns, len(turns), room - len(self.start)), len(turns), room)

    def alone(self, turns: Turns, place: int, room: int) -> Feature:
        """One turn that answers a turn without words, which stands for any history; asked: that turn. Segments as in the conversation."""
        turn = turns[place]
        return self.latest([*self.silence(place), turn], min(room, len(self.start) + 1 + len(turn)))

    def silence(self, turns: int) -> list[list[int]]:
        """So many turns without words."""
        return [[self.end]] * turns

    def pieces(self, turns: Turns, room: int) -> list[Feature]:
        """All turns, each once, in as few sequences as `latest` fills beginning with the last; asked: all of each."""
        found: list[Feature] = []
        stop = len(turns)
        while stop:
            first = _reach(turns, stop, room - len(self.start))
            one = self._feature(turns, first, stop, room)
            found.append(Feature(one.ids, one.segments, max(1, len(self.start)), one.cut))
            stop = first
        return found[::-1]

    def _feature(self, turns: Turns, first: int, stop: int, room: int) -> Feature:
        ids, segments, asked = list(self.start), [0] * len(self.start), max(1, len(self.start))
        cut = False
        for place in range(first, stop):
            asked = max(1, len(ids))
            turn = turns[place]
            cut = cut or len(turn) > room - len(self.start)
            ids += turn[-(room - len(self.start)) :]
            segments += [place % 2] * (len(ids) - len(segments))
        return Feature(ids or [self.end], segments or [0], asked, cut)


@torch.no_grad()
def log_probabilities(model: Transformer, features: Sequence[Feature], *, tokens: int = 2048) -> list[Tensor]:
    """log p of each feature's tokens from `asked` on, given all before: [m] in fp32 at least, on the CPU, in their order. tokens: a batch,
    without padding. In evaluation mode. FishpawError for a model that gives no numbers, ConfigError for a head with an
    ending, whose probabilities these are not."""
    refuse_ending(model, "the probability of a text")
    found: list[Tensor] = [torch.empty(0)] * len(features)
    encodings = [Encoding(one.ids, one.segments, [], []) for one in features]
    with model.evaluating():
        for chosen, batch in packed(encodings, segments=model.config.segments > 1, tokens=tokens, device=model.table.device):
            asked = [torch.arange(features[one].asked, len(features[one])) for one in chosen]
            places = torch.cat([first + each for first, each in zip(batch.first.tolist(), asked, strict=True)]).to(batch.ids.device)   # [m]
            logits = model(batch, logits_at=places - 1).logits                                                # [m v]
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            logs = logits.gather(1, batch.ids[places][:, None])[:, 0] - logits.logsumexp(1)                   # [m]
            if not bool(logs.isfinite().all()):
                raise FishpawError("The model's scores are not finite.", fix="Look for NaN in its weights, and compute in fp32.")
            for one, part in zip(chosen, logs.cpu().split([len(each) for each in asked]), strict=True):
                found[one] = part
    return found


def _reach(turns: Turns, stop: int, room: int) -> int:
    """The first of the turns before `stop` that fit in `room` tokens together, at least one where there is one."""
    first, left = max(0, stop - 1), room - (len(turns[stop - 1]) if stop else 0)
    while first and left >= len(turns[first - 1]):
        first -= 1
        left -= len(turns[first])
    return first
