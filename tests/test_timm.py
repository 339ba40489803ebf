"""Models of timm: fine-tuning by `derive --from timm:NAME:FILE`, and every use of such a run."""

from __future__ import annotations

import builtins
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from invoking import call, refuse
from killing import stopping
from spaces import random_member
from test_network import SPACES
from test_refresh import refresh, write
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

import darts_lite as dl
from darts_lite.architecture.cost import cost_of, genotype_with_cost
from darts_lite.architecture.flat_network import FlatNetwork
from darts_lite.architecture.genotype import Genotype
from darts_lite.architecture.network import calibrate
from darts_lite.architecture.networks import network_of
from darts_lite.architecture.structure import TimmModel
from darts_lite.architecture.timm_network import (
    TimmNetwork,
    pretrained,
    require_trainable,
    timm_network,
)
from darts_lite.commands.pretrained import as_timm
from darts_lite.data import Dataset, Images, Splits
from darts_lite.errors import UserError
from darts_lite.hypergradient import InnerState
from darts_lite.training import checkpoint
from darts_lite.training.options import DeriveOptions
from darts_lite.training.problem import Batch
from darts_lite.training.task import TrainTask
from darts_lite.training.transfer import rates_of, take_over

timm = pytest.importorskip("timm")
safetensors = pytest.importorskip("safetensors.torch")

GRAY, COLOR = (1, 32, 32), (3, 32, 32)
MODELS = ("test_resnet", "test_efficientnet", "test_vit", "test_convnext", "test_nfnet")
SEARCH = ["--dataset", "digits", "--subset", "200", "--space", "blocks", "--cells", "3",
          "--channels", "4", "--max-params", "3000", "--batch-size", "32"]  # fmt: skip


def imagenet(name: str, seed: int = 0, **size: Any) -> nn.Module:
    """Return a model with 1000 classes, color images and statistics as after a training."""
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
    out = searched / "derive"
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
    fine_tuned = network.model.state_dict()
    again, whole = pretrained("test_efficientnet", GRAY, 10, fine_tuned, "file")
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
    member = random_member(SPACES["blocks"], 0)
    return as_timm(genotype_with_cost(member, GRAY, tuple("0123456789")), name)


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


# --- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_steps_are_those_of_plain_torch(
    digits: tuple[Dataset, Splits], searched: Path, name: str
) -> None:
    """The twin has BatchNorm as timm makes it, torch's SGD, and images normalized by hand."""
    dataset, splits = digits
    dataset = larger(dataset)
    splits = Splits(*(enlarged(part) for part in splits))
    made = as_timm(replace(Genotype.load(searched / "g.json"), image=(1, 32, 32)), name)
    options = DeriveOptions(augment="none", hyperparameters="default", epochs=1, batch_size=16)
    task = TrainTask(options, made, dataset, splits, torch.device("cpu"))
    network = task.network.network.double()  # ReLU multiplies rounding errors
    params = tuple(p.double() for p in task.inner.params)
    task.inner = InnerState(params, task.plain.optimizer.init(params))
    size = {"img_size": 32} if name == "test_vit" else {}
    twin = timm.create_model(name, in_chans=1, num_classes=10, **size).double()
    twin.load_state_dict(network.model.state_dict(), strict=False)
    twin.train()
    decayed = {True: [], False: []}
    for parameter in twin.parameters():
        decayed[parameter.dim() > 1].append(parameter)
    groups = [{"params": decayed[True]}, {"params": decayed[False], "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    mean, std = (sum(twin.pretrained_cfg[n]) / 3 for n in ("mean", "std"))
    begin = task.network.unflatten(task.inner.params)
    batches, original = [], task.feed.batch

    def batch(*arguments: Any) -> Batch:
        made = original(*arguments)
        batches.append(made._replace(images=made.images.double()))
        return batches[-1]

    task.feed.batch = batch  # type: ignore[method-assign]
    for fraction in (0.3, 0.5, 0.7):
        task.step(fraction)
        x, y = batches[-1].images, batches[-1].labels
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 0.1 * task.lr_factor(
            fraction
        )
        optimizer.zero_grad()
        F.cross_entropy(twin((x - mean) / std), y, label_smoothing=0.1).backward()
        optimizer.step()
    ours = task.network.unflatten(task.inner.params)
    for key, value in twin.named_parameters():
        moved = (value - begin[f"model.{key}"]).norm()
        assert (ours[f"model.{key}"] - value).norm() <= 1e-6 * moved + 1e-9, key


def enlarged(images: Images) -> Images:
    """Return images of four times the size."""
    pixels = images.pixels.repeat_interleave(4, 2).repeat_interleave(4, 3)
    return Images(pixels, images.labels)


def larger(dataset: Dataset) -> Dataset:
    test = None if dataset.test is None else enlarged(dataset.test)
    return replace(dataset, train=enlarged(dataset.train), test=test)


def test_fine_tuning_starts_from_the_file_and_a_new_classifier(
    searched: Path, file: Path, tmp_path: Path
) -> None:
    metrics = derive(searched, tmp_path, "--from", f"timm:test_resnet:{file}", "--freeze",
                     "features")  # fmt: skip
    made = Genotype.load(tmp_path / "genotype.json")
    assert made.structure == TimmModel(name="test_resnet")
    assert (metrics["parameters"], metrics["macs"]) == (made.parameters, made.macs) == cost_of(made)
    before, after = torch.load(file, weights_only=True), weights(tmp_path)
    moved = set()
    for name, _ in network_of(made).named_parameters():
        key = name.removeprefix("model.")
        wanted = before[key].sum(1, keepdim=True) if key == "conv1.0.weight" else before[key]
        if after[name].shape != wanted.shape or not torch.equal(after[name], wanted):
            moved.add(key)
    assert moved == {"fc.weight", "fc.bias"}
    start = network_of(made, torch.Generator().manual_seed(0))
    assert not torch.equal(after["model.fc.weight"], start.model.fc.weight)


def test_safetensors_and_checkpoints_of_timm_hold_the_same_weights(
    file: Path, tmp_path: Path
) -> None:
    wanted = torch.load(file, weights_only=True)
    safetensors.save_file(wanted, tmp_path / "w.safetensors")
    torch.save({"epoch": 3, "state_dict": {f"module.{n}": v for n, v in wanted.items()},
                "state_dict_ema": wanted}, tmp_path / "w.pt")  # fmt: skip
    torch.save({"model": {f"_orig_mod.module.{n}": v for n, v in wanted.items()}},
               tmp_path / "v.pt")  # fmt: skip
    for name in ("w.safetensors", "w.pt", "v.pt"):
        found = checkpoint.read_weights(tmp_path / name)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[n], wanted[n]) for n in wanted)


