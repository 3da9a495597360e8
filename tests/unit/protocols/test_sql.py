from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onlooker.protocols._sql import DIALECTS, MAX_CHARS, MAX_SUMMARY_CHARS, MAX_TEXT_CHARS, Statements

CASES = [
    ("select * from orders where id = 5", "SELECT orders", "SELECT", "orders", "select * from orders where id = ?"),
    (
        "SELECT a FROM orders o JOIN customers c ON c.id=o.cid WHERE x IN (1,2, 3) -- why",
        "SELECT orders customers",
        "SELECT",
        "orders",
        "SELECT a FROM orders o JOIN customers c ON c.id=o.cid WHERE x IN (?)",
    ),
    ("INSERT INTO users (a,b) VALUES (1,'x'),(2,'y''z')", "INSERT users", "INSERT", "users", None),
    ("insert into t select * from s", "INSERT t SELECT s", "INSERT", "t", None),
    ("delete from only public.t where x is distinct from y", "DELETE public.t", "DELETE", "public.t", None),
    ("with a as (select * from b) select * from a join c on true", "SELECT b SELECT c", "SELECT", "b", None),
    ("select extract(year from created) from songs, artists", "SELECT songs artists", "SELECT", "songs", None),
    ("select * from generate_series(1, 10)", "SELECT", "SELECT", "", None),
    ("select 1 from t for update", "SELECT t", "SELECT", "t", None),
    ("insert into t values (1) on conflict do update set a = 2", "INSERT t", "INSERT", "t", None),
    ("create unique index concurrently i on foo (a)", "CREATE INDEX foo", "CREATE", "foo", None),
    ("drop table if exists foo", "DROP TABLE foo", "DROP", "foo", None),
    ("declare c cursor for select * from t", "DECLARE SELECT t", "DECLARE", "t", None),
    ("fetch 100 from c", "FETCH", "FETCH", "", None),
    ("copy t from stdin", "COPY t", "COPY", "t", None),
    ("begin", "BEGIN", "BEGIN", "", "begin"),
    ("select $$a b$$, $x$ it's $x$, E'\\'', U&'d', x'1f' from \"My Table\"", "SELECT My Table", "SELECT", "My Table",
     'select ?, ?, ?, ?, ? from "My Table"'),
    ("/* a /* b */ c */ select 1", "SELECT", "SELECT", "", "select ?"),
    ("select $1, t1.c2, .5, 1e-3, -7 from t1", "SELECT t1", "SELECT", "t1", "select $1, t1.c2, ?, ?, -? from t1"),
    ("call settle(1, 2)", "CALL settle", "CALL", "", None),
    ("explain analyze select * from t", "EXPLAIN SELECT t", "EXPLAIN", "t", None),
    ("grant select on t to bob", "GRANT", "GRANT", "", None),
]  # fmt: skip
MYSQL = [
    (
        'select `a` from `db`.`t x` where a = "sec\\"ret" # why',
        "SELECT db.t x",
        "select `a` from `db`.`t x` where a = ?",
    ),
    ("replace into t values (1)", "REPLACE t", "replace into t values (?)"),
    ("/*!40101 SET NAMES utf8 */", "SET", "SET NAMES utf8"),
    ("update low_priority t set a='it\\'s'", "UPDATE t", "update low_priority t set a=?"),
    ("select _utf8'abc', 1--1", "SELECT", "select ?, ?--?"),
    ("create procedure p() begin select 1; select 2; end", "CREATE PROCEDURE", None),
]
MSSQL = [
    ("select top 10 [a] from [dbo].[My Table] where x = N'abc' and y=@p1", "SELECT dbo.My Table", "dbo.My Table"),
    ("exec dbo.settle @a = 5", "EXEC dbo.settle", ""),
    ("update top (10) t set a = $5.20", "UPDATE t", "t"),
]


@pytest.mark.parametrize(("sql", "summary", "operation", "collection", "text"), CASES)
def test_postgresql(sql: str, summary: str, operation: str, collection: str, text: str | None) -> None:
    (statement,) = Statements("postgresql").describe(sql.encode())
    assert (statement.summary, statement.operation, statement.collection) == (summary, operation, collection)
    assert text is None or statement.text == text


@pytest.mark.parametrize(("sql", "summary", "text"), MYSQL)
def test_mysql(sql: str, summary: str, text: str | None) -> None:
    (statement,) = Statements("mysql").describe(sql.encode())
    assert statement.summary == summary
    assert text is None or statement.text == text


@pytest.mark.parametrize(("sql", "summary", "collection"), MSSQL)
def test_mssql(sql: str, summary: str, collection: str) -> None:
    (statement,) = Statements("mssql").describe(sql.encode())
    assert (statement.summary, statement.collection) == (summary, collection)


def test_lists_and_rows_fold() -> None:
    described = Statements("postgresql").describe
    texts = {described(f"select 1 from t where a in ({', '.join(['$1'] * n)})".encode())[0].text for n in (1, 2, 50)}
    assert texts == {"select ? from t where a in (?)"}
    rows = {described(f"insert into t values {', '.join(['(1, 2)'] * n)}".encode())[0].text for n in (1, 2, 50)}
    assert rows == {"insert into t values (?)"}


