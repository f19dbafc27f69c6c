"""Passwords are used, and written nowhere: not in logs, MLflow, results or records that wait."""

from tests.project.conftest import kedro
from tests.search.test_study import server  # noqa: F401  a fixture

NODES = "rr_synthesis.rr_cond29.make,tuning.rr_cond29.sgdm.search,tuning.rr_cond29.sgdm.draw"
SMALL = ",".join(f"tuning.tasks.rr_cond29.{k}=2" for k in ("budget", "epochs", "startup"))
SMALL += ",tracking.wait_seconds=1"


def holding(folder, word):
    """Files under a folder that hold a word in any of the ways that text is written."""
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


def test_the_password_of_a_database_and_of_a_tracker(project, server):  # noqa: F811
    """Everything that the run wrote, in the project's folder and on the terminal."""
    tracker = "http://user:tr4cker-word@127.0.0.1:1"
    done, said = run(project, server, tracker)
    assert done.returncode == 0, said
    assert "rr_cond29, sgdm: best" in said
    assert "has not taken" in said  # the tracker was asked, and its records wait
    import psycopg

    with psycopg.connect(server) as connection:  # it is the one that was used
        assert connection.execute("SELECT count(*) FROM trials").fetchone()[0] >= 2
    for word in ("s3cret-word", "tr4cker-word"):
        assert word not in said
        assert holding(project, word) == []


def test_the_password_where_nobody_answers(project):
    done, said = run(project, "postgresql://tuner:s3cret-word@127.0.0.1:1/d", "")
    assert done.returncode == 1
    assert "no server answers there" in said
    assert "s3cret-word" not in said
    assert holding(project, "s3cret-word") == []
