"""Networks of the library timm (extra: timm). Only this module imports timm."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from darts_lite.errors import UserError

Image = tuple[int, int, int]
RATES = ("drop_rate", "drop_prob")  # names of timm for the rates of dropout and drop path
FAULTS = (  # raised by timm for arguments or weights that do not fit
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    NotImplementedError,
)


class TimmNetwork(nn.Module):
    """A model of timm that takes images in [0, 1], and whose training step is a pure function.

    Images are normalized by the mean and the standard deviation of the model's pretraining; gray
    images by the means of the three numbers. BatchNorm uses batch statistics in training and keeps
    its running statistics, which `network.calibrate` sets. Dropout and drop path are off.

    Arguments:
        model: Model of timm; it is changed in place.
        channels: Channels of the images.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, channels: int):
        super().__init__()
        self.model = model
        about: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
        for name in ("mean", "std"):
            values = torch.tensor(about[name], dtype=torch.float32)
            values = values if len(values) == channels else values.mean().repeat(channels)
            self.register_buffer(name, values.view(channels, 1, 1))
        for module in model.modules():
            _make_pure(module)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [B, classes] of images [B, C, H, W] in [0, 1]."""
        return self.model((x - self.mean) / self.std)

    def depths(self) -> dict[str, int]:
        """Return the depth of every parameter by timm's groups: 0 for the stem, last the head."""
        from timm.models import group_parameters

        matcher = self.model.group_matcher(coarse=False)  # type: ignore[operator]
        found: dict[str, int] = group_parameters(self.model, matcher, reverse=True)
        order = {depth: i for i, depth in enumerate(sorted(set(found.values())))}
        return {f"model.{name}": order[depth] for name, depth in found.items()}


def _make_pure(module: nn.Module) -> None:
    """Turn off what makes a training step depend on more than parameters and images, in place."""
    if isinstance(module, _BatchNorm):
        # With buffers, but without tracking: batch statistics in training, running ones otherwise.
        module.momentum, module.track_running_stats = 0.0, False
        module.num_batches_tracked = None
    if isinstance(module, _DropoutNd):
        module.p = 0.0
    for name in RATES:
        if isinstance(getattr(module, name, None), float):
            setattr(module, name, 0.0)
    if hasattr(module, "fused_attn"):  # fused attention has no second derivative, and no exact MACs
        module.fused_attn = False  # type: ignore[assignment]


def timm_network(
    name: str, image: Image, classes: int, generator: torch.Generator | None = None
) -> TimmNetwork:
    """Return a network of timm with new weights.

    Arguments:
        name: Name of a model of timm, with or without a tag.
        image: Channels, height and width of an input image.
        classes: Number of classes.
        generator: CPU generator of the weights; None draws them from torch's default generator,
            whose state does not change.
    Raises: `UserError` if timm is missing, the name is unknown, or the images do not fit.
    """
    try:
        return _created(name, image, classes, generator)
    except FAULTS as error:
        raise UserError(_unfit(name, image, error)) from None


def pretrained(
    name: str,
    image: Image,
    classes: int,
    weights: Mapping[str, Tensor],
    file: object,
    generator: torch.Generator | None = None,
) -> tuple[TimmNetwork, bool]:
    """Return a network of timm with given weights, and whether their classifier is among them.

    timm adapts the weights: of color images to gray ones, and positions to another image size. The
    classifier is new if the weights are of another number of classes.

    Arguments:
        name: Name of a model of timm, with or without a tag.
        image: Channels, height and width of an input image.
        classes: Number of classes.
        weights: State dictionary of that model.
        file: Origin of the weights, for errors.
        generator: CPU generator of a new classifier.
    Raises: `UserError` as `timm_network`, and if the weights are not those of the model.
    """
    about = _about(name)
    overlay: dict[str, Any] = {"state_dict": dict(weights), "label_offset": 0}
    names = about.classifier
    head = weights.get(f"{names if isinstance(names, str) else (names or ('',))[0]}.weight")
    if head is not None:
        overlay["num_classes"] = len(head)
    stem = weights.get(f"{about.first_conv}.weight")
    if stem is not None and stem.dim() == 4 and stem.shape[1] == image[0]:
        overlay["input_size"] = (image[0], *about.input_size[1:])
    whole = overlay.get("num_classes", about.num_classes) == classes
    try:
        return _created(name, image, classes, generator, overlay), whole
    except FAULTS as error:
        timm_network(name, image, classes)  # raises if the images are the reason
        reason = " ".join(str(error).split())[:150]
        raise UserError(
            f"{file} must hold weights of the timm model {name}, got {reason!r}; give the state "
            "dictionary of this model, as model.state_dict() or as timm publishes it"
        ) from None


