"""The manifests in cluster/ are valid, pinned, unprivileged, and hold no secret."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml

from ray_distill.cli.parser import build_parser

CLUSTER = Path(__file__).parents[3] / "cluster"
KUBERNETES = "1.34"

_POSITIVE = {"type": "integer", "minimum": 1}
_COUNT = {"type": "integer", "minimum": 0}
_TEXT = {"type": "string", "minLength": 1}
_START_PARAMS = {"type": "object", "additionalProperties": {"type": "string"}}
_POD_TEMPLATE = {"type": "object", "required": ["spec"]}  # checked against Kubernetes' own schema below

#: The fields of a KubeRay 1.7 RayJob (ray.io/v1) that this project uses; any other is a misspelling.
RAY_JOB = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayJob"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["entrypoint", "rayClusterSpec"],
            "properties": {
                "entrypoint": _TEXT,
                "runtimeEnvYAML": _TEXT,
                "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
                "submitterPodTemplate": _POD_TEMPLATE,
                "backoffLimit": _COUNT,
                "activeDeadlineSeconds": _POSITIVE,
                "shutdownAfterJobFinishes": {"type": "boolean"},
                "ttlSecondsAfterFinished": _COUNT,
                "rayClusterSpec": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["headGroupSpec", "rayVersion"],
                    "properties": {
                        "rayVersion": {"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
                        "authOptions": {
                            "type": "object",
                            "additionalProperties": False,
                            "properties": {"mode": {"enum": ["disabled", "token"]}, "secretName": _TEXT},
                        },
                        "enableInTreeAutoscaling": {"type": "boolean"},
                        "autoscalerOptions": {
                            "type": "object",
                            "additionalProperties": False,
                            "properties": {
                                "idleTimeoutSeconds": _POSITIVE,
                                "upscalingMode": {"enum": ["Default", "Aggressive", "Conservative"]},
                                "resources": {"type": "object"},
                                "securityContext": {"type": "object"},
                            },
                        },
                        "headGroupSpec": {
                            "type": "object",
                            "additionalProperties": False,
                            "required": ["rayStartParams", "template"],
                            "properties": {"rayStartParams": _START_PARAMS, "template": _POD_TEMPLATE},
                        },
                        "workerGroupSpecs": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "additionalProperties": False,
                                "required": ["groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"],
                                "properties": {
                                    "groupName": _TEXT,
                                    "replicas": _COUNT,
                                    "minReplicas": _COUNT,
                                    "maxReplicas": _POSITIVE,
                                    "rayStartParams": _START_PARAMS,
                                    "template": _POD_TEMPLATE,
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}


def _load(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text())


def _pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod template of every manifest, with a name for the test's output."""
    job = _load("rayjob.yaml")["spec"]
    yield "submitter", job["submitterPodTemplate"]
    yield "head", job["rayClusterSpec"]["headGroupSpec"]["template"]
    for group in job["rayClusterSpec"]["workerGroupSpecs"]:
        yield group["groupName"], group["template"]
    yield "relabel", _load("relabel-cronjob.yaml")["spec"]["jobTemplate"]["spec"]["template"]


PODS = dict(_pods())


def test_the_rayjob_has_only_fields_that_kuberay_knows() -> None:
    """Its own fields by the schema above."""
    jsonschema.validate(_load("rayjob.yaml"), RAY_JOB)


def test_a_misspelt_field_would_be_found() -> None:
    """The schema is strict: a test of the test."""
    manifest = _load("rayjob.yaml")
    manifest["spec"]["shutdownAfterJobFinish"] = True
    with pytest.raises(jsonschema.ValidationError, match="shutdownAfterJobFinish"):
        jsonschema.validate(manifest, RAY_JOB)


def test_the_rayjob_runs_the_ray_that_is_pinned() -> None:
    """KubeRay, the image and the tests have the same Ray; its runtime environment is YAML."""
    spec = _load("rayjob.yaml")["spec"]
    assert spec["rayClusterSpec"]["rayVersion"] == ray.__version__
    assert f"ray=={ray.__version__}" in (CLUSTER / "constraints.txt").read_text().splitlines()
    assert isinstance(yaml.safe_load(spec["runtimeEnvYAML"]), dict)
    assert spec["entrypoint"].startswith("python /opt/ray-distill/jobs/pipeline.py --config ")


@pytest.mark.parametrize("name", PODS)
def test_every_pod_is_valid_kubernetes(name: str) -> None:
    """Pod templates against Kubernetes' own schema, strictly."""
    pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": name}, "template": PODS[name]}
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_the_cronjob_is_valid_kubernetes() -> None:
    """The whole CronJob against Kubernetes' own schema, strictly."""
    kubernetes_validate.validate(_load("relabel-cronjob.yaml"), KUBERNETES, strict=True)


