"""Models of timm: fine-tuning by `derive --from timm:NAME:FILE`, and every use of such a run."""

from __future__ import annotations

import builtins
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from invoking import call, refuse
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

import darts_lite as dl
from darts_lite.architecture.cost import cost_of
from darts_lite.architecture.flat_network import FlatNetwork
from darts_lite.architecture.genotype import Genotype
from darts_lite.architecture.network import calibrate
from darts_lite.architecture.networks import network_of
from darts_lite.architecture.structure import TimmModel
from darts_lite.architecture.timm_network import TimmNetwork, pretrained, timm_network
from darts_lite.errors import UserError
from darts_lite.training import checkpoint
from darts_lite.training.task import TrainTask
from darts_lite.training.transfer import rates_of, take_over

timm = pytest.importorskip("timm")
safetensors = pytest.importorskip("safetensors.torch")

GRAY, COLOR = (1, 32, 32), (3, 32, 32)
MODELS = ("test_resnet", "test_efficientnet", "test_vit", "test_convnext", "test_nfnet")
SEARCH = ["--dataset", "digits", "--subset", "200", "--space", "blocks", "--cells", "3",
          "--channels", "4", "--max-params", "3000", "--batch-size", "32"]  # fmt: skip


def imagenet(name: str, seed: int = 0, **size: Any) -> nn.Module:
    """Return a model with 1000 classes, color images and BatchNorm statistics like a trained one."""
    torch.manual_seed(seed)
    model = timm.create_model(name, **size).eval()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return model


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of weights of test_resnet."""
    path = tmp_path_factory.mktemp("weights") / "test_resnet.pth"
    torch.save(imagenet("test_resnet").state_dict(), path)
    return path


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("timm") / "out"
    result = call("search", *SEARCH, "--steps", 4, "--out", out)
    assert result.exit_code == 0, result.output
    return out


def derive(searched: Path, out: Path, *words: object) -> dict[str, Any]:
    words = words if "--epochs" in words else ("--epochs", 2, *words)
    genotype = () if "--genotype" in words else ("--genotype", searched / "g.json")
    result = call("derive", *genotype, "--out", out, *words)
    assert result.exit_code == 0, result.output
    return json.loads((out / "metrics.json").read_text())


@pytest.fixture(scope="module")
def trained(searched: Path, file: Path) -> Path:
    """Return a run that fine-tuned test_resnet on digits."""
    out = searched.parent / "trained"
    derive(searched, out, "--from", f"timm:test_resnet:{file}", "--epochs", 4)
    return out


def weights(out: Path) -> dict[str, Tensor]:
    return torch.load(out / "model.pt", weights_only=True)


def pixels(count: int = 9, image: tuple[int, int, int] = (1, 8, 8)) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (count, *image), dtype=torch.uint8, generator=generator)


# --- the network ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_the_network_is_that_of_timm_on_normalized_images(name: str) -> None:
    size = {"img_size": 32} if name == "test_vit" else {}
    model = imagenet(name, **size)
    network, whole = pretrained(name, COLOR, 1000, model.state_dict(), "file")
    x = torch.rand(4, *COLOR)
    mean, std = (torch.tensor(model.pretrained_cfg[n]).view(3, 1, 1) for n in ("mean", "std"))
    torch.testing.assert_close(network.eval()(x), model((x - mean) / std), atol=1e-5, rtol=1e-5)
    assert whole
    ours, of_fewer = pretrained(name, COLOR, 7, model.state_dict(), "file")
    assert not of_fewer and ours.eval()(x).shape == (4, 7)
    depths = ours.depths()
    last = max(depths.values())
    for key, value in dict(ours.named_parameters()).items():
        theirs = dict(network.named_parameters())[key]
        assert value.shape != theirs.shape or value.equal(theirs) or depths[key] == last, key


@torch.no_grad()
def test_weights_of_color_images_fit_gray_ones_as_timm_adapts_them() -> None:
    model = imagenet("test_efficientnet")
    network, _ = pretrained("test_efficientnet", GRAY, 10, model.state_dict(), "file")
    stem = dict(network.named_parameters())["model.conv_stem.weight"]
    torch.testing.assert_close(stem, model.conv_stem.weight.sum(1, keepdim=True))
    about = model.pretrained_cfg
    assert network.mean.shape == (1, 1, 1)
    assert float(network.mean) == pytest.approx(sum(about["mean"]) / 3)
    assert float(network.std) == pytest.approx(sum(about["std"]) / 3)
    again, whole = pretrained(
        "test_efficientnet", GRAY, 10,
        {n.removeprefix("model."): v for n, v in network.state_dict().items()}, "file",
    )  # fmt: skip
    assert whole and torch.equal(dict(again.named_parameters())["model.conv_stem.weight"], stem)


@pytest.mark.parametrize("name", MODELS)
def test_a_training_pass_is_a_pure_function_and_calibration_sets_statistics(name: str) -> None:
    network = timm_network(name, GRAY, 10, torch.Generator().manual_seed(0))
    assert not any("num_batches_tracked" in key for key in network.state_dict())
    before = {n: b.clone() for n, b in network.named_buffers()}
    flat, x = FlatNetwork(network), torch.rand(8, *GRAY)
    first, second = flat(flat.params, x), flat(flat.params, x)
    assert torch.equal(first, second)
    assert all(torch.equal(b, before[n]) for n, b in network.named_buffers())
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm)]
    batches = [(torch.rand(8, *GRAY), torch.zeros(8).long()) for _ in range(3)]
    calibrate(network, batches)
    assert all((m.running_var != 1).any() for m in norms)
    assert bool(norms) == (name in ("test_resnet", "test_efficientnet"))
    after = {n: b.clone() for n, b in network.named_buffers()}
    flat(flat.params, x)
    assert all(torch.equal(b, after[n]) for n, b in network.named_buffers())


def test_calibrated_statistics_are_the_means_over_batches() -> None:
    network = timm_network("test_resnet", GRAY, 10, torch.Generator().manual_seed(0))
    batches = [(torch.rand(8, *GRAY), torch.zeros(8).long()) for _ in range(3)]
    norm, seen = network.model.bn1, []
    hook = norm.register_forward_pre_hook(lambda _, x: seen.append(x[0].detach()))
    calibrate(network, batches)
    hook.remove()
    means = torch.stack([x.mean((0, 2, 3)) for x in seen])
    assert len(seen) == 3
    torch.testing.assert_close(norm.running_mean, means.mean(0), atol=1e-6, rtol=1e-5)


def test_dropout_and_drop_path_of_a_model_are_off() -> None:
    model = timm.create_model("test_vit", img_size=32, drop_path_rate=0.5, proj_drop_rate=0.5,
                              drop_rate=0.5, in_chans=1)  # fmt: skip
    x = torch.rand(4, *GRAY)
    assert not torch.equal(model.train()(x), model(x))
    network = TimmNetwork(model, 1).train()
    assert torch.equal(network(x), network(x))


@pytest.mark.parametrize("name", MODELS)
def test_cost_is_exact(name: str) -> None:
    made = genotype(name)
    network = network_of(made).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.rand(1, *GRAY))
    counted = sum(p.numel() for p in network.parameters())
    assert cost_of(made) == (counted, counter.get_total_flops() // 2)
    assert counted == sum(p.numel() for p in network.model.parameters())


def genotype(name: str) -> Genotype:
    from test_plain import genotype_of_space  # noqa: PLC0415

    return genotype_of_space(GRAY, TimmModel(name=name))


@pytest.mark.parametrize("name", MODELS)
def test_new_weights_follow_the_generator_alone(name: str) -> None:
    made = genotype(name)

    def drawn(seed: int) -> list[Tensor]:
        return list(network_of(made, torch.Generator().manual_seed(seed)).parameters())

    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, two, other = drawn(0), drawn(0), drawn(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one, two))
    assert any(not torch.equal(a, b) for a, b in zip(one, other))


@pytest.mark.parametrize("name", MODELS)
def test_depths_are_the_groups_of_timm(name: str) -> None:
    network = timm_network(name, GRAY, 10)
    depths = network.depths()
    assert set(depths) == {n for n, _ in network.named_parameters()}
    assert set(depths.values()) == set(range(max(depths.values()) + 1))
    head = network.model.get_classifier()
    last = {id(p) for n, p in network.named_parameters() if depths[n] == max(depths.values())}
    assert {id(p) for p in head.parameters()} <= last
    rates = rates_of(FlatNetwork(network))
    assert rates.count == max(depths.values()) + 1


def test_a_classifier_of_other_classes_stays_new() -> None:
    own = timm_network("test_resnet", GRAY, 4, torch.Generator().manual_seed(0))
    other = timm_network("test_resnet", GRAY, 6, torch.Generator().manual_seed(1))
    head = own.model.fc.weight.clone()
    assert not take_over(own, other, "run")
    assert torch.equal(own.model.fc.weight, head)
    assert torch.equal(own.model.layer1[0].conv1.weight, other.model.layer1[0].conv1.weight)
    with pytest.raises(UserError, match="architecture of the genotype"):
        take_over(own, timm_network("test_efficientnet", GRAY, 4), "run")
