"""The k3s manifests: valid, without a way to the node, and one with the daemon that they run."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from inference import cli
from inference.api.health import OPEN_PATHS
from inference.registry import load_registry
from inference.settings import Settings, load_settings

MANIFESTS = Path(__file__).resolve().parent.parent / "containers/fleet/k3s"
_HOW = "kubernetes-validate is not installed: make test-appliance"


def objects() -> list[dict[str, Any]]:
    """Every object of every file, in the order in which `kubectl apply -f` takes them."""
    files = sorted(MANIFESTS.glob("*.yaml"))
    assert files
    return [each for path in files for each in yaml.safe_load_all(path.read_text(encoding="utf-8"))]


def the(kind: str, name: str = "jetllm") -> dict[str, Any]:
    """The object of that kind and name."""
    return next(each for each in objects() if (each["kind"], each["metadata"]["name"]) == (kind, name))


def pod() -> dict[str, Any]:
    """What every pod is made after."""
    spec: dict[str, Any] = the("StatefulSet")["spec"]["template"]["spec"]
    return spec


def containers() -> list[dict[str, Any]]:
    """All containers of a pod."""
    return [*pod()["initContainers"], *pod()["containers"]]


def daemon() -> dict[str, Any]:
    """The container that serves."""
    return next(each for each in pod()["containers"] if each["name"] == "jetllm")


def settings() -> dict[str, Any]:
    """The settings file, as YAML."""
    read: dict[str, Any] = yaml.safe_load(the("ConfigMap", "jetllm-settings")["data"]["jetllm.yaml"])
    return read


def in_force(tmp_path: Path) -> Settings:
    """The settings as the daemon reads them."""
    file = tmp_path / "jetllm.yaml"
    file.write_text(the("ConfigMap", "jetllm-settings")["data"]["jetllm.yaml"], encoding="utf-8")
    return load_settings(config=file, environ={})


def test_every_object_keeps_the_schema_of_kubernetes() -> None:
    """The published schemas, in their strict form, which knows no unknown fields."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason=_HOW)
    for each in objects():
        kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)


