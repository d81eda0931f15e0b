from __future__ import annotations

import pytest
from tokenizers.normalizers import BertNormalizer

from fishpaw.errors import DataError
from fishpaw.text.normalize import half_width, is_cjk, mend, normalize


def test_text_is_what_the_rust_normalizer_makes_of_the_whole_line(option, hard_lines):
    rust = BertNormalizer(clean_text=True, handle_chinese_chars=option["cjk"], strip_accents=option["strip_accents"],
                          lowercase=option["lower"])
    for line in hard_lines:
        assert normalize(line, **option)[0] == rust.normalize_str(mend(line))


def test_every_character_of_the_map_makes_its_part_of_the_text(option, hard_lines, mixed_lines):
    for line in hard_lines + mixed_lines:
        text, source = normalize(line, **option)
        assert len(source) == len(text) and source == sorted(source)
        made = "".join(normalize(line[index], **option)[0] for index in dict.fromkeys(source))
        assert made == text


@pytest.mark.parametrize(("line", "text", "source"), [
    ("", "", []),
    ("Ab", "ab", [0, 1]),
    ("é\u200bE\u0301x", "eex", [0, 2, 4]),
    ("a中", "a 中 ", [0, 1, 1, 1]),
    ("\t\ud800\0b", " b", [0, 3]),
])
def test_known_answers(line, text, source):
    assert normalize(line) == (text, source)


def test_accents_follow_case_unless_told():
    assert normalize("É", lower=False)[0] == "É"
    assert normalize("É", lower=True, strip_accents=False)[0] == "é"
    assert normalize("É", lower=False, strip_accents=True)[0] == "E"


def test_half_width_keeps_every_index():
    line = "ＡＢｃ，１２！\u3000～中。"
    assert half_width(line) == "ABc,12! ~中。"
    assert len(half_width(line)) == len(line)


def test_mend_replaces_only_lone_surrogates():
    assert mend("a\ud800b\udfff😀") == "a\ufffdb\ufffd😀"
    with pytest.raises(DataError, match="NoneType"):
        mend(None)


def test_kana_and_hangul_are_words_and_ideographs_are_not():
    assert [is_cjk(char) for char in "中𠀀豈のカ한a。"] == [True, True, True, False, False, False, False, False]
