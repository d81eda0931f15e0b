"""The main jobs with the model that ships: fill a blank, find the nearest sentences, go on with a text, learn to tell reviews apart."""

from __future__ import annotations

import os
import random
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.nn.functional import normalize

from fishpaw.data.labelled import LabelledText, read_labelled
from fishpaw.decoding.settings import Settings
from fishpaw.errors import DataError
from fishpaw.hub import SMALL
from fishpaw.tasks.classify import Classify
from fishpaw.tasks.encode import encode
from fishpaw.tasks.fill import fill
from fishpaw.tasks.generate import Generate
from fishpaw.train.options import Options
from fishpaw.weights.load import load

__all__ = ["BLANKS", "NEW", "Reviews", "SENTENCES", "curve", "data_folder", "demo", "reviews"]

BLANKS = ("法院应当[MASK]法作出判[MASK]。", "点击“确定”按[MASK]，保存文[MASK]。", "春[MASK]不觉晓，处处闻啼鸟。")
NEW = ("房间干净，前台很热情，下次还住这里。", "屏幕有坏点，客服推来推去，后悔买了。", "故事拖沓，看到一半就睡着了。")
SENTENCES = (
    "怎样重新设置密码？", "今天下雨，比赛改到明天。", "合同自双方签字之日起生效。", "忘记密码以后如何找回？", "这首诗写的是边塞的秋夜。",
    "比赛因为大雨推迟一天。", "协议经双方签名后才有效力。", "诗人描绘了边关秋天的夜晚。",
)  # fmt: skip
"""Four subjects, each in two wordings: the first four are asked for the nearest of the others."""
_BEGINNINGS = ("用人单位应当", "这个函数返回", "秦王大怒，")
_SHARED = Path("classification") / "sentiment_bert4keras"
_NAMES = {"0": "neg", "1": "pos"}


@dataclass(frozen=True)
class Reviews:
    """train to learn from, unseen to evaluate on, and where they are from, in words."""

    train: list[LabelledText]
    unseen: list[LabelledText]
    source: str


def reviews(data: Path | None) -> Reviews:
    """The reviews below a data folder, or, without one, those that come with fishpaw. DataError for a folder that lacks them."""
    if data is None:
        folder = _bundled()
        parts = [_read(folder / name) for name in ("reviews.tsv", "reviews.dev.tsv")]
        return Reviews(parts[0], parts[1], f"{len(parts[0])} reviews written for fishpaw: too few to learn more than the rudiments")
    folder = data / _SHARED
    train, unseen = (_read(_plain_or_packed(folder / f"sentiment.{part}.data")) for part in ("train", "valid"))
    return Reviews(train, unseen, f"{len(train)} reviews in {folder}")


