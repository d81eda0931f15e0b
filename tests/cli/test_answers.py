"""Blank lines and empty files, the same for every verb that reads texts; and models of another task."""

from __future__ import annotations

import json

import pytest

from fishpaw.cli.answers import answered
from fishpaw.data.labelled import LabelledText

ANSWER = {                                                             # verb, model, options; the text to give it
    "predict classify": (["predict", "classify"], "task", [], "今天"),
    "predict seq2seq": (["predict", "seq2seq"], "bert", ["--max-new", 3], "今天"),
    "generate": (["generate"], "bert", ["--mask", "causal", "--max-new", 3], "今天"),
    "generate --batch-size": (["generate"], "bert", ["--mask", "causal", "--max-new", 3, "--batch-size", 2], "今天"),
    "generate --choices": (["generate"], "bert", ["--mask", "causal", "--choices", "天，气"], "今天"),
    "score": (["score"], "bert", [], "今天"),
    "chat": (["chat"], "bert", ["--max-new", 3, "--beams", 1], "今天"),
    "fill": (["fill"], "bert", ["--top", 1], "今[MASK]"),
}
TRAIN = {                                                              # a line of data; how an empty file is called
    "classify": ("今天\tpos\n", "no example"), "seq2seq": ("今天\t天\n", "no pair"), "dialogue": ("今天\t天\n", "no conversation"),
}  # fmt: skip
BLANK = ["", " ", "\u3000", "", "\t"]


@pytest.fixture
def asked(fishpaw_, models):
    """asked("verb of ANSWER", …, stdin=…) -> Done"""
    def run(name: str, *more: object, stdin: str = ""):
        verb, model, options, _ = ANSWER[name]
        return fishpaw_(*verb, "--model", models / model, *options, *more, stdin=stdin)

    return run


def lines_of(text: str) -> list[str]:
    """The text stands in lines 2, 4, 5."""
    return [BLANK[0], text, BLANK[1], text, text, *BLANK[2:]]


@pytest.mark.parametrize("name", ANSWER)
def test_a_blank_line_of_text_gets_a_blank_answer_in_its_place(asked, files, name):
    text = ANSWER[name][3]
    given = lines_of(text)
    alone, mixed = (asked(name, stdin="".join(f"{line}\n" for line in some)) for some in ([text] * 3, given))
    assert alone.code == mixed.code == 0 and len(alone.lines) == 3 and not mixed.err, mixed
    if name == "fill":                                                 # a line a [MASK], by the number of the text's line
        assert [line.split("\t")[0] for line in mixed.lines] == ["2", "4", "5"]
    else:
        assert [line == "" for line in mixed.lines] == [not line.strip() for line in given]
        assert [line for line in mixed.lines if line] == alone.lines
    assert asked(name, "--data", files("x.txt", "".join(f"{line}\n" for line in given))).out == mixed.out


@pytest.mark.parametrize("name", [name for name in ANSWER if name != "fill"])
def test_in_json_a_blank_text_has_no_figures(asked, files, name):
    text = ANSWER[name][3]
    done = asked(name, "--json", stdin=f"\n{text}\n")
    blank, one = done.objects
    assert [*blank] == [*one] and all(value is not None for key, value in one.items() if key != "pair")
    (said, *others) = blank.values()
    assert said == "" and others == [None] * len(others)
    table = files("x.jsonl", "\n" + "".join(json.dumps({"text": value}) + "\n\n" for value in (text, " ", text)))
    told = asked(name, "--data", table)                                # an empty row is none; an empty text is one
    assert told.code == 0 and [line == "" for line in told.lines] == [False, True, False], told


@pytest.mark.parametrize("name", ["generate", "predict seq2seq"])
def test_several_answers_and_streams_keep_their_places(asked, name):
    text, search = ANSWER[name][3], ["--beams", 2]
    if name == "generate":
        search += ["--n", 2]
        assert asked(name, "--stream", stdin=f"\n{text}\n\n").out == asked(name, stdin=f"\n{text}\n\n").out
    done = asked(name, *search, stdin=f"{text}\n\n")
    assert [line == "" for line in done.lines] == ([False, True] if name != "generate" else [False, False, True, True])


@pytest.mark.parametrize("name", ANSWER)
@pytest.mark.parametrize("content", ["", "\n", " \n\u3000\n"], ids=repr)
def test_a_file_without_a_text_is_one_sentence(asked, files, name, content):
    for done, where in ((asked(name, stdin=content), "standard input"), (asked(name, "--data", files("x.txt", content)), "x.txt"),
                        (asked(name, "--data", files("x.jsonl", content)), "x.jsonl")):
        assert done.code == 2 and done.err.endswith(f"{where}: no text. Write a text on each line.\n") and done.err.count("\n") == 1, done
        assert not done.out.strip()


