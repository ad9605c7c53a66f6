"""The ops in NumPy and fp64, from their definitions: what the references themselves are held to.

Each takes the arrays and options of the op's public function by name, and the gradients of its
outputs, and returns outputs and gradients by name: ``y``, and ``dx`` for the input ``x``.
"""

from collections.abc import Sequence

import numpy as np

PIXELS = (2, 3)
Arrays = dict[str, np.ndarray]


def pad(x: np.ndarray, width: int) -> np.ndarray:
    """Reflection padding of (N, C, H, W)."""
    return np.pad(x, ((0, 0), (0, 0), (width, width), (width, width)), mode="reflect")


def fold(dy: np.ndarray, width: int) -> np.ndarray:
    """Gradient of reflection padding: every pixel of dy added where it came from."""
    n, c, height, width_y = dy.shape
    h, w = height - 2 * width, width_y - 2 * width
    places = pad(np.arange(h * w).reshape(1, 1, h, w), width).ravel()
    dx = np.zeros((n, c, h * w))
    np.add.at(dx, (slice(None), slice(None), places), dy.reshape(n, c, -1))
    return dx.reshape(n, c, h, w)


def reflection_pad(arrays: Arrays, options: dict, dys: list[np.ndarray]) -> Arrays:
    width = options["pad"]
    return {"y": pad(arrays["x"], width), "dx": fold(dys[0], width)}


def _act(z: np.ndarray, act: str, slope: float) -> np.ndarray:
    return {"none": z, "relu": np.maximum(z, 0), "leaky_relu": np.where(z > 0, z, slope * z)}[act]


def _act_grad(z: np.ndarray, g: np.ndarray, act: str, slope: float) -> np.ndarray:
    low = {"none": 1.0, "relu": 0.0, "leaky_relu": slope}[act]
    return np.where(z > 0, g, low * g)


def _norm_grads(xhat, std, g, weight, axes) -> Arrays:
    """The formula of the paper; ``g`` is the gradient in front of the activation."""
    dxhat = g * weight
    means = (t.mean(axes, keepdims=True) for t in (dxhat, dxhat * xhat))
    mean_g, mean_gx = means
    return {
        "dx": (dxhat - mean_g - xhat * mean_gx) / std,
        "dweight": (g * xhat).sum((0, 2, 3)),
        "dbias": g.sum((0, 2, 3)),
    }


def _affine(arrays: Arrays) -> tuple[np.ndarray | float, np.ndarray | float]:
    """Weight and bias as what multiplies and is added to (N, C, H, W)."""
    weight, bias = arrays.get("weight"), arrays.get("bias")
    return (
        1.0 if weight is None else weight[:, None, None],
        0.0 if bias is None else bias[:, None, None],
    )


def instance_norm(arrays: Arrays, options: dict, dys: list[np.ndarray]) -> Arrays:
    """Also of the one that returns the image without its padding as a second output."""
    x, width = arrays["x"], options.get("pad", 0)
    act = "relu" if options.get("residual_relu") else options.get("act", "none")
    slope = options.get("slope", 0.2)
    std = np.sqrt(x.var(PIXELS, keepdims=True) + 1e-5)
    xhat = (x - x.mean(PIXELS, keepdims=True)) / std
    weight, bias = _affine(arrays)
    z = xhat * weight + bias + arrays.get("residual", 0.0)
    y = _act(z, act, slope)
    g = _act_grad(z, fold(dys[0], width) + sum(dys[1:]), act, slope)
    grads = _norm_grads(xhat, std, g, weight, PIXELS) | {"dresidual": g}
    return {"y": pad(y, width), "skip": y} | grads


