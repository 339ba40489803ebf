"""The command line: search and derive, exact resuming after kill -9, and bad input."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import click
import pytest
import torch
from invoking import call, refuse
from killing import ENVIRONMENT, ROOT, killed
from PIL import Image

from darts_lite.architecture.genotype import Genotype
from darts_lite.commands.cli import main
from darts_lite.commands.reference import reference

SMALL = ["--dataset", "digits", "--space", "blocks", "--cells", "3", "--channels", "4",
         "--batch-size", "16", "--max-params", "3000"]  # fmt: skip
SEARCH = ["search", *SMALL, "--steps", "24"]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished search, made by the command in a separate process."""
    out = tmp_path_factory.mktemp("cli") / "out"
    command = [sys.executable, str(ROOT / "run.py"), *SEARCH, "--out", str(out)]
    subprocess.run(command, check=True, env=ENVIRONMENT, capture_output=True)
    return out


def test_search_and_derive_write_their_results(searched: Path) -> None:
    genotype = Genotype.load(searched / "g.json")
    assert genotype.parameters <= 3000
    names = {p.name for p in (searched / "search").iterdir()}
    assert {"checkpoint.pt", "config.json", "metrics.jsonl", "pictures"} < names
    result = call(
        "derive", "--genotype", searched / "g.json", "--epochs", 2, "--data-dir", searched
    )
    assert result.exit_code == 0, result.output
    metrics = json.loads((searched / "derive" / "metrics.json").read_text())
    assert metrics["parameters"] == genotype.parameters
    state = torch.load(searched / "derive" / "model.pt", weights_only=True)
    learned = sum(v.numel() for n, v in state.items() if "running" not in n)
    assert learned == genotype.parameters
    assert 0 <= metrics["test_accuracy"] <= 1
    assert "test accuracy" in result.output
    assert refuse("derive", "--genotype", searched / "g.json", "--epochs", 2).count("--resume")
    assert refuse(*SEARCH, "--out", searched).count("--resume")


def test_default_hyperparameters_and_selection_of_the_best(searched: Path, tmp_path: Path) -> None:
    result = call("derive", "--genotype", searched / "g.json", "--epochs", 2, "--select", "best",
                  "--hyperparameters", "default", "--out", tmp_path / "d")  # fmt: skip
    assert result.exit_code == 0, result.output
    metrics = json.loads((tmp_path / "d" / "metrics.json").read_text())
    assert metrics["validation_held_out"] is True
    assert "trained on" not in result.output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("estimator", "epochs"), [("one_step,optimizer=annealed", 1), ("unrolled", 2)]
)
def test_derive_learns_online(searched: Path, tmp_path: Path, estimator: str, epochs: int) -> None:
    """The training has the given epochs, plus the rest of a window; the result can be derived."""
    result = call("derive", "--genotype", searched / "g.json", "--epochs", epochs,
                  "--hyperparameters", "online", "--estimator", estimator,
                  "--out", tmp_path / "d")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "trained on" not in result.output
    metrics = json.loads((tmp_path / "d" / "metrics.json").read_text())
    options = json.loads((tmp_path / "d" / "config.json").read_text())["options"]
    assert metrics["validation_held_out"] is True
    assert metrics["hyperparameters"] == "online" and options["estimator"] == estimator
    asked = epochs * metrics["steps"] / metrics["epochs"]
    window = 25 if estimator == "unrolled" else 1
    assert asked <= metrics["steps"] < asked + window
    assert metrics["steps"] == _task(tmp_path / "d")["optimizer"][0]

    learned, before = (Genotype.load(p) for p in (tmp_path / "d/learned.json", searched / "g.json"))
    assert replace(learned, recipe=before.recipe) == before
    start, end = before.recipe.last, learned.recipe.last
    assert start.keys() == end.keys()
    same = end["lr"] == pytest.approx(start["lr"], rel=1e-3)
    assert same is ("annealed" in estimator)  # one epoch is too short for a look-ahead
    assert all(end[n] != start[n] for n in end if n.startswith("magnitude."))
    again = call("derive", "--genotype", tmp_path / "d" / "learned.json", "--epochs", 1)
    assert again.exit_code == 0, again.output
    assert (tmp_path / "d" / "derive" / "metrics.json").exists()


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("guess", "must be an estimator"),
        ("neumann", "use OneStep, Unrolled or Forward"),
        ("loss=annealed", "give loss another"),
    ],
)
def test_the_error_of_a_bad_estimator_of_derive_is_one_line(
    searched: Path, tmp_path: Path, bad: str, said: str
) -> None:
    line = refuse("derive", "--genotype", searched / "g.json", "--epochs", 1, "--hyperparameters",
                  "online", "--estimator", bad, "--out", tmp_path / "d")  # fmt: skip
    assert "--estimator" in line and said in line
    assert not (tmp_path / "d" / "metrics.json").exists()


