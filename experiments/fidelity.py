"""Direction of hypergradients against real retraining, with a small network on Fashion-MNIST.

    OMP_NUM_THREADS=1 python experiments/fidelity.py    # 15 minutes of one thread

The network of small_network.py, each activation a learned mixture of SiLU and tanh, is trained as
usual. The measurements are made in windows from three points of this training, with the same
batches and draws on both sides.

- Truth: K real steps with a changed value, [L(value + width) - L(value - width)] / (2 width) of the
  loss L on 1 000 validation images. Values are raw: log lr, log decay, logits.
- Estimate: an estimator sees 128 validation images, as in practice, and the window from its start,
  for the steps that it looks ahead or, if it carries tangents, for K steps (Forward(1.0) after K
  steps is Unrolled(K)).
- Agreement: mean cosine; for a scalar, the fraction of right signs minus the fraction of wrong
  signs.
- Cost: CPU time in plain steps per step that the estimator advances (annealed: looks at), with this
  step included.

Results are written to --out at once; a stopped command continues where it stopped.
"""

from __future__ import annotations

import json
import math
import statistics
import time
import timeit
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from small_network import BATCH, DECAY, HELD_OUT, data, network
from torch import Tensor, nn
from torch.func import functional_call

from darts_lite.augment import CLASSIC, Learned
from darts_lite.hypergradient import (
    ConjugateGradient,
    Estimator,
    Forward,
    Neumann,
    OneStep,
    Online,
    Unrolled,
)
from darts_lite.hypergradient.check import estimate
from darts_lite.hypergradient.hyperparameters import (
    HyperParameters,
    HyperSpec,
    Identity,
    Interval,
    Kind,
    Log,
)
from darts_lite.hypergradient.optimizers import SGD, Setting
from darts_lite.hypergradient.problem import Bilevel, Hyper, InnerState, Loss, Params
from darts_lite.schedules import cosine
from darts_lite.training.memory import keep_freed_memory

HORIZONS = (1, 5, 25, 100)
STEPS = 1000  # of the training
POINTS = (50, 300, 800)
JUDGED = 1000  # validation images of the truth
AUGMENT = Learned(channels=1, crop=2, probabilities=False, operations=CLASSIC)
RULE = SGD(nesterov=True)


