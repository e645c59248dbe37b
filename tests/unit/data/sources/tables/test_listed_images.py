"""Tables of paths and labels."""

import sys
from pathlib import Path

import pytest

from data.sources.tables.listed_images import find_listed_images
from data.writing.journal import Rejected
from tests.unit.data.write_options import write_options

IMAGENET = Path(__file__).resolve().parents[6] / "shared" / "data" / "imagenet_samples_1k"


@pytest.fixture
def table(tmp_path, encoded):
    (tmp_path / "photos").mkdir()
    for number in range(3):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(encoded(number))

    def table(text, *, name="list.csv"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return table


def find(table, **options):
    return find_listed_images(write_options(table, **options), table)["train"]


def test_names_are_numbered_in_sorted_order_and_paths_start_at_the_table(table, encoded):
    source = find(table("path,label\nphotos/1.jpg,dog\nphotos/0.jpg,cat\nphotos/2.jpg,\n"))
    assert (source.classes, source.labels) == (("cat", "dog"), (1, 0, -1))
    assert [source.prepare(number).label for number in range(3)] == [1, 0, None]
    assert source.prepare(0).members == {"jpg": encoded(1)}


def test_numbers_are_class_numbers(table):
    source = find(table("file\tclass\nphotos/1.jpg\t2\nphotos/0.jpg\t0\n", name="list.tsv"))
    assert (source.classes, source.labels) == (("0", "1", "2"), (2, 0))
    named = find(table("file,class\nphotos/1.jpg,1\n"), names=["x", "y", "z"])
    assert (named.classes, named.labels) == (("x", "y", "z"), (1,))


def test_columns_and_the_folder_of_images_can_be_named(table, tmp_path):
    path = table('a,b,c\n0.jpg,"red, dark",7\n1.jpg,blue,8\n')
    source = find(path, images=tmp_path / "photos", path_column="a", label_column="b")
    assert source.classes == ("blue", "red, dark")
    assert find(path, images=tmp_path / "photos", path_column="a", label_column="none").classes is None
    absolute = table(f"path\n{tmp_path}/photos/0.jpg\n")
    assert find(absolute).paths == (f"{tmp_path}/photos/0.jpg",)


def test_a_missing_file_further_down_goes_into_the_ledger(table):
    source = find(table("path\nphotos/0.jpg\nphotos/9.jpg\n"))
    assert isinstance(source.prepare(1), Rejected)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (
            "name,label\nx,1\n",
            {},
            r"no column that is called like a path: choose one with --path-column \(it has name, label\)",
        ),
        (
            "path,colour\nphotos/0.jpg,1\n",
            {},
            r"called like a label: choose one with --label-column .*; none for images",
        ),
        ("path,label\nphotos/0.jpg,1\n", {"label_column": "x"}, "has no column 'x'"),
        ("path,label\nnowhere.jpg,1\n", {}, r"nowhere.jpg, the first image of .* is missing; .* --images FOLDER"),
        ("path,label\nphotos/0.jpg\n", {}, "row 1 of .* has 1 fields, the first line names 2"),
        ("path,label\n", {}, "has no rows"),
        ("", {}, "has no rows"),
        ("path,label\nphotos/0.jpg,1\n,2\n", {}, "row 2 has no path"),
        ("path\nhttp://x/y.jpg\n", {}, "is remote; only local images are packed"),
        ("path,label\nphotos/0.jpg,99999999999\n", {}, "holds class number 99999999999, expected at most 999999"),
        ("path,label\nphotos/0.jpg,3\n", {"names": ["x"]}, "holds class number 3, expected at most 0"),
        ("path,label\nphotos/0.jpg,cat\n", {"names": ["x"]}, "holds 'cat', which is not among the 1 class names"),
        ("path,label\nphotos/0.jpg,\n", {}, "holds no label"),
        ('path,label\n"photos/0.jpg,1\n', {}, "cannot be read as a table"),
    ],
)
def test_tables_that_make_no_sense_are_explained(table, text, options, message):
    with pytest.raises(ValueError, match=message):
        find(table(text), **options)


def test_parquet_reads_like_csv(table, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {"path": ["photos/0.jpg", "photos/1.jpg", "photos/2.jpg"], "label": [3, None, 1]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "list.parquet")
    found = find(tmp_path / "list.parquet")
    same = find(table("path,label\nphotos/0.jpg,3\nphotos/1.jpg,\nphotos/2.jpg,1\n"))
    assert found == same
    assert found.labels == (3, -1, 1)
    (tmp_path / "list.parquet").write_bytes(b"PAR1 hello")
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        find(tmp_path / "list.parquet")


def test_without_pyarrow_it_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "list.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match=r"needs pyarrow: run `pip install pyarrow`"):
        find(tmp_path / "list.parquet")


@pytest.mark.skipif(not IMAGENET.is_dir(), reason="not on this machine: ../shared/data/imagenet_samples_1k")
def test_a_real_table_gives_imagenets_class_numbers():
    by_wnid = find(IMAGENET / "labels.csv", images=IMAGENET / "images")
    by_number = find(IMAGENET / "labels.csv", images=IMAGENET / "images", label_column="imagenet_class_index")
    assert len(by_wnid) == len(by_wnid.classes) == 1000
    assert by_wnid.labels == by_number.labels
    assert by_wnid.classes[0] == "n01440764"


def test_a_column_of_splits_divides_the_images(table):
    path = table("path,label,split\nphotos/0.jpg,a,train\nphotos/1.jpg,b,test\nphotos/2.jpg,b,train\n")
    found = find_listed_images(write_options(path), path)
    assert {name: (source.classes, source.labels) for name, source in found.items()} == {
        "train": (("a", "b"), (0, 1)),
        "val": (("a", "b"), (1,)),
    }


def test_rows_whose_split_is_not_known_are_asked_about(table, caplog):
    path = table("path,label,split\nphotos/0.jpg,a,train\nphotos/1.jpg,b,\nphotos/2.jpg,b,val\n")
    with pytest.raises(ValueError, match="of which '' is no split that is known"):
        find(path)
    assert len(find(path, split_column="none")) == 3
    found = find(table("path,label,split\nphotos/0.jpg,a,train\nphotos/1.jpg,b,val\n"))
    assert len(found) == 1
    assert "1 classes of val have no row to train on: b" in caplog.text


def test_an_image_of_two_labels_is_refused_and_one_that_is_named_twice_is_told(table, caplog):
    assert len(find(table("path,label\nphotos/0.jpg,a\nphotos/1.jpg,b\nphotos/0.jpg,a\n"))) == 3
    assert "1 rows name an image that another one names, too" in caplog.text
    for again in ("photos/0.jpg", "./photos/../photos/0.jpg"):
        with pytest.raises(ValueError, match=r"names .*0.jpg twice, with different labels"):
            find(table(f"path,label\nphotos/0.jpg,a\n{again},b\n"))


def test_boxes_are_not_read_as_classes(table):
    path = table("filename,class,xmin,ymin,xmax,ymax\nphotos/0.jpg,a,1,1,2,2\nphotos/1.jpg,b,1,1,2,2\n")
    with pytest.raises(ValueError, match=r"has boxes \(xmin, ymin, xmax, ymax\), which are not read from tables"):
        find(path)
    assert find(path, label_column="class").classes == ("a", "b")


def test_the_column_that_names_an_image_is_found_whatever_its_name(table, tmp_path):
    source = find(table("id,diagnosis\n0,x\n1,y\n"), images=tmp_path / "photos", label_column="diagnosis")
    assert [path.rpartition("/")[2] for path in source.paths] == ["0.jpg", "1.jpg"]
