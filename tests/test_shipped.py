"""fishpaw-small, as it ships: whole, small, and able to do what it is there for."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.nn.functional import normalize

import fishpaw
from fishpaw.decoding.search import greedy
from fishpaw.demo import SENTENCES
from fishpaw.errors import CheckpointError
from fishpaw.files import verify_manifest
from fishpaw.hub import SMALL, find, shipped
from fishpaw.tasks.encode import encode
from fishpaw.tasks.fill import fill
from fishpaw.tasks.generate import Generate
from fishpaw.weights.load import load


@pytest.fixture(scope="module")
def pair():
    return load(SMALL)


def test_it_is_whole_and_no_larger_than_it_may_be(tmp_path):
    folder = find(SMALL).folder
    verify_manifest(folder)
    sizes = [path.stat().st_size for path in folder.iterdir()]
    assert SMALL in shipped() and sum(sizes) <= 16 << 20
    assert max(path.stat().st_size for path in folder.glob("*.safetensors")) <= (4 << 20) + 4096         # a header beside the tensors
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    spoilt = next(tmp_path.glob("*2-of-*.safetensors"))
    spoilt.write_bytes(spoilt.read_bytes()[:-1] + b"\x01")
    with pytest.raises(CheckpointError, match=spoilt.name):
        verify_manifest(tmp_path)


def test_the_card_names_data_licences_cost_and_curve():
    card = (find(SMALL).folder / "README.md").read_text(encoding="utf-8")
    for said in ("CC BY-SA", "MIT", "Apache-2.0", "## Data", "## Cost", "## Learning", "## Measured", "masked accuracy", "STS-B TF-IDF"):
        assert said in card


@pytest.mark.parametrize(("text", "right"), [
    ("法院应当依[MASK]作出判决。", "法"), ("点击“确定”按[MASK]，保存文件。", "钮"), ("中华人[MASK]共和国", "民"),
])  # fmt: skip
def test_it_fills_what_anybody_could(pair, text, right):
    (blank,) = fill(*pair, text, top=3)
    assert right in [token for token, _ in blank.candidates]


def test_it_finds_the_other_wording_more_often_than_chance(pair):
    vectors = normalize(encode(SENTENCES, pair, pool="pooler"))
    nearest = (vectors @ vectors.T).fill_diagonal_(-1).argmax(1).tolist()
    subjects = [0, 1, 2, 0, 3, 1, 2, 3]
    assert sum(subjects[one] == subject for one, subject in zip(nearest, subjects, strict=True)) >= 6      # 1.1 by chance


def test_it_writes_on():
    writer = Generate(*load(SMALL, mask="unilm"))

    (found,) = greedy(writer.stepper, writer.encode(["用人单位应当"]), limits=writer.limits(12))
    text = writer.decode(found)
    assert len(text) >= 4 and all(one != other for one, other in zip(text, text[1:], strict=False))
    assert Path(fishpaw.__file__).parent in find(SMALL).folder.parents