class Mixture(nn.Module):
    """Learned mixture of SiLU (alpha = -inf) and tanh (alpha = inf)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("alpha", torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        return torch.lerp(F.silu(x), x.tanh(), self.get_buffer("alpha").sigmoid())


MODEL = network(0)
for i, layer in enumerate(MODEL):
    if isinstance(layer, nn.SiLU):
        MODEL[i] = Mixture()
    if isinstance(layer, nn.BatchNorm2d):  # running statistics: nothing here uses them
        MODEL[i] = nn.BatchNorm2d(layer.num_features, track_running_stats=False)
WEIGHTS = tuple(n for n, _ in MODEL.named_parameters())
ALPHA = tuple(n for n, _ in MODEL.named_buffers())

Batches = list[tuple[Any, ...]]  # images, labels and, for training, their augmentation's draws
Found = dict[str, dict[str, list[float]]]  # by horizon ("any": for every one), then by name
Windows = list[dict[str, Any]]  # what was found in each
Costs = dict[str, dict[str, float]]
Pair = tuple[int, Tensor, Tensor]  # point, estimate, truth

OPTIMIZER = ("lr", "momentum", "weight_decay")
IN_LOSS = ("smoothing", "magnitudes", "alpha")
VECTORS = ("magnitudes", "alpha")
VARIABLES = HyperParameters((
    HyperSpec("lr", torch.tensor(0.1), Log(), "optimizer"),
    HyperSpec("momentum", torch.tensor(0.9), Interval(), "optimizer"),
    HyperSpec("weight_decay", torch.tensor(DECAY), Log(), "optimizer"),
    HyperSpec("smoothing", torch.tensor(0.1), Interval(), "loss"),
    HyperSpec("magnitudes", torch.full((len(AUGMENT.names),), 0.1), Interval(), "loss"),
    HyperSpec("alpha", torch.zeros(len(ALPHA)), Identity(), "architecture"),
))  # fmt: skip
NAMES = tuple(VARIABLES.kinds)
SCALARS = tuple(n for n in NAMES if n not in VECTORS)
WIDTH = dict.fromkeys(NAMES, 0.1) | {"weight_decay": 0.5}  # raw; a weak one needs more in float32


def draw(length: int, seed: int) -> tuple[Batches, Batches]:
    """Draw training batches with their augmentation, and as many held-out batches."""
    train, validation, _ = data()
    generator = torch.Generator().manual_seed(seed)
    batches, held_out = [], []
    for _ in range(length):
        draws = AUGMENT.sample(BATCH, (28, 28), generator)
        batches.append((*train.draw(BATCH, generator), draws))
        held_out.append(validation.draw(HELD_OUT, generator))
    return batches, held_out


def bind(batches: Batches, held_out: tuple[Tensor, ...], factor: float) -> Bilevel:
    """Return a window as a bilevel problem; `factor` is the factor of the schedule."""

    def logits(params: Params, alpha: Tensor, images: Tensor) -> Tensor:
        tensors = {**dict(zip(WEIGHTS, params)), **dict(zip(ALPHA, alpha.unbind()))}
        return functional_call(MODEL, tensors, (images,))

    def inner(params: Params, raw: Hyper, t: int) -> Loss:
        values = VARIABLES.constrain(raw)
        x, y, draws = batches[t]
        x = AUGMENT.apply(x, draws, dict(zip(AUGMENT.names, values["magnitudes"].unbind())))
        scores = -logits(params, values["alpha"], x).log_softmax(1)
        right, every = scores.gather(1, y[:, None]).mean(), scores.mean()
        return torch.lerp(right, every, values["smoothing"]), None

    def outer(params: Params, raw: Hyper) -> Loss:
        """Return the unsmoothed loss in float64, because the truth is a small difference."""
        parts = zip(
            held_out[0].split(500), held_out[1].split(500)
        )  # BatchNorm batches of the truth
        losses = [F.cross_entropy(logits(params, raw["alpha"], x).double(), y) for x, y in parts]
        return torch.stack(losses).mean(), None

    def settings(raw: Hyper) -> dict[str, Setting]:
        values = VARIABLES.constrain(raw)
        return {**{n: values[n] for n in OPTIMIZER}, "lr": values["lr"] * factor}

    return Bilevel(inner, outer, RULE, settings)


def points() -> Iterator[tuple[int, InnerState]]:
    """Return the state of the plain training at each point."""
    batches, held_out = draw(max(POINTS), 0)
    state = InnerState(tuple(MODEL.parameters()), RULE.init(tuple(MODEL.parameters())))
    for t in range(max(POINTS)):
        problem = bind(batches, held_out[0], cosine(t / STEPS))
        state, _ = problem.inner_step(state, VARIABLES.raw, t)
        if t + 1 in POINTS:
            yield t + 1, state


def truth(problem: Bilevel, start: InnerState, length: int) -> Found:
    """Retrain twice per entry of a value; each run gives all horizons."""

    def losses(raw: Hyper) -> dict[str, float]:
        state, found = start, {}
        for t in range(length):
            state, _ = problem.inner_step(state, raw, t)
            if t + 1 in HORIZONS:
                with torch.no_grad():
                    found[str(t + 1)] = float(problem.outer_loss(state.params, raw)[0])
        return found

    found: Found = {str(k): {n: [] for n in NAMES} for k in HORIZONS if k <= length}
    for name, raw in VARIABLES.raw.items():
        for unit in torch.eye(raw.numel()):
            step = WIDTH[name] * unit.view_as(raw)
            above, below = (losses({**VARIABLES.raw, name: raw + d}) for d in (step, -step))
            for k in above:
                found[k][name].append((above[k] - below[k]) / (2 * WIDTH[name]))
    return found


@dataclass(frozen=True)
class Case:
    """An estimator, what it is asked for, until which step it is read, or averaged, on what."""

    estimator: Estimator
    names: Sequence[str] = NAMES
    until: int = 0
    mean: bool = False
    large: bool = False  # 8 held-out batches as one

    def kinds(self, names: Sequence[str] = NAMES) -> dict[str, Kind]:
        """Return the kinds; SGD's decay is in the training loss, for implicit estimators."""
        kinds = {n: VARIABLES.kinds[n] for n in self.names if n in names}
        return kinds if "optimizer" in self.estimator.supports else dict.fromkeys(kinds, "loss")


