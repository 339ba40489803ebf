"""Cost of each hypergradient, in plain training steps or against `higher`.

The network has four convolutional layers with BatchNorm and SiLU. The variants of a row alternate
in one process, and every ratio is the median over the rounds. Peak memory is measured in a process
that runs only one variant, above its memory at rest; freed memory returns to the system at once. A
plain step is `Bilevel.inner_step` of the same problem.

    python experiments/benchmark_hypergradient.py
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple, cast

import click
import higher
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from darts_lite import hypergradient as hg
from darts_lite.augment import CLASSIC, Learned
from darts_lite.hypergradient.derivatives import Method
from darts_lite.hypergradient.hyperparameters import Kind
from darts_lite.hypergradient.optimizers import SGD, Setting
from darts_lite.training.memory import keep_freed_memory

CLASSES = 10
IMAGE = (3, 28, 28)
LAYERS = ((1, 1), (2, 2), (2, 1), (4, 2))  # width in units of the first, stride
WINDOW = 5
AUGMENT = Learned(channels=IMAGE[0], crop=2, probabilities=False, operations=CLASSIC)
START: dict[str, tuple[Kind, tuple[float, ...]]] = {  # raw
    "lr": ("optimizer", (-3.5,)),  # log
    "weight_decay": ("optimizer", (-7.0,)),  # log
    "momentum": ("optimizer", (2.0,)),  # logit
    **dict.fromkeys(AUGMENT.names, ("loss", (-1.0,))),  # logit
    "smoothing": ("loss", (-1.0,)),  # logit of five times the share
    "noise": ("loss", (-1.0,)),  # logit of five times the standard deviation of a pixel
    "alpha": ("architecture", (0.5, -0.5) * len(LAYERS)),  # SiLU or tanh after each layer
}
OPTIMIZER = ("lr", "weight_decay", "momentum")
LOSS = (*AUGMENT.names, "smoothing", "noise")
METHODS: dict[Method, float] = {  # and the radius of the differences
    "double_backward": 0.01,
    "jvp": 0.01,
    "finite_difference": 0.01,
    "one_sided": 1e-3,  # its error is of first order
}
WINDOWS = (5, 20)  # of the comparison of graphs that are kept
GRAPHS: dict[str, int | Literal["sqrt", "all"]] = {
    "graphs=0": 0,
    "graphs=1": 1,
    "graphs=sqrt": "sqrt",
    "graphs=all": "all",
}
VARIANTS: tuple[str, ...] = ("higher", *METHODS, *GRAPHS)

Params = tuple[Tensor, ...]
Hyper = Mapping[str, Tensor]
Found = dict[str, Tensor]
Turn = dict[str, float]
Methods = Mapping[str, Callable[[], Found]]


class Net(nn.Module):
    """Convolutions, BatchNorm, SiLU; with `weights` [layers, 2], mixtures of SiLU and tanh."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [IMAGE[0], *(width * factor for factor, _ in LAYERS)]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(widths[i], widths[i + 1], 3, stride, 1, bias=False)
            for i, (_, stride) in enumerate(LAYERS)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(w) for w in widths[1:])
        self.classifier = nn.Linear(widths[-1], CLASSES)

    def forward(self, x: Tensor, weights: Tensor | None = None) -> Tensor:
        for i, (convolution, norm) in enumerate(zip(self.convolutions, self.norms)):
            x = norm(convolution(x))
            if weights is None:
                x = F.silu(x)
            else:
                x = weights[i, 0] * F.silu(x) + weights[i, 1] * torch.tanh(x)
        return cast(Tensor, self.classifier(x.mean((2, 3))))


