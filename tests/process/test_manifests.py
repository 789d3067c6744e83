"""What etc/ has for Compose, Kubernetes and Nomad: in the shape that those take, and true of procmgr."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import urllib.error
import urllib.request
from signal import SIGINT, SIGTERM

import kubernetes_validate
import pytest
import yaml
from compose_spec import PyCompose
from support import manifests, proc
from support.daemon import PATIENCE

from procmgr.arbiter.parts import KILL_GRACE_SECONDS

OBJECTS = manifests.kubernetes()
POD = OBJECTS["Deployment"]["spec"]["template"]
CONTAINER = POD["spec"]["containers"][0]
PROBES = {name: CONTAINER[name] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
TASK = manifests.nomad()["task"][0]["api"]
CHECK = manifests.nomad()["service"][0]["check"][0]
ARGS = {
    "Dockerfile": None,
    "compose": manifests.compose()["command"],
    "kubernetes": CONTAINER["args"],
    "nomad": TASK["config"][0]["args"],
}
GRACE = {
    "compose": manifests.seconds(manifests.compose()["stop_grace_period"]),
    "kubernetes": POD["spec"]["terminationGracePeriodSeconds"],
    "nomad": manifests.seconds(TASK["kill_timeout"]),
}
PAGES = ("/livez", "/readyz", "/metrics")


@pytest.fixture
def contained(serve, tmp_path):
    """A function that starts what a container would with `args`, and returns the daemon and its admin pages' port."""

    def start(args):
        (tmp_path / "app.py").write_text("from support.testapp import app\n")
        port, admin = proc.free_port(), proc.free_port()
        daemon = serve(*manifests.command(args, {8000: port, 9000: admin}), app=None, bind=None, cwd=tmp_path)
        daemon.port = port
        return daemon, admin

    return start