def demo(say: Callable[[str], None], *, out: Path, data: Path | None = None, seed: int = 0, steps: int | None = None) -> dict[str, Any]:
    """Run it all, telling each stage to `say`; under a minute on two cores. Returns the figures."""
    show(say, seed=seed)
    found = reviews(data)
    say(f"Data: {found.source}; {len(found.unseen)} unseen ones to evaluate on.")
    mixed = list(found.train)
    random.Random(seed).shuffle(mixed)
    held = min(400, max(40, len(mixed) // 20))
    if len(mixed) > 12_000:                                            # as many as a minute reads
        mixed = mixed[: 12_000 + held]
    dev, train = mixed[:held], mixed[held:]
    task = Classify.load(SMALL, labels=["neg", "pos"], max_length=64, seed=seed)
    count = steps or (80 if len(train) < 1000 else 240)
    options = Options(steps=count, batch_size=32, learning_rate=3e-4, evaluate_every=max(1, count // 6), seed=seed, log_every=1)

    def report(record: dict[str, Any]) -> None:
        if (line := curve(record)) is not None:
            say(line)

    say(f"Training a classifier from {SMALL}: {count} steps of 32 of {len(train)} reviews; accuracy on {held} others, held out:")
    result = task.fit(train, dev, options=options, out=out, resume=False, report=report)
    figures = task.evaluate(found.unseen)
    say(f"Unseen reviews: accuracy {figures['accuracy']:.3f}; always answering with the most frequent label: {figures['majority']:.3f}.")
    say("New sentences:")
    predictions = task.predict(NEW)
    for text, prediction in zip(NEW, predictions, strict=True):
        label = prediction.labels[0]
        say(f"  {label} {prediction.probabilities[label]:.2f}  {text}")
    say(f"Saved: {out / 'model'} ({result.seconds:.0f} s of training). Use it again:")
    say(f"  {_command(sys.executable, '-m', 'fishpaw', 'predict', 'classify', '--model', str((out / 'model').resolve()), NEW[0])}")
    return {**figures, "steps": result.step, "seconds": result.seconds, "model": str(out / "model")}


def show(say: Callable[[str], None], *, seed: int = 0) -> None:
    """What the model can do as it is, before it is taught anything."""
    model, tokenizer = load(SMALL)
    size = sum(parameter.numel() for parameter in model.parameters())
    say(f"Model: {SMALL}, a RoFormer of {model.config.layers} layers, {size / 1e6:.1f} million parameters, pretrained on open texts.")
    say("It fills blanks:")
    for text in BLANKS:
        guesses = [" ".join(token for token, _ in blank.candidates[:3]) for blank in fill(model, tokenizer, text)]
        say(f"  {text}  {' | '.join(guesses)}")
    say("It finds the nearest sentence:")
    vectors = normalize(encode(SENTENCES, (model, tokenizer), pool="pooler", progress=False))
    for index, cosines in enumerate((vectors @ vectors.T).fill_diagonal_(-1)[: len(SENTENCES) // 2].tolist()):
        nearest = cosines.index(max(cosines))
        say(f"  {SENTENCES[index]}  {cosines[nearest]:.2f}  {SENTENCES[nearest]}")
    say("It goes on with a text:")
    writer = Generate(*load(SMALL, mask="unilm"))
    settings = Settings(sample=True, temperature=0.7, top_p=0.9, no_repeat_ngram=4)
    for text, (answer,) in zip(_BEGINNINGS, writer.answers(_BEGINNINGS, settings, writer.limits(40), seed=seed), strict=True):
        say(f"  {text}{answer.text}")


def curve(record: dict[str, Any]) -> str | None:
    """A line of the learning curve from an evaluation's record of the log: step, mean training loss since the last one, accuracy."""
    if record.get("event") != "evaluate":
        return None
    line = f"  step {record['step']:>5}  loss {record['train_loss']:.3f}"
    if (share := record.get("accuracy")) is None:
        return line
    return f"{line}  accuracy {share:.3f} {'█' * round(40 * share)}"


def _command(*words: str) -> str:
    """A command to paste into this system's shell."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def _bundled() -> Path:
    here = Path(__file__).resolve().parent
    for folder in (here / "examples", here.parents[1] / "examples" / "data"):
        if (folder / "reviews.tsv").is_file():
            return folder
    raise DataError(f"The bundled reviews are missing from {here}.", fix="Install fishpaw again, or set FISHPAW_DATA.")


def _plain_or_packed(path: Path) -> Path:
    for name in (path, path.with_name(path.name + ".gz")):
        if name.is_file():
            return name
    raise DataError(f"{path}: no such file, nor {path.name}.gz.", fix="Without FISHPAW_DATA and --data the bundled reviews are used.")


def data_folder() -> Path | None:
    """The folder that FISHPAW_DATA names, if it is set."""
    named = os.environ.get("FISHPAW_DATA")
    return Path(named) if named else None


def _read(path: Path) -> list[LabelledText]:
    return [
        LabelledText(one.text, one.pair, tuple(_NAMES.get(label, label) for label in one.labels), one.file, one.line)
        for one in read_labelled(path, format="tsv")
    ]
