"""Charts: what is drawn where, on which scale, with which ticks, under which name."""

import re

import pytest

from fastcyclegan.runs.report import charts
from fastcyclegan.runs.report.catalogue import SPEED, Family, families, stem_of
from fastcyclegan.runs.report.charts import BOTTOM, LEFT, RIGHT, TOP, Axis, Line, draw, number
from fastcyclegan.runs.report.thinning import Curve

LOSS = Family("Loss", "loss", logarithmic=True)


def line(values, name="G", spacing=10):
    curve = Curve()
    for i, value in enumerate(values):
        curve.add(i * spacing, value)
    return Line(name, curve.points, 0)


def heights(path: str) -> list[float]:
    return [float(y) for y in re.findall(r"[ML][\d.-]+ ([\d.-]+)", path)]


@pytest.mark.parametrize(
    ("axis", "said"),
    [
        (Axis(0, 163_200, 0, 1), ["0", "50,000", "100,000", "150,000"]),
        (Axis(0, 7, 0, 1), ["0", "2", "4", "6"]),
        (Axis(0, 1, 0, 1), ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        (Axis(0, 0.0002, 0, 1), ["0", "5e−5", "1e−4", "1.5e−4", "2e−4"]),
        (Axis(-1.2, 1.1, 0, 1), ["−1", "−0.5", "0", "0.5", "1"]),
        (Axis(0, 2.6e6, 0, 1), ["0", "1M", "2M"]),
        (Axis(0.01, 100, 0, 1, True), ["0.01", "0.1", "1", "10", "100"]),
        (Axis(0.5, 30, 0, 1, True), ["0.5", "1", "2", "5", "10", "20"]),
        (Axis(1e-9, 1e9, 0, 1, True), ["1e−9", "1e−4", "10", "1M"]),
    ],
)
def test_ticks_are_round_few_and_in_place(axis, said):
    ticks = axis.ticks(4)
    assert [text for _, text in ticks] == said
    places = [place for place, _ in ticks]
    assert places == sorted(places) and places[0] >= 0 and places[-1] <= 1


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "–"), (0.0, "0"), (12345.678, "12,346"), (0.000123456, "0.0001235"),
        (-2.5, "−2.5"), (3e-9, "3e−9"), (1.25e12, "1.25e12"),
    ],
)  # fmt: skip
def test_numbers_for_people(value, said):
    assert number(value) == said


def test_values_lie_at_their_height_and_gaps_stay_gaps():
    chart = draw("c", Family("x"), [line([0.0, 10.0, None, 5.0])], 30)
    path = chart.lines[0].path
    low, high, middle = heights(path)
    assert path.count("M") == 2 and low == BOTTOM and TOP < high < TOP + 12
    assert middle == pytest.approx((low + high) / 2, abs=0.1)
    assert path.startswith(f"M{LEFT}.0 ") and f"L{LEFT + (RIGHT - LEFT) / 3:.1f} " in path
    assert chart.lines[0].summary == [
        "0 at step 0", "0 at step 0", "10 at step 10", "5 at step 30",
    ]  # fmt: skip
    assert chart.data["lines"] == [{"x": [0, 10, 20, 30], "y": [0.0, 10.0, None, 5.0]}]


def test_a_scale_is_logarithmic_where_values_span_much_and_never_below_zero():
    falling = [10 ** (2 - i / 25) for i in range(100)]
    chart = draw("c", LOSS, [line(falling)], 990)
    assert "logarithmic" in chart.notes and chart.data["y"][2] == 1
    path = heights(chart.lines[0].path)
    assert path[40] - path[39] == pytest.approx(path[90] - path[89], abs=0.21)
    assert "logarithmic" not in draw("c", Family("PSNR", "dB"), [line(falling)], 990).notes
    assert "logarithmic" not in draw("c", LOSS, [line([-1.0, *falling])], 1000).notes


