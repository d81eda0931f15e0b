"""segment: words a line, where texts come from, thresholds and valleys, and one sentence for each mistake."""

from __future__ import annotations

import pytest

from fishpaw.tasks.segment import Segment


@pytest.fixture
def texts():
    return ["今天天气很热", "房间it很好", "好"]


def test_lines_files_and_arguments_are_segmented_alike(fishpaw_, models, files, texts):
    expected = [" ".join(one.words) for one in Segment.load(models / "bert").segment(texts)]
    assert any(" " in line for line in expected)
    joined = "\n".join(texts) + "\n"
    objects = "".join(f'{{"text": "{text}"}}\n' for text in texts)
    read = [["--data", files(name, content)] for name, content in (("x.txt", joined), ("x.txt.gz", joined), ("x.jsonl", objects))]
    for words, stdin in [([], joined), (["-"], joined), (texts, ""), (["--valley", *texts], ""), *((words, "") for words in read)]:
        done = fishpaw_("segment", "-m", models / "bert", *words, stdin=stdin)
        assert done.code == 0 and not done.err and done.lines == expected, done
    for words in (["--data", files("x.txt", joined)], [], texts):
        assert fishpaw_("segment", "-m", models / "bert", "--limit", 2, *words, stdin=joined).lines == expected[:2]


def test_thresholds_separators_layers_and_metrics(fishpaw_, models, texts):
    bert = ["segment", "-m", models / "bert"]
    assert fishpaw_(*bert, "--threshold", "-inf", *texts).lines == texts
    assert fishpaw_(*bert, "--threshold", "inf", "--separator", "|", *texts).lines == ["今|天|天|气|很|热", "房|间|it|很|好", "好"]
    (one,) = fishpaw_(*bert, "--layer", 0, "--json", texts[0]).objects
    assert max(one["correlations"]) < 1e-5                             # the embeddings see no neighbour
    (one,), (other,) = (fishpaw_(*bert, "--metric", name, "--json", texts[0]).objects for name in ("l2", "cosine"))
    assert one["correlations"] != other["correlations"] and max(other["correlations"]) < 2
    (middle,) = fishpaw_(*bert, "--threshold", sorted(one["correlations"])[2] + 1e-4, texts[0]).lines
    assert middle.count(" ") == 3


def test_json_says_everything_and_blank_lines_keep_their_place(fishpaw_, models):
    done = fishpaw_("segment", "-m", models / "bert", "--json", stdin="\n今天天\n")
    empty, one = done.objects
    assert empty == {"text": "", "words": None, "units": None, "correlations": None, "cuts": None} and sorted(empty) == sorted(one)
    assert one["text"] == "".join(one["words"]) == "今天天" and one["units"] == ["今", "天", "天"] and len(one["cuts"]) == 2
    assert fishpaw_("segment", "-m", models / "bert", stdin="\n今\n\n").lines == ["", "今", ""]


def test_long_lines_are_read_in_windows(fishpaw_, models):
    (line,) = fishpaw_("segment", "-m", models / "bert", "--max-length", 9, stdin="今天天气" * 40 + "\n").lines
    assert line.replace(" ", "") == "今天天气" * 40


def test_who_gives_a_long_text_is_told_what_it_costs(fishpaw_, models, monkeypatch):
    from fishpaw.tasks import segment

    rows, impacts = [], segment.impacts
    monkeypatch.setattr("fishpaw.cli.segment.LONG", 9)
    monkeypatch.setattr(segment, "impacts", lambda model, ids, units, pairs, **more: (
        rows.append(len(pairs) + len({one for pair in pairs for one in pair})), impacts(model, ids, units, pairs, **more))[1])  # fmt: skip
    done = fishpaw_("segment", "-m", models / "bert", "--max-length", 9, "今天天气" * 10, "今天")
    assert done.code == 0 and done.err == f"fishpaw: 40 units mean {sum(rows[:-1])} reads\n" and sum(rows[:-1]) > 79 and rows[-1] == 3


def test_mistakes_are_one_sentence(fishpaw_, models, files, refused):
    bert = ["segment", "-m", models / "bert"]
    refused(fishpaw_(*bert, "--valley", "--threshold", 8, "今"), "--valley and --threshold are given")
    refused(fishpaw_(*bert, "--threshold", "nan", "今"), "threshold is nan")
    refused(fishpaw_(*bert, "--layer", 2, "今"), "layer is 2")
    refused(fishpaw_(*bert, "--metric", "l3", "今"), "l3")
    refused(fishpaw_(*bert, "--max-length", 3, "今"), "max-length is 3: no room for two")
    refused(fishpaw_(*bert, ""), "The text is blank")
    refused(fishpaw_(*bert, "今", " "), "A text is blank")
    refused(fishpaw_(*bert, "\u200b"), "no token to segment")
    refused(fishpaw_(*bert, stdin=""), "standard input: no text")
    refused(fishpaw_(*bert, "今", "天", "--data", files("x.txt", "今\n")), "--data are given")
    refused(fishpaw_(*bert, "--change", "mask=causal", "今"), "needs a masked language model")
    refused(fishpaw_("segment", "-m", models / "gpt2", "今"), "needs a masked language model")
    refused(fishpaw_("segment", "-m", models / "t5", "今"), "needs a masked language model")
    refused(fishpaw_("segment", "-m", models / "task", "今"), "trained for classify")
    done = fishpaw_(*bert, "--data", files("gap.txt", "今\n\u200b\n天\n"))
    assert done.code == 2 and len(done.lines) == 1 and "gap.txt, line 2: The text has no token" in done.err
