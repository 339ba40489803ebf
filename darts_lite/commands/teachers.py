"""Load the teacher of a distillation, and the network that a training starts from."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from darts_lite.architecture.genotype import Genotype
from darts_lite.architecture.network import Network, calibrate
from darts_lite.architecture.weights import CellWeights
from darts_lite.commands.pretrained import TIMM, pretrained_of
from darts_lite.data import Dataset, Splits, changed, evaluation_batches
from darts_lite.data.unlabelled import load_unlabelled
from darts_lite.errors import UserError
from darts_lite.files import read_json, whole_lines
from darts_lite.nas.loading import restored_search
from darts_lite.nas.task import SearchTask
from darts_lite.training import checkpoint
from darts_lite.training.distillation import TEMPERATURE, WEIGHT, Teacher, ensemble
from darts_lite.training.distillation_losses import map_classes
from darts_lite.training.metrics import sample
from darts_lite.training.options import DeriveOptions, TeacherOptions
from darts_lite.training.predictor import Ensemble, load
from darts_lite.training.self_training import PseudoLabels, pseudo_labels

Logits = Callable[[Tensor], Tensor]
SUPERNET = "supernet"  # names the supernet of the search of the genotype
MEMBERS = 5  # trials of a study in its ensemble
CALIBRATED = 2000  # training images for the BatchNorm statistics of a supernet


def teacher_of(
    options: TeacherOptions,
    genotype: Path,
    dataset: Dataset,
    splits: Splits,
    device: torch.device,
) -> Teacher | None:
    """Return the teacher that the options name; None without `--teacher`.

    Arguments:
        options: options of the teacher.
        genotype: genotype file of the training; its search gives the supernet.
        dataset: data set of the training.
        splits: images on `device`.
        device: device of the training.
    Raises: `UserError` if the teacher cannot be loaded, or does not fit the data set.
    """
    text = options.teacher
    if text is None:
        return None
    if text == SUPERNET:
        logits = _supernet(genotype, splits, device)
    elif text.startswith(TIMM):
        logits = _timm(text, dataset, device)
    else:
        folders = [each for name in _folders(text) for each in _members(Path(name))]
        logits = ensemble([_trained(f, dataset, device, options) for f in folders])
    weight, temperature = options.teacher_weight, options.temperature
    return Teacher(
        logits,
        options.distillation,
        WEIGHT[options.distillation] if weight is None else weight,
        TEMPERATURE if temperature is None else temperature,
    )


def labels_of(
    options: TeacherOptions,
    teacher: Teacher | None,
    genotype: Genotype,
    dataset: Dataset,
    device: torch.device,
) -> PseudoLabels:
    """Return the teacher's labels of the images of `--unlabelled`.

    Arguments:
        options: options of the pseudo-labels; `unlabelled` is set.
        teacher: the teacher.
        genotype: genotype of the training; gives subset and seed.
        dataset: data set of the training.
        device: device of the training.
    Raises: `UserError` without a teacher or without images.
    """
    if teacher is None:
        raise UserError("--unlabelled needs a --teacher that labels the images, got none; add it")
    assert options.unlabelled is not None
    images = load_unlabelled(options.unlabelled, dataset, genotype.source.subset, genotype.seed)
    truth = None if images.truth is None else images.truth.to(device)
    return pseudo_labels(
        teacher.logits,
        images._replace(pixels=images.pixels.to(device), truth=truth),
        threshold=options.confidence,
        balance=options.balance,
        soft=options.pseudo == "soft",
    )


def that_saw(options: DeriveOptions, genotype: Genotype) -> list[Path]:
    """Return the trainings of teacher and start that saw validation images of this training.

    A training on the same data saw some of them unless it held out the same ones.

    Arguments:
        options: options of the training.
        genotype: genotype of the training.
    """
    text = options.teacher or ""
    named = [] if text == SUPERNET or text.startswith(TIMM) else _folders(text)
    folders = [each for name in named for each in _members(Path(name))]
    start = options.start
    own = start is not None and start != SUPERNET and not start.startswith(TIMM)
    folders += [Path(str(start))] if own else []
    return [folder for folder in folders if _saw(folder, options, genotype)]


def _saw(folder: Path, options: DeriveOptions, genotype: Genotype) -> bool:
    if (folder / "folds.json").exists():
        folder = folder / "fold0"
    earlier, metrics = Genotype.load(folder / "genotype.json"), folder / "metrics.json"
    if changed(earlier.dataset, genotype.dataset) is not None:
        return False
    alike = (earlier.seed, earlier.source.subset) == (genotype.seed, genotype.source.subset)
    held_out = not metrics.exists() or read_json(metrics)["validation_held_out"]  # or a trial
    return not (alike and held_out and options.folds is None)


def start_of(options: DeriveOptions, genotype: Genotype, device: torch.device) -> nn.Module | None:
    """Return the network of `--from`; None without it.

    Arguments:
        options: options of the training.
        genotype: genotype of the training; with `--from supernet`, it gives the network.
        device: device of the training.
    Raises: `UserError` if the network cannot be loaded, or the supernet has another width.
    """
    if options.start is None:
        return None
    if options.start == SUPERNET:
        return _inherited(Path(options.genotype), genotype)
    if options.start.startswith(TIMM):
        generator = torch.Generator().manual_seed(options.seed)
        return pretrained_of(
            options.start, "--from", genotype.image, len(genotype.classes), generator
        )[0].to(device)
    network = load(options.start, device).network
    if isinstance(network, Ensemble):
        raise UserError(
            f"--from must be one training, got the cross-validation {options.start}; give one of "
            "its folds"
        )
    return network


def _folders(text: str) -> list[str]:
    """Return the folders that `--teacher` names."""
    named = text.removeprefix("ensemble:").split(",") if text.startswith("ensemble:") else [text]
    return [name for name in named if name]


def _members(folder: Path) -> list[Path]:
    """Return the folder itself, or the folders of the best trials if it is that of a study."""
    trials = folder / "trials.jsonl"
    if not trials.exists():
        return [folder]
    rows = [json.loads(line) for line in whole_lines(trials)]
    places = {row["trial"]: folder / "trials" / str(row["trial"]) for row in rows}
    whole = [r for r in rows if (places[r["trial"]] / "model.pt").exists() and r["accuracy"]]
    if not whole:
        raise UserError(
            f"{folder} must be a study with a full training, got none; give it a longer budget"
        )
    best = sorted(whole, key=lambda row: -row["accuracy"])[:MEMBERS]
    return [places[row["trial"]] for row in best]


def _trained(
    folder: Path, dataset: Dataset, device: torch.device, options: TeacherOptions
) -> Logits:
    """Return the logits of a trained network, in the order of the student's classes."""
    predictor = load(folder, device)
    network = _constant(predictor.network)
    image = dataset.image
    if predictor.genotype.image != image:
        raise UserError(
            f"--teacher {folder} must take images {list(image)}, [C, H, W], got "
            f"{list(predictor.genotype.image)}; choose a teacher of the same --image-size"
        )
    index = _classes(predictor.genotype, dataset.classes, folder, options.teacher_map)
    if index is None:
        return network
    chosen = index.to(device)
    return lambda images: map_classes(network(images), chosen)


