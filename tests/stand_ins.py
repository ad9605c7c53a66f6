"""What stands in for streams of a GPU where there is none."""

from contextlib import contextmanager

import pytest
import torch


class Streams:
    """Stands in for torch.cuda: notes what waits for what, and where things are computed."""

    def __init__(self) -> None:
        self.seen, self.now, self.made = [], Stream("here", self), 0

    def Stream(self, device=None):
        return Stream("other", self)

    def current_stream(self, device=None):
        return self.now

    @contextmanager
    def stream(self, stream):
        before, self.now = self.now, stream
        try:
            yield
        finally:
            self.now = before


class Stream:
    def __init__(self, name, streams) -> None:
        self.name, self.streams, self.device = name, streams, torch.device("cpu")

    def wait_stream(self, stream):
        self.streams.seen.append(f"{self.name} waits for {stream.name}")


@pytest.fixture
def streams(monkeypatch):
    found = Streams()
    for name in ("Stream", "current_stream", "stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(found, name))

    def record(tensor, stream):
        found.seen.append(f"{int(tensor)} is used on {stream.name}")

    monkeypatch.setattr(torch.Tensor, "record_stream", record)
    return found
