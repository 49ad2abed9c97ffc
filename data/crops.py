"""Names and orders of crops. A name says what a crop shows; an order says where the field's code lists it, and rounds.

`mirror_X` is the mirrored content of crop X, wherever a source lists it: code that cuts the same places from the
mirrored picture therefore lists `mirror_top_right` first.
"""

from data.registry import suggest

TORCHVISION_TEN = (
    *("top_left", "top_right", "bottom_left", "bottom_right", "center"),
    *("mirror_top_right", "mirror_top_left", "mirror_bottom_right", "mirror_bottom_left", "mirror_center"),
)
OVERSAMPLE_TEN = (
    *("top_left", "top_right", "center", "bottom_left", "bottom_right"),
    *("mirror_top_right", "mirror_top_left", "mirror_center", "mirror_bottom_right", "mirror_bottom_left"),
)
CAFFE_TEN = (*TORCHVISION_TEN[:5], *(f"mirror_{name}" for name in TORCHVISION_TEN[:5]))
TSN_TEN = tuple(f"{side}{name}" for name in TORCHVISION_TEN[:5] for side in ("", "mirror_"))
CENTER_FIRST_FIVE = ("center", "top_left", "top_right", "bottom_left", "bottom_right")
CENTER_FIRST_TEN = (*CENTER_FIRST_FIVE, *(f"mirror_{name}" for name in CENTER_FIRST_FIVE))
THREE = ("left", "right", "center")

# of imported sets: which corner is which is not documented
CENTER_FIVE = ("center", "corner1", "corner2", "corner3", "corner4")
CENTER_TEN = (*CENTER_FIVE, *(f"mirror_{name}" for name in CENTER_FIVE))

ORDERS: dict[str, tuple[str, ...]] = {
    "torchvision": TORCHVISION_TEN,
    "oversample": OVERSAMPLE_TEN,
    "caffe": CAFFE_TEN,
    "center_first": CENTER_FIRST_TEN,
    "tsn": TSN_TEN,
    "three": THREE,
}
"""What a backbone can cut.

torchvision: TenCrop, by RTFM's author. oversample: Gowtham's and UR-DMU's extractors. caffe: the GCN features.
center_first: as Roc-Ng, VadCLIP and XD-Violence number theirs, with corners in reading order. tsn: GroupOverSample, and
mmaction2's TenCrop. three: mmaction2's ThreeCrop along the long side. `extract.transforms` says where each one cuts.
"""


def crops_of(text: str, order: str) -> tuple[str, ...]:
    """What a person asks for -> names of crops.

    Args:
        text: "1", the centre in every order; "5", the order's unmirrored crops; "10", or "3" of `three`, all of them;
            or names joined by commas, which stay in the order they are written in.
        order: a name in ORDERS.

    Raises ValueError on an order or a crop that does not exist, on a name twice, and on a number that the order lacks.
    """
    if order not in ORDERS:
        raise ValueError(f"no order of crops called '{order}'.{suggest(order, list(ORDERS))}")
    known = ORDERS[order]
    plain = tuple(name for name in known if not name.startswith("mirror_"))
    numbers = {str(len(known)): known, str(len(plain)): plain, "1": ("center",)}
    if text in numbers:
        return numbers[text]
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in known:
            raise ValueError(
                f"crops are {', '.join(sorted(numbers, key=int))}, or names of the order '{order}' joined by commas, "
                f"got '{name}'.{suggest(name, list(known))}"
            )
    if len(set(names)) < len(names):
        raise ValueError(f"each crop is named once, got '{text}'")
    return names
