import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onlooker import semconv
from onlooker.discover.language import Languages
from onlooker.discover.naming import Host, Name, clean, name_service, parse_resource_attributes, resource_of
from support.fake_proc import FakeProc

PYTHON, NODE, RUBY = "/usr/bin/python3.11", "/usr/bin/node", "/usr/bin/ruby3.1"
JAVA = "/usr/lib/jvm/java-17-openjdk-amd64/bin/java"
DEPENDENCIES = "/srv/shop/node_modules"


def named(fake: FakeProc, pid: int = 70, *, name: str = "", namespace: str = "") -> Name:
    process = fake.open().process(pid)
    assert process is not None
    return name_service(process, Languages().detect(process), name=name, namespace=namespace)


@pytest.mark.parametrize(
    ("exe", "args", "cwd", "expected"),
    [
        # Python: the script, the module, or what the server was told to serve
        (PYTHON, ["python3", "/srv/shop/worker.py"], "/", "worker"),
        (PYTHON, ["python3", "-u", "-X", "dev", "-W", "error", "worker.py", "--x"], "/srv/shop", "worker"),
        (PYTHON, ["python3", "app.py"], "/srv/shop", "shop"),
        (PYTHON, ["python3", "../src/main.py"], "/srv/billing/bin", "billing"),
        (PYTHON, ["python3", "-m", "http.server", "8000"], "/srv", "http.server"),
        (PYTHON, ["python3", "-um", "billing.worker"], "/", "billing.worker"),
        (PYTHON, ["python3", "-m", "billing.main"], "/", "billing"),
        (PYTHON, ["python3", "-m", "app"], "/srv/shop", "shop"),
        (PYTHON, ["python3", "/usr/bin/gunicorn", "-w", "4", "-b", "unix:app.sock", "shop:app"], "/srv", "shop"),
        (PYTHON, ["python3", "/usr/bin/gunicorn", "mysite.wsgi:application"], "/srv/x", "mysite"),
        (PYTHON, ["python3", "/usr/bin/gunicorn", "app:app"], "/srv/checkout", "checkout"),
        (PYTHON, ["python3", "/usr/bin/gunicorn", "--name", "orders", "app:app"], "/srv/checkout", "orders"),
        (PYTHON, ["python3", "/usr/bin/gunicorn", "--chdir", "/opt/pay", "wsgi:app"], "/srv/checkout", "pay"),
        (PYTHON, ["python3", "/usr/bin/gunicorn", "shop:create_app('dev')"], "/srv", "shop"),
        (PYTHON, ["python3", "/usr/bin/gunicorn", "--keep-alive", "30", "shop:app"], "/srv", "shop"),
        (PYTHON, ["gunicorn: master [shop:app]"], "/srv", "shop"),
        (PYTHON, ["gunicorn: worker [app:app]"], "/srv/shop", "shop"),
        (PYTHON, ["python3", "/usr/bin/uvicorn", "--port", "8000", "app.main:app"], "/srv/stock", "stock"),
        (PYTHON, ["python3", "-m", "uvicorn", "stock.api.main:app", "--workers", "2"], "/", "stock.api"),
        (PYTHON, ["python3", "-m", "hypercorn", "main:app"], "/srv/stock", "stock"),
        (PYTHON, ["python3", "/usr/bin/flask", "--app", "hello.py", "run"], "/srv", "hello"),
        (PYTHON, ["python3", "-m", "flask", "run"], "/srv/catalog", "catalog"),
        (PYTHON, ["python3", "/usr/bin/fastapi", "run", "src/main.py"], "/srv/catalog", "catalog"),
        (PYTHON, ["python3", "/usr/bin/celery", "-A", "shop", "worker", "-l", "info"], "/", "shop-worker"),
        (PYTHON, ["python3", "-m", "celery", "--app=shop.celery", "beat"], "/", "shop-beat"),
        (PYTHON, ["python3", "manage.py", "runserver"], "/srv/mysite", "mysite"),
        (PYTHON, ["python3", "/app/main.py"], "/app", "main"),
        (PYTHON, ["python3", "-c", "print(1)"], "/srv/shop", "shop"),
        (PYTHON, ["python3"], "/", "python3.11-inline"),
        # Node: package.json wins, else the script
        (NODE, ["node", "server.js"], "/srv/shop", "web-shop"),
        (NODE, ["node", "-r", "dotenv/config", "--inspect", "/srv/shop/lib/deep/server.js"], "/", "web-shop"),
        (NODE, ["node", f"{DEPENDENCIES}/.bin/next", "start"], "/srv/shop", "web-shop"),
        (NODE, ["next-server (v14.1.0)"], "/srv/shop", "web-shop"),
        (NODE, ["node", "worker.js"], "/srv/other", "worker"),
        (NODE, ["node", "index.js"], "/srv/other", "other"),
        (NODE, ["node", "-e", "1"], "/", "node-inline"),
        ("/usr/bin/deno", ["deno", "run", "--allow-net", "api.ts"], "/srv/other", "api"),
        ("/usr/bin/bun", ["bun", "run", "server.ts"], "/srv/shop", "web-shop"),
        # Java: the jar without its version, the class, or what Spring was told
        (JAVA, ["java", "-Xmx1g", "-jar", "/srv/orders-1.4.2-SNAPSHOT.jar"], "/", "orders"),
        (JAVA, ["java", "-jar", "app.jar"], "/srv/orders", "orders"),
        (JAVA, ["java", "-jar", "/srv/pay/target/quarkus-app/quarkus-run.jar"], "/", "pay"),
        (JAVA, ["java", "-cp", "a.jar:b.jar", "com.acme.ShopServer", "x"], "/", "ShopServer"),
        (JAVA, ["java", "-cp", "/app/classes", "com.acme.billing.Main"], "/", "com.acme.billing"),
        (JAVA, ["java", "-Dspring.application.name=inventory", "-jar", "x.jar"], "/", "inventory"),
        (JAVA, ["java", "-jar", "x.jar", "--spring.application.name=inventory"], "/", "inventory"),
        (JAVA, ["java", "-m", "shop.module/com.acme.Shop"], "/", "Shop"),
        (JAVA, ["java", "Hello.java"], "/srv", "Hello"),
        (JAVA, ["java", "org.springframework.boot.loader.launch.JarLauncher"], "/srv/orders", "orders"),
        (JAVA, ["java", "-Dcatalina.base=/opt/crm", "org.apache.catalina.startup.Bootstrap", "start"], "/", "crm"),
        (JAVA, ["java", "org.apache.catalina.startup.Bootstrap", "start"], "/", "tomcat"),
        # Ruby
        (RUBY, ["puma 5.6.5 (tcp://0.0.0.0:3000) [store]"], "/srv/store", "store"),
        (RUBY, ["puma: cluster worker 0: 4711 [store]"], "/srv/store", "store"),
        (RUBY, ["ruby", "bin/rails", "server"], "/srv/store", "store"),
        (RUBY, ["ruby", "/srv/hook.rb"], "/", "hook"),
        (RUBY, ["sidekiq 7.1.2 store [0 of 5 busy]"], "/srv/store", "store-sidekiq"),
        # PHP
        ("/usr/bin/php8.2", ["php", "-S", "127.0.0.1:8000", "-t", "/srv/blog/public"], "/", "blog"),
        ("/usr/bin/php8.2", ["php", "artisan", "serve"], "/srv/blog", "blog"),
        ("/usr/sbin/php-fpm8.2", ["php-fpm: pool tenants"], "/", "tenants"),
        ("/usr/sbin/php-fpm8.2", ["php-fpm: pool www"], "/", "php-fpm"),
        ("/usr/sbin/php-fpm8.2", ["php-fpm: master process (/etc/php/fpm.conf)"], "/", "php-fpm"),
        # The rest
        ("/usr/sbin/nginx", ["nginx: master process nginx -g daemon off;"], "/", "nginx"),
        ("/srv/checkout/bin/server", ["./server"], "/", "checkout"),
        ("/usr/local/bin/checkout", ["checkout", "--port", "80"], "/", "checkout"),
        ("/usr/lib/erlang/bin/beam.smp", ["beam.smp", "--", "-sname", "chat@host"], "/", "chat"),
        ("/usr/bin/perl5.36", ["perl", "-w", "/srv/report.pl"], "/", "report"),
        ("/usr/bin/dotnet", ["dotnet", "/srv/Shop.Api.dll"], "/", "Shop.Api"),
        ("/bin/bash", ["bash", "/srv/serve-all.sh"], "/", "serve-all"),
    ],
)  # fmt: skip
def test_a_program_is_called_what_its_owner_calls_it(
    tmp_path: Path, exe: str, args: list[str], cwd: str, expected: str
) -> None:
    fake = FakeProc(tmp_path)
    fake.file("/srv/shop/package.json", json.dumps({"name": "@acme/web-shop", "version": "2.1.0"}))
    fake.file(f"{DEPENDENCIES}/next/package.json", json.dumps({"name": "next"}))
    fake.add(70, exe=exe, args=list(args), cwd=cwd)
    assert named(fake).name == expected


