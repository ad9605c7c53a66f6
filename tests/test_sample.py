"""The sample command: grids, animations, and what it refuses."""

import weakref

import numpy as np
import pytest
import torch
from PIL import Image

from fastcyclegan import command, device, evaluate, sample, translate
from fastcyclegan.data import images
from fastcyclegan.data.images import to_uint8
from fastcyclegan.models import DCGANGenerator, ResnetGenerator
from fastcyclegan.models.examples import write_pth
from fastcyclegan.models.initialisation import init_weights
from fastcyclegan.models.sampling import fixed_noise, generate
from fastcyclegan.models.weights import save_network
from fastcyclegan.pixel_range import PIXEL_RANGES
from fastcyclegan.steps import compilation


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "G.safetensors", 3)
    return tmp_path


def save(path, channels: int, pixel_range: str = "tanh") -> DCGANGenerator:
    net = DCGANGenerator(6, 4, channels, 16, pixel_range=pixel_range)
    init_weights(net, 0.3, torch.Generator().manual_seed(1))
    save_network(path, net, step=1)
    return net.eval()


def run(*words: str) -> int:
    return command.run(sample.main, ["--weights", "G.safetensors", "--device", "cpu", *words])


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_a_grid_holds_the_samples_of_the_seed(folder, channels, mode):
    net = save(folder / "G.safetensors", channels)
    assert run("--num", "5", "--seed", "7", "--output", "g.png") == 0
    wanted = to_uint8(generate(net, fixed_noise(7, 5, 6))).numpy()
    with Image.open("g.png") as picture:
        assert picture.mode == mode and picture.size == (3 * 18 - 2, 2 * 18 - 2)
        pixels = np.asarray(picture).reshape(34, 52, channels)
    for i, image in enumerate(wanted):
        top, left = i // 3 * 18, i % 3 * 18
        assert np.array_equal(pixels[top : top + 16, left : left + 16], image)


def first_image(path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))[:16, :16].astype(int)


@pytest.mark.parametrize(
    ("pixel_range", "foreign"),
    [*((name, False) for name in PIXEL_RANGES), ("tanh", True), ("tanh255", True)],
)
def test_every_pixel_range_is_written_as_bytes(folder, capsys, pixel_range, foreign):
    """Grid and animation; of a .pth the range is what the flag says, and that is told."""
    net = save(folder / "G.safetensors", 3, pixel_range)
    words = ["--num", "1"]
    if foreign:
        write_pth(folder / "netG.pth", net)
        words += ["--weights", "netG.pth", "--pixel_range", pixel_range]
    with torch.no_grad():
        y = net(fixed_noise(0, 1, 6)[..., None, None])[0].permute(1, 2, 0).numpy()
    wanted = np.clip(np.round((y + 1) * 127.5 if pixel_range == "tanh" else y), 0, 255)
    assert wanted.std() > 20
    assert run(*words, "--output", "g.png") == 0
    told = capsys.readouterr().out.splitlines()
    assert np.array_equal(first_image("g.png"), wanted)
    assert run(*words, "--output", "a.webp", "--interpolate", "--frames", "4") == 0
    assert run(*words, "--output", "g.webp") == 0
    assert np.abs(first_image("a.webp") - first_image("g.webp")).mean() < 2  # both are compressed
    capsys.readouterr()
    assert len(told) == 1 + foreign
    if foreign:
        assert told[0].startswith("netG.pth: DCGANGenerator (nz 6, ")
        assert told[0].endswith(f"it does not tell, and assumed is pixel_range {pixel_range}")
        assert run("--weights", "netG.pth", "--output", "t.png") == 0
        assert "assumed is pixel_range tanh" in capsys.readouterr().out
    else:
        other = "tanh" if pixel_range != "tanh" else "tanh255"
        assert run("--pixel_range", other, "--output", "no.png") == 2
        assert f"has {pixel_range}; leave it out" in capsys.readouterr().err


def test_an_animation_begins_with_the_samples_and_comes_back(folder):
    assert run("--num", "4", "--output", "a.webp", "--interpolate", "--frames", "16") == 0
    assert run("--num", "4", "--output", "g.webp") == 0
    with Image.open("a.webp") as movie:
        assert movie.n_frames == 16 and movie.info["loop"] == 0
        frames = []
        for i in range(16):
            movie.seek(i)
            frames.append(np.asarray(movie.convert("RGB")).astype(float))
    first = np.asarray(Image.open("g.webp").convert("RGB")).astype(float)
    steps = [np.abs(a - b).mean() for a, b in zip(frames, [*frames[1:], frames[0]], strict=True)]
    assert np.abs(frames[0] - first).mean() < 2  # both are compressed
    # no step, the last one home included, is a jump; four steps away it is another picture
    assert max(steps) < 3 * np.median(steps)
    assert np.abs(frames[0] - frames[4]).mean() > max(steps)


