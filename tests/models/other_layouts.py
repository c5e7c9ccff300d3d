"""Small networks that name their parts as other projects do, written anew from those names and the papers."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn


def conv(c_in: int, c_out: int, kernel: int = 3, stride: int = 1, groups: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=bias)


class Residual(nn.Module):
    """conv1/bn1, conv2/bn2 (and conv3/bn3), and a projection under the name `shortcut` or `downsample`."""

    def __init__(self, sizes, stride: int, projection: str, groups: int = 1) -> None:
        super().__init__()
        kernels = (3, 3) if len(sizes) == 3 else (1, 3, 1)
        strides = (stride, 1) if len(sizes) == 3 else (1, stride, 1)
        self.depth = len(kernels)
        for i, (kernel, s) in enumerate(zip(kernels, strides, strict=True)):
            grouped = groups if kernel == 3 else 1
            self.add_module(f"conv{i + 1}", conv(sizes[i], sizes[i + 1], kernel, s, grouped))
            self.add_module(f"bn{i + 1}", nn.BatchNorm2d(sizes[i + 1]))
        changed = stride != 1 or sizes[0] != sizes[-1]
        self.projection = projection
        if changed:
            side = nn.Sequential(conv(sizes[0], sizes[-1], 1, stride), nn.BatchNorm2d(sizes[-1]))
        else:
            side = nn.Sequential()
        self.add_module(projection, side)

    def forward(self, x):
        out = x
        for i in range(1, self.depth + 1):
            out = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(out))
            out = F.relu(out) if i < self.depth else out
        return F.relu(out + getattr(self, self.projection)(x))


class ResNet(nn.Module):
    def __init__(self, stages, projection, head, stem=(64, 3), pool=False, groups=1, classes=10) -> None:
        """`stages`: lists of (sizes, stride) of blocks."""
        super().__init__()
        self.conv1 = conv(3, *stem)
        self.bn1 = nn.BatchNorm2d(stem[0])
        self.pool, self.head, self.count = pool, head, len(stages)
        for i, blocks in enumerate(stages):
            layer = nn.Sequential(*(Residual(sizes, stride, projection, groups) for sizes, stride in blocks))
            self.add_module(f"layer{i + 1}", layer)
        self.add_module(head, nn.Linear(stages[-1][-1][0][-1], classes))

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.max_pool2d(x, 3, 2, 1) if self.pool else x
        for i in range(self.count):
            x = getattr(self, f"layer{i + 1}")(x)
        return getattr(self, self.head)(x.mean((2, 3)))


def basic_stages(channels, counts):
    stages, c_in = [], channels[0]
    for i, (c, count) in enumerate(zip(channels, counts, strict=True)):
        stages.append([((c_in if j == 0 else c, c, c), 2 if i and j == 0 else 1) for j in range(count)])
        c_in = c
    return stages


def bottleneck_stages(inner, outer, counts):
    stages, c_in = [], 64
    for i, (m, c, count) in enumerate(zip(inner, outer, counts, strict=True)):
        stages.append([((c_in if j == 0 else c, m, m, c), 2 if i and j == 0 else 1) for j in range(count)])
        c_in = c
    return stages


class WideBlock(nn.Module):
    def __init__(self, c_in, c_out, stride) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv1 = conv(c_in, c_out, 3, stride)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.conv2 = conv(c_out, c_out)
        self.convShortcut = conv(c_in, c_out, 1, stride) if c_in != c_out else None

    def forward(self, x):
        active = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + (x if self.convShortcut is None else self.convShortcut(active))


class WideStage(nn.Module):
    def __init__(self, c_in, c_out, count, stride) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            *(WideBlock(c_in if i == 0 else c_out, c_out, stride if i == 0 else 1) for i in range(count))
        )

    def forward(self, x):
        return self.layer(x)


class WideResNet(nn.Module):
    def __init__(self, depth, k, classes=10) -> None:
        super().__init__()
        n, c = (depth - 4) // 6, (16, 16 * k, 32 * k, 64 * k)
        self.conv1 = conv(3, 16)
        self.block1, self.block2, self.block3 = (WideStage(c[i], c[i + 1], n, 1 if i == 0 else 2) for i in range(3))
        self.bn1 = nn.BatchNorm2d(c[3])
        self.fc = nn.Linear(c[3], classes)

    def forward(self, x):
        return self.fc(F.relu(self.bn1(self.block3(self.block2(self.block1(self.conv1(x)))))).mean((2, 3)))


class VGG(nn.Module):
    def __init__(self, config: str, hidden: int = 0, classes: int = 10) -> None:
        """`config`: channels in units of 64, M for pooling."""
        super().__init__()
        layers, c_in = [], 3
        for item in config.split():
            if item == "M":
                layers.append(nn.MaxPool2d(2))
            else:
                c = 64 * int(item)
                layers += [conv(c_in, c, bias=True), nn.BatchNorm2d(c), nn.ReLU()]
                c_in = c
        self.features = nn.Sequential(*layers)
        three = (nn.Linear(512, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout())
        self.classifier = nn.Sequential(*three, nn.Linear(hidden, classes)) if hidden else nn.Linear(512, classes)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


VGG11 = "1 M 2 M 4 4 M 8 8 M 8 8 M"
VGG16 = "1 1 M 2 2 M 4 4 4 M 8 8 8 M 8 8 8 M"
MOBILE = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class TorchvisionInverted(nn.Module):
    def __init__(self, c_in, c_out, stride, t) -> None:
        super().__init__()
        mid = c_in * t
        first = [nn.Sequential(conv(c_in, mid, 1), nn.BatchNorm2d(mid), nn.ReLU6())] if t > 1 else []
        depthwise = nn.Sequential(conv(mid, mid, 3, stride, mid), nn.BatchNorm2d(mid), nn.ReLU6())
        self.conv = nn.Sequential(*first, depthwise, conv(mid, c_out, 1), nn.BatchNorm2d(c_out))
        self.same = stride == 1 and c_in == c_out

    def forward(self, x):
        return self.conv(x) + x if self.same else self.conv(x)


class TorchvisionMobileNet(nn.Module):
    def __init__(self, channels=(32, 16, 24, 32, 64, 96, 160, 320, 1280), classes=10) -> None:
        super().__init__()
        c_in, *outs, last = channels
        layers = [nn.Sequential(conv(3, c_in), nn.BatchNorm2d(c_in), nn.ReLU6())]
        for (t, _, n, s), c in zip(MOBILE, outs, strict=True):
            for i in range(n):
                layers.append(TorchvisionInverted(c_in, c, s if i == 0 else 1, t))
                c_in = c
        layers.append(nn.Sequential(conv(c_in, last, 1), nn.BatchNorm2d(last), nn.ReLU6()))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(last, classes))

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


class PlainInverted(nn.Module):
    def __init__(self, c_in, c_out, stride, t) -> None:
        super().__init__()
        mid = c_in * t
        self.conv1, self.bn1 = conv(c_in, mid, 1), nn.BatchNorm2d(mid)
        self.conv2, self.bn2 = conv(mid, mid, 3, stride, mid), nn.BatchNorm2d(mid)
        self.conv3, self.bn3 = conv(mid, c_out, 1), nn.BatchNorm2d(c_out)
        changed = stride == 1 and c_in != c_out
        self.shortcut = nn.Sequential(*((conv(c_in, c_out, 1), nn.BatchNorm2d(c_out)) if changed else ()))
        self.stride = stride

    def forward(self, x):
        out = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        out = self.bn3(self.conv3(out))
        return out + self.shortcut(x) if self.stride == 1 else out


class PlainMobileNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3, 32), nn.BatchNorm2d(32)
        layers, c_in = [], 32
        for t, c, n, s in MOBILE:
            for i in range(n):
                layers.append(PlainInverted(c_in, c, s if i == 0 else 1, t))
                c_in = c
        self.layers = nn.Sequential(*layers)
        self.conv2, self.bn2, self.linear = conv(320, 1280, 1), nn.BatchNorm2d(1280), nn.Linear(1280, 10)

    def forward(self, x):
        x = F.relu(self.bn2(self.conv2(self.layers(F.relu(self.bn1(self.conv1(x)))))))
        return self.linear(F.avg_pool2d(x, 4).flatten(1))


def shuffled(x):
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class PlainShuffleUnit(nn.Module):
    def __init__(self, c_in, c_out, down: bool) -> None:
        super().__init__()
        h = c_out // 2
        plan = [(h, h, 1, 1, 1), (h, h, 3, 1, h), (h, h, 1, 1, 1)]
        if down:
            left = [(c_in, c_in, 3, 2, c_in), (c_in, h, 1, 1, 1)]
            plan = [*left, (c_in, h, 1, 1, 1), (h, h, 3, 2, h), (h, h, 1, 1, 1)]
        for i, (a, b, kernel, stride, groups) in enumerate(plan):
            self.add_module(f"conv{i + 1}", conv(a, b, kernel, stride, groups))
            self.add_module(f"bn{i + 1}", nn.BatchNorm2d(b))
        self.down = down

    def part(self, x, i):
        return getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x))

    def forward(self, x):
        if self.down:
            left = F.relu(self.part(self.part(x, 1), 2))
            right = F.relu(self.part(self.part(F.relu(self.part(x, 3)), 4), 5))
        else:
            left, right = x.chunk(2, 1)
            right = F.relu(self.part(self.part(F.relu(self.part(right, 1)), 2), 3))
        return shuffled(torch.cat([left, right], 1))


class PlainShuffleNet(nn.Module):
    def __init__(self, channels=(48, 96, 192, 1024)) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3, 24), nn.BatchNorm2d(24)
        c_in = 24
        for i, (c, n) in enumerate(zip(channels, (3, 7, 3), strict=False)):
            units = [PlainShuffleUnit(c_in, c, True), *(PlainShuffleUnit(c, c, False) for _ in range(n))]
            self.add_module(f"layer{i + 1}", nn.Sequential(*units))
            c_in = c
        self.conv2, self.bn2, self.linear = conv(c_in, 1024, 1), nn.BatchNorm2d(1024), nn.Linear(1024, 10)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(F.relu(self.bn2(self.conv2(x))).mean((2, 3)))


class PlainDense(nn.Module):
    def __init__(self, c, k) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(c), conv(c, 4 * k, 1)
        self.bn2, self.conv2 = nn.BatchNorm2d(4 * k), conv(4 * k, k)

    def forward(self, x):
        return torch.cat([self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x)))))), x], 1)


class PlainTransition(nn.Module):
    def __init__(self, c) -> None:
        super().__init__()
        self.bn, self.conv = nn.BatchNorm2d(c), conv(c, c // 2, 1)

    def forward(self, x):
        return F.avg_pool2d(self.conv(F.relu(self.bn(x))), 2)


class PlainDenseNet(nn.Module):
    def __init__(self, k=12) -> None:
        super().__init__()
        c = 2 * k
        self.conv1 = conv(3, c)
        for i, n in enumerate((6, 12, 24, 16)):
            self.add_module(f"dense{i + 1}", nn.Sequential(*(PlainDense(c + j * k, k) for j in range(n))))
            c += n * k
            if i < 3:
                self.add_module(f"trans{i + 1}", PlainTransition(c))
                c //= 2
        self.bn, self.linear = nn.BatchNorm2d(c), nn.Linear(c, 10)

    def forward(self, x):
        x = self.conv1(x)
        for i in range(1, 5):
            x = getattr(self, f"dense{i}")(x)
            x = getattr(self, f"trans{i}")(x) if i < 4 else x
        return self.linear(F.avg_pool2d(F.relu(self.bn(x)), 4).flatten(1))


class Appended(nn.Sequential):
    def forward(self, x):
        return torch.cat([x, super().forward(x)], 1)


class TorchvisionDenseNet(nn.Module):
    def __init__(self, k=32) -> None:
        super().__init__()
        c = 2 * k
        parts = [("conv0", conv(3, c)), ("norm0", nn.BatchNorm2d(c)), ("relu0", nn.ReLU())]
        parts.append(("pool0", nn.MaxPool2d(3, 2, 1)))
        for i, n in enumerate((6, 12, 24, 16)):
            layers = OrderedDict()
            for j in range(n):
                layers[f"denselayer{j + 1}"] = Appended(
                    OrderedDict(
                        norm1=nn.BatchNorm2d(c),
                        relu1=nn.ReLU(),
                        conv1=conv(c, 4 * k, 1),
                        norm2=nn.BatchNorm2d(4 * k),
                        relu2=nn.ReLU(),
                        conv2=conv(4 * k, k),
                    )
                )
                c += k
            parts.append((f"denseblock{i + 1}", nn.Sequential(layers)))
            if i < 3:
                transition = OrderedDict(
                    norm=nn.BatchNorm2d(c), relu=nn.ReLU(), conv=conv(c, c // 2, 1), pool=nn.AvgPool2d(2)
                )
                parts.append((f"transition{i + 1}", nn.Sequential(transition)))
                c //= 2
        parts.append(("norm5", nn.BatchNorm2d(c)))
        self.features = nn.Sequential(OrderedDict(parts))
        self.classifier = nn.Linear(c, 10)

    def forward(self, x):
        return self.classifier(F.relu(self.features(x)).mean((2, 3)))


class NamedBottleneck(nn.Module):
    def __init__(self, c_in, mid, c_out, stride, groups) -> None:
        super().__init__()
        self.conv_reduce, self.bn_reduce = conv(c_in, mid, 1), nn.BatchNorm2d(mid)
        self.conv_conv, self.bn = conv(mid, mid, 3, stride, groups), nn.BatchNorm2d(mid)
        self.conv_expand, self.bn_expand = conv(mid, c_out, 1), nn.BatchNorm2d(c_out)
        self.shortcut = nn.Sequential()
        if c_in != c_out:
            self.shortcut.add_module("shortcut_conv", conv(c_in, c_out, 1, stride))
            self.shortcut.add_module("shortcut_bn", nn.BatchNorm2d(c_out))

    def forward(self, x):
        out = F.relu(self.bn(self.conv_conv(F.relu(self.bn_reduce(self.conv_reduce(x))))))
        return F.relu(self.bn_expand(self.conv_expand(out)) + self.shortcut(x))


class NamedResNeXt(nn.Module):
    def __init__(self, groups, base) -> None:
        super().__init__()
        self.conv_1_3x3, self.bn_1 = conv(3, 64), nn.BatchNorm2d(64)
        c_in = 64
        for i in range(3):
            stage, mid, c = nn.Sequential(), groups * base * 2**i, 256 * 2**i
            for j in range(3):
                block = NamedBottleneck(c_in, mid, c, 2 if i and j == 0 else 1, groups)
                stage.add_module(f"stage_{i + 1}_bottleneck_{j}", block)
                c_in = c
            self.add_module(f"stage_{i + 1}", stage)
        self.classifier = nn.Linear(1024, 10)

    def forward(self, x):
        x = F.relu(self.bn_1(self.conv_1_3x3(x)))
        return self.classifier(self.stage_3(self.stage_2(self.stage_1(x))).mean((2, 3)))