WAYS = [
    [],
    ["--freeze", "2", "--unfreeze-at", 0.5, "--layer-decay", 0.7],
    ["--ema", 0.9, "--select", "best", "--clip", 1],
    ["--hyperparameters", "online", "--estimator", "one_step", "--learn", "layer_lr"],
]


@pytest.mark.parametrize("words", WAYS, ids=["plain", "transfer", "average", "online"])
@pytest.mark.filterwarnings("ignore:OneStep learns the lr greedily")
def test_a_resumed_fine_tuning_equals_an_uninterrupted_one(
    searched: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[Any]
) -> None:
    line = ["--from", f"timm:test_resnet:{file}", "--epochs", 4, *words]
    derive(searched, tmp_path / "whole", *line)
    derive(searched, tmp_path / "again", *line)
    with stopping(monkeypatch, at=9):
        out = ["--genotype", searched / "g.json", "--out", tmp_path / "d"]
        stopped = call("derive", *out, *line)
    assert stopped.exit_code == 143, stopped.output
    resumed = call("derive", "--resume", "--out", tmp_path / "d")
    assert resumed.exit_code == 0, resumed.output
    one = weights(tmp_path / "whole")
    for other in ("again", "d"):
        two = weights(tmp_path / other)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[n], two[n]) for n in one)
    if "online" in words:
        learned = Genotype.load(tmp_path / "d" / "learned.json").recipe.schedules
        count = rates_of(FlatNetwork(network_of(Genotype.load(tmp_path / "d" / "genotype.json"))))
        names = [n for n in learned if n.startswith("layer_lr.")]
        assert len(names) == count.count
        assert all(learned[n][0][1] != learned[n][-1][1] for n in names)


# --- a run in use ---------------------------------------------------------------------------------


def test_a_run_is_loaded_without_the_file_of_its_start(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timm.models._builder, "load_pretrained", None)
    predictor = dl.load(trained)
    network = predictor.network
    assert isinstance(network, TimmNetwork) and not network.training
    images = pixels()
    with torch.no_grad():
        direct = network(images.float() / 255).softmax(1)
    torch.testing.assert_close(predictor.predict(images).probabilities, direct)


def test_predict_report_and_card_speak_of_the_timm_model(
    searched: Path, trained: Path, tmp_path: Path
) -> None:
    card = (trained / "MODEL_CARD.md").read_text()
    assert "it is the timm model `test_resnet`" in card and "- space" not in card
    assert not (trained / "pictures" / "genotype.png").exists()
    from PIL import Image

    Image.fromarray(pixels(1)[0, 0].numpy()).save(tmp_path / "one.png")
    said = call("predict", trained, tmp_path / "one.png")
    assert said.exit_code == 0, said.output
    assert said.stdout.split()[1] in Genotype.load(trained / "genotype.json").classes
    report = call("report", searched, "--out", tmp_path / "report")
    assert report.exit_code == 0, report.output
    page = "".join(p.read_text() for p in (tmp_path / "report").glob("*.html"))
    assert str(cost_of(Genotype.load(trained / "genotype.json")).parameters) in page


