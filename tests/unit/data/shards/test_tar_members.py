"""Hostile tars: each ends in a message or in what is harmless of it, soon, in little memory, with no code run."""

import io
import os
import pickle
import tarfile
import time
import tracemalloc

import pytest

from data.shards.scan import index_shards, scan_tar
from data.shards.tar_files import find_tars

LIMIT_S = 5.0
MIB = 2**20

pytestmark = pytest.mark.timeout(60)


def header(name="a.jpg", *, size=0, kind=tarfile.REGTYPE, format=tarfile.GNU_FORMAT, **fields):  # noqa: A002
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(format)


def padded(content):
    return content + bytes(-len(content) % 512)


def patched(block, *, at, content):
    """Make a header with other bytes in a place, and with the checksum that belongs to them."""
    block = block[:at] + content + block[at + len(content) :]
    blank = block[:148] + b" " * 8 + block[156:]
    return block[:148] + b"%06o\0 " % sum(blank) + block[156:]


END = bytes(1024)
SAMPLE = header(size=3) + padded(b"abc")


@pytest.fixture
def scan(tmp_path):
    """Scan a tar of these bytes, within the limits of time and memory."""

    def scan(content):
        path = tmp_path / "a.tar"
        path.write_bytes(content)
        tracemalloc.start()
        start = time.process_time()
        try:
            return scan_tar(path)
        finally:
            took, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert took < LIMIT_S
            assert peak < 20 * MIB

    return scan


def refused(scan, content, message):
    with pytest.raises(ValueError, match=message):
        scan(content)


def test_headers_that_announce_nothing_do_not_loop(scan):
    found = scan(header(size=0) * 5_000 + SAMPLE + END)
    assert [entry.image.size for entry in found.entries[-2:]] == [0, 3]
    assert not scan(header("folder/", kind=tarfile.DIRTYPE) * 5_000 + END).entries


@pytest.mark.parametrize("size", [b"\xff" * 12, b"-0000000001\0", b"\x80" + b"\xff" * 11, b"77777777777\0", b"9" * 12])
def test_sizes_that_are_negative_or_beyond_the_file_are_refused(scan, size):
    refused(scan, patched(header(), at=124, content=size) + END, "no tar header|needs [0-9]+ bytes")


def test_a_size_of_zero_in_the_header_and_another_in_pax_cannot_point_outside(scan):
    for value, message in ((b"99999999999999999999", "needs 9{20} bytes"), (b"-5", None)):
        record = b" size=" + value + b"\n"
        record = b"%d" % (len(record) + 2) + record
        content = header("pax", size=len(record), kind=tarfile.XHDTYPE) + padded(record) + SAMPLE + END
        if message:
            refused(scan, content, message)
        else:
            assert scan(content).entries[0].image.size == 3


@pytest.mark.parametrize(
    "record",
    [b"0 a=b\n", b"3 a=b\n", b"999999 a=b\n", b"x a=b\n", b"7", b"", b" ", b"9" * 60_000, b"00000000000000000006 a\n"],
)
def test_malformed_pax_records_are_refused(scan, record):
    content = header("pax", size=len(record), kind=tarfile.XHDTYPE) + padded(record) + SAMPLE + END
    if record:
        refused(scan, content, "malformed extended header")
    else:
        assert len(scan(content).entries) == 1


