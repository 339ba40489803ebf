"""Roads to a smaller network, from the compare.json of `compress --compare`: table and picture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from darts_lite.errors import UserError
from darts_lite.files import read_json
from darts_lite.reporting import pictures
from darts_lite.reporting.comparison.study import (
    FILE,
    Count,
    Fraction,
    Seconds,
    Study,
    parse,
    read_study,
)
from darts_lite.reporting.comparison.tables import percent

NAME = "compare.json"
HEADER = ("target", "road", "parameters", "MACs", "test accuracy", "ms, batch 1", "ms, batch 32",
          "seconds")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Sized:
    """Size, accuracy and speed of a network.

    Attributes:
        parameters: number of parameters.
        macs: multiply-accumulates per image.
        test_accuracy: accuracy on test images.
        milliseconds: median milliseconds of a call, by its number of images.
    """

    __pydantic_config__ = FILE
    parameters: Count
    macs: Count
    test_accuracy: Fraction
    milliseconds: dict[str, Seconds]


@dataclass(frozen=True, kw_only=True)
class Road(Sized):
    """Network at the end of a road.

    Attributes:
        target: largest number of parameters that it might have.
        road: name of the road.
        folder: folder of its run, from that of compare.json.
        seconds: seconds that the road took.
    """

    __pydantic_config__ = FILE
    target: Count
    road: str
    folder: str
    seconds: Seconds


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Road that was impossible, and why."""

    __pydantic_config__ = FILE
    target: Count
    road: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Roads:
    """Content of compare.json.

    Attributes:
        run: folder of the training that all roads start from.
        data: fingerprint of the images.
        original: the network of this training.
        results: networks at the ends of the roads.
        left_out: roads that were impossible.
    """

    __pydantic_config__ = FILE
    run: str
    data: dict[str, Any]
    original: Sized
    results: tuple[Road, ...]
    left_out: tuple[LeftOut, ...]


def roads_of(content: Mapping[str, Any], where: Path) -> Roads:
    """Return the content of compare.json as data.

    Arguments:
        content: the content.
        where: the file, for errors.
    Raises: `UserError` if the comparison is not finished, or the content is wrong.
    """
    if "results" not in content:
        raise UserError(
            f"{where} must be of a finished comparison, got one without results; continue it with "
            "`compress --compare --resume`"
        )
    return parse(Roads, json.dumps(content), str(where))


def read_roads(folder: Path) -> Roads | None:
    """Return the comparison in a folder; None if the folder holds none.

    Raises: `UserError` if it is not finished, or its file is damaged.
    """
    path = folder / NAME
    if not path.exists():
        return None
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} must be written by `compress --compare`, got another file")
    return roads_of(content, path)


def studies_of(folder: Path, roads: Roads) -> list[Study]:
    """Return every road as a study of its own method.

    Arguments:
        folder: folder of the comparison.
        roads: the comparison.
    """
    found = []
    for road in roads.results:
        study = read_study(folder / road.folder)
        settings = replace(study.settings, method=road.road, max_params=road.target)
        found.append(replace(study, settings=settings))
    return found


def rows_of(roads: Roads) -> list[list[str]]:
    """Return the cells of the table: a header, RUN, then every road."""
    own = [["", "RUN", *_cells(roads.original), ""]]
    own += [
        [str(road.target), road.road, *_cells(road), f"{road.seconds:.0f}"]
        for road in roads.results
    ]
    return [list(HEADER), *own]


def _cells(network: Sized) -> list[str]:
    times = [network.milliseconds.get(size) for size in ("1", "32")]
    shown = ["" if value is None else f"{value:.2f}" for value in times]
    return [str(network.parameters), str(network.macs), percent(network.test_accuracy), *shown]


def omissions(roads: Roads) -> list[str]:
    """Return one line for every road that was left out."""
    return [
        f"{each.road} to {each.target} parameters is left out: {each.reason}"
        for each in roads.left_out
    ]


def roads_table(roads: Roads) -> str:
    """Return the table as Markdown, and a line for every road that was left out."""
    header, *body = rows_of(roads)
    lines = [" | ".join(cells) for cells in (header, ["---"] * len(header), *body)]
    return "".join(f"| {line} |\n" for line in lines) + "".join(
        f"\n{line}\n" for line in omissions(roads)
    )


def draw_roads(roads: Roads) -> pictures.Image:
    """Return the picture of accuracy against parameters, MACs and milliseconds at batch 32."""

    def spot(name: str, network: Sized) -> pictures.Spot:
        time = network.milliseconds.get("32", 0.0)
        return pictures.Spot(name, network.parameters, network.macs, time, network.test_accuracy)

    spots = [spot(road.road, road) for road in roads.results]
    title = f"{roads.data.get('name', 'images')}: roads to a smaller network"
    return pictures.roads_plot(spots, spot("RUN", roads.original), title)
