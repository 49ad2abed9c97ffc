"""Resizing against PIL, OpenCV and torchvision; crops against loops over a table of places; clip counts in numbers."""

import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.crops import CENTER_FIVE, CENTER_TEN, ORDERS, crops_of
from data.grid import ClipGrid
from extract import scaling
from extract.backbones.base import BackboneError
from extract.decode import VideoReader, is_torch_side, parse_resize, target_size
from extract.shim import import_torchvision
from extract.transforms import crop, crop_boxes, resize
from tests.helpers import write_numbered

PIL_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
OTHER_DEVICES = [d for d, there in (("cuda", torch.cuda.is_available()),) if there]


@pytest.fixture(scope="module")
def functional():
    """torchvision's reference code, in Python only; the extra `hub` installs it."""
    try:
        import_torchvision()
    except BackboneError as error:
        pytest.skip(str(error))
    from torchvision.transforms import functional

    return functional


def noise(*shape, seed=0):
    """The hardest picture for a filter: every pixel independent, a part of them black or white."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, shape, dtype=np.uint8)
    return np.where(rng.random(shape) < 0.2, x // 128 * 255, x).astype(np.uint8)


def picture(height, width):
    """Smooth areas of several sizes, one hard edge, a little sensor noise."""
    rng = np.random.default_rng(height + width)
    x = np.zeros((height, width, 3))
    for sigma in (2, 5, 12, 30):
        part = cv2.GaussianBlur(rng.normal(size=x.shape), (0, 0), sigma)
        x += part / part.std() * sigma**0.7
    x = (x - x.min()) / (x.max() - x.min()) * 255
    x[:, width // 2 :] *= 0.5
    return (x + rng.normal(size=x.shape) * 2).clip(0, 255).astype(np.uint8)


def by_pil(frames, width, height, kind):
    """Columns, then rows, in two calls: in one, Pillow 13 turns the order round for some sizes, older ones never do."""
    columns = [Image.fromarray(f).resize((width, f.shape[0]), PIL_FILTERS[kind]) for f in frames]
    return np.stack([np.asarray(image.resize((width, height), PIL_FILTERS[kind])) for image in columns])


# -- resizing ---------------------------------------------------------------------------------------------------------

# (height, width) -> (height, width): the sizes of the reference's table and its videos, then odd ones
SIZES = [
    ((240, 320), (256, 341)),
    ((360, 480), (128, 171)),
    ((480, 856), (256, 456)),
    ((37, 51), (100, 20)),
    ((64, 64), (32, 32)),
    ((7, 9), (56, 44)),
    ((64, 50), (17, 50)),
    ((64, 50), (64, 51)),
    ((3, 200), (3, 2)),
    ((1, 1), (5, 4)),
]


@pytest.mark.parametrize("kind", PIL_FILTERS)
@pytest.mark.parametrize(("old", "new"), SIZES)
def test_integer_scaling_gives_the_bytes_of_pil(old, new, kind):
    frames = noise(1, *old, 3)
    found = scaling.pillow(torch.from_numpy(frames), new[1], new[0], kind)
    np.testing.assert_array_equal(found.numpy(), by_pil(frames, new[1], new[0], kind))


@pytest.mark.parametrize("kind", PIL_FILTERS)
@pytest.mark.parametrize(("old", "new"), SIZES[:3])
def test_one_call_of_pil_gives_these_bytes_where_the_aspect_is_kept(old, new, kind):
    frames = noise(1, *old, 3)
    once = np.asarray(Image.fromarray(frames[0]).resize(new[::-1], PIL_FILTERS[kind]))
    np.testing.assert_array_equal(once, by_pil(frames, new[1], new[0], kind)[0])


@settings(deadline=None, max_examples=60)
@given(*[st.integers(1, 60)] * 4, st.sampled_from(sorted(PIL_FILTERS)))
def test_integer_scaling_gives_the_bytes_of_pil_at_any_size(height, width, h, w, kind):
    frames = noise(2, height, width, 3, seed=height * width)
    found = scaling.pillow(torch.from_numpy(frames), w, h, kind)
    np.testing.assert_array_equal(found.numpy(), by_pil(frames, w, h, kind))


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_integer_scaling_gives_the_bytes_of_opencv(old, new):
    frames = noise(1, *old, 3)
    found = scaling.cv2_linear(torch.from_numpy(frames), new[1], new[0]).numpy()[0]
    wanted = cv2.resize(frames[0], (new[1], new[0]), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(found, wanted)  # OpenCV 4.10 and 5.0


@settings(deadline=None, max_examples=60)
@given(*[st.integers(1, 60)] * 4)
def test_integer_scaling_gives_the_bytes_of_opencv_at_any_size(height, width, h, w):
    frames = noise(2, height, width, 3, seed=height * width)
    found = scaling.cv2_linear(torch.from_numpy(frames), w, h).numpy()
    wanted = np.stack([cv2.resize(f, (w, h), interpolation=cv2.INTER_LINEAR) for f in frames])
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("kind", PIL_FILTERS)
@pytest.mark.parametrize(("old", "new"), SIZES[:3])
def test_resizing_on_a_cpu_is_pils_to_a_grey_level(old, new, kind):
    frames = np.stack([picture(*old), picture(*old)[::-1]])
    found = resize(torch.from_numpy(frames), f"{new[1]}x{new[0]}:pil_{kind}")
    assert found.dtype == torch.uint8
    assert found.is_contiguous()
    off = np.abs(found.numpy().astype(int) - by_pil(frames, new[1], new[0], kind))
    # torch rounds its weights to 16 bits, PIL to 22; a cubic's are larger, and negative ones among them
    assert off.max() <= {"bilinear": 1, "bicubic": 2, "lanczos": 0}[kind]
    assert (off > 0).mean() <= 0.006
    assert (off > 1).mean() <= 1e-5


def test_pil_filters_are_antialiased_and_opencvs_is_not():
    """Stripes of one pixel: antialiasing leaves grey, INTER_LINEAR picks or mixes two of them."""
    stripes = torch.zeros(1, 4, 90, 3, dtype=torch.uint8)
    stripes[:, :, ::2] = 255
    grey = resize(stripes, "18x4:pil_bilinear")[0, 0, 1:-1, 0].float()
    assert grey.sub(127.5).abs().max() < 12
    assert resize(stripes, "18x4:cv2_linear")[0, 0, :, 0].tolist() == [255, 0] * 9


def test_resizing_with_opencv_is_opencv():
    frames = noise(3, 90, 120, 3)
    wanted = np.stack([cv2.resize(f, (171, 128), interpolation=cv2.INTER_LINEAR) for f in frames])
    np.testing.assert_array_equal(resize(torch.from_numpy(frames), "171x128:cv2_linear").numpy(), wanted)


@pytest.mark.parametrize("kind", ["pil_bilinear", "pil_bicubic", "pil_lanczos", "cv2_linear"])
def test_one_channel_is_resized_as_three_equal_ones(kind):
    frames = torch.from_numpy(noise(2, 30, 41, 1))
    three = resize(frames.repeat(1, 1, 1, 3), f"short20:{kind}")
    np.testing.assert_array_equal(resize(frames, f"short20:{kind}").repeat(1, 1, 1, 3).numpy(), three.numpy())


@pytest.mark.parametrize("device", OTHER_DEVICES)
def test_resizing_on_a_gpu_is_pils_and_opencvs(device):
    frames = noise(2, 120, 160, 3)
    sent = torch.from_numpy(frames).to(device)
    for kind in PIL_FILTERS:
        found = resize(sent, f"short64:pil_{kind}").cpu().numpy()
        np.testing.assert_array_equal(found, by_pil(frames, 85, 64, kind))
    wanted = np.stack([cv2.resize(f, (171, 128), interpolation=cv2.INTER_LINEAR) for f in frames])
    np.testing.assert_array_equal(resize(sent, "171x128:cv2_linear").cpu().numpy(), wanted)


# width x height, short side -> width x height as torchvision's Resize says; the decoder's filters round instead
SHORT = [
    ((320, 240), 256, (341, 256), (341, 256)),
    ((240, 320), 256, (256, 341), (256, 341)),
    ((480, 360), 256, (341, 256), (341, 256)),
    ((856, 480), 256, (456, 256), (457, 256)),
    ((1280, 720), 256, (455, 256), (455, 256)),
    ((320, 240), 224, (298, 224), (299, 224)),
    ((1920, 1080), 128, (227, 128), (228, 128)),
    ((256, 256), 224, (224, 224), (224, 224)),
]


@pytest.mark.parametrize(("old", "short", "wanted", "rounded"), SHORT)
def test_the_short_side_rule(functional, old, short, wanted, rounded):
    frames = torch.from_numpy(noise(1, old[1], old[0], 3))
    found = resize(frames, f"short{short}:pil_bilinear")
    assert found.shape == (1, wanted[1], wanted[0], 3)
    theirs = functional.resize(Image.new("RGB", old), [short])
    assert theirs.size == wanted
    assert target_size(parse_resize(f"short{short}:bilinear"), *old) == rounded
    assert resize(found, f"short{short}:pil_bilinear") is found  # of the right size: nothing to do


@settings(deadline=None, max_examples=40)
@given(*[st.integers(1, 90)] * 3)
def test_the_short_side_rule_is_torchvisions(functional, width, height, short):
    found = resize(torch.zeros(1, height, width, 1, dtype=torch.uint8), f"short{short}:cv2_linear")
    theirs = functional.resize(Image.new("L", (width, height)), [short])
    assert found.shape[1:3] == theirs.size[::-1]


def test_rules_are_read_by_decoder_and_transforms(tmp_path):
    assert is_torch_side("short256:pil_bilinear")
    assert is_torch_side("171x128:cv2_linear")
    assert not is_torch_side("none")
    assert not is_torch_side("short256:bilinear")
    with pytest.raises(ValueError, match=r"resize must be .*pil_bicubic.* got 'short256:pil'"):
        is_torch_side("short256:pil")
    path = write_numbered(tmp_path / "v.mp4", 3)
    with VideoReader(path, resize="short20:pil_bilinear") as reader:  # the decoder leaves them at the video's size
        assert [frame.shape for frame in reader] == [(48, 64, 3)] * 3


def test_what_cannot_be_resized_is_refused():
    frames = torch.zeros(2, 10, 12, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"takes rules with pil_bilinear.* got 'short5:area'"):
        resize(frames, "short5:area")
    with pytest.raises(ValueError, match=r"wants uint8 frames .* got \(2, 10, 12, 3\) torch.float32"):
        resize(frames.float(), "short5:pil_bilinear")
    with pytest.raises(ValueError, match=r"wants uint8 frames .* got \(2, 10, 12, 2\).*; flow is computed on"):
        resize(frames[..., :2], "short5:pil_bilinear")
    flow = torch.zeros(2, 5, 6, 2)
    assert resize(flow, "short5:pil_bilinear") is flow


# -- names and orders of crops ----------------------------------------------------------------------------------------

TL, TR, BL, BR, C = "top_left", "top_right", "bottom_left", "bottom_right", "center"


def test_the_six_orders():
    def mirrored(*names):
        return tuple(f"mirror_{name}" for name in names)

    orders = {
        "torchvision": (TL, TR, BL, BR, C, *mirrored(TR, TL, BR, BL, C)),
        "oversample": (TL, TR, C, BL, BR, *mirrored(TR, TL, C, BR, BL)),
        "caffe": (TL, TR, BL, BR, C, *mirrored(TL, TR, BL, BR, C)),
        "center_first": (C, TL, TR, BL, BR, *mirrored(C, TL, TR, BL, BR)),
        "tsn": (TL, *mirrored(TL), TR, *mirrored(TR), BL, *mirrored(BL), BR, *mirrored(BR), C, *mirrored(C)),
        "three": ("left", "right", "center"),
    }
    assert orders == ORDERS
    # imported sets do not say which corner is which: theirs may not be taken for ours
    assert CENTER_FIVE == ("center", "corner1", "corner2", "corner3", "corner4")
    assert CENTER_TEN[5:] == mirrored(*CENTER_FIVE)


def test_what_a_person_asks_for():
    assert all(crops_of("1", order) == ("center",) for order in ORDERS)
    assert crops_of("5", "torchvision") == crops_of("5", "caffe") == crops_of("5", "tsn") == (TL, TR, BL, BR, C)
    assert crops_of("5", "oversample") == (TL, TR, C, BL, BR)
    assert crops_of("5", "center_first") == (C, TL, TR, BL, BR)
    assert all(crops_of("10", order) == ORDERS[order] for order in ORDERS if order != "three")
    assert crops_of("3", "three") == ("left", "right", "center")
    assert crops_of("bottom_left, mirror_center", "tsn") == ("bottom_left", "mirror_center")


@pytest.mark.parametrize(
    ("text", "order", "message"),
    [
        ("3", "caffe", "crops are 1, 5, 10, or names of the order 'caffe' .*got '3'"),
        ("10", "three", "crops are 1, 3, or names of the order 'three' .*got '10'.* Known: left, right, center"),
        ("centre", "tsn", "got 'centre'. Did you mean 'center'"),
        ("left", "tsn", "got 'left'"),
        ("corner1", "center_first", "got 'corner1'"),
        ("", "tsn", "got ''"),
        ("center,center", "tsn", "each crop is named once, got 'center,center'"),
        ("1", "torchvison", "no order of crops called 'torchvison'. Did you mean 'torchvision'"),
    ],
)
def test_crops_that_do_not_exist(text, order, message):
    with pytest.raises(ValueError, match=message):
        crops_of(text, order)


# -- places of crops --------------------------------------------------------------------------------------------------


def boxes(order, height, width, size=224):
    return [(top, left) for top, left, _ in crop_boxes(ORDERS[order], height, width, size, order)]


def test_places_in_a_frame_of_340x256():
    """The reference's table (section 4): a mirror's place is where its content lies in the upright frame."""
    tl, tr, bl, br, c = (0, 0), (0, 116), (32, 0), (32, 116), (16, 58)
    assert boxes("torchvision", 256, 340) == [tl, tr, bl, br, c, tr, tl, br, bl, c]
    assert boxes("oversample", 256, 340) == [tl, tr, c, bl, br, tr, tl, c, br, bl]
    assert boxes("caffe", 256, 340) == [tl, tr, bl, br, c, tl, tr, bl, br, c]
    assert boxes("center_first", 256, 340) == [c, tl, tr, bl, br, c, tl, tr, bl, br]
    assert boxes("tsn", 256, 340) == [tl, tl, tr, tr, bl, bl, br, br, c, c]
    mirrors = [mirror for *_, mirror in crop_boxes(ORDERS["tsn"], 256, 340, 224, "tsn")]
    assert mirrors == [False, True] * 5


@pytest.mark.parametrize(
    ("order", "width", "right", "center", "mirror_center"),
    [
        # 16:9 at 256: torchvision rounds 115.5 to 116, whose mirror is at 115; video_features floors; TSN is at 114
        ("torchvision", 455, 231, 116, 115),
        ("oversample", 455, 231, 115, 116),
        ("caffe", 455, 231, 115, 115),
        ("center_first", 455, 231, 115, 115),
        ("tsn", 455, 228, 114, 114),
        # 4:3 at 256: half to even, 58.5 -> 58
        ("torchvision", 341, 117, 58, 59),
        ("oversample", 341, 117, 58, 59),
        ("caffe", 341, 117, 58, 58),
        ("center_first", 341, 117, 58, 58),
        ("tsn", 341, 116, 58, 58),
    ],
)
def test_places_where_the_orders_differ(order, width, right, center, mirror_center):
    found = crop_boxes(("top_right", "center", "mirror_center", "mirror_top_right"), 256, width, 224, order)
    assert found == [(0, right, False), (16, center, False), (16, mirror_center, True), (0, right, True)]


def test_places_of_three_crops():
    assert boxes("three", 256, 341, 256) == [(0, 0), (0, 84), (0, 42)]  # two steps of 42, not 85
    assert boxes("three", 455, 256, 256) == [(0, 0), (198, 0), (99, 0)]
    assert boxes("three", 256, 256, 256) == [(0, 0)] * 3


def test_frames_that_are_too_small_or_do_not_go_with_the_order():
    with pytest.raises(
        ValueError, match=r"of 224x224 need frames of at least 224x224, got 320x200; use resize=short224"
    ):
        crop(torch.zeros(1, 200, 320, 3), ("center",), 224, "torchvision", flow=False)
    with pytest.raises(ValueError, match=r"'three' of 224x224 need frames of a short side of 224, got 341x256"):
        crop_boxes(("left",), 256, 341, 224, "three")
    with pytest.raises(ValueError, match="got 'left'"):
        crop_boxes(("left",), 256, 341, 224, "tsn")
    with pytest.raises(ValueError, match=r"flow is \(T, H, W, 2\), x and y, got \(1, 8, 8, 3\)"):
        crop(torch.zeros(1, 8, 8, 3), ("center",), 4, "tsn", flow=True)


def cut(frames, top, left, size):
    """One window, pixel by pixel."""
    found = np.empty((len(frames), size, size, frames.shape[3]), frames.dtype)
    for y in range(size):
        for x in range(size):
            found[:, y, x] = frames[:, top + y, left + x]
    return found


def mirror_of(frames, *, flow):
    """Pixel by pixel from right to left; what moved to the right moves to the left."""
    found = np.empty_like(frames)
    width = frames.shape[2]
    for x in range(width):
        found[:, :, x] = frames[:, :, width - 1 - x]
    if flow:
        found[..., 0] = 255 - found[..., 0] if frames.dtype == np.uint8 else -found[..., 0]
    return found


def slow_crops(frames, order, size, *, flow):
    """All crops of an order, as the published codes go about it: windows of the picture and of the mirrored picture,
    or mirrored windows."""
    height, width = frames.shape[1:3]
    down, right = height - size, width - size
    if order == "three":
        y, x = down // 2, right // 2
        return [cut(frames, *place, size) for place in ((0, 0), (2 * y, 2 * x), (y, x))]
    if order == "tsn":
        y, x = down // 4, right // 4
        windows = [(0, 0), (0, 4 * x), (4 * y, 0), (4 * y, 4 * x), (2 * y, 2 * x)]
        pairs = [(cut(frames, *place, size), None) for place in windows]
        return [c for window, _ in pairs for c in (window, mirror_of(window, flow=flow))]
    corners = [(0, 0), (0, right), (down, 0), (down, right)]
    floor = (math.floor(down / 2), math.floor(right / 2))
    even = (int(np.rint(down / 2)), int(np.rint(right / 2)))
    places = {
        "torchvision": [*corners, even],
        "oversample": [*corners[:2], floor, *corners[2:]],
        "caffe": [*corners, floor],
        "center_first": [floor, *corners],
    }[order]
    windows = [cut(frames, *place, size) for place in places]
    if order in ("torchvision", "oversample"):
        turned = mirror_of(frames, flow=flow)
        return windows + [cut(turned, *place, size) for place in places]
    return windows + [mirror_of(window, flow=flow) for window in windows]


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 6), st.integers(0, 9), st.integers(0, 9), st.sampled_from(["rgb", "uint8", "float32"]))
@pytest.mark.parametrize("order", ORDERS)
def test_crops_are_those_of_the_published_codes(order, size, down, right, kind):
    if order == "three":
        down, right = (0, right) if right >= down else (down, 0)
    frames = noise(2, size + down, size + right, 3 if kind == "rgb" else 2)
    if kind == "float32":
        frames = frames.astype(np.float32) - 100.25
    before = frames.copy()
    found = crop(torch.from_numpy(frames), ORDERS[order], size, order, flow=kind != "rgb")
    assert found.dtype == torch.from_numpy(frames).dtype
    np.testing.assert_array_equal(found.numpy(), np.stack(slow_crops(frames, order, size, flow=kind != "rgb")))
    np.testing.assert_array_equal(frames, before)  # a view was not written to


def test_each_crop_alone_is_the_same_crop():
    frames = torch.from_numpy(noise(2, 20, 31, 3))
    for order in ("torchvision", "oversample", "caffe", "center_first", "tsn"):
        together = crop(frames, ORDERS[order], 12, order, flow=False)
        for k, name in enumerate(ORDERS[order]):
            np.testing.assert_array_equal(crop(frames, (name,), 12, order, flow=False)[0], together[k])


@pytest.mark.parametrize("width", [340, 341, 342, 343, 455])
def test_crops_are_torchvisions(functional, width):
    frames = torch.from_numpy(noise(1, 257, width, 3))
    found = crop(frames, ORDERS["torchvision"], 224, "torchvision", flow=False)
    theirs = functional.ten_crop(frames.permute(0, 3, 1, 2), [224, 224])
    np.testing.assert_array_equal(found.numpy(), torch.stack(theirs).permute(0, 1, 3, 4, 2).numpy())
    center = crop(frames, ("center",), 224, "torchvision", flow=False)[0]
    theirs = functional.center_crop(frames.permute(0, 3, 1, 2), [224, 224])
    np.testing.assert_array_equal(center.numpy(), theirs.permute(0, 2, 3, 1).numpy())


# -- how many clips public sets have, and what their last one shows (section 2.0) --------------------------------------


@pytest.mark.parametrize(
    # frames, ceil(n / 16), floor(n / 16), (n - 1) // 16; at least one, because every frame gets a score
    ("frames", "ceil", "floor", "one_less"),
    [
        *[(1, 1, 1, 1), (15, 1, 1, 1), (16, 1, 1, 1), (17, 2, 1, 1), (31, 2, 1, 1), (32, 2, 2, 1), (33, 3, 2, 2)],
        *[(96, 6, 6, 5), (97, 7, 6, 6), (100, 7, 6, 6), (1411, 89, 88, 88), (3968, 248, 248, 247)],
    ],
)
def test_clips_of_a_video_by_the_published_rules(frames, ceil, floor, one_less):
    assert len(ClipGrid(frames, tail="loop")) == ceil  # RTFM
    assert len(ClipGrid(frames, tail="repeat")) == ceil  # UR-DMU's extractor
    assert len(ClipGrid(frames, tail="drop")) == floor  # Roc-Ng, Gowtham
    assert len(ClipGrid(frames, tail="drop_one")) == one_less  # XD-Violence, and Roc-Ng where n is a multiple of 16


def test_frames_of_the_last_clip_by_the_published_rules():
    def last(frames, tail):
        grid = ClipGrid(frames, tail=tail)
        return grid.frame_indices(len(grid) - 1).tolist()

    assert last(100, "loop") == [96, 97, 98, 99] * 4
    assert last(103, "loop") == [*range(96, 103), *range(96, 103), 96, 97]
    assert last(100, "repeat") == [96, 97, 98, *[99] * 13]
    assert last(100, "drop") == last(100, "drop_one") == list(range(80, 96))
    assert last(96, "drop") == last(96, "loop") == last(96, "repeat") == list(range(80, 96))
    assert last(96, "drop_one") == list(range(64, 80))
    assert last(5, "loop") == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0]
    assert last(5, "repeat") == last(5, "drop") == [0, 1, 2, 3, *[4] * 12]
