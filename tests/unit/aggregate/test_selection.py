from __future__ import annotations

import pytest

from onlooker.aggregate.selection import AttributeSelection, Selection

METRIC = "http.server.request.duration"
DEFAULTS = ("http.request.method", "http.response.status_code", "http.route")
OPTIONAL = ("url.path", "client.address")


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({}, DEFAULTS),
        ({"rpc.*": Selection(exclude=("*",))}, DEFAULTS),
        ({METRIC: Selection(exclude=("http.route",))}, DEFAULTS[:2]),
        ({METRIC: Selection(include=("url.path",))}, ("url.path",)),
        ({"http_server_request_duration_seconds": Selection(include=("url_*",))}, ("url.path",)),
        ({"http_server_request_duration_seconds_bucket": Selection(include=("url_*",))}, ("url.path",)),
        ({"*": Selection(exclude=("http_response_status_code",))}, (DEFAULTS[0], DEFAULTS[2])),
        ({"*": Selection(include=("*",))}, (*DEFAULTS, *OPTIONAL)),
        (
            {METRIC: Selection(include=("url.path",)), "*": Selection(include=("http.route",))},
            ("http.route", "url.path"),
        ),
        (
            {METRIC: Selection(include=("url.path",)), "http.*": Selection(exclude=("http.route",))},
            ("http.request.method", "http.response.status_code", "url.path"),
        ),
        ({METRIC: Selection(include=("*",), exclude=("http.*",))}, OPTIONAL),
        ({METRIC: Selection(include=("no.such",))}, ()),
    ],
)
def test_table(sections, expected):
    assert AttributeSelection(sections).attributes(METRIC, DEFAULTS, OPTIONAL) == expected
