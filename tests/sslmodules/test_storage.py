"""Files that are whole or not there."""

import contextlib
import os
import resource
import signal
import subprocess

import pytest

from sslmodules import storage
from sslmodules.storage import StorageError, atomic_path, atomic_write, check_writable, remove_unfinished


def write(path, data):
    with atomic_write(path) as file:
        file.write(data)


@pytest.fixture
def small_disk(tmp_path):
    """A filesystem of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a filesystem needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_file_takes_the_place_of_another_and_leaves_nothing_beside_it(tmp_path):
    write(tmp_path / "new" / "a", b"one")
    write(tmp_path / "new" / "a", b"two")
    assert (tmp_path / "new" / "a").read_bytes() == b"two"
    assert os.listdir(tmp_path / "new") == ["a"]


def test_the_mode_is_that_of_any_new_file(tmp_path):
    write(tmp_path / "a", b"")
    (tmp_path / "b").touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_until_the_block_ends_the_old_file_is_there(tmp_path):
    write(tmp_path / "a", b"old")
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "a") as file:
        file.write(b"new")
        file.flush()
        assert (tmp_path / "a").read_bytes() == b"old"
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_what_opens_a_path_by_itself_replaces_a_file_whole_or_not_at_all(small_disk):
    target = small_disk / "new" / "a"
    with atomic_path(target) as path:
        path.write_bytes(b"old")
        assert not target.exists()
    with pytest.raises(StorageError, match=r"a cannot be written \(No space left on device\).* is whole"):  # noqa: SIM117
        with atomic_path(target) as path:
            path.write_bytes(b"x" * 2_000_000)
    with pytest.raises(KeyError), atomic_path(target) as path:
        path.write_bytes(b"new")
        raise KeyError
    assert target.read_bytes() == b"old"
    assert os.listdir(small_disk / "new") == ["a"]


def test_bytes_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    happened = []
    monkeypatch.setattr(os, "fsync", lambda fd: happened.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (happened.append("replace"), replace(a, b)))
    write(tmp_path / "a", b"x")
    assert happened[0].startswith(".a.")
    assert happened[1:] == ["replace", tmp_path.name]


def test_a_full_disk_is_one_sentence_and_the_old_file_stays(small_disk):
    write(small_disk / "a", b"x" * 600_000)
    with pytest.raises(StorageError) as raised, atomic_write(small_disk / "a", needed=700_000) as file:
        file.write(b"y" * 700_000)
    free = 1024**2 - 147 * 4096  # 600,000 bytes are 147 pages
    assert str(raised.value) == (
        f"{small_disk}/a cannot be written (No space left on device): 700,000 bytes are needed and {free:,} bytes are "
        "free there; the file that was there before is whole"
    )
    assert os.listdir(small_disk) == ["a"]
    assert (small_disk / "a").read_bytes() == b"x" * 600_000


def test_a_limit_on_the_size_of_files_is_told(tmp_path):
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write(tmp_path / "a", b"x" * 20_000)
        except StorageError as error:
            os._exit("File too large" in str(error) and not os.listdir(tmp_path))
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


def test_what_can_be_known_before_is_said_before(small_disk):
    check_writable(small_disk / "new" / "a", 900_000)
    assert not os.listdir(small_disk)
    with pytest.raises(StorageError, match=r"too little space\): 2,000,000 bytes are needed and 1,048,576 bytes"):
        check_writable(small_disk / "new" / "a", 2_000_000)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(StorageError, match=f"^{small_disk}/new/a cannot be written .Read-only file system."):
        check_writable(small_disk / "new" / "a")


def test_a_folder_or_a_file_in_the_way_is_told(tmp_path):
    with pytest.raises(StorageError, match="it is a folder"):
        check_writable(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="Not a directory"):
        check_writable(tmp_path / "file" / "a")
    with pytest.raises(StorageError, match=r"File exists|Not a directory"):
        write(tmp_path / "file" / "a", b"")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_missing_permission_is_told(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="Permission denied"):
        check_writable(tmp_path / "a")


@pytest.fixture
def writers():
    """Start processes that have begun to write a file, and end them after the test."""
    pids = []

    def start(path):
        begun, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            with atomic_write(path) as file:
                file.write(b"x")
                os.write(tell, b"x")
                signal.pause()
        pids.append(pid)
        os.read(begun, 1)
        return pid

    yield start
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def test_what_a_killed_process_leaves_is_removed_and_what_a_live_one_writes_is_not(tmp_path, writers):
    killed, _ = (writers(tmp_path / name) for name in ("killed", "alive"))
    assert not remove_unfinished(tmp_path)
    os.kill(killed, signal.SIGKILL)
    os.waitid(os.P_PID, killed, os.WEXITED | os.WNOWAIT)
    (tmp_path / "mine.unfinished").touch()
    [removed] = remove_unfinished(tmp_path)
    assert removed.name.startswith(".killed.")
    assert sorted(p.split(".")[1] for p in os.listdir(tmp_path)) == ["alive", "unfinished"]


def test_a_file_that_is_tidied_up_before_it_is_locked_is_made_anew(tmp_path, monkeypatch):
    flock, times = storage.fcntl.flock, []

    def late(file, how):
        times.append(how)
        if len(times) == 1:
            next(tmp_path.iterdir()).unlink()
        flock(file, how)

    monkeypatch.setattr(storage.fcntl, "flock", late)
    write(tmp_path / "a", b"x")
    assert len(times) == 2
    assert os.listdir(tmp_path) == ["a"]


def test_a_folder_that_is_not_there_has_nothing_to_remove(tmp_path):
    assert remove_unfinished(tmp_path / "none") == []
