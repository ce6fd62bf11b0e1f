"""Replacing files as careful editors do, and what processes leave behind that die while they write."""

import errno
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from filelock import FileLock

import infgen_rt
from infgen_rt.common.folders import write_cached
from infgen_rt.errors import OutputError
from infgen_rt.geometry.shapes import Size
from infgen_rt.writers import check_output, replacing, staging
from infgen_rt.writers.staging import clean, staged

from . import tiny

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links, modes and signals are POSIX")
PNG = b"\x89PNG"


@pytest.fixture
def picture(decoder: infgen_rt.Decoder) -> infgen_rt.Picture:
    return decoder.picture(tiny.random_latent(4, 4))


def test_a_link_stays_one_and_what_it_leads_to_is_replaced(tmp_path: Path, picture: infgen_rt.Picture) -> None:
    real, link = tmp_path / "elsewhere" / "kept.version-2", tmp_path / "a.png"
    real.parent.mkdir()
    real.write_text("precious")
    link.symlink_to("elsewhere/kept.version-2")
    with pytest.raises(OutputError, match="exists"):
        picture.save(link)
    picture.save(link, force=True)
    assert os.readlink(link) == "elsewhere/kept.version-2" and real.read_bytes().startswith(PNG)
    assert [path.name for path in real.parent.iterdir()] == [real.name]


def test_a_link_to_nothing_is_followed_if_its_folder_exists(tmp_path: Path, picture: infgen_rt.Picture) -> None:
    (tmp_path / "a.png").symlink_to("b.png")
    picture.save(tmp_path / "a.png")
    assert (tmp_path / "a.png").is_symlink() and (tmp_path / "b.png").read_bytes().startswith(PNG)
    (tmp_path / "c.png").symlink_to("none/d.png")
    with pytest.raises(OutputError, match="there is no such folder"):
        picture.save(tmp_path / "c.png", force=True)
    (tmp_path / "e.png").symlink_to("e.png")
    with pytest.raises(OutputError, match="leads to itself: remove it"):
        picture.save(tmp_path / "e.png", force=True)


