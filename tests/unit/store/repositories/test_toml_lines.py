"""Each key of a TOML text is on the line that `find_lines` says, however it is written."""

import tomllib

from hypothesis import given
from hypothesis import strategies as st

from store.repositories.toml_lines import find_lines

KEY = st.from_regex(r"[a-z]{1,3}(-[a-z0-9])?", fullmatch=True)
SCALARS = st.sampled_from(
    ["1", "1.5", "true", '"a # b"', r'"\"] = \\"', "'x = 1 # ['", "1979-05-27 07:32:00", "+inf",
     '"""\n[no]\nk = "1"\n"""', "'''\nit's # no\n'''", '"""a""""', "[]", "{}", "''"]
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner).map(lambda items: "[ # [[\n" + "".join(f" {i},\n" for i in items) + "]")
        | st.lists(inner.filter(lambda text: "\n" not in text)).map(lambda i: f"[{', '.join(i)}]")
        | st.dictionaries(KEY, inner.filter(lambda text: "\n" not in text), min_size=1).map(
            lambda table: "{" + ", ".join(f"{k} = {v}" for k, v in table.items()) + "}"
        )
    ),
    max_leaves=5,
)
QUOTES = st.sampled_from(["{}", '"{}"', "'{}'"])
TABLES = st.dictionaries(KEY, st.tuples(QUOTES, VALUES), max_size=4)
NOISE = st.sampled_from(["", "\n", "# x = 1\n", "  # [a.b]\n\n"])


@given(st.dictionaries(st.tuples(KEY, KEY), st.tuples(TABLES, NOISE, st.booleans()), max_size=4))
def test_every_key(
    document: dict[tuple[str, str], tuple[dict[str, tuple[str, str]], str, bool]],
) -> None:
    """Tables with headers or dotted keys; the text is written, and its lines are counted."""
    text, expected = "", {}

    def line() -> int:
        return text.count("\n") + 1

    for (outer, inner), (table, noise, dotted) in sorted(
        document.items(), key=lambda i: not i[1][2]
    ):
        place = ("t", f"{outer}.{inner}")
        name = f't."{outer}.{inner}"'
        text += noise
        if not dotted:
            expected[place] = line()
            text += f"[ {name} ] # y\n"
        for key, (quotes, value) in table.items():
            expected.setdefault(place, line())
            expected[*place, key] = line()
            written = quotes.format(key)
            text += f"{name} . {written} = {value}\n" if dotted else f"\t{written}= {value} # z\n"
    tomllib.loads(text)
    lines = find_lines(text)
    assert {place: lines[place] for place in expected} == expected
    assert {place for place in lines if len(place) == 3} == {p for p in expected if len(p) == 3}


def test_lists_of_tables_and_inline_tables() -> None:
    text = """\
[[a]]
x = 1
[[a]]
[a.sub]
y = [
  1, { in = 2,
       er.x = 3 }, 4]
""".replace(",\n       er", ", er")
    assert find_lines(text) == {
        ("a",): 1,
        ("a", 0): 1,
        ("a", 0, "x"): 2,
        ("a", 1): 3,
        ("a", 1, "sub"): 4,
        ("a", 1, "sub", "y"): 5,
        ("a", 1, "sub", "y", 0): 6,
        ("a", 1, "sub", "y", 1): 6,
        ("a", 1, "sub", "y", 1, "in"): 6,
        ("a", 1, "sub", "y", 1, "er"): 6,
        ("a", 1, "sub", "y", 1, "er", "x"): 6,
        ("a", 1, "sub", "y", 2): 6,
    }