def fetch(port, path):
    """Return the status and the text of a page."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def option(args, name, default):
    """Return the number that an option is given."""
    return next((float(word.partition("=")[2]) for word in args if word.startswith(f"--{name}=")), default)


@pytest.mark.parametrize("version", ["1.29", kubernetes_validate.latest_version()])
@pytest.mark.parametrize("kind", [kind for kind in OBJECTS if kind != "PodMonitor"])
def test_the_objects_are_what_kubernetes_takes(kind, version):
    kubernetes_validate.validate(OBJECTS[kind], version, strict=True)


def test_the_pod_monitor_names_the_pods_and_a_port_of_theirs():
    monitor = OBJECTS["PodMonitor"]
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert monitor["spec"]["selector"]["matchLabels"].items() <= POD["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in {port["name"] for port in CONTAINER["ports"]}
    assert endpoint["path"] in PAGES


def test_the_objects_refer_to_each_other():
    labels = POD["metadata"]["labels"]
    assert OBJECTS["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert OBJECTS["Service"]["spec"]["selector"] == labels
    assert OBJECTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    target = OBJECTS["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", OBJECTS["Deployment"]["metadata"]["name"])
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert OBJECTS["Service"]["spec"]["ports"][0]["targetPort"] in ports
    assert {probe["httpGet"]["port"] for probe in PROBES.values()} == {"admin"}
    bound = dict(word.split("=0.0.0.0:") for word in manifests.last("ENTRYPOINT").words[1:])
    assert ports == {"http": int(bound["--bind"]), "admin": int(bound["--admin-bind"])}


def test_the_pod_has_no_more_rights_than_it_needs():
    user, _, group = manifests.last("USER").text.partition(":")
    pod, own = POD["spec"]["securityContext"], CONTAINER["securityContext"]
    assert (pod["runAsNonRoot"], pod["runAsUser"], pod["runAsGroup"]) == (True, int(user), int(group))
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert own == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert POD["spec"]["automountServiceAccountToken"] is False


def test_compose_takes_the_file():
    found = PyCompose.from_yaml((manifests.ETC / "compose.yaml").read_text())
    assert found.service_names() == ["api"]
    build = manifests.compose()["build"]
    assert (manifests.ETC / build["context"] / build["dockerfile"]).resolve() == manifests.ETC / "Dockerfile"


def test_nomads_ports_are_those_of_the_image():
    network = manifests.nomad()["network"][0]["port"]
    ports = {name: port["to"] for each in network for name, port in each.items()}
    assert set(TASK["config"][0]["ports"]) == set(ports) == {"http", "admin"}
    assert (ports["http"], ports["admin"]) == (8000, 9000)
    assert CHECK["port"] == "admin"


@pytest.mark.parametrize("name", GRACE)
def test_the_time_to_stop_is_longer_than_procmgr_takes(name):
    delay, graceful = option(ARGS[name], "shutdown-delay", 0), option(ARGS[name], "graceful-timeout", 30)
    assert GRACE[name] >= delay + graceful + KILL_GRACE_SECONDS + 5
    if name == "nomad":
        assert GRACE[name] <= 30, "a client's max_kill_timeout"


def test_readiness_is_seen_to_fail_before_the_delay_is_over():
    probe = PROBES["readinessProbe"]
    seen = probe["failureThreshold"] * (probe["periodSeconds"] + probe["timeoutSeconds"])
    assert seen < option(ARGS["kubernetes"], "shutdown-delay", 0)
    assert manifests.seconds(CHECK["interval"]) <= option(ARGS["nomad"], "shutdown-delay", 0)


def test_there_is_a_cpu_for_each_worker():
    cpus = {
        "compose": manifests.compose()["cpus"],
        "kubernetes": float(CONTAINER["resources"]["requests"]["cpu"]),
        "nomad": TASK["resources"][0]["cores"],
    }
    assert {name: option(ARGS[name], "workers", 1) for name in cpus} == cpus


@pytest.mark.parametrize("name", ARGS)
def test_what_the_container_runs_serves_and_answers_the_probes(contained, name):
    daemon, admin = contained(ARGS[name])
    assert daemon.get()["slot"].isdecimal()
    paths = {probe["httpGet"]["path"] for probe in PROBES.values()} | {CHECK["path"]}
    assert paths <= set(PAGES)
    assert {path: fetch(admin, path)[0] for path in PAGES} == dict.fromkeys(PAGES, 200)


def test_after_term_the_pod_serves_on_and_is_not_ready_any_more(contained):
    daemon, admin = contained(ARGS["kubernetes"])
    daemon.signal(SIGTERM)
    daemon.status("leaving")
    probes = {name: fetch(admin, probe["httpGet"]["path"])[0] for name, probe in PROBES.items()}
    assert probes == {"startupProbe": 503, "livenessProbe": 200, "readinessProbe": 503}
    assert daemon.get()
    assert daemon.stop(SIGINT) == 0


def test_composes_health_check_tells_ready_from_not(contained):
    kind, python, *rest = manifests.compose()["healthcheck"]["test"]
    assert (kind, python) == ("CMD", "python")
    daemon, admin = contained([*ARGS["compose"][:-1], "--shutdown-delay=600", "app:app"])

    def check():
        words = [word.replace("127.0.0.1:9000", f"127.0.0.1:{admin}") for word in rest]
        return subprocess.run([sys.executable, *words], capture_output=True, timeout=PATIENCE, check=False).returncode

    assert check() == 0
    daemon.signal(SIGTERM)
    daemon.status("leaving")
    assert check() == 1
    assert daemon.stop(SIGINT) == 0


def test_pods_are_scaled_by_a_metric_that_there_is(contained):
    _, admin = contained(ARGS["kubernetes"])
    (metric,) = OBJECTS["HorizontalPodAutoscaler"]["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert re.search(rf"^{name} [0-9.e+-]+$", fetch(admin, "/metrics")[1], re.MULTILINE)
    (rule,) = yaml.safe_load((manifests.ETC / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    assert rule["seriesQuery"].partition("{")[0] == name
    assert set(rule["resources"]["overrides"]) == {"namespace", "pod"}


def test_the_image_has_one_user_one_command_and_no_shell_between(tmp_path):
    names = [each.name for each in manifests.dockerfile()]
    assert {"FROM", "RUN", "COPY", "USER", "ENTRYPOINT", "CMD", "STOPSIGNAL"} <= set(names)
    assert not {"ADD", "HEALTHCHECK", "SHELL", "VOLUME"} & set(names)
    assert all(
        re.fullmatch(r"python:3\.\d+-slim( AS \w+)?", each.text)
        for each in manifests.dockerfile()
        if each.name == "FROM"
    )
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", manifests.last("USER").text), "a number, so that runAsNonRoot can tell"
    assert manifests.last("STOPSIGNAL").text == "SIGTERM"
    assert names.index("USER") > max(at for at, name in enumerate(names) if name in {"RUN", "COPY", "FROM"})
    for each in manifests.dockerfile():
        if each.name == "RUN":
            assert subprocess.run(["sh", "-n", "-c", each.text], check=False).returncode == 0
        if each.name == "COPY" and not each.text.startswith("--from"):
            *sources, _ = shlex.split(each.text)
            assert all((manifests.ETC.parent / source).exists() for source in sources)