FAST: dict[str, Any] = {"product": "one_sided", "radius": 1e-3}
DERIVATIVE, OTHER = "derivative on the truth's images", "truth of another window"
CASES = {
    "OneStep": Case(OneStep()),
    "OneStep, 2nd order": Case(OneStep(second_order=True), ("alpha",)),
    "OneStep, 2nd order, exact": Case(OneStep("double_backward", second_order=True), IN_LOSS),
    "OneStep, mean of 25": Case(OneStep(), until=25, mean=True),
    "2nd order, mean of 25": Case(OneStep(second_order=True), ("alpha",), until=25, mean=True),
    "Online": Case(Online(), OPTIMIZER),
    "Unrolled(5), exact": Case(Unrolled(5)),
    "Unrolled(5)": Case(Unrolled(5, **FAST)),
    "Unrolled(5), mean of 25": Case(Unrolled(5, **FAST), until=25, mean=True),
    "Unrolled(25)": Case(Unrolled(25, **FAST)),
    "Unrolled(25), 1024 images": Case(Unrolled(25, **FAST), large=True),
    "Unrolled(100)": Case(Unrolled(100, **FAST)),
    "Unrolled(10), annealed": Case(Unrolled(10, anneal=True, **FAST), OPTIMIZER),
    "Forward(0.9)": Case(Forward(0.9, **FAST), SCALARS, until=25),
    "Forward(0.99)": Case(Forward(0.99, **FAST), until=100),
    "Forward(1.0)": Case(Forward(1.0, **FAST), SCALARS, until=25),
    "Neumann(10)": Case(Neumann(10, damping=0.1), ("weight_decay", *IN_LOSS)),
    "CG(10)": Case(ConjugateGradient(10, damping=0.1), ("weight_decay", *IN_LOSS)),
}


def ask(case: Case, batches: Batches, held_out: Batches, factor: float, state: InnerState) -> Found:
    """Return the estimates in a window by step; empty if the window is too short."""
    leaves, length, said = VARIABLES.leaves(), len(batches), dict[str, dict[str, Tensor]]()
    held = tuple(map(torch.cat, zip(*held_out[: 8 if case.large else 1])))
    for t in range(0, min(case.until, length), case.estimator.steps):
        problem = bind(batches, held_out[t] if case.mean else held, factor).after(t)
        kinds = case.kinds(NAMES if t < HORIZONS[-2] else SCALARS)  # a tangent an entry is dear
        ahead = case.estimator(problem, state, leaves, kinds)
        state, said[str(t + 1)] = ahead.state, ahead.hypergradient
    if case.mean:
        said = {"any": {n: torch.stack([v[n] for v in said.values()]).mean(0) for n in case.names}}
    if not case.until and case.estimator.steps <= length:
        problem, steps = bind(batches, held, factor), case.estimator.steps
        steps += case.estimator.carries
        said["any"] = estimate(case.estimator, problem, state, leaves, case.kinds(), steps)
    kept = {k: v for k, v in said.items() if k in ("any", *map(str, HORIZONS))}
    return {k: {n: g.flatten().tolist() for n, g in v.items()} for k, v in kept.items()}


def cost(case: Case, name: str, state: InnerState) -> float:
    """Return the CPU time of a call for one variable, in plain steps per step."""
    estimator, leaves, kinds = case.estimator, VARIABLES.leaves(), case.kinds((name,))
    batches, held_out = draw(25, 1)
    problem = bind(batches, tuple(map(torch.cat, zip(*held_out[: 8 if case.large else 1]))), 1.0)
    begin = estimator(problem, state, leaves, kinds).state if estimator.carries else state

    def seconds(call: Callable[[], object]) -> float:
        n = 1 if estimator.steps > 5 else 3
        return statistics.median(timeit.repeat(call, timer=time.process_time, repeat=n, number=1))

    plain = seconds(lambda: [problem.inner_step(state, leaves) for _ in range(5)]) / 5
    return seconds(lambda: estimator(problem, begin, leaves, kinds)) / estimator.steps / plain