class Task:
    """The network, synthetic data, and the bilevel problem of the given variables."""

    def __init__(self, width: int, batch: int, device: torch.device, window: int = WINDOW):
        torch.manual_seed(0)
        self.device, self.window_length = device, window
        self.net = Net(width).to(device)
        self.names = [name for name, _ in self.net.named_parameters()]
        shape, g = (batch, *IMAGE), torch.Generator().manual_seed(0)
        means = torch.rand(CLASSES, *IMAGE, generator=g)
        labels = [torch.randint(CLASSES, (batch,), generator=g) for _ in range(window + 1)]
        images = [0.7 * torch.rand(shape, generator=g) + 0.3 * means[y] for y in labels]
        self.labels = [y.to(device) for y in labels]
        self.images = [x.to(device) for x in images]
        self.noise = torch.randn(shape, generator=g).to(device)
        self.draws = AUGMENT.sample(batch, IMAGE[1:], g, device)
        params = tuple(p.detach().clone() for p in self.net.parameters())
        sgd = SGD(0.9, nesterov=True)
        self.state = hg.InnerState(params, sgd.init(params))
        self.problem = hg.Bilevel(self.train_loss, self.outer_loss, sgd, self.settings)

    def hyper(self, *names: str) -> Found:
        """Return the raw leaves; all except alpha are scalars."""
        leaves = {n: torch.tensor(START[n][1], device=self.device) for n in names}
        return {n: (v if n == "alpha" else v[0]).requires_grad_() for n, v in leaves.items()}

    def train_loss(self, params: Params, hyper: Hyper, t: int) -> tuple[Tensor, None]:
        """Return the training loss, with augmentation for a magnitude and mixing for an alpha."""
        x = self.images[t]
        if any(n in hyper for n in AUGMENT.names):
            fixed = x.new_tensor(0.3)
            magnitudes = {n: hyper[n].sigmoid() if n in hyper else fixed for n in AUGMENT.names}
            x = AUGMENT.apply(x, self.draws, magnitudes)
        if "noise" in hyper:
            x = x + hyper["noise"].sigmoid() / 5 * self.noise
        logits = self.logits(params, x, hyper)
        loss = F.cross_entropy(logits, self.labels[t])
        if "smoothing" in hyper:
            share = hyper["smoothing"].sigmoid() / 5
            loss = (1 - share) * loss - share * logits.log_softmax(1).mean()
        return loss, None

    def outer_loss(self, params: Params, hyper: Hyper) -> tuple[Tensor, None]:
        return F.cross_entropy(self.logits(params, self.images[-1], hyper), self.labels[-1]), None

    def logits(self, params: Params, x: Tensor, hyper: Hyper) -> Tensor:
        buffers = {name: b.clone() for name, b in self.net.named_buffers()}
        weights = hyper["alpha"].view(-1, 2).softmax(1) if "alpha" in hyper else None
        values = dict(zip(self.names, params))
        return cast(Tensor, functional_call(self.net, (values, buffers), (x, weights)))

    @staticmethod
    def settings(hyper: Hyper) -> dict[str, Setting]:
        return {
            "lr": hyper["lr"].exp(),
            "weight_decay": hyper["weight_decay"].exp(),
            "momentum": hyper["momentum"].sigmoid(),
        }

    def plain(self, hyper: Hyper) -> Callable[[], object]:
        return lambda: self.problem.inner_step(self.state, hyper)

    def two_gradients(self, hyper: Hyper) -> None:
        params = tuple(p.detach().requires_grad_() for p in self.state.params)
        torch.autograd.grad(self.train_loss(params, hyper, 0)[0], params)
        torch.autograd.grad(self.outer_loss(params, hyper)[0], params)

    def estimate(
        self, estimator: hg.Estimator, hyper: Hyper, *names: str, state: hg.InnerState | None = None
    ) -> Callable[[], Found]:
        kinds = {n: START[n][0] for n in names}
        return lambda: estimator(self.problem, state or self.state, hyper, kinds).hypergradient

    def underway(self, estimator: hg.Estimator, hyper: Hyper, *names: str) -> hg.InnerState:
        """Return the state after two steps, with the memory of the estimator."""
        kinds, state = {n: START[n][0] for n in names}, self.state
        for t in range(2):
            state = estimator(self.problem.after(t), state, hyper, kinds).state
        return state

    def window(self, variant: str) -> Callable[[], Found]:
        """Compute the hypergradient through the window, by one of `VARIANTS`."""
        hyper, length = self.hyper(*OPTIMIZER), self.window_length
        if variant == "higher":
            return lambda: self.higher(hyper)
        if variant in GRAPHS:
            estimator = hg.Unrolled(length, graphs=GRAPHS[variant])
        else:
            method = cast(Method, variant)
            estimator = hg.Unrolled(length, product=method, radius=METHODS[method])
        return self.estimate(estimator, hyper, *OPTIMIZER)

    def higher(self, hyper: Hyper) -> Found:
        optimizer = torch.optim.SGD(
            self.net.parameters(), lr=1.0, weight_decay=1.0, momentum=0.5, nesterov=True
        )
        override = {name: [value] for name, value in self.settings(hyper).items()}
        with higher.innerloop_ctx(self.net, optimizer, override=override) as (net, inner):
            for x, y in zip(self.images[:-1], self.labels):
                inner.step(F.cross_entropy(net(x), y))
            loss = F.cross_entropy(net(self.images[-1]), self.labels[-1])
            found = torch.autograd.grad(loss, [hyper[n] for n in OPTIMIZER])
        return dict(zip(OPTIMIZER, found))


