"""One small causal language model, trained with rotary positions on short texts, reads longer ones: the same weights, other positions.

What is compared is the position alone: kexue.fm/archives/9675 and 9708 for ReRoPE, arXiv:2306.15595 for interpolation, arXiv:2309.00071 for
YaRN. Every length is asked about the same characters, the last of each text, so that its figures differ by what stands before them alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from fishpaw.config import ModelConfig
from fishpaw.contracts import Batch
from fishpaw.data.records import read_jsonl
from fishpaw.errors import DataError
from fishpaw.lab.parts import part
from fishpaw.losses.generation import masked_cross_entropy
from fishpaw.model.transformer import Transformer
from fishpaw.switch import Spec
from fishpaw.text.learn import characters
from fishpaw.text.wordpiece import WordPiece
from fishpaw.train.loop import fit
from fishpaw.train.options import Options

__all__ = ["CORPUS", "VARIANTS", "Reading", "Size", "Text", "judge", "position", "prepare", "read", "train"]

CORPUS = Path("corpus") / "laws_lawrefbook" / "docs.jsonl.gz"
"""Below the data folder: Chinese laws, whose later articles take up the words of earlier ones."""

VARIANTS = ("RoPE", "interpolation", "NTK", "YaRN", "ReRoPE", "leaky ReRoPE",
            "RoPE log-n", "NTK log-n", "ReRoPE log-n", "leaky ReRoPE log-n")  # fmt: skip

Reading = Mapping[str, list[float]]
"""Of each text "loss" (nats a character) and "accuracy" of the characters that it is asked about."""


@dataclass(frozen=True)
class Size:
    """What decides the cost: the model, its training (steps x rows x length characters), and what is read.

    length: of training; lengths: of reading, two at least, the first that of training. window: ReRoPE's; texts: unseen ones; judged: the
    last characters of each, about which every length is asked.
    """

    layers: int = 4
    width: int = 128
    heads: int = 4
    vocabulary: int = 3000
    characters: int = 6_000_000
    length: int = 128
    steps: int = 1500
    rows: int = 32
    rate: float = 2e-3
    lengths: tuple[int, ...] = (128, 256, 512, 1024)
    window: int = 64
    texts: int = 96
    judged: int = 64


@dataclass(frozen=True)
class Text:
    """pieces [n length+1] to learn from and unseen [texts longest+1], ids of a vocabulary of `tokens`."""

    pieces: Tensor
    unseen: Tensor
    tokens: int

    @property
    def digest(self) -> str:
        """Stands for all ids."""
        return hashlib.sha256(self.pieces.numpy().tobytes() + self.unseen.numpy().tobytes()).hexdigest()


def position(variant: str, length: int, size: Size) -> Spec:
    """The switch by which a model that was trained at size.length reads `length` characters."""
    factor = length / size.length
    name, log_n = (variant.removesuffix(" log-n"), {"log_n": size.length}) if variant.endswith(" log-n") else (variant, {})
    trained = max(1, size.length - 1 - size.window)                  # distances beyond the window that were trained
    stretch = max(1.0, (max(size.lengths) - 1 - size.window) / trained)
    specs: dict[str, dict[str, Any]] = {
        "RoPE": {"name": "rotary"},
        "interpolation": {"name": "rotary_interpolated", "factor": factor},
        "NTK": {"name": "rotary_ntk", "factor": factor},
        "YaRN": {"name": "rotary_yarn", "factor": factor, "original_length": size.length},
        "ReRoPE": {"name": "rerope", "window": size.window},
        "leaky ReRoPE": {"name": "leaky_rerope", "window": size.window, "stretch": stretch},
    }
    return {**specs[name], **log_n}


def prepare(data: Path | None, seed: int, size: Size) -> Text:
    """Ids of the corpus' documents in an order drawn from `seed`; the first long ones stay unseen. DataError: no data, or too little."""
    if data is None:
        raise DataError(f"rope's full form reads {CORPUS}, and no folder is named.",
                        fix="Give data, the folder that holds it: --data DIR, or FISHPAW_DATA.")  # fmt: skip
    path = data / CORPUS
    texts: list[str] = []
    for record in read_jsonl(path):
        if not isinstance(text := record.fields.get("text"), str):
            raise DataError(f'{record.file}, line {record.line}: no field "text".', fix='Give one {"text": …} a line.')
        texts.append(text)
    order, longest = numpy.random.default_rng(seed).permutation(len(texts)).tolist(), max(size.lengths) + 1
    unseen: list[str] = []
    known: list[str] = []
    left = size.characters
    for text in (texts[index] for index in order):
        if len(unseen) < size.texts and len(text) >= 2 * longest:    # twice: blanks and rare characters are lost on the way to ids
            unseen.append(text)
        elif left > 0:
            known.append(text[:left])
            left -= len(known[-1])
    vocab = characters(known, most=size.vocabulary)
    tokenizer = WordPiece(vocab)

    def ids(some: list[str]) -> list[numpy.ndarray[Any, Any]]:
        found = tokenizer.encode_ids(some, special=False)
        return numpy.split(found.ids, numpy.cumsum(found.lengths)[:-1])

    held = [one[:longest] for one in ids(unseen) if len(one) >= longest]
    step = size.length                                               # a piece begins with the last character of the one before
    cut = [one[start : start + step + 1] for one in ids(known) for start in range(0, len(one) - step, step)]
    if len(held) < 2 or not cut:
        raise DataError(f"{path}: {len(held)} unseen texts of {longest} characters and {len(cut)} pieces.", fix="Give more text.")
    return Text(torch.from_numpy(numpy.stack(cut)).int(), torch.from_numpy(numpy.stack(held)).int(), tokenizer.size)


