"""explain --by-examples: a text and what pushed it, as lines and objects, and one sentence for each mistake."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fishpaw.tasks.influence import Influence, by_examples

TRAIN = "今天很好\tpos\n气\tneg\n房间很好\tpos\n"


@pytest.fixture
def train(files):
    return files("train.tsv", TRAIN)


def test_a_text_stands_above_the_examples_that_pushed_it(fishpaw_, models, train):
    from fishpaw.data.labelled import read_labelled

    done = fishpaw_("explain", "-m", models / "task", "--by-examples", train, "--top", 2, stdin="今天\n\n很好\n")
    expected = by_examples(models / "task", list(read_labelled(train)), ["今天", "很好"], top=2)
    assert done.code == 0 and len(done.lines) == 7 and not done.lines[3]
    for first, one in ((0, expected[0]), (4, expected[1])):
        label, odds, text = done.lines[first].split("\t")
        assert (label, text) == (one.label, one.text) and float(odds) == pytest.approx(one.end, abs=1e-3)
        for line, each in zip(done.lines[first + 1 : first + 3], one.examples, strict=True):
            value, labels, shown = line.split("\t")
            assert float(value) == pytest.approx(each.contribution, abs=1e-4) and (labels, shown) == (*each.labels, each.text)


def test_texts_and_examples_do_not_both_come_from_standard_input(fishpaw_, models, refused):
    refused(fishpaw_("explain", "-m", models / "task", "--by-examples", "-", stdin=TRAIN), "both read standard input")
    assert len(fishpaw_("explain", "-m", models / "task", "--by-examples", "-", "今天", stdin=TRAIN).lines) == 4


def test_a_training_keeps_its_path_and_explain_reads_it(fishpaw_, models, train, files, refused, monkeypatch):
    out, words = files.folder / "run", ["train", "classify", "-d", train, "-m", models / "bert", "--learning-rate", "1e-3"]
    done = fishpaw_(*words, "-o", out, "--epochs", 12, "--batch-size", 2, "--keep-path", 8, "--json")
    (figures,) = done.objects
    assert done.code == 0 and figures["step"] == 24 and figures["model"] == str(out / "model") and figures["stopped"] == "steps", done
    assert done.err.count("  loss ") == 10 and len([*(out / "path").glob("*.safetensors")]) == 8 + 2
    explain = ["explain", "-m", out / "model", "--by-examples", train, "--json", "今天很好"]
    assert f"on cpu; path: {out / 'path'}" in done.err and not (out / "log.jsonl").exists()
    (one,), (last,) = fishpaw_(*explain, "--path", out / "path").objects, fishpaw_(*explain).objects
    assert abs(one["error"]) < 0.1 * one["size"] and one["end"] == last["end"] and last["error"] is None
    assert one["total"] == pytest.approx(sum(each["contribution"] for each in one["examples"]), rel=1e-6) != last["total"]
    assert not fishpaw_(*explain, "--path", out / "path").err
    said, of = "of 1 text the contributions miss what the training did", Influence.of
    for share in (0.99, 1.01):                                         # of all that the training did to the text
        monkeypatch.setattr(Influence, "of", lambda *given, share=share, **more: [
            replace(each, error=share * (each.end - each.start), size=1e9) for each in of(*given, **more)])  # fmt: skip
        assert (said in fishpaw_(*explain, "--path", out / "path").err) == (share > 1)
    monkeypatch.setattr(Influence, "of", of)
    monkeypatch.setattr("fishpaw.cli.influence._MISSED", 1e-9)
    assert said in fishpaw_(*explain, "--path", out / "path").err
    alone = "fishpaw: without --path: what one more step on each example would do, divided by its rate; not what the training did\n"
    assert fishpaw_(*explain).err == alone                             # and nothing is known of an error
    refused(fishpaw_(*explain, "--path", out), "Give .*run.path")
    refused(fishpaw_("explain", "-m", models / "task", *explain[3:], "--path", out / "path"), "other weights")
    assert fishpaw_(*words, "-o", files.folder / "plain", "--steps", 1).code == 0
    refused(fishpaw_(*words, "-o", files.folder / "plain", "--keep-path", 1), "holds a run without a path")
    refused(fishpaw_(*words, "-o", out, "--steps", 3, "--keep-path", 4), "--keep-path 4, but there are 3 steps")
    for other in (["--dev", train], ["--patience", 2], ["--weight-decay", 0], ["--restart"], ["--accumulate", 2]):
        refused(fishpaw_(*words, "-o", out, "--keep-path", 2, *other), f"^fishpaw: {other[0]} means nothing to --keep-path")
    refused(fishpaw_(*words, "-o", out, "--keep-path", 2, "--dev", train, "--restart"), "--dev and --restart mean nothing")


def test_a_bar_counts_examples_at_each_checkpoint(fishpaw_, models, train, monkeypatch):
    totals = []

    class Bar:
        def __init__(self, **options):
            assert options["disable"] is None                          # only on a terminal
            totals.append([options["total"], 0])

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def update(self, count):
            totals[-1][1] += count

    monkeypatch.setattr("tqdm.auto.tqdm", Bar)
    assert fishpaw_("explain", "-m", models / "task", "--by-examples", train, "今天", "气").code == 0
    assert totals == [[3, 3]]


def test_objects_and_a_label_that_is_asked_about(fishpaw_, models, train):
    (one,) = fishpaw_("explain", "-m", models / "task", "--by-examples", train, "--label", "neg", "--json", "今天").objects
    assert one["label"] == "neg" and len(one["examples"]) == 3 and one["error"] is None
    assert one["total"] == pytest.approx(sum(each["contribution"] for each in one["examples"]), rel=1e-6)


@pytest.mark.parametrize(("words", "says"), [
    (["--by-examples", "TRAIN", "--points", "9"], "--points"), (["--path", "x"], "--by-examples"),
    (["--by-examples", "TRAIN", "--path", "nowhere"], "nowhere: there is no such folder"),
    (["--by-examples", "nowhere.tsv"], "nowhere.tsv"),
    (["--by-examples", "TRAIN", "--label", "nothing"], "nothing"),
])  # fmt: skip
def test_a_mistake_is_one_sentence(fishpaw_, models, train, words, says):
    done = fishpaw_("explain", "-m", models / "task", *(train if word == "TRAIN" else word for word in words), "今天")
    assert done.code == 2 and says in done.err and done.err.count("\n") == 1 and not done.out, done