def _classes(
    genotype: Genotype, classes: Sequence[str], folder: Path, map_path: str | None
) -> Tensor | None:
    """Return the teacher's class `[K]` of every class of the student; None if they are the same."""
    if map_path is None:
        if tuple(genotype.classes) == tuple(classes):
            return None
        raise UserError(
            f"--teacher {folder} must have the classes of the data set, got "
            f"{', '.join(genotype.classes[:5])}, ...; give --teacher-map with a JSON file "
            '{"class": "class of the teacher", ...}'
        )
    said = read_json(Path(map_path))
    said = said if isinstance(said, dict) else {}
    known = {name: i for i, name in enumerate(genotype.classes)}
    missing = [name for name in classes if str(said.get(name)) not in known]
    if missing:
        raise UserError(
            f"{map_path} must map every class to a class of the teacher ({', '.join(known)}), got "
            f"none for {', '.join(missing[:5])}; add them"
        )
    return torch.tensor([known[said[name]] for name in classes])


def _inherited(path: Path, genotype: Genotype) -> Network:
    """Return the network of a genotype with the weights of the supernet of its search."""
    search = _search(path, "--from")
    supernet = search.supernet()
    if supernet.space.channels != genotype.space.channels:
        raise UserError(
            f"--from supernet needs a supernet as wide as its result, {genotype.space.channels} "
            f"channels, got {supernet.space.channels}; search with --search-channels "
            f"{genotype.space.channels}"
        )
    network = Network(genotype.space, genotype.image, len(genotype.classes))
    network.inherit(supernet)
    return network


def _search(genotype: Path, flag: str) -> SearchTask:
    """Return the state of the search beside a genotype."""
    saved = genotype.parent / "search" / "checkpoint.pt"
    if not saved.exists():
        raise UserError(
            f"{flag} supernet needs the checkpoint of the search, got no {saved}; give the "
            "genotype in the folder of its search"
        )
    return restored_search(saved)


def _supernet(genotype: Path, splits: Splits, device: torch.device) -> Logits:
    """Return the logits of a supernet, its mixture or best path, of the search of a genotype."""
    search = _search(genotype, "--teacher")
    network = search.supernet()
    weights = None
    if search.scores is not None:  # paths were trained, not their mixture
        best = Network(search.discrete().with_channels(network.space.channels), search.image,
                       len(search.dataset.classes))  # fmt: skip
        best.inherit(network)
        network = best
    else:
        with torch.no_grad():
            weights = {name: _moved(cell, device) for name, cell in search.trained().items()}
    network.to(device)
    calibrate(network, evaluation_batches(sample(splits.train, CALIBRATED), 256), weights)
    network.eval().requires_grad_(False)
    return lambda images: network(images, weights)


def _moved(cell: CellWeights, device: torch.device) -> CellWeights:
    """Return mixing weights on a device, without a graph."""
    return CellWeights(
        None if cell.edge is None else cell.edge.detach().to(device),
        cell.operation.detach().to(device),
        checkpoint.move(
            {o: {c: p.detach() for c, p in cs.items()} for o, cs in cell.choices.items()}, device
        ),
    )


def _timm(text: str, dataset: Dataset, device: torch.device) -> Logits:
    """Return the logits of a timm model with weights from a local file.

    Arguments:
        text: timm:NAME:FILE.
    """
    classes = len(dataset.classes)
    network, whole = pretrained_of(text, "--teacher", dataset.image, classes)
    if not whole:
        raise UserError(
            f"--teacher {text} must have weights of {classes} classes, those of the data set, got "
            "another number; fine-tune it first with `derive --from`, and give the folder of that "
            "run"
        )
    return _constant(network.to(device).eval())


def _constant(network: nn.Module) -> nn.Module:
    """Return the network with weights that get no gradients."""
    return network.requires_grad_(False)
