"""VGGish (Hershey et al., "CNN architectures for large-scale audio classification", ICASSP 2017)."""

from torch import Tensor, nn


class VGGish(nn.Module):
    """Six convolutions and three layers above them; published by harritaylor/torchvggish with these key names.

    The classifier it was trained with was never published: the 128 numbers behind the last ReLU are all there is.
    """

    def __init__(self) -> None:
        super().__init__()
        # each number of channels is a 3x3 convolution and a ReLU, each 0 a pooling to half the rows and bands
        layers: list[nn.Module] = []
        channels = 1
        for width in (64, 0, 128, 0, 256, 256, 0, 512, 512, 0):
            if width:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.embeddings = nn.Sequential(
            nn.Linear(512 * 6 * 4, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, 128),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Log-mel examples (M, 1, 96, 64), time by band -> (M, 128), not negative."""
        maps = self.features(x)  # (M, 512, 6, 4)
        # TensorFlow, where the weights were trained, keeps channels last: they are flattened in that order
        found: Tensor = self.embeddings(maps.permute(0, 2, 3, 1).flatten(1))
        return found
