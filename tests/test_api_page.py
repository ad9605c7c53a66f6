"""docs/api.md: its code runs as it stands there, from top to bottom, and does what is said."""

import re

import numpy as np
import pytest
import torch

import fastcyclegan
from house_rules import ROOT

PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_every_name_of_the_package_is_there_and_on_the_page():
    for name in fastcyclegan.__all__:
        assert getattr(fastcyclegan, name) is not None
        assert f"fastcyclegan.{name}" in PAGE or name == "__version__"
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        _ = fastcyclegan.no_such_name


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A folder to work in, with the run that the page translates with."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "checkpoints/mine/weights"
    folder.mkdir(parents=True)
    net = fastcyclegan.build({"class": "ResnetGenerator", "ngf": 4, "n_blocks": 1})
    for name in ("G_A", "G_B"):
        fastcyclegan.save_network(folder / f"{name}.safetensors", net, step=1)
    return tmp_path


def goes_on_as_if_nothing_had_happened(names):
    """A step of what was saved and loaded is the step of what was not, bit for bit."""
    sampler = names["sampler"]
    for model in (names["model"], names["later"]):
        model.set_lr(1e-4)
        fastcyclegan.fused_step(model, *sampler.batch(4), sampler.numbers(4))
    for name, net in names["networks"].items():
        again = names["later"].networks[name].state_dict()
        assert all(torch.equal(x, again[key]) for key, x in net.state_dict().items())


def test_the_code_of_the_page_runs_and_does_what_it_says(trained, monkeypatch):
    monkeypatch.setitem(fastcyclegan.TRACKERS, "table", None)  # so that it goes again
    kinds, blocks = zip(*BLOCK.findall(PAGE), strict=True)
    assert set(kinds) == {"python"} and len(blocks) >= 5
    names = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"api.md, block {number + 1}", "exec"), names)
        if "later = " in block:
            goes_on_as_if_nothing_had_happened(names)

    assert names["fake"].shape == (2, 3, 64, 48)
    assert names["zebras"].shape == (2, 45, 63, 3) and names["zebras"].dtype == np.uint8
    assert names["losses"].shape == (8,) and names["losses"].isfinite().all()
    saved, now = names["trained"].state_dict(), names["networks"]["G_A"].state_dict()
    assert names["metadata"]["step"] == 4 and saved.keys() == now.keys()
    # the second loop has gone on from what the first one saved
    assert not torch.equal(saved["model.1.weight"], now["model.1.weight"])
    assert names["values"].shape == (5,) and names["values"].isfinite().all()
    assert names["code"] == 0
    table = (trained / "checkpoints/tracked/table/cycle_A.txt").read_text().split()
    kept = [row for row in names["rows"] if row["kind"] == "train"]
    assert table == [str(x) for row in kept for x in (row["step"], row["cycle_A"])]
    assert [row["step"] for row in kept] == [2, 4]
