"""The writing thread: one job at a time, errors kept until they are asked for."""

import threading

import pytest

from fastcyclegan.runs.writer import Writer


def test_a_job_runs_while_its_giver_goes_on():
    writer, gate, done = Writer(), threading.Event(), []
    writer.submit(lambda: (gate.wait(60), done.append(threading.current_thread().name)))
    assert not writer.ready and not done
    gate.set()
    assert writer.finish() is None and done == ["writer"]
    assert not writer.ready and writer.finish() is None


def test_an_error_is_handed_out_once():
    writer = Writer()
    writer.submit(lambda: 1 / 0)
    assert isinstance(writer.finish(), ZeroDivisionError)
    assert writer.finish() is None
    writer.submit(lambda: None)
    assert writer.finish() is None


def test_a_job_is_not_begun_before_the_last_one_was_collected():
    writer = Writer()
    writer.submit(lambda: None)
    with pytest.raises(RuntimeError, match="collected"):
        writer.submit(lambda: None)
    assert writer.finish() is None
