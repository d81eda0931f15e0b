"""chat: a turn a line and a reply a line through a pipe, a conversation at a terminal, its commands, and Ctrl-C."""

from __future__ import annotations

import builtins
import io
import json

import pytest

from fishpaw.cli import chat as module


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    """A model that was trained for seconds to answer each letter with the next one."""
    import torch

    import fishpaw as fp
    from fishpaw.data.conversations import Conversation
    from fishpaw.tasks.dialogue import Dialogue, small

    torch.set_num_threads(1)
    talks = [Conversation(tuple("一二三四五六"[(at + turn) % 6] for turn in range(2 + at % 5))) for at in range(30)]
    config = small(1).change({"hidden_size": 32, "layers": 1, "attention_heads": 2, "intermediate_size": 32, "dropout": 0.0,
                              "attention_dropout": 0.0, "init_std": 0.1})  # fmt: skip
    task = Dialogue.new(talks, config=config, max_length=30)
    task.fit(talks, options=fp.Options(steps=120, batch_size=12, learning_rate=0.01))
    task.save(tmp_path_factory.mktemp("talker") / "model")
    return next(tmp_path_factory.getbasetemp().glob("talker*/model"))


@pytest.fixture
def said(fishpaw_, talker):
    """said(lines, *options) -> what a pipe gets back."""
    def run(lines: str, *options: object):
        return fishpaw_("chat", "--model", talker, "--max-new", 5, "--beams", 1, *options, stdin=lines)

    return run


def test_a_reply_a_line_that_follows_the_whole_conversation(said):
    done = said("一\n三\n\n五\n")
    assert (done.code, done.lines, done.err) == (0, ["二", "四", "", "六"], "")
    (one, two) = said("一\n三\n", "--json").objects
    assert one == {"said": "一", "reply": "二", "turn": 2} and two["turn"] == 4
    assert said("一\n三\n", "--limit", 1).lines == ["二"]


DRAWING = [[], ["--top-p", 0.9], ["--temperature", 2.0, "--top-k", 3], ["--min-p", 0.01], ["--rerank", 3], ["--rerank", 1]]


@pytest.mark.parametrize("options", DRAWING, ids=str)
def test_drawn_replies_are_seeded(fishpaw_, talker, options):
    words = ["chat", "--model", talker, "--max-new", 5, *options]
    first = fishpaw_(*words, stdin="一\n五\n一\n")
    assert first.code == 0 and first == fishpaw_(*words, stdin="一\n五\n一\n")


@pytest.mark.parametrize("options", [["--beams", 3], ["--contrastive-k", 3]], ids=str)
def test_searched_replies(fishpaw_, talker, options):
    assert fishpaw_("chat", "--model", talker, "--max-new", 5, *options, stdin="一\n三\n").lines == ["二", "四"]


def test_turns_of_a_file(said, files):
    assert said("", "--data", files("turns.txt", "一\n三\n")).lines == ["二", "四"]


def test_saved_conversations_are_of_the_session_and_can_be_trained_on(said, files, refused):
    from fishpaw.data.conversations import read_conversations

    file = files.folder / "talk.jsonl"
    done = said(f"一\n三\n/save {file}\n/undo\n/reset\n五\n/save {file}\n")
    assert done.lines == ["二", "四", "六"]
    assert done.err.splitlines() == [f"fishpaw: 1 conversation in {file}", f"fishpaw: 2 conversations in {file}"]
    assert [one.turns for one in read_conversations(file)] == [("一", "二"), ("五", "六")]
    assert not list(files.folder.glob(".*"))                          # nothing half-written is left
    refused_now = said(f"一\n/save {file}\n")
    assert refused_now.code == 2 and "is there already" in refused_now.err and len(list(read_conversations(file))) == 2


def test_undo_takes_back_a_turn_and_its_reply(said):
    assert said("一\n/undo\n/undo\n五\n", "--json").objects[1]["turn"] == 2
    assert "/undo" in said("/help\n").err


def test_a_turn_may_begin_with_a_slash(said):
    assert said("//一\n", "--json").objects[0]["said"] == "/一"


