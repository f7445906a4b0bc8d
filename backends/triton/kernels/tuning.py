"""Which tile a kernel runs with: the fastest of a few with names, timed once for each card and shape, kept on disk.

In the interpreter, on other devices than CUDA, while torch traces (nothing runs then) and while a graph is recorded,
nothing is timed: the tile is the stored one, or the first. Times are in the cache folder of qcompile; those of a card
are read by no other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import torch
import triton
from triton.runtime.errors import OutOfResources
from triton.testing import do_bench

from qcompile.backends.triton.kernels.arithmetic import INTERPRETED
from qcompile.tuning_cache import TuningCache, folder


@dataclasses.dataclass(frozen=True)
class Tile:
    """How a kernel shares out its work.

    Attributes:
        name: of the file of times; a tile that changes gets another.
        columns: outputs of a program.
        rows: of x, of a program; in kernels for few rows: words of each output in a step.
        depth: inputs in a step; 0 where the layout of the weight says how many.
        split: programs that share the inputs of an output.
        warps: of a program.
        stages: steps under way at a time.
    """

    name: str
    columns: int
    rows: int
    depth: int = 0
    split: int = 1
    warps: int = 4
    stages: int = 1


_KNOWN: dict[str, str] = {}
"""Key, as text -> name of the tile, of this process."""


def chosen(
    kernel: str, tiles: Sequence[Tile], shape: Mapping[str, int | str], x: torch.Tensor, run: Callable[[Tile], object]
) -> Tile:
    """Return the tile to run with; where the card is there and has not been asked about the shape, time them all.

    Args:
        kernel: its name.
        tiles: to choose from; the first where nothing is known.
        shape: what the times depend on.
        x: decides by its device.
        run: runs the kernel.
    """
    if INTERPRETED.value or x.device.type != "cuda":
        return tiles[0]
    # What stands for a tensor while torch traces is of a class of its own.
    idle = type(x) is torch.Tensor and not torch.cuda.is_current_stream_capturing()
    return fastest(kernel, tiles, shape, x.device, run if idle else None)


def fastest(
    kernel: str,
    tiles: Sequence[Tile],
    shape: Mapping[str, int | str],
    device: torch.device,
    run: Callable[[Tile], object] | None,
) -> Tile:
    """Return the fastest tile for a shape on a card; the first where that is not known, and `run` is None."""
    key = {"kernel": kernel, **shape, "tiles": [repr(tile) for tile in tiles]}
    text = f"{device} {key}"
    if text not in _KNOWN:
        cache = TuningCache(folder(), f"triton {triton.__version__}, {torch.cuda.get_device_name(device)}")
        times = cache.load(key)
        if times is None:
            if run is None:
                return tiles[0]
            times = timed(tiles, run)
            cache.store(key, times)
        _KNOWN[text] = min(times, key=lambda name: times[name])
    return next((tile for tile in tiles if tile.name == _KNOWN[text]), tiles[0])


def timed(tiles: Sequence[Tile], run: Callable[[Tile], object]) -> dict[str, float]:
    """Return the milliseconds of each tile that fits on the card, by its name; with nothing in the card's cache."""
    times = {}
    for tile in tiles:
        with contextlib.suppress(OutOfResources):
            times[tile.name] = float(do_bench(functools.partial(run, tile), warmup=5, rep=25, return_mode="median"))
    return times


def bucket(count: int | torch.SymInt) -> int | str:
    """Return the power of two that stands for a number of rows; "any" where torch traces for all numbers of them."""
    return "any" if isinstance(count, torch.SymInt) else 1 << max(count - 1, 0).bit_length()


def by_rows(
    count: int | torch.SymInt, few: Sequence[Tile], some: Sequence[Tile], many: Sequence[Tile]
) -> Sequence[Tile]:
    """Return the tiles for a number of rows: up to 16, up to 64, more.

    Where torch traces for all numbers of them, those in the middle: to ask would make it a trace for one of them.
    """
    if isinstance(count, torch.SymInt):
        return some
    return few if count <= 16 else some if count <= 64 else many
