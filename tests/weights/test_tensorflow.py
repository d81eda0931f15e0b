"""TensorFlow bundles: bit for bit what TensorFlow wrote (see make_tensorflow_bundles.py), and hostile ones written by hand."""

from __future__ import annotations

import json
import shutil
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from fishpaw.errors import CheckpointError
from fishpaw.weights import tensorflow
from fishpaw.weights.crc32c import crc32c, masked
from fishpaw.weights.tensorflow import open_bundle

BUNDLES = Path(__file__).resolve().parent / "bundles"
PREFIXES = {"bert": "bert/bert_model.ckpt", "partitioned": "partitioned", "types": "types", "sharded": "sharded", "text": "text"}


def expected(name: str) -> dict[str, np.ndarray]:
    with np.load(BUNDLES / f"{name}.npz", allow_pickle=False) as file:
        return {key.replace("|", "/"): file[key] for key in file}


@pytest.mark.parametrize("name", PREFIXES)
def test_every_tensor_is_bit_for_bit_tensorflows(name):
    bundle = open_bundle(BUNDLES / PREFIXES[name])
    values = expected(name)
    assert {key.removesuffix("@bfloat16") for key in values} == set(bundle) - {"words"}
    for key, value in values.items():
        tensor = bundle[key.removesuffix("@bfloat16")]
        assert bundle.shape(key.removesuffix("@bfloat16")) == value.shape
        if key.endswith("@bfloat16"):
            assert tensor.dtype == torch.bfloat16
            tensor = tensor.view(torch.uint16)
        found = tensor.numpy()
        assert found.dtype == value.dtype and found.shape == value.shape and found.tobytes() == value.tobytes(), key


def test_the_bert_bundle_is_as_large_as_its_config_says():
    config = json.loads((BUNDLES / "bert" / "bert_config.json").read_text(encoding="utf-8"))
    bundle = open_bundle(BUNDLES / PREFIXES["bert"])
    assert bundle.shape("bert/embeddings/word_embeddings") == (config["vocab_size"], config["hidden_size"])
    assert bundle.shape("bert/encoder/layer_1/intermediate/dense/kernel") == (config["hidden_size"], config["intermediate_size"])
    assert bundle["global_step"].item() == 1000
    assert 0.5 < bundle["bert/embeddings/word_embeddings"].std() < 0.7


def test_tensors_are_copies_that_may_be_changed():
    bundle = open_bundle(BUNDLES / "types")
    bundle["kind/float32"].zero_()
    assert bundle["kind/float32"].abs().sum() > 0


@pytest.mark.parametrize("suffix", ["", ".index", ".data-00001-of-00003"])
def test_any_name_of_a_bundle_opens_it(suffix):
    assert len(open_bundle(str(BUNDLES / "sharded") + suffix)) == 6


def test_strings_are_refused_with_a_way_out():
    bundle = open_bundle(BUNDLES / "text")
    with pytest.raises(CheckpointError, match=r"'words': is of type string.*safetensors"):
        bundle["words"]
    with pytest.raises(KeyError):
        bundle["nothing"]


# damage to real bundles

def copied(tmp_path: Path, name: str) -> Path:
    for file in BUNDLES.glob(f"{PREFIXES[name]}.*"):
        shutil.copy(file, tmp_path)
    return tmp_path / Path(PREFIXES[name]).name


def test_every_flipped_byte_of_the_data_names_a_tensor(tmp_path):
    prefix = copied(tmp_path, "sharded")
    data = Path(f"{prefix}.data-00001-of-00003")
    before = data.read_bytes()
    for position in range(len(before)):
        data.write_bytes(before[:position] + bytes([before[position] ^ 4]) + before[position + 1 :])
        bundle = open_bundle(prefix)
        with pytest.raises(CheckpointError, match=r"data-00001-of-00003: tensor 'part1/[ab]': .*CRC-32C"):
            [bundle[name] for name in bundle]


