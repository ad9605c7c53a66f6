"""The page of a run: what is in it, what it costs to write it again, and that data stay text."""

import base64
import html
import json
import re
import zlib

import pytest
import torch

from fastcyclegan.models import NLayerDiscriminator
from fastcyclegan.runs.best import Best
from fastcyclegan.runs.checkpoint import take_snapshot, write_checkpoint
from fastcyclegan.runs.metrics import MetricsLog
from fastcyclegan.runs.report import page as pages
from fastcyclegan.runs.report.comparison import compare
from fastcyclegan.runs.report.facts import MAX_CHECKPOINTS
from fastcyclegan.runs.report.page import MAX_BYTES, RunPage
from fastcyclegan.runs.report.pictures import BUDGET_BYTES, MAX_PICTURES, Pictures
from report_runs import make_preview, make_run


def written(folder) -> str:
    page = RunPage(folder)
    page.refresh()
    return page.html()


def test_a_page_has_everything_that_the_run_folder_has(tmp_path):
    folder = make_run(tmp_path / "mine", lr=0.001)
    folder.write_quarantine([(tmp_path / "bad.jpg", "empty file")])
    MetricsLog(folder.metrics).write("event", 40, event="interrupted", signal=15)
    text = html.unescape(written(folder))
    for said in (
        "<h1>mine</h1>", "CycleGAN, resnet_9blocks, 256 px, batch 1, bf16", "step 40 of 80",
        "--lr</th><td>0.001</td>", "bad.jpg</th><td>empty file", "interrupted: signal 15",
        "a GPU", ">psnr_B<", "20.5", "None yet.", ">cycle_A<",
    ):  # fmt: skip
        assert said in text, said
    assert text.count('class="chart"') == 7 and text.count("<img ") == 4
    assert len(re.findall(r'data-step="(\d+)"', text)) == 4


def test_nothing_is_fetched_and_only_our_script_runs(tmp_path):
    text = written(make_run(tmp_path / "mine"))
    assert not re.search(r"""(src|href|action|url)\s*[=(]\s*["']?(?!data:|#)[a-z/]""", text)
    policy = html.unescape(re.search(r'Policy" content="([^"]+)"', text)[1])
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy and "style=" not in text
    [script] = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = pages.hashlib.sha256(script.encode()).digest()
    assert f"script-src 'sha256-{base64.b64encode(digest).decode()}'" in policy


HOSTILE = '</script><script>alert(1)</script>"><img src=x onerror=alert(2)>{{ 7*7 }}\u202e\n\udcff'


def test_hostile_names_and_values_stay_text(tmp_path):
    folder = make_run(tmp_path / "<b>&x", name=HOSTILE, dataroot=HOSTILE, init_from=[HOSTILE])
    folder.write_quarantine([(tmp_path / HOSTILE, HOSTILE)])
    config = folder.read_config()
    folder.update_config(
        version=HOSTILE, machine={HOSTILE: HOSTILE}, options={"precision": HOSTILE}
    )
    log = MetricsLog(folder.metrics)
    log.write("event", 1, event=HOSTILE, **{HOSTILE: HOSTILE})
    name = "</script><script>alert(3)</script>"
    log.write("train", 41, **{name: 1.0})
    log.write("eval", 41, **{name + "_A": 1.0})
    for text in (written(folder), compare([folder.root, make_run(tmp_path / "other").root])):
        text.encode()
        assert text.count("<script") == text.count("</script") == 2
        assert "<img src=x" not in text and "<b>" not in text and "alert(3)<" not in text
        assert "\u202e" not in text and "{{ 7*7 }}" in html.unescape(text)
        data = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1]
        assert json.loads(data)["last"] == 41
    assert config["train"]["name"] == HOSTILE


