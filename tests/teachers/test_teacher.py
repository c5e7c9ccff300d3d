"""Teachers at other view sizes: low-resolution stages run the network at low resolution."""

import pytest
import torch
from torch import nn

from ensemble.teachers.teacher import Teacher
from models import ModelCard


class _Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, 2)

    def forward(self, x):
        return self.linear(self.bn(self.conv(x)).relu().mean((2, 3)))


class _OneSizeOnly(_Convolutional):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4 * 16 * 16, 2)

    def forward(self, x):
        return self.linear(self.bn(self.conv(x)).relu().flatten(1))


class _InParts(_Convolutional):
    """Runs on parts of so many images, or of so many rows."""

    def __init__(self, dim, most):
        super().__init__()
        self.dim, self.most = dim, most

    def forward(self, x):
        outs = [super(_InParts, self).forward(part) for part in x.split(self.most, self.dim)]
        return torch.cat(outs) if self.dim == 0 else torch.stack(outs).mean(0)


def _teacher(net):
    torch.manual_seed(0)
    card = ModelCard("tiny", "tiny", input_size=16, num_classes=2, mean=(0.5,) * 3, std=(0.25,) * 3)
    return Teacher("tiny", net.eval(), card, dtype=torch.float64)


def test_a_smaller_view_runs_small_and_counts_its_own_positions():
    teacher = _teacher(_Convolutional())
    teacher.admit(view_size=32, image_size=64)  # half of an image twice the input size: 8 pixels
    view = torch.rand(3, 3, 32, 32, dtype=torch.float64)
    statistics = teacher.statistics.at(32)
    assert statistics.layers[0].positions == 64 and teacher.statistics.layers[0].positions == 256
    small = torch.nn.functional.interpolate(view, (8, 8), mode="bilinear", antialias=True)
    features = teacher.net.conv((small - 0.5) / 0.25)
    offset, var = statistics.batch_statistics(teacher.observe(view).moments, images=3)
    torch.testing.assert_close(offset + statistics.mean, features.mean((0, 2, 3)))
    torch.testing.assert_close(var, features.var((0, 2, 3), unbiased=False))


def test_a_smaller_view_runs_small_also_without_statistics():
    net = _Convolutional()
    net.bn = nn.Identity()
    teacher = _teacher(net)
    teacher.admit(view_size=8, image_size=16)
    view = torch.rand(3, 3, 8, 8, dtype=torch.float64)
    assert teacher.statistics is None
    torch.testing.assert_close(teacher.observe(view).logits, net.double()((view - 0.5) / 0.25))


def test_a_network_of_one_size_sees_the_view_enlarged():
    teacher = _teacher(_OneSizeOnly())
    teacher.admit(view_size=8, image_size=16)
    assert teacher.statistics.at(8) is teacher.statistics
    assert teacher.observe(torch.rand(1, 3, 8, 8, dtype=torch.float64)).logits.shape == (1, 2)


def test_a_network_that_runs_fewer_layers_on_a_smaller_view_sees_it_enlarged():
    teacher = _teacher(_InParts(2, 8))
    teacher.admit(view_size=8, image_size=16)
    assert teacher.statistics.at(8) is teacher.statistics
    assert teacher.observe(torch.rand(3, 3, 8, 8, dtype=torch.float64)).moments.shape == (2, teacher.channels)


def test_a_network_whose_layers_run_image_by_image_is_refused():
    with pytest.raises(ValueError, match="more or fewer times on 2 images than on one; let each see the whole batch"):
        _teacher(_InParts(0, 1))
    teacher = _teacher(_InParts(0, 2))
    with pytest.raises(ValueError, match="on 4 images"):
        teacher.observe(torch.rand(4, 3, 16, 16, dtype=torch.float64))


def test_the_network_passed_in_stays_as_it_was():
    net = _Convolutional()
    _teacher(net)
    assert type(net.bn) is nn.BatchNorm2d and net.conv.weight.dtype == torch.float32
    assert net.conv.weight.requires_grad


def test_a_network_that_takes_each_batchs_statistics_is_told():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten(), nn.Linear(144, 5)
    )
    teacher = Teacher("t", net, ModelCard("t", "test", 8, 5, (0.5,) * 3, (0.5,) * 3))
    assert [note.partition(",")[0] for note in teacher.notes] == [
        "t: BatchNorm 1 keeps no statistics and takes those of each batch"
    ]


@pytest.mark.parametrize("classes", [1, 4])
def test_what_may_be_of_a_sigmoid_is_told(classes: int):
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, classes, bias=False))
    with torch.no_grad():
        net[1].weight.copy_(-torch.rand(classes, 192, generator=torch.Generator().manual_seed(0)) / 50)
    card = ModelCard("t", "test", 8, classes, (0.0,) * 3, (1.0,) * 3)
    assert not Teacher("t", net, card).notes  # logits, below 0
    (note,) = Teacher("t", nn.Sequential(net, nn.Sigmoid()), card).notes
    assert "if it ends in a sigmoid, let it return the logits" in note
