"""Augmentations by name and as JSON: every form, what is refused, and that nothing is lost."""

import json
import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from darts_lite.augment import (
    POLICIES,
    Augmentation,
    AutoAugment,
    Learned,
    Mixing,
    Nothing,
    Policy,
    RandAugment,
    Scheduled,
    TrivialAugment,
    augmentation,
    load,
    to_json,
)
from darts_lite.augment.fused import NAMES
from darts_lite.errors import UserError

DATA: dict[str, Any] = {"channels": 3, "flips": False, "crop": 2}  # what the data decide
PLAIN = Policy(**DATA)
BOTH = ("cutmix", "mixup")


def one_line(function: Callable[[], object], message: str) -> str:
    """Call a function that must raise UserError with one line that matches."""
    with pytest.raises(UserError, match=message) as error:
        function()
    assert "\n" not in str(error.value)
    return str(error.value)


# --- what a person types --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, policy, mixing",
    [
        ("none", Nothing(channels=3), None),
        ("standard", PLAIN, None),
        ("learned", Learned(**DATA), None),
        ("learned:probabilities=false", Learned(probabilities=False, **DATA), None),
        ("randaugment", RandAugment(**DATA), None),
        ("randaugment:n=3", RandAugment(n=3, **DATA), None),
        ("randaugment:n=2,m=15", RandAugment(n=2, m=15, **DATA), None),
        ("randaugment: n = 2, m = 7.5", RandAugment(n=2, m=7.5, **DATA), None),
        ("trivialaugment", TrivialAugment(**DATA), None),
        ("autoaugment", AutoAugment(**DATA), None),
        ("autoaugment:dataset=svhn", AutoAugment(dataset="svhn", **DATA), None),
        ("cutmix", PLAIN, Mixing(("cutmix",))),
        ("mixup:alpha=0.2", PLAIN, Mixing(("mixup",), alpha=0.2)),
        ("cutmix+mixup", PLAIN, Mixing(BOTH)),
        ("cutmix:alpha=0.5+mixup:probability=0.3", PLAIN, Mixing(BOTH, 0.5, 0.3)),
        ("cutmix:strength=0.25", PLAIN, Mixing(strength=0.25)),
        ("none+mixup", Nothing(channels=3), Mixing(("mixup",))),
        ("trivialaugment+cutmix", TrivialAugment(**DATA), Mixing()),
        ("cutmix + trivialaugment", TrivialAugment(**DATA), Mixing()),
        ("learned+cutmix", Learned(probabilities=False, **DATA), Mixing()),
        ("mixup+learned", Learned(probabilities=False, **DATA), Mixing(("mixup",))),
        (
            "randaugment:n=1,m=3+mixup:alpha=0.1+cutmix",
            RandAugment(n=1, m=3, **DATA),
            Mixing(("mixup", "cutmix"), 0.1),
        ),
    ],
)
def test_every_form_is_read(text, policy, mixing):
    found = augmentation(text, **DATA)
    assert found == Augmentation(policy, mixing)
    assert type(found.policy) is type(policy)
    for field in fields(policy):
        kind = type(getattr(policy, field.name))
        assert isinstance(getattr(found.policy, field.name), (int, float) if kind is int else kind)


