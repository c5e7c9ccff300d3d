"""Trains the generator of `kind: generator`, `pretrained: {kind: feature_inverter}`: from features to the image.

    python demos/train_feature_inverter.py --data cifar10.tar.xz --encoder MODEL@FILE --output results/feature_inverter

The encoder is a network that is neither a teacher nor a judge where the generator is used: a prior made from a judge
would please it. A code is its `--last` feature map, after the ReLU, averaged to 4 x 4. The loss is the share of the
variance (about the batch's mean) that is not explained, of the image, of the `--middle` map and of the code, summed:

    L = U(x) + U(middle) + U(code),     U(a) = sum (a' - a)^2 / sum (a - mean a)^2

There is no adversarial term, so textures come out smooth. Beside the weights are the bounds of cnnpref and of Nguyen et
al. 2016: mean + 3 standard deviations of each number of the code, over the images that the training saw, half of them
mirrored. --held-out training images are never trained on; the figures are theirs, and a test split is not read.
The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ensemble import create_model
from ensemble.data.labelled import load_images
from ensemble.engine.optimizers import load_optimizer_tensors, optimizer_tensors
from ensemble.image.feature_inverter import SLOPE, read_inverter
from ensemble.machine.checkpoint import load_checkpoint, save_checkpoint
from ensemble.machine.files import write_bytes, write_json
from ensemble.machine.hardware import channels_last
from ensemble.machine.progress import progress_reporter
from ensemble.machine.rng import generator
from models import network_input

WIDTHS = (192, 128, 64, 32)
SIDE = 4  # of a code
SIZE = SIDE * 2 ** (len(WIDTHS) - 1)
SAVE_EVERY = 100
SETTINGS = ("encoder", "middle", "last", "steps", "batch", "lr", "held_out", "seed")
"""Options that a run which goes on must share."""


class Encoder:
    """The frozen network: images (N, 3, H, W), RGB in [0, 1], to its middle feature map and to codes (N, C, 4, 4)."""

    def __init__(self, spec: str, middle: str, last: str) -> None:
        self.net, self.card = create_model(spec)
        channels_last(self.net)
        self._seen: dict[str, Tensor] = {}
        for name in (middle, last):
            self.net.get_submodule(name).register_forward_hook(
                lambda _module, _inputs, output, name=name: self._seen.update({name: output})
            )
        self._names = middle, last

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.net(network_input(images, self.card))
        middle, last = (self._seen.pop(name) for name in self._names)
        return middle.float(), F.adaptive_avg_pool2d(last.float(), SIDE)


def new_network(channels: int) -> nn.Sequential:
    """What is trained: `InverterNetwork` with a BatchNorm after each convolution but the last."""
    layers: list[nn.Module] = []
    for i, width in enumerate(WIDTHS):
        layers += [nn.Upsample(scale_factor=2)] if i else []
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width, momentum=0.02), nn.LeakyReLU(SLOPE)]
        channels = width
    return nn.Sequential(*layers, nn.Conv2d(channels, 3, 3, padding=1), nn.Sigmoid())


def folded(net: nn.Module) -> dict[str, Tensor]:
    """The weights as `read_inverter` takes them, in half precision, BatchNorms in the convolutions."""
    assert isinstance(net, nn.Sequential)
    net = net.eval()
    convolutions = []
    for layer, following in zip(net, [*net[1:], None], strict=True):
        if isinstance(layer, nn.Conv2d):
            normed = isinstance(following, nn.BatchNorm2d)
            convolutions.append(fuse_conv_bn_eval(layer, following) if normed else layer)
    tensors = {f"weight{i}": layer.weight for i, layer in enumerate(convolutions)}
    for i, layer in enumerate(convolutions):
        assert layer.bias is not None
        tensors[f"bias{i}"] = layer.bias
    return {name: tensor.detach().half().contiguous() for name, tensor in tensors.items()}


def unexplained(made: Tensor, real: Tensor) -> Tensor:
    return (made.float() - real).square().sum() / (real - real.mean(0)).square().sum()


class Training:
    """The network, its optimiser and the codes' sums, as far as they have come."""

    def __init__(self, options: argparse.Namespace, encoder: Encoder, images: Tensor) -> None:
        self.options, self.encoder, self.images = options, encoder, images
        self.device = torch.device(options.device)
        _, code = encoder(self._batch(torch.arange(1), torch.zeros(1, dtype=torch.bool)))
        torch.manual_seed(generator(options.seed, "network").initial_seed())
        self.net = channels_last(new_network(code.shape[1]).to(self.device))
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=options.lr, betas=(0.9, 0.99))
        self.sums = torch.zeros(3, *code.shape[1:], dtype=torch.float64)  # count, sum, sum of squares
        self.step = 0

    def _batch(self, index: Tensor, mirrored: Tensor) -> Tensor:
        batch = self.images[index].float() / 255
        batch = torch.where(mirrored[:, None, None, None], batch.flip(3), batch)
        return batch.to(self.device).contiguous(memory_format=torch.channels_last)

    def next_batch(self) -> Tensor:
        """The step's images: in a new order each time through, half of them mirrored."""
        per_pass = len(self.images) // self.options.batch
        passes, place = divmod(self.step, per_pass)
        order = torch.randperm(len(self.images), generator=generator(self.options.seed, "order", passes))
        index = order[place * self.options.batch : (place + 1) * self.options.batch]
        return self._batch(
            index, torch.rand(len(index), generator=generator(self.options.seed, "flip", self.step)) < 0.5
        )

    def go_on(self) -> dict[str, float]:
        """One step, and the losses at it."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.lr * rate(self.step, self.options.steps)
        real = self.next_batch()
        with torch.autocast(self.device.type, torch.bfloat16):
            with torch.no_grad():
                middle, code = self.encoder(real)
            made = self.net(code)
            made_middle, made_code = self.encoder(made)
        losses = [unexplained(*pair) for pair in ((made, real), (made_middle, middle), (made_code, code))]
        self.optimizer.zero_grad()
        sum(losses).backward()  # type: ignore[union-attr]
        self.optimizer.step()
        code = code.cpu().double()
        self.sums += torch.stack([torch.full_like(code[0], len(code)), code.sum(0), code.square().sum(0)])
        self.step += 1
        return dict(zip(("image", "middle", "code"), (loss.item() for loss in losses), strict=True))

    def highest(self) -> Tensor:
        """mean + 3 standard deviations of each number of the code."""
        count, total, squares = self.sums
        mean = total / count
        return (mean + 3 * (squares / count - mean**2).clamp_min(0).sqrt()).float()

    def save(self) -> None:
        tensors = {f"net.{name}": value for name, value in self.net.state_dict().items()}
        tensors |= {f"optimizer.{name}": value for name, value in optimizer_tensors(self.optimizer).items()}
        save_checkpoint(self.options.output, "training", self.step, {**tensors, "sums": self.sums}, self.settings)

    def restore(self) -> None:
        saved, _ = load_checkpoint(self.options.output, "training")
        if saved is None:
            return
        if saved.meta != self.settings:
            raise ValueError(f"{self.options.output} holds a training with {saved.meta}; give another --output")
        parts: dict[str, dict[str, Tensor]] = {"net": {}, "optimizer": {}}
        for name, tensor in saved.tensors.items():
            if name != "sums":
                part, key = name.split(".", 1)
                parts[part][key] = tensor
        self.net.load_state_dict(parts["net"])
        load_optimizer_tensors(self.optimizer, parts["optimizer"])
        self.sums, self.step = saved.tensors["sums"], saved.step

    @property
    def settings(self) -> dict[str, str | int | float]:
        return {name: getattr(self.options, name) for name in SETTINGS}


def rate(step: int, steps: int, warmup: int = 100) -> float:
    """Of the learning rate: rises over the first steps, then falls to 0 as a half cosine."""
    return min(1.0, (step + 1) / warmup) * (1 + math.cos(math.pi * step / steps)) / 2


@torch.no_grad()
def figures(file: Path, encoder: Encoder, held_out: Tensor, mean_image: Tensor) -> dict[str, float]:
    """Of images that were not trained on, through the file as it is used: fp32 on the CPU."""
    encoder.net.cpu()
    generate = read_inverter(file).network
    errors: dict[str, list[Tensor]] = {}
    for part in held_out.split(100):
        real = part.float() / 255
        _, code = encoder(real)
        for name, made in {"": generate(code), "mean_image_": mean_image.expand_as(real)}.items():
            again = encoder(made)[1]
            errors.setdefault(f"{name}image_mse", []).append((made - real).square().mean((1, 2, 3)))
            cosine = F.cosine_similarity(code.flatten(1), again.flatten(1))
            errors.setdefault(f"{name}code_cosine", []).append(cosine)
    return {name: round(float(torch.cat(values).mean()), 5) for name, values in errors.items()}


def write_result(training: Training, held_out: Tensor, name: str = "feature_inverter") -> dict[str, float]:
    """The weights with their bounds, and the record of how they came about."""
    options = training.options
    data = save({**folded(training.net.cpu().float()), "highest": training.highest()})
    file = options.output / f"{name}.safetensors"
    write_bytes(file, data)
    mean_image = sum(part.double().sum(0) for part in training.images.split(1000)) / (255 * len(training.images))
    found = figures(file, training.encoder, held_out, mean_image.float())
    card = training.encoder.card
    record = {
        "file": file.name,
        "sha256": hashlib.sha256(data).hexdigest(),
        "licence": "MIT",
        "trained_on": f"{Path(options.data).name}, train; figures on {len(held_out)} images of it that were held out",
        "encoder": f"{card.name}, {options.last}, averaged to {SIDE} x {SIDE}",
        "encoder_sha256": card.loaded.sha256 if card.loaded else None,
        "loss": f"unexplained variance of image, {options.middle} and code; no adversarial term",
        "bounds": "mean + 3 standard deviations of each number of the code over the batches trained on",
        "command": f"python demos/train_feature_inverter.py --data {Path(options.data).name} "
        f"--encoder {_without_folder(options.encoder)} --middle {options.middle} --last {options.last} "
        f"--steps {options.steps} --batch {options.batch} --lr {options.lr} --seed {options.seed}",
        "date": datetime.date.today().isoformat(),
        "figures": found,
    }
    write_json(options.output / f"{name}.json", record)
    return found


def _without_folder(spec: str) -> str:
    name, at, file = spec.partition("@")
    return f"{name}{at}{Path(file).name}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a folder or archive with train/CLASS/FILE")
    parser.add_argument("--encoder", required=True, metavar="MODEL@FILE")
    parser.add_argument("--middle", default="layer2", metavar="LAYER")
    parser.add_argument("--last", default="layer3", metavar="LAYER", help="whose output, after its ReLU, is the code")
    parser.add_argument("--output", type=Path, default=Path("results/feature_inverter"))
    parser.add_argument("--steps", type=int, default=4600)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--held-out", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    encoder = Encoder(options.encoder, options.middle, options.last)
    encoder.net.to(options.device)
    images = load_images(options.data, "train", SIZE).images
    order = torch.randperm(len(images), generator=generator(options.seed, "held out"))
    held_out, images = images[order[: options.held_out]], images[order[options.held_out :]]
    training = Training(options, encoder, images)
    training.restore()
    progress = progress_reporter()
    progress.start(options.steps, training.step)
    while training.step < options.steps:
        losses = training.go_on()
        progress.step(training.step - 1, losses if training.step % 10 == 0 else None)
        if training.step % SAVE_EVERY == 0 or training.step == options.steps:
            training.save()
    progress.close()
    for name, value in write_result(training, held_out).items():
        print(f"{name}: {value:g}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on")
