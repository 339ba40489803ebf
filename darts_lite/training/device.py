"""The device of a name."""

from __future__ import annotations

import torch

from darts_lite.errors import UserError


def device_named(name: str) -> torch.device:
    """Return the device of a name; "auto" is a GPU if there is one.

    Raises: `UserError` if this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0][:80]
        raise UserError(
            f"device must be a device of this machine, got {name!r} ({reason}); use --device cpu"
        ) from None
    return device
