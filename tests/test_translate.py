"""The translate command: sizes, orientation, names, places, and what it refuses."""

import os
from pathlib import PurePath
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fastcyclegan import command, translate
from fastcyclegan.data.images import read_image
from fastcyclegan.models import NLayerDiscriminator, ResnetGenerator
from fastcyclegan.models.weights import save_network
from fastcyclegan.translation import Translator


def generator(seed=0, **arguments):
    torch.manual_seed(seed)
    return ResnetGenerator(ngf=4, n_blocks=1, **arguments)


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "G.safetensors"
    save_network(path, generator(), step=1)
    return path


@pytest.fixture
def call(weights, capsys):
    """Run the command; return (exit code, lines on stdout, lines on stderr)."""

    def run(source, output, *words, weights=weights):
        flags = ["--weights", str(weights), "--input", str(source), "--output", str(output)]
        code = command.run(translate.main, [*flags, "--device", "cpu", *words])
        out, err = capsys.readouterr()
        return code, out.splitlines(), err.splitlines()

    return run


def photo(path, height=16, width=16, seed=0, **options):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def tree(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def translated(net, image, dtype=torch.float32):
    """One image, (H, W, C), through the network."""
    return Translator(net.eval(), dtype)(image[None])[0]


class Identity(nn.Module):
    """Hands its input on, after checking that a generator could take it."""

    multiple, smallest, pixel_range = 4, 1, "tanh"
    arch: ClassVar = {"input_nc": 3, "output_nc": 3}

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        assert x.shape[2] % 4 == 0 and x.shape[3] % 4 == 0 and min(x.shape[2:]) >= 8
        return x


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (5, 3), (16, 16), (17, 13), (64, 30), (250, 31)])
def test_any_size_comes_back_pixel_for_pixel_through_an_identity(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    assert np.array_equal(translated(Identity(), image), image)


@pytest.mark.filterwarnings("error")
def test_views_of_arrays_are_taken_as_they_look():
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 20, 3), dtype=np.uint8)
    images.flags.writeable = False
    translator = Translator(Identity())
    for view in (images, images[..., ::-1], images[:, ::-1], images[:, :, :16]):
        assert np.array_equal(translator(view), view)


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (17, 13), (33, 64)])
def test_a_real_generator_takes_any_size(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    out = translated(generator(output_nc=1), image)
    assert out.shape == (*size, 1) and out.dtype == np.uint8


def test_the_pixels_are_those_of_the_network_rounded_to_nearest():
    net = generator()
    image = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    with torch.no_grad():
        real = torch.from_numpy(image).permute(2, 0, 1)[None].double() / 127.5 - 1
        fake = net.double()(real)[0].permute(1, 2, 0).numpy()
    error = translated(net.float(), image) - (fake + 1) * 127.5
    assert np.abs(error).max() <= 0.5 + 1e-3
    assert np.abs(error).max() > 0.4


def test_the_margin_is_a_reflection():
    seen = []

    class Spy(Identity):
        def forward(self, x):
            seen.append(x)
            return x

    image = np.random.default_rng(0).integers(0, 256, (18, 17, 3), dtype=np.uint8)
    translated(Spy(), image)
    [x] = seen
    assert x.shape == (1, 3, 20, 20)
    assert torch.equal(x[:, :, 18:], x[:, :, [16, 15]])
    assert torch.equal(x[:, :, :, 17:], x[:, :, :, [15, 14, 13]])


def test_one_image_to_one_file_of_the_named_kind(call, tmp_path):
    source = photo(tmp_path / "in.png", 18, 21)
    target = tmp_path / "new" / "out.jpg"
    assert call(source, target) == (0, [f"wrote {target}"], [])
    with Image.open(target) as image:
        assert (image.format, image.size) == ("JPEG", (21, 18))
    assert tree(tmp_path / "new") == ["out.jpg"]


def test_one_image_into_a_folder(call, tmp_path):
    source = photo(tmp_path / "in.jpg")
    (tmp_path / "there").mkdir()
    assert call(source, tmp_path / "there")[0] == 0
    assert call(source, f"{tmp_path}/made/")[0] == 0
    assert tree(tmp_path / "there") == tree(tmp_path / "made") == ["in.png"]


def test_exif_is_obeyed(call, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = photo(tmp_path / "turned.png", 16, 20, exif=exif)
    upright = tmp_path / "upright.png"
    Image.fromarray(np.rot90(np.asarray(Image.open(turned)), -1)).save(upright)
    for name in ("turned", "upright"):
        assert call(tmp_path / f"{name}.png", tmp_path / f"{name}_out.png")[0] == 0
    outputs = [read_image(tmp_path / f"{n}_out.png", 3) for n in ("turned", "upright")]
    assert outputs[0].shape == (20, 16, 3)
    assert np.array_equal(*outputs)


def test_transparency_lies_on_the_chosen_colour(call, tmp_path):
    # Half of it opaque: instance normalisation would make any two uniform images equal.
    clear = Image.new("RGBA", (16, 16), (200, 30, 30, 0))
    clear.paste((200, 90, 30, 255), (0, 0, 8, 16))
    clear.save(tmp_path / "clear.png")
    outputs = {}
    for colour in ("white", "black"):
        opaque = Image.new("RGB", (16, 16), colour)
        opaque.paste((200, 90, 30), (0, 0, 8, 16))
        opaque.save(tmp_path / "opaque.png")
        call(tmp_path / "clear.png", tmp_path / "a.png", "--alpha", colour, "--overwrite")
        call(tmp_path / "opaque.png", tmp_path / "b.png", "--overwrite")
        outputs[colour] = (tmp_path / "a.png").read_bytes()
        assert outputs[colour] == (tmp_path / "b.png").read_bytes()
    assert outputs["white"] != outputs["black"]


def test_grey_generators_read_and_write_grey(call, tmp_path):
    path = tmp_path / "grey.safetensors"
    save_network(path, generator(input_nc=1, output_nc=1), step=1)
    colour = photo(tmp_path / "colour.png")
    refused(call(colour, tmp_path / "out.png", weights=path), colour, "is in colour")
    Image.open(colour).convert("L").convert("RGB").save(tmp_path / "in.png")
    assert call(tmp_path / "in.png", tmp_path / "out.png", weights=path)[0] == 0
    with Image.open(tmp_path / "out.png") as image:
        assert image.mode == "L"


def test_a_folder_keeps_its_structure_and_bad_images_do_not_stop_it(call, tmp_path):
    source, output = tmp_path / "in", tmp_path / "out"
    photo(source / "a.jpg", 18, 22, seed=1)
    photo(source / "deep" / "er" / "b.PNG", 4, 5, seed=2)
    (source / "broken.png").write_bytes(b"no image")
    whole = photo(tmp_path / "whole.png", 64, 64).read_bytes()
    (source / "cut.png").write_bytes(whole[: len(whole) // 2])
    (source / "notes.txt").write_text("x")
    code, out, err = call(source, output)
    told, _, pace = out[0].rpartition(", ")
    assert (code, len(out), told) == (0, 1, f"wrote 2 of 4 images to {output}")
    assert pace.endswith(" img/s") and float(pace.split()[0]) > 0
    assert tree(output) == ["a.png", "deep/er/b.png"]
    assert read_image(output / "a.png", 3).shape == (18, 22, 3)
    assert [line.split(": ")[0] for line in err] == [
        str(source / "broken.png"),
        str(source / "cut.png"),
    ]
    alone = tmp_path / "alone.png"
    call(source / "a.jpg", alone)
    assert alone.read_bytes() == (output / "a.png").read_bytes()


def test_a_folder_without_readable_images_gives_2(call, tmp_path):
    (tmp_path / "in").mkdir()
    code, out, err = call(tmp_path / "in", tmp_path / "out")
    assert (code, out, len(err)) == (2, [], 1) and "no images" in err[0]
    (tmp_path / "in" / "a\nb.png").write_bytes(b"no image")
    code, out, err = call(tmp_path / "in", tmp_path / "out")
    assert (code, out, len(err)) == (2, [], 2) and "none of the 1 images" in err[1]
    assert not (tmp_path / "out").exists()


def test_same_stems_get_distinct_outputs(call, tmp_path):
    for seed, name in enumerate(("a.jpg", "a.png", "b.png")):
        photo(tmp_path / "in" / name, seed=seed)
    assert call(tmp_path / "in", tmp_path / "out")[0] == 0
    assert tree(tmp_path / "out") == ["a.jpg.png", "a.png.png", "b.png"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["x/a.jpg", "y/a.png"], ["x/a.png", "y/a.png"]),
        (["A.jpg", "a.jpg"], ["A.jpg.png", "a.jpg_.png"]),
        (["a.jpg", "a.png", "a.jpg.webp"], ["a.jpg_.png", "a.png.png", "a.jpg.png"]),
        (["a.b.jpg", "a.c.jpg"], ["a.b.png", "a.c.png"]),
    ],
)
def test_output_names(names, expected):
    assert translate.output_names([PurePath(n) for n in names]) == [PurePath(n) for n in expected]


def refused(result, *parts):
    code, out, err = result
    assert (code, out, len(err)) == (2, [], 1)
    assert all(part in err[0] for part in ("error: ", *map(str, parts)))


def test_outputs_that_would_touch_the_input_are_refused(call, tmp_path):
    source = photo(tmp_path / "in" / "sub" / "a.png").parent.parent
    before = (source / "sub" / "a.png").read_bytes()
    link = tmp_path / "link"
    link.symlink_to(source)
    for output in (source, source / "sub", source / "new", link, tmp_path / "x" / ".." / "in"):
        refused(call(source, output), "--output")
    image = source / "sub" / "a.png"
    for output in (image, link / "sub" / "a.png", source / "sub"):
        refused(call(image, output), "--output", "a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").symlink_to(source / "sub")
    refused(call(source, tmp_path / "out"), "--output", "a.png")
    (source / "linked.png").symlink_to(photo(tmp_path / "other" / "linked.png"))
    refused(call(source, tmp_path / "other"), "--output", "linked.png")
    assert image.read_bytes() == before and tree(source) == ["linked.png", "sub/a.png"]


def test_other_places_are_refused_by_name(call, tmp_path):
    source = photo(tmp_path / "in" / "a.png")
    refused(call(tmp_path / "no.png", tmp_path / "o.png"), "--input", "no.png", "does not exist")
    refused(call(source.parent, source), "--output", "is a file")
    refused(call(source, tmp_path / "o"), "--output", "suffix")
    refused(call(source, tmp_path / "o.gif"), "o.gif", "suffix")
    refused(call(source, source / "o.png"), "--output", "a.png")
    (tmp_path / "b\nd.png").write_bytes(b"")
    refused(call(tmp_path / "b\nd.png", tmp_path / "o.png"), "b\\nd.png", "empty")


def test_a_full_disk_stops_at_once_in_one_line(call, tmp_path, monkeypatch):
    for name in ("a.png", "b.png"):
        photo(tmp_path / "in" / name)

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    refused(call(tmp_path / "in", tmp_path / "out"), "No space left")
    assert tree(tmp_path / "out") == []


def test_a_run_folder_and_the_direction(call, tmp_path):
    source, run = photo(tmp_path / "in.png"), tmp_path / "run"
    (run / "weights").mkdir(parents=True)
    outputs = {}
    for seed, (name, words) in enumerate((("G_A", []), ("G_B", ["--direction", "BtoA"]))):
        file = run / "weights" / f"{name}.safetensors"
        save_network(file, generator(seed), step=1)
        assert call(source, tmp_path / "file.png", "--overwrite", weights=file)[0] == 0
        assert call(source, tmp_path / "run.png", "--overwrite", *words, weights=run)[0] == 0
        outputs[name] = (tmp_path / "run.png").read_bytes()
        assert outputs[name] == (tmp_path / "file.png").read_bytes()
    assert outputs["G_A"] != outputs["G_B"]


def test_what_exists_is_kept_unless_overwrite_is_asked_for(call, tmp_path):
    source, output = photo(tmp_path / "in/sub/1.png"), tmp_path / "in"
    mine = photo(tmp_path / "in/1.png", seed=7)
    before = mine.read_bytes()
    code, out, _ = call(source.parent, output)
    assert code == 0 and "1 images exist already: --overwrite replaces them" in out
    refused(call(source, mine), mine, "--overwrite")
    assert mine.read_bytes() == before
    assert call(source.parent, output, "--overwrite")[0] == 0
    assert mine.read_bytes() != before


def test_a_folder_that_is_done_but_for_a_broken_file_is_done(call, tmp_path):
    photo(tmp_path / "in/a.png")
    (tmp_path / "in/broken.png").write_bytes(b"no image")
    assert call(tmp_path / "in", tmp_path / "out")[0] == 0
    code, out, err = call(tmp_path / "in", tmp_path / "out")
    told = f"wrote 0 of 1 images to {tmp_path / 'out'}"
    assert (code, out) == (0, ["1 images exist already: --overwrite replaces them", told])
    assert len(err) == 1 and "broken.png" in err[0]
    code, out, err = call(tmp_path / "in", tmp_path / "out", "--overwrite")
    assert code == 0 and out[-1].startswith("wrote 1 of 2 images")


def test_weights_that_do_not_fit_are_refused(call, weights, tmp_path):
    source = photo(tmp_path / "in.png")
    discriminator = tmp_path / "D_A.safetensors"
    save_network(discriminator, NLayerDiscriminator(ndf=4), step=1)
    output = tmp_path / "out.png"
    refused(call(source, output, weights=discriminator), discriminator, "not a generator")
    refused(call(source, output, weights=tmp_path / "no"), tmp_path / "no", "give a run folder")
    refused(call(source, output, "--direction", "AtoB"), "--direction", weights)
    refused(call(source, output, "--direction", "up"), "--direction", "AtoB")
    refused(call(source, output, "--device", "gpu"), "--device gpu")
    assert not output.exists()


def test_outputs_do_not_leave_their_folder_through_a_link(call, tmp_path):
    photo(tmp_path / "in" / "sub" / "a.png")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").symlink_to(tmp_path / "elsewhere")
    for words in ([], ["--overwrite"]):
        refused(call(tmp_path / "in", tmp_path / "out", *words), "--output", "by a link")
    (tmp_path / "out" / "sub").unlink()
    (tmp_path / "out" / "sub").mkdir()
    (tmp_path / "out" / "sub" / "a.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    assert call(tmp_path / "in", tmp_path / "out", "--overwrite")[0] == 0
    assert tree(tmp_path / "elsewhere") == []
    assert not (tmp_path / "out" / "sub" / "a.png").is_symlink()
