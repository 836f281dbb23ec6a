"""What the libraries say: kept from the user in one thread, printed as ever in the others, and never lost."""

from __future__ import annotations

import io
import logging
import threading
import warnings
from collections.abc import Iterator

import pytest

from t2i.errors import ModelError
from t2i.model_files.library_logging import silence_libraries
from t2i.pipelines.loading.load import refuse_missing_weights
from t2i.threads import ignore_warnings

NAMES = ("diffusers", "transformers", "accelerate")


@pytest.fixture(params=NAMES)
def library(request: pytest.FixtureRequest) -> Iterator[tuple[logging.Logger, io.StringIO]]:
    """A library's logger as its import leaves it, and what its user sees: of its own handler, or of one above."""
    name = request.param
    __import__(name)
    logger, stream = logging.getLogger(name), io.StringIO()
    before = logger.handlers[:], logger.propagate, logger.level, logging.root.handlers[:], logging.root.level
    handler = logging.StreamHandler(stream)
    logger.handlers = [one for one in logger.handlers if type(one).__name__ != "_Gate"]
    if name == "accelerate":
        logger.propagate, logger.handlers, logging.root.handlers = True, [], [handler]
    else:
        logger.propagate, logger.handlers = False, [handler]
    yield logger, stream
    logger.handlers, logger.propagate, logging.root.handlers = before[0], before[1], before[3]
    logger.setLevel(before[2])


Library = tuple[logging.Logger, io.StringIO]


def test_warnings_are_kept_in_the_block_and_printed_outside(library: Library) -> None:
    logger, stream = library
    child = logger.getChild("models.modeling_utils")
    child.warning("before")
    with silence_libraries() as said:
        child.warning("inside %d", 1)
        logger.warning("inside 2")
        child.error("an error")
    child.warning("after")
    assert said == ["inside 1", "inside 2"]
    assert stream.getvalue().split("\n") == ["before", "an error", "after", ""]


def test_an_inner_block_keeps_its_own(library: Library) -> None:
    logger, stream = library
    with silence_libraries() as outer:
        logger.warning("one")
        with silence_libraries() as inner:
            logger.warning("two")
        logger.warning("three")
    assert (outer, inner, stream.getvalue()) == (["one", "three"], ["two"], "")


def test_each_thread_keeps_what_is_said_in_it(library: Library) -> None:
    """Blocks that overlap in every way: nothing is lost, nor kept by another, and all is as before afterwards."""
    logger, stream = library
    kept: dict[int, list[str]] = {}
    start = threading.Barrier(6)

    def work(k: int) -> None:
        start.wait()
        for turn in range(50):
            if k % 3 == 0:
                logger.warning("free %d %d", k, turn)
                continue
            with silence_libraries() as said:
                logger.warning("kept %d %d", k, turn)
                warnings.warn("of Python", stacklevel=1)
            kept.setdefault(k, []).extend(said)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kept == {k: [f"kept {k} {turn}" for turn in range(50)] for k in (1, 2, 4, 5)}
    printed = stream.getvalue().splitlines()
    assert sorted(printed) == sorted(f"free {k} {turn}" for k in (0, 3) for turn in range(50))
    logger.warning("after")
    assert stream.getvalue().endswith("after\n")


def test_who_asks_for_all_of_it_hears_it_and_it_is_kept_too(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    logger, stream = library
    monkeypatch.setenv("DIFFUSERS_VERBOSITY", "info")
    with silence_libraries() as said:
        logger.warning("weights")
    assert (said, stream.getvalue()) == (["weights"], "weights\n")


def test_a_level_that_hides_warnings_does_not_hide_missing_weights(library: Library) -> None:
    """The libraries fill missing weights with random numbers, and a warning is all that tells of it."""
    logger, stream = library
    logger.setLevel(logging.ERROR)
    with silence_libraries() as said:
        logger.warning("Some weights of Net were not initialized ... and are newly initialized: ['a']")
        logger.error("an error")
    logger.warning("not wanted")
    assert len(said) == 1
    with pytest.raises(ModelError, match="weights are missing"):
        refuse_missing_weights("model", said)
    assert stream.getvalue() == "an error\n"
    logger.setLevel(logging.INFO)  # the user changes it again
    with silence_libraries():
        pass
    logger.info("wanted")
    assert stream.getvalue() == "an error\nwanted\n"


def test_a_handler_that_comes_later_is_asked_too(library: Library) -> None:
    logger, _ = library
    with silence_libraries():
        pass
    later = io.StringIO()
    logger.addHandler(logging.StreamHandler(later))
    with silence_libraries() as said:
        logger.warning("inside")
    logger.warning("outside")
    assert (said, later.getvalue()) == (["inside"], "outside\n")


def test_pythons_warnings_are_ignored_in_the_block_alone() -> None:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with silence_libraries():
            warnings.warn("soft", stacklevel=1)
        warnings.warn("loud", stacklevel=1)
    assert [str(one.message) for one in heard] == ["loud"]


def test_warnings_of_other_threads_stay_errors() -> None:
    entered, done, raised = threading.Event(), threading.Event(), list[Warning]()

    def ignoring() -> None:
        with ignore_warnings():
            entered.set()
            warnings.warn("soft", stacklevel=1)
            done.wait()

    thread = threading.Thread(target=ignoring)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        thread.start()
        entered.wait()
        try:
            warnings.warn("loud", stacklevel=1)
        except UserWarning as e:
            raised.append(e)
        done.set()
        thread.join()
    assert [str(e) for e in raised] == ["loud"]
