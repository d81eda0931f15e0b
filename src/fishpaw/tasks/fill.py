"""Fill the blanks of a text: what a masked language model expects at each [MASK]."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fishpaw.errors import ConfigError, DataError
from fishpaw.model.transformer import Transformer
from fishpaw.text.encoding import Tokenizer

__all__ = ["Blank", "fill"]


@dataclass(frozen=True)
class Blank:
    """start: where the mask stands in the text, in characters; candidates: (token, probability), the likeliest first."""

    start: int
    candidates: tuple[tuple[str, float], ...]


@torch.inference_mode()
def fill(model: Transformer, tokenizer: Tokenizer, text: str, *, top: int = 5) -> list[Blank]:
    """The `top` likeliest tokens at each [MASK] of the text (<mask> where the tokenizer calls it so), each blank on its own.

    Errors: ConfigError for a model without an MLM head or that can't see what follows; DataError for a tokenizer without a mask, a text
    without one, or one that is longer than the model reads.
    """
    if "mlm" not in model.heads or model.mask.clock != "full":
        raise ConfigError("Filling blanks needs a model with the head mlm and a full mask.", fix="Load a BERT or RoFormer as it is.")
    if isinstance(top, bool) or not isinstance(top, int) or top < 1:
        raise ConfigError(f"top is {top!r}.", fix="Ask for at least one candidate.")
    mask = tokenizer.tokens[tokenizer.mask_id]
    encoding = tokenizer.encode(text)
    masked = [index for index, token in enumerate(encoding.ids) if token == tokenizer.mask_id]
    if not masked:
        raise DataError(f"The text has no {mask}.", fix=f"Write {mask} where a token is to be guessed.")
    device = model.table.device
    with model.evaluating():
        logits = model(torch.tensor([encoding.ids], device=device), logits_at=torch.tensor(masked, device=device)).logits
    known = logits.float().softmax(-1)[:, : tokenizer.size]          # [m v]; some tables are longer than their vocabulary, to be even
    shares, tokens = known.topk(min(top, known.shape[-1]))           # [m top]
    blanks = []
    for index, share, chosen in zip(masked, shares.tolist(), tokens.tolist(), strict=True):
        named = tuple((tokenizer.tokens[token], value) for token, value in zip(chosen, share, strict=True))
        end = encoding.offsets[index][1]                              # some masks take the blanks before them along
        blanks.append(Blank(end - len(mask), named))
    return blanks