def test_the_data_decide_the_rest():
    assert augmentation("learned", 1).policy == Learned(channels=1, flips=True, crop=0)
    policy = augmentation("trivialaugment+cutmix", 1, flips=True, crop=5).policy
    assert policy == TrivialAugment(channels=1, flips=True, crop=5)
    policy = augmentation("none", 1, flips=True, crop=5).policy
    assert policy == Nothing(channels=1) and not policy.flips and not policy.crop


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "must be one of none, standard, learned, randaugment, .* mixup, or a .*, got ''"),
        ("  ", "an augmentation must be"),
        ("+", "an augmentation must be .* got ''"),
        ("learned+", "an augmentation must be .* got ''"),
        ("augmix", "an augmentation must be .* got 'augmix'"),
        ("RandAugment", "an augmentation must be .* got 'RandAugment'"),
        ("schedule", "an augmentation must be .* got 'schedule'"),  # only from a file
        ("learned,cutmix", "an augmentation must be"),
        ("a.json+cutmix", "an augmentation must be .* got 'a.json'"),
        ("learned+randaugment", "must be one policy, got 'randaugment' as a second; give one"),
        ("learned+cutmix+learned", "got 'learned' as a second"),
        ("cutmix+cutmix", "mixing: kinds must be"),
        ("randaugment:k=3", "--augment randaugment:k=3: k: .*; settings: n, m$"),
        ("randaugment:n", "a setting must be as in m=15, got 'n'"),
        ("randaugment:=3", "--augment randaugment:=3"),
        ("randaugment:n=", "n: Input should be a valid integer"),
        ("randaugment:n=two", "n: Input should be a valid integer"),
        ("randaugment:n=1.5", "n: Input should be a valid integer"),
        ("randaugment:n=-1", "n must be 0 operations or more, got -1"),
        ("randaugment:m=31", "m must be from 0 to 30, got 31"),
        ("randaugment:m=nan", "m: Input should be a finite number"),
        ("randaugment:m=high", "m: Input should be a valid number"),
        ("randaugment:channels=1", "setting must be .* got 'channels=1'"),
        ("randaugment:n=2,crop=4", "setting must be .* got 'crop=4'"),
        ("trivialaugment:flips=false", "setting must be .* got 'flips=false'"),
        ("trivialaugment:n=2", "n: .*; settings: none"),
        ("none:n=1", "n: .*; settings: none"),
        ("learned:operations=rotate", "setting must be .* got 'operations=rotate'"),
        ("learned:probabilities=perhaps", "probabilities: Input should be a valid boolean"),
        ("autoaugment:dataset=mnist", "dataset: Input should be 'cifar10', 'svhn' or 'imagenet'"),
        ("mixup:alpha=0", "alpha must be finite and above 0, got 0.0"),
        ("mixup:alpha=nan", "alpha"),
        ("mixup:alpha=soft", "--augment mixup:alpha=soft: alpha: Input should be a valid number"),
        ("mixup:beta=1", "--augment mixup:beta=1: beta"),
        ("cutmix:kinds=mixup", "setting must be .* got 'kinds=mixup'"),
        ("cutmix:probability=2", "probability must be .* got 2.0"),
        ("learned+cutmix:m=15", "m: "),
    ],
)
def test_wrong_text_is_refused(text, message):
    one_line(lambda: augmentation(text, **DATA), message)


# --- JSON -----------------------------------------------------------------------------------------

EVERY = [
    Augmentation(Nothing(channels=1)),
    Augmentation(Policy(channels=3, crop=2)),
    Augmentation(Learned(channels=3, crop=1, operations=("rotate", "invert"))),
    Augmentation(Learned(channels=1, probabilities=False), Mixing(BOTH, alpha=0.3)),
    Augmentation(RandAugment(channels=3, flips=False, n=3, m=7.5), Mixing(probability=0.5)),
    Augmentation(TrivialAugment(channels=1, crop=1), Mixing(("mixup",), strength=0.1 + 0.2)),
    Augmentation(AutoAugment(channels=3, dataset="imagenet")),
    Augmentation(
        Scheduled(
            channels=3,
            knots={
                "magnitude.shear": ((0.0, 1 / 3), (0.5, 0.7), (1.0, 0.0)),
                "magnitude.saturation": ((0.0, 1.0),),
                "probability.shear": ((0.0, 0.9),),
            },
        ),
        Mixing(("mixup", "cutmix")),
    ),
    Augmentation(Scheduled(channels=1)),
]


def test_every_policy_is_among_them():
    assert {augment.policy.name for augment in EVERY} == set(POLICIES)


@pytest.mark.parametrize("augment", EVERY)
def test_json_keeps_everything(augment, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(to_json(augment), allow_nan=False))
    channels = augment.policy.channels
    for found in (load(path), load(path, channels), augmentation(str(path), channels, True, 9)):
        assert found == augment and type(found.policy) is type(augment.policy)
        assert repr(found) == repr(augment)  # lists are tuples again, numbers what they were
    values = {n: torch.tensor(0.5) for n in augment.names}
    images = torch.rand(8, channels, 9, 8, generator=torch.Generator().manual_seed(1))
    out = []
    for one in (augment, found):
        generator = torch.Generator().manual_seed(2)
        choices = one.sample(8, (9, 8), generator, values=values, fraction=0.3)
        out.append(one.apply(images, choices, values))
    assert torch.equal(out[0].images, out[1].images)
    if augment.mixing:
        assert torch.equal(out[0].share, out[1].share)
    assert torch.equal(out[0].images, images) == (augment == EVERY[0])


def content(**changes: Any) -> dict[str, Any]:
    return {
        "format": "darts_lite.augmentation",
        "version": 1,
        "policy": "randaugment",
        "settings": {"channels": 3, "n": 3, "m": 9},
        "mixing": None,
        **changes,
    }


def settings(**changes: Any) -> dict[str, Any]:
    return content(settings={"channels": 3, **changes})


def schedule(knots: Any) -> dict[str, Any]:
    return content(policy="schedule", settings={"channels": 3, "knots": knots})


def test_a_file_may_leave_out_defaults(tmp_path):
    path = tmp_path / "a.json"
    short = content(settings={"channels": 3})
    del short["mixing"]
    path.write_text(json.dumps(short))
    assert load(path, 3) == Augmentation(RandAugment(channels=3))
    path.write_text(json.dumps(content(mixing={})))
    assert load(path, 3) == Augmentation(RandAugment(channels=3, n=3), Mixing())


