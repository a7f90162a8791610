"""An exported directory to the Hugging Face hub."""

from pathlib import Path

from bali_ds.errors import InputError, first_line


def push(directory: Path, repository: str) -> str:
    """Upload an exported directory; a repository that does not exist yet is made private.

    Private because weights learned from licensed vocabularies may not be for everybody: the owner decides.

    Returns:
        the address of the repository.

    Raises:
        InputError: the hub refuses, for want of a token or of rights, or cannot be reached.
    """
    from huggingface_hub import HfApi

    hub = HfApi()
    try:
        url = hub.create_repo(repository, private=True, exist_ok=True)
        hub.upload_folder(folder_path=directory, repo_id=repository, commit_message="Upload a model by bali-ds")
    except Exception as error:  # the client raises errors of several libraries
        remedy = f"{directory} is complete; log in with `hf auth login`, or check name and rights"
        raise InputError(f"--push {repository}: {first_line(error)}; {remedy}") from error
    return str(url)