@pytest.mark.parametrize("name", [name for name in ANSWER if name != "chat"])
@pytest.mark.parametrize("text", ["", " \u3000"], ids=repr)
def test_a_blank_text_on_the_command_line_is_refused(asked, refused, name, text):
    refused(asked(name, text), "The text is blank. Give one")


@pytest.mark.parametrize("name", TRAIN)
def test_blank_lines_of_training_data_are_left_out(fishpaw_, models, files, refused, name):
    line, empty = TRAIN[name]
    model = ["--model", models / ("task" if name == "classify" else "bert")]
    measure = ["evaluate", name, *model, *(["--samples", 2, "--max-new", 3] if name == "dialogue" else []), "--data"]
    plain, spaced = (files(f"{where}.tsv", some * 3) for where, some in (("plain", line), ("spaced", f"\n{line} \n\u3000\n")))
    if name == "dialogue":
        plain, spaced = (files(one.name, one.read_text(encoding="utf-8") + "好\t坏\n") for one in (plain, spaced))
    if name == "seq2seq":
        measure[-1:] = ["--max-new", 3, "--data"]
    done = fishpaw_(*measure, spaced)
    assert done.code == 0 and done == fishpaw_(*measure, plain)
    for content in ("", "\n \n\u3000\n"):
        for suffix in ("tsv", "csv", "txt", "jsonl"):
            nothing = files(f"nothing.{suffix}", content)
            for words in (measure, ["train", name, "--out", files.folder / "run", "--data"]):
                refused(fishpaw_(*words, nothing), f"nothing.{suffix}: {empty}")


def test_who_waits_for_an_answer_gets_it_before_the_next_line_is_read():
    told: list[object] = []

    def lines():
        for text in ["", "a", "", "b", "c", "", ""]:
            told.append(("read", text))
            yield LabelledText(text)
        told.append("end")

    def one_by_one(texts):
        for line in texts:
            yield line.text.upper()

    answered(lines(), one_by_one, lambda line, found: told.append(found), source="-")
    assert told == [("read", ""), None, ("read", "a"), "A", ("read", ""), None, ("read", "b"), "B", ("read", "c"), "C",
                    ("read", ""), None, ("read", ""), None, "end"]  # fmt: skip

    def all_at_once(texts):
        return [line.text.upper() for line in texts]

    told.clear()
    answered(lines(), all_at_once, lambda line, found: told.append(found), source="")
    assert [one for one in told if one is None or isinstance(one, str) and len(one) == 1] == [None, "A", None, "B", "C", None, None]


OTHERS = [(verb, task) for verb, own in (("predict classify", {"classify"}), ("predict seq2seq", {"seq2seq"}), ("chat", {"dialogue"}),
                                         ("generate", {"seq2seq", "dialogue"}), ("score", {"dialogue"}), ("fill", set()))
          for task in ("classify", "seq2seq", "dialogue") if task not in own]  # fmt: skip


@pytest.mark.parametrize(("name", "task"), OTHERS)
def test_a_model_of_another_task_is_refused_with_its_own_verb(fishpaw_, files, refused, name, task):
    folder = files.folder / "trained"
    folder.mkdir()
    (folder / "task.json").write_text(json.dumps({"task": task}), encoding="utf-8")
    verb = {"classify": "predict classify", "seq2seq": "predict seq2seq", "dialogue": "chat"}[task]
    says = rf"trained was trained for {task}, not for this\. Use `fishpaw {verb}`, or give another model\.$"
    refused(fishpaw_(*ANSWER[name][0], "--model", folder, stdin="今\n"), says)
    if " " in name or name == "chat":
        evaluate = "dialogue" if name == "chat" else name.split()[1]
        data = files("x.tsv", "今\t天\n")
        refused(fishpaw_("evaluate", evaluate, "--model", folder, "--data", data), says)


def test_a_model_of_dialogue_that_only_goes_on_with_a_text_is_told(fishpaw_, models, files):
    from fishpaw.tasks.dialogue import Dialogue

    Dialogue.load(models / "gpt2").save(files.folder / "talk")
    done = fishpaw_("generate", "--model", files.folder / "talk", "--max-new", 2, "今")
    assert done.code == 0 and done.err.count("\n") == 1 and "was trained for dialogue" in done.err and "`fishpaw chat`" in done.err


@pytest.mark.parametrize("choices", ["天气,公园", "天气，公园", "天气、公园", "天气、 公园"])
def test_choices_are_parted_by_the_commas_there_are(fishpaw_, models, choices):
    (one,) = fishpaw_("generate", "--model", models / "bert", "--mask", "causal", "--choices", choices, "今", "--json").objects
    assert [*one["probabilities"]] == ["天气", "公园"]
    (kept,) = fishpaw_("generate", "--model", models / "bert", "--mask", "causal", "--choices", "今、天，气,公园", "今", "--json").objects
    assert [*kept["probabilities"]] == ["今、天，气", "公园"]
