"""Small networks in the manner of ViT and ConvNeXt, which keep no running statistics."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ensemble.teachers.measured import Measurement
from models import ModelCard

MEAN, STD = (0.5, 0.4, 0.45), (0.2, 0.25, 0.3)
CARD = ModelCard("tiny", "test", 12, 4, mean=MEAN, std=STD)


class Attending(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Vit(nn.Module):
    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.places = nn.Parameter(torch.randn(1, 10, width))
        self.blocks = nn.Sequential(Attending(width), Attending(width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        return self.head(self.norm(self.blocks(x))[:, 0])


class Norm2d(nn.LayerNorm):
    """Over the channels of (N, C, H, W), as in timm and torchvision."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNextBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + self.fc2(F.gelu(self.fc1(y))).permute(0, 3, 1, 2)


class ConvNext(nn.Module):
    """Its stem's norm sees as many columns as channels."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 2, stride=2), Norm2d(width)
        self.block = ConvNextBlock(width)
        self.groups = nn.GroupNorm(2, width)
        self.head = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.groups(self.block(self.norm(self.stem(x)))).mean((2, 3)))


class Mixed(nn.Module):
    """BatchNorms with a residual sum, of which layers that keep no statistics lie between norm and sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.short = nn.Conv2d(6, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(x))
        x = F.relu(y + self.short(x))
        return self.head(self.conv2(x).mean((2, 3)))


NETWORKS = {"vit": Vit, "convnext": ConvNext, "mixed": Mixed}
LAYERS: dict[str, tuple[str, ...]] = {"vit": (), "convnext": (), "mixed": ("conv2", "short", "head")}


def network(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = NETWORKS[name]()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
    return net.eval()


def photographs(n: int, seed: int = 0) -> torch.Tensor:
    """Images that differ in brightness and contrast, with neighbours alike."""
    rng = torch.Generator().manual_seed(seed)
    smooth = F.interpolate(torch.rand(n, 3, 4, 4, generator=rng), size=12, mode="bilinear")
    return (smooth * torch.rand(n, 1, 1, 1, generator=rng)).clamp(0, 1)


def measured(name: str, images: int = 40) -> tuple[nn.Module, Measurement]:
    from ensemble.teachers.calibration import measure

    net = network(name)
    return net, measure(net, CARD, photographs(images).split(7), layers=LAYERS[name], data="photographs")
