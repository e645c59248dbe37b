"""Tables as programs and people write them."""

import pytest

from data.sources.tables.reading import read_table


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("path,label\na.jpg,x\nb.jpg,y\n", {"path": ["a.jpg", "b.jpg"], "label": ["x", "y"]}),
        ("path;label\na.jpg;1,5\nb.jpg;2\n", {"path": ["a.jpg", "b.jpg"], "label": ["1,5", "2"]}),
        ("path\tlabel\na.jpg\tx y\n", {"path": ["a.jpg"], "label": ["x y"]}),
        ("path|label\na.jpg|x\n", {"path": ["a.jpg"], "label": ["x"]}),
        ("sep=;\r\npath;label\r\na.jpg;x\r\n", {"path": ["a.jpg"], "label": ["x"]}),
        ("\ufeffpath,label\na.jpg,x\n", {"path": ["a.jpg"], "label": ["x"]}),
        ("a.jpg,x\nb.JPG,y\n", {"path": ["a.jpg", "b.JPG"], "label": ["x", "y"]}),
        ("dir/a.jpg 0\ndir/my b.jpg 1\n", {"path": ["dir/a.jpg", "dir/my b.jpg"], "label": ["0", "1"]}),
        ("a.jpg\tx\nb.jpg\ty\n", {"path": ["a.jpg", "b.jpg"], "label": ["x", "y"]}),
        ("a.jpg golden retriever\n", {"path": ["a.jpg"], "label": ["golden retriever"]}),
        ("path label\na.jpg 0\n", {"path": ["a.jpg"], "label": ["0"]}),
        ("a.jpg\nb.jpg\n", {"path": ["a.jpg", "b.jpg"]}),
        (
            "0\t5.0\ta.jpg\n1\t6.0\tb.jpg\n",
            {"column 1": ["0", "1"], "column 2": ["5.0", "6.0"], "path": ["a.jpg", "b.jpg"]},
        ),
        ('path,label\n"my, a.jpg",x\n', {"path": ["my, a.jpg"], "label": ["x"]}),
        ("image_id,label\n17,x\n", {"image_id": ["17"], "label": ["x"]}),
    ],
)
def test_separators_names_and_lists(tmp_path, text, columns):
    path = tmp_path / "list.txt"
    path.write_text(text)
    assert read_table(path) == columns


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label,label\na.jpg,x,y\n", "two columns called 'label'"),
        ("path,label\na.jpg,x,y\n", "row 1 of .* has 3 fields, the first line names 2"),
        ("a.jpg,x\nb.jpg\n", "row 2 of .* has 1 fields, the first has 2"),
    ],
)
def test_what_is_no_table_is_named(tmp_path, text, message):
    path = tmp_path / "list.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_table(path)
