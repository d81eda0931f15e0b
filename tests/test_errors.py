"""Errors that a user can cause: what was wrong, what to do next, and that they survive a process boundary."""

from __future__ import annotations

import pickle

import pytest

from fishpaw.errors import CheckpointError, ConfigError, DataError, FishpawError, HubError

KINDS = [FishpawError, ConfigError, CheckpointError, DataError, HubError]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_says_what_and_what_next(kind):
    error = kind("reviews.tsv, line 7: no tab.", fix="Write text<TAB>label.")
    assert (str(error), error.what, error.fix) == ("reviews.tsv, line 7: no tab. Write text<TAB>label.", "reviews.tsv, line 7: no tab.",
                                                   "Write text<TAB>label.")
    assert isinstance(error, FishpawError)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_crosses_a_process_boundary(kind):
    error = pickle.loads(pickle.dumps(kind("鱼", fix="熊掌")))
    assert type(error) is kind and (error.what, error.fix, str(error)) == ("鱼", "熊掌", "鱼 熊掌")


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_without_a_next_step_can_not_be_made(kind):
    with pytest.raises(TypeError, match="fix"):
        kind("what was wrong")


def test_exit_codes_and_what_they_are_to_python():
    assert {kind: kind.exit_code for kind in KINDS} == {FishpawError: 2, ConfigError: 2, CheckpointError: 2, DataError: 2, HubError: 3}
    assert {kind for kind in KINDS if issubclass(kind, ValueError)} == {ConfigError, DataError}
