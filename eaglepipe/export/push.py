"""Uploads an exported folder to the Hub, when asked to."""

from pathlib import Path

from eaglepipe.files.digests import check_digests
from eaglepipe.hub.fetch import Repository, from_hub


def push_folder(folder: Path, repo: str) -> str:
    """Create the model repository, private unless it exists, and upload the folder; returns its address.

    Raises:
        CorruptError: a file is not the one that was exported; nothing is uploaded.
        EaglepipeError: the Hub refuses.
        UnreachableError: it does not answer.
    """
    from huggingface_hub import HfApi

    check_digests(folder)

    def upload() -> str:
        api = HfApi()
        api.create_repo(repo, repo_type="model", private=True, exist_ok=True)
        return str(api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Add the exported draft"))

    return from_hub(Repository(name=f"{folder} is written, but not pushed to {repo!r}"), upload)
