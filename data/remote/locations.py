"""Where data lies: a local path, or a URL of a scheme on the list. Nothing else is opened, and no shell ever run."""

import re
from pathlib import Path
from urllib.parse import urlsplit

from engine.errors import UserError

SCHEMES = ("http", "https", "s3", "gs")

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+):")  # one letter alone would be a Windows drive


def is_remote(location: Path | str) -> bool:
    """Whether ``location`` is a URL, of whatever scheme."""
    return _SCHEME.match(str(location)) is not None


def check_location(location: Path | str) -> str:
    """Write ``location`` as text, without a slash at its end.

    Raises:
        UserError: a URL of a scheme that is not on the list, or one that holds what may be a secret.
    """
    if not is_remote(location):
        return str(location)
    scheme, _, rest = str(location).partition(":")
    if scheme not in SCHEMES or not rest.startswith("/"):
        raise UserError(
            f"{scheme}: cannot be read, only local paths and {', '.join(f'{name}://' for name in SCHEMES)}; "
            "write a local path that holds a colon as an absolute one"
        )
    text = f"{scheme}://{rest.lstrip('/')}"  # `Path` makes one slash of two
    try:
        parts = urlsplit(text)
        _ = parts.port  # which is read only here
    except ValueError as error:
        raise UserError(f"{text} is no URL: {error}") from None
    if "@" in parts.netloc:
        raise UserError(
            f"the URL of {parts.hostname} holds a user name or password, which would end up in logs and recipes; "
            "leave it out and put it into ~/.netrc"
        )
    if scheme in ("http", "https") and (parts.query or parts.fragment):
        raise UserError(f"{scheme}://{parts.netloc}{parts.path} has a query or a fragment, expected a plain URL")
    if ".." in parts.path.split("/"):
        raise UserError(f"{text} leads through '..', expected a plain URL")
    return text.rstrip("/")


def join(folder: Path | str, name: str) -> str:
    """Find where the file that a manifest in ``folder`` calls ``name`` lies.

    Raises:
        UserError: ``folder`` is remote and ``name`` leads out of it to local files or to a folder above.
    """
    if is_remote(name):
        return check_location(name)
    if not is_remote(folder):
        return str(Path(folder) / name)
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(f"the manifest of {folder} names {name!r}, which lies outside of its folder")
    return check_location(f"{check_location(folder)}/{name}")
