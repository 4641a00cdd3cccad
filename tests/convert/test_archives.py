"""Archives are read with bounds of their own: no header makes the reader wait, grow or recurse."""

import bz2
import gzip
import io
import lzma
import random
import tarfile

import pytest

from mnv2_keras.convert.archives import extract

LONG = "folder/" + "n" * 150 + ".index"


def tar_of(members, form=tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_every_kind_of_archive_is_unpacked(form, compress, tmp_path):
    name = LONG if form != tarfile.USTAR_FORMAT else "folder/a.index"
    members = {name: b"x" * 1000, "folder/b.data": bytes(512), "folder/graph.meta": b"left out", "folder/.hidden": b""}
    (tmp_path / "a.tgz").write_bytes(compress(tar_of(members, form)))
    (tmp_path / "out").mkdir()
    extract(tmp_path / "a.tgz", tmp_path / "out")
    unpacked = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    assert unpacked == {name.split("/")[1]: b"x" * 1000, "b.data": bytes(512)}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("negloop.tgz", "negative size"),
        ("paxgiga.tgz", "has a header of 1,073,741,824 bytes"),
        ("sparse2g.tar", "is a link or a device"),
        ("xz_flip.tgz", "is not a complete .tgz or .tar.gz archive"),
    ],
)
def test_the_reported_archives_are_refused_at_once(name, message, testdata, tmp_path):
    with pytest.raises(ValueError, match=message):
        extract(testdata / "reports" / name, tmp_path)


def header(name="x", size=0, kind=tarfile.REGTYPE):
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header(kind=tarfile.XHDTYPE) * 10_000 + header(), "more than 4 headers"),
        (header(size=-512), "negative size"),
        (header(size=-512, kind=tarfile.GNUTYPE_LONGNAME), "has a header of -512 bytes"),
        (header(size=512, kind=tarfile.XHDTYPE) + b"18 size=-99999999\n".ljust(512, b"\0") + header(), "negative size"),
        (header(size=512, kind=tarfile.XHDTYPE) + b"20 GNU.sparse.map=0\n".ljust(512, b"\0") + header(), "holes"),
        (header(size=512, kind=tarfile.XHDTYPE) + b"18 path=../../etc\n".ljust(512, b"\0") + header(), "points outside"),
        (header(size=5000) + bytes(512), "is not a complete"),
        (b"no archive", "is not a complete"),
        (b"", "is not a complete"),
    ],
)
def test_hostile_headers(content, message, tmp_path):
    (tmp_path / "a.tar").write_bytes(content)
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match=message):
        extract(tmp_path / "a.tar", tmp_path / "out")


def test_a_compressed_gigabyte_is_refused_before_it_is_written_out(tmp_path):
    for i, compress in enumerate((gzip.compress, bz2.compress)):
        (tmp_path / f"{i}.tgz").write_bytes(compress(header(size=2**30) + bytes(2**20)))
        with pytest.raises(ValueError, match=r"brings 1024 MiB"):
            extract(tmp_path / f"{i}.tgz", tmp_path)


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_any_mutated_archive_is_unpacked_or_refused(compress, tmp_path):
    content = compress(tar_of({LONG: b"x" * 1000, "b.data": bytes(700)}))
    draw, refused = random.Random(0), 0
    for i in range(100):
        mutated = bytearray(content)
        for _ in range(draw.choice([1, 1, 2, 8])):
            mutated[draw.randrange(len(mutated))] = draw.randrange(256)
        (tmp_path / "a.tgz").write_bytes(mutated[: draw.choice([len(mutated)] * 4 + [draw.randrange(len(mutated))])])
        (tmp_path / str(i)).mkdir()
        try:
            extract(tmp_path / "a.tgz", tmp_path / str(i))
        except ValueError as error:
            refused += str(tmp_path / "a.tgz") in str(error)
        else:
            assert sum(file.stat().st_size for file in (tmp_path / str(i)).iterdir()) <= 1700
    names = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*")}
    assert names == {"a.tgz", *map(str, range(100))}  # nothing was written elsewhere
    assert refused > 10