def test_a_pyramid_is_not_written_through_links(tmp_path: Path, picture: infgen_rt.Picture) -> None:
    (tmp_path / "a.dzi").symlink_to("b.dzi")
    with pytest.raises(OutputError, match="side by side: pass where it leads"):
        picture.save(tmp_path / "a.dzi", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.dzi"]


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".dzi"])
@pytest.mark.parametrize("mode", [0o600, 0o644, 0o444, 0o664])
def test_the_mode_is_kept(tmp_path: Path, picture: infgen_rt.Picture, suffix: str, mode: int) -> None:
    path = tmp_path / f"a{suffix}"
    path.touch()
    path.chmod(mode)
    picture.save(path, force=True)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_owner_and_extended_attributes_are_kept(tmp_path: Path, picture: infgen_rt.Picture) -> None:
    path = tmp_path / "a.png"
    path.touch()
    try:
        os.setxattr(path, "user.note", b"mine")
        os.chown(path, 12345, 23456)
    except (AttributeError, OSError) as error:
        pytest.skip(f"not possible here: {error}")
    picture.save(path, force=True)
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 23456) and os.getxattr(path, "user.note") == b"mine"


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.dzi"])
def test_a_picture_is_where_its_name_pointed_when_writing_began(
    tmp_path: Path, picture: infgen_rt.Picture, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    monkeypatch.chdir(tmp_path / "one")
    picture.save(name, progress=lambda _: os.chdir(tmp_path / "two"))  # as another thread may do
    assert (tmp_path / "one" / name).exists() and list((tmp_path / "two").iterdir()) == []
    assert all(not path.name.startswith(".") for path in (tmp_path / "one").iterdir())


@pytest.mark.parametrize("kind", ["named pipe", "socket", "device"])
@pytest.mark.parametrize("linked", [False, True])
def test_what_is_no_file_is_refused(
    tmp_path: Path, picture: infgen_rt.Picture, monkeypatch: pytest.MonkeyPatch, kind: str, linked: bool
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    path = Path("a.png")
    if kind == "named pipe":
        os.mkfifo(path)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(str(path))
    else:
        path.symlink_to("/dev/null")
    if linked:
        Path("b.png").symlink_to(path)
    before = path.stat()
    with pytest.raises(OutputError, match=f"is a {kind}, which a picture cannot replace"):
        picture.save("b.png" if linked else path, force=True)
    assert path.stat().st_ino == before.st_ino and path.stat().st_mode == before.st_mode


def killed(folder: Path, bundle: Path) -> Path:
    """What a process leaves that is killed while it writes."""
    code = """
import os, signal, sys, infgen_rt
from tests.rt import tiny
def kill(step):
    if step.done == 2:
        os.kill(os.getpid(), signal.SIGKILL)
infgen_rt.open(sys.argv[1]).picture(tiny.random_latent(9, 12)).save(sys.argv[2], force=True, progress=kill)
"""
    done = subprocess.run([sys.executable, "-c", code, str(bundle), str(folder / "old.png")], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = folder.glob(".old.png.*.part")
    return left


def test_leftovers_of_the_dead_are_removed_and_nothing_else(
    tmp_path: Path, bundle: Path, picture: infgen_rt.Picture
) -> None:
    killed(tmp_path, bundle)
    others = [tmp_path / ".mine.part", tmp_path / ".a.png.01234567.part", tmp_path / ".b.png.89abcdef.part"]
    for other in others[:2]:
        other.mkdir()
    others[2].write_text("a file")
    picture.save(tmp_path / "new.png")
    assert sorted(tmp_path.iterdir()) == sorted([*others, tmp_path / "new.png"])


def test_a_folder_that_is_being_written_in_stays(tmp_path: Path, picture: infgen_rt.Picture) -> None:
    with staged([tmp_path / "a.png"]) as folder:
        (folder / "a.png").write_text("half of it")
        picture.save(tmp_path / "b.png")
        code = "import sys; from pathlib import Path; from infgen_rt.writers import staging; "
        subprocess.run([sys.executable, "-c", f"{code}staging.clean(Path(sys.argv[1]))", str(tmp_path)], check=True)
        assert (folder / "a.png").read_text() == "half of it"
        (folder / "a.png").write_text("all of it")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_the_only_copy_of_what_was_to_be_replaced_stays(tmp_path: Path, bundle: Path) -> None:
    """Killed while the two parts of a pyramid change places."""
    left = killed(tmp_path, bundle)
    (left / "replaced").mkdir()
    (left / "replaced" / "old.dzi").write_text("precious")
    clean(tmp_path)
    assert (left / "replaced" / "old.dzi").read_text() == "precious"
    (tmp_path / "old.dzi").write_text("new")
    clean(tmp_path)
    assert not left.exists()


def test_a_folder_that_another_process_takes_for_a_leftover_is_not_used(
    tmp_path: Path, picture: infgen_rt.Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process locks it between the moments in which it is made and is locked here, and then removes it."""
    taken: list[FileLock] = []
    make = Path.mkdir

    def made(path: Path, *arguments: int, **options: bool) -> None:
        make(path, *arguments, **options)
        if not taken and path.name.endswith(".part"):
            taken.append(FileLock(path / "writing.lock"))
            taken[0].acquire(timeout=0)

    monkeypatch.setattr(Path, "mkdir", made)
    with staged([tmp_path / "a.png"]) as folder:
        other = Path(taken[0].lock_file).parent
        assert other != folder
        taken[0].release()
        shutil.rmtree(other)
        (folder / "a.png").write_text("all of it")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_the_cache_loses_what_the_dead_left_and_nothing_that_is_being_written(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from infgen_rt.common.folders import write_cached
write = Path.write_bytes
def slow(path, content):
    write(path, content[:1])
    if sys.argv[2] == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    print("writing", flush=True)
    sys.stdin.readline()
    write(path, content)
Path.write_bytes = slow
write_cached(Path(sys.argv[1]) / "theirs", b"whole")
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    assert subprocess.run([*command, "dies"], check=False).returncode == -signal.SIGKILL
    (left,) = tmp_path.glob(".theirs.*.partial")
    with subprocess.Popen([*command, "lives"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None and other.stdout is not None
        assert other.stdout.readline() == "writing\n"
        (theirs,) = tmp_path.glob(".theirs.*.partial")
        assert not left.exists() and theirs != left
        writer = threading.Thread(target=write_cached, args=(tmp_path / "mine", b"whole"))
        writer.start()
        writer.join(0.5)
        assert theirs.exists()
        other.stdin.write("\n")
        other.stdin.flush()
        writer.join()
    assert (tmp_path / "theirs").read_bytes() == (tmp_path / "mine").read_bytes() == b"whole"
    assert not list(tmp_path.glob("*.partial"))


def test_what_windows_would_not_replace_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "old.png"
    old.write_bytes(b"old")
    monkeypatch.setattr(replacing, "WINDOWS", True)
    replacing.check_not_in_use(old)
    replacing.check_not_in_use(tmp_path / "none.png")

    def in_use(source: Path, target: Path) -> None:
        raise PermissionError(errno.EACCES, "Access is denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", in_use)
        with pytest.raises(OutputError, match="old.png is open in another program"):
            check_output(old, Size(8, 8), force=True)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(OutputError, match="old.png is read-only"):
        check_output(old, Size(8, 8), force=True)


def test_a_new_file_that_is_open_for_a_moment_is_moved_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "WINDOWS", True)
    tries: list[None] = []
    replace = Path.replace

    def scanned(self: Path, target: Path) -> Path:
        tries.append(None)
        if len(tries) < 3:
            raise PermissionError(errno.EACCES, "Access is denied")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", scanned)
    with staged([tmp_path / "new.png"]) as folder:
        (folder / "new.png").write_bytes(b"new")
    assert (tmp_path / "new.png").read_bytes() == b"new" and len(tries) == 3
