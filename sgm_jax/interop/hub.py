"""Files on the Hugging Face hub: hf://org/repo/path/to/file and hf://org/repo."""

import pathlib
from types import ModuleType

from sgm_jax.errors import UserError

SCHEME = 'hf://'
# Beside model_index.json: the tensors of a folder that diffusers has no place for.
EXTRA = 'sgm_extra.safetensors'
_SINGLE = ('.safetensors', '.ckpt')


def is_remote(path: str | pathlib.Path) -> bool:
    """Whether a path names something on the hub."""
    # pathlib makes one slash of two.
    return str(path).startswith((SCHEME, 'hf:/'))


def local(path: str | pathlib.Path) -> pathlib.Path:
    """Where a file or folder lies on this machine; those on the hub are fetched, once.

    Raises:
      UserError: the hub has none of that name, or cannot be reached.
    """
    if not is_remote(path):
        return pathlib.Path(path).expanduser()
    parts = [part for part in str(path).removeprefix('hf:').split('/') if part]
    if len(parts) < 2:
        raise UserError(f'{path} names no repository; give hf://ORG/REPO or hf://ORG/REPO/FILE')
    repo, file = '/'.join(parts[:2]), '/'.join(parts[2:])
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        if file:
            return pathlib.Path(huggingface_hub.hf_hub_download(repo, file))
        return _folder(huggingface_hub, repo)
    except UserError:
        raise
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f'{path} cannot be fetched ({lines[0]}); download it where there is a network, and give its '
            'path; what is not public needs `hf auth login`'
        ) from error


def _folder(huggingface_hub: ModuleType, repo: str) -> pathlib.Path:
    try:
        files = huggingface_hub.list_repo_files(repo)
    except OSError:
        # Without a network there may still be what was fetched before.
        return pathlib.Path(huggingface_hub.snapshot_download(repo, local_files_only=True))
    if 'model_index.json' not in files:
        single = [name for name in files if name.endswith(_SINGLE)]
        there = f'it has: {", ".join(single)}' if single else 'it has no weights'
        raise UserError(f'hf://{repo} is no diffusers folder; name a file of it ({there})')
    return pathlib.Path(huggingface_hub.snapshot_download(repo, allow_patterns=wanted(files)))


def wanted(files: list[str]) -> list[str]:
    """Of a diffusers repository's files, those that are read: of each component one set of weights."""
    chosen = [name for name in files if name.endswith('.json')]
    for folder in sorted({name.rpartition('/')[0] for name in files}):
        weights = [
            n for n in files if n.rpartition('/')[0] == folder and n.endswith('.safetensors')
        ]
        weights = weights or [
            n for n in files if n.rpartition('/')[0] == folder and n.endswith('.bin')
        ]
        whole = [name for name in weights if '.fp16.' not in name]
        # What lies at the top are the same weights again, in one file.
        chosen += whole or weights if folder else [n for n in weights if n == EXTRA]
    return chosen