def test_a_file_with_several_names_is_called_by_the_one_that_was_used(tmp_path: Path) -> None:
    fake = FakeProc(tmp_path)
    fake.add(70, exe="/usr/bin/redis-check-rdb", args=["redis-server 127.0.0.1:6379"], comm=b"redis-server")
    assert named(fake).name == "redis-server"


def test_the_order_of_name_sources(tmp_path: Path) -> None:
    fake = FakeProc(tmp_path)
    environ = {"OTEL_SERVICE_NAME": "by-env", "OTEL_RESOURCE_ATTRIBUTES": "service.name=by-attribute,team=a"}
    fake.add(70, environ=environ)
    fake.add(71, environ={**environ, "OTEL_SERVICE_NAME": "$(POD_NAME)"})
    fake.add(72, environ={"OTEL_RESOURCE_ATTRIBUTES": "service.name=$NAME"})
    assert (named(fake, 70, name="by-config").name, named(fake, 70, name="by-config").source) == (
        "by-config",
        "configuration",
    )
    assert named(fake, 70).name == "by-env"
    assert named(fake, 71).name == "by-attribute"
    assert (named(fake, 72).name, named(fake, 72).source) == ("app", "program")


def test_namespace_and_version_come_from_the_target(tmp_path: Path) -> None:
    fake = FakeProc(tmp_path)
    text = "service.namespace=shop,service.version=3.2"
    fake.add(70, environ={"OTEL_RESOURCE_ATTRIBUTES": text})
    fake.add(71, exe=JAVA, args=["java", "-jar", "/srv/orders-1.4.2.jar"])
    fake.file("/srv/x/package.json", '{"name": "x", "version": "2.1.0"}')
    fake.add(72, exe=NODE, args=["node", "/srv/x/a.js"])
    assert (named(fake).namespace, named(fake).version) == ("shop", "3.2")
    assert named(fake, namespace="other").namespace == "other"
    assert named(fake, 71).version == "1.4.2"
    assert named(fake, 72).version == "2.1.0"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("a=1,b=2", {"a": "1", "b": "2"}),
        (" a = 1 ,, b ,=c,d=", {"a": "1"}),
        ("a=x%2Cy%20z", {"a": "x,y z"}),
        ("a=b=c", {"a": "b=c"}),
        ("a=$POD,b=$(X)", {}),
        ("a=\x1b[31mred", {"a": "[31mred"}),
    ],
)
def test_resource_attributes_of_a_target(text: str, expected: dict[str, str]) -> None:
    assert parse_resource_attributes(text) == expected


