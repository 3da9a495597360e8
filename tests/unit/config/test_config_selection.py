import pytest

from onlooker.config import Selection, load_text


def select(text: str = "", **environ: str) -> Selection:
    return load_text(text, name="f.yml", environ=environ, flags={}).selection


def labels(selection: Selection) -> list[str]:
    return [selector.source for selector in selection.selectors]


def excluded(selection: Selection, exe: str, argv: tuple[str, ...] = ()) -> bool:
    every = (*selection.exclusions, *selection.default_exclusions)
    return any(one.matches_exe(exe) and one.matches_command(argv or (exe,)) for one in every if one.exe or one.cmd_args)


SERVICES = "services: [{open_ports: 1}]"
INSTRUMENT = "instrument: [{open_ports: 2}]"


@pytest.mark.parametrize(
    ("text", "environ", "chosen"),
    [
        ("", {}, []),
        ("", {"BEYLA_OPEN_PORT": "80"}, ["BEYLA_OPEN_PORT"]),
        ("", {"BEYLA_OPEN_PORT": "80", "BEYLA_AUTO_TARGET_EXE": "*x"}, ["BEYLA_OPEN_PORT and BEYLA_AUTO_TARGET_EXE"]),
        ("open_port: 80", {}, ["open_port"]),
        ("executable_name: x", {}, ["executable_name"]),
        ("executable_name: x", {"BEYLA_AUTO_TARGET_EXE": "*y"}, ["BEYLA_AUTO_TARGET_EXE"]),
        (f"discovery: {{{SERVICES}}}", {"BEYLA_OPEN_PORT": "80"}, ["discovery.services[0]", "BEYLA_OPEN_PORT"]),
        (
            f"discovery: {{{SERVICES}, {INSTRUMENT}}}",
            {"BEYLA_OPEN_PORT": "80"},
            ["discovery.instrument[0]", "BEYLA_OPEN_PORT"],
        ),
        (f"discovery: {{{SERVICES}, {INSTRUMENT}}}", {"BEYLA_TARGET_PID": "7"}, ["BEYLA_TARGET_PID"]),
        ("discovery: {all: true}", {}, ["discovery.all"]),
        ("discovery: {instrument: [{}, {exe_path: x}]}", {}, ["discovery.instrument[1]"]),
    ],
)
def test_which_criteria_count(text: str, environ: dict[str, str], chosen: list[str]) -> None:
    assert labels(select(text, **environ)) == chosen


def test_what_is_left_out_is_told() -> None:
    text = f"discovery: {{{SERVICES}, instrument: [{{}}]}}"
    told = [note.message for note in load_text(text, name="f", environ={}, flags={}).notes]
    assert any("discovery.services is ignored" in message for message in told)
    assert any("chooses nothing" in message for message in told)


def test_a_selector_holds_all_that_it_says() -> None:
    (one,) = select(
        "discovery: {instrument: [{open_ports: '80,8000-8009', exe_path: '*/python*', languages: '{python,go}',"
        " cmd_args: '*shop*',"
        " target_pids: [7, 9-11], k8s_namespace: a*, k8s_pod_labels: {app: x}, containers_only: true, exports: [],"
        " sampler: {name: traceidratio, arg: '0.5'}, routes: {incoming: [/a]}, metrics: {features: [application]}}]}"
    ).selectors
    assert one.matches_ports([22, 8005])
    assert not one.matches_ports([22, 8010])
    assert one.matches_exe("/usr/bin/python3")
    assert not one.matches_exe("/usr/bin/ruby")
    assert one.matches_language("go")
    assert not one.matches_language("golang")
    assert [pid for pid in range(20) if one.matches_pid(pid)] == [7, 9, 10, 11]
    assert one.matches_metadata({"k8s_namespace": "ab"}, {"app": "x"}, {})
    assert not one.matches_metadata({}, {"app": "x"}, {})
    assert (one.containers_only, one.exports, one.sampler) == (True, frozenset(), ("traceidratio", "0.5"))
    assert (one.routes_incoming, one.features) == (("/a",), frozenset({"application"}))


def test_a_command_line_matches_with_or_without_its_first_word() -> None:
    (one,) = select("discovery: {instrument: [{cmd_args: 'app.py *'}]}").selectors
    assert one.matches_command(["python", "app.py", "--x"])
    (one,) = select("discovery: {instrument: [{cmd_args: 'python *'}]}").selectors
    assert one.matches_command(["python", "app.py"])
    assert not one.matches_command(["ruby", "app.py"])


@pytest.mark.parametrize("text", ["discovery: {all: true}", f"discovery: {{{SERVICES}}}"])
@pytest.mark.parametrize(
    "exe", ["/usr/bin/beyla", "/bin/alloy", "/otelcol-contrib", "/opt/otelcol", "/usr/local/bin/onlooker"]
)
def test_agents_and_collectors_are_left_alone(text: str, exe: str) -> None:
    assert excluded(select(text), exe)
    assert not excluded(select(text), "/usr/sbin/nginx")


@pytest.mark.parametrize(
    ("argv", "itself"),
    [
        (("python3", "/usr/bin/onlooker", "run", "--all"), True),
        (("python3", "-m", "onlooker", "top"), True),
        (("onlooker", "doctor"), True),
        (("python3", "/home/me/onlooker/shop.py"), False),
        (("vim", "onlooker.yml"), False),
    ],
)
@pytest.mark.parametrize("text", ["discovery: {all: true, default_exclude_instrument: []}", "target_pids: 7"])
def test_onlooker_never_watches_itself(text: str, argv: tuple[str, ...], itself: bool) -> None:
    assert excluded(select(text), "/usr/bin/python3.11", argv) is itself


def test_default_exclusions_do_not_apply_to_process_ids_but_the_users_do() -> None:
    selection = select("target_pids: 7\ndiscovery: {exclude_instrument: [{exe_path: '*/nginx'}]}")
    assert not excluded(selection, "/usr/bin/otelcol")
    assert excluded(selection, "/usr/sbin/nginx")