@pytest.mark.parametrize(
    ("lines", "options", "says"),
    [
        ("/what\n", [], "standard input, line 1: /what is no command"),
        ("/reset now\n", [], "/reset now is no command"),
        ("/save\n", [], "needs the name of a file"),
        ("/save nothing.jsonl\n", [], "Nothing has been said yet"),
        ("一\n", ["--temperature", 1.0], r"--temperature is for replies that are drawn\. Leave --beams and --contrastive-k out\.$"),
        ("一\n", ["--top-k", 5], r"--top-k is for replies that are drawn\. Leave --beams and --contrastive-k out\.$"),
        ("一\n", ["--rerank", 3], "Leave --beams"),
        ("一\n", ["--backward", "x"], "Add --rerank"),
        ("一\n", ["--max-length", 3], "--max-length is 3"),
        (b"\xff\n", [], "line 1: not UTF-8"),
    ],
)
def test_mistakes_end_a_pipe_with_one_sentence(said, refused, lines, options, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(said(lines, *options), says)


@pytest.mark.parametrize(("options", "says"), [(["--max-new", 0], "--max-new is 0"), (["--max-new", 29], "leave none to a turn"),
                                               (["--top-p", 2], "--top-p is 2"), (["--device", "cuda:99"], "not on this machine")])
def test_wrong_bounds(fishpaw_, talker, refused, options, says):
    refused(fishpaw_("chat", "--model", talker, *options, stdin="一\n"), says)


def test_a_turn_that_is_too_long_is_told(said):
    done = said("一" * 60 + "\n")
    assert done.code == 0 and len(done.lines) == 1 and "has lost its beginning: a conversation has 30 tokens" in done.err


def test_any_causal_model_talks_and_one_with_a_template_through_it(fishpaw_, models, tmp_path, refused):
    assert fishpaw_("chat", "--model", models / "gpt2", "--max-new", 5, stdin="今\n天\n").code == 0
    folder = tmp_path / "templated"
    folder.mkdir()
    for file in (models / "gpt2").iterdir():
        if file.name != "manifest.json":
            (folder / file.name).write_bytes(file.read_bytes())
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role[0] }}{{ m.content }}{% endfor %}", encoding="utf-8")
    words = ["chat", "--model", folder, "--max-new", 5, "--beams", 1, "--json"]
    talk = fishpaw_(*words, stdin="今\n天\n")
    assert talk.code == 0 and [one["turn"] for one in talk.objects] == [2, 4], talk
    refused(fishpaw_("chat", "--model", folder, "--rerank", 2, stdin="今\n"), "Leave --rerank out")


def test_a_reply_is_drawn_anew_after_undo_and_reset(fishpaw_, talker):
    """Until now the same turn got the same reply for ever; the whole session is still repeated by its seed."""
    lines = "一\n/undo\n" * 6 + "/reset\n一\n" * 6
    options = ["--max-new", 5, "--temperature", 9.0, "--top-k", 9]
    done = fishpaw_("chat", "--model", talker, *options, stdin=lines)
    assert done.code == 0 and len(done.lines) == 12 and len(set(done.lines[:6])) > 1 and len(set(done.lines[6:])) > 1
    assert fishpaw_("chat", "--model", talker, *options, stdin=lines) == done
    assert fishpaw_("chat", "--model", talker, *options, "--seed", 9, stdin=lines) != done


def test_a_turn_stands_when_the_model_says_nothing_to_it(said, files, monkeypatch):
    from fishpaw.data.conversations import read_conversations
    from fishpaw.tasks.dialogue import Dialogue

    asked = []

    def silent(self, history, *rest, **options):
        asked.append(list(history))
        yield " " if len(history) in (3, 5) else f"答{len(history)}"

    monkeypatch.setattr(Dialogue, "stream", silent)
    file = files.folder / "talk.jsonl"
    done = said(f"一\n二\n三\n四\n/undo\n五\n/save {file}\n", "--json")
    assert [(one["said"], one["turn"]) for one in done.objects] == [("一", 2), ("二", 4), ("三", 6), ("四", 8), ("五", 8)]
    assert done.err.count("the model says nothing to this; your turn stands") == 2
    assert asked[-1] == ["一", "答1", "二", "", "三", "", "五"]
    (talk,) = read_conversations(file)                               # no blank turn, and nothing that was said is lost
    assert talk.turns == ("一", "答1", "二\n三\n五", "答7")