def test_every_flipped_byte_of_the_index_is_an_error(tmp_path):
    """But for the block of metadata, which holds nothing, and the footer's padding, which nobody reads."""
    index = Path(f"{copied(tmp_path, 'bert')}.index")
    before = index.read_bytes()
    unread = len(before) - 48 - 5 - len_of_index_block(before) - 13
    harmless = []
    for position in range(len(before)):
        index.write_bytes(before[:position] + bytes([before[position] ^ 1]) + before[position + 1 :])
        try:
            open_bundle(index)
        except CheckpointError as error:
            assert str(index) in str(error)
        else:
            harmless.append(position)
    assert all(unread <= position < unread + 13 or len(before) - 48 <= position < len(before) - 8 for position in harmless)
    assert len(harmless) < 60


def len_of_index_block(content: bytes) -> int:
    at = len(content) - 48
    for _ in range(3):
        _, at = tensorflow._varint(content, at)
    return tensorflow._varint(content, at)[0]


def test_without_checksums_flips_go_unseen(tmp_path):
    """The planted fault: a reader that skips the sums fails the tests above."""
    prefix = copied(tmp_path, "sharded")
    data = Path(f"{prefix}.data-00001-of-00003")
    content = bytearray(data.read_bytes())
    content[7] ^= 4
    data.write_bytes(content)
    assert len(dict(open_bundle(prefix, checksums=False))) == 6
    with pytest.raises(CheckpointError):
        dict(open_bundle(prefix))


@pytest.mark.parametrize("length", [0, 1, 59, 119])
def test_truncated_data_is_named(tmp_path, length):
    prefix = copied(tmp_path, "sharded")
    data = Path(f"{prefix}.data-00002-of-00003")
    data.write_bytes(data.read_bytes()[:length])
    bundle = open_bundle(prefix)
    assert len(bundle["part1/a"]) == 5
    with pytest.raises(CheckpointError, match=f"data-00002-of-00003: tensor 'part2/b'.* of a file of {length}: truncated"):
        bundle["part2/b"]


def test_missing_files_are_named(tmp_path):
    prefix = copied(tmp_path, "sharded")
    Path(f"{prefix}.data-00000-of-00003").unlink()
    with pytest.raises(CheckpointError, match=r"data-00000-of-00003: tensor 'part0/a': the data file can't be read"):
        open_bundle(prefix)["part0/a"]
    Path(f"{prefix}.data-00000-of-00003").mkdir()
    with pytest.raises(CheckpointError, match="the data file is no regular file"):
        open_bundle(prefix)["part0/a"]
    with pytest.raises(CheckpointError, match=r"nothing\.index: can't be read"):
        open_bundle(tmp_path / "nothing")


# bundles by hand, with valid checksums: only then does a lie get past the first door

def number(value: int) -> bytes:
    value &= 2**64 - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def field(index: int, value: int | bytes) -> bytes:
    return number(index << 3 | 2) + number(len(value)) + value if isinstance(value, bytes) else number(index << 3) + number(value)


def entry(kind=1, shape=(2,), shard=0, offset=0, size=8, checksum=0, extents=()) -> bytes:
    message = field(1, kind) + field(2, b"".join(field(2, field(1, length)) for length in shape))
    message += field(3, shard) + field(4, offset) + field(5, size) + number(6 << 3 | 5) + struct.pack("<I", checksum)
    for extent in extents:
        parts = b"".join(field(1, field(1, start) + (field(2, length) if length >= 0 else b"")) for start, length in extent)
        message += field(7, parts)
    return message


def block(rows: list[tuple[bytes, bytes]]) -> bytes:
    out, last, restarts = b"", b"", []
    for place, (key, value) in enumerate(rows):
        shared = 0
        if place % 3:                                              # a restart every third key
            while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
        else:
            restarts.append(len(out))
        out += number(shared) + number(len(key) - shared) + number(len(value)) + key[shared:] + value
        last = key
    return out + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def table(blocks: list[list[tuple[bytes, bytes]]], kind: int = 0) -> bytes:
    out, handles = b"", []

    def add(content: bytes) -> bytes:
        nonlocal out
        start = len(out)
        out += content + bytes([kind]) + struct.pack("<I", masked(crc32c(content + bytes([kind]))))
        return number(start) + number(len(content))

    for rows in blocks:
        handles.append((rows[-1][0] + b"~", add(block(rows))))
    footer = add(block([])) + add(block(handles))
    return out + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


