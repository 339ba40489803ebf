"""Bench: trains and measures the configurations of every method in the same way."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from darts_lite.architecture.cost import genotype_with_cost
from darts_lite.architecture.genotype import Genotype, Source
from darts_lite.architecture.space import SearchSpace
from darts_lite.data import Dataset, Splits, resized, stratified
from darts_lite.hpo.space import Configuration
from darts_lite.reporting.recorder import Recorder
from darts_lite.training import checkpoint, loop
from darts_lite.training.budget import Budget
from darts_lite.training.options import DeriveOptions
from darts_lite.training.task import TrainTask

FIDELITIES = ("epochs", "subset", "resolution")
MIN_SIDE = 8  # pixels per side


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Data, device and settings of all trainings of a study.

    A training at fidelity f below 1 costs about the fraction f of the full training.

    Arguments:
        dataset: Data set.
        splits: Training, validation and test images, on the device.
        device: Device of the trainings.
        epochs: Epochs of one full training.
        fidelity: Kind of the fidelity f. "epochs" stops the full training after the fraction f of
            its steps. "subset" trains all epochs on the fraction f of the images. "resolution"
            trains all epochs on images with the fraction f of the pixels.
        seed: Random seed of the trainings.
        folder: Output folder; it has one sub-folder per trial.
        source: Origin of the images, for the genotypes.
        record: Settings of the study, for the genotypes.
        checkpoint_seconds: Seconds between two checkpoints.
        select_by: Metric of the validation images that the study maximizes.
        deadline: End of the budget, on the clock of `time.monotonic`; None means no deadline.
    """

    dataset: Dataset
    splits: Splits
    device: torch.device
    epochs: int
    fidelity: str
    seed: int
    folder: Path
    source: Source
    record: dict[str, Any]
    checkpoint_seconds: float = 50.0
    deadline: float | None = None
    select_by: str = "accuracy"

    @property
    def late(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def place(self, trial: int) -> Path:
        """Return the folder of a trial."""
        return self.folder / "trials" / str(trial)

    def genotype(self, configuration: Configuration) -> Genotype:
        """Return the genotype of a configuration, as `derive` reads it."""
        return replace(self.genotype_of(configuration.space), recipe=configuration.recipe)

    def genotype_of(self, space: SearchSpace) -> Genotype:
        """Return the genotype of a discrete space, without settings of the training."""
        return genotype_with_cost(
            space,
            self.dataset.image,
            self.dataset.classes,
            dataset=dict(self.dataset.fingerprint),  # type: ignore[arg-type]
            source=self.source,
            search=self.record,
            seed=self.seed,
        )

    def measure(
        self, genotype: Genotype, fidelity: float, place: Path, start: Path | None = None
    ) -> float | None:
        """Train a genotype to a fidelity and return its validation accuracy.

        With the fidelity "epochs", the training continues from the checkpoint in `place`, else
        from the checkpoint in `start`, if there is one. With "subset" and "resolution", the
        training starts from new weights at each fidelity.

        Arguments:
            genotype: Network and recipe to train.
            fidelity: Fraction of the full training, above 0 and up to 1.
            place: Folder of the trial.
            start: Folder of another trial to continue from.

        Returns:
            Validation accuracy (0 to 1); None if the deadline came first.

        Raises:
            Diverged: A loss or a weight is not finite.
            Interrupted: A signal stopped the training, after a checkpoint.
        """
        dataset, splits, genotype = self._reduced(genotype, fidelity)
        size = min(genotype.recipe.batch_size, splits.train.count)
        options = DeriveOptions(batch_size=size, select="held_out", seed=self.seed)
        task = TrainTask(options, genotype, dataset, splits, self.device)
        total = self.epochs * max(1, splits.train.count // size)
        budget = Budget(steps=total, deadline=self.deadline)
        if self.fidelity == "epochs":
            budget.until = max(1, round(fidelity * total))
        place.mkdir(parents=True, exist_ok=True)
        found = self._begun(fidelity, place, start)
        content = None if found is None else checkpoint.load(found, "trial")
        begin = loop.restore(task, content, found or place, budget)
        settings = {"genotype": genotype.parameters, "fidelity": self._mark(fidelity)}
        store = loop.Store(place / "checkpoint.pt", "trial", settings, self.checkpoint_seconds)
        with Recorder(place, begin.step if content else None) as recorder:
            step = loop.run(task, budget, recorder, store, start=begin)
            if step < (budget.until or total):
                return None
            accuracy = task.validate(self.select_by)
            if fidelity == 1:  # a network that `--teacher` and `load` can use
                genotype.save(place / "genotype.json")
                checkpoint.write(place / "model.pt", task.network.network.state_dict())
            recorder.scalars(step, {"accuracy/validation": accuracy, "fidelity": fidelity})
        return accuracy

    def _mark(self, fidelity: float) -> float:
        """Return the fidelity that a checkpoint must have; "epochs" is one training, so 1."""
        return 1.0 if self.fidelity == "epochs" else fidelity

    def _begun(self, fidelity: float, place: Path, start: Path | None) -> Path | None:
        """Return the checkpoint to continue from; None if there is none."""
        for path in (place, start):
            file = None if path is None else path / "checkpoint.pt"
            if file is not None and file.exists():
                saved = checkpoint.load(file, "trial")["config"]
                if saved.get("fidelity") == self._mark(fidelity):
                    return file
        return None

    def _reduced(self, genotype: Genotype, fidelity: float) -> tuple[Dataset, Splits, Genotype]:
        """Return data and genotype at a fidelity."""
        splits = self.splits
        if self.fidelity == "subset" and fidelity < 1:
            train = stratified(splits.train, fidelity, self.seed)
            return self.dataset, splits._replace(train=train), genotype
        if self.fidelity == "resolution" and fidelity < 1:
            side = max(MIN_SIDE, round(min(self.dataset.image_size) * fidelity**0.5))
            train, validation = (resized(part, side) for part in splits[:2])
            dataset = replace(self.dataset, train=train)
            reduced = Splits(train, validation, splits.test)
            return dataset, reduced, replace(genotype, image=(genotype.image[0], side, side))
        return self.dataset, splits, genotype