def philox(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """Philox-4x32-10: four words from four and two."""
    c, k = [np.uint64(x) for x in counter], [np.uint64(x) for x in key]
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [(p1 >> shift) ^ c[1] ^ k[0], p1 & low, (p0 >> shift) ^ c[3] ^ k[1], p0 & low]
        k = [(k[0] + np.uint64(0x9E3779B9)) & low, (k[1] + np.uint64(0xBB67AE85)) & low]
    return [int(x) for x in c]


def _places(arrays: Arrays, options: dict, stored: int) -> list[tuple[int, bool] | None]:
    """For each image where it is stored, and whether something was there; None if it is not."""
    capacity, key = len(arrays["pool"]), (int(arrays["seed"]), options["stream"])
    found: list[tuple[int, bool] | None] = []
    for number in arrays["number"].tolist():
        coin, drawn, *_ = philox((number & 0xFFFFFFFF, number >> 32, 0, 0), key)
        if stored < capacity:
            found.append((stored, False))
            stored += 1
        else:
            found.append((drawn * capacity >> 32, True) if coin >= 2**31 else None)
    return found


def image_pool(arrays: Arrays, options: dict, dys: list[np.ndarray]) -> Arrays:
    """The loop over the images of the batch."""
    pool, y, count = arrays["pool"].copy(), arrays["images"].copy(), int(arrays["count"])
    for k, stored in enumerate(_places(arrays, options, count)):
        if stored is not None:
            place, full = stored
            if full:
                y[k] = pool[place]
            pool[place] = arrays["images"][k]
            count += not full
    return {"y": y, "pool": pool, "count": np.array(count)}


def undo_image_pool(arrays: Arrays, options: dict, dys: list[np.ndarray]) -> Arrays:
    """That loop backwards."""
    pool, count, before = arrays["pool"].copy(), arrays["count"], arrays["before"]
    if arrays["shut"]:
        for k, stored in reversed(list(enumerate(_places(arrays, options, int(before))))):
            if stored is not None:
                place, full = stored
                pool[place] = arrays["out"][k] if full else 0
        count = before
    return {"pool": pool, "count": count}


def augment(arrays: Arrays, options: dict, dys: list[np.ndarray]) -> Arrays:
    """A slice of each image, flipped and scaled."""
    (h, w), windows = options["size"], []
    plan = [arrays[name].tolist() for name in ("offset", "width", "top", "left", "flip")]
    for offset, width, top, left, flip in zip(*plan, strict=True):
        rows = arrays["pixels"][offset + top * width :][: h * width].reshape(h, width, -1)
        window = rows[:, left : left + w]
        windows.append(window[:, ::-1] if flip else window)
    x = np.stack(windows).transpose(0, 3, 1, 2).astype(np.float64)
    x = (x - options.get("zero", 127.5)) * options.get("scale", 2 / 255)
    return {"y": pad(x, options.get("pad", 0))}


def draw_windows(arrays: Arrays, options: dict, dys: list[np.ndarray]) -> Arrays:
    """Place by place, in Python's integers."""
    key, table = (int(arrays["seed"]), options["stream"]), arrays["table"].T.tolist()
    order, rows = arrays.get("order"), []
    for number in arrays["number"].tolist():
        drawn, *words = philox((number & 0xFFFFFFFF, number >> 32, 0, 0), key)
        index = drawn * len(table) >> 32
        if order is not None:
            epoch, place = divmod(number, order.shape[1])
            index = int(order[epoch - int(arrays["first_epoch"])][place]) % len(table)
        offset, height, width = table[index]
        h, w = options["size"] or (height, width)
        top, left = words[0] * (height - h + 1) >> 32, words[1] * (width - w + 1) >> 32
        rows.append((index, offset, width, top, left, options["flip"] and words[2] < 2**31))
    return {"y": np.array(rows, dtype=np.int64).reshape(-1, 6).T}


def batch_norm(arrays: Arrays, options: dict, dys: list[np.ndarray]) -> Arrays:
    x, running, axes = arrays["x"], {}, (0, 2, 3)
    training = options.get("training", True)
    if training:
        mean, var, momentum = x.mean(axes), x.var(axes), options.get("momentum", 0.1)
        for name, new in (("running_mean", mean), ("running_var", x.var(axes, ddof=1))):
            if name in arrays:
                running[name] = (1 - momentum) * arrays[name] + momentum * new
    else:
        mean, var = (running := {k: arrays[k] for k in ("running_mean", "running_var")}).values()
    act, slope = options.get("act", "none"), options.get("slope", 0.2)
    std = np.sqrt(var + 1e-5)[:, None, None]
    xhat = (x - mean[:, None, None]) / std
    weight, bias = _affine(arrays)
    z = xhat * weight + bias
    g = _act_grad(z, dys[0], act, slope)
    grads = _norm_grads(xhat, std, g, weight, axes)
    if not training:
        grads["dx"] = g * weight / std
    return {"y": _act(z, act, slope)} | running | grads