@pytest.mark.parametrize("form", ["onnx", "torch"])
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_export_computes_the_same(searched: Path, tmp_path: Path, name: str, form: str) -> None:
    if form == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package)
    torch.save(imagenet(name).state_dict(), tmp_path / "w.pth")
    run = tmp_path / "run"
    derive(searched, run, "--from", f"timm:{name}:{tmp_path / 'w.pth'}", "--epochs", 1)
    found = call("export", run, "--format", form)
    assert found.exit_code == 0, found.output
    assert "largest difference" in found.output


@pytest.mark.parametrize("words", [(), ("--compare",)])
def test_a_run_cannot_be_compressed(trained: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    line = ["compress", trained, "--target-params", 900, "--out", tmp_path / "c", *words]
    said = refuse(*line)
    assert "got the timm model test_resnet in" in said and f"derive --teacher {trained}" in said
    assert not (tmp_path / "c").exists()


def test_a_run_starts_another_and_teaches(searched: Path, trained: Path, tmp_path: Path) -> None:
    derive(searched, tmp_path / "next", "--genotype", trained / "genotype.json", "--from", trained,
           "--freeze", "features")  # fmt: skip
    one, two = weights(trained), weights(tmp_path / "next")
    network = network_of(Genotype.load(trained / "genotype.json"))
    moved = {n for n, _ in network.named_parameters() if not torch.equal(one[n], two[n])}
    assert moved == {"model.fc.weight", "model.fc.bias"}
    derive(searched, tmp_path / "alone", "--epochs", 1)
    derive(searched, tmp_path / "taught", "--epochs", 1, "--teacher", trained)
    alone, taught = weights(tmp_path / "alone"), weights(tmp_path / "taught")
    assert alone.keys() == taught.keys() and "stem.weight" in alone
    assert not torch.equal(alone["stem.weight"], taught["stem.weight"])
    line = ["derive", "--genotype", searched / "g.json", "--from", trained, "--epochs", 1]
    assert "take the genotype of that training" in refuse(*line, "--out", tmp_path / "x")


def test_a_teacher_of_timm_sees_normalized_images(
    searched: Path, trained: Path, tmp_path: Path
) -> None:
    """The run's own model as a file teaches as the run does."""
    inner = {n.removeprefix("model."): v for n, v in weights(trained).items() if "model." in n}
    torch.save(inner, tmp_path / "w.pth")
    derive(searched, tmp_path / "a", "--epochs", 1, "--teacher",
           f"timm:test_resnet:{tmp_path / 'w.pth'}")  # fmt: skip
    derive(searched, tmp_path / "b", "--epochs", 1, "--teacher", trained)
    one, two = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(one[n], two[n]) for n in one)


def test_folds_and_selftraining_of_a_timm_model(
    searched: Path, trained: Path, file: Path, tmp_path: Path
) -> None:
    found = call("derive", "--genotype", searched / "g.json", "--from", f"timm:test_resnet:{file}",
                 "--folds", 2, "--epochs", 1, "--out", tmp_path / "f")  # fmt: skip
    assert found.exit_code == 0, found.output
    assert dl.load(tmp_path / "f").predict(pixels()).probabilities.shape == (9, 10)
    line = ["selftrain", "--genotype", trained / "genotype.json", "--unlabelled", "rest:100",
            "--rounds", 1, "--epochs", 1, "--confidence", 0, "--out", tmp_path / "s"]  # fmt: skip
    assert "--growth must be 1" in refuse(*line)
    again = call(*line, "--growth", 1)
    assert again.exit_code == 0, again.output
    last = Genotype.load(tmp_path / "s" / "last" / "genotype.json")
    assert last.structure == TimmModel(name="test_resnet")


