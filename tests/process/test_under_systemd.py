"""The real systemd, in a box: the units of the tree with the real daemon on them."""

from __future__ import annotations

import json
import os
import ssl

import pytest
import trustme
from support import box as boxes
from support import proc
from support.daemon import ROOT
from support.load import Load

LOWER = os.environ.get("PROCMGR_TEST_ROOT", "/")
"""The file system the box is made of: another directory for another release of systemd, see docs/systemd.md."""


@pytest.fixture(scope="module")
def box(tmp_path_factory):
    reason = boxes.missing(LOWER)
    if reason is not None:
        pytest.skip(f"no systemd in a box: {reason}")
    with boxes.Box(tmp_path_factory.mktemp("box"), LOWER) as made:
        yield made


@pytest.fixture
def started(box):
    """Return a function that configures an instance, starts it, and returns its unit and its port."""
    units = []

    def start(name, settings="", **more):
        port = box.free_port()
        unit = box.instance(name, f'bind = ["127.0.0.1:{port}"]\n{settings}', **more)
        units.append(unit)
        box.run("systemctl", "start", unit)
        return unit, port

    yield start
    for unit in units:
        box.run("systemctl", "stop", unit)


def test_systemctl_start_returns_once_every_worker_is_ready(box, started):
    unit, port = started("starts", "workers = 2\n")
    shown = box.show(unit)
    assert (shown["ActiveState"], shown["SubState"]) == ("active", "running")
    assert shown["StatusText"].startswith("2/2 workers ready, generation 1")
    assert shown["OOMPolicy"] == "continue"
    answer = box.get(port)
    assert answer["uid"] != 0
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "FDSTORE"} & answer["environ"].keys()
    entries = [each for each in box.journal(unit) if each.get("_COMM") != "systemd"]
    assert all(int(each["PRIORITY"]) >= 6 for each in entries), "all it asks of /proc it gets, or does without"


def test_systemctl_reload_succeeds_if_the_new_code_serves_and_else_says_why_not(box, started):
    unit, port = started("reloads")
    box.deploy("reloads", "two")
    box.run("systemctl", "reload", unit)
    assert box.get(port)["release"] == "two"
    box.deploy("reloads", "three", "raise LookupError('no such table')\n")
    failed = box.run("systemctl", "reload", unit, check=False)
    assert failed.returncode != 0
    shown = box.show(unit)
    assert shown["ActiveState"] == "active"
    assert "no such table" in shown["StatusText"]
    assert box.get(port)["release"] == "two"
    entries = [each for each in box.journal(unit) if "PROCMGR_EVENT" in each]
    failure = next(each for each in entries if "no such table" in each["MESSAGE"])
    assert "Traceback" in failure["MESSAGE"], "one entry has all of it"
    assert (failure["PRIORITY"], failure["PROCMGR_EVENT"]) == ("3", "worker_died")
    assert (failure["PROCMGR_SLOT"], failure["PROCMGR_GENERATION"]) == ("0", "3")
    assert [each["PROCMGR_OUTCOME"] for each in entries if each["PROCMGR_EVENT"] == "reload_ended"] == [
        "done",
        "rolled back",
    ]


def test_a_worker_that_is_killed_is_replaced_by_procmgr(box, started):
    unit, port = started("worker")
    main, worker = box.main_pid(unit), box.get(port)["pid"]
    box.run("kill", "-KILL", str(worker))
    assert box.get(port)["pid"] != worker
    assert box.main_pid(unit) == main


@pytest.mark.parametrize("signum", ["KILL", "STOP"])
def test_an_arbiter_that_is_killed_or_wedged_is_restarted_and_its_queue_is_served(box, started, signum):
    """Wedged: the watchdog finds it."""
    unit, port = started(f"arbiter_{signum.lower()}", "workers = 2\n", drop_in="[Service]\nWatchdogSec=1\n")
    before = box.processes(unit)
    box.run("kill", f"-{signum}", str(box.main_pid(unit)))
    assert proc.eventually(lambda: box.show(unit)["NRestarts"] == "1")
    assert box.get(port)["pid"] not in before
    assert proc.eventually(lambda: box.show(unit)["ActiveState"] == "active")
    assert not box.processes(unit) & before
    assert (signum == "STOP") is any("Watchdog timeout" in each["MESSAGE"] for each in box.journal(unit))


