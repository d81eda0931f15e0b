"""explain --by-examples: which training examples pushed a classifier's prediction for a text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fishpaw.cli.answers import answered, in_chunks
from fishpaw.cli.arguments import device_of, labelled
from fishpaw.terminal import decoded, write, write_json

if TYPE_CHECKING:
    from fishpaw.data.labelled import LabelledText
    from fishpaw.tasks.influence import Answer

__all__ = ["explain_by_examples"]

_TOGETHER = 8                                                        # texts, whose gradients are held at once
_UNASKED = dict.fromkeys(("label", "start", "end", "examples", "total", "error", "size"))


def explain_by_examples(
    lines: Iterator[LabelledText], *, model: str, train: str, path: Path | None, label: str | None, top: int, device: str, source: str,
    as_json: bool,
) -> None:  # fmt: skip
    """A text's label, its log-odds and the text, by tabs; below it the examples with what each added. An object a text with as_json.

    train: the examples that the model was trained on, in order. path: the checkpoints that tasks.influence kept, if it did.
    """
    from fishpaw.tasks.classify import Classify
    from fishpaw.tasks.influence import Influence

    task = Classify.load(model)
    task.model.to(device_of(device))
    influence = Influence(task, labelled(train, multi_label=task.multi_label), checkpoints=path)

    def explained(some: list[LabelledText]) -> list[Answer]:
        pairs = None if some[0].pair is None else [one.pair or "" for one in some]
        labels = None if label is None else [decoded(label)] * len(some)
        return influence.of([one.text for one in some], pairs, labels=labels, top=top)

    def tell_examples(line: LabelledText, one: Answer | None) -> None:
        if as_json:
            write_json({"text": line.text, "pair": line.pair, **_UNASKED} if one is None else asdict(one))
            return
        write("" if one is None else "\t".join([one.label, f"{one.end:+.3f}", *filter(None, (one.text, one.pair))]))
        for each in () if one is None else one.examples:
            write("\t".join([f"  {each.contribution:+.4f}", ",".join(each.labels), *filter(None, (each.text, each.pair))]))

    answered(lines, partial(in_chunks, size=_TOGETHER, predict=explained, source=source), tell_examples, source=source)