def test_statements_of_one_text() -> None:
    found = Statements("postgresql").describe(b"select 1; ; select ';' from a; update b set c = 2;")
    assert [s.summary for s in found] == ["SELECT", "SELECT a", "UPDATE b"]
    assert [s.text for s in found] == ["select ?", "select ? from a", "update b set c = ?"]


def test_a_cut_text_ends_with_no_half_name() -> None:
    described = Statements("postgresql").describe
    assert described(b"select 1 from ord", cut=True)[0].collection == ""
    assert described(b"select 1 from a.ord", cut=True)[0].collection == ""
    assert described(b'select 1 from "my ta', cut=True)[0].collection == ""
    assert described(b"select 1 from orders wh", cut=True)[0].collection == "orders"


def test_a_cut_literal_goes_with_the_text() -> None:
    for dialect in DIALECTS:
        (statement,) = Statements(dialect).describe(b"select a from t where b = 'marker and so")
        assert "marker" not in statement.text
        assert statement.collection == "t"


def test_inlined_literals_share_an_entry_and_the_cache_is_bounded() -> None:
    statements = Statements("postgresql", capacity=8)
    for number in range(1000):
        statements.describe(f"select {number} from t where a = 'x{number}'".encode())
    assert statements.missed == 1
    for number in range(1000):
        statements.describe(f"select a from t{number}".encode())
    assert len(statements._exact) <= 8
    assert len(statements._stripped) <= 8


literal = st.one_of(
    st.just("'marker'"),
    st.just("'it''s marker'"),
    st.just("'marker -- x'"),
    st.just("'/* marker'"),
    st.just("'\"marker\"'"),
    st.just("'; marker ;'"),
    st.just("4711777"),
    st.just("-4711777.5e10"),
    st.just("0x4711777"),
)
SPECIAL = {
    "postgresql": ["$$marker$$", "$t$ 'marker $t$", "E'a\\'marker'", "U&'marker'", "B'4711777'", "/* ' */ 'marker'"],
    "postgresql-escapes": ["'a\\'marker'", "$$marker$$"],
    "mysql": ['"marker"', "'a\\'marker'", '"a\\"marker"', "_utf8'marker'", "N'marker'", "# ' \n'marker'"],
    "mysql-plain": ["'a\\'", '"marker"'],
    "mssql": ["N'marker'", "$4711777.20"],
}


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_literal_survives(data: st.DataObject) -> None:
    dialect = data.draw(st.sampled_from(sorted(DIALECTS)))
    one = st.one_of(literal, st.sampled_from(SPECIAL[dialect]))
    template = data.draw(
        st.sampled_from(
            [
                "SELECT {}, a FROM t WHERE b = {} AND c IN ({}, {}) ORDER BY 1",
                "INSERT INTO t (a, b) VALUES ({}, {}), ({}, {})",
                "UPDATE t SET a = {}||{}, b={} WHERE c LIKE {}",
                "WITH x AS (SELECT {} AS y) SELECT {} FROM x -- {} {}\n",
                "CALL p({},{},{},{})",
                "SET x = {}; SET y TO {}; /* {} */ SELECT {}",
            ]
        )
    )
    sql = template.format(*(data.draw(one) for _ in range(4)))
    end = data.draw(st.integers(0, len(sql)))
    for text in (sql, sql[:end]):
        for statement in Statements(dialect).describe(text.encode(), cut=len(text) < len(sql)):
            shown = f"{statement.text} {statement.summary} {statement.collection} {statement.procedure}"
            assert "marker" not in shown, text
            assert "4711777" not in shown, text


HOSTILE = [
    "'", "(/*", "/*", "$$", "$a$b", "''", "(", "[", "e'\\", "--", "-", "\\'", "in(?,", "),(", "VALUES (?),", ".5", "1e",
    "a ", "  ", "with a as (", "$a", "$", "_ab ", "?,", "_abcdefghijk ", "*", "select ", ";", '"', "`", "from a,", "a.",
]  # fmt: skip


@pytest.mark.parametrize("dialect", sorted(DIALECTS))
@pytest.mark.parametrize("piece", HOSTILE)
def test_hostile_text_gives_bounded_output(dialect: str, piece: str) -> None:
    # eight times what is looked at: anything worse than linear runs into the time limit of the test
    for statement in Statements(dialect).describe_text(piece * (8 * MAX_CHARS // len(piece))):
        assert len(statement.text) <= MAX_TEXT_CHARS
        assert len(statement.summary) <= MAX_SUMMARY_CHARS


@settings(max_examples=200, deadline=None)
@given(sql=st.binary(max_size=300), dialect=st.sampled_from(sorted(DIALECTS)), cut=st.booleans())
def test_any_bytes_are_described(sql: bytes, dialect: str, cut: bool) -> None:
    assert len(Statements(dialect).describe(sql, cut=cut)) <= 64