def test_a_bad_estimator_is_refused_even_if_it_is_not_used(searched: Path, tmp_path: Path) -> None:
    refuse("derive", "--genotype", searched / "g.json", "--epochs", 1, "--out", tmp_path / "d",
           "--estimator", "guess")  # fmt: skip


def test_derive_discretizes_a_search_checkpoint_without_a_genotype(
    searched: Path, tmp_path: Path
) -> None:
    (tmp_path / "search").mkdir()
    saved = (searched / "search" / "checkpoint.pt").read_bytes()
    (tmp_path / "search" / "checkpoint.pt").write_bytes(saved)
    result = call("derive", "--genotype", tmp_path / "g.json", "--epochs", 1)
    assert result.exit_code == 0, result.output
    assert "does not exist" in result.output
    made, finished = (Genotype.load(p / "g.json") for p in (tmp_path, searched))
    assert made.finished is False
    assert replace(made, finished=True) == finished


def test_derive_never_exceeds_its_parameter_limit(searched: Path, tmp_path: Path) -> None:
    free = Genotype.load(searched / "g.json").parameters
    limit = (free + 700) // 2
    result = call("derive", "--genotype", searched / "g.json", "--epochs", 1, "--max-params", limit,
                  "--out", tmp_path / "d")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "d" / "metrics.json").read_text())["parameters"] <= limit
    line = refuse("derive", "--genotype", searched / "g.json", "--epochs", 1, "--max-params", 10,
                  "--out", tmp_path / "e")  # fmt: skip
    assert "smallest possible" in line


