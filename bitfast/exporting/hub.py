"""Uploading an export to the Hugging Face Hub, through huggingface_hub and the login it keeps."""

import importlib.util
import re

from ..errors import BitfastError, UsageError


def require(repo):
    """Raise UsageError, before anything is exported, if huggingface_hub is missing or `repo` is not OWNER/NAME."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise UsageError(f"{repo!r} is no name on the Hub: --push-to-hub takes OWNER/NAME")
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UsageError("--push-to-hub needs huggingface_hub: pip install huggingface_hub")


def push(folder, repo):
    """Upload the folder to the model repository `repo`, made if it is not there; what was done, as a line.

    Raises BitfastError if the Hub refuses or cannot be reached; the folder stays.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi()
    try:
        url = api.create_repo(repo, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Export of bitfast")
    except (huggingface_hub.errors.HfHubHTTPError, OSError, ValueError) as error:
        why = " ".join(str(error).split())[:160]
        raise BitfastError(
            f"{folder} could not be uploaded to {repo} ({why}); it is kept: check `hf auth whoami` and the network, "
            f"then `hf upload {repo} {folder}`"
        ) from error
    return f"uploaded {folder} to {url}"