class Comparison:
    """Run every call once, drop `methods` that torch cannot compute, then measure in turns."""

    def __init__(
        self, device: torch.device, turns: int, methods: Methods, **others: Callable[[], object]
    ):
        self.found: dict[str, Found] = {}
        self.failed: dict[str, str] = {}
        for name, method in methods.items():
            try:
                self.found[name] = method()
            except RuntimeError as error:
                self.failed[name] = str(error).splitlines()[0]
        calls = {**others, **{n: methods[n] for n in self.found}}
        for call in others.values():
            call()
        self.turns: list[Turn] = []
        for i in range(turns):
            order = list(calls)[:: -1 if i % 2 else 1]
            self.turns.append({name: seconds(calls[name], device) for name in order})

    def ratio(self, name: str, over: str, without: str | None = None) -> float:
        """Return the median time ratio; NaN if torch cannot compute a method."""
        if name in self.failed:
            return float("nan")
        return statistics.median(
            (turn[name] - (turn[without] if without else 0)) / turn[over] for turn in self.turns
        )

    def note(self, name: str) -> str:
        """Return the largest relative deviation of a variable from the first working method."""
        reference = next(iter(self.found))
        if name in self.failed or name == reference:
            return self.failed.get(name, "")
        found, truth = self.found[name], self.found[reference]
        each = [float((found[n] - t).abs().max() / t.abs().max()) for n, t in truth.items()]
        return f"within {max(each):.0e} of {reference}"


def seconds(call: Callable[[], object], device: torch.device) -> float:
    wait: Callable[[], None] = getattr(torch, device.type).synchronize  # no-op on a CPU
    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start


class Row(NamedTuple):
    """One line of the table; a target is an upper bound."""

    what: str
    unit: str
    target: float | None
    measured: float
    note: str = ""

    def __str__(self) -> str:
        bound = "" if self.target is None else f"≤ {self.target:g}"
        return f"| {self.what} | {self.unit} | {bound} | {self.measured:.2f} | {self.note} |"


def one_step(task: Task, turns: int) -> list[Row]:
    hyper, what = task.hyper(*OPTIMIZER), "OneStep, 3 settings"
    own = {what: task.estimate(hg.OneStep(), hyper, *OPTIMIZER)}
    seen = Comparison(task.device, turns, own, two=lambda: task.two_gradients(hyper))
    return [Row(what, "its two gradients", 1.1, seen.ratio(what, "two"))]


def mixed(task: Task, turns: int) -> list[Row]:
    names = (*OPTIMIZER, *LOSS, "alpha")
    hyper = task.hyper(*names)
    without = task.estimate(hg.OneStep(), hyper, *OPTIMIZER)
    own: Methods = {
        m: task.estimate(hg.OneStep(m, second_order=True, radius=r), hyper, *names)
        for m, r in METHODS.items()
    }
    seen = Comparison(task.device, turns, own, plain=task.plain(hyper), without=without)
    what, unit = f"mixed pass of {len(LOSS)} loss scalars and alpha: ", "plain steps"
    cost = {m: seen.ratio(m, "plain", "without") for m in own}
    return [Row(what + m, unit, 1.5, cost[m], seen.note(m)) for m in own]


def unrolled(task: Task, turns: int, memory: Mapping[str, float]) -> list[Row]:
    own = {v: task.window(v) for v in ("higher", *METHODS)}
    seen = Comparison(task.device, turns, own, plain=task.plain(task.hyper(*OPTIMIZER)))
    what, reference = f"Unrolled({WINDOW}): ", f"higher, {WINDOW} steps"
    time_of, memory_of = "time of higher", "peak memory of higher"
    rows = [Row(reference, "plain steps", None, seen.ratio("higher", "plain"))]
    rows += [Row(what + m, time_of, 0.75, seen.ratio(m, "higher"), seen.note(m)) for m in METHODS]
    rows.append(Row(reference, "peak MiB", None, memory["higher"]))
    share = {m: memory[m] / memory["higher"] for m in METHODS}
    return rows + [Row(what + m, memory_of, 0.5, share[m]) for m in METHODS]


def kept_graphs(task: Task, turns: int, memory: Mapping[str, float]) -> list[Row]:
    """Return the cost of keeping graphs of an exact window."""
    own = {v: task.window(v) for v in ("higher", *GRAPHS)}
    seen = Comparison(task.device, turns, own)
    what = f"Unrolled({task.window_length}), double_backward, "
    rows = [
        Row(what + v, "time of higher", 1.0, seen.ratio(v, "higher"), seen.note(v)) for v in GRAPHS
    ]
    share = {v: memory[v] / memory["higher"] for v in GRAPHS}
    return rows + [Row(what + v, "peak memory of higher", 0.6, share[v]) for v in GRAPHS]


