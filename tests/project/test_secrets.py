"""Passwords appear in no log, MLflow record, result or unsent record."""

import http.server
import threading

import pytest

from adaptive_opt.errors import StudyError
from adaptive_opt.search.storage import Storage
from tests.project.conftest import kedro
from tests.search.test_study import server  # noqa: F401  a fixture

NODES = "rr_synthesis.rr_cond29.make,tuning.rr_cond29.sgdm.search,tuning.rr_cond29.sgdm.draw"
SMALL = ",".join(f"tuning.tasks.rr_cond29.{k}=2" for k in ("budget", "epochs", "startup"))
SMALL += ",tracking.wait_seconds=1"


def holding(folder, word):
    """Return the files in a folder that contain a word in any encoding."""
    words = [word.encode(e) for e in ("utf-8", "utf-16-le")]
    files = [f for f in folder.rglob("*") if f.is_file()]
    return [f for f in files if any(w in f.read_bytes() for w in words)]


def run(project, url, tracker):
    secret = project / "conf" / "local" / "credentials.yml"
    secret.parent.mkdir(exist_ok=True)
    secret.write_text(f"tuning_storage: {{url: '{url}'}}\n")
    try:
        assert holding(project, "s3cret-word") == [secret]
        done = kedro(
            project, "run", f"--nodes={NODES}", f"--params={SMALL}", MLFLOW_TRACKING_URI=tracker
        )
    finally:
        secret.unlink()
    return done, done.stdout + done.stderr


class HangsUp(http.server.BaseHTTPRequestHandler):
    """Reports that it is healthy, and aborts every other request."""

    def do_GET(self):
        if self.path == "/health":
            self.send_response(200)
            self.end_headers()
        else:
            self.connection.close()

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_):
        pass


@pytest.fixture(params=["nobody", "hangs up"])
def tracker(request):
    """A server that does not exist, or whose failing requests MLflow quotes with the password."""
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), HangsUp)
    port = 1 if request.param == "nobody" else made.server_port
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://user:tr4cker-word@127.0.0.1:{port}"
    made.shutdown()
    made.server_close()


def test_the_password_of_a_database_and_of_a_tracker(project, server, tracker):  # noqa: F811
    """No file in the project's folder and no output contains a password."""
    done, said = run(project, server, tracker)
    assert done.returncode == 0, said
    assert "rr_cond29, sgdm: best" in said
    # The tracker was contacted, and its records are unsent.
    assert "does not have this run yet" in said
    import psycopg

    with psycopg.connect(server) as connection:  # this database was used
        assert connection.execute("SELECT count(*) FROM trials").fetchone()[0] >= 2
    for word in ("s3cret-word", "tr4cker-word"):
        assert word not in said
        assert holding(project, word) == []


def test_a_password_in_the_wrong_place():
    """An unescaped @ splits a password; a query can contain one too."""
    torn = Storage("postgresql://me:two@s3cret-word@127.0.0.1:1/d")
    with pytest.raises(StudyError, match="write an @ in the password as %40") as raised:
        torn.check()
    assert "s3cret-word" not in f"{raised.value} {torn}"
    asked = Storage("postgresql://me@127.0.0.1:1/d?password=s3cret-word")
    with pytest.raises(StudyError, match="no server answers") as raised:
        asked.check()
    assert "s3cret-word" not in f"{raised.value} {asked}"


def test_the_password_where_nobody_answers(project):
    done, said = run(project, "postgresql://tuner:s3cret-word@127.0.0.1:1/d", "")
    assert done.returncode == 1
    assert "no server answers" in said
    assert "s3cret-word" not in said
    assert holding(project, "s3cret-word") == []
