from __future__ import annotations

import pytest

from fishpaw.text.spacing import join


@pytest.mark.parametrize(("tokens", "text"), [
    ("", ""),
    ("今 天 天 气 很 好 。", "今天天气很好。"),
    ("我 爱 北 京", "我爱北京"),
    ("play ##ing un ##aff ##able", "playing unaffable"),
    ("hello , world !", "hello, world!"),
    ("我 用 python 3 . 11 写 代 码", "我用python 3.11写代码"),
    ("2020 - 11 - 20 12 : 34", "2020-11-20 12:34"),
    ("don ' t , it ' s ok", "don't, it's ok"),
    ('he said " hello world " to me', 'he said "hello world" to me'),
    ("see ( the note ) and [ 1 ]", "see (the note) and [1]"),
    ("state - of - the - art", "state-of-the-art"),
    ("99 % of 1 , 000", "99% of 1,000"),
    ("《 红 楼 梦 》 ： “ 好 ”", "《红楼梦》：“好”"),
    ("こ ##ん ##に ##ち ##は 世 界", "こんにちは世界"),
    ("한국어 문장", "한국어 문장"),
    ("##ing", "##ing"),
    ("a ##", "a ##"),
    ("end . next", "end. next"),
])
def test_words_stand_as_a_typist_would_set_them(tokens, text):
    assert join(tokens.split()) == text


def test_no_blank_touches_an_ideograph():
    for other in ("a", "1", ",", '"', "中", "。", "##b"):
        assert " " not in join(["中", other, "文"])