def forward(task: Task, turns: int) -> list[Row]:
    names = (*OPTIMIZER, "translate")
    hyper = task.hyper(*names)
    state = task.underway(hg.Forward(product="finite_difference"), hyper, *names)
    own: Methods = {
        m: task.estimate(hg.Forward(1.0, product=m, radius=r), hyper, *names, state=state)
        for m, r in METHODS.items()
        if m != "double_backward"  # which cannot carry tangents
    }
    seen = Comparison(task.device, turns, own, plain=task.plain(hyper))
    what, unit = f"Forward, {len(names)} scalars: ", "plain steps"
    return [Row(what + m, unit, 8, seen.ratio(m, "plain"), seen.note(m)) for m in own]


def others(task: Task, turns: int) -> list[Row]:
    """Return reference rows without targets."""
    hyper = task.hyper(*OPTIMIZER, *LOSS)
    carried = task.underway(hg.Online(), hyper, *OPTIMIZER)
    neumann = hg.Neumann(10, step_size=0.01)
    conjugate = hg.ConjugateGradient(10, tolerance=0, damping=10.0)
    own = {
        "Neumann(10)": task.estimate(neumann, hyper, *LOSS),
        "ConjugateGradient(10)": task.estimate(conjugate, hyper, *LOSS),
        "Online": task.estimate(hg.Online(), hyper, *OPTIMIZER, state=carried),
    }
    seen = Comparison(task.device, turns, own, plain=task.plain(hyper))
    return [Row(name, "plain steps", None, seen.ratio(name, "plain")) for name in own]


def peak_memory(variant: str, width: int, batch: int, device: str, window: int) -> float:
    """Return the peak memory in MiB, measured in a separate process."""
    command = [sys.executable, __file__, "--memory-of", variant, "--width", str(width)]
    command += ["--memory-window", str(window)]
    command += ["--memory-batch", str(batch), "--device", device]
    threshold = str(64 * 1024)  # larger blocks go back to the system when they are freed
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": threshold, "MALLOC_TRIM_THRESHOLD_": threshold}
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=env).stdout)


def peak(task: Task, variant: str) -> float:
    """Return the peak memory above the memory after a few plain steps. On a CPU, Linux only."""
    call, plain = task.window(variant), task.plain(task.hyper(*OPTIMIZER))
    for _ in range(3):
        plain()
    if task.device.type == "cuda":
        rest = torch.cuda.memory_allocated(task.device)
        torch.cuda.reset_peak_memory_stats(task.device)
        call()
        return (torch.cuda.max_memory_allocated(task.device) - rest) / 2**20
    rest = resident("VmRSS")
    call()
    return (resident("VmHWM") - rest) / 2**10


def resident(field: str) -> int:
    """Return the memory in KiB. The maximum of `getrusage` would include the parent process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


@click.command()
@click.option("--width", default=16, show_default=True, help="Channels of the first layer.")
@click.option("--batch-size", default=64, show_default=True)
@click.option("--memory-batch", default=256, show_default=True, help="For peak memory.")
@click.option("--pairs", default=7, show_default=True, help="Turns of each row.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--only-graphs", is_flag=True, help="Compare kept graphs of a window only.")
@click.option("--memory-of", type=click.Choice(VARIANTS), hidden=True)
@click.option("--memory-window", default=WINDOW, hidden=True)
def main(
    width: int,
    batch_size: int,
    memory_batch: int,
    pairs: int,
    device: str,
    only_graphs: bool,
    memory_of: str | None,
    memory_window: int,
) -> None:
    """Print the costs of the estimators next to the targets."""
    where = torch.device(device)
    if memory_of:
        print(peak(Task(width, memory_batch, where, memory_window), memory_of))
        return
    memory = {
        window: {
            v: peak_memory(v, width, memory_batch, device, window)
            for v in VARIANTS
            if v not in METHODS or (window == WINDOW and not only_graphs)
        }
        for window in WINDOWS
    }
    keep_freed_memory()
    task, rows = Task(width, batch_size, where), []
    if not only_graphs:
        rows += one_step(task, pairs) + mixed(task, pairs) + unrolled(task, pairs, memory[WINDOW])
        rows += forward(task, pairs) + others(task, pairs)
    for window in WINDOWS:
        own = Task(width, batch_size, where, window)
        rows += kept_graphs(own, pairs, memory[window])
    print(
        f"{len(LAYERS)} convolutions of width {width} to {4 * width}, BatchNorm and SiLU, "
        f"{sum(p.numel() for p in task.state.params)} parameters, {'x'.join(map(str, IMAGE))}, "
        f"batch {batch_size} ({memory_batch} for memory), float32, {device}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {pairs} pairs; "
        f"radius of one_sided {METHODS['one_sided']:g}, else {METHODS['finite_difference']:g}\n"
    )
    print("| what | in | target | measured | |\n|---|---|---|---|---|")
    print("\n".join(map(str, rows)))


if __name__ == "__main__":
    main()
