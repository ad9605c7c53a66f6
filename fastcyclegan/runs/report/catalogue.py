"""What the numbers of a run mean: which are drawn together, in which unit, on which scale."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count

from fastcyclegan.scores import SCORES

_SIDES = {"A": 0, "AtoB": 0, "B": 1, "BtoA": 1}


@dataclass(frozen=True)
class Family:
    """Quantities that belong into one chart.

    Attributes:
        title, note: what it is called, and what is good to know about it.
        unit: of the vertical axis.
        logarithmic: whether the axis may be, where the values span much.
        zero: whether the axis begins at 0.
    """

    title: str
    unit: str = ""
    note: str = ""
    logarithmic: bool = False
    zero: bool = False


def _loss(title: str, note: str) -> Family:
    return Family(title, "loss", note, logarithmic=True)


_SAYS = Family("What the discriminator says", "probability", "of real images, and of fakes")
LEARNING_RATE = Family("Learning rate", zero=True)
SPEED = Family("Speed", "img/s", zero=True)
# In the order in which they are shown.
_LOSSES = {
    "G": _loss("Generator", "how far the fakes are from passing for real"),
    "D": _loss("Discriminator", "how far it is from telling real and fake apart"),
    "cycle": _loss("Cycle consistency", "L1 of there and back, with its lambda"),
    "idt": _loss("Identity", "L1 of an image of the target domain, with its lambda"),
    "D_x": _SAYS,
    "D_G_z1": _SAYS,
    "D_G_z2": _SAYS,
}
_METRICS = {
    name: Family(title, unit, SCORES[name].meaning, logarithmic)
    for name, title, unit, logarithmic in (
        ("psnr", "PSNR", "dB", False),
        ("ssim", "SSIM", "", False),
        ("fid", "FID", "", True),
        ("kid", "KID", "", False),
        ("swd", "Sliced Wasserstein distance", "", True),
        ("l1", "L1", "", False),
        ("diversity", "Diversity", "", False),
    )
}


@dataclass(frozen=True)
class Drawn:
    """How one quantity is drawn: its name, its colour and its kind of line, from 0 on."""

    name: str
    hue: int
    dash: int


def stem_of(name: str) -> tuple[str, str]:
    """``cycle`` and ``A`` of ``cycle_A``; the side is "" where there is none."""
    words = name.split("_")
    sides = [word for word in words if word in _SIDES]
    stem = "_".join(word for word in words if word not in _SIDES)
    return (stem, sides[0]) if len(sides) == 1 and stem else (name, "")


def family_of(name: str, evaluated: bool) -> Family:
    """What ``name`` belongs to; ``evaluated``: it is from an eval row, not from a train row."""
    stem, _ = stem_of(name)
    if evaluated:
        known = [word for word in stem.lower().split("_") if word in _METRICS]
        return _METRICS[known[-1]] if known else Family(stem)
    if name in ("lr_G", "lr_D"):
        return LEARNING_RATE
    return SPEED if name == "img_per_s" else _LOSSES.get(stem, _loss(stem, ""))


def families(
    trained: Iterable[str], evaluated: Iterable[str]
) -> Iterator[tuple[bool, Family, list[Drawn]]]:
    """The charts of a run: (whether of eval rows, family, its quantities), in a fixed order."""
    yield from ((True, *chart) for chart in _grouped(sorted(evaluated, key=_plainness), True))
    order = [*_LOSSES.values(), None, LEARNING_RATE, SPEED]

    def place(chart: tuple[Family, list[Drawn]]) -> int:
        return order.index(chart[0] if chart[0] in order else None)

    charts = _grouped(trained, False)
    yield from ((False, *chart) for chart in sorted(charts, key=place))


def _plainness(name: str) -> tuple[int, str]:
    # psnr_A before input_psnr_A
    return name.count("_"), name


def _grouped(names: Iterable[str], evaluated: bool) -> list[tuple[Family, list[Drawn]]]:
    charts: dict[Family, list[str]] = {}
    for name in names:
        charts.setdefault(family_of(name, evaluated), []).append(name)
    return [(family, _drawn(names)) for family, names in charts.items()]


def _drawn(names: list[str]) -> list[Drawn]:
    """A colour for each side and a kind of line for each stem; without sides, both for each."""
    stems = list(dict.fromkeys(stem_of(name)[0] for name in names))
    if not any(stem_of(name)[1] for name in names):
        return [Drawn(name, i, i) for i, name in enumerate(names)]
    others = count(len(set(_SIDES.values())))
    return [
        Drawn(name, _SIDES[side] if side else next(others), stems.index(stem))
        for name in names
        for stem, side in [stem_of(name)]
    ]
