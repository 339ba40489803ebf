"""The command `augment`: draw the effect of an augmentation."""

from __future__ import annotations

from pathlib import Path

from darts_lite.augment import to_json
from darts_lite.data import evaluation_batches
from darts_lite.files import write_json
from darts_lite.reporting import augmentation_report, pictures
from darts_lite.training.metrics import sample
from darts_lite.training.options import AugmentOptions
from darts_lite.training.problem import augmentation_for
from darts_lite.training.run import Say, make_folder, read_data


def augment(options: AugmentOptions, *, say: Say = print) -> None:
    """Draw the effect of an augmentation on images of a data set; write it as JSON if requested.

    Arguments:
        options: options of the command.
        say: prints a line for the user.
    Raises: `UserError` for bad input.
    """
    dataset, splits = read_data(options, options.seed, say)
    chosen = augmentation_for(dataset, options.augment)
    images, _ = next(
        iter(
            evaluation_batches(
                sample(splits.train, augmentation_report.DRAWS), augmentation_report.DRAWS
            )
        )
    )
    out = Path(options.out)
    make_folder(out.parent)
    picture = augmentation_report.draw_augmentation(chosen, images, fraction=options.fraction)
    pictures.save(out, picture)
    strengths = chosen.policy.strengths(dataset.image_size, fraction=options.fraction)
    if strengths:
        say(augmentation_report.strength_table(strengths))
    say(f"{out}: {picture.shape[1]} x {picture.shape[0]} pixels")
    if options.save:
        make_folder(Path(options.save).parent)
        write_json(Path(options.save), to_json(chosen))
        say(f"{options.save}: for --augment")