def test_random_networks_for_a_network_within_a_limit(searched: Path, tmp_path: Path) -> None:
    """They have the size of the network that is derived again from the checkpoint."""
    free = Genotype.load(searched / "g.json").parameters
    command = ["derive", "--genotype", searched / "g.json", "--epochs", 1, "--max-params",
               (free + 700) // 2, "--out", tmp_path / "d"]  # fmt: skip
    assert call(*command, "--random", 1).exit_code == 0
    assert call(*command).exit_code == 0
    again = call(*command, "--random", 1, "--resume")
    assert again.exit_code == 0, again.output
    size = json.loads((tmp_path / "d" / "metrics.json").read_text())["parameters"]
    result = json.loads((tmp_path / "d" / "random.json").read_text())
    assert result["searched"]["parameters"] == size < free
    assert abs(result["random"][0]["parameters"] - size) <= size / 10


@pytest.mark.slow
@pytest.mark.against_another_process
@pytest.mark.parametrize(
    "points",
    [
        # in the warm-up after a complete checkpoint; then between the file and its rename
        [("darts_lite.nas.task", ".SearchTask", "step", 5, True), ("os", "", "replace", 3, False)],
        # in the joint phase; then after the last step, before g.json
        [
            ("darts_lite.nas.task", ".SearchTask", "step", 17, False),
            ("darts_lite.architecture.genotype", ".Genotype", "save", 1, False),
        ],
    ],
    ids=["early", "late"],
)
def test_a_search_killed_anywhere_resumes_bit_identical(
    searched: Path, tmp_path: Path, points: list[tuple]
) -> None:
    out = tmp_path / "out"
    start = [*SEARCH, "--out", out, "--checkpoint-seconds", 0]
    resume = ["search", "--resume", "--out", out]
    killed(*points[0], *start)
    assert 0 < _step(out) < 24
    killed(*points[1], *resume)
    assert not (out / "g.json").exists()
    assert call(*resume).exit_code == 0
    assert _logits(out) == _logits(searched)
    made, plain = (Genotype.load(p / "g.json") for p in (out, searched))
    assert made == plain
    lines = (out / "search" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == sorted(steps)
    before = (out / "g.json").read_bytes()
    assert "finished" in call(*resume).output
    assert (out / "g.json").read_bytes() == before


def _task(folder: Path) -> dict:
    return torch.load(folder / "checkpoint.pt", weights_only=True)["state"]["task"]


def _state(out: Path) -> dict:
    return torch.load(out / "search" / "checkpoint.pt", weights_only=True)["state"]


def _step(out: Path) -> int:
    return int(_state(out)["step"])


def _logits(out: Path) -> dict[str, bytes]:
    raw = _state(out)["task"]["hyper"]["variables"]["raw"]
    return {name: value.numpy().tobytes() for name, value in raw.items()}


def test_an_interrupt_exits_with_its_signal_and_derive_resumes(
    searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from darts_lite.training.task import TrainTask

    arguments = [
        "derive",
        "--genotype",
        searched / "g.json",
        "--epochs",
        2,
        "--out",
        tmp_path / "d",
    ]
    plain = call(*arguments[:-1], tmp_path / "plain")
    assert plain.exit_code == 0
    original = TrainTask.step

    def step(self: TrainTask, fraction: float) -> int:
        if 0.4 < fraction < 0.42:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, fraction)

    monkeypatch.setattr(TrainTask, "step", step)
    stopped = call(*arguments)
    assert stopped.exit_code == 130, stopped.output
    assert "--resume" in stopped.stderr
    monkeypatch.undo()
    assert call("derive", "--resume", "--out", tmp_path / "d").exit_code == 0
    finished = (tmp_path / "d" / "metrics.json").read_bytes()
    assert "finished" in call("derive", "--resume", "--out", tmp_path / "d").output
    assert (tmp_path / "d" / "metrics.json").read_bytes() == finished
    states = [torch.load(tmp_path / n / "model.pt", weights_only=True) for n in ("plain", "d")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.slow
@pytest.mark.against_another_process
def test_a_warm_start_is_reported_and_kept_in_the_checkpoint(
    searched: Path, tmp_path: Path
) -> None:
    """A killed search resumes bit-identical, even if the earlier search is deleted."""
    earlier, plain, out = tmp_path / "earlier", tmp_path / "plain", tmp_path / "out"
    shutil.copytree(searched, earlier)
    start = ["search", *SMALL, "--steps", 4, "--warm-start", earlier]
    whole = call(*start, "--out", plain)
    assert whole.exit_code == 0, whole.output
    line = f"warm start from {earlier / 'g.json'}: data unchanged; all cells known; weights taken"
    assert line in whole.output
    rows = [json.loads(r) for r in (plain / "search" / "metrics.jsonl").read_text().splitlines()]
    seconds = [row["seconds"] for row in rows if "seconds" in row]
    assert len(seconds) > 4 and seconds == sorted(seconds)
    said = next(one for one in whole.stdout.splitlines() if "the earlier search's" in one)
    assert ("warm_saved_seconds" in rows[-1]) == ("reached the earlier" in said)

    killed("darts_lite.nas.task", ".SearchTask", "step", 3, True,
           *start, "--out", out, "--checkpoint-seconds", 0)  # fmt: skip
    shutil.rmtree(earlier)
    resume = ["search", "--resume", "--out", out]
    assert "warm_start" in refuse(*resume, "--warm-start", searched)
    again = call(*resume, "--warm-start", earlier)
    assert again.exit_code == 0, again.output
    assert "warm start" not in again.output and "earlier search" not in again.output
    assert _logits(out) == _logits(plain) != _logits(searched)
    made, expected = (Genotype.load(p / "g.json") for p in (out, plain))
    assert made == expected
    assert made.search["warm_start"] == str(earlier)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nowhere", "nowhere"),
        ("empty", "there is no empty/g.json"),
        ("torn.json", "torn.json must be a genotype"),
        ("torn", "torn/search/checkpoint.pt must be a readable checkpoint"),
    ],
)
def test_the_error_of_a_bad_warm_start_is_one_line(
    searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("torn.json").write_text("{torn")
    shutil.copytree(searched, "torn")
    Path("torn/search/checkpoint.pt").write_bytes(b"nonsense")
    assert said in refuse("search", *SMALL, "--steps", 8, "--warm-start", path)
    assert not Path("out").exists()


def test_resuming_with_other_settings_is_refused(searched: Path) -> None:
    line = refuse("search", "--resume", "--out", searched, "--seed", 3)
    assert "seed must be 0, got 3" in line


def corrupt(folder: Path) -> Path:
    for name in "ab":
        (folder / name).mkdir(parents=True)
        for i in range(8):
            Image.new("L", (8, 8), 30 * i).save(folder / name / f"{i}.png")
    (folder / "b" / "3.png").write_bytes(b"\x89PNG torn")
    return folder


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dataset", "imagenet"], "got 'imagenet'"),
        (["--dataset", "cifar10"], "--download"),
        (["--dataset", "folder:nowhere"], "nowhere"),
        (["--dataset", "folder:broken"], "3.png"),
        (["--dataset", "digits", "--subset", "15"], "15"),
        (["--dataset", "digits", "--subset", "60", "--batch-size", "64"], "got 64"),
        (["--dataset", "digits", "--max-params", "50"], "smallest possible"),
        (["--dataset", "digits", "--device", "abacus"], "abacus"),
        (["--dataset", "digits", "--steps", "3", "--budget-hours", "1"], "not both"),
        (["--dataset", "digits", "--out", "file/out"], "file/out"),
        (["--dataset", "digits", "--budget-hours", "-1"], "budget-hours"),
        (["--space", "maze"], "maze"),
        (["--dataset", "digits", "--estimator", "guess"], "one_step, unrolled"),
        (["--dataset", "digits", "--estimator", "neumann"], "use OneStep, Unrolled or Forward"),
    ],
)  # fmt: skip
def test_the_error_of_bad_input_of_search_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    corrupt(tmp_path / "broken")
    small = [] if "--steps" in arguments or "--resume" in arguments else ["--cells", "3"]
    assert said in refuse("search", *small, *arguments)
    assert not (tmp_path / "out" / "g.json").exists()


