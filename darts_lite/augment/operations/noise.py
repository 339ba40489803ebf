"""Additive Gaussian noise that is drawn as one whole number per image.

The noise comes from a fixed *bank* of standard normal numbers, and an image takes a window of the
bank. So a draw is the beginning of the window, small enough to be stored, sent and repeated; a draw
of the noise itself would be one number per pixel.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch
from torch import Tensor

from darts_lite.augment.operations.clamp import clamp
from darts_lite.augment.operations.record import Context, Family, Operation, rows_of

BANK = 1 << 18
"""Size of the bank; a window begins at one of 0, ..., BANK - 1."""

_SEED = 2018


def gaussian_noise(images: Tensor, magnitude: Tensor, start: Tensor) -> Tensor:
    """Add noise of standard deviation `magnitude`: clamp(x + magnitude · ε, 0, 1).

    ε is the window `bank[start], bank[start + 1], ...` in the order channel, row, column; after the
    end of the bank comes its beginning again. Over uniform starts each ε has exactly mean zero and
    variance one, and the ε of two pixels of an image correlate by less than 0.01. Compared with
    fresh random numbers:

    - there are only `BANK` different noises, and images with one start have the same noise;
    - windows overlap: two images with n values each share numbers with probability 2 n / BANK (2 %
      at 3 x 32 x 32), at different pixels; their noises are then shifted copies of one another;
    - the noise of an image with more than `BANK` values repeats itself.

    The derivative is exact: zero where the clamp holds, else 1 in the image and ε in the magnitude.
    A negative magnitude gives -ε. The bank is made once per device and dtype.

    Arguments:
        images: `[B, C, H, W]` in [0, 1].
        magnitude: `[B]`, standard deviation in units of the image.
        start: `[B]`, whole numbers, 0 <= start < BANK.
    Returns: images `[B, C, H, W]`.

    >>> gray = torch.full((1, 1, 64, 64), 0.5)
    >>> noisy = gaussian_noise(gray, torch.tensor([0.1]), torch.tensor([1000]))
    >>> round(noisy.std().item(), 2)
    0.1
    """
    size = images.shape[1:].numel()
    turns = 1 + -(-size // BANK)  # long enough for every window
    windows = bank(turns, images.device, images.dtype).unfold(0, size, 1)
    noise = windows.index_select(0, start).view(images.shape)
    return clamp(torch.addcmul(images, noise, magnitude.view(-1, 1, 1, 1)))


def _apply(images: Tensor, values: Tensor, context: Context) -> Tensor:
    return gaussian_noise(images, values[:, 0], rows_of(context.start, context.rows))


FAMILY = Family(
    "noise",
    {"gaussian_noise": Operation("standard deviation", 0.2, signed=False)},
    _apply,
)

# --- helpers --------------------------------------------------------------------------------------


@lru_cache(maxsize=16)
def bank(turns: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the bank, `turns` times in a row: the same numbers on every device, in every dtype."""

    def make() -> Tensor:
        generator = torch.Generator().manual_seed(_SEED)
        numbers = torch.randn(BANK, generator=generator, dtype=torch.float64, device="cpu").numpy()
        numbers = (
            numbers - numbers.mean()
        ) / numbers.std()  # by numpy: sums of torch depend on its threads
        return torch.from_numpy(numbers).to(device, dtype).repeat(turns)

    # In a thread of its own: the result outlives the transforms and modes of the caller.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(make).result()