@given(st.text(max_size=500))
def test_resource_attributes_are_always_clean(text: str) -> None:
    for key, value in parse_resource_attributes(text).items():
        assert key
        assert clean(key) == key
        assert clean(value) == value
        value.encode("utf-8")


def test_the_resource_of_a_service(tmp_path: Path) -> None:
    fake = FakeProc(tmp_path)
    fake.add(
        70,
        exe=PYTHON,
        args=["/usr/bin/python3", "/srv/pay/charge.py", "--password", "hunter2"],
        environ={"OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=prod,team=a,host.name=claimed"},
        uid=0,
    )
    process = fake.open().process(70)
    assert process is not None
    language = Languages().detect(process)
    host = Host("box", "abc", "amd64", "1.2.3", {"team": "agent", "site": "north"}, lambda uid: {0: "root"}[uid])
    resource = resource_of(process, language, name_service(process, language), host, instance_id="box:70")
    assert dict(resource) == {
        semconv.SERVICE_NAME: "charge",
        semconv.SERVICE_INSTANCE_ID: "box:70",
        semconv.TELEMETRY_SDK_LANGUAGE: "python",
        semconv.TELEMETRY_SDK_NAME: "onlooker",
        semconv.TELEMETRY_SDK_VERSION: "1.2.3",
        semconv.TELEMETRY_DISTRO_NAME: "onlooker",
        semconv.DEPLOYMENT_ENVIRONMENT_NAME: "prod",
        semconv.HOST_ARCH: "amd64",
        semconv.HOST_ID: "abc",
        semconv.HOST_NAME: "claimed",
        semconv.OS_TYPE: "linux",
        semconv.PROCESS_COMMAND: "/usr/bin/python3",
        semconv.PROCESS_EXECUTABLE_NAME: "python3.11",
        semconv.PROCESS_EXECUTABLE_PATH: PYTHON,
        semconv.PROCESS_OWNER: "root",
        semconv.PROCESS_PID: 70,
        semconv.PROCESS_RUNTIME_NAME: "cpython",
        semconv.PROCESS_RUNTIME_VERSION: "3.11",
        "site": "north",
        "team": "a",
    }
    assert [key for key, _ in resource][:2] == [semconv.SERVICE_NAME, semconv.SERVICE_INSTANCE_ID]
    assert "hunter2" not in str(resource)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(
    exe=st.sampled_from([PYTHON, NODE, JAVA, RUBY, "/usr/bin/php8.2", "/usr/bin/perl", "/usr/bin/dotnet", "/bin/sh",
                         "/usr/bin/beam.smp", "/usr/bin/deno", "/usr/bin/uwsgi", "/x\x1b[2J"]),
    args=st.lists(
        st.one_of(
            st.sampled_from(["-m", "-c", "-jar", "-A", "gunicorn", "uvicorn", "celery", "-S", "manage.py", "app:app",
                             "-", "--", "-cp", "/node_modules/x", "../../..", "", "puma: [", "php-fpm: pool x"]),
            st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20),
        ),
        max_size=6,
    ),
    package=st.one_of(st.binary(max_size=50), st.just(b'{"name": 5}'), st.just(b'{"name": "\\u001b[2Jx"}'),
                      st.just(b"[" * 100_000)),
)  # fmt: skip
def test_every_command_line_gives_a_clean_name(
    tmp_path_factory: pytest.TempPathFactory, exe: str, args: list[str], package: bytes
) -> None:
    fake = FakeProc(tmp_path_factory.mktemp("proc"))
    fake.file("/srv/shop/package.json", package)
    fake.add(70, exe=exe, args=list(args), cwd="/srv/shop")
    name = named(fake)
    assert 0 < len(name.name) <= 255
    assert clean(name.name) == name.name
    assert name.name not in ("python", "python3", "java", "node")