@pytest.mark.slow
def test_refresh_trains_a_timm_model_again_for_a_new_class(file: Path, tmp_path: Path) -> None:
    write(tmp_path / "data", {"down": 60, "up": 60})
    dl.search(
        dataset=f"folder:{tmp_path / 'data'}", steps=3, cells=3, channels=4, batch_size=8,
        max_params=20_000, augment="standard", out=str(tmp_path / "out"), device="cpu",
        data_dir=str(tmp_path / "cache"), say=str,
    )  # fmt: skip
    dl.derive(genotype=str(tmp_path / "out/g.json"), epochs=2, hyperparameters="default",
              start=f"timm:test_resnet:{file}", say=str)  # fmt: skip
    write(tmp_path / "data", {"wide": 100})
    status, found, _ = refresh(tmp_path)
    assert found["plan"] == "fine-tune" and "instead of a search" in str(found["reason"])
    assert status == 10, found  # the old model never names the new class
    new = dl.load(tmp_path / "out/derive")
    assert new.classes == ("down", "up", "wide") and isinstance(new.network, TimmNetwork)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "words", "said"),
    [
        ("timm:", [], "--from must be timm:NAME:FILE with a local file"),
        ("timm:test_resnet", [], "--from must be timm:NAME:FILE with a local file"),
        ("timm:test_resnet:no.pth", [], "--from must be timm:NAME:FILE with a local file"),
        ("timm:test_resnets:FILE", [], "timm.list_models(), such as test_resnet"),
        ("timm:test_resnet.no:FILE", [], "tag of the timm model test_resnet must be one of r160"),
        ("timm:hf-hub:FILE", [], "must be a name of timm.list_models(), got 'hf-hub'"),
        ("timm:test_efficientnet:FILE", [], "must hold weights of the timm model test_efficient"),
        ("timm:test_vit:FILE", [], "the timm model test_vit must take images [1, 8, 8]"),
        ("timm:test_convnext:FILE", [], "the timm model test_convnext must take images [1, 8, 8]"),
        ("timm:test_resnet:TEXT", [], "must be a readable checkpoint"),
        ("timm:test_resnet:EMPTY", [], "must hold a state dictionary of tensors, got dict"),
        ("timm:test_resnet:CODE", [], "must be a readable checkpoint"),
        ("timm:test_resnet:BAD.safetensors", [], "must be a readable safetensors file"),
        ("timm:test_resnet:FILE", ["--max-params", 1000], "--max-params must be at least 373370"),
        ("timm:test_resnet:FILE", ["--freeze", "9"], "--freeze must be features or a number from"),
        ("timm:test_resnet:FILE", ["--random", 2], "--random draws networks of the space"),
    ],
)
def test_bad_input_is_one_line(
    searched: Path, file: Path, tmp_path: Path, start: str, words: list[Any], said: str
) -> None:
    (tmp_path / "TEXT").write_text("no weights")
    (tmp_path / "BAD.safetensors").write_text("no weights")
    torch.save({}, tmp_path / "EMPTY")
    torch.save(Code(), tmp_path / "CODE")
    head, _, last = start.rpartition(":")
    path = {"FILE": file}.get(last, tmp_path / last if last.isupper() or "BAD" in last else last)
    line = ["derive", "--genotype", searched / "g.json", "--epochs", 1, "--out", tmp_path / "d"]
    assert said in refuse(*line, "--from", f"{head}:{path}", *words)
    assert not Code.ran


class Code:
    """A pickled object that would run code."""

    ran = False

    def __reduce__(self) -> tuple[Any, ...]:
        return setattr, (Code, "ran", True)


def test_a_teacher_of_other_classes_is_refused(searched: Path, file: Path, tmp_path: Path) -> None:
    line = ["derive", "--genotype", searched / "g.json", "--epochs", 1, "--out", tmp_path / "d"]
    said = refuse(*line, "--teacher", f"timm:test_resnet:{file}")
    assert "must have weights of 10 classes" in said


def test_without_timm_the_remedy_is_named(
    searched: Path, trained: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] in ("timm", "safetensors"):
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    line = ["derive", "--genotype", searched / "g.json", "--epochs", 1, "--out", tmp_path / "d"]
    for flag in ("--from", "--teacher"):
        said = refuse(*line, flag, f"timm:test_resnet:{file}")
        assert "needs timm, which is not installed; run pip install timm" in said
    with pytest.raises(UserError, match="run pip install timm"):
        dl.load(trained)
    with pytest.raises(UserError, match="run pip install safetensors"):
        checkpoint.read_weights(tmp_path / "w.safetensors")


@pytest.mark.parametrize("name", ["hf-hub:user/model", "../x", ""])
def test_a_name_in_a_genotype_names_no_place(trained: Path, tmp_path: Path, name: str) -> None:
    content = json.loads((trained / "genotype.json").read_text())
    content["structure"]["name"] = name
    (tmp_path / "g.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="a model of timm must have a plain name"):
        Genotype.load(tmp_path / "g.json")


def test_a_model_that_changes_buffers_in_training_is_refused() -> None:
    network = timm_network("test_resnet", GRAY, 10)
    network.model.bn1.track_running_stats, network.model.bn1.momentum = True, 0.1
    with pytest.raises(UserError, match=r"one that changes model\.bn1\.running_mean in training"):
        require_trainable(network, "test_resnet", GRAY)