def test_a_restart_under_load_fails_no_request_with_listeners_in_the_store(box, started):
    unit, port = started("store", "workers = 2\n")
    with Load(port, keep_alive=6, fresh=4, enter=box.enter_network) as load:
        for _ in range(2):
            main = box.main_pid(unit)
            box.run("systemctl", "restart", unit)
            assert box.main_pid(unit) != main
            load.wait_answers(50)
    assert load.result.failures == []


def test_a_restart_under_load_fails_no_request_with_a_socket_unit(box):
    port = box.free_port()
    unit = box.instance("socket", 'bind = ["systemd:web"]\nworkers = 2\n')
    box.write("/run/systemd/system/procmgr@socket.socket.d/port.conf", f"[Socket]\nListenStream=127.0.0.1:{port}\n")
    box.run("systemctl", "daemon-reload")
    box.run("systemctl", "start", "procmgr@socket.socket")
    with Load(port, keep_alive=6, fresh=4, enter=box.enter_network) as load:  # the first connection starts it
        for _ in range(2):
            box.run("systemctl", "restart", unit)
            load.wait_answers(50)
    assert load.result.failures == []
    box.run("systemctl", "stop", "procmgr@socket.socket", unit)


SOCKETS = {
    "alpha": "FileDescriptorName=alpha\nListenStream=127.0.0.1:{port}\nListenStream=[::1]:{port}\n",
    "beta": "FileDescriptorName=beta\nListenStream=/run/beta.sock\n",
}


@pytest.fixture
def several(box):
    """Start an instance with the sockets of two units, and one of its own; return its unit and both ports."""
    port, own = box.free_port(), box.free_port()
    names = [f"several-{name}.socket" for name in SOCKETS]
    for name, text in zip(names, SOCKETS.values(), strict=True):
        unit = f"[Socket]\nService=procmgr@several.service\n{text}"
        box.write(f"/run/systemd/system/{name}", unit.format(port=port))
    addresses = f'bind = ["systemd:beta", "127.0.0.1:{own}", "systemd:alpha"]\n'
    unit = box.instance("several", addresses, drop_in=f"[Service]\nSockets={' '.join(names)}\n")
    box.run("systemctl", "start", *names, unit)
    yield unit, port, own
    box.run("systemctl", "stop", *names, unit)


def served(connection):
    """Return where the application was told to have been asked."""
    response, body = connection.get()
    connection.close()
    assert response.status == 200
    return json.loads(body)["server"]


def test_sockets_of_several_units_are_taken_by_name_beside_own_addresses(box, several):
    unit, port, own = several
    for _ in range(2):
        assert served(box.connect(port)) == ["127.0.0.1", port]
        assert served(box.connect(port, "::1")) == ["::1", port]
        assert served(box.connect(own)) == ["127.0.0.1", own]
        assert served(box.connect_unix("/run/beta.sock")) == ["/run/beta.sock", None]
        assert box.show(unit)["NFileDescriptorStore"] == "1", "systemd has the others anyway"
        box.run("systemctl", "restart", unit)


def test_a_unix_socket_of_systemds_is_not_removed_with_the_service(box, several):
    unit, _, _ = several
    file = box.path("/run/beta.sock").stat().st_ino
    box.run("systemctl", "stop", unit)
    assert box.path("/run/beta.sock").stat().st_ino == file
    assert served(box.connect_unix("/run/beta.sock")) == ["/run/beta.sock", None], "whoever comes starts it again"


def test_a_unix_socket_in_the_store_keeps_its_file_over_a_restart(box):
    unit = box.instance("unix", 'bind = ["unix:/run/procmgr/unix/web.sock,mode=0666"]\n')
    box.run("systemctl", "start", unit)
    file = box.path("/run/procmgr/unix/web.sock").stat().st_ino
    box.run("systemctl", "restart", unit)
    assert box.path("/run/procmgr/unix/web.sock").stat().st_ino == file
    connection = box.connect_unix("/run/procmgr/unix/web.sock")
    assert connection.get()[0].status == 200
    connection.close()
    box.run("systemctl", "stop", unit)


