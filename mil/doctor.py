"""What works on this machine, and the line to type for what does not."""

import shutil
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from data.files import cores

CPU_INDEX = "https://download.pytorch.org/whl/cpu"


@dataclass(frozen=True)
class Check:
    """One finding. state: "ok"; "WARN", something optional is missing; "FAIL", wsvad does not work without it."""

    name: str
    state: str
    found: str
    remedy: str = ""

    def as_dict(self) -> dict[str, str]:
        """For --json."""
        return asdict(self)


def examine() -> list[Check]:
    """All checks, in the order in which a person would want them."""
    checks = (
        _packages, _torch, _gpu, _torchvision, _pytorchvideo, _opencv, _decoder, _torchcodec, _ray, _tensorboard,
        _wandb, _onnx, _weights, _store, _disk,
    )  # fmt: skip
    found = []
    for check in checks:
        try:
            found.append(check())
        except Exception as error:  # a check that breaks is a finding, and must not hide the others
            found.append(
                Check(
                    check.__name__[1:],
                    "FAIL",
                    f"{type(error).__name__}: {error}",
                    "pip install --force-reinstall wsvad",
                )
            )
    return found


def _packages() -> Check:
    import data

    place = Path(data.__file__).parent
    if not (place / "grid.py").is_file():
        return Check(
            "packages",
            "FAIL",
            f"`data` is {place}, not wsvad's",
            "leave the folder that holds a `data` package of its own",
        )
    return Check("packages", "ok", f"wsvad {version('wsvad')}, its packages at {place.parent}")


def _torch() -> Check:
    import torch

    return Check("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads on {cores()} cores")


def _gpu() -> Check:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Check("gpu", "ok", ", ".join(names))
    if torch.version.cuda is None:
        return Check(
            "gpu",
            "WARN",
            "torch is a CPU build",
            "with an NVIDIA card: pip install --force-reinstall torch (its CUDA build)",
        )
    return Check("gpu", "WARN", f"torch is built for CUDA {torch.version.cuda}, no device answers", "nvidia-smi")


def _torchvision() -> Check:
    import torch

    try:
        found = version("torchvision")
    except PackageNotFoundError:
        wanted_by = "its own nets, pytorchvideo's hub nets and RAFT need it"
        return Check("torchvision", "WARN", f"not installed; {wanted_by}", "pip install 'wsvad[hub]'")
    index = CPU_INDEX if "+cpu" in torch.__version__ else "https://download.pytorch.org/whl/cu130"
    remedy = f"pip install --force-reinstall --no-deps torchvision --index-url {index}"
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:
        from extract.shim import import_torchvision

        reason = f"{found} does not fit torch {torch.__version__} ({str(error).splitlines()[0]})"
        try:
            import_torchvision()
        except (ImportError, RuntimeError, ValueError):
            return Check("torchvision", "WARN", reason, remedy)
        return Check("torchvision", "WARN", f"{reason}; the nets run all the same", remedy)
    return Check("torchvision", "ok", found)


def _pytorchvideo() -> Check:
    return Check("pytorchvideo", "ok", f"{version('pytorchvideo')} (its nets need torchvision, see above)")


def _opencv() -> Check:
    import cv2

    others = []
    for name in ("opencv-python", "opencv-python-headless", "opencv-contrib-python"):
        try:
            others.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    names = " ".join(o.split()[0] for o in others)
    remedy = f"pip uninstall {names}; " * bool(names) + "pip install --force-reinstall opencv-contrib-python-headless"
    if not hasattr(cv2, "DISOpticalFlow_create"):
        return Check("opencv", "FAIL", f"{cv2.__version__} has no DIS optical flow", remedy)
    if others:
        return Check(
            "opencv", "WARN", f"{cv2.__version__}, and {', '.join(others)}, which overwrites its files", remedy
        )
    return Check("opencv", "ok", f"{cv2.__version__}, with DIS optical flow")


def _decoder() -> Check:
    import av
    import numpy as np

    from data.datasets.toy_video import write_video
    from extract.decode import VideoReader

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "check.mp4"
        frames = [np.full((32, 48, 3), 40 * i, np.uint8) for i in range(5)]
        write_video(path, frames, 25)
        with VideoReader(path) as reader:
            means = [float(frame.mean()) for frame in reader]
    if len(means) != 5 or max(abs(m - 40 * i) for i, m in enumerate(means)) > 3:
        return Check(
            "decoder",
            "FAIL",
            f"PyAV {av.__version__} reads other frames than were written",
            "pip install --force-reinstall av",
        )
    return Check("decoder", "ok", f"PyAV {av.__version__}: wrote and read an H.264 file")


def _torchcodec() -> Check:
    try:
        found = version("torchcodec")
    except PackageNotFoundError:
        return Check(
            "torchcodec", "WARN", "not installed; only --decoder torchcodec needs it", "pip install 'wsvad[torchcodec]'"
        )
    try:
        import torchcodec  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        return Check("torchcodec", "WARN", f"{found} does not load ({reason})", "install FFmpeg 4 to 8 of the system")
    return Check("torchcodec", "ok", found)


def _ray() -> Check:
    try:
        return Check("ray", "ok", version("ray"))
    except PackageNotFoundError:
        return Check("ray", "WARN", "not installed; only --engine ray needs it", "pip install 'wsvad[ray]'")


def _tensorboard() -> Check:
    return _tracker("tensorboard")


def _wandb() -> Check:
    return _tracker("wandb")


def _tracker(name: str) -> Check:
    from mil.tracking import TrackerError, check_trackers

    try:
        check_trackers([name])
        return Check(name, "ok", version(name))
    except (TrackerError, PackageNotFoundError):
        return Check(name, "WARN", f"not installed; only --track {name} needs it", f"pip install 'wsvad[{name}]'")


def _onnx() -> Check:
    try:
        found = [f"{name} {version(name)}" for name in ("onnx", "onnxruntime", "onnxscript")]
        return Check("onnx", "ok", ", ".join(found))
    except PackageNotFoundError as error:
        return Check("onnx", "WARN", f"no {error.name}; only export --onnx needs it", "pip install 'wsvad[onnx]'")


def _weights() -> Check:
    from extract.catalogue import CATALOGUE, folder

    here = sum(entry.path.is_file() for entry in CATALOGUE.values())
    found = f"{here} of {len(CATALOGUE)} published files in {folder()}"
    if not here:
        return Check("weights", "WARN", found, "wsvad weights ls, wsvad weights fetch NAME; or extract --weights FILE")
    return Check("weights", "ok", f"{found}; `wsvad weights check` hashes them")


def _store() -> Check:
    import numpy as np

    from data.store import FeatureStore
    from data.types import FeatureSpec, VideoFeatures

    with tempfile.TemporaryDirectory() as folder:
        spec = FeatureSpec("check", dim=4)
        store = FeatureStore(Path(folder) / "store", spec)
        with store.claim("x") as mine:
            store.write(VideoFeatures("x", np.ones((1, 2, 4), np.float32), spec.grid(32)))
            store.read("x")
    if not mine:
        return Check(
            "store",
            "WARN",
            "files cannot be locked here; workers may repeat each other's work",
            "put stores on a local disk",
        )
    return Check("store", "ok", "wrote, locked and read a feature file")


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    remedy = "" if free > 20 else "one crop of I3D features of UCF-Crime takes 2 GB, ten crops of 2048-d 35 GB"
    return Check("disk", "ok" if free > 2 else "WARN", f"{free:.1f} GB free at {Path.cwd()}", remedy)