def test_the_cronjob_calls_the_command_line_as_it_is() -> None:
    """Its command is parsed by the real parser."""
    program, *arguments = PODS["relabel"]["spec"]["containers"][0]["command"]
    options = build_parser().parse_args(arguments)
    assert (program, options.job, options.config) == ("ray-distill", "relabel", "/etc/ray-distill/campaign.yaml")
    assert options.argument == ["--source=$(RELABEL_SOURCE)"]


def test_the_launcher_is_valid_for_ray() -> None:
    """Against the schema that Ray ships, which refuses unknown fields."""
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    config = _load("launcher.yaml")
    jsonschema.validate(config, schema)
    assert config["head_node_type"] in config["available_node_types"]


@pytest.mark.parametrize("name", PODS)
def test_no_pod_runs_as_root_or_can_become_it(name: str) -> None:
    """The restricted pod security profile, and limits on what a container may take."""
    spec = PODS[name]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in spec["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])


def test_only_the_head_may_speak_to_kubernetes() -> None:
    """The autoscaler needs its service account; nobody else does."""
    mounts = {name: pod["spec"].get("automountServiceAccountToken", True) for name, pod in PODS.items()}
    assert mounts == {"head": True, "submitter": False, "cpu": False, "gpu": False, "relabel": False}


@pytest.mark.parametrize("name", ["cpu", "gpu", "head"])
def test_ray_pods_have_shared_memory(name: str) -> None:
    """Without a memory volume a container has 64 MB, and Ray falls back to disk."""
    volumes = {volume["name"]: volume for volume in PODS[name]["spec"]["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in PODS[name]["spec"]["containers"][0]["volumeMounts"]}
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"


def _images() -> list[str]:
    dockerfile = (CLUSTER / "Dockerfile").read_text()
    pods = [container["image"] for pod in PODS.values() for container in pod["spec"]["containers"]]
    return [*pods, _load("launcher.yaml")["docker"]["image"], *re.findall(r"^FROM (\S+)", dockerfile, re.M)]


def test_images_are_pinned_by_an_exact_version() -> None:
    """A full version, never latest, never none."""
    images = _images()
    assert len(images) == 7
    assert [image for image in images if not re.search(r":\d+\.\d+\.\d+(-[\w.-]+)?$", image)] == []


def test_the_token_is_on_everywhere_and_comes_from_a_secret() -> None:
    """KubeRay's auth options, the CronJob's variables, and the launcher's file name the token, none holds it."""
    auth = _load("rayjob.yaml")["spec"]["rayClusterSpec"]["authOptions"]
    assert auth == {"mode": "token", "secretName": "ray-distill-token"}
    env = {item["name"]: item for item in PODS["relabel"]["spec"]["containers"][0]["env"]}
    assert env["RAY_AUTH_MODE"]["value"] == "token"
    assert env["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": "ray-distill-token", "key": "auth_token"}
    launcher = _load("launcher.yaml")
    assert "--env RAY_AUTH_MODE=token" in launcher["docker"]["run_options"]
    assert list(launcher["file_mounts"]) == ["/home/ray/.ray/auth_token"]


def test_nothing_here_holds_a_secret() -> None:
    """No literal password, key or token, in any file of the folder."""
    literal = re.compile(r"(password|secret_?(access_?)?key|token)\s*[:=]\s*[\"']?[A-Za-z0-9+/_-]{8,}", re.I)
    key = re.compile(r"AKIA[0-9A-Z]{16}|BEGIN [A-Z ]*PRIVATE KEY")
    found = [
        f"{path.name}: {line}"
        for path in sorted(CLUSTER.iterdir())
        if path.is_file()
        for line in path.read_text().splitlines()
        if literal.search(line) or key.search(line)
    ]
    assert found == []


def test_the_image_installs_the_pinned_versions_and_ends_as_an_ordinary_user() -> None:
    """Constraints are used, no user is root in the end, nothing like a secret is an argument."""
    text = (CLUSTER / "Dockerfile").read_text()
    assert "--constraint cluster/constraints.txt" in text
    assert re.findall(r"^USER (\S+)", text, re.M)[-1] == "1000:1000"
    assert not re.search(r"^ARG ", text, re.M)


def test_every_constraint_is_exact() -> None:
    """One exact release a line, no local build, no path, no index: any index can serve them."""
    lines = [line for line in (CLUSTER / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][\w.]*", line)] == []
    names = [line.partition("==")[0].lower() for line in lines]
    assert len(names) == len(set(names))
    assert {"torch", "ray", "deepspeed", "mlflow", "transformers", "pyarrow", "pytest", "ruff", "mypy"} <= set(names)
    assert "ray-distill" not in names
