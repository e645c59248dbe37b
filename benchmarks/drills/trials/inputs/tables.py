"""Tables as spreadsheets, pandas and people write them: separators, paths, labels that mean two things."""

from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.drills.trials.case import Case
from benchmarks.drills.trials.inputs.trees import files, written

IMAGES = ("photos/1.jpg", "photos/2.jpg", "photos/3.jpg")


def case(
    name: str,
    text: str | bytes,
    *options: str,
    table: str = "list.csv",
    images: Sequence[str] = IMAGES,
    **expected: object,
) -> Case:
    """Write the shards of a table that lies beside a folder of three images."""

    def prepare(folder: Path) -> list[str]:
        files(*images, texts={table: text})(folder / "in")
        source = ["--source", f"in/{table}", "--out", "out"]
        return ["data/main.py", "write", *source, "--processes", "1", *options]

    return Case(name=name, make=prepare, **expected)  # type: ignore[arg-type]


def three(*classes: str) -> Callable[[Path], str | None]:
    """Check that all three images were written with these classes."""
    return written(list(classes) or None, train=3)


def rows(header: str, *labels: str, path: str = "photos/{}.jpg", separator: str = ",") -> str:
    """Write a table of the three images."""
    lines = [path.format(number) + (f"{separator}{label}" if label else "") for number, label in enumerate(labels, 1)]
    return "\n".join([header, *lines] if header else lines) + "\n"


CASES: list[Case] = [
    case("ids_without_suffix", rows("image_id,label", "a", "b", "a", path="{}"), says="photos", check=three("a", "b")),
    case("path_label_list", rows("", "0", "1", "0", separator=" "), table="list.txt", check=three("0", "1")),
    case("semicolons", rows("path;label", "a", "b", "a", separator=";"), check=three("a", "b")),
    case("backslashes", rows("path,label", "a", "b", "a", path="photos\\{}.jpg"), check=three("a", "b")),
    case("pandas_floats", rows("path,label", "0.0", "1.0", "nan"), check=three("0", "1")),
    case("minus_one", rows("path,label", "-1", "0", "1"), code=1, says="holds -1: say --no-label=-1"),
    case("minus_one_answered", rows("path,label", "-1", "0", "1"), "--no-label=-1", check=three("0", "1")),
    case("fractions", rows("path,label", "0.5", "0", "1"), code=1, says="holds 0.5, which is no class number"),
    case("numbers_and_words", rows("path,label", "0", "1", "?"), code=1, says=r"numbers \(0, ...\) and '\?'"),
    case("numbers_from_one", rows("path,label", "1", "2", "1"), says="1 of the 3 classes", check=three("0", "1", "2")),
    case("no_header", rows("", "a", "b", "a"), check=three("a", "b")),
    case(
        "two_labels_of_one", "path,label\nphotos/1.jpg,a\nphotos/1.jpg,b\n", code=1, says="twice, with different labels"
    ),
    case("same_column_twice", "path,label,label\nphotos/1.jpg,a,b\n", code=1, says="two columns called 'label'"),
    case("mxnet_list", "0\t1.0\tphotos/1.jpg\n1\t0.0\tphotos/2.jpg\n", code=1, table="list.lst", says="--label-column"),
    case(
        "mxnet_list_answered",
        "0\t1.0\tphotos/1.jpg\n1\t0.0\tphotos/2.jpg\n",
        *("--label-column", "column 2"),
        table="list.lst",
        check=written(["0", "1"], train=2),
    ),
    case("multi_label", rows("path,label", "0 1", "1", "2"), code=1, says="'0 1', several labels of one image"),
    case(
        "split_column",
        rows("path,label,split", "a,train", "b,train", "a,test"),
        says="splits are the column 'split'",
        check=written(["a", "b"], train=2, val=1),
    ),
    case(
        "split_column_blank",
        rows("path,label,split", "a,train", "b,", "a,test"),
        code=1,
        says="of which '' is no split .* --split-column none",
    ),
    case(
        "split_column_ignored",
        rows("path,label,split", "a,train", "b,", "a,test"),
        *("--split-column", "none"),
        check=three("a", "b"),
    ),
    case("split_of_numbers", rows("path,label,split", "a,0", "b,0", "a,1"), code=1, says="'0', '1' is no split"),
    case(
        "is_valid", rows("path,label,is_valid", "a,False", "b,0", "a,True"), check=written(["a", "b"], train=2, val=1)
    ),
    case("trainval", rows("path,label,split", "a,trainval", "b,trainval", "a,test"), says="val is test"),
    case("boxes", rows("path,class,xmin", "a,1", "b,2", "a,1"), code=1, says="has boxes .*--label-column"),
    case("utf_16", rows("path,label", "a", "b", "a").encode("utf-16"), code=1, says="UTF-8"),
    case("missing_images", rows("path,label", "a", "b", "a", path="x/{}.jpg"), code=1, says="--images FOLDER"),
    case("empty", "", code=1, says="has no rows"),
]
