"""`wsvad bench extract`: it runs, and its numbers fit together. How large they are is the machine's affair."""

import json

import pytest
import torch
from click.testing import CliRunner

from data.datasets.toy_video import write_video
from extract import bench
from mil.cli import main
from mil.precision import bf16_is_fast
from tests.helpers import numbered_frames, write_small

FRAMES = 70


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A video of 70 frames below a folder."""
    folder = tmp_path_factory.mktemp("bench")
    write_video(folder / "v.mp4", numbered_frames(FRAMES, 64, 96))
    return folder


@pytest.fixture
def call(folder, monkeypatch):
    real = bench.matmul_rate
    monkeypatch.setattr(bench, "matmul_rate", lambda device, dtype: real(device, dtype, 64))

    def run(*arguments, videos=folder):
        typed = ["bench", "extract", "--videos", videos, "--runs", 1, "--workers", 1, *arguments]
        result = CliRunner().invoke(main, [str(a) for a in typed], prog_name="wsvad")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


def figures(result):
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def check_shares(found):
    """Recomputed from the parts."""
    slower = min(found["decode_clips"] * found["workers"], found["forward_clips"])
    assert found["share_of_slower"] == pytest.approx(found["end_to_end_clips"] / slower)
    assert found["decode_clips"] == pytest.approx(found["decode_frames"] * found["clips"] / found["frames"])
    assert found["end_to_end_frames"] / found["end_to_end_clips"] == pytest.approx(found["frames"] / found["clips"])
    assert found["forward_gflops"] == pytest.approx(found["forward_clips"] * found["gflop_per_clip"])
    for name in ("decode_frames", "forward_clips", "matmul_gflops", "end_to_end_clips"):
        assert found[name] > 0


@pytest.mark.parametrize("backbone", ["tiny", "motion"])
def test_a_backbone_of_uncounted_arithmetic(call, backbone):
    found = figures(call("--backbone", backbone, "--json"))
    check_shares(found)
    assert (found["backbone"], found["videos"], found["frames"], found["clips"]) == (backbone, 1, FRAMES, 5)
    assert (found["crops"], found["workers"], found["precision"], found["device"]) == (1, 1, "float32", "CPU")
    assert (found["gflop_per_clip"], found["share_of_peak"]) == (0, None)


NET = ("--backbone", "x3d_xs", "--weights", "random", "--option", "fps=none", "--device", "cpu")


def test_a_net_beside_the_peak_of_its_precision(call):
    # where the processor has no bfloat16 instructions the product beside it takes minutes
    precision = "bfloat16" if bf16_is_fast("cpu") else "float32"
    found = figures(call(*NET, "--crops", "1", "--precision", precision, "--json"))
    check_shares(found)
    # 0.84 GMAC for a crop of 4 x 182 x 182, two operations each; stride 48: frames 0 and 48
    assert found["gflop_per_clip"] == pytest.approx(0.84 * 2)
    assert found["share_of_peak"] == pytest.approx(found["forward_gflops"] / found["matmul_gflops"])
    assert (found["crops"], found["clips"], found["precision"]) == (1, 2, precision)


def test_arithmetic_of_other_clips_is_not_guessed(call):
    found = figures(call(*NET, "--option", "clip_len=5", "--json"))
    assert (found["gflop_per_clip"], found["share_of_peak"]) == (0, None)


def test_the_table_shows_the_same_numbers(call, monkeypatch):
    real, kept = bench.bench, []

    def keep(*arguments, **options):
        kept.append(real(*arguments, **options))
        return kept[-1]

    monkeypatch.setattr(bench, "bench", keep)
    for typed in (("--backbone", "tiny"), NET):
        result = call(*typed)
        assert result.exit_code == 0
        found, lines = kept[-1], result.stdout.splitlines()
        assert all(line.startswith("| ") or line == "|---|---|" for line in lines)
        assert all(line.count("|") == 3 for line in lines)
        text = result.stdout
        assert f"{found.decode_frames:,.0f} frames/s" in text
        assert f"{found.forward_clips:,.2f} clips/s of 1 crops" in text
        assert f"{100 * found.share_of_slower:.0f} % of the slower" in text
        assert f"{found.matmul_gflops:,.0f} GFLOP/s" in text
        if found.share_of_peak is None:
            assert "arithmetic of the forward pass | unknown |" in text
        else:
            assert f"{100 * found.share_of_peak:.0f} % of the matmul peak" in text


def test_descriptors_are_compared_with_all_their_processes(tmp_path, monkeypatch):
    """Each worker of a descriptor has a core of its own, where workers of a net share them."""
    from data.types import Video
    from extract.runner import ExtractReport

    monkeypatch.setattr(bench, "matmul_rate", lambda *_: 1.0)
    monkeypatch.setattr(bench, "forward_rate", lambda *_: 7.0)
    report = ExtractReport(frames=48, clips=3, workers=4, seconds=0.1)
    monkeypatch.setattr(bench, "extract_all", lambda *_, **__: report)
    video = Video("v", str(write_small(tmp_path / "v.mp4", 48)), "train", 0)
    for name, forward in (("motion", 28.0), ("tiny", 7.0)):
        found = bench.bench(name, [video], {}, runs=1)
        assert found.share_of_slower == pytest.approx(30 / min(forward, 4 * found.decode_clips))


def test_the_rate_of_products_counts_two_operations_each(monkeypatch):
    """A product that takes exactly a second: 2 * 100^3 operations in it."""
    times = iter([0.0, 1.0])
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(times))
    assert bench.matmul_rate(torch.device("cpu"), torch.float32, 100) == pytest.approx(0.002)


def test_most_videos(call, tmp_path):
    for i in range(3):
        write_small(tmp_path / f"{i}.mp4", 20)
    found = figures(call("--backbone", "tiny", "--most", 2, "--json", videos=tmp_path))
    assert (found["videos"], found["frames"]) == (2, 40)


@pytest.mark.parametrize(
    ("typed", "part"),
    [
        (("--backbone", "tinny"), "no backbone called 'tinny'. Did you mean 'tiny'"),
        (("--option", "speed=1"), "backbone motion takes no option 'speed'"),
        (("--option", "speed"), "an option is written KEY=VALUE"),
        (("--runs", 0), "0 is not in the range"),
    ],
)
def test_errors_are_one_line(call, typed, part):
    result = call(*typed)
    assert (result.exit_code, result.stdout) == (2, "")
    assert part in result.stderr


def test_no_videos_and_bad_videos(call, tmp_path):
    result = call(videos=tmp_path)
    assert result.exit_code == 2
    assert f"no videos below {tmp_path}" in result.stderr
    (tmp_path / "bad.mp4").write_text("404 not found")
    result = call(videos=tmp_path)
    assert result.exit_code == 2
    assert "bad.mp4: not a video" in result.stderr
    assert "Traceback" not in result.stderr