def collect(out: Path, windows: int, long: int) -> tuple[Windows, Costs]:
    """Run the measurements that the file lacks; write every result at once."""
    out.parent.mkdir(parents=True, exist_ok=True)
    lines = out.read_text().splitlines() if out.exists() else []
    found: dict[str, Any] = dict(json.loads(line) for line in lines)

    def keep(key: str, result: Any) -> None:
        found[key] = result
        with out.open("a") as file:
            click.echo(json.dumps([key, result]), file)
        click.echo(f"{key}: {time.process_time():.0f} s of CPU time so far", err=True)

    judged: Batches = [tuple(part[:JUDGED] for part in data()[1])]
    wanted = ["costs", *(f"{p} {w}" for p in POINTS for w in range(windows))]
    for point, state in points() if set(wanted) - found.keys() else ():
        factor = cosine(point / STEPS)
        for w in (w for w in range(windows) if f"{point} {w}" not in found):
            batches, held_out = draw(HORIZONS[-1 if w < long else -2], 1000 * point + w)
            said = {n: ask(c, batches, held_out, factor, state) for n, c in CASES.items()}
            said[DERIVATIVE] = {
                str(k): ask(Case(Unrolled(k, **FAST)), batches, judged, factor, state)["any"]
                for k in (HORIZONS if w == 0 and w < long else ())
            }
            real = truth(bind(batches, judged[0], factor), state, len(batches))
            keep(f"{point} {w}", {"point": point, "truth": real, "said": said})
        if "costs" not in found:
            short = ((n, c) for n, c in CASES.items() if c.estimator.steps <= 25)
            costs = {n: {v: cost(c, v, state) for v in c.names} for n, c in short}
            keep("costs", costs | {"Unrolled(100)": costs["Unrolled(25)"]})
    for point, w in ((p, w) for p in POINTS for w in range(windows)):
        found[f"{point} {w}"]["said"][OTHER] = found[f"{point} {(w + 1) % 2}"]["truth"]
    return [found[key] for key in wanted[1:]], found["costs"]


def pairs(windows: Windows, label: str, name: str, k: int) -> list[Pair]:
    """Return pairs of estimate and truth; drop estimates that are not finite."""
    result = []
    for window in windows:
        said = window["truth"] if label == "truth" else window["said"][label]
        values = said.get(str(k), said.get("any", {})).get(name, [math.nan])
        real = window["truth"].get(str(k))
        if real and all(map(math.isfinite, values)):
            result.append((window["point"], torch.tensor(values), torch.tensor(real[name])))
    return result


def agreement(sample: list[Pair]) -> float:
    return statistics.mean(float(F.cosine_similarity(a, b, 0, eps=1e-30)) for _, a, b in sample)


def correlation(sample: list[Pair]) -> float:
    """Return the rank correlation (Spearman), because the scale differs between points."""
    ranks = [torch.cat(v).argsort().argsort().double() for v in list(zip(*sample))[1:]]
    return float(torch.stack(ranks).corrcoef()[0, 1])


def direction(windows: Windows, label: str, k: int, name: str) -> str:
    """Return the direction of the mean per point: arrows for scalars, cosines for vectors."""
    shown, k = [], min(k, 25) if label in CASES and name in VECTORS else k
    for point in POINTS:
        said = [a for p, a, _ in pairs(windows, label, name, k) if p == point]
        real = [b for p, _, b in pairs(windows, "truth", name, HORIZONS[-1]) if p == point]
        if said and name in SCALARS:
            up, same = sum(map(float, said)) < 0, len({bool(a < 0) for a in said}) == 1
            shown.append("↘↗↓↑"[2 * same + up])
        elif said and real:
            means = torch.stack(said).mean(0), torch.stack(real).mean(0)
            shown.append(f"{float(F.cosine_similarity(*means, 0)):.2f}")
    return " ".join(shown)


