"""Files that are whole or absent, JSON, JSON lines."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from darts_lite.errors import UserError
from darts_lite.files import (
    first_fault,
    json_line,
    read_json,
    replacing,
    whole_lines,
    write_json,
    write_lines,
)


@pytest.mark.parametrize("mode, old, new", [("w", "old", "new é"), ("wb", b"old", b"\x00\xff")])
def test_replacing_writes_all_or_nothing(tmp_path: Path, mode: str, old: Any, new: Any) -> None:
    path = tmp_path / "file"
    with replacing(path, mode) as file:
        file.write(old)
    before = path.read_bytes()
    with pytest.raises(KeyError), replacing(path, mode) as file:
        file.write(new)
        raise KeyError
    assert path.read_bytes() == before
    with replacing(path, mode) as file:
        file.write(new)
        assert path.read_bytes() == before
    assert path.read_bytes() == (new if isinstance(new, bytes) else new.encode())
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_json_survives_a_file(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, True], "é": {"b": "c"}}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000])
def test_a_file_without_json_gives_a_one_line_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json is no JSON; restore it") as caught:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(caught.value)


def test_a_missing_file_gives_a_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^cannot read .*a\.json: No such file"):
        read_json(tmp_path / "a.json")


def test_lines_survive_a_file(tmp_path: Path) -> None:
    """A character that `str.splitlines` takes for a line break is none here."""
    lines = [json_line({"a": 1}), json_line({"b": "x\u2028y\x85"}), "\u2028é\n"]
    write_lines(tmp_path / "a.jsonl", lines)
    assert whole_lines(tmp_path / "a.jsonl") == lines
    assert [json.loads(line) for line in lines[:2]] == [{"a": 1}, {"b": "x\u2028y\x85"}]
    assert whole_lines(tmp_path / "missing.jsonl") == []


@pytest.mark.parametrize("torn", [b"", b"{", "é".encode()[:1]])
def test_an_incomplete_last_line_is_dropped(tmp_path: Path, torn: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"{}\n\n" + torn)
    assert whole_lines(tmp_path / "a.jsonl") == ["{}\n", "\n"]


def test_lines_that_are_no_text_give_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xff\n")
    with pytest.raises(UserError, match=r"a\.jsonl is no text in UTF-8") as caught:
        whole_lines(tmp_path / "a.jsonl")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_json_line_refuses_what_is_not_finite(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_line({"a": value})


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ('{"a": [1, "x"]}', "a.1: Input should be a valid integer"),
        ("{", "the file: Invalid JSON: EOF"),
    ],
)
def test_first_fault_says_where_and_what(content: str, fault: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(dict[str, list[int]]).validate_json(content)
    assert first_fault(caught.value).startswith(fault)
    assert first_fault(caught.value, "the JSON").startswith(fault.replace("the file", "the JSON"))
