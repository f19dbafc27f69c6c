"""Shared studies: no trial is lost or repeated, and the budget is never exceeded."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from adaptive_opt.errors import StudyError
from adaptive_opt.search.storage import Storage
from adaptive_opt.search.tune import MAX_CONSECUTIVE_FAILURES, Outcome, search
from tests.conftest import PROJECT, install_from_debian

from .workers import SPACE, bowl, make_search


def sqlite(tmp_path, name="studies.db"):
    return Storage(f"sqlite:///{tmp_path}/{name}")


def postgresql_programs():
    def find():
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        return found[-1].parent if found else None

    if find() is None:
        install_from_debian("postgresql")
    return find()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """URL of a PostgreSQL server on the loopback interface, with a password."""
    programs = postgresql_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed, and apt-get cannot install it here")
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install '.[postgresql]'")
    folder = tmp_path_factory.mktemp("postgresql")
    as_user = []
    if os.geteuid() == 0:  # the server refuses to run as root
        if shutil.which("runuser") is None:
            pytest.skip("PostgreSQL does not run as root, and there is no runuser here")
        as_user = ["runuser", "-u", "postgres", "--"]
        for parent in [folder, *folder.parents[:3]]:
            if str(parent).startswith("/tmp/"):  # noqa: S108
                parent.chmod(0o755)
        shutil.chown(folder, "postgres")
    secret = folder / "secret"
    secret.write_text("s3cret-word")
    secret.chmod(0o644)
    data, port = folder / "data", 20000 + os.getpid() % 20000

    def do(*command):
        subprocess.run([*as_user, *map(str, command)], check=True, capture_output=True, cwd="/")

    do(programs / "initdb", "-D", data, "-U", "tuner", "--auth=scram-sha-256",
       f"--pwfile={secret}")  # fmt: skip
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c fsync=off -k {folder}"
    do(programs / "pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", options, "start")
    try:
        yield f"postgresql://tuner:s3cret-word@127.0.0.1:{port}/postgres"
    finally:
        do(programs / "pg_ctl", "-D", data, "-W", "-m", "immediate", "stop")


def new_database(server, tmp_path):
    """URL of a new database on the server."""
    import psycopg

    name = f"d{abs(hash(str(tmp_path)))}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return server.rsplit("/", 1)[0] + f"/{name}"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/shared.db"
    return new_database(request.getfixturevalue("server"), tmp_path)


def start_worker(url, folder, seconds, *extra):
    command = [sys.executable, "-m", "tests.search.workers", url, str(folder), str(seconds)]
    return subprocess.Popen([*command, *extra], cwd=PROJECT)


def results(folder):
    return [json.loads(f.read_text()) for f in sorted(folder.glob("result.*"))]


def trained(folder):
    return [line for f in folder.glob("trained.*") for line in f.read_text().split()]


def test_two_workers_share_a_study(url, tmp_path):
    workers = [start_worker(url, tmp_path, 0.15) for _ in range(2)]
    assert [w.wait(120) for w in workers] == [0, 0]
    a, b = results(tmp_path)
    assert a == b
    assert a["trials"] == {"complete": 20}
    assert a["spent"] == 200
    x, y = (pd.read_parquet(f) for f in sorted(tmp_path.glob("trials.*")))
    pd.testing.assert_frame_equal(x, y)
    done = trained(tmp_path)
    assert len(done) == len(set(done)) == 20  # no configuration trained twice
    assert {float(d) for d in done} == set(x["x"])
    assert len(list(tmp_path.glob("trained.*"))) == 2  # both workers trained


def test_trial_of_killed_worker_is_repeated(url, tmp_path):
    victim = start_worker(url, tmp_path, 0.05, "hang")
    while not (tmp_path / "hangs").exists():
        time.sleep(0.01)
    survivor = start_worker(url, tmp_path, 0.05)
    time.sleep(1.0)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert survivor.wait(120) == 0
    (best,) = results(tmp_path)
    assert best["trials"] == {"complete": 20}
    assert best["spent"] == 200
    table = pd.read_parquet(next(iter(tmp_path.glob("trials.*"))))
    again = table[table["lost"] > 0]
    hung = json.loads((tmp_path / "hangs").read_text())
    assert sorted(hung) == sorted(again["x"])
    assert len(trained(tmp_path)) == len(set(trained(tmp_path))) == 20


def test_same_seed_gives_same_trials(tmp_path):
    tables = [search(make_search(), sqlite(tmp_path, f"{i}.db"))[0] for i in range(2)]
    pd.testing.assert_frame_equal(*tables)
    other = search(make_search(seed=1), sqlite(tmp_path, "other.db"))[0]
    assert not set(other["x"]) & set(tables[0]["x"])


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp"])
def test_samplers_find_the_minimum(tmp_path, sampler):
    wanted = make_search(sampler=sampler, budget=400.0)
    trials, best = search(wanted, sqlite(tmp_path))
    assert list(trials["drawn"][:8]) == ["at random"] * 8
    assert set(trials["drawn"][8:]) == {"at random" if sampler == "random" else sampler}
    assert best["value"] == trials["value"].min()
    assert best["values"] == trials.loc[trials["value"].idxmin(), ["x", "y"]].to_dict()
    assert best["value"] < (0.2 if sampler == "random" else 0.05)


def test_second_search_spends_the_rest_of_the_budget(tmp_path):
    storage = sqlite(tmp_path)
    calls = []

    def train(configurations, report):
        calls.append(len(configurations))
        return bowl(configurations, report)

    first, _ = search(make_search(train, budget=95.0), storage)
    assert len(first) == sum(calls) == 9  # the rest of the budget is below the cost of a tenth
    assert len(search(make_search(train, budget=95.0), storage)[0]) == 9
    assert sum(calls) == 9
    second, best = search(make_search(train), storage)
    assert sum(calls) == len(second) == 20
    assert best["spent"] == 200
    pd.testing.assert_frame_equal(first, second[:9])
    whole, _ = search(make_search(), sqlite(tmp_path, "whole.db"))
    assert set(whole["x"][:8]) == set(second["x"][:8])


@pytest.mark.parametrize(
    "change",
    [
        {"space": type(SPACE)({**SPACE, "x": SPACE["y"]})},
        {"depends_on": {"objective": "valid_loss"}},
        {"depends_on": {"objective": "train_loss", "code": "other"}},
        {"seed": 1},
        {"sampler": "gp"},
        {"task": "rr_cond15099"},
        {"scale": "paper"},
    ],
)
def test_changed_search_makes_a_new_study(tmp_path, change):
    storage = sqlite(tmp_path)
    search(make_search(), storage)
    calls = []

    def train(configurations, report):
        calls.append(configurations)
        return bowl(configurations, report)

    search(make_search(train, **change), storage)
    assert sum(map(len, calls)) == 20
    assert make_search(**change).name != make_search().name == make_search(budget=1.0).name


def test_failed_diverged_and_pruned_trials_are_recorded(tmp_path):
    def train(configurations, report):
        outcomes = bowl(configurations, report)
        (c,) = configurations
        number = len(seen)
        seen.append(c)
        if number == 3:
            raise RuntimeError("out of memory\nand more")
        if number == 5:
            return [Outcome(float("inf"), "diverged", 4.0, 0.0, 1, "at iteration 7")]
        if number == 7:
            report(1, 2.5)
            return [Outcome(2.5, "pruned", 2.0, 0.0, 1, "stopped by Hyperband after epoch 1")]
        return outcomes

    seen = []
    trials, best = search(make_search(train, batch=1), sqlite(tmp_path))
    by = trials.set_index("number")
    assert by.loc[3, ["outcome", "reason"]].tolist() == ["failed", "RuntimeError: out of memory"]
    assert by.loc[5, ["outcome", "reason"]].tolist() == ["diverged", "at iteration 7"]
    assert by.loc[7, "outcome"] == "pruned"
    assert by.loc[7, "value"] == 2.5
    assert by.loc[5, "value"] == np.inf
    # Other trials use the budget that the pruned and diverged ones left.
    assert best["trials"] == {"complete": 18, "failed": 1, "diverged": 1, "pruned": 1}
    assert best["spent"] == 18 * 10 + 10 + 4 + 2
    assert search(make_search(train, batch=1), sqlite(tmp_path))[1] == best


def test_search_ends_after_consecutive_failures(tmp_path):
    calls = []

    def train(configurations, report):
        calls.append(configurations)
        raise RuntimeError("no device")

    trials, best = search(make_search(train), sqlite(tmp_path))
    assert len(calls) == MAX_CONSECUTIVE_FAILURES
    assert not best["found"]
    assert "no trial completed" in best["failed"]
    assert "RuntimeError: no device" in best["failed"]
    assert set(trials["outcome"]) == {"failed"}


def test_interrupted_trials_are_repeated_at_once(tmp_path):
    calls = []

    def train(configurations, report):
        calls.append([c["x"] for c in configurations])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return bowl(configurations, report)

    storage = sqlite(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        search(make_search(train), storage)
    begun = time.monotonic()
    _, best = search(make_search(train), storage)
    assert time.monotonic() - begun < 5  # does not wait until heartbeats are overdue
    assert calls[3] == calls[2]
    assert best["trials"] == {"complete": 20}
    assert best["spent"] == 200


def test_worker_that_died_before_its_first_heartbeat_is_detected(tmp_path):
    import optuna

    storage, wanted = sqlite(tmp_path), make_search()
    study = optuna.create_study(study_name=wanted.name, storage=storage.open(1))
    study.ask(SPACE.distributions())  # a running trial without a heartbeat
    trials, best = search(wanted, storage)
    assert best["trials"] == {"complete": 20}
    assert trials["lost"].tolist() == [1] + [0] * 19


def search_killed_at_write(number, wanted, storage):
    """Run a search in a process that dies at its given write to the database; its exit code."""
    import sqlalchemy

    child = os.fork()
    if not child:
        left = iter(range(number, -1, -1))

        @sqlalchemy.event.listens_for(sqlalchemy.engine.Engine, "before_cursor_execute")
        def die(connection, cursor, statement, *_):
            if statement.startswith(("INSERT", "UPDATE", "DELETE")) and not next(left):
                os._exit(9)

        try:
            search(wanted, storage)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize(
    ("number", "lost"), [(3, 0), (10, 2), (14, 0), (43, 1), (46, 1), (50, 2), (60, 1), (66, 2)]
)
def test_killed_search_ends_with_the_same_trials(tmp_path, number, lost, monkeypatch):
    """Trials are identical if the worker dies in the random start, or while sampling a batch."""
    monkeypatch.setattr("adaptive_opt.search.storage.MISSED_HEARTBEATS", 1)
    columns = ["number", "x", "y", "value", "drawn", "outcome"]
    wanted = make_search()
    uninterrupted, best = search(wanted, sqlite(tmp_path, "whole.db"))
    storage = sqlite(tmp_path)
    assert search_killed_at_write(number, wanted, storage) == 9
    trials, again = search(wanted, storage)
    assert trials["lost"].sum() == lost
    pd.testing.assert_frame_equal(trials[columns], uninterrupted[columns])
    assert {k: v for k, v in again.items() if k != "seconds"} == {
        k: v for k, v in best.items() if k != "seconds"
    }


def test_trial_fails_after_too_many_retries(tmp_path, monkeypatch):
    monkeypatch.setattr("adaptive_opt.search.storage.MISSED_HEARTBEATS", 1)
    wanted, storage = make_search(retries=0), sqlite(tmp_path)
    assert search_killed_at_write(10, wanted, storage) == 9
    trials, best = search(wanted, storage)
    assert best["trials"]["failed"] >= 1
    assert set(trials.loc[trials["outcome"] == "failed", "reason"]) == {"its worker died"}
    assert best["spent"] == 200


# Damage that SQLite does not detect.


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        (
            "UPDATE trial_values SET value = value + 1e-9 WHERE trial_id = 5",
            "trial 4 does not match",
        ),
        ("UPDATE trial_params SET param_value = 0.5 WHERE trial_id = 6", "trial 5 does not match"),
        ("UPDATE trials SET state = 'FAIK' WHERE trial_id = 3", "LookupError"),
        ("UPDATE trials SET number = 30 WHERE trial_id = 3", "a trial is missing"),
        ("DELETE FROM trials WHERE trial_id = 3", "a trial is missing"),
        ("DELETE FROM trial_user_attributes WHERE trial_id = 3", "trial 2 does not match"),
        ("UPDATE trial_params SET distribution_json = 'x' WHERE trial_id = 3", "JSONDecodeError"),
    ],
)
def test_damaged_trial_is_reported(tmp_path, statement, message):
    search(make_search(), sqlite(tmp_path))
    with sqlite3.connect(tmp_path / "studies.db") as connection:
        connection.execute(statement)
    with pytest.raises(StudyError, match=message) as raised:
        search(make_search(), sqlite(tmp_path))
    assert f"{tmp_path}/studies.db" in str(raised.value)
    assert "move the database away" in str(raised.value)


def test_search_with_only_diverged_trials_fails(tmp_path):
    def train(configurations, report):
        del report
        return [Outcome(float("inf"), "diverged", 10.0, 0.0, 0) for _ in configurations]

    trials, best = search(make_search(train), sqlite(tmp_path))
    assert (best["found"], best["values"]) == (False, {})
    assert best["failed"] == "no trial completed (20 diverged)"
    assert len(trials) == 20


def test_space_is_widened_if_best_value_is_at_a_bound(tmp_path):
    space = type(SPACE)(SPACE, x=type(SPACE["x"])(0.2, 1.0))  # the minimum is at 0.1

    def steep(configurations, report):
        del report
        return [Outcome(c["x"], "complete", 10.0, 0.0, 1) for c in configurations]

    storage = sqlite(tmp_path)
    wanted = make_search(steep, space=space, budget=400.0)
    _, best = search(wanted, storage)
    assert best["edges"] == {"x": "low"}
    assert best["widened"] == 0
    _, wider = search(wanted, storage, widen=1)
    assert wider["widened"] == 1
    assert wider["value"] < 0.2
    assert wider["space"]["x"][0] < 0.2


def test_hyperband_stops_poor_trials_early(tmp_path):
    def train(configurations, report):
        ((_, x), _) = configurations[0].items()
        for epoch in range(1, 9):
            if report(epoch, x + 1 / epoch) and epoch < 8:
                return [Outcome(x, "pruned", 10.0 * epoch / 8, 0.0, epoch, "stopped")]
        return [Outcome(x, "complete", 10.0, 0.0, 8)]

    wanted = make_search(train, batch=1, pruner="hyperband", epochs=8)
    trials, best = search(wanted, sqlite(tmp_path))
    pruned = trials[trials["outcome"] == "pruned"]
    assert len(pruned) > 5
    assert len(trials) > 20
    assert set(pruned["epochs"]) <= {1, 2, 4}
    assert 190 < best["spent"] <= 200
    pd.testing.assert_frame_equal(trials, search(wanted, sqlite(tmp_path, "again.db"))[0])


def test_budget_below_the_cost_of_a_trial(tmp_path):
    with pytest.raises(StudyError, match=r"a trial costs 10 gradient-equivalents, the budget"):
        search(make_search(budget=9.0), sqlite(tmp_path))


# Unusable databases.


def not_sqlite(tmp_path):
    (tmp_path / "bad.db").write_bytes(b"not a database at all" * 100)
    return f"sqlite:///{tmp_path}/bad.db"


def corrupted(tmp_path):
    """A database of studies with all pages after the first overwritten."""
    search(make_search(), Storage(f"sqlite:///{tmp_path}/source.db"))
    with sqlite3.connect(tmp_path / "source.db") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for side in ("source.db-wal", "source.db-shm"):
        (tmp_path / side).unlink(missing_ok=True)
    content = bytearray((tmp_path / "source.db").read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    (tmp_path / "copy.db").write_bytes(content)
    return f"sqlite:///{tmp_path}/copy.db"


def file_as_folder(tmp_path):
    (tmp_path / "file").write_text("")
    return f"sqlite:///{tmp_path}/file/studies.db"


def other_schema(tmp_path):
    with sqlite3.connect(tmp_path / "other.db") as connection:
        connection.execute("CREATE TABLE studies (something TEXT)")
    return f"sqlite:///{tmp_path}/other.db"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (not_sqlite, "the file is damaged or not a SQLite database; move it away"),
        (corrupted, "damaged; move it away"),
        (file_as_folder, "file"),
        (other_schema, "the file is not a database of studies; move it away"),
        (lambda _: "nonsense", "is not a supported database URL"),
        (lambda _: "mysql://u:p@localhost/d", "is not supported"),
        (lambda _: "oracle9://u:p@localhost/d", "is not a supported database URL"),
        (lambda _: "postgresql://u:hidden@127.0.0.1:1/d", "no server answers"),
        (lambda _: "postgresql://u:hidden@no-such-host.invalid/d", "the host is unknown"),
    ],
)
def test_unusable_databases_give_one_sentence(tmp_path, make, message):
    with pytest.raises(StudyError) as raised:
        Storage(make(tmp_path)).check()
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "hidden" not in str(raised.value)


def test_read_only_database(tmp_path):
    search(make_search(), Storage(f"sqlite:///{tmp_path}/kept.db"))
    with sqlite3.connect(tmp_path / "kept.db") as connection:
        connection.execute(f"VACUUM INTO '{tmp_path}/copy.db'")
    with pytest.raises(StudyError, match="the studies cannot be written; make the file"):
        Storage(f"sqlite:///file:{tmp_path}/copy.db?mode=ro&uri=true").check()


def test_wrong_password_and_unknown_database_on_a_server(server):
    wrong = server.replace("s3cret-word", "guess-word")
    with pytest.raises(StudyError, match="the server refused the user or the password") as raised:
        Storage(wrong).check()
    assert "guess" not in str(raised.value)
    assert "s3cret" not in repr(Storage(server))
    with pytest.raises(StudyError, match="no such database or user"):
        Storage(server.rsplit("/", 1)[0] + "/nowhere").check()
    Storage(server).check()


def test_read_only_server(server, tmp_path):
    import psycopg

    url = new_database(server, tmp_path)
    Storage(url).check()
    with psycopg.connect(server, autocommit=True) as connection:
        name = url.rsplit("/", 1)[1]
        connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    from adaptive_opt.search import storage

    storage._open.cache_clear()
    with pytest.raises(StudyError, match="the studies cannot be written"):
        Storage(url).check()
