"""HTTPS by the real daemon: handshakes, names, clients with certificates, renewal, and all that replaces workers."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess

import pytest
from support import proc
from support.ctl import ctl
from support.daemon import run
from support.load import Load
from support.tls import Authority, fetch, replace, serial

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

SCOPE_APP = """
import json
async def app(scope, receive, send):
    if scope["type"] == "http":
        told = {"scheme": scope["scheme"], "tls": scope["extensions"].get("tls")}
        body = json.dumps(told, default=list).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})
"""
FACTORY = """
import ssl
from support.testapp import app
def make(config, usual):
    assert config.ssl_certfile
    context = usual()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context
def broken(config, usual):
    return "no context"
"""


@pytest.fixture
def authority(tmp_path):
    room = tmp_path / "certificates"
    room.mkdir()
    return Authority(room)


@pytest.fixture
def site(authority):
    """The usual certificate, for a.test."""
    return authority.write("site", authority.issue("a.test"))


def failures(load):
    return [(each.reason, each.request, each.served_before) for each in load.result.failures]


def all_workers(daemon, client, **more):
    """Return an answer of each worker, by its pid."""
    found = {}
    daemon.until(
        lambda: (
            found.update({(one := fetch(daemon.port, client, **more)).body["pid"]: one})
            or len(found) == len(daemon.workers())
        ),
        "every worker answered",
    )
    return found


def everybody_uses(daemon, client, leaf):
    """Wait until all workers use the certificate: each has it a moment after the arbiter sent it."""
    daemon.until(
        lambda: {each.certificate for each in all_workers(daemon, client).values()} == {serial(leaf)},
        "every worker uses the new certificate",
    )


# --- handshakes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_both_versions_are_spoken_on_both_loops_and_the_scope_says_so(
    serve, authority, site, write_app, tmp_path, loop, version
):
    app = write_app(SCOPE_APP)
    daemon = serve("--loop", loop, "--app-dir", str(tmp_path), *site.options, app=app)
    answer = fetch(daemon.port, authority.client(version=version))
    assert (answer.version, answer.alpn) == (version.replace("_", "."), "http/1.1")
    assert answer.body["scheme"] == "https"
    told = answer.body["tls"]
    assert told["tls_version"] == {"TLSv1_2": 0x0303, "TLSv1_3": 0x0304}[version]
    assert told["cipher_suite"] in {0x1301, 0x1302, 0x1303, 0xC02B, 0xC02C, 0xCCA9}
    assert ssl.PEM_cert_to_DER_cert(told["server_cert"]) == answer.certificate
    assert (told["client_cert_chain"], told["client_cert_name"], told["client_cert_error"]) == ([], None, None)
    assert "https://127.0.0.1" in daemon.log


def test_a_scope_without_tls_has_no_tls(serve, write_app, tmp_path):
    daemon = serve("--app-dir", str(tmp_path), app=write_app(SCOPE_APP))
    assert daemon.get() == {"scheme": "http", "tls": None}


def test_openssls_own_client_is_answered(serve, authority, site):
    daemon = serve(*site.options)
    done = subprocess.run(
        [
            *("openssl", "s_client", "-quiet", "-verify_return_error", "-CAfile", str(authority.file)),
            *("-verify_hostname", "a.test", "-servername", "a.test", "-connect", f"127.0.0.1:{daemon.port}"),
        ],
        input=b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n",
        capture_output=True,
        timeout=20,
        check=False,
    )
    assert done.stdout.startswith(b"HTTP/1.1 200 OK\r\n"), done


def test_the_clients_name_chooses_among_certificates(serve, authority, site, tmp_path):
    wild = authority.write("wild", authority.issue("*.b.test", rsa=True))
    (tmp_path / "procmgr.toml").write_text(
        f'ssl_certfile = ["{site.certificate}", "{wild.certificate}"]\nssl_keyfile = ["{site.key}", "{wild.key}"]\n'
    )
    daemon = serve(cwd=tmp_path)
    client = authority.client()
    assert fetch(daemon.port, client, host="x.b.test").certificate == _der(wild)
    assert fetch(daemon.port, client, host="a.test").certificate == _der(site)
    client.check_hostname = False
    assert fetch(daemon.port, client, host="elsewhere.test").certificate == _der(site)


def _der(files):
    return ssl.PEM_cert_to_DER_cert(
        re.search(r"-----BEGIN.*?END CERTIFICATE-----\n", files.certificate.read_text(), re.DOTALL)[0]
    )


def test_a_client_has_to_have_a_certificate_where_that_is_required(serve, authority, site, write_app, tmp_path):
    app = write_app(SCOPE_APP)
    daemon = serve(
        *("--app-dir", str(tmp_path), "--ssl-cert-reqs", "2", "--ssl-ca-certs", str(authority.file)),
        *site.options,
        app=app,
    )
    leaf = authority.issue("client.test", subject="Bob, the client")
    told = fetch(daemon.port, authority.client(certificate=leaf)).body["tls"]
    assert re.search(r"(^|,)CN=Bob\\, the client(,|$)", told["client_cert_name"])
    assert ssl.PEM_cert_to_DER_cert(told["client_cert_chain"][0]) == serial(leaf)
    with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)):
        fetch(daemon.port, authority.client())
    room = tmp_path / "others"
    room.mkdir()
    stranger = Authority(room).issue("client.test")
    with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)):
        fetch(daemon.port, authority.client(certificate=stranger))
    assert "Traceback" not in daemon.log


def test_an_encrypted_key_is_opened_by_a_password_that_no_worker_finds_in_its_environment(
    serve, authority, write_app, tmp_path
):
    app = write_app(SCOPE_APP.replace('"scheme": ', '"environ": dict(__import__("os").environ), "scheme": '))
    files = authority.write("site", authority.issue("a.test"), password="hunter2")
    env = {"PROCMGR_SSL_KEYFILE_PASSWORD": "hunter2"}
    daemon = serve("--app-dir", str(tmp_path), *files.options, app=app, env=env)
    assert "hunter2" not in json.dumps(fetch(daemon.port, authority.client()).body)
    assert "hunter2" not in daemon.log


def test_failed_handshakes_are_counted_and_not_logged_as_errors(serve, authority, site, tmp_path):
    control = tmp_path / "control.sock"
    daemon = serve("--log-level", "debug", "--control", str(control), *site.options)
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=20) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        while plain.recv(100):
            pass
    daemon.logged(r"127\.0\.0\.1:\d+: no TLS: http request")
    with pytest.raises(ssl.SSLError):
        fetch(daemon.port, ssl.create_default_context())
    daemon.logged(r"no TLS: .*unknown ca")
    status = json.loads(ctl("-s", str(control), "status", "--json").stdout)
    assert sum(worker["tls_failed"] for worker in status["workers"]) == 2
    assert "Traceback" not in daemon.log
    assert "ERROR" not in daemon.log


def test_a_client_that_says_nothing_is_let_go_of(serve, site):
    daemon = serve("--ssl-handshake-timeout", "0.3", *site.options)
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=20) as silent:
        assert silent.recv(100) == b""


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_silent_clients_do_not_hold_a_stop_up(serve, site, authority, loop):
    daemon = serve("--loop", loop, "--ssl-handshake-timeout", "600", "--graceful-timeout", "600", *site.options)
    before = socket.create_connection(("127.0.0.1", daemon.port))
    plain = socket.create_connection(("127.0.0.1", daemon.port))
    with before, authority.client().wrap_socket(plain, server_hostname="a.test"):
        assert fetch(daemon.port, authority.client()).body
        assert daemon.stop() == 0


def test_the_contexts_of_a_factory_are_made_in_the_worker(serve, authority, site, write_app, tmp_path):
    app = write_app(FACTORY)
    daemon = serve("--app-dir", str(tmp_path), "--ssl-context-factory", "site_app:make", *site.options, app=app)
    assert fetch(daemon.port, authority.client()).version == "TLSv1.2"


def test_a_factory_that_fails_is_an_application_that_fails(site, write_app, tmp_path):
    app = write_app(FACTORY)
    done = run(
        *("--app-dir", str(tmp_path), "--ssl-context-factory", "site_app:broken", "--boot-attempts", "1"),
        *site.options,
        *("-b", f"127.0.0.1:{proc.free_port()}", app),
    )
    assert done.returncode == 3
    assert "ssl_context_factory 'site_app:broken' returned a str; expected an ssl.SSLContext" in done.stderr


# --- mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--check-config", "--backlog=128"])
@pytest.mark.parametrize(
    ("make", "said", "code"),
    [
        (lambda a, s: ["--ssl-certfile", "none.pem"], r"ssl_certfile: 'none\.pem' .* No such file", 2),
        (lambda a, s: ["--ssl-keyfile", str(s.key)], "there is a key but no certificate", 2),
        (lambda a, s: ["--certfile", str(s.certificate)], "holds no key; expected ssl_keyfile, too", 78),
        (lambda a, s: [*s.options, *s.options[2:]], "2 given; expected one for each of the 1 of ssl_certfile", 2),
        (
            lambda a, s: [*s.options[:2], "--keyfile", str(a.write("other", a.issue("b.test")).key)],
            "other.key does not hold the key of the certificate in .*site.pem",
            78,
        ),
        (
            lambda a, s: [*s.options[:2], "--keyfile", str(a.write("other", a.issue("b.test", rsa=True)).key)],
            "other.key does not hold the key of the certificate in .*site.pem",
            78,
        ),
        (
            lambda a, s: a.write("locked", a.issue("a.test"), password="x").options,
            "locked.key is encrypted; expected ssl_keyfile_password",
            78,
        ),
        (
            lambda a, s: [*a.write("l", a.issue("a.test"), password="x").options, "--ssl-keyfile-password", "hunter2"],
            "ssl_keyfile_password: it does not decrypt the key in .*l.key",
            78,
        ),
        (lambda a, s: ["--certfile", str(s.key), "--keyfile", str(s.key)], "holds no PEM certificate", 78),
        (lambda a, s: [*s.options, "--ssl-ca-certs", str(s.key)], "ssl_ca_certs: .* holds no PEM certificate", 78),
        (lambda a, s: [*s.options, "--ssl-cert-reqs", "required"], "without ssl_ca_certs", 2),
        (lambda a, s: [*s.options, "--ssl-ciphers", "ROT13"], "OpenSSL knows no cipher in 'ROT13'", 78),
        (lambda a, s: [*s.options, "--ssl-version", "3"], "versions of TLS before 1.2 are not safe; expected auto", 2),
    ],
)
def test_a_mistake_is_one_line(authority, site, make, said, code, option):
    done = run(option, "-b", f"127.0.0.1:{proc.free_port()}", *make(authority, site), "support.testapp:app")
    assert re.search(said, done.stderr), done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("procmgr: error: ")
    assert "hunter2" not in done.stderr
    assert done.returncode == code


def test_a_key_that_others_may_read_is_warned_about_once(serve, authority, site):
    site.key.chmod(0o644)
    daemon = serve(*site.options)
    daemon.reload()
    daemon.logged("has mode 0644; expected 0600")
    assert daemon.log.count("expected 0600") == 1
    done = run("--check-config", *site.options, "support.testapp:app")
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert "has mode 0644" in done.stderr


# --- sessions, renewal, reload, upgrade ---------------------------------------------------------------------------


@pytest.mark.parametrize("more", [[], ["--preload"]])
@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_a_session_is_resumed_by_every_worker_until_a_reload(serve, authority, site, version, more):
    daemon = serve("-w", "2", *more, *site.options)
    client = authority.client(version=version)
    first = fetch(daemon.port, client)
    assert not first.reused
    answers = []
    daemon.until(
        lambda: (
            answers.append(fetch(daemon.port, client, session=first.session))
            or {each.body["pid"] for each in answers} == set(daemon.workers())
        ),
        "both workers answered",
    )
    assert all(answer.reused for answer in answers)
    daemon.reload()
    assert not fetch(daemon.port, client, session=first.session).reused


@pytest.mark.parametrize("more", [[], ["--preload"], ["--loop", "asyncio"]])
def test_a_renewed_certificate_is_used_by_all_workers_without_a_failed_request(serve, authority, site, more):
    """Also one with another type of key; workers stay, sessions are resumed, and later workers have it."""
    daemon = serve("-w", "2", *more, *site.options)
    workers, client = daemon.workers(), authority.client()
    session = fetch(daemon.port, client).session
    with Load(daemon.port, keep_alive=6, fresh=3, tls=client) as load:
        fresh = authority.issue("a.test", rsa=True)
        authority.write("site", fresh)
        daemon.logged("new certificates are in use: a.test until ")
        load.wait_answers(50)
    assert failures(load) == []
    assert daemon.workers() == workers
    everybody_uses(daemon, client, fresh)
    assert fetch(daemon.port, client, session=session).reused
    os.kill(workers[0], signal.SIGKILL)
    daemon.until(lambda: len(daemon.workers()) == 2 and workers[0] not in daemon.workers(), "it was replaced")
    daemon.until(lambda: len(all_workers(daemon, client)) == 2, "both answer")
    everybody_uses(daemon, client, fresh)


def test_what_cannot_be_used_changes_nothing_and_is_said_once(serve, authority, site):
    daemon = serve("-w", "2", *site.options)
    client, served = authority.client(), _der(site)
    other = authority.issue("a.test")
    replace(site.key, other.private_key_pem.bytes())
    daemon.logged("the certificates stay as they are: ssl_keyfile: .* does not hold the key")
    assert {answer.certificate for answer in all_workers(daemon, client).values()} == {served}
    site.key.unlink()
    daemon.logged("the certificates stay as they are: ssl_keyfile: cannot read .*: No such file")
    assert {answer.certificate for answer in all_workers(daemon, client).values()} == {served}
    daemon.signal(signal.SIGHUP)
    daemon.logged("reload refused, nothing changed: ssl_keyfile")
    authority.write("site", other)
    daemon.logged("new certificates are in use")
    everybody_uses(daemon, client, other)
    assert daemon.log.count("stay as they are") == 2


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_reloads_scaling_and_a_stop_lose_no_request(serve, authority, site, loop):
    daemon = serve("-w", "2", "--loop", loop, *site.options)
    with Load(daemon.port, keep_alive=6, fresh=3, tls=authority.client()) as load:
        daemon.reload()
        load.wait_answers(30)
        daemon.signal(signal.SIGTTOU)
        daemon.until(lambda: len(daemon.workers()) == 1, "one worker is left")
        load.wait_answers(30)
        daemon.reload()
        load.wait_answers(30)
    assert failures(load) == []
    assert daemon.stop() == 0
    assert "Traceback" not in daemon.log


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_requests_that_run_when_the_service_stops_are_answered(serve, authority, site, loop):
    daemon = serve("--loop", loop, *site.options)
    plain = socket.create_connection(("127.0.0.1", daemon.port), timeout=20)
    with authority.client().wrap_socket(plain, server_hostname="a.test") as sock:
        sock.sendall(b"GET /stay HTTP/1.1\r\nHost: a.test\r\n\r\n")
        running = daemon.probe.wait("running")
        daemon.signal(signal.SIGTERM)
        daemon.logged("stopping: finishing")
        running.release()
        data = b""
        while more := sock.recv(65536):
            data += more
    assert data.startswith(b"HTTP/1.1 200 OK")
    assert data.endswith(b"}")
    assert daemon.join() == 0


@as_root
@pytest.mark.parametrize("more", [[], ["--preload"]])
def test_workers_without_rights_serve_and_renew_with_keys_that_they_cannot_read(serve, authority, site, more):
    daemon = serve("-u", "nobody", *more, *site.options, app="support.rights:app")
    client = authority.client()
    daemon.until(lambda: _answers(daemon, client), "it answers")
    fresh = authority.issue("a.test")
    authority.write("site", fresh)
    daemon.logged("new certificates are in use")
    daemon.until(lambda: _answers(daemon, client) == serial(fresh), "the new one is used")
    old = daemon.workers()
    os.kill(old[0], signal.SIGKILL)
    daemon.until(lambda: daemon.workers() not in ([], old), "it was replaced")
    daemon.until(lambda: _answers(daemon, client) == serial(fresh), "the replacement uses it, too")


def _answers(daemon, client):
    """Return the certificate that a request is answered under."""
    with (
        socket.create_connection(("127.0.0.1", daemon.port), timeout=20) as plain,
        client.wrap_socket(plain, server_hostname="a.test") as sock,
    ):
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        assert sock.recv(12) == b"HTTP/1.1 200"
        return sock.getpeercert(binary_form=True)


@pytest.mark.parametrize("more", [[], ["--preload"]])
def test_an_upgrade_keeps_serving_and_renewing_even_if_the_files_are_broken(serve, authority, site, more):
    daemon = serve("-w", "2", *more, *site.options)
    client, served = authority.client(), _der(site)
    replace(site.key, authority.issue("a.test").private_key_pem.bytes())
    with Load(daemon.port, keep_alive=6, fresh=3, tls=client) as load:
        daemon.upgrade()
        load.wait_answers(30)
        assert {answer.certificate for answer in all_workers(daemon, client).values()} == {served}
        fresh = authority.issue("a.test")
        authority.write("site", fresh)
        daemon.logged("new certificates are in use")
        everybody_uses(daemon, client, fresh)
        daemon.reload()
        load.wait_answers(30)
    assert failures(load) == []
    everybody_uses(daemon, client, fresh)


def test_the_end_of_a_certificate_is_warned_about_once_and_shown_in_status(serve, authority, tmp_path):
    files = authority.write("site", authority.issue("a.test", "b.test", days=5.5))
    control = tmp_path / "control.sock"
    daemon = serve("--control", str(control), *files.options)
    daemon.logged("the certificate for a.test and 1 more name expires in [56] days, on ")
    (told,) = json.loads(ctl("-s", str(control), "status", "--json").stdout)["certificates"]
    assert told["names"] == ["a.test", "b.test"]
    assert 5 * 86_400 < told["expires_in"] < 5.5 * 86_400
    assert re.search(r"certificate for a\.test and 1 more name expires in 5d", ctl("-s", str(control), "status").stdout)
    daemon.reload()
    authority.write("site", authority.issue("a.test", days=0.5))
    daemon.logged("the certificate for a.test expires in 12 hours, on ")
    assert daemon.log.count("expires in") == 2