def test_the_walk_is_on_great_circles(folder, monkeypatch):
    """At an even pace: half way is as far from both ends as noise is long, not nearer to 0."""
    seen = []
    monkeypatch.setattr(sample, "_grid", lambda net, z: seen.append(z) or np.zeros((2, 2, 3), "u1"))
    words = ["--num", "3", "--seed", "5", "--interpolate", "--frames", "16", "--output", "a.webp"]
    assert run(*words) == 0 and len(seen) == 16
    points = fixed_noise(5, 12, 6).view(4, 3, 6)
    for frame, z in enumerate(seen):
        leg, share = frame // 4, frame % 4 / 4
        ends = points[leg], points[(leg + 1) % 4]
        lengths = [x.norm(dim=1) for x in (*ends, z)]
        torch.testing.assert_close(lengths[2], (1 - share) * lengths[0] + share * lengths[1])
        whole, part = (
            torch.nn.functional.cosine_similarity(ends[0], x).clamp(-1, 1).acos()
            for x in (ends[1], z)
        )
        torch.testing.assert_close(part, share * whole, rtol=1e-3, atol=1e-3)  # arc cosine near 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--output g", "--output g: give it a suffix"),
        ("--output g.gif --interpolate", "--interpolate writes .webp files"),
        ("--output g.xyz", "g.xyz: give it a suffix such as .png"),
        ("--output no/g.png", "there is no folder no"),
        ("--output R.safetensors", "--output R.safetensors exists: --overwrite replaces it"),
        ("--output g.png --num 0", "--num 0: must be at least 1"),
        ("--output g.png --weights none.safetensors", "none.safetensors does not exist"),
        (
            "--output g.png --weights R.safetensors",
            "translates images: use python -m",
        ),
        ("--output g.png --weights five.safetensors", "has output_nc 5"),
    ],
)
def test_bad_input_is_one_line(folder, capsys, words, said):
    save_network(folder / "R.safetensors", ResnetGenerator(ngf=2, n_blocks=1), step=1)
    save(folder / "five.safetensors", 5)
    before = (folder / "G.safetensors").read_bytes()
    assert run(*words.split()) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert (folder / "G.safetensors").read_bytes() == before


def test_weights_are_never_replaced(folder, capsys):
    assert run("--output", "G.safetensors", "--overwrite") == 2
    assert "--output would replace --weights" in capsys.readouterr().err


COMMANDS = {
    "sample": (sample, "--output g.png"),
    "translate": (translate, "--input i.png --output o.png"),
    "evaluate": (evaluate, "--real ."),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_gpu_without_a_compiler_is_one_line(folder, monkeypatch, capsys, name):
    """Batch norms run kernels there, in eval mode too."""
    monkeypatch.setattr(device, "resolve_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(compilation, "missing_compiler", lambda device: "triton is not installed")
    Image.new("RGB", (16, 16)).save("i.png")
    module, words = COMMANDS[name]
    assert command.run(module.main, ["--weights", "G.safetensors", *words.split()]) == 2
    said = "triton is not installed, which the kernels need; or use --device cpu"
    assert said in capsys.readouterr().err


def test_translate_sends_a_dcgan_here(folder, capsys):
    Image.new("RGB", (16, 16)).save("i.png")
    words = ["--weights", "G.safetensors", "--input", "i.png", "--output", "o.png"]
    assert command.run(translate.main, words) == 2
    assert "makes images from noise: use python -m fastcyclegan.sample" in capsys.readouterr().err


def test_one_frame_at_a_time_is_in_memory(tmp_path, monkeypatch):
    """However long the animation is; and each frame is where it belongs."""
    pictures, held, as_picture = [], [], images._as_picture

    def counted(array):
        picture = as_picture(array)
        pictures.append(weakref.ref(picture))
        held.append(sum(ref() is not None for ref in pictures))
        return picture

    monkeypatch.setattr(images, "_as_picture", counted)
    frames = (np.full((16, 24, 3), 30 * i, np.uint8) for i in range(8))
    images.write_animation(tmp_path / "a.webp", frames, 8, 100)
    assert len(held) == 8 and max(held) == 2  # the one that is shown, and the next
    with Image.open(tmp_path / "a.webp") as movie:
        assert movie.n_frames == 8
        for i in range(8):
            movie.seek(i)
            assert np.abs(np.asarray(movie.convert("RGB")).astype(int) - 30 * i).max() <= 3