def _edited(**changes: object) -> object:
    def edit(content: dict) -> str:
        return json.dumps({**content, **changes})

    return edit


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda _: "{torn", "JSON"),
        (_edited(version=99), "version 99"),
        (_edited(parameters="many"), "parameters"),
        (lambda c: json.dumps({k: v for k, v in c.items() if k != "space"}), "space"),
        (lambda c: json.dumps(c).replace('"block1"', '"block9"', 1), "sequence"),
        (
            lambda c: json.dumps(c).replace('"inverted_residual"', '"transformer"')
            .replace('"conv"', '"transformer"').replace('"bottleneck"', '"transformer"')
            .replace('"skip"', '"transformer"'),
            "operation must be one of",
        ),
        (_edited(dataset={"name": "digits", "sha256": "0"}), "must have the images of the search"),
        (_edited(recipe={"schedules": {"lr": [[0.0, 0.1]]}}), "weight_decay"),
        (_edited(recipe={"optimizer": {"name": "rmsprop"}}), "recipe.optimizer"),
        (_edited(source={}), "source.dataset"),
    ],
)  # fmt: skip
def test_the_error_of_a_bad_genotype_is_one_line(
    searched: Path, tmp_path: Path, edit: object, said: str
) -> None:
    content = json.loads((searched / "g.json").read_text())
    path = tmp_path / "g.json"
    path.write_text(edit(content))  # type: ignore[operator]
    line = refuse("derive", "--genotype", path, "--epochs", 1)
    assert said in line
    assert not (tmp_path / "derive" / "metrics.json").exists()