def test_a_listener_that_the_configuration_drops_leaves_the_store(box, started):
    unit, port = started("drops")
    other = box.free_port()
    box.write(
        "/etc/procmgr/drops.toml", f'app = "drops_app:app"\napp-dir = "/srv/drops"\nbind = ["127.0.0.1:{other}"]\n'
    )
    box.run("systemctl", "restart", unit)
    assert box.get(other)
    with pytest.raises(ConnectionRefusedError):
        box.connect(port)
    assert proc.eventually(lambda: box.show(unit)["NFileDescriptorStore"] == "1")


def test_a_start_and_a_stop_take_their_own_time_beyond_systemds(box, started):
    limits = "[Service]\nTimeoutStartSec=6\nTimeoutStopSec=1\nTimeoutAbortSec=1\nEnvironment=BOOT_SECONDS=7\n"
    unit, port = started("slow", "graceful-timeout = 20\n", drop_in=limits)
    connection = box.connect(port)
    connection.request("GET", "/sleep/2.5")
    assert proc.eventually(lambda: '"active": 1' in box.control("slow", "status", "--json").stdout)
    box.run("systemctl", "stop", unit)
    assert connection.answer()[0].status == 200
    connection.close()
    assert box.show(unit)["Result"] == "success"


def test_a_stop_ends_within_its_bounds_whatever_a_request_does(box, started):
    """Neither systemd's KILL nor the time-out is needed."""
    unit, port = started("stuck", "workers = 2\ngraceful-timeout = 1\n")
    connection = box.connect(port)
    connection.request("GET", "/sleep/100000")
    assert proc.eventually(lambda: '"active": 1' in box.control("stuck", "status", "--json").stdout)
    box.run("systemctl", "stop", unit)
    connection.close()
    shown = box.show(unit)
    assert shown["Result"] == "success"
    assert not shown.get("ControlGroup"), "nothing is left in it"


def test_memory_pressure_is_watched_where_systemd_says_where(box, started):
    if box.version() < 254:
        pytest.skip(f"systemd {box.version()} does not tell services of memory pressure")
    unit, _ = started("pressed")
    found = box.run("readlink", *(f"/proc/{box.main_pid(unit)}/fd/{number}" for number in range(3, 40)), check=False)
    assert f"/sys/fs/cgroup{box.show(unit)['ControlGroup']}/memory.pressure" in found.stdout.splitlines()


def test_a_reload_takes_its_own_time_beyond_systemds(box, started):
    unit, port = started("rolls")
    box.write(f"/run/systemd/system/{unit}.d/limit.conf", "[Service]\nTimeoutStartSec=6\n")  # ExecReload's, too
    box.run("systemctl", "daemon-reload")
    slow = boxes.APPLICATION.format(release="two").replace('os.environ.get("BOOT_SECONDS", 0)', "7")
    box.deploy("rolls", "two", slow)
    box.run("systemctl", "reload", unit)
    assert box.get(port)["release"] == "two"
    shown = box.show(unit)
    assert (shown["ReloadResult"], shown["ActiveState"], shown["NRestarts"]) == ("success", "active", "0")


def test_a_mistake_in_the_configuration_is_not_tried_again(box):
    unit = box.instance("mistake", "workers = 0\n")
    assert box.run("systemctl", "start", unit, check=False).returncode != 0
    shown = box.show(unit)
    assert (shown["NRestarts"], shown["ExecMainStatus"]) == ("0", "78")
    assert "cannot start: workers" in shown["StatusText"]


def exposure(box, unit):
    """Return how exposed systemd thinks a service is, 0 to 10."""
    said = box.run("systemd-analyze", "security", unit).stdout
    return float(said.rpartition("exposure level for")[2].split(":")[1].split()[0])


def test_the_files_in_systemd_are_in_order_and_well_sealed(box):
    """At most 1.5, with every variant."""
    box.instance("sealed", "")
    for variant in ("", *(path.name for path in (ROOT / "systemd/variants").iterdir())):
        unit = box.instance("sealed", "", drop_in=(ROOT / "systemd/variants" / variant).read_text() if variant else "#")
        if variant == "notify-reload.conf" and box.version() < 253:
            continue
        found = box.run("systemd-analyze", "verify", unit)
        assert found.stdout + found.stderr == "", variant
        assert exposure(box, unit) <= 1.5, variant
    found = box.run("systemd-analyze", "verify", "procmgr@sealed.socket")
    assert found.stdout + found.stderr == ""