@pytest.mark.parametrize(
    "written, message",
    [
        ("", "must be JSON"),
        ("{", "must be JSON, got Expecting property name"),
        ("learned", "must be JSON"),
        (b"\xff\xfe\x00", "must be JSON"),
        ([], 'must have "format": "darts_lite.augmentation", "version": 1, got other content'),
        ({}, "got other content"),
        (content(format="darts_lite.genotype"), "got other content"),
        (content(version=2), "got other content"),
        (content(version=None), "got other content"),
        (content(policy="augmix"), "policy must be one of none, .*, schedule, got 'augmix'"),
        (content(policy="Learned"), "policy must be .* got 'Learned'"),
        (content(policy=None), "policy must be .* got None"),
        (content(policy=["learned"]), r"policy must be .* got \['learned'\]"),
        (content(policy={}), "policy must be .* got {}"),
        (content(seed=1), r"unknown keys \['seed'\]"),
        (content(settings=None), "settings must be an object"),
        (content(settings=[3]), "settings must be an object"),
        (content(settings={"n": 3}), "channels: "),
        (settings(channels=2), "channels must be 1 or 3, got 2"),
        (settings(channels="3"), "channels: Input should be a valid integer"),
        (settings(channels=3.5), "channels: Input should be a valid integer"),
        (settings(n="2"), "n: Input should be a valid integer"),
        (settings(n=True), "n: Input should be a valid integer"),
        (settings(m="9"), "m: Input should be a valid number"),
        (settings(m=math.nan), "m: "),
        (settings(m=math.inf), "m: "),
        (settings(m=40), "m must be .* got 40"),
        (settings(flips=1), "flips: Input should be a valid boolean"),
        (settings(crop=-1), "crop must be .* got -1"),
        (settings(k=1), "k: "),
        (content(policy="learned", settings={"channels": 3, "operations": ["twist"]}), "'twist'"),
        (content(policy="learned", settings={"channels": 3, "operations": "rotate"}), "operations"),
        (content(policy="autoaugment", settings={"channels": 3, "dataset": "x"}), "dataset: "),
        (schedule({"magnitude.twist": [[0, 1]]}), "got 'magnitude.twist'"),
        (schedule({"magnitude.rotate": []}), "magnitude.rotate must be"),
        (schedule({"magnitude.rotate": [[0, 1.5]]}), "magnitude.rotate must be"),
        (schedule({"magnitude.rotate": [[0.5, 1], [0.4, 1]]}), "magnitude.rotate must be"),
        (schedule({"magnitude.rotate": [[0, 1, 2]]}), "knots.magnitude.rotate.0"),
        (schedule({"magnitude.rotate": 0.5}), "knots.magnitude.rotate"),
        (schedule([]), "knots: "),
        (content(mixing=[]), "Input should be an object"),
        (content(mixing=False), "Input should be an object"),
        (content(mixing="cutmix"), "Input should be an object"),
        (content(mixing={"kinds": ["cutmix"], "beta": 1}), "beta: "),
        (content(mixing={"kinds": []}), "kinds must be"),
        (content(mixing={"kinds": ["cutout"]}), "kinds must be"),
        (content(mixing={"kinds": "cutmix"}), "kinds: "),
        (content(mixing={"alpha": "1"}), "alpha: Input should be a valid number"),
        (content(mixing={"alpha": math.nan}), "alpha"),
        (content(mixing={"strength": 2}), "strength must be .* got 2"),
        (
            content(policy="learned", settings={"channels": 3}, mixing={}),
            "probabilities must not be learned together with mixing",
        ),
    ],
)
def test_a_wrong_file_is_refused(written, message, tmp_path):
    path = tmp_path / "a.json"
    if isinstance(written, bytes):
        path.write_bytes(written)
    else:
        path.write_text(written if isinstance(written, str) else json.dumps(written))
    one_line(lambda: load(path), message)
    one_line(lambda: augmentation(str(path), 3), message)


def test_a_file_must_be_there_and_fit_the_images(tmp_path):
    path = tmp_path / "a.json"
    line = one_line(lambda: load(path), "cannot read .*a.json: No such file")
    assert line == one_line(lambda: augmentation(str(path), 3), "cannot read")
    one_line(lambda: load(Path(tmp_path)), "cannot read .*: Is a directory")
    path.write_text(json.dumps(content()))
    assert load(path).policy.channels == load(path, 3).policy.channels == 3
    one_line(lambda: load(path, 1), "must be for images of 1 channels, got 3")
    one_line(lambda: augmentation(str(path), 1), "a.json must be for images of 1 channels, got 3")


def test_operations_are_saved_by_name():
    saved = to_json(Augmentation(Learned(channels=3)))
    assert tuple(saved["settings"]["operations"]) == NAMES
    assert saved["policy"] == "learned" and saved["mixing"] is None
