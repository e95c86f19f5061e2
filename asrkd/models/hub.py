"""Model packages on the Hugging Face hub: ``hf://org/name`` or ``hf://org/name@revision``; nothing but data is fetched.

What is fetched is kept in the hub's own cache, and used from there when the hub cannot be reached.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

SCHEME = "hf:/"
"""``Path`` turns ``hf://`` into this."""
FILES = ("config.json", "model.safetensors", "metrics.json", "README.md", "tokenizer/*")
"""What belongs to a package; a repository may hold more, which is not fetched."""


class HubError(ValueError):
    """The hub cannot give or take a package; one line says why."""


def is_remote(name: str | os.PathLike[str]) -> bool:
    """Whether a name means the hub."""
    return os.fspath(name).startswith(SCHEME)


def fetch(name: str | os.PathLike[str]) -> Path:
    """A folder with the package.

    Args:
        name: ``hf://org/name`` or ``hf://org/name@revision`` (a branch, tag or commit).

    Raises:
        HubError: If the name is none, or the hub does not have it or cannot be reached and it is not in the cache.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, revision = _parse(os.fspath(name))
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(FILES)))
    except LocalEntryNotFoundError as error:
        raise HubError(f"{name}: not in the cache, and the hub cannot be reached: {_reason(error)}") from None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise HubError(f"{name}: {_reason(error)}") from None


def push(
    folder: str | os.PathLike[str], name: str, *, private: bool = False, revision: str | None = None, message: str = ""
) -> str:
    """Put a package on the hub; what is there already and belongs to a package is replaced in one commit.

    Args:
        folder: Of the package, already checked.
        name: ``org/name``, with or without ``hf://``.
        private: For a repository that is made now.
        revision: Branch; ``None``: the main one.
        message: Of the commit.

    Returns:
        The commit's address.

    Raises:
        HubError: If the name is none, or the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    repository, at = _parse(name if is_remote(name) else f"hf://{name}")
    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True, repo_type="model")
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=str(folder),
            revision=revision or at,
            allow_patterns=list(FILES),
            commit_message=message or "Model package of asrkd",
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise HubError(f"hf://{repository}: {_reason(error)}") from None
    return str(commit.commit_url)


def _parse(name: str) -> tuple[str, str | None]:
    found = re.fullmatch(r"hf:/{1,2}([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", name)
    if found is None:
        raise HubError(f"{name}: expected hf://org/name or hf://org/name@revision")
    return found[1], found[2]


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[:300] or type(error).__name__
