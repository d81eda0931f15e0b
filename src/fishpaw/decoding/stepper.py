"""A Transformer as a Stepper: prompts are read once into a cache, then each live row appends tokens; a decoder may read an encoder."""

from __future__ import annotations

import torch
from torch import Tensor

from fishpaw.contracts import Batch
from fishpaw.errors import ConfigError, DataError
from fishpaw.model.cache import Cache
from fishpaw.model.transformer import Transformer

__all__ = ["TransformerStepper"]


class TransformerStepper:
    """contracts.Stepper over `model`, which has a head "lm" or "mlm" and a mask that doesn't look ahead; `encoder` for a decoder that
    reads one. Generated tokens are of segment `segment`: by default 1 with a UniLM mask, else 0. No gradients; no dropout while a call
    runs: the training mode is put back after it. One search at a time: `start` forgets the last one.

    Errors: ConfigError for a model that can't decode; DataError for prompts that can't be read and for rows that reach the last position.
    """

    def __init__(self, model: Transformer, *, encoder: Transformer | None = None, segment: int | None = None) -> None:
        if not {"lm", "mlm"} & set(model.heads):
            raise ConfigError("The model has no head that scores tokens.", fix='Load it with heads=("lm",) or heads=("mlm",).')
        if encoder is None and model.config.encoder is not None:
            raise ConfigError("The model is a decoder that reads an encoder.", fix="Give the encoder, too: encoder=….")
        if encoder is not None and model.config.encoder is None:
            raise ConfigError("The model reads no encoder.", fix="Leave the encoder out.")
        if encoder is not None and model.config.encoder is not None and encoder.config.hidden_size != model.config.encoder.hidden_size:
            raise ConfigError(
                f"The encoder is {encoder.config.hidden_size} wide, but the decoder reads {model.config.encoder.hidden_size}.",
                fix="Give the encoder that it was built for.",
            )
        segment = int(model.mask.clock == "unilm") if segment is None else segment
        if isinstance(segment, bool) or not isinstance(segment, int) or segment < 0:
            raise ConfigError(f"segment is {segment!r}.", fix="Give a whole number from 0.")
        if model.config.segments and segment >= model.config.segments:
            raise ConfigError(f"segment is {segment}, but the model has {model.config.segments}.", fix="Give one that it has.")
        self.model = model
        self.encoder = encoder
        self.segment = segment
        self.cache: Cache = model.new_cache()                     # ConfigError here, not at the first prompt, where it can't be

    @torch.no_grad()                                              # not inference_mode: what it makes could not be edited in place outside
    def start(self, batch: Batch, encoder_batch: Batch | None = None) -> Tensor:
        """Read a padded batch of p prompts -> logits [p v] after each one's last token. encoder_batch: what the encoder reads, p rows."""
        _check_prompts(batch, "prompt")
        encoded: Tensor | None = None
        self.cache = self.model.new_cache()
        with _Evaluating(self.model, self.encoder):
            if self.encoder is not None:
                if encoder_batch is None:
                    raise DataError("The decoder reads an encoder, but encoder_batch is missing.", fix="Give it to start.")
                _check_prompts(encoder_batch, "text of the encoder")
                none = encoder_batch.ids.new_empty(0)             # no logits: only its hidden states are read
                encoded = self.encoder(encoder_batch, logits_at=none).hidden.flatten(0, 1)                    # [m d]
            elif encoder_batch is not None:
                raise DataError("encoder_batch is given, but the model reads no encoder.", fix="Leave it out.")
            answer = self.model(batch, cache=self.cache, encoded=encoded, encoder_batch=encoder_batch, logits_at=batch.last())
        logits: Tensor = answer.logits
        return logits

    @torch.no_grad()
    def step(self, tokens: Tensor) -> Tensor:
        """Append tokens [r] -> [r v], or [r u] -> [r u v], to each live row."""
        segments = torch.full_like(tokens, self.segment) if self.segment or self.model.mask.clock == "unilm" else None
        with _Evaluating(self.model):
            logits: Tensor = self.model(tokens, cache=self.cache, segments=segments).logits                   # [r u v]
        return logits[:, 0] if tokens.dim() == 1 else logits

    def select(self, index: Tensor) -> None:
        """index [r']: new row j continues old row index[j]; rows of a prompt stay adjacent, prompts in their order."""
        self.cache.select(index)

    def compact(self) -> None:
        """Forget stored keys that no live row descends from."""
        self.cache.compact()


class _Evaluating:
    """Models in evaluation mode inside; every module as it was after."""

    def __init__(self, *models: Transformer | None) -> None:
        training = [model for model in models if model is not None and model.training]
        self.modules = [module for model in training for module in model.modules() if module.training]

    def __enter__(self) -> None:
        for module in self.modules:
            module.training = False

    def __exit__(self, *error: object) -> None:
        for module in self.modules:
            module.training = True


def _check_prompts(batch: Batch, what: str) -> None:
    if batch.shape is None:
        raise DataError(f"The batch of each {what} is packed.", fix="Decoding reads Batch.padded.")
    if batch.dense:
        return
    empty = (~batch.rows[0].keep.any(1)).nonzero().flatten().tolist()
    if empty:
        raise DataError(f"The {what} in row {empty[0]} has no token.", fix="Give it at least one, for example the start token.")
