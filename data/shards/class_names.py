"""Lists of class names as people keep them: JSON, one a line, ImageNet's synset mapping, ADE20K's objectInfo150.txt."""

from pathlib import Path
from typing import Any

from engine.documents import DocumentError, parse_json, read_text
from engine.errors import UserError

MAX_CLASSES = 1_000_000
"""Larger class numbers are taken for a mistake: there is a name, and a count, for each below the highest."""
NAMES_BESIDE = ("classes.json", "classes.txt", "objectInfo150.txt")


def find_class_names(folder: Path) -> Path | None:
    """Find the list of class names that lies in a folder, if one does."""
    return next((folder / name for name in NAMES_BESIDE if (folder / name).is_file()), None)


def read_class_names(path: Path) -> list[str]:
    """Read the names in the file's order.

    JSON holds a list, or numbers with names ({"0": "sky", ...}, also under "classes"); text holds one name a line, of
    which a `wnid name, other name` line of ImageNet gives the wnid, and a table with a Name column that column.

    Raises:
        UserError: the file holds no list of names.
    """
    text = read_text(path)
    names = _from_json(text, path=path) if path.suffix == ".json" else _from_lines(text)
    if not names:
        raise UserError(f"{path} holds no class names")
    return names


def _from_json(text: str, *, path: Path) -> list[str]:
    try:
        tree: Any = parse_json(text)
    except DocumentError as error:
        raise UserError(f"{path}: {error}") from None
    if isinstance(tree, dict) and isinstance(tree.get("classes"), list | dict):
        tree = tree["classes"]
    if isinstance(tree, dict) and set(tree) == {str(number) for number in range(len(tree))}:
        tree = [tree[str(number)] for number in range(len(tree))]
    if not isinstance(tree, list):
        raise UserError(f"{path} must hold a list of class names, got a {type(tree).__name__}")
    return [str(name).strip() for name in tree if str(name).strip()]


def _from_lines(text: str) -> list[str]:
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    header = lines[0].split("\t") if lines else []
    if "Name" in header and len(header) > 1:
        return [line.split("\t")[header.index("Name")] for line in lines[1:]]
    return [line.split(" ")[0] if is_wnid(line.split(" ")[0]) else line for line in lines]


def is_wnid(name: str) -> bool:
    """Whether a name is one of ImageNet's, like n01440764."""
    return len(name) == 9 and name[0] == "n" and name[1:].isdigit()
