"""Register models in MLflow: versions, their tags, and the alias that serving follows."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ray_distill.errors import PromotionError, RegistryRefused
from ray_distill.tracking.client import is_unavailable, mlflow_settings, new_client

_VERSIONS_TAG = "mlflow.modelVersions"


class MlflowRegistry:
    """MLflow's model registry; see `ray_distill.tracking.base.Registry`.

    Unlike runs, a registration or an alias is never spooled, because a promotion must report whether it succeeded.
    Every method raises PromotionError if the registry is unavailable, and RegistryRefused if it refuses.
    """

    def __init__(self, uri: str, registry_uri: str | None = None) -> None:
        """Store the addresses; the first call connects.

        Args:
            uri: the MLflow tracking URI, where models are logged.
            registry_uri: the MLflow registry URI; default: the tracking URI.
        """
        self._tracking, self._uri = uri, registry_uri or uri
        self._client: Any = None

    def register(self, model_uri: str, *, name: str, tags: Mapping[str, str]) -> str:
        """Register a logged model (``models:/m-…``) and return its version.

        The same model again gives the same version, with updated tags.
        """
        with self._calls(f"register {model_uri} as {name!r}") as client:
            self._ensure_model(client, name)
            model_id = model_uri.removeprefix("models:/") if model_uri.startswith("models:/m-") else None
            source, run_id = self._source(client, model_uri, model_id)
            for found in _versions(client, name):
                if found.source == source:
                    for key, value in tags.items():
                        client.set_model_version_tag(name, found.version, key, value)
                    return str(found.version)
            created = client.create_model_version(name, source, run_id, dict(tags), model_id=model_id)
            if model_id is not None:
                _link(client, model_id, name, created.version)
            return str(created.version)

    def alias(self, name: str, alias: str) -> str | None:
        """Return the version that the alias points at, or None (also if the model does not exist)."""
        with self._calls(f"read the alias {alias!r} of {name!r}") as client:
            found = self._find_model(client, name)
            version = None if found is None else found.aliases.get(alias)
            return None if version is None else str(version)

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Point the alias at a version."""
        with self._calls(f"point the alias {alias!r} of {name!r} at version {version}") as client:
            client.set_registered_model_alias(name, alias, version)

    def find(self, name: str, tag: str, value: str) -> str | None:
        """Return the newest version that has this tag; None if there is none, or no such model.

        Values are compared here: a search by tag finds none beyond MLflow's limit of results.
        """
        with self._calls(f"search the versions of {name!r}") as client:
            found = [int(item.version) for item in _versions(client, name) if item.tags.get(tag) == value]
            return str(max(found)) if found else None

    def tags(self, name: str, version: str) -> Mapping[str, str]:
        """Return a version's tags."""
        with self._calls(f"read version {version} of {name!r}") as client:
            return dict(client.get_model_version(name, version).tags)

    def _source(self, client: Any, model_uri: str, model_id: str | None) -> tuple[str, str | None]:
        """Return the source of a version, and the run that created it.

        A server resolves ``models:/m-…`` of its own. MLflow's database store would resolve it with the process's
        *global* tracking URI, which this package does not set; for a database, and for the registry of another server,
        this returns the folder and the run instead.
        """
        if model_id is None or (self._uri == self._tracking and self._uri.startswith(("http://", "https://"))):
            return model_uri, None
        model = client.get_logged_model(model_id)
        return model.artifact_location, model.source_run_id

    def _ensure_model(self, client: Any, name: str) -> None:
        from mlflow.exceptions import MlflowException

        if self._find_model(client, name) is not None:
            return
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _find_model(self, client: Any, name: str) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            return client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    @contextmanager
    def _calls(self, what: str) -> Iterator[Any]:
        """Yield the client, and turn its exceptions into a PromotionError that names the purpose."""
        try:
            with mlflow_settings():
                if self._client is None:
                    self._client = new_client(self._tracking, self._uri)
                yield self._client
        except Exception as error:
            kind = RegistryRefused if _is_refusal(error) else PromotionError
            raise kind(f"MLflow at {self._uri} could not {what}: {error}") from error


def _is_refusal(error: BaseException) -> bool:
    """Return whether the call fails again until a name, a token or a permission changes."""
    from mlflow.exceptions import MlflowException

    status = error.get_http_status_code() if isinstance(error, MlflowException) else None
    return status in (401, 403) or not is_unavailable(error)


def _versions(client: Any, name: str) -> Iterator[Any]:
    """Yield all versions of a model, page after page."""
    quote, token = '"' if "'" in name else "'", None
    while True:
        page = client.search_model_versions(f"name = {quote}{name}{quote}", page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _link(client: Any, model_id: str, name: str, version: str) -> None:
    """Show the version on the logged model's page, as MLflow's own ``register_model`` does."""
    versions = json.loads(client.get_logged_model(model_id).tags.get(_VERSIONS_TAG, "[]"))
    client.set_logged_model_tags(model_id, {_VERSIONS_TAG: json.dumps([*versions, {"name": name, "version": version}])})
