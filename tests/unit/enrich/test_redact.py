from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onlooker import semconv
from onlooker.batches import Text, Values
from onlooker.enrich.redact import SENSITIVE_QUERY_PARAMS, QueryRedactor
from support.request_batches import a_request, requests


@pytest.mark.parametrize(
    ("query", "after"),
    [
        (b"q=shoes&page=2", b"q=shoes&page=2"),
        (b"token=abc", b"token=REDACTED"),
        (b"a=1&Password=x&b=2", b"a=1&Password=REDACTED&b=2"),
        (b"a=1;sig=x", b"a=1;sig=REDACTED"),
        (b"pass%77ord=x", b"pass%77ord=REDACTED"),
        (b"X-Amz-Signature=abc&X-Amz-Date=1", b"X-Amz-Signature=REDACTED&X-Amz-Date=1"),
        (b"token=a=b=c", b"token=REDACTED"),
        (b"token=", b"token="),
        (b"token", b"token"),
        (b"mytoken=x", b"mytoken=x"),
        (b"q=token", b"q=token"),
        (b"", b""),
        (b"\xff=\xfe&pwd=\x00", b"\xff=\xfe&pwd=REDACTED"),
    ],
)
def test_table(query, after):
    assert QueryRedactor().redact(query) == after


@pytest.mark.parametrize("name", SENSITIVE_QUERY_PARAMS)
def test_each_name_of_the_list(name):
    redactor = QueryRedactor()
    assert redactor.redact(f"x=1&{name}=hush".encode()) == f"x=1&{name}=REDACTED".encode()
    assert redactor.redact(f"{name.upper()}=hush".encode()) == f"{name.upper()}=REDACTED".encode()


def test_names_can_be_added_and_removed():
    redactor = QueryRedactor(add=["ticket.no"], remove=["Session"])
    assert redactor.redact(b"ticket.no=1&session=2&ticketxno=3") == b"ticket.no=REDACTED&session=2&ticketxno=3"


def test_with_nothing_on_the_list_nothing_is_touched():
    assert QueryRedactor(remove=SENSITIVE_QUERY_PARAMS).redact(b"token=a") == b"token=a"


@pytest.mark.parametrize(
    ("url", "after"),
    [
        (b"http://anna:secret@host/x?a=1", b"http://REDACTED:REDACTED@host/x?a=1"),
        (b"http://host/x?token=1#frag", b"http://host/x?token=REDACTED#frag"),
        (b"http://host/x@y", b"http://host/x@y"),
        (b"http://host/", b"http://host/"),
    ],
)
def test_whole_urls(url, after):
    assert QueryRedactor().redact_url(url) == after


@given(st.binary(max_size=60), st.sampled_from(SENSITIVE_QUERY_PARAMS))
def test_a_secret_never_comes_through(noise, name):
    secret = b"Zq7hush9"
    query = noise + b"&" + name.encode() + b"=" + secret
    assert secret not in QueryRedactor().redact(query)


def test_a_column_keeps_its_other_rows():
    values = Values()
    batch = requests(
        values,
        [
            a_request(query=b"a=1"),
            a_request(),
            a_request(query=b"token=x&b=2"),
            a_request(query=b"token=x&b=2"),
            a_request(query=b""),
        ],
    )
    before = batch.varying[semconv.URL_QUERY]
    QueryRedactor().apply(batch.varying)
    column = batch.varying[semconv.URL_QUERY]
    assert isinstance(column, Text)
    assert [column[i] for i in range(5)] == [b"a=1", None, b"token=REDACTED&b=2", b"token=REDACTED&b=2", b""]
    assert isinstance(before, Text)
    assert before[2] == b"token=x&b=2"  # the pool of the kernel's records is never written to


def test_a_column_without_secrets_is_the_same_object():
    batch = requests(Values(), [a_request(query=b"a=1")])
    before = batch.varying[semconv.URL_QUERY]
    QueryRedactor().apply(batch.varying)
    assert batch.varying[semconv.URL_QUERY] is before


def test_only_rows_that_somebody_will_see_are_looked_at():
    batch = requests(Values(), [a_request(query=b"token=x"), a_request(query=b"token=y"), a_request()])
    QueryRedactor().apply(batch.varying, np.array([False, True, True]))
    column = batch.varying[semconv.URL_QUERY]
    assert isinstance(column, Text)
    assert [column[i] for i in range(3)] == [b"token=x", b"token=REDACTED", None]