def require_trainable(network: TimmNetwork, name: str, image: Image) -> None:
    """Raise `UserError` unless a network takes the images and its training is a pure function.

    Arguments:
        network: Network on the CPU; it is in evaluation mode afterwards.
        name: Name of the model, for the error.
        image: Channels, height and width of an input image.
    """
    x = torch.linspace(0, 1, 2).view(2, 1, 1, 1).expand(2, *image)
    before = {key: value.clone() for key, value in network.named_buffers()}
    try:
        with torch.no_grad():
            network.train()(x)
            shape = network.eval()(x).shape
        network.depths()
    except FAULTS as error:
        raise UserError(_unfit(name, image, error)) from None
    changed = [key for key, value in network.named_buffers() if not value.equal(before[key])]
    if changed or len(shape) != 2:
        what = f"one that changes {changed[0]} in training" if changed else f"{len(shape)} axes"
        raise UserError(
            f"the timm model {name} must give logits [B, classes] and keep its buffers in "
            f"training, got {what}; choose another model"
        )


def _created(
    name: str,
    image: Image,
    classes: int,
    generator: torch.Generator | None,
    overlay: Mapping[str, Any] | None = None,
) -> TimmNetwork:
    """Return a network of timm, with the weights of an overlay of its configuration if given."""
    timm, about = _timm(), _about(name)
    size = {"img_size": image[1:]} if about.fixed_input_size else {}
    # some models compute with numbers while they are made, so never on the meta device
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        if generator is not None:
            seed = torch.randint(2**62, (), generator=generator, device="cpu")
            torch.default_generator.manual_seed(int(seed))
        model: nn.Module = timm.create_model(
            name,
            pretrained=overlay is not None,
            pretrained_cfg_overlay=None if overlay is None else dict(overlay),
            in_chans=image[0],
            num_classes=classes,
            exportable=True,  # no activation with a derivative made by hand
            **size,
        )
        kept = {key: v for key, v in model.pretrained_cfg.items() if key != "state_dict"}  # type: ignore[operator, union-attr]
        model.pretrained_cfg = model.default_cfg = kept  # type: ignore[assignment]
        return TimmNetwork(model, image[0])


def _about(name: str) -> Any:
    """Return timm's configuration of a model; raise `UserError` if the name is unknown."""
    timm = _timm()
    close = get_close_matches(name, timm.list_models(), 3)
    hint = f", such as {', '.join(close)}" if close else ""
    if not timm.is_model(name):
        raise UserError(
            f"the timm model must be a name of timm.list_models(){hint}, got {name!r}; correct it"
        )
    try:
        found = timm.models.get_pretrained_cfg(name)
    except RuntimeError:
        plain = name.partition(".")[0]
        tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{plain}.*")]
        raise UserError(
            f"the tag of the timm model {plain} must be one of {', '.join(tags)}, got {name!r}; "
            "correct it or leave it out"
        ) from None
    return timm.models.PretrainedCfg() if found is None else found


def _timm() -> ModuleType:
    """Return the library; raise `UserError` if it is not installed."""
    try:
        import timm
    except ImportError:
        raise UserError(
            "a network of timm needs timm, which is not installed; run pip install timm"
        ) from None
    return timm


def _unfit(name: str, image: Image, error: Exception) -> str:
    reason = " ".join(str(error).split())[:150]
    return (
        f"the timm model {name} must take images {list(image)}, [C, H, W], got {reason!r}; choose "
        "another model, or search with another --image-size"
    )