def test_pax_headers_full_of_tiny_records_are_read_once_each(scan):
    records = b"5 a=\n" * (64 * 1024 // 5)
    bomb = header("pax", size=len(records), kind=tarfile.XHDTYPE) + padded(records)
    assert [entry.key for entry in scan(bomb * 6 + SAMPLE + END).entries] == ["a"]


def test_extended_headers_beyond_64_kib_are_not_read(scan):
    for kind in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
        refused(scan, header("x", size=MIB, kind=kind) + bytes(MIB) + SAMPLE + END, "extended header of 1048576 bytes")
    assert len(scan(header("x", size=MIB, kind=tarfile.XGLTYPE) + bytes(MIB) + SAMPLE + END).entries) == 1


def test_a_giant_member_is_passed_over_without_reading_it(tmp_path):
    path = tmp_path / "a.tar"
    size = 2**31
    with path.open("wb") as file:
        file.write(header("giant.jpg", size=size))
        file.truncate(512 + size)  # a hole: takes no room
        file.seek(0, os.SEEK_END)
        file.write(SAMPLE + END)
    start = time.monotonic()
    scan = scan_tar(path)
    assert time.monotonic() - start < LIMIT_S
    assert [entry.key for entry in scan.entries] == ["a"]
    assert scan.ignored == {"members of more than 1024 MiB": 1}


def test_sparse_members_are_refused_or_passed_over(scan):
    refused(scan, header(kind=tarfile.GNUTYPE_SPARSE) + END, "sparse member at byte 0")
    record = b"22 GNU.sparse.major=1\n"
    content = header("pax", size=len(record), kind=tarfile.XHDTYPE) + padded(record) + SAMPLE + END
    assert scan(content).ignored == {"sparse files": 1}


def test_a_wrong_checksum_is_refused(scan):
    block = bytearray(SAMPLE)
    block[0] ^= 1
    refused(scan, bytes(block) + END, "no tar header at byte 0")


def test_names_that_leave_the_folder_are_keys_and_nothing_is_written(scan, tmp_path):
    names = ["/etc/passwd.jpg", "../../../evil.jpg", "a/../../b.jpg", "C:\\x.jpg", "\x1b[2J.jpg", "x\n.jpg"]
    found = scan(b"".join(header(name, size=3) + padded(b"abc") for name in names) + END)
    assert [entry.key for entry in found.entries] == [
        "/etc/passwd",
        "../../../evil",
        "a/../../b",
        "C:\\x",
        "?[2J",
        "x?",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_links_devices_and_pipes_are_counted_and_not_followed(scan):
    kinds = [
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.FIFOTYPE,
        tarfile.CONTTYPE,
        b"Z",
    ]
    blocks = b"".join(header(f"{n}.jpg", kind=kind, linkname="/etc/passwd") for n, kind in enumerate(kinds))
    found = scan(blocks + END)
    assert not found.entries
    assert found.ignored == {"links and special files": len(kinds)}


def test_a_pickle_member_is_left_out_and_never_loaded(scan):
    class Bomb:
        def __reduce__(self):
            return os._exit, (3,)

    content = pickle.dumps(Bomb())
    blocks = [
        header("a.pkl", size=len(content)) + padded(content),
        header("a.pyd", size=len(content)) + padded(content),
    ]
    found = scan(SAMPLE + b"".join(blocks) + END)
    assert found.entries[0].members == ()
    assert found.ignored == {".pkl": 1, ".pyd": 1}


def test_a_class_number_in_the_billions_makes_no_list_of_names(scan, tmp_path):
    found = scan(SAMPLE + header("a.cls", size=9) + padded(b"999999999") + END)
    assert found.entries[0].label is None
    assert found.ignored == {"labels that are no class number": 1}
    assert index_shards(find_tars(tmp_path), out=tmp_path / "o")[0].classes is None


def test_a_long_link_name_does_not_take_away_the_long_name(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        long = tarfile.TarInfo("n" * 150 + ".jpg")
        long.linkname, long.size = "l" * 150, 3
        tar.addfile(long, io.BytesIO(b"abc"))
    assert [entry.key for entry in scan_tar(tmp_path / "a.tar").entries] == ["n" * 150]


def test_all_broken_tars_are_named_at_once(tmp_path):
    for name, content in (("a", b"hello"), ("b", SAMPLE + END), ("c", SAMPLE)):
        (tmp_path / f"{name}.tar").write_bytes(content)
    with pytest.raises(ValueError, match=r"2 of 3 tars cannot be read.*a\.tar is no readable.*c\.tar is no readable"):
        index_shards(find_tars(tmp_path), out=tmp_path / "o")
    assert not (tmp_path / "o" / "manifest.json").exists()


def test_train_and_val_tars_are_not_indexed_as_one_set(tmp_path):
    for name in ("train-0", "val-0"):
        (tmp_path / f"{name}.tar").write_bytes(SAMPLE + END)
    with pytest.raises(ValueError, match="holds the tars of train and val: choose one with --pattern 'train-"):
        index_shards(find_tars(tmp_path), out=tmp_path / "o")
    assert index_shards(find_tars(tmp_path, pattern="train*.tar"), out=tmp_path / "o")[0].num_samples == 1