def test_a_spike_neither_flattens_the_rest_nor_is_it_hidden():
    values = [1 + 0.1 * (i % 5) for i in range(300)]
    calm = draw("c", LOSS, [line(values)], 3000)
    values[150] = 1000.0
    spiked = draw("c", LOSS, [line(values)], 3000)
    assert spiked.notes == ["values up to 1,000 lie beyond the frame"] and not calm.notes
    assert spiked.data["y"][1] < 3
    assert min(heights(spiked.lines[0].path)) > TOP  # the median does not see it
    assert min(heights(spiked.lines[0].pale)) < -1000  # beyond the frame, which cuts it
    assert spiked.lines[0].summary[2] == "1,000 at step 1,500"


def test_a_thinned_curve_shows_the_whole_range():
    chart = draw("c", LOSS, [line([i % 2 + 1.0 for i in range(5000)])], 50_000)
    [drawn] = chart.lines
    assert drawn.summary[3].startswith("1.5 near step 49,9")
    assert (
        drawn.pale.count("V") == drawn.pale.count("M") == len(chart.data["lines"][0]["x"]) <= 1000
    )
    top, bottom = re.match(r"M[\d.]+ ([\d.]+)V([\d.]+)", drawn.pale).groups()
    assert float(bottom) - float(top) > 80


@pytest.mark.parametrize("values", [[0.0], [5.0] * 3, [-3.0], [1e-30, 2e-30], [1e99, -1e99], []])
def test_any_values_can_be_drawn(values):
    chart = draw("c", LOSS, [line(values)], 0)
    assert (chart is None) == (values == [])
    if chart:
        assert len(chart.y_ticks) >= 2 and all(TOP - 1 <= y <= BOTTOM for y, _ in chart.y_ticks)
        assert all(TOP - 1 <= y <= BOTTOM for y in heights(chart.lines[0].path))


def test_curves_lie_together_that_are_of_one_kind():
    trained = ["lr_G", "lr_D", "img_per_s", "D_A", "G_A", "D_B", "G_B", "odd", "idt_A"]
    evaluated = ["psnr_B", "psnr_A", "input_psnr_B", "fid_AtoB", "mine"]
    found = [(f.title, [d.name for d in drawn]) for _, f, drawn in families(trained, evaluated)]
    assert found == [
        ("FID", ["fid_AtoB"]) if title == "FID" else (title, names)
        for title, names in [
            ("mine", ["mine"]),
            ("FID", ["fid_AtoB"]),
            ("PSNR", ["psnr_A", "psnr_B", "input_psnr_B"]),
            ("Generator", ["G_A", "G_B"]),
            ("Discriminator", ["D_A", "D_B"]),
            ("Identity", ["idt_A"]),
            ("odd", ["odd"]),
            ("Learning rate", ["lr_G", "lr_D"]),
            ("Speed", ["img_per_s"]),
        ]
    ]
    psnr = next(drawn for _, f, drawn in families([], evaluated) if f.title == "PSNR")
    assert [(d.hue, d.dash) for d in psnr] == [(0, 0), (1, 0), (1, 1)]
    assert stem_of("fid_AtoB") == ("fid", "AtoB") and stem_of("A_B") == ("A_B", "")


def test_dcgan_has_its_own_charts():
    found = [f.title for _, f, _ in families(["D", "G", "D_x", "D_G_z1", "D_G_z2"], ["swd"])]
    assert found == [
        "Sliced Wasserstein distance", "Generator", "Discriminator", "What the discriminator says",
    ]  # fmt: skip


def test_speed_begins_at_zero():
    assert draw("c", SPEED, [line([18.0, 19.0], "img_per_s")], 10).data["y"][0] == 0


def test_the_median_is_that_of_its_window():
    values = [float((i * 37) % 101) for i in range(400)]
    reach = 400 // 40 // 2
    got = charts.smoothed(values)
    for i in (0, 3, 200, 399):
        window = sorted(values[max(0, i - reach) : i + reach + 1])
        half = len(window) // 2
        wanted = window[half] if len(window) % 2 else (window[half - 1] + window[half]) / 2
        assert got[i] == wanted
    values[50:60] = [None] * 10
    assert (
        charts.smoothed(values)[50:60] == [None] * 10 and None not in charts.smoothed(values)[60:]
    )
