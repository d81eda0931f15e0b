"""A Transformer as a Stepper: prompts are read once into a cache, then each live row appends tokens; a decoder may read an encoder."""

from __future__ import annotations

import torch
from torch import Tensor

from fishpaw.contracts import Batch
from fishpaw.decoding.termination import ending_of
from fishpaw.errors import ConfigError, DataError
from fishpaw.model.cache import Cache
from fishpaw.model.transformer import Transformer

__all__ = ["TransformerStepper"]


class TransformerStepper:
    """contracts.Stepper over `model`, which has a head "lm" or "mlm" and a mask that doesn't look ahead; one with an encoder reads an
    encoder_batch, too; with `start_id`, the token that its decoding begins with, the prompts are what the encoder reads. Generated tokens
    are of segment `segment`: by default 1 with a UniLM mask, else 0. `room`: keys a prompt that the cache holds before it grows. No
    gradients; no dropout while a call runs: the training mode is put back after it. One search at a time: `start` forgets the last one.

    hidden: keep the last layer's vectors of the last call in the attribute `hidden`, [p t d] after start, [r d] or [r u d] after step
    (contrastive search compares them). A head with an ending of its own (decoding/termination.py) has it applied here, where no search can
    forget it: the logits are log-probabilities then.

    Errors: ConfigError for a model that can't decode; DataError for prompts that can't be read and for rows that reach the last position.
    """

    def __init__(self, model: Transformer, *, segment: int | None = None, room: int | None = None, start_id: int | None = None,
                 hidden: bool = False) -> None:
        if not {"lm", "mlm"} & set(model.heads):
            raise ConfigError("The model has no head that scores tokens.", fix='Load it with heads=("lm",) or heads=("mlm",).')
        segment = int(model.mask.clock == "unilm") if segment is None else segment
        if isinstance(segment, bool) or not isinstance(segment, int) or segment < 0:
            raise ConfigError(f"segment is {segment!r}.", fix="Give a whole number from 0.")
        if model.config.segments > 1 and segment >= model.config.segments:
            raise ConfigError(f"segment is {segment}, but the model has {model.config.segments}.", fix="Give one that it has.")
        if start_id is not None and model.encoder is None:
            raise ConfigError("start_id is given, but the model reads no encoder.", fix="Leave it out.")
        self.model = model
        self.start_id = start_id
        self.segment = segment
        self.room = room
        self.keeps_hidden = hidden
        self.hidden: Tensor | None = None
        self.ending = ending_of(model)
        self.cache: Cache = model.new_cache()                     # ConfigError here, not at the first prompt, where it can't be

    @torch.no_grad()                                              # not inference_mode: what it makes could not be edited in place outside
    def start(self, batch: Batch, encoder_batch: Batch | None = None) -> Tensor:
        """Read a padded batch of p prompts -> logits [p v] after each one's last token. encoder_batch: what the encoder reads, p rows."""
        _check_prompts(batch, "prompt")
        if self.start_id is not None and encoder_batch is None:
            batch, encoder_batch = Batch.padded(torch.full_like(batch.first, self.start_id)[:, None]), batch
        if self.model.encoder is not None:
            if encoder_batch is None:
                raise DataError("The decoder reads an encoder, but encoder_batch is missing.", fix="Give it to start.")
            _check_prompts(encoder_batch, "text of the encoder")
        elif encoder_batch is not None:
            raise DataError("encoder_batch is given, but the model reads no encoder.", fix="Leave it out.")
        self.cache = self.model.new_cache(room=self.room)
        with self.model.evaluating():
            answer = self.model(batch, cache=self.cache, encoder_batch=encoder_batch, logits_at=batch.last())
        self.hidden = answer.hidden if self.keeps_hidden else None                                            # [p t d]
        logits: Tensor = answer.logits
        if self.ending is not None:
            self.ending.start(batch, len(logits))
            logits = self.ending(logits, _UNREAD)
        return logits

    @torch.no_grad()
    def step(self, tokens: Tensor) -> Tensor:
        """Append tokens [r] -> [r v], or [r u] -> [r u v], to each live row."""
        segments = torch.full_like(tokens, self.segment) if self.segment or self.model.mask.clock == "unilm" else None
        with self.model.evaluating():
            answer = self.model(tokens, cache=self.cache, segments=segments)
        single = tokens.dim() == 1
        if self.keeps_hidden:
            self.hidden = answer.hidden[:, 0] if single else answer.hidden                                    # [r d] | [r u d]
        logits: Tensor = answer.logits if self.ending is None else self.ending(answer.logits, tokens)         # [r u v]
        return logits[:, 0] if single else logits

    def select(self, index: Tensor) -> None:
        """index [r']: new row j continues old row index[j]; rows of a prompt stay adjacent, prompts in their order."""
        self.cache.select(index)
        if self.ending is not None:
            self.ending.select(index)

    def compact(self) -> None:
        """Forget stored keys that no live row descends from."""
        self.cache.compact()


_UNREAD = torch.zeros(0, 0, dtype=torch.long)                    # an ending reads logits only


def _check_prompts(batch: Batch, what: str) -> None:
    if batch.shape is None:
        raise DataError(f"The batch of each {what} is packed.", fix="Decoding reads Batch.padded.")
    if batch.dense:
        return
    empty = (~batch.rows[0].keep.any(1)).nonzero().flatten().tolist()
    if empty:
        raise DataError(f"The {what} in row {empty[0]} has no token.", fix="Give it at least one, for example the start token.")
