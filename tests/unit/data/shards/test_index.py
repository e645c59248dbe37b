import numpy as np
import pytest

from data.shards.index import Member, SampleEntry, ShardIndex, index_bytes

ENTRIES = [
    SampleEntry(
        key=f"{number:06d}",
        image=Member(extension="jpg", offset=512, size=100),
        label=number,
        members=(Member(extension="json", offset=1024, size=10),),
    )
    for number in range(3)
]


def test_an_index_reads_back_what_was_written(tmp_path):
    path = tmp_path / "shard.idx"
    path.write_bytes(index_bytes(ENTRIES))
    index = ShardIndex(path)
    assert [index[position] for position in range(len(index))] == ENTRIES
    assert index.labels.tolist() == [0, 1, 2]


def test_a_damaged_index_never_raises_anything_but_a_value_error(tmp_path):
    whole = np.frombuffer(index_bytes(ENTRIES), np.uint8)
    path = tmp_path / "shard.idx"
    refused = []
    for place in range(len(whole)):
        path.write_bytes(np.where(np.arange(len(whole)) == place, 0xFF, whole).astype(np.uint8).tobytes())
        try:
            index = ShardIndex(path)
            for position in range(len(index)):
                index[position]
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) > 20
    assert all("shard.idx" in words and "make it again" in words for words in refused)


def test_an_unknown_extension_is_named(tmp_path):
    path = tmp_path / "shard.idx"
    content = bytearray(index_bytes(ENTRIES))
    content[64 + 46 : 64 + 48] = b"\xff\x00"  # the first record's extension
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"shard.idx is damaged \(extension 255\); make it again"):
        ShardIndex(path)[0]


@pytest.mark.parametrize("label", [-2, -(2**63), 10**6, 2**62])
def test_a_label_that_is_no_class_number_is_named(tmp_path, label):
    path = tmp_path / "shard.idx"
    content = bytearray(index_bytes(ENTRIES))
    content[64 + 16 : 64 + 24] = label.to_bytes(8, "little", signed=True)
    path.write_bytes(content)
    for read in (lambda index: index[0], lambda index: index.labels):
        with pytest.raises(ValueError, match=rf"shard.idx is damaged \(class number {label}\); make it again"):
            read(ShardIndex(path))