def test_schema_check_notices() -> None:
    """A misspelt field and a number in the place of a text are refused."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason=_HOW)
    misspelt, mistyped = the("StatefulSet"), the("StatefulSet")
    misspelt["spec"]["template"]["spec"]["runtimeClass"] = "nvidia"
    mistyped["spec"]["replicas"] = "two"
    for wrong in (misspelt, mistyped):
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(wrong, kubernetes_validate.latest_version(), strict=True)


def test_objects_can_be_made_in_the_order_of_the_files() -> None:
    """The namespace comes first, and everything that lies in one lies in it."""
    kinds = [each["kind"] for each in objects()]
    assert kinds[0] == "Namespace"
    spaces = {each["metadata"].get("namespace") for each in objects()} - {None}
    assert spaces == {the("Namespace")["metadata"]["name"]}


def test_containers_have_no_rights() -> None:
    """Not root, no capabilities, a read-only root, the default seccomp profile, no token of the cluster."""
    assert pod()["securityContext"]["runAsNonRoot"] is True
    assert pod()["securityContext"]["runAsUser"] >= 1000
    assert pod()["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod()["automountServiceAccountToken"] is False
    for container in containers():
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, container["name"]


def test_cluster_itself_refuses_more_rights() -> None:
    """The namespace enforces the strictest of Kubernetes' pod security standards."""
    labels = the("Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_daemon_reads_weights_and_cannot_change_them() -> None:
    """The store is written by the init container alone."""
    mounts = {each["name"]: each for each in daemon()["volumeMounts"]}
    assert mounts["store"]["readOnly"] is True
    assert mounts["store"]["mountPath"] == settings()["cache_dir"]
    assert mounts["state"]["mountPath"] == settings()["state_dir"]


def test_every_mount_has_its_volume() -> None:
    """A mount names a volume of the pod or a claim of the set; none is left over."""
    claims = the("StatefulSet")["spec"]["volumeClaimTemplates"]
    volumes = [each["name"] for each in pod()["volumes"]] + [each["metadata"]["name"] for each in claims]
    mounted = {each["name"] for container in containers() for each in container["volumeMounts"]}
    assert mounted == set(volumes) and len(volumes) == len(set(volumes))


def test_key_is_a_secret_by_reference() -> None:
    """No manifest holds a key; the daemon, which listens for all, is given one."""
    assert "Secret" not in {each["kind"] for each in objects()}
    given = {each["name"]: each for each in daemon()["env"]}
    assert given["JETLLM_API_KEY"]["valueFrom"]["secretKeyRef"] == {"name": "jetllm-api-key", "key": "key"}
    assert "api_key" not in settings()


def test_settings_are_ones_that_the_daemon_takes(tmp_path: Path) -> None:
    """The file in the ConfigMap is read by the daemon's own reader."""
    read = in_force(tmp_path)
    assert (read.host, read.port, read.offline) == ("0.0.0.0", 8080, True)  # noqa: S104 - a pod's own


def test_allowed_hosts_are_the_names_of_the_service(tmp_path: Path) -> None:
    """Every form in which a cluster writes the Service's name is one that the daemon answers to."""
    name, space = "jetllm", the("Service")["metadata"]["namespace"]
    forms = (name, f"{name}.{space}", f"{name}.{space}.svc", f"{name}.{space}.svc.cluster.local")
    assert set(in_force(tmp_path).allowed_hosts) == set(forms)


def test_probes_are_open_paths_of_the_daemon(tmp_path: Path) -> None:
    """Alive is /livez, in the Service is /readyz; neither asks for a key; their port is the daemon's."""
    probes = {kind: daemon()[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
    assert {kind: probe["path"] for kind, probe in probes.items()} == {
        "startup": "/livez",
        "liveness": "/livez",
        "readiness": "/readyz",
    }
    assert {probe["path"] for probe in probes.values()} <= OPEN_PATHS
    ports = {each["name"]: each["containerPort"] for each in daemon()["ports"]}
    assert {ports[probe["port"]] for probe in probes.values()} == {in_force(tmp_path).port}


def test_grace_period_is_longer_than_the_drain(tmp_path: Path) -> None:
    """The pod is killed only after the pause before SIGTERM, the drain and the workers' end."""
    read = in_force(tmp_path)
    word, pause_s = daemon()["lifecycle"]["preStop"]["exec"]["command"]
    assert word == "sleep"
    least_s = int(pause_s) + read.drain_timeout_s + read.stop_timeout_s
    assert pod()["terminationGracePeriodSeconds"] > least_s


def test_init_container_fetches_what_the_daemon_preloads(tmp_path: Path) -> None:
    """The models are the same, and are in the registry."""
    fetched = tuple(pod()["initContainers"][0]["command"][2:])
    assert fetched == in_force(tmp_path).preload
    assert set(fetched) <= set(load_registry(load_settings(environ={}).registry_path).models)


def test_commands_are_ones_of_the_command_line() -> None:
    """Each container starts `jetllm` with words that it parses."""
    for container in containers():
        program, *words = container["command"]
        assert program == "jetllm"
        assert parses(words), shlex.join(words)


def parses(words: list[str]) -> bool:
    """Whether the command line takes these words."""
    if words[0] == "--config":
        words = words[2:]
    command = cli.main.commands[words[0]]
    try:
        command.make_context(words[0], list(words[1:]))
    except click.UsageError:
        return False
    return True


def test_selectors_find_the_pods() -> None:
    """Services, the budget and the set select by labels that the pods have."""
    labels = the("StatefulSet")["spec"]["template"]["metadata"]["labels"]
    assert list(selectors()) and all(each.items() <= labels.items() for each in selectors())
    assert the("StatefulSet")["spec"]["serviceName"] in {
        each["metadata"]["name"] for each in objects() if each["kind"] == "Service"
    }


def selectors() -> Iterator[dict[str, str]]:
    """Every selector of the manifests."""
    for each in objects():
        if each["kind"] == "Service":
            yield each["spec"]["selector"]
        elif each["kind"] in ("StatefulSet", "PodDisruptionBudget"):
            yield each["spec"]["selector"]["matchLabels"]
    for term in pod()["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]:
        yield term["labelSelector"]["matchLabels"]


def test_each_jetson_has_at_most_one_pod() -> None:
    """Two daemons would give the same GPU's memory away twice."""
    terms = pod()["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert [term["topologyKey"] for term in terms] == ["kubernetes.io/hostname"]
    assert pod()["runtimeClassName"] == the("RuntimeClass", "nvidia")["metadata"]["name"]


def test_memory_is_bounded() -> None:
    """Every container says what it needs, and how much memory it may take at most."""
    for container in containers():
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert "memory" in container["resources"]["limits"]