def test_a_missing_genotype_and_a_checkpoint_that_does_not_fit_are_refused(
    searched: Path, tmp_path: Path
) -> None:
    assert "nowhere.json" in refuse("derive", "--genotype", tmp_path / "nowhere.json")
    (tmp_path / "search").mkdir()
    path = tmp_path / "search" / "checkpoint.pt"
    content = torch.load(searched / "search" / "checkpoint.pt", weights_only=True)
    content["config"]["options"]["cells"] = 4
    torch.save(content, path)
    assert "another space" in refuse("search", "--resume", "--out", tmp_path)
    path.write_bytes(b"nonsense")
    assert "checkpoint" in refuse("search", "--resume", "--out", tmp_path)


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys; from darts_lite.commands.cli import main; "
        "main(['--help'], standalone_mode=False); "
        "assert not {'torch', 'sklearn', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_augment_writes_a_picture_and_a_file(tmp_path: Path) -> None:
    """It writes a picture, prints a table, and writes JSON that the other commands read."""
    picture, saved = tmp_path / "deep" / "a.png", tmp_path / "a.json"
    result = call("augment", "--dataset", "digits", "--augment", "randaugment:m=20+cutmix",
                  "--out", picture, "--save", saved)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "rotate" in result.output and "0.349 radians" in result.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    again = call("augment", "--dataset", "digits", "--augment", saved, "--out", tmp_path / "b.png")
    assert again.exit_code == 0, again.output
    assert (tmp_path / "b.png").read_bytes() == picture.read_bytes()


@pytest.mark.parametrize("bad", ["guess", "randaugment:m=99", "randaugment+learned", "none.json"])
@pytest.mark.parametrize("command", ["search", "augment"])
def test_the_error_of_a_bad_augmentation_is_one_line(
    tmp_path: Path, command: str, bad: str
) -> None:
    line = refuse(command, "--dataset", "digits", "--augment", bad, "--out", tmp_path / "o")
    assert bad.partition(":")[0] in line
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("augment", ["randaugment", "learned+cutmix"])
def test_an_augmentation_is_learned_and_replayed(tmp_path: Path, augment: str) -> None:
    """`derive` gives the same result with the genotype alone and with the file of the search."""
    out = tmp_path / "o"
    found = call("search", "--dataset", "digits", "--subset", 200, "--steps", 8, "--cells", 1,
                 "--space", "blocks", "--channels", 4, "--max-params", 5000, "--batch-size", 16,
                 "--augment", augment, "--out", out)  # fmt: skip
    assert found.exit_code == 0, found.output
    metrics = []
    for name, flags in (("a", []), ("b", ["--augment", out / "augment.json"])):
        result = call("derive", "--genotype", out / "g.json", "--epochs", 1, *flags,
                      "--out", tmp_path / name)  # fmt: skip
        assert result.exit_code == 0, result.output
        metrics.append(json.loads((tmp_path / name / "metrics.json").read_text()))
    assert metrics[0]["test_accuracy"] == metrics[1]["test_accuracy"]
    assert metrics[0]["test_macro_f1"] == metrics[1]["test_macro_f1"]


def test_the_choices_of_options_equal_the_names_in_the_library() -> None:
    """The options repeat the names, so that `--help` does not import torch."""
    from darts_lite.architecture.presets import PRESETS
    from darts_lite.hpo.evaluator import FIDELITIES
    from darts_lite.hpo.setup import METHODS
    from darts_lite.training.problem import OPTIMIZERS

    known = {"method": METHODS, "fidelity": FIDELITIES, "optimizer": tuple(OPTIMIZERS),
             "space": tuple(PRESETS)}  # fmt: skip
    own = [p for p in main.commands["search"].params if p.name != "method"]  # another method
    params = [*main.commands["tune"].params, *own]
    choices = {p.name: tuple(p.type.choices) for p in params if p.name in known}  # type: ignore[attr-defined]
    assert choices == known


def test_flags_and_defaults_are_frozen() -> None:
    """A change of the command line must be deliberate: write flags.txt again with this code."""
    lines = [
        f"{name} {'/'.join([*option.opts, *option.secondary_opts])} {option.default!r}"
        for name, command in main.commands.items()
        for option in command.params
        if isinstance(option, click.Option)
    ]
    assert lines == (Path(__file__).parent / "flags.txt").read_text().splitlines()


def test_the_reference_of_commands_is_current() -> None:
    """docs/commands.md is written by `python -m darts_lite.commands.reference`."""
    assert reference() == (ROOT / "docs" / "commands.md").read_text()