HEADER = (b"", field(1, 1) + field(3, field(1, 1)))


def bundle_of(tmp_path: Path, *rows: tuple[bytes, bytes], header=HEADER, kind: int = 0, data: bytes = bytes(64)) -> Path:
    (tmp_path / "x.index").write_bytes(table([[header, *rows]], kind))
    (tmp_path / "x.data-00000-of-00001").write_bytes(data)
    return tmp_path / "x"


def test_the_hand_written_table_is_read(tmp_path):
    data = np.arange(16, dtype=np.float32).tobytes()
    sums = [masked(crc32c(data[start : start + 4])) for start in range(0, 64, 4)]
    rows = [(b"layer_%02d" % i, entry(offset=4 * i, size=4, shape=(1,), checksum=checksum)) for i, checksum in enumerate(sums)]
    (tmp_path / "x.index").write_bytes(table([[HEADER, *rows[:7]], rows[7:12], rows[12:]]))
    (tmp_path / "x.data-00000-of-00001").write_bytes(data)
    assert [tensor.item() for tensor in open_bundle(tmp_path / "x").values()] == list(range(16))


HOSTILE = {
    "offset near 2^63": entry(offset=0x7FFFFFFFFFFFFFF0),
    "offset and size near 2^63": entry(offset=0x7FFFFFFFFFFFFFF0, size=0x7FFFFFFFFFFFFFF0, shape=(0x1FFFFFFFFFFFFFFC,)),
    "offset negative": entry(offset=-8),
    "size negative": entry(size=-8),
    "size and dimension negative": entry(size=-8, shape=(-2,)),
    "two negative dimensions": entry(size=8, shape=(-1, -2)),
    "2^62 by 2^62": entry(shape=(2**62, 2**62)),
    "2^62 by 4 overflows to zero": entry(shape=(2**62, 4), size=0),
    "empty of 2^62": entry(shape=(0, 2**62, 2**62), size=0),
    "a terabyte": entry(shape=(2**38,), size=2**40),
    "64 axes": entry(shape=(1,) * 64, size=4),
    "another shard": entry(shard=1),
    "shard negative": entry(shard=-1),
    "string": entry(kind=7),
    "type 0": entry(kind=0),
    "type 10^9": entry(kind=10**9),
    "size of another shape": entry(size=4),
    "checksum": entry(checksum=1),
    "shape as a number": field(1, 1) + field(2, 5),
    "offset as bytes": field(1, 1) + field(4, b"abc"),
    "cut": entry()[:-3],
    "a group": b"\x0b" + entry(),
    "endless varint": b"\xff" * 40,
    "slice of 2^62": entry(shape=(2**62,), extents=[[(0, 2**62)]]),
    "slice missing": entry(shape=(4,), extents=[[(0, 2)], [(2, 2)]]),
    "slice of other rank": entry(shape=(4,), extents=[[(0, 2), (0, 1)]]),
    "slice of no axis": entry(shape=(), extents=[[]]),
    "slices along two axes": entry(shape=(2, 2), extents=[[(0, 1), (0, 1)], [(1, 1), (1, 1)]]),
    "slice beyond": entry(shape=(4,), extents=[[(2**63 - 1, 2)]]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_lies_are_errors_without_allocation(tmp_path, name):
    prefix = bundle_of(tmp_path, (b"w", HOSTILE[name]))
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=r"'w'|index"):
            open_bundle(prefix)["w"]
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("parts", "message"), [
    ([(0, 2), (2, 2)], None),
    ([(2, 2), (0, 2)], None),
    ([(0, 2), (1, 2)], "begins at 1 is missing or overlaps"),
    ([(0, 2), (3, 1)], "begins at 3 is missing or overlaps"),
    ([(0, 2)], "end at 2 of 4"),
    ([(-1, 2), (2, 2)], "begins at -1"),
])  # fmt: skip
def test_slices_must_tile(tmp_path, parts, message):
    data = np.arange(4, dtype=np.float32).tobytes()
    rows = []
    for start, length in parts:
        piece = data[4 * start : 4 * (start + length)]
        key = b"\0w\0\1\1\1" + tensorflow._signed(start) + tensorflow._signed(length)
        rows.append((key, entry(shape=(length,), offset=4 * max(start, 0), size=4 * length, checksum=masked(crc32c(piece)))))
    # slices may come in any order, and never share bytes
    whole = entry(shape=(4,), size=0, extents=[[part] for part in parts])
    prefix = bundle_of(tmp_path, *sorted(rows), (b"w", whole), data=data)
    if message is None:
        assert open_bundle(prefix)["w"].tolist() == [0, 1, 2, 3]
    else:
        with pytest.raises(CheckpointError, match=f"{message}|overlap"):
            open_bundle(prefix)["w"]


