"""Loading without looking for garbage: Python is left as it was found."""

from __future__ import annotations

import gc

import pytest

from t2i.model_files.gc_pause import gc_paused


def test_collection_stops_and_goes_on() -> None:
    assert gc.isenabled()
    with gc_paused():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_the_pause_may_end_before_the_block() -> None:
    with gc_paused() as resume:
        assert not gc.isenabled()
        resume()
        assert gc.isenabled()
    assert gc.isenabled()


def test_it_goes_on_after_an_error() -> None:
    @gc_paused()
    def fail() -> None:
        assert not gc.isenabled()
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert gc.isenabled()


def test_who_has_switched_it_off_keeps_it_off() -> None:
    gc.disable()
    try:
        with gc_paused() as resume:
            resume()
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()
