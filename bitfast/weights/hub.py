"""Weights on the Hugging Face Hub, "hf-hub:OWNER/NAME": by huggingface_hub, whose cache serves offline."""

from pathlib import Path

from ..errors import WeightsError

PREFIX = "hf-hub:"
_FILES = ("model.safetensors", "pytorch_model.bin")


def download(name):
    """Path of the weights of "hf-hub:OWNER/NAME" or "hf-hub:OWNER/NAME@REVISION" in huggingface_hub's cache.

    The folder of its model.safetensors and config.json, or its pytorch_model.bin. Raises WeightsError if
    huggingface_hub is not installed, if there is no such repository or file, or if it is neither in the cache nor to be
    reached.
    """
    try:
        from huggingface_hub import errors
    except ImportError as error:
        raise WeightsError(f"{name} needs huggingface_hub: pip install huggingface_hub") from error

    unreached = None
    for file in _FILES:
        try:
            path = _fetch(name, file, cached=unreached is not None)
            if path and path.suffix == ".safetensors":
                _fetch(name, "config.json")
                return path.parent
            if path:
                return path
        except errors.LocalEntryNotFoundError as error:
            unreached = error
    if unreached:
        raise WeightsError(
            f"{name} is not in huggingface_hub's cache and the Hub cannot be reached: run once with a network, "
            "or fetch it elsewhere and pass the path of its folder"
        ) from unreached
    raise WeightsError(f"{name} holds no weights: expected {' or '.join(_FILES)} in it")


def _fetch(name, file, cached=False):
    """Path of a file of the repository in the cache; None if the repository has no such file."""
    from huggingface_hub import errors, hf_hub_download

    repo, _, revision = name.removeprefix(PREFIX).partition("@")
    try:
        return Path(hf_hub_download(repo, file, revision=revision or None, local_files_only=cached))
    except errors.LocalEntryNotFoundError:
        raise
    except errors.EntryNotFoundError:
        return None
    except errors.HFValidationError as error:
        raise WeightsError(f"{name} is no name on the Hub: write {PREFIX}OWNER/NAME") from error
    except (errors.HfHubHTTPError, OSError) as error:
        why = " ".join(str(error).split())[:120]
        raise WeightsError(f"{name} cannot be fetched ({why}): check the name, or pass the path of a file") from error