def test_tensors_that_share_bytes_are_refused(tmp_path):
    checksum = masked(crc32c(bytes(8)))
    prefix = bundle_of(tmp_path, (b"v", entry(checksum=checksum)), (b"w", entry(offset=4, checksum=checksum)))
    with pytest.raises(CheckpointError, match="overlap"):
        open_bundle(prefix)


@pytest.mark.parametrize(("options", "message"), [
    ({"header": (b"", field(1, 1) + field(2, 1))}, "big-endian.*Convert"),
    ({"header": (b"", field(1, 0))}, "0 data files"),
    ({"header": (b"", field(1, -1))}, "-1 data files"),
    ({"header": (b"", field(1, 2**40))}, "data files"),
    ({"header": (b"a", b"")}, "no header"),
    ({"kind": 1}, "compressed.*Convert"),
])  # fmt: skip
def test_unsupported_bundles_say_how_to_convert(tmp_path, options, message):
    with pytest.raises(CheckpointError, match=message):
        open_bundle(bundle_of(tmp_path, (b"w", entry()), **options))


@pytest.mark.parametrize("rows", [[(b"b", b""), (b"a", b"")], [(b"a", b""), (b"a", b"")], [(b"\xff\xfe", b"")]])
def test_names_out_of_order_twice_or_not_utf8(tmp_path, rows):
    with pytest.raises(CheckpointError, match="out of order|UTF-8"):
        open_bundle(bundle_of(tmp_path, *rows))


def test_prefixes_that_repeat_without_end_are_cut_short(tmp_path):
    """Eight bytes an entry, each of which stands for a name of 65,536: 20,000 of them would be 1.3 GB of names."""
    name = b"a" * 65_536
    rows = b"".join([number(0) + number(0) + number(2) + field(1, 1), number(0) + number(len(name)) + number(0) + name])
    rows += b"".join(number(len(name)) + number(5) + number(0) + b"%05d" % i for i in range(20_000))
    content = rows + struct.pack("<2I", 0, 1)
    out = content + b"\0" + struct.pack("<I", masked(crc32c(content + b"\0")))
    handle = number(0) + number(len(content))
    last = block([(b"~", handle)])
    start = len(out)
    out += last + b"\0" + struct.pack("<I", masked(crc32c(last + b"\0")))
    out += (handle + number(start) + number(len(last))).ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)
    (tmp_path / "x.index").write_bytes(out)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="too long"):
            open_bundle(tmp_path / "x")
        assert tracemalloc.get_traced_memory()[1] < 300_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("value", "code"), [  # strings/ordered_code_test.cc writes the same bytes
    (0, "80"), (-1, "7f"), (1, "81"), (63, "bf"), (64, "c040"), (-64, "40"), (-65, "3fbf"), (8191, "dfff"), (8192, "e02000"),
])  # fmt: skip
def test_ordered_code(value, code):
    assert tensorflow._signed(value).hex() == code
