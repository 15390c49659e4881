"""Uploads an exported folder to the Hub: the only thing here that uses the network, and only when asked to."""

from pathlib import Path

from eaglepipe.errors import EaglepipeError


def push_folder(folder: Path, repo: str) -> str:
    """Create the model repository, private unless it exists, and upload the folder; returns its address.

    Raises:
        EaglepipeError: the Hub is not reached or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    try:
        api = HfApi()
        api.create_repo(repo, repo_type="model", private=True, exist_ok=True)
        commit = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Add the exported draft")
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise EaglepipeError(f"{folder} is written, but not pushed to {repo!r}: {reason}") from None
    return str(commit)