def report(windows: Windows, costs: Costs) -> None:
    def table(title: str, names: Sequence[str], rows: Iterable[str], cell: Callable) -> None:
        print(f"\n{title}\n\n| | {' | '.join(names)} |\n|{'---|' * (len(names) + 1)}")
        for label in rows:
            print(f"| {label} | {' | '.join(cell(label, name) for name in names)} |")

    def by_horizon(measure: Callable[[list[Pair]], float], label: str, name: str) -> str:
        samples = [pairs(windows, label, name, k) for k in HORIZONS]
        shown = " / ".join(f"{measure(s):.2f}" if len(s) > 2 else "–" for s in samples)
        return shown if any(samples) else ""

    listed = " / ".join(f"{k} ({len(pairs(windows, 'truth', 'lr', k))})" for k in HORIZONS)
    title, rows = f"Agreement with K = {listed} real steps (windows)", (DERIVATIVE, OTHER, *CASES)
    table(title, NAMES, rows, lambda *cell: by_horizon(agreement, *cell))
    title = "Rank correlation with the truth across windows"
    table(title, SCALARS, rows, lambda *cell: by_horizon(correlation, *cell))
    asked = {f"truth, K = {k}": ("truth", k) for k in HORIZONS}
    asked |= {label: (label, case.until or 1) for label, case in CASES.items()}
    title = f"Means at steps {POINTS}: where descent moves a scalar (↑ ↓ all windows, ↗ ↘ most), "
    title += "cosine of a vector with the mean truth of 100 steps"
    table(title, NAMES, asked, lambda row, name: direction(windows, *asked[row], name))
    shown = {(c, n): f"{x:.1f}" for c, row in costs.items() for n, x in row.items()}
    table("Cost, in plain steps a step", NAMES, CASES, lambda *cell: shown.get(cell, ""))


def paint(windows: Windows, costs: Costs, path: Path) -> None:
    """Plot means over the variables of a kind, for estimators that support all of them."""
    plt.rcParams.update({"font.size": 11, "axes.grid": True, "grid.alpha": 0.3})
    figure, axes = plt.subplots(3, 3, figsize=(12, 11), sharex=True, sharey=True)
    handles, colors = {}, plt.get_cmap("tab20")
    panels = ((k, kind) for k in HORIZONS[1:] for kind in ("optimizer", "loss", "architecture"))
    for axis, (k, kind) in zip(axes.flat, panels):
        names = [n for n in NAMES if VARIABLES.kinds[n] == kind]
        axis.set(title=f"{kind}, {k} steps", xscale="log", xlim=(1, 80))
        axis.set_xticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
        for i, label in enumerate(CASES):
            samples = [pairs(windows, label, n, k) for n in names]
            if all(samples):
                x = statistics.mean(costs[label][n] for n in names)
                y = statistics.mean(map(agreement, samples))
                handles[label] = axis.plot(x, y, "osD^v"[i % 5], color=colors(i), ms=9)[0]
    figure.supxlabel("cost, plain training steps a step", y=0.1, fontsize=11)
    figure.supylabel("agreement with real training", fontsize=11)
    figure.legend([handles[c] for c in CASES], CASES, loc="lower center", ncols=5, frameon=False)
    figure.tight_layout(rect=(0, 0.095, 1, 1))
    figure.savefig(path, dpi=100)


@click.command()
@click.option("--out", default="out-fidelity/fidelity.jsonl", show_default=True)
@click.option("--windows", default=3, show_default=True, help="From each point, 2 at least.")
@click.option("--long", default=2, show_default=True, help="Of them, of 100 steps; others: 25.")
@click.option("--picture", default="docs/fidelity.png", show_default=True)
def main(out: str, windows: int, long: int, picture: str) -> None:
    """Compare estimators with retraining; see the docstring of the module."""
    keep_freed_memory()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # series that diverged are counted
    found, costs = collect(Path(out), windows, long)
    report(found, costs)
    paint(found, costs, Path(picture))
    print(f"\n{time.process_time():.0f} s of CPU time in this process; {picture}")


if __name__ == "__main__":
    main()
