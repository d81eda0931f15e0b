"""The loops of naive_attention.py, and every mask, for the tests beside it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("naive_attention", Path(__file__).parent / "naive_attention.py")
assert _SPEC is not None and _SPEC.loader is not None
_NAIVE = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_NAIVE)


@pytest.fixture(scope="session")
def naive():
    """The module: views, inputs, loop, and what it asserts."""
    return _NAIVE


@pytest.fixture(params=_NAIVE.MASKS, ids=str)
def any_mask(request):
    """Each clock with and without each rule."""
    return request.param


@pytest.fixture(params=[False, True], ids=["dense", "padded"])
def padding(request):
    """Whether rows are padded."""
    return request.param


@pytest.fixture(params=[False, True], ids=["", "biased"])
def biased(request):
    """Whether there is a bias."""
    return request.param


@pytest.fixture(params=[False, True], ids=["fused", "explicit"])
def weights(request):
    """Whether attention maps are asked for, which takes the explicit path."""
    return request.param
