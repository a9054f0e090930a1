"""Members of archives: listed completely, read where they are, and every kind of archive that cannot be."""

import io
import struct
import tarfile
import tracemalloc
import zipfile

import pytest

from s5.data.image_io import read_image
from s5.data.references import Member, Reference, Unusable, members, read_member
from s5.errors import ImageError
from tests.helpers.archive_files import H, W, jpeg, write_streamed_zip, write_tar, write_zip

WRITE = {"p.zip": write_zip, "p.tar": write_tar}


def read(archive, member):
    return read_member(Reference(str(archive), member.name, (member.at, member.size)))


def reasons(archive):
    return {found.name: found.reason for found in members(archive) if isinstance(found, Unusable)}


@pytest.mark.parametrize("name", WRITE)
def test_images_are_listed_hidden_and_other_files_are_not(tmp_path, name):
    listed = ["a.jpg", "b c/ü.PNG", "d/e.tiff", "f#1!.webp"]
    hidden = ["readme.txt", ".h.jpg", "x/.git/a.jpg", "__MACOSX/a.jpg", "@eaDir/b.jpg", "._a.jpg", "mask.xml"]
    files = {each: each.encode() * 9 for each in [*listed, *hidden]}
    archive = WRITE[name](tmp_path / name, files)
    found = list(members(archive))
    assert [member.name for member in found] == listed
    assert [read(archive, member) for member in found] == [files[each] for each in listed]


@pytest.mark.parametrize("layout", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_long_names_in_tars(tmp_path, layout):
    name = "/".join(["folder" * 5] * (7 if layout == tarfile.USTAR_FORMAT else 60)) + "/ä.jpg"
    archive = write_tar(tmp_path / "p.tar", {"a.jpg": b"1" * 700, name: b"22", "z.jpg": b"333"}, layout)
    found = list(members(archive))
    assert [member.name for member in found] == ["a.jpg", name, "z.jpg"]
    assert [read(archive, member) for member in found] == [b"1" * 700, b"22", b"333"]
    assert read_member(Reference(str(archive), name)) == b"22"


def test_zip64(tmp_path):
    path = tmp_path / "p.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(3):
            with archive.open(zipfile.ZipInfo(f"{i}.jpg"), "w", force_zip64=True) as file:
                file.write(bytes([i]) * 5)
    wide(path)
    found = list(members(path))
    assert [(m.name, read(path, m)) for m in found] == [(f"{i}.jpg", bytes([i]) * 5) for i in range(3)]
    assert read_member(Reference(str(path), "2.jpg")) == b"\2" * 5


def wide(path):
    """Let the directory use the 64-bit fields, as if the numbers did not fit."""
    data = path.read_bytes()
    end = data.rfind(b"PK\5\6")
    count, size, start = struct.unpack("<HII", data[end + 10 : end + 20])
    entries, at = b"", start
    for _ in range(count):
        head = bytearray(data[at : at + 46])
        names, extras = struct.unpack("<2H", head[28:32])
        stored, inflated = struct.unpack("<2I", head[20:28])
        (offset,) = struct.unpack("<I", head[42:46])
        extra = struct.pack("<2H3Q", 1, 24, inflated, stored, offset)
        head[20:28], head[42:46], head[30:32] = b"\xff" * 8, b"\xff" * 4, struct.pack("<H", len(extra))
        entries += bytes(head) + data[at + 46 : at + 46 + names] + extra
        at += 46 + names + extras
    record = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(entries), start)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, start + len(entries), 1)
    last = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path.write_bytes(data[:start] + entries + record + locator + last)


def test_a_zip_behind_a_program_and_with_a_comment(tmp_path):
    plain = write_zip(tmp_path / "p.zip", {"a.jpg": jpeg()})
    with zipfile.ZipFile(plain, "a") as archive:
        archive.comment = b"PK about this archive"
    shifted = tmp_path / "q.zip"
    shifted.write_bytes(b"#!program" * 100 + plain.read_bytes())
    for path in (plain, shifted):
        [member] = members(path)
        assert read(path, member) == jpeg()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_sizes_behind_the_data(tmp_path, method):
    path = write_streamed_zip(tmp_path / "p.zip", {"a.jpg": jpeg(), "b.jpg": jpeg(1)}, method)
    assert [read(path, member) for member in members(path)] == [jpeg(), jpeg(1)]


