"""Settings that are one file: kept in a folder, or in a repository of the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

INSTALL = "pip install huggingface_hub"


class Shared:
    """Adds `save_pretrained`, `from_pretrained` and `push_to_hub` to a class with `save` and `load`. FILE: its name."""

    FILE: ClassVar[str]

    def save(self, path: str | Path) -> None:
        raise NotImplementedError

    @classmethod
    def load(cls, path: str | Path) -> Self:
        raise NotImplementedError

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes `FILE` into a folder, which is made if it is missing; the file's path is returned."""
        path = Path(folder).expanduser() / self.FILE
        self.save(path)
        return path

    @classmethod
    def from_pretrained(cls, name: str | Path, *, revision: str | None = None, **options: Any) -> Self:
        """Reads a file, `FILE` of a folder, or `FILE` of a Hub repository like "owner/name".

        revision: branch, tag or commit of the repository. options: others of `huggingface_hub.hf_hub_download`, such as
        `token`, `cache_dir` and `local_files_only`. Raises ValueError where there is none, or where it is damaged.
        """
        path = Path(name).expanduser()
        if path.is_file():
            return cls.load(path)
        if path.is_dir():
            if not (path / cls.FILE).is_file():
                raise ValueError(f"the folder {str(name)!r} has no {cls.FILE}")
            return cls.load(path / cls.FILE)
        if not _is_repository(str(name)):
            raise ValueError(f"{str(name)!r} is no file, no folder and no repository like 'owner/name'")
        return cls.load(_download(str(name), cls.FILE, revision, options))

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, token: str | None = None, **options: Any
    ) -> str:
        """Uploads `FILE` to a model repository of the Hub, made if it is missing; returns the commit's address.

        options: others of `huggingface_hub.HfApi.upload_file`, such as `commit_message` and `revision`.
        """
        if not _is_repository(repo_id):
            raise ValueError(f"repo_id must be like 'owner/name', got {repo_id!r}")
        import tempfile

        api = _hub().HfApi(token=token)
        with tempfile.TemporaryDirectory() as folder:
            path = self.save_pretrained(folder)
            repository = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            done = api.upload_file(path_or_fileobj=path, path_in_repo=self.FILE, repo_id=repository, **options)
        return str(done)


def _is_repository(name: str) -> bool:
    return name.count("/") == 1 and all(name.split("/")) and not name.startswith((".", "~", "/"))


def _hub() -> Any:
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"the Hub needs huggingface_hub: {INSTALL}") from error
    return huggingface_hub


def _download(repository: str, file: str, revision: str | None, options: dict[str, Any]) -> str:
    hub = _hub()
    try:
        return str(hub.hf_hub_download(repository, file, revision=revision, **options))
    except (OSError, ValueError) as error:  # not there, not reachable, not in the cache
        reason = str(error).strip().splitlines()
        raise ValueError(
            f"{repository!r} is no file or folder here, and {file} could not be had from the Hub:"
            f" {reason[0] if reason else type(error).__name__}"
        ) from error
