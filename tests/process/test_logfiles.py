"""Log files: opened by the arbiter, written by all, opened anew on USR1."""

import json
import os
import re
import signal
import stat

import pytest
from support.daemon import run


def test_a_rotated_log_goes_on_in_a_new_file_for_the_arbiter_and_its_workers(serve, tmp_path):
    access, error = tmp_path / "access.log", tmp_path / "error.log"
    daemon = serve("-w", "2", "--access-log-file", str(access), "--log-file", str(error))
    assert daemon.get()
    daemon.until(lambda: '"GET / HTTP/1.1" 200' in access.read_text(), "the access log has the request")
    assert "2 workers" in error.read_text()
    assert daemon.output == ""
    assert daemon.log == ""
    access.rename(tmp_path / "access.log.1")
    error.rename(tmp_path / "error.log.1")
    daemon.signal(signal.SIGUSR1)
    daemon.until(lambda: error.exists() and "log files reopened" in error.read_text(), "the new error log is written")
    daemon.until(lambda: daemon.get() and access.exists() and '"GET' in access.read_text(), "the new access log is")
    assert stat.S_IMODE(access.stat().st_mode) == 0o640


def _asked(daemon):
    return daemon.connect().get()[0].status == 200


@pytest.mark.skipif(os.getuid() != 0, reason="only root can drop privileges")
def test_workers_without_privileges_go_on_in_a_file_they_could_not_open(serve, tmp_path):
    access = tmp_path / "access.log"
    daemon = serve("-u", "nobody", "--access-logfile", str(access), app="support.rights:app")
    access.rename(tmp_path / "access.log.1")
    daemon.signal(signal.SIGUSR1)
    daemon.until(
        lambda: _asked(daemon) and access.exists() and '"GET' in access.read_text(), "the new access log is used"
    )


def test_both_logs_may_go_to_standard_output(serve):
    daemon = serve("--log-file", "-", "--access-log-file", "-")
    assert daemon.get()
    daemon.until(lambda: '"GET' in daemon.output, "the access line is on stdout")
    assert "ready" in daemon.output
    assert daemon.log == ""


def test_a_log_file_that_cannot_be_opened_stops_the_start_in_one_line(tmp_path):
    missing = tmp_path / "missing" / "error.log"
    done = run("--log-file", str(missing), "support.testapp:app")
    assert done.returncode == 78
    assert done.stderr == f"procmgr: error: log_file: cannot open {missing}: No such file or directory\n"


def test_files_that_cannot_be_opened_anew_stay_in_use(serve, tmp_path):
    room = tmp_path / "room"
    room.mkdir()
    error = room / "error.log"
    daemon = serve("--log-file", str(error))
    room.rename(tmp_path / "moved")
    daemon.signal(signal.SIGUSR1)
    moved = tmp_path / "moved" / "error.log"
    daemon.until(lambda: "the log files stay as they are" in moved.read_text(), "the old file says why")
    assert daemon.get()


def test_a_log_file_beside_a_log_configuration_is_refused(tmp_path):
    config = tmp_path / "log.json"
    config.write_text('{"version": 1}')
    done = run("--log-file", "x.log", "--log-config", str(config), "support.testapp:app")
    assert done.returncode == 2
    assert "exclude each other" in done.stderr


def test_a_changed_log_level_holds_for_the_access_lines_of_workers_that_serve_already(serve, write_app, tmp_path):
    config = tmp_path / "site.toml"
    config.write_text('log_level = "info"\n')
    source = "from support.testapp import app\n"
    daemon = serve("-c", str(config), "--keep-alive", "60", "--app-dir", str(tmp_path), app=write_app(source))
    connection = daemon.connect()  # on which the first worker answers for as long as it lasts
    write_app(f"from support.stage import hold\nhold('importing')\n{source}")

    def logs(path):
        for each in (path, "/then"):  # the line of one is written before the next is answered
            assert connection.get(each)[0].status == 200
        return f'"GET {path} ' in daemon.output

    assert logs("/before")
    config.write_text('log_level = "warning"\n')
    daemon.signal(signal.SIGHUP)
    daemon.probe.wait("importing")
    daemon.until(lambda: not logs(f"/quiet/{daemon.output.count('/quiet')}"), "the old worker logs no request any more")
    config.write_text('log_level = "info"\n')
    daemon.signal(signal.SIGHUP)
    daemon.until(lambda: logs("/again"), "it does again")


def test_access_lines_have_the_format_asked_for_and_another_after_a_reload(serve, write_app, tmp_path):
    config, access = tmp_path / "site.toml", tmp_path / "access.log"

    def configure(text):
        config.write_text(f'access_log_file = "{access}"\n{text}\n')

    configure('access_log_format = "combined"\naccess_log_exclude = "/healthz"')
    app = write_app("from support.testapp import app\n")
    daemon = serve("-c", str(config), "--app-dir", str(tmp_path), app=app)
    assert daemon.get("/healthz")
    assert daemon.get("/one?two")
    daemon.until(access.read_text, "there is a line")
    assert re.fullmatch(r'127\.0\.0\.1 - - \[.+\] "GET /one\?two HTTP/1.1" 200 \d+ "-" "[^"]*"\n', access.read_text())
    configure('access_log_format = "json"')
    daemon.signal(signal.SIGHUP)

    def last():
        assert daemon.get("/three")
        return access.read_text().splitlines()[-1]

    daemon.until(lambda: last().startswith("{"), "the new workers write JSON")
    line = json.loads(last())
    assert (line["target"], line["status"]) == ("/three", 200)
    assert line["response_bytes"] > 0


def test_a_format_with_an_unknown_atom_is_one_clear_line(tmp_path):
    done = run("--access-log-format", "%(h)s %(x)s", "support.testapp:app")
    assert done.returncode == 2
    assert "no atom %(x)s; there are h l u" in done.stderr
    assert "Traceback" not in done.stderr
