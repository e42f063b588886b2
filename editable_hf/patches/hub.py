"""Patches on the Hugging Face hub: one commit up, one snapshot down, and errors that say what to do."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from editable_hf.patches.format import PATCH_NAME, PAYLOAD_NAME

# What the hub puts into a new repository by itself.
_INITIAL_FILES = {".gitattributes"}


def checked_base_model(base_model: str | None, loaded_from: str) -> str | None:
    """The hub id to write into a patch: `base_model`, or what the model was loaded from if that is one.

    A folder means nothing on another machine and is never written down.

    Raises:
        ValueError: If `base_model` is no hub id.
    """
    if base_model is None:
        return loaded_from if _is_hub_id(loaded_from) and not os.path.exists(loaded_from) else None
    if not _is_hub_id(base_model):
        raise ValueError(
            f"Expected `base_model` as a hub id, `user/name`, got {base_model!r}; a path means nothing on another "
            "machine: leave it out for a model that is on no hub."
        )
    return base_model


def _is_hub_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return bool(name)


def upload_patch(
    files: Callable[[str], Mapping[str, bytes]],
    repo_id: str,
    private: bool | None,
    token: str | bool | None,
    commit_message: str,
) -> str:
    """Commits a patch to a new repository, or to one that holds a patch; see [`Patch.push_to_hub`].

    Args:
        files: Gives name and content of each file for the full id of the repository.
        repo_id: `user/name`, or `name`.
        private: For a new repository.
        token: By default the one that is logged in.
        commit_message: First line of the commit.

    Returns:
        URL of the commit.
    """
    api = HfApi(token=token)
    with _explained("push", repo_id):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        present = set(api.list_repo_files(repo_id)) - _INITIAL_FILES
        if present and PATCH_NAME not in present:
            raise ValueError(
                f"Expected a new repository or one with a patch, but {repo_id} holds {', '.join(sorted(present)[:3])} "
                f"and no {PATCH_NAME}; push to another name, so that its model card is not replaced."
            )
        # One commit, where `upload_folder` may make several: whoever pulls gets all of the patch or none of it.
        operations = [CommitOperationAdd(name, content) for name, content in files(repo_id).items()]
        return api.create_commit(repo_id, operations, commit_message=commit_message).commit_url


def download_patch(repo_id: str, revision: str | None, token: str | bool | None) -> Path:
    """Folder in the cache with both files of a patch, of one commit."""
    with _explained("pull", repo_id, revision):
        return Path(
            snapshot_download(repo_id, revision=revision, token=token, allow_patterns=[PATCH_NAME, PAYLOAD_NAME])
        )


@contextmanager
def _explained(verb: str, repo_id: str, revision: str | None = None) -> Iterator[None]:
    """Turns what `huggingface_hub` raises into an error that says what to do."""
    try:
        yield
    except HFValidationError as error:
        raise ValueError(
            f"Expected an existing folder or a hub id, `user/name`, got {repo_id!r}, which is neither."
        ) from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"{repo_id} has no revision {revision!r}; name a branch, tag or commit it has."
        ) from error
    except HfHubHTTPError as error:
        raise _refusal(verb, repo_id, error) from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, HTTPError) as error:
        raise ConnectionError(
            f"Could not {verb} {repo_id}: {constants.ENDPOINT} cannot be reached ({type(error).__name__}). Check the "
            f"network and that HF_HUB_OFFLINE is not set, then {verb} again; nothing was changed."
        ) from error
    except RuntimeError as error:  # raised for a file that the storage did not take
        raise OSError(
            f"Could not {verb} {repo_id}: {error.__cause__ or error} Nothing was committed; {verb} again."
        ) from error


def _refusal(verb: str, repo_id: str, error: HfHubHTTPError) -> OSError:
    status = error.response.status_code
    if status in (401, 403):
        goal = "write to it" if verb == "push" else "read it"
        return PermissionError(
            f"Could not {verb} {repo_id}: the hub answered {status}. Expected a token that may {goal}, and "
            "the name of a repository that exists; log in with `hf auth login` or give `token`."
        )
    if status == 404:
        return FileNotFoundError(
            f"Could not {verb} {repo_id}: there is no such folder, and no such repository on the hub that this token "
            "may see; check the name, or log in with `hf auth login`."
        )
    return OSError(f"Could not {verb} {repo_id}: {error}. Nothing was committed; {verb} again later.")
