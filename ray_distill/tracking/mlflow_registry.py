"""Register models in MLflow: versions, their tags, and the alias that serving follows."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from ray_distill.errors import PromotionError, RegistryRefused
from ray_distill.redact import redact
from ray_distill.tracking.delivery.connect import import_mlflow, mlflow_settings, new_client
from ray_distill.tracking.delivery.failures import Failure, classify
from ray_distill.tracking.delivery.patience import Clock, Patience, patience_for
from ray_distill.tracking.delivery.worker import Worker

_VERSIONS_TAG = "mlflow.modelVersions"
T = TypeVar("T")


class MlflowRegistry:
    """MLflow's model registry; see `ray_distill.tracking.base.Registry`.

    Unlike runs, a registration or an alias is never spooled, because a promotion must report whether it succeeded.
    Every method raises PromotionError if the registry is unavailable or does not answer within its patience, and
    RegistryRefused if it refuses.
    """

    def __init__(self, uri: str, registry_uri: str | None = None, *, patience: Patience | None = None) -> None:
        """Store the addresses; the first call connects.

        Args:
            uri: the MLflow tracking URI, where models are logged.
            registry_uri: the MLflow registry URI; default: the tracking URI.
            patience: the longest waits; default: `patience_for` the registry URI.
        """
        self._tracking, self._uri = uri, registry_uri or uri
        self._client: Any = None
        self._clock = Clock(patience or patience_for(self._uri))
        self._worker = Worker("registry")

    def register(self, model_uri: str, *, name: str, tags: Mapping[str, str]) -> str:
        """Register a logged model (``models:/m-…``) and return its version.

        The same model again gives the same version, with updated tags.
        """
        return self._call(
            f"register {model_uri} as {name!r}", lambda client: self._register(client, model_uri, name, tags)
        )

    def alias(self, name: str, alias: str) -> str | None:
        """Return the version that the alias points at, or None (also if the model does not exist)."""

        def read(client: Any) -> str | None:
            found = self._find_model(client, name)
            version = None if found is None else found.aliases.get(alias)
            return None if version is None else str(version)

        return self._call(f"read the alias {alias!r} of {name!r}", read)

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Point the alias at a version."""
        self._call(
            f"point the alias {alias!r} of {name!r} at version {version}",
            lambda client: client.set_registered_model_alias(name, alias, version),
        )

    def find(self, name: str, tag: str, value: str) -> str | None:
        """Return the newest version that has this tag; None if there is none, or no such model.

        Values are compared here: a search by tag finds none beyond MLflow's limit of results.
        """

        def search(client: Any) -> str | None:
            found = [int(item.version) for item in _versions(client, name) if item.tags.get(tag) == value]
            return str(max(found)) if found else None

        return self._call(f"search the versions of {name!r}", search)

    def tags(self, name: str, version: str) -> Mapping[str, str]:
        """Return a version's tags."""
        return self._call(
            f"read version {version} of {name!r}", lambda client: dict(client.get_model_version(name, version).tags)
        )

    def _register(self, client: Any, model_uri: str, name: str, tags: Mapping[str, str]) -> str:
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

    def _call(self, purpose: str, call: Callable[[Any], T]) -> T:
        """Return the result of a call in the registry's thread, or raise a PromotionError."""
        try:
            with mlflow_settings():
                import_mlflow()  # here, because its seconds are not the server's
                job = self._worker.post(lambda: call(self._connected()))
                with self._clock.waiting():
                    seconds = self._clock.left()
                    if not job.finished(seconds):
                        raise TimeoutError(f"no answer within {seconds:.0f} s")
                return job.result()
        except Exception as error:
            kind = RegistryRefused if _is_refusal(error) else PromotionError
            raise kind(redact(f"MLflow at {self._uri} could not {purpose}: {error}")) from error

    def _connected(self) -> Any:
        if self._client is None:
            self._client = new_client(self._tracking, self._uri)
        return self._client


def _is_refusal(error: BaseException) -> bool:
    """Return whether the call fails again until a name, a token or a permission changes."""
    from mlflow.exceptions import MlflowException

    status = error.get_http_status_code() if isinstance(error, MlflowException) else None
    return status in (401, 403) or isinstance(error, ImportError) or classify(error) is Failure.FINAL


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
