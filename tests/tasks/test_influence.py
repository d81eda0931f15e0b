"""Influence: the examples' contributions add up to what training did, agree with leaving one out, and stay with their training."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fishpaw.data.labelled import LabelledText
from fishpaw.errors import CheckpointError, ConfigError, DataError
from fishpaw.files import write_manifest
from fishpaw.tasks import influence
from fishpaw.tasks.classify import Classify
from fishpaw.tasks.influence import Answer, Influence, by_examples

torch.set_num_threads(1)
ASKED = ["今天好", "今天坏", "好不好"]


def recorded(toy, tiny, out: Path, *, train: Sequence[LabelledText] | None = None, multi_label: bool = False, **more) -> Influence:
    """24 toy texts, learned in a few seconds; the vocabulary is always theirs, whatever `train` is."""
    everything = toy(24)
    task = Classify.new([one.text for one in everything] + ASKED, ["neg", "pos"], config=tiny(), max_length=24, seed=3,
                        multi_label=multi_label)  # fmt: skip
    settings = {"steps": 60, "learning_rate": 1e-3, "checkpoints": 12, "batch_size": 24} | more
    return Influence.fit(task, train or everything, out, **settings)


@pytest.fixture(scope="module")
def kept() -> dict[str, object]:
    return {}


@pytest.fixture
def trained(toy, tiny, tmp_path_factory, kept) -> tuple[Path, Influence]:
    """One training for all tests that only ask."""
    if "found" not in kept:
        out = tmp_path_factory.mktemp("influence") / "run"
        kept["found"] = out, recorded(toy, tiny, out)
    return kept["found"]  # type: ignore[return-value]


def test_contributions_add_up_to_what_training_did(trained) -> None:
    _, found = trained
    answers = found.of(ASKED)
    assert [one.label for one in answers[:2]] == ["pos", "neg"]
    for one in answers:
        assert one.start is not None and one.error is not None
        assert len(one.examples) == 24 and one.total == pytest.approx(sum(each.contribution for each in one.examples), abs=1e-9)
        assert one.error == pytest.approx(one.end - one.start - one.total, abs=1e-9)
        assert one.size == pytest.approx(sum(abs(each.contribution) for each in one.examples), abs=1e-9)
        assert one.end - one.start > 1.5 and abs(one.error) < 0.05 * one.size


def test_a_checkpoint_a_step_leaves_little(toy, tiny, tmp_path) -> None:
    """What is left then is of second order in the rate; of fewer checkpoints it is more."""
    found = {kept: recorded(toy, tiny, tmp_path / str(kept), train=toy(12), steps=24, checkpoints=kept).of(ASKED) for kept in (24, 2)}
    assert [one.end for one in found[24]] == [one.end for one in found[2]]
    fine, coarse = (sum(abs(one.error or 0.0) for one in found[kept]) for kept in (24, 2))
    assert 10 * fine < sum(abs(one.end - (one.start or 0.0)) for one in found[24]) and coarse > 2 * fine


def test_log_odds_are_those_of_the_prediction(trained) -> None:
    out, found = trained
    for answer, said in zip(found.of(ASKED), found.task.predict(ASKED), strict=True):
        share = said.probabilities[answer.label]
        assert answer.label == said.labels[0]
        assert answer.end == pytest.approx(torch.tensor(share).double().logit().item(), abs=1e-3)
    against = found.of(ASKED[:1], labels=["neg"])[0]
    (own,) = found.of(ASKED[:1])
    assert against.end == pytest.approx(-own.end, abs=1e-5) and against.total == pytest.approx(-own.total, abs=1e-4)


def test_examples_of_the_label_speak_for_it(trained) -> None:
    _, found = trained
    for answer in found.of(ASKED[:2]):
        sums = {label: sum(one.contribution for one in answer.examples if one.labels == (label,)) for label in ("neg", "pos")}
        assert sums[answer.label] > 1 and sums["neg" if answer.label == "pos" else "pos"] < -1
        sizes = [abs(one.contribution) for one in answer.examples]
        assert sizes == sorted(sizes, reverse=True)


def test_leaving_one_out_agrees_in_rank(toy, tiny, tmp_path) -> None:
    """Trained on all of 10 at each step, and again without each: the change of the log-odds against the contribution."""
    train = toy(10, seed=4)
    course = {"steps": 30, "learning_rate": 5e-4, "checkpoints": 10, "batch_size": 10}
    whole = recorded(toy, tiny, tmp_path / "all", train=train, **course)
    answers = whole.of(ASKED[:2])
    without = []
    for index in range(10):
        rest = [one for number, one in enumerate(train) if number != index]
        found = recorded(toy, tiny, tmp_path / str(index), train=rest, **{**course, "checkpoints": 1})
        again = Influence(found.task, rest).of(ASKED[:2], labels=[one.label for one in answers])
        without.append([one.end - other.end for one, other in zip(answers, again, strict=True)])
    for at, answer in enumerate(answers):
        contributions = [one.contribution for one in sorted(answer.examples, key=lambda one: one.index)]
        actual = [row[at] for row in without]
        assert spearman(contributions, actual) > 0.5
        assert spearman([-one for one in contributions], actual) < 0    # planted: the sign


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    ranks = torch.stack([torch.tensor(values).argsort().argsort().double() for values in (one, other)])
    return float(torch.corrcoef(ranks)[0, 1])


def test_any_number_of_labels_is_asked_about_by_its_logit(toy, tiny, tmp_path) -> None:
    found = recorded(toy, tiny, tmp_path / "several", multi_label=True, checkpoints=20)
    (answer,) = found.of(["今天好"], labels=["pos"])
    share = found.task.predict(["今天好"])[0].probabilities["pos"]
    assert answer.end == pytest.approx(torch.tensor(share).double().logit().item(), abs=1e-3)
    assert answer.start is not None and answer.error is not None
    assert answer.end - answer.start > 0.5 and abs(answer.error) < 0.05 * answer.size


# What lies on the disk

def test_by_examples_opens_what_fit_left(trained, toy) -> None:
    out, found = trained
    answers = by_examples(out / "model", toy(24), ASKED, checkpoints=out / "path", top=3)
    assert answers == [replace(one, examples=one.examples[:3]) for one in found.of(ASKED)]
    assert by_examples(found.task, toy(24), [], checkpoints=out / "path") == []
    told: list[int] = []
    by_examples(out / "model", toy(24), ASKED[:1], checkpoints=out / "path", parameters=["heads"], tell=told.append)
    assert sum(told) == 12 * 24


def test_a_pretrained_encoder_and_pairs(pretrained, toy, tmp_path) -> None:
    task = Classify.load(pretrained("bert"), labels=["neg", "pos"])
    Influence.fit(task, toy(8, pairs=True), tmp_path / "run", steps=4, checkpoints=4, batch_size=4)
    (answer,) = by_examples(tmp_path / "run" / "model", toy(8, pairs=True), ["今天"], ["真好"], checkpoints=tmp_path / "run" / "path")
    assert answer.pair == "真好" and answer.examples[0].pair is not None and answer.size > 0
    with pytest.raises(DataError, match="pairs of texts"):
        by_examples(tmp_path / "run" / "model", toy(8, pairs=True), ["今天好"])


def test_without_checkpoints_the_trained_weights_alone_say_it(trained, toy) -> None:
    out, found = trained
    (answer,) = by_examples(out / "model", toy(24), ASKED[:1], top=24)
    (own,) = found.of(ASKED[:1])
    assert answer.start is None and answer.error is None and answer.end == own.end
    assert all(one.contribution * (1 if one.labels == (answer.label,) else -1) > 0 for one in answer.examples[:3])


def test_a_training_that_fails_leaves_nothing(toy, tiny, tmp_path) -> None:
    def stop(step: int, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recorded(toy, tiny, tmp_path / "run", tell=stop)
    assert not (tmp_path / "run" / "path").exists() and not (tmp_path / "run" / "model").exists()


def test_other_examples_and_other_weights_are_told(trained, toy, tiny, tmp_path) -> None:
    out, found = trained
    for examples, what in ((toy(23), "on 24 examples, not 23"), (toy(24, seed=1), "on 24 others"), ([*toy(24)][::-1], "another order")):
        with pytest.raises(DataError, match=what):
            Influence(found.task, examples, checkpoints=out / "path")
    other = Classify.new([one.text for one in toy(24)] + ASKED, ["neg", "pos"], config=tiny(), max_length=24, seed=4)
    with pytest.raises(CheckpointError, match="other weights"):
        Influence(other, toy(24), checkpoints=out / "path")
    with pytest.raises(CheckpointError, match="model: no record of a training. Name the folder `path`"):
        Influence(found.task, toy(24), checkpoints=out / "model")
    with pytest.raises(CheckpointError, match="no such folder"):
        Influence(found.task, toy(24), checkpoints=tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"folder around the checkpoints\. Give .*run.path"):
        Influence(found.task, toy(24), checkpoints=out)
    stranger = Classify.new([one.text for one in toy(24)], ["neg", "pos"], config=tiny(), max_length=24, seed=3)
    with pytest.raises(DataError, match="read by another model's tokenizer"):
        Influence(stranger, toy(24), checkpoints=out / "path")


def test_work_is_what_is_told(trained, toy) -> None:
    out, found = trained
    for one, segments in ((found, 12), (Influence(found.task, toy(24)), 1)):
        told: list[int] = []
        one.of(ASKED[:1], tell=told.append)
        assert sum(told) == one.work == 24 * segments


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"format": 2})])
def test_a_record_that_is_none_is_told(content, trained, toy, tmp_path) -> None:
    _, found = trained
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "record.json").write_text(content, encoding="utf-8")
    write_manifest(tmp_path / "path")
    with pytest.raises(CheckpointError, match="no record"):
        Influence(found.task, toy(24), checkpoints=tmp_path / "path")


def test_the_scale_is_needed(trained, monkeypatch) -> None:
    """Planted: gradients as if the training had been plain gradient descent."""
    _, found = trained
    whole = influence.Checkpoint
    monkeypatch.setattr(influence, "Checkpoint", lambda weights, exposure, scale=None: whole(weights, exposure))
    for answer in found.of(ASKED):
        assert answer.start is not None and abs(answer.error or 0.0) > 0.5 * (answer.end - answer.start)


@pytest.mark.parametrize(("call", "error"), [
    (lambda found: found.of(ASKED, labels=["pos"]), ConfigError), (lambda found: found.of(ASKED[:1], labels=["good"]), ConfigError),
    (lambda found: found.of(ASKED, top=0), ConfigError), (lambda found: found.of("好"), DataError),
    (lambda found: found.of(ASKED, parameters=["nothing"]), ConfigError), (lambda found: found.of(ASKED, ASKED), DataError),
    (lambda found: Influence(found.task, []), DataError),
])  # fmt: skip
def test_what_cannot_be_is_refused(trained, call: Callable[[Influence], list[Answer]], error) -> None:
    with pytest.raises(error):
        call(trained[1])


@pytest.mark.parametrize("settings", [{"steps": 0}, {"checkpoints": 61}, {"learning_rate": 0.0}, {"clip": -1.0}])
def test_courses_that_cannot_be_are_refused(settings, toy, tiny, tmp_path) -> None:
    with pytest.raises(ConfigError):
        recorded(toy, tiny, tmp_path / "run", **settings)
