"""The registry: names are read from files, parts are built with their options, and every mistake is answered with what there is."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fishpaw import switch
from fishpaw.errors import ConfigError
from fishpaw.masks import Mask


def test_a_room_lists_its_files_or_its_functions():
    assert {"learned", "none", "rotary", "sinusoidal"} <= set(switch.names("positions"))
    assert "softmax" in switch.names("attention") and "memory" not in switch.names("attention")       # memory.py builds no part
    assert {"layer", "rms"} <= set(switch.names("norms"))
    assert switch.names("masks") == ["causal", "full", "unilm"]
    assert {"classifier", "lm", "mlm", "nsp", "pooler"} <= set(switch.names("model.heads"))


def test_listing_names_imports_no_part():
    code = ("import sys; from fishpaw import switch; [switch.names(room) for room in ('positions', 'attention', 'norms', 'masks')]; "
            "assert 'torch' not in sys.modules and 'fishpaw.masks' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_answered_with_the_nearest_and_the_list():
    with pytest.raises(ConfigError) as caught:
        switch.build("positions", "rotery", None)
    assert "positions: there is no 'rotery'" in caught.value.what and "Did you mean 'rotary'?" in caught.value.fix
    assert all(name in caught.value.fix for name in switch.names("positions"))


def test_a_far_name_gets_the_list_alone():
    assert switch.nearest("xyzzy", ["full", "causal"]) == "Known: full, causal."
    assert switch.nearest("caussal", ["full", "causal"]) == "Did you mean 'causal'? Known: full, causal."
    assert switch.nearest("causal", []) == "Known: none."


@pytest.mark.parametrize("name", ["", "../config", "rotary.py", "__init__", "_names", "rotary\n", "Rotary", "memory"])
def test_only_a_part_is_a_name(name):
    with pytest.raises(ConfigError, match="there is no"):
        switch.build("attention" if name == "memory" else "positions", name, None)


@pytest.mark.parametrize("option", ["windoww", "clock", "config", "self"])
def test_an_unknown_option_is_answered_with_the_options(option):
    with pytest.raises(ConfigError) as caught:
        switch.build("masks", {"name": "causal", option: 3}, None)
    assert option in caught.value.what and "'causal'" in caught.value.what
    assert caught.value.fix == "Options: window=None, exclude_self=False."


def test_an_option_that_is_missing_is_named_as_required():
    with pytest.raises(ConfigError) as caught:
        switch.build("model.heads", {"name": "classifier"}, None)
    assert "'labels'" in caught.value.what
    assert caught.value.fix == "Options: labels (required), multi_label=False, dropout=0.1."


def test_options_objects_and_own_parts():
    assert switch.build("masks", {"name": "causal", "window": 3}, None) == Mask("causal", window=3)
    assert switch.build("masks", lambda config: ("mine", config), 7) == ("mine", 7)
    assert switch.build("masks", "fishpaw.masks:unilm", None) == Mask("unilm")
    assert switch.build("masks", {"name": "fishpaw.masks:full", "exclude_self": True}, None) == Mask("full", exclude_self=True)


@pytest.mark.parametrize(
    ("name", "said"),
    [("no_such_module:part", "can't be imported"), ("fishpaw.masks:nothing", "can't be imported"), ("sys:path", "is a list, not a func")],
)
def test_own_parts_that_are_not_there_are_refused(name, said):
    with pytest.raises(ConfigError, match=said):
        switch.build("masks", name, None)


def test_spec_name_and_options():
    spec = {"name": "rotary", "theta": 7.0}
    assert (switch.spec_name(spec), switch.spec_options(spec)) == ("rotary", {"theta": 7.0})
    assert (switch.spec_name("rotary"), switch.spec_options("rotary")) == ("rotary", {})
    assert (switch.spec_name(Mask), switch.spec_options(Mask)) == ("Mask", {})


def test_an_unknown_room_is_our_fault_and_says_so():
    with pytest.raises(ConfigError, match="no room named 'kitchen'.*report"):
        switch.names("kitchen")