def test_a_dynamic_user_runs_it(box, started):
    variant = (ROOT / "systemd/variants/dynamic-user.conf").read_text()
    unit, port = started("dynamic", "workers = 2\n", drop_in=variant)
    assert box.get(port)["uid"] >= 61184, "systemd.exec(5): the range of dynamic users"
    box.run("systemctl", "reload", unit)
    box.run("systemctl", "restart", unit)
    assert box.get(port)


def test_an_upgrade_in_place_stays_the_same_service_and_keeps_the_store(box, started):
    unit, port = started("upgrades")
    main, worker = box.main_pid(unit), box.get(port)["pid"]
    box.control("upgrades", "upgrade")
    assert proc.eventually(lambda: "upgraded to" in box.show(unit)["StatusText"])
    assert (box.main_pid(unit), box.get(port)["pid"]) == (main, worker)
    box.run("systemctl", "reload", unit)
    shown = box.show(unit)
    assert (shown["NRestarts"], shown["NFileDescriptorStore"]) == ("0", "1")
    box.run("systemctl", "restart", unit)
    assert box.get(port)


def test_workers_read_a_credential_that_their_user_may_not_read(box, started):
    drop_in = "[Service]\nLoadCredential=token:/etc/token\nEnvironment=SECRET_FILE=%d/token\n"
    box.write("/etc/token", "squeamish ossifrage", 0o600)
    unit, port = started("secrets", drop_in=drop_in)
    box.run("systemctl", "reload", unit)
    assert box.get(port, "/secret")["secret"] == "squeamish ossifrage"


def test_a_key_that_only_root_may_read_serves_https(box, started):
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    box.write("/etc/procmgr/https.cert.pem", "".join(each.bytes().decode() for each in issued.cert_chain_pems))
    box.write("/etc/procmgr/https.key.pem", issued.private_key_pem.bytes().decode(), 0o600)
    _, port = started("https", drop_in=(ROOT / "systemd/variants/tls.conf").read_text())
    context = ssl.create_default_context()
    authority.configure_trust(context)
    connection = box.connect(port)
    connection.sock = context.wrap_socket(connection.sock, server_hostname="localhost")
    assert connection.get()[0].status == 200
    connection.close()


def test_a_unit_that_print_unit_wrote_starts_this_application(box):
    port = box.free_port()
    box.deploy("printed", "a $HOME of 100%")
    arguments = ["-b", f"127.0.0.1:{port}", "--app-dir", "/srv/printed", "-e", "GREETING=$HOME 100%", "printed_app:app"]
    text = box.run("procmgr", "--print-unit", *arguments).stdout
    box.write("/etc/systemd/system/printed.service", text)
    found = box.run("systemd-analyze", "verify", "printed.service")
    assert found.stdout + found.stderr == ""
    assert exposure(box, "printed.service") <= 1.5
    path = "[Service]\nEnvironment=PYTHONPATH=/opt/procmgr:/opt/packages LD_LIBRARY_PATH=/opt/python/lib\n"
    box.write("/run/systemd/system/printed.service.d/test.conf", path)
    box.run("systemctl", "daemon-reload")
    box.run("systemctl", "start", "printed.service")
    assert box.get(port)["environ"]["GREETING"] == "$HOME 100%"
    box.run("systemctl", "reload", "printed.service")
    box.run("systemctl", "stop", "printed.service")


def test_systemd_reloads_by_itself_and_waits_for_both_ends(box, started):
    if box.version() < 253:
        pytest.skip(f"systemd {box.version()} does not know Type=notify-reload")
    variant = (ROOT / "systemd/variants/notify-reload.conf").read_text()
    unit, port = started("notifies", "workers = 2\n", drop_in=variant)
    box.deploy("notifies", "two")
    box.run("systemctl", "reload", unit)
    assert {box.get(port)["release"] for _ in range(10)} == {"two"}
    box.deploy("notifies", "three", "raise LookupError('no such table')\n")
    box.run("systemctl", "reload", unit)
    assert "no such table" in box.show(unit)["StatusText"]
    box.write("/etc/procmgr/notifies.toml", "nonsense = 1\n")
    box.run("systemctl", "reload", unit)
    assert "reload refused" in box.show(unit)["StatusText"]
    assert box.show(unit)["ActiveState"] == "active"
    assert box.get(port)["release"] == "two"
