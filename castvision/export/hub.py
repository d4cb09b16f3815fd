"""An exported folder onto a hub, by huggingface_hub's own functions."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from castvision.errors import one_line

if TYPE_CHECKING:
    from pathlib import Path

_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def check_repository(name: str) -> None:
    """Refuse what is no name of a repository.

    Raises:
        ValueError: Not USER/NAME.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"expected USER/NAME of a repository on the hub, got {name!r}")


def push(folder: Path, repository: str, *, private: bool = False) -> str:
    """Make the repository if there is none, and add the folder's files to it in one commit.

    The address is ``HF_ENDPOINT``, the token that of ``hf auth login`` or ``HF_TOKEN``.

    Args:
        folder: Its files replace those of the same names.
        repository: "USER/NAME".
        private: Of a repository that is made.

    Returns:
        Where it is to be seen.

    Raises:
        ValueError: Not a name.
        ConnectionError: The hub does not answer, or refuses; nothing was added.
    """
    check_repository(repository)
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        url = api.create_repo(repository, repo_type="model", private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=str(folder), commit_message="Exported by castvision")
    except Exception as error:  # of huggingface_hub or the client beneath it
        raise ConnectionError(
            f"cannot push to {repository!r} at {api.endpoint}: {one_line(error, 300)}; log in with hf auth login, or "
            f"set HF_TOKEN to a token that may write; the files lie in {str(folder)!r}"
        ) from error
    return str(url)