def test_rewriting_reads_what_is_new_and_nothing_else(tmp_path):
    """Ten times the rows and the pictures behind it: the next rewriting costs the same."""
    costs = []
    for i, length in enumerate((300, 3000)):
        folder = make_run(tmp_path / str(i), steps=length, previews=length // 10)
        page = RunPage(folder)
        page.refresh()
        before = page.history.rows, page.history.bytes, page.pictures.read
        MetricsLog(folder.metrics).write("train", 10**6, G_A=0.5)
        make_preview(folder, 10**6)
        page.refresh()
        after = page.history.rows, page.history.bytes, page.pictures.read
        costs.append([b - a for a, b in zip(before, after, strict=True)])
    assert costs[0] == costs[1] and costs[0][0] == costs[0][2] == 1


def test_a_page_of_everything_at_its_most_is_below_ten_megabytes(tmp_path, monkeypatch):
    most = "image/webp", b"x" * (BUDGET_BYTES // MAX_PICTURES)
    monkeypatch.setattr(Pictures, "_small", lambda self, image: most)
    folder = make_run(tmp_path / "big", steps=1, previews=0, name="x" * 10**6)
    rows = [
        {"kind": "train", "step": s} | {f"q{i}": (s * 7919 + i) % 997 / 7 for i in range(60)}
        for s in range(1, 1990)
    ]
    folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step in range(1, MAX_PICTURES + 1):
        make_preview(folder, step)
    folder.write_quarantine([(tmp_path / f"{i}{'y' * 400}", "z" * 400) for i in range(500)])
    page = RunPage(folder)
    page.refresh()
    size = page.write().stat().st_size
    assert 8_000_000 < size <= MAX_BYTES
    assert len(page.pictures.shown) == MAX_PICTURES and page.history.crowded
    assert page.quarantine.count == 500 and len(page.quarantine.files) == 100
    assert 5_000_000 < len(compare([folder.root] * 4).encode()) <= MAX_BYTES


def test_pictures_are_made_once_and_anew_when_they_change(tmp_path):
    folder = make_run(tmp_path / "mine", previews=3)
    pictures = Pictures(folder.previews)
    for _ in range(3):
        pictures.refresh()
    assert pictures.read == 3 and [p.step for p in pictures.shown] == [13, 26, 40]
    before = pictures.shown[1].url
    make_preview(folder, 26, seed=99, size=(50, 90))
    pictures.refresh()
    assert pictures.read == 4 and pictures.shown[1].url != before
    pictures.refresh(last_step=30)
    assert [p.step for p in pictures.shown] == [13, 26] and pictures.read == 4


def test_small_pictures_keep_every_pixel_and_large_ones_fit(tmp_path):
    folder = make_run(tmp_path / "mine", previews=0)
    make_preview(folder, 1)
    make_preview(folder, 2, size=(1500, 1500))
    pictures = Pictures(folder.previews)
    pictures.refresh()
    small, large = (p.url.partition(",") for p in pictures.shown)
    assert small[0] == "data:image/png;base64" and large[0] == "data:image/webp;base64"
    assert len(base64.b64decode(large[2])) <= BUDGET_BYTES // MAX_PICTURES
    (tmp_path / "small.png").write_bytes(base64.b64decode(small[2]))
    from fastcyclegan.data.images import read_image

    assert (read_image(tmp_path / "small.png", 3) == read_image(folder.preview(1), 3)).all()


def test_a_preview_that_is_no_picture_is_left_out(tmp_path):
    folder = make_run(tmp_path / "mine", previews=3)
    folder.preview(26).write_bytes(b"GIF89a")
    folder.preview(40).unlink()
    folder.preview(40).mkdir()
    (folder.previews / "step-x.png").write_bytes(b"")
    text = written(folder)
    assert text.count("<img ") == 1 and "2 could not be read" in text


def test_saved_networks_are_listed_with_why_they_are_kept(tmp_path):
    folder = make_run(tmp_path / "mine")
    net = {"D_A": NLayerDiscriminator(ndf=2)}
    for step in range(1, MAX_CHECKPOINTS + 3):
        tensors = {"x": torch.zeros(1)}
        write_checkpoint(
            folder, take_snapshot(step, net, tensors, {}, milestone=step == 9), keep=14
        )
    assert Best(folder, "psnr", "images").offer(5, 21.25, {"psnr": 21.25}, net, "tanh")
    text = written(folder)
    rows = re.findall(r'class="number">([\d,]+)</th>.*?<td>([^<]+)</td></tr>', text)
    newest = [(str(s), "for good" if s == 9 else "among the newest") for s in range(14, 2, -1)]
    assert rows == [("5", "the best: psnr 21.25"), *newest]
    (folder.best / "state.json").write_text("{}")
    assert "the best" not in written(folder)


@pytest.mark.parametrize("previews", [0, 1])
def test_a_run_that_has_just_begun_has_a_page(tmp_path, previews):
    folder = make_run(tmp_path / "new", steps=1, previews=previews)
    folder.metrics.unlink()
    text = written(folder)
    assert "Nothing has been logged yet." in text and text.count("<img ") == previews


def test_a_config_of_anything_is_shown_as_it_can_be(tmp_path):
    folder = make_run(tmp_path / "odd")
    odd = {"train": [1], "machine": "x", "total_steps": "many", "created": 1e300, "version": None}
    folder.config.write_text(json.dumps(odd))
    assert "step 40" in written(folder)
    assert compare([folder.root, folder.root]).count("<h3><svg") == 2


def test_a_comparison_shows_what_differs(tmp_path):
    runs = [make_run(tmp_path / name, steps, lr=lr) for name, steps, lr in
            (("one", 40, 1e-3), ("two", 80, 1e-4))]  # fmt: skip
    MetricsLog(runs[1].metrics).write("eval", 80, only_here=3.0)
    text = compare([folder.root for folder in runs])
    assert "<h1>2 runs compared</h1>" in text
    row = r"--lr</th><td>0.001</td><td>0.0001</td>"
    assert row in text and "--beta1" not in text
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert data["steps"] == [10, 20, 30, 40, 60, 80]
    per_chart = {c["hues"][0]: len(c["lines"]) for c in data["charts"].values()}
    assert per_chart[0] == 2
    titles = re.findall(r'<h3>([^<]+) <span class="name">([\w]+)</span>', text)
    assert ("Generator", "G_A") in titles and len(titles) == 8 + 0


@pytest.mark.parametrize("body", [[], {"milestone": True}, {"schema": 1, "milestone": [1]}])
def test_a_checkpoint_of_anything_is_no_reason_to_fail(tmp_path, body):
    folder = make_run(tmp_path / "mine")
    path = folder.ckpt / "step-00000005"
    path.mkdir()
    crc = zlib.crc32(json.dumps(body, sort_keys=True).encode())
    (path / "state.json").write_text(json.dumps({"crc32": crc, "body": body}))
    assert 'class="number">5</th>' in written(folder)