def test_a_real_model_that_says_nothing_but_padding_is_heard_all_the_same(fishpaw_, talker, tmp_path):
    from fishpaw.tasks.dialogue import Dialogue

    task = Dialogue.load(talker)
    task.model.heads["mlm"].bias.data[task.tokenizer.pad_id] = 99.0
    task.save(tmp_path / "padded")
    done = fishpaw_("chat", "--model", tmp_path / "padded", "--max-new", 5, "--json", stdin="一\n三\n")
    assert [one["turn"] for one in done.objects] == [2, 4] and all(one["reply"] for one in done.objects) and not done.err


@pytest.mark.parametrize("count", [1, 2])
def test_a_backward_model_is_opened_whatever_the_number(fishpaw_, talker, refused, count):
    done = fishpaw_("chat", "--model", talker, "--rerank", count, "--backward", "/nonexist", stdin="一\n")
    refused(done, "/nonexist: there is no such file or folder")


class Keyboard:
    """What is typed at a terminal: lines, KeyboardInterrupt for Ctrl-C at the prompt, and Ctrl-D at the end."""

    def __init__(self, *typed: object) -> None:
        self.typed = list(typed)

    def __call__(self, prompt: str) -> str:
        assert prompt == "> "
        if not self.typed:
            raise EOFError
        one = self.typed.pop(0)
        if isinstance(one, type):
            raise one
        return str(one)


@pytest.fixture
def terminal(fishpaw_, talker, monkeypatch):
    """terminal(*typed) -> Done, with stdin and stdout that say they are terminals."""
    class Screen(io.BytesIO):
        def isatty(self) -> bool:
            return True

    def run(*typed: object, options: tuple[object, ...] = ("--beams", 1)):
        monkeypatch.setattr(builtins, "input", Keyboard(*typed))
        monkeypatch.setattr(module, "_terminal", lambda: True)
        return fishpaw_("chat", "--model", talker, "--max-new", 5, *options, stdout=Screen())

    return run


def test_a_conversation_at_a_terminal(terminal, tmp_path):
    file = tmp_path / "talk.jsonl"
    done = terminal("一", KeyboardInterrupt, "/what", "", "三", f"/save {file}", "/save", "/help")
    assert done.code == 0 and done.out == "二\n\n四\n\n"                # Ctrl-C at the prompt, and Ctrl-D at the end, each end the line
    assert "/what is no command" in done.err and "needs the name of a file" in done.err and "Traceback" not in done.err
    assert json.loads(file.read_text(encoding="utf-8")) == {"turns": ["一", "二", "三", "四"]}


def test_ctrl_c_ends_the_reply_and_not_the_program(terminal, monkeypatch, tmp_path):
    from fishpaw.tasks.dialogue import Dialogue

    stream, asked = Dialogue.stream, []

    def interrupted(self, history, *rest, **options):
        asked.append(list(history))
        if history[-1] == "三":
            yield "四"
            raise KeyboardInterrupt
        if history[-1] == "五":
            raise KeyboardInterrupt
        yield from stream(self, history, *rest, **options)

    monkeypatch.setattr(Dialogue, "stream", interrupted)
    done = terminal("一", "三", "五", "一")
    assert done.code == 0 and done.out.startswith("二\n四\n\n")
    assert asked == [["一"], ["一", "二", "三"], ["一", "二", "三", "四", "五"], ["一", "二", "三", "四", "一"]]


def test_ctrl_c_ends_a_pipe(said, monkeypatch):
    from fishpaw.tasks.dialogue import Dialogue

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Dialogue, "stream", interrupted)
    assert said("一\n三\n").code == 130


def test_a_pipe_without_a_turn_says_so_and_commands_are_turns(said, refused):
    refused(said(""), "standard input: no text")
    assert said("/help\n").code == 0


def test_a_reply_has_so_many_tokens_at_least(said, refused):
    (short,), (long,) = said("一\n").lines, said("一\n", "--min-new", 3).lines
    assert len(short) == 1 and len(long) >= 3
    assert len(said("一\n", "--min-new", 3, "--beams", 2, "--length-penalty", 0.5).lines[0]) >= 3
    refused(said("一\n", "--min-new", 9), "--min-new is 9")