def train(keep: Path, text: Text, seed: int, size: Size, tell: Callable[[str], None]) -> Transformer:
    """The model, trained in `keep`/training-… by the text; goes on where a killed run ended, and a run that is there and done is read."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Transformer(_config("RoPE", size.length, text.tokens, size))
    options = Options(steps=size.steps, batch_size=size.rows, learning_rate=size.rate, warmup=0.05, seed=seed, save_seconds=60.0,
                      log_every=50)  # fmt: skip

    def told(record: dict[str, Any]) -> None:
        if "loss" in record and "step" in record:
            tell(f"training: step {record['step']} of {size.steps}, loss {record['loss']:.3f}")

    fit(model, list(text.pieces), loss=_loss, collate=_collate, options=options, out=keep / f"training-{text.digest[:12]}",
        digest=text.digest, identity={"size": json.loads(json.dumps(asdict(size)))}, progress=False, report=told)  # fmt: skip
    return model.eval()


def read(keep: Path, model: Transformer, text: Text, variant: str, length: int, seed: int, size: Size) -> Reading:
    """Loss and accuracy of the last characters of each unseen text with `length` characters before the last of them, by a position; a file
    in `keep` of the same size, seed and text is read."""

    def asked() -> dict[str, list[float]]:
        reader = Transformer(_config(variant, length, text.tokens, size))
        reader.load_state_dict(model.state_dict())
        return judge(reader.eval(), text.unseen[:, -length - 1 :].long(), size.judged)

    found: Reading = part(keep, f"{variant} {length}", {"seed": seed, "size": asdict(size), "text": text.digest}, asked)[0]
    return found


@torch.no_grad()
def judge(model: nn.Module, ids: Tensor, judged: int, rows: int = 4) -> dict[str, list[float]]:
    """ids [texts t+1]: of each text the mean loss (nats) and accuracy of its last `judged` characters, each from all that stands before."""
    losses: list[float] = []
    right: list[float] = []
    for some in ids.split(rows):                                     # scores of all pairs are made, so few at a time
        before, targets = some[:, :-1], some[:, -judged:]
        asked = torch.arange(len(some) * before.shape[1]).view(before.shape)[:, -judged:]
        logits = model(before, logits_at=asked.flatten()).logits.float().view(*targets.shape, -1)         # [r judged v]
        chosen = logits.log_softmax(-1).gather(2, targets[..., None])[..., 0]
        losses += (-chosen.mean(1)).tolist()
        right += (logits.argmax(-1) == targets).float().mean(1).tolist()
    return {"loss": losses, "accuracy": right}


def _config(variant: str, length: int, tokens: int, size: Size) -> ModelConfig:
    return ModelConfig(
        tokens, size.width, size.layers, size.heads, 4 * size.width, segments=0, max_positions=size.length, mask="causal", heads=("lm",),
        position=position(variant, length, size), dropout=0.0, attention_dropout=0.0,
    )  # fmt: skip


def _collate(pieces: list[Tensor]) -> tuple[Batch, Tensor]:
    ids = torch.stack(pieces).long()
    return Batch.padded(ids[:, :-1]), ids[:, 1:].flatten()


def _loss(model: nn.Module, batch: tuple[Batch, Tensor]) -> tuple[Tensor, Tensor]:
    seen, targets = batch
    return masked_cross_entropy(model(seen).logits.flatten(0, 1), targets)