@pytest.mark.parametrize("name", WRITE)
@pytest.mark.parametrize("member", ["/abs/a.jpg", "../../a.jpg", "./a.jpg", "a//b/./c.jpg", "win\\a.jpg"])
def test_names_that_leave_the_folder_or_are_not_normal_are_read_in_place(tmp_path, name, member):
    archive = WRITE[name](tmp_path / name, {member: jpeg()})
    [found] = members(archive)
    for text in (f"{archive}!/{found.name}", f"{archive}!/{member}"):
        assert read_image(text).shape == (H, W, 3)
        assert read_image(f"{text}#at={found.at},{found.size}&xywh=1,2,3,4").shape == (4, 3, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


@pytest.mark.parametrize("name", WRITE)
def test_of_equal_names_the_last_counts_unless_at_says_which(tmp_path, name, recwarn):
    archive = tmp_path / name
    if name == "p.zip":
        with zipfile.ZipFile(archive, "w") as file:
            for i in range(2):
                file.writestr("a.jpg", jpeg(i))
    else:
        with tarfile.open(archive, "w") as file:
            for i in range(2):
                info = tarfile.TarInfo("a.jpg")
                info.size = len(jpeg(i))
                file.addfile(info, io.BytesIO(jpeg(i)))
    assert [read(archive, member) for member in members(archive)] == [jpeg(0), jpeg(1)]
    assert read_member(Reference(str(archive), "a.jpg")) == jpeg(1)


def protected(path):
    """Set the flag of encryption in both headers of the first member."""
    data = bytearray(write_zip(path, {"a.jpg": jpeg(), "b.jpg": jpeg()}).read_bytes())
    data[6] |= 1
    data[data.find(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    return path


def test_password_protected_members(tmp_path):
    path = protected(tmp_path / "p.zip")
    assert reasons(path) == {"a.jpg": "password-protected; unpack it"}
    assert [found.name for found in members(path) if isinstance(found, Member)] == ["b.jpg"]
    with pytest.raises(ImageError, match=r"p.zip!/a.jpg: password-protected.*Unpack"):
        read_image(f"{path}!/a.jpg")


@pytest.mark.parametrize("name", WRITE)
def test_nested_archives(tmp_path, name):
    files = {"in.zip": b"PK", "x/in.tar.gz": b"", "y/IN.TAR": b"", "a.jpg": jpeg(), ".h/in.zip": b""}
    archive = WRITE[name](tmp_path / name, files)
    assert reasons(archive).keys() == {"in.zip", "x/in.tar.gz", "y/IN.TAR"}
    assert all("archive inside an archive" in reason for reason in reasons(archive).values())
    with pytest.raises(ImageError, match="no such member"):
        read_image(f"{archive}!/in.zip!/a.jpg")


def test_methods_of_compression_and_links(tmp_path):
    path = write_zip(tmp_path / "p.zip", {"a.jpg": jpeg()}, zipfile.ZIP_BZIP2)
    with zipfile.ZipFile(path, "a") as file:
        info = zipfile.ZipInfo("link.jpg")
        info.create_system, info.external_attr = 3, 0o120777 << 16
        file.writestr(info, "a.jpg")
    assert "compressed with method 12" in reasons(path)["a.jpg"] and "link" in reasons(path)["link.jpg"]
    with pytest.raises(ImageError, match="compressed with method 12"):
        read_image(f"{path}!/a.jpg")
    tar = tmp_path / "p.tar"
    with tarfile.open(tar, "w") as file:
        info = tarfile.TarInfo("link.jpg")
        info.type, info.linkname = tarfile.SYMTYPE, "a.jpg"
        file.addfile(info)
    assert "link" in reasons(tar)["link.jpg"]
    with pytest.raises(ImageError, match="a link"):
        read_image(f"{tar}!/link.jpg")


def test_a_name_that_no_line_can_hold(tmp_path):
    assert "line break" in reasons(write_zip(tmp_path / "p.zip", {"a\n.jpg": b"1"}))["a\n.jpg"]


@pytest.mark.parametrize("name", ["p.tar.gz", "p.TGZ", "p.7z", "p.tar"])
def test_archives_compressed_as_a_whole(tmp_path, name):
    path = tmp_path / name
    with tarfile.open(path, "w:gz") as file:
        file.add(__file__, "a.jpg")
    assert list(reasons(path)) == [str(path)]
    assert "cannot be read in place" in reasons(path)[str(path)]


@pytest.mark.parametrize("name", WRITE)
def test_a_truncated_archive(tmp_path, name):
    files = {f"{i}.jpg": jpeg(i) for i in range(4)}
    path = WRITE[name](tmp_path / name, files)
    found = list(members(path))
    path.write_bytes(path.read_bytes()[: found[2].at + 512 + found[2].size // 4])
    *before, last = members(path)
    assert isinstance(last, Unusable) and last.name == str(path) and "damaged, truncated" in last.reason
    assert [member.name for member in before] == ([] if name == "p.zip" else ["0.jpg", "1.jpg"])
    assert read(path, found[1]) == jpeg(1)  # the hint still finds it
    with pytest.raises(ImageError, match="its archive is truncated"):
        read(path, found[2])
    with pytest.raises(ImageError, match="changed after it was indexed"):
        read(path, found[3])
    with pytest.raises(ImageError, match=r"no such member \(damaged, truncated"):
        read_member(Reference(str(path), "3.jpg"))


@pytest.mark.parametrize("name", ["p.zip", "p.tar"])
@pytest.mark.parametrize(
    "content", [b"", b"no archive at all" * 99, b"\0" * 100 + b"x" * 1000, b"PK\5\6" * 9]
)
def test_other_files_with_the_name_of_an_archive(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    found = list(members(tmp_path / name))
    assert [each.name for each in found] == [str(tmp_path / name)]
    for text in ("a.jpg", "a.jpg#at=0,100", "a.jpg#at=512,100", f"a.jpg#at={10**17},5"):
        with pytest.raises(ImageError):
            read_image(f"{tmp_path / name}!/{text}")


def test_garbage_between_the_members_of_a_tar(tmp_path):
    path = write_tar(tmp_path / "p.tar", {"a.jpg": jpeg(), "b.jpg": jpeg(1), "c.jpg": jpeg(2)})
    second = list(members(path))[1]
    data = bytearray(path.read_bytes())
    data[second.at : second.at + 512] = b"x" * 512
    path.write_bytes(data)
    first, problem = members(path)
    assert first.name == "a.jpg" and problem.name == str(path) and "no header at byte" in problem.reason


@pytest.mark.parametrize("name", WRITE)
def test_an_archive_that_changed_after_indexing(tmp_path, name):
    path = WRITE[name](tmp_path / name, {"a.jpg": jpeg(), "b.jpg": jpeg(1)})
    member = list(members(path))[1]
    for files in (
        {"a.jpg": jpeg(), "c.jpg": jpeg(1)},
        {"a.jpg": jpeg(), "b.jpg": jpeg(1)[:-9]},
        {"0.jpg": b""},
    ):
        WRITE[name](path, files)
        with pytest.raises(ImageError, match=r"changed after it was indexed. Run the index step again"):
            read(path, member)
    WRITE[name](path, {"0.jpg": jpeg(), "b.jpg": jpeg(1)})  # another archive, the same member
    assert read_member(Reference(str(path), "b.jpg")) == jpeg(1)


def test_damaged_data_of_a_zip(tmp_path):
    for method, reason in ((zipfile.ZIP_STORED, "wrong checksum"), (zipfile.ZIP_DEFLATED, "damaged")):
        path = write_zip(tmp_path / "p.zip", {"a.jpg": bytes(range(256)) * 9}, method)
        [member] = members(path)
        data = bytearray(path.read_bytes())
        data[member.at + 35 + 20] ^= 0xFF
        path.write_bytes(data)
        with pytest.raises(ImageError, match=reason):
            read(path, member)


def test_a_missing_archive(tmp_path):
    with pytest.raises(ImageError, match=r"no.zip: no such file"):
        list(members(tmp_path / "no.zip"))


@pytest.mark.parametrize("name", WRITE)
def test_listing_takes_little_memory(tmp_path, name):
    path = WRITE[name](tmp_path / name, {f"folder/{i:05}.jpg": b"" for i in range(5000)})
    next(members(path))
    tracemalloc.start()
    count = sum(1 for _ in members(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 5000 and peak < 400_000  # all names alone have more
