"""Settings given on the command line of pip, uv or build."""

from __future__ import annotations

import pytest

from gralora_build.errors import BuildError
from gralora_build.settings import Settings, split


def test_nothing_given_means_find_torch_and_build_for_cuda_when_possible():
    assert split(None) == (Settings(torch="", cuda="auto"), {})


def test_own_settings_do_not_reach_scikit_build_core():
    own, rest = split({"gralora.torch": "/there", "gralora.cuda": "off", "build-dir": "here"})
    assert own == Settings(torch="/there", cuda="off")
    assert rest == {"build-dir": "here"}


def test_the_last_of_repeated_values_counts():
    own, _ = split({"gralora.cuda": ["on", "off"]})
    assert own.cuda == "off"


def test_an_unknown_setting_is_named_with_the_known_ones():
    with pytest.raises(
        BuildError, match=r"gralora\.cude \(accepted: gralora\.torch, gralora\.cuda"
    ):
        split({"gralora.cude": "on"})


def test_a_wrong_cuda_switch_is_named_with_the_accepted_values():
    with pytest.raises(BuildError, match="must be auto, on or off, got 'yes'"):
        split({"gralora.cuda": "yes"})
