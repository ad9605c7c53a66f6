"""A run in TensorBoard: event files, which ``tensorboard --logdir FOLDER`` shows.

tensorboard's own EventFileWriter hands events to a thread, which keeps them for two minutes and
prints a traceback when the disk is full; here each event is in its file when the call returns.
"""

import time
from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

# TensorBoard reads a folder's files in the order of their names: here numbers of sessions, since
# a clock can go back.
_PREFIX = "events.out.tfevents."
_FORMAT = "brain.Event:2"


class TensorBoard:
    """Writes the event file of one session; see :class:`fastcyclegan.trackers.Tracker`."""

    def __init__(self, folder: Path) -> None:
        """``folder`` is made if need be. Raises OSError."""
        folder.mkdir(exist_ok=True)
        numbers = [path.name.removeprefix(_PREFIX) for path in folder.glob(_PREFIX + "*")]
        number = 1 + max((int(n) for n in numbers if n.isdecimal()), default=0)
        file = open(folder / f"{_PREFIX}{number:010d}", "xb")  # noqa: SIM115  closed by close()
        self._records = RecordWriter(file)
        self._write(file_version=_FORMAT)

    def _write(self, **content: object) -> None:
        event = Event(wall_time=time.time(), **content)
        self._records.write(event.SerializeToString())
        self._records.flush()

    def rewind(self, step: int) -> None:
        """TensorBoard drops what it has read of later steps; the first mark of a run does nothing.

        Therefore a new run has to get one too.
        """
        self._write(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One event, with a value per name."""
        shown = [Summary.Value(tag=name, simple_value=x) for name, x in values.items()]
        self._write(step=step, summary=Summary(value=shown))

    def picture(self, step: int, path: Path) -> None:
        """The file as it is, under the tag ``preview``."""
        with Image.open(path) as image:
            (width, height), channels = image.size, len(image.getbands())
        shown = Summary.Image(
            height=height,
            width=width,
            colorspace=channels,
            encoded_image_string=path.read_bytes(),
        )
        value = Summary.Value(tag="preview", image=shown)
        self._write(step=step, summary=Summary(value=[value]))

    def close(self) -> None:
        """Close the file."""
        self._records.close()
