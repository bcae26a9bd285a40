"""Settings of the demo, read from the environment (``DEMO_…``)."""

from pathlib import Path

from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

MAX_PAUSE_SECONDS = 10.0


class NotConfigured(Exception):
    """A setting is missing or wrong; the message is one sentence that says what to set."""


class DemoSettings(BaseSettings):
    """Settings of the web server and of the worker."""

    model_config = SettingsConfigDict(env_prefix="DEMO_", extra="ignore")

    data_dir: Path = Path("semantik-demo")
    """The directory of uploads, search indexes and, by default, the database."""

    documents_dir: Path | None = None
    """The folder whose files users may choose; default: ``documents`` in data_dir."""

    database_url: str | None = None
    """An SQLAlchemy URL; default: an SQLite file in data_dir."""

    redis_url: str = Field(
        "redis://localhost:6379/0", validation_alias=AliasChoices("redis_url", "REDIS_URL")
    )
    """Celery's broker."""

    jwt_secret: SecretStr | None = Field(
        None, validation_alias=AliasChoices("jwt_secret", "SEMANTIK_REALTIME_JWT_SECRET")
    )
    """Signs the session tokens (HS256); at least 32 bytes. The realtime plugin uses it too."""

    user: str = "demo"
    """Name of the user who is created at the first start."""

    password: SecretStr | None = None
    """Password of that user; not needed if there is a user."""

    session_seconds: int = Field(12 * 3600, gt=0)
    """Lifetime of a session token and its cookie."""

    cookie_secure: bool = False
    """Send the session cookie over HTTPS only."""

    max_upload_bytes: int = Field(64 * 2**20, gt=0)
    """Limit of one upload request, all its files together."""

    max_document_bytes: int = Field(8 * 2**20, gt=0)
    """A larger file counts as failed and is not indexed."""

    pause_seconds: float = Field(0.0, ge=0, le=MAX_PAUSE_SECONDS)
    """A pause after each file, so that a job is slow enough to watch."""

    job_seconds: float = Field(0.0, ge=0, le=3600)
    """The least time that a job over several documents takes; it is spread over its pauses."""

    plugins: bool = True
    """Load the plugins of the entry-point group ``semantik.webui``."""

    @property
    def folder(self) -> Path:
        return self.documents_dir or self.data_dir / "documents"

    @property
    def sqlalchemy_url(self) -> str:
        return self.database_url or f"sqlite:///{(self.data_dir / 'demo.sqlite3').absolute()}"

    def pause_of(self, documents: int) -> float:
        """Return the seconds to pause between two of a job's documents, at most MAX_PAUSE_SECONDS.

        >>> DemoSettings(job_seconds=20, pause_seconds=0).pause_of(documents=41)
        0.5
        """
        spread = self.job_seconds / (documents - 1) if documents > 1 else 0.0
        return min(MAX_PAUSE_SECONDS, max(self.pause_seconds, spread))

    def is_own_data(self, path: Path) -> bool:
        """Return True for a resolved path of the demo's own data, which may be in the folder.

        Other users' uploads and the logs are there. A folder inside data_dir has documents.
        """
        data_dir, folder = self.data_dir.resolve(), self.folder.resolve()
        in_folder = folder != data_dir and folder.is_relative_to(data_dir)
        return path.is_relative_to(data_dir) and not in_folder

    def uploads(self, user_id: int) -> Path:
        return self.data_dir / "uploads" / str(user_id)

    def search_index(self, user_id: int) -> Path:
        return self.data_dir / "search" / f"{user_id}.sqlite3"

    def require_secret(self) -> str:
        """Return the signing secret.

        Raises:
            NotConfigured: It is missing, or shorter than 32 bytes.
        """
        secret = self.jwt_secret.get_secret_value() if self.jwt_secret else ""
        if len(secret.encode()) < 32:
            raise NotConfigured(
                "Set SEMANTIK_REALTIME_JWT_SECRET to a random text of at least 32 bytes."
            )
        return secret
