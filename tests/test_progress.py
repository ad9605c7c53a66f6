"""Progress: plain lines off a terminal, a bar on one, and the time that is left."""

import io

import pytest
from rich.console import Console

from fastcyclegan.runs import progress
from fastcyclegan.runs.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


def plain():
    return Console(file=io.StringIO(), force_terminal=False, width=40)


def test_a_tick_is_one_line_however_narrow_the_output(clock):
    console = plain()
    with Progress(1000, 0, console) as shown:
        clock.now += 50
        shown.tick(100, {"G_A": 0.25, "cycle_A": 1.5}, 23.44)
    assert console.file.getvalue() == (
        "step 100/1000  G_A 0.250  cycle_A 1.500  23.4 img/s  ETA 0:07:30\n"
    )


def test_time_left_counts_from_the_step_resumed_at_and_forgets_a_slow_start(clock):
    console = plain()
    with Progress(100_000, 500, console) as shown:
        clock.now += 3600
        for step in range(501, 520):
            shown.tick(step, {}, 1.0)
            clock.now += 1
    assert console.file.getvalue().splitlines()[0].endswith("ETA 99499:00:00")
    assert console.file.getvalue().splitlines()[-1].endswith("ETA 27:38:01")


def test_say_is_one_unstyled_line(clock):
    console = plain()
    Progress(10, 0, console).say("[red]passed over[/red] a\nb \udcff :smile: " + "x" * 60)
    text = console.file.getvalue()
    assert text == "[red]passed over[/red] a\\nb \\udcff :smile: " + "x" * 60 + "\n"


def test_a_terminal_gets_a_bar_with_the_numbers_and_text_above_it(clock):
    console = Console(file=io.StringIO(), force_terminal=True, width=60, color_system=None)
    with Progress(1000, 250, console) as shown:
        clock.now += 10
        shown.tick(300, {"G_A": 0.5, "[x]": 1.0} | {f"loss_{i}": i for i in range(8)}, 5.0)
        shown.say("saved")
    text = console.file.getvalue()
    final = text[text.index("saved") :]
    for part in ("300/1000", "G_A 0.500", "[x] 1.000", "loss_7 7.000", "5.0 img/s", "ETA 0:02:20"):
        assert part in final
    assert "step 300" not in text


def test_a_tick_at_the_step_it_started_from_has_no_estimate(clock):
    console = plain()
    Progress(10, 5, console).tick(5, {}, 0.0)
    assert console.file.getvalue().endswith("ETA -\n")
