"""What is read from the headers of images, held to what Pillow makes of the same bytes."""

import io

import numpy as np
import pytest
from PIL import Image

from fastfeed._extension import extension
from tests.images import picture

FORMATS = [
    ("JPEG", {"quality": 80}),
    ("JPEG", {"progressive": True, "quality": 80}),
    ("JPEG", {"comment": b"\xff\xc0" * 300}),  # what looks like a frame header inside a segment
    ("PNG", {}),
    ("BMP", {}),
    ("WEBP", {"quality": 80}),
    ("WEBP", {"lossless": True}),
    ("WEBP", {"quality": 80, "exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}),
]
CUT_SHORT = {
    "JPEG": "a JPEG file without its end: cut short",
    "PNG": "a PNG file without its end: cut short",
    "BMP": "a BMP file without its end: cut short",
    "WEBP": "a WebP file without its end: cut short",
}
NO_HEADER = "no complete JPEG, PNG, BMP or WebP header"


def encode(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def headers(*images):
    """Return sizes, orientations and errors."""
    _, sizes, orientation, errors = extension().read_memory(extension().Pool(1), extension().Recycler(0), images)
    return sizes.tolist(), orientation.tolist(), errors


def pillow_loads(data):
    try:
        Image.open(io.BytesIO(data)).load()
    except (OSError, SyntaxError, ValueError):
        return False
    return True


@pytest.mark.parametrize(("kind", "options"), FORMATS)
@pytest.mark.parametrize("size", [(1, 1), (37, 300), (300, 37), (9001, 2), (2, 9001)])
def test_size_from_the_header_of_every_format(kind, options, size):
    assert headers(encode(picture(*size), kind, **options)) == ([list(size)], [1], [None])


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("width", [1, 3, 8, 33])
def test_bmp_of_every_depth_is_whole_to_its_last_byte(mode, width):
    whole = encode(picture(5, width).convert(mode), "BMP")
    assert headers(whole, whole[:-1]) == ([[5, width]] * 2, [1, 1], [None, CUT_SHORT["BMP"]])


def test_bmp_stored_top_down_and_of_os2():
    whole = encode(picture(40, 60), "BMP")
    top_down = whole[:22] + (-40).to_bytes(4, "little", signed=True) + whole[26:]
    os2 = whole[:10] + (26).to_bytes(4, "little") + b"\x0c\0\0\0" + b"\x3c\0\x28\0\x01\0\x18\0" + whole[54:]
    for data in (top_down, os2):
        with Image.open(io.BytesIO(data)) as image:
            assert image.size == (60, 40)
    assert headers(top_down, os2) == ([[40, 60]] * 2, [1, 1], [None, None])


@pytest.mark.parametrize("segment", [
    b"\xff\xc4\x00\x07\x00\x01\x02\x03\x04",  # Huffman tables, whose marker lies among those of frames
    b"\xff\xcc\x00\x07\x00\x01\x02\x03\x04",  # arithmetic coding conditions, likewise
    b"\xff\xff\xff",  # fill bytes
    b"\xff\x01",  # a marker without a length
    b"\xff\x00",  # a stray stuffed byte
])  # fmt: skip
def test_segments_that_may_stand_before_the_frame_header(segment):
    whole = encode(picture(40, 60), "JPEG")
    frame = whole.index(b"\xff\xc0\x00\x11")
    assert headers(whole[:frame] + segment + whole[frame:]) == ([[40, 60]], [1], [None])


def test_a_size_is_read_as_soon_as_it_is_complete():
    whole = encode(picture(40, 60), "JPEG")
    end = whole.index(b"\xff\xc0\x00\x11") + 9
    sizes, _, errors = headers(whole[:end], whole[: end - 1])
    assert sizes == [[40, 60], [0, 0]]
    assert errors == [CUT_SHORT["JPEG"], NO_HEADER]


def exif(orientation):
    tags = Image.Exif()
    tags[0x010F] = "a maker whose name lies behind the directory"
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("orientation", [*range(10), 65535])
def test_orientation(kind, byte_order, orientation):
    tags = exif(orientation)
    tags.endian = byte_order
    data = encode(picture(20, 50), kind, exif=tags.tobytes())
    with Image.open(io.BytesIO(data)) as image:
        assert image.getexif()[0x0112] == orientation
    # The size is that of the stored pixels whatever is said about their display.
    assert headers(data) == ([[20, 50]], [orientation if 1 <= orientation <= 8 else 1], [None])


def test_orientation_behind_the_pixels_of_a_png():
    whole = encode(picture(20, 50), "PNG", exif=exif(6).tobytes())
    at = whole.index(b"eXIf") - 4
    length = int.from_bytes(whole[at : at + 4], "big") + 12
    end = whole.index(b"IEND") - 4
    moved = whole[:at] + whole[at + length : end] + whole[at : at + length] + whole[end:]
    with Image.open(io.BytesIO(moved)) as image:
        image.load()
        assert image.getexif()[0x0112] == 6
    assert headers(moved) == ([[20, 50]], [6], [None])


@pytest.mark.parametrize(("kind", "options"), FORMATS)
def test_every_truncation(kind, options):
    whole = encode(picture(40, 60), kind, **options)
    lengths = range(len(whole))
    sizes, _, errors = headers(*(whole[:length] for length in lengths))
    assert errors[0] == "an empty file"
    known = [size == [40, 60] for size in sizes]
    assert known == sorted(known)  # from some length on
    assert True in known
    for length, size, error in zip(lengths, sizes, errors, strict=True):
        assert size in ([0, 0], [40, 60]), length
        assert error is not None, length
        if size == [40, 60]:
            assert error == CUT_SHORT[kind], length


@pytest.mark.parametrize(("kind", "options"), FORMATS)
def test_what_is_whole_to_pillow_is_whole_but_for_the_end_mark(kind, options):
    """No file that Pillow can load is refused, except where the last few bytes, which it does not need, are missing."""
    whole = encode(picture(40, 60), kind, **options)
    lengths = [*range(len(whole) - 40, len(whole)), *range(40, len(whole) - 40, 97)]
    _, _, errors = headers(*(whole[:length] for length in lengths))
    # EOI; the check sums of the stream and of the last IDAT, and IEND.
    spare = {"JPEG": 2, "PNG": 24, "BMP": 0, "WEBP": 0}[kind]
    for length, error in zip(lengths, errors, strict=True):
        if error is not None and pillow_loads(whole[:length]):
            assert length >= len(whole) - spare, length
    padded = whole + b"\0" * 1000  # as some cameras do
    assert headers(padded)[2] == [None]
    assert pillow_loads(padded)


def test_the_end_of_another_image_is_none_of_its_own():
    # The thumbnail in its APP1 segment is whole; the image is not.
    thumbnail = encode(picture(8, 8), "JPEG")
    whole = encode(picture(40, 60), "JPEG")
    app1 = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    data = whole[:2] + app1 + whole[2:]
    assert headers(data, data[:-2])[2] == [None, CUT_SHORT["JPEG"]]


def test_what_follows_the_end_may_be_anything():
    rng = np.random.default_rng(0)
    whole = encode(picture(40, 60), "JPEG")
    video = rng.bytes(300_000) + b"\xff\xda" + rng.bytes(100)  # of a phone, behind the photograph
    assert headers(whole + video)[2] == [None]


@pytest.mark.parametrize(("data", "what"), [
    (encode(picture(8, 8), "GIF"), "a GIF file"),
    (encode(picture(8, 8), "TIFF"), "a TIFF file"),
    (b"MM\0*\0\0\0\x08", "a TIFF file"),
    (b"\0\0\0\x1cftypavif\0\0\0\0", "a HEIF or AVIF file"),
    (b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIF or AVIF file"),
    (b"\0\0\0\x18ftypisom\0\0\0\0", "a video"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 file"),
    (b"\xff\x0a\x00", "a JPEG XL file"),
    (b"\x1f\x8b\x08\0", "a gzip file"),
    (b"PK\x03\x04\x14\0", "a zip file"),
    (b"\n <!DOCTYPE html><title>404</title>", "an HTML or XML page"),
    (b"\xef\xbb\xbf<svg/>", "an HTML or XML page"),
    (b'{"error": "rate limit"}\n', "a text file"),
    ("日本語".encode(), "a text file"),
])  # fmt: skip
def test_other_formats_are_named(data, what):
    sizes, orientation, errors = headers(data)
    assert errors == [f"{what}; expected JPEG, PNG, BMP or WebP"]
    assert (sizes, orientation) == ([[0, 0]], [1])


def test_a_git_lfs_pointer_is_named():
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"
    assert headers(pointer)[2] == ["a Git LFS pointer, without the file: run git lfs pull"]


@pytest.mark.parametrize("data", [
    b"\0" * 100, b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xd8\xff\xe0\0\x01", b"\x89PNG\r\n\x1a\n",
    b"BM", b"BM" + b"\0" * 60, b"RIFF\0\0\0\0WEBP", b"RIFF\0\0\0\0WEBPVP8 ", b"RIFF\0\0\0\0WAVEfmt ", b" \n",
    b"\xff\xd8\xff\xd9",
])  # fmt: skip
def test_what_is_none_of_them(data):
    assert headers(data) == ([[0, 0]], [1], [NO_HEADER])


@pytest.mark.parametrize(
    "sources", [[np.zeros((2, 2), np.uint8)], [np.zeros(4, np.int32)], [np.zeros(8, np.uint8)[::2]]]
)
def test_buffers_that_are_not_bytes(sources):
    with pytest.raises(ValueError, match="read_memory: expected buffers of bytes"):
        headers(*sources)
